"""The command line `policyalign`: one module per command, loaded only when it is called."""
