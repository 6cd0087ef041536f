"""The version of rendering and decoding (imports no torch).

Raise it when a change of this package changes the prompts or the answers that the same inputs give.
It is part of the fingerprint of every stage that generates or scores answers.
"""

CODE_VERSION = 1
