"""The version of the distillation algorithm (imports no torch).

Raise it when a change of this package changes the checkpoint that the same inputs give. It is part
of the fingerprint of `distilled_checkpoint`, so that existing checkpoints then count as stale.
"""

CODE_VERSION = 1
