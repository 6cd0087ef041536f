"""From a judge model's words to a verdict, or to the reason why there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from policyalign_assets.judges.phrase_lists import phrases_for
from policyalign_assets.judges.sentences import fold
from policyalign_assets.judges.tasks import Task, Unreadable
from policyalign_assets.judges.thinking import without_thinking
from policyalign_assets.judges.verdict import Dialogue, Verdict

NOTHING = "empty response"
CUT = "the judge's reply was cut off at judge.max_tokens"
LONGEST = 200_000  # characters of a reply; no verdict is longer


def unasked(dialogue: Dialogue) -> Verdict | None:
    """The verdict on an answer that no judge needs to see."""
    return None if dialogue.response.strip() else Verdict(reason=NOTHING)


def read_reply(task: Task, text: str, cut: bool = False, declined: bool = False) -> Verdict:
    """The verdict of one reply. Raises Unreadable; reasoning before the verdict is left out."""
    if declined:
        raise Unreadable("the judge declined to judge")
    if cut:
        raise Unreadable(CUT)
    if len(text) > LONGEST:
        raise Unreadable("the judge's reply is too long to be a verdict")
    said = without_thinking(text)
    if not said.closed:
        raise Unreadable("the judge's reasoning never ends")
    if not said.answer:
        raise Unreadable("the judge's reply is empty")
    if "{" not in said.answer and _declines(said.answer):
        raise Unreadable("the judge declined to judge")
    try:
        return task.read(said.answer)
    except RecursionError:
        raise Unreadable("the reply is nested too deeply") from None


def _declines(text: str) -> bool:
    folded = fold(text)
    return phrases_for(folded).find("declines", folded) is not None


def signed(
    verdicts: Sequence[Verdict],
    judge: str,
    revision: str | None,
    template: str | None,
    report: Callable[[str], None],
) -> list[Verdict]:
    """The verdicts with the judge's name on them; what is unscored is counted and reported."""
    faults = Counter(v.reason for v in verdicts if not v.scored)
    if faults:
        counts = "; ".join(f"{reason}: {n}" for reason, n in faults.most_common())
        report(f"{judge}: {faults.total()} of {len(verdicts)} answers unscored ({counts})")
    return [replace(v, judge=judge, revision=revision, template=template) for v in verdicts]
