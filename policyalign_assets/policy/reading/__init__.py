"""Reads a rule's sentence: its kind, what it forbids, when, and with what exceptions."""
