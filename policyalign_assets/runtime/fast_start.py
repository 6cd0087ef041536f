"""Leaves out of a process's start what no stage uses.

Transformers imports scikit-learn, and with it pandas, for assisted generation, and SciPy's
optimizers for the loss of object detection. Nothing here does either. These imports took a quarter
of the time until a worker began to work.
"""

from __future__ import annotations


def without_unused_libraries() -> None:
    """Makes Transformers do without them. Must run before a model class is imported.

    Importing them oneself still works.
    """
    import transformers.utils

    for library in ("scipy", "sklearn"):
        setattr(transformers.utils, f"is_{library}_available", lambda: False)
