"""Papers that others ask for, rendered from a bundle: they state nothing that it does not hold."""
