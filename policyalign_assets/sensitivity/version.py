"""The version of the sensitivity scores (imports no torch).

Raise it when a change of this package or of the engine changes the scores that the same inputs
give. It is part of the fingerprint of `sensitivity_scores`, so that existing scores then count as
stale.
"""

CODE_VERSION = 1
