"""Releases: a signed bundle proves what was measured, a ledger says what may be served."""
