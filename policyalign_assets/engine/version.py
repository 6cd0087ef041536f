"""The version of rendering and decoding, and the date that templates see (imports no torch).

Raise `CODE_VERSION` when a change of this package changes the prompts or the answers that the same
inputs give, and when `TEMPLATE_DATE` changes. It is part of the fingerprint of every stage that
generates or scores answers.
"""

from __future__ import annotations

from datetime import datetime

CODE_VERSION = 1
# Some chat templates (Llama 3.1 and later) print today's date. A fixed one keeps prompts the same
# from one day to the next, so that a run can be resumed and repeated.
TEMPLATE_DATE = datetime(2025, 1, 1, 12)
