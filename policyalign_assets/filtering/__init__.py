"""Policy-Sensitive Filtering: keeps the instructions where the policy shifts the model most."""

# Raise it when code of this package changes the rows that it selects. The SQL needs no number:
# see `filtering.texts`.
CODE_VERSION = 3
