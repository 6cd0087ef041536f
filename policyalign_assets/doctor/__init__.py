"""Checks before work begins: what cannot work is refused with its fix, before it is paid for."""
