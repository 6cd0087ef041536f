"""Writes instructions that break the rules of a policy, and requests just beyond them."""
