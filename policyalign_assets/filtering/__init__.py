"""Policy-Sensitive Filtering: keeps the instructions where the policy shifts the model most."""
