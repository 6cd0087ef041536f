"""Reads a rule's sentence: what kind of rule it is, what it forbids, when, and with what exceptions."""
