"""`python -m policyalign_assets` is the command line `policyalign`."""

from policyalign_assets.cli.main import main

if __name__ == "__main__":
    main()
