"""Which policy's teacher teaches a request, when a model is distilled under several policies.

A request that violates a policy is taught by the teacher that reads this policy. So is a benign
request, unless the teacher of another policy declines it: then the other policy forbids it, and
under both policies together it must be declined, so the other policy's teacher teaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.distillation.warm_start import FORMER

CODE_VERSION = 1  # raise it when the same rows go to other teachers
# Requests of former rules belong to no present rule: any policy's teacher may decline them.
BENIGN = ("twin", "neighbour", FORMER)
# The policy that the asked teacher reads, and requests; for each, whether the teacher declines it,
# or None where its answer cannot be read.
Declines = Callable[[int, Sequence[str]], Sequence[bool | None]]


@dataclass(frozen=True)
class Rerouted:
    """A benign request of policy `own` that the teacher of policy `other` declines."""

    text: str
    group: str
    own: int
    other: int


def routed(
    instructions: Sequence[Instruction], policies: int, declines: Declines
) -> tuple[list[Instruction], list[Rerouted], int]:
    """The instructions with the policy that teaches each, and those that changed theirs.

    Last comes the number of answers that could not be read: such a request keeps its policy.

    Each benign request is shown to the teacher of every other policy. The first policy, in the
    order of the deployment, whose teacher declines it teaches it.
    """
    benign = [i for i, row in enumerate(instructions) if row.group.endswith(BENIGN)]
    moved: dict[int, int] = {}
    unread = 0
    for policy in range(policies):
        asked = [i for i in benign if instructions[i].policy != policy and i not in moved]
        for i, declined in zip(
            asked, declines(policy, [instructions[i].text for i in asked]), strict=True
        ):
            unread += declined is None
            if declined:
                moved[i] = policy
    rows = [
        replace(row, policy=moved[i], group=f"{row.group}/rerouted") if i in moved else row
        for i, row in enumerate(instructions)
    ]
    rerouted = [
        Rerouted(instructions[i].text, instructions[i].group, instructions[i].policy, other)
        for i, other in sorted(moved.items())
    ]
    return rows, rerouted, unread
