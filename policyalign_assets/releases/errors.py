"""What can go wrong with a release, in plain words."""


class ReleaseError(ValueError):
    """A release cannot be made, changed or trusted. The message says why, and how to fix it."""
