"""Writes instructions that break the rules of a policy, and requests just beyond them."""

# Raise it when an algorithm of this package changes the rows that it makes. Texts need no number:
# see `synthesis.texts`.
CODE_VERSION = 3
