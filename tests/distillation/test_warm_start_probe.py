"""When a warm start is done: from the student's answers to a few held-back requests."""

from types import SimpleNamespace

import pytest

from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.distillation.warm_start import Probe
from policyalign_assets.judges.phrases import RuleBasedJudge

DECLINES, ANSWERS = "I can't help with that request.", "Write down the steps, and then begin."


def probe(declined: int, answered: int, touched: int, agreement: float) -> Probe:
    """One of held-back requests that the teacher declines or answers; the last ones are touched."""
    number = declined + answered
    held = [Instruction(f"Request {i}?", "A1/violating", 0) for i in range(number)]
    mix = SimpleNamespace(held=held, held_touched=[i >= number - touched for i in range(number)])
    teacher = [True] * declined + [False] * answered
    return Probe(mix, teacher, RuleBasedJudge(), agreement)


@pytest.mark.parametrize(
    ("declined", "answered", "agreement", "misses", "done"),
    [
        (12, 28, 0.97, 0, True),
        (12, 28, 0.97, 1, True),  # 27 of 28 are 96.4 %, and 28 requests cannot show 97 %
        (12, 28, 0.97, 2, False),
        (36, 75, 0.97, 2, True),
        (36, 75, 0.97, 3, False),
        (12, 100, 0.97, 3, True),
        (12, 100, 0.97, 4, False),
        (12, 5, 0.8, 1, True),
        (12, 5, 0.8, 2, False),
        (12, 28, 1.0, 1, False),
    ],
)
def test_so_many_answers_may_differ_from_the_teachers(declined, answered, agreement, misses, done):
    looked = probe(declined, answered, 0, agreement)
    said = [DECLINES] * declined + [ANSWERS] * (answered - misses) + [DECLINES] * misses
    assert looked.done(said) is done
    assert looked.readings[0].answered == (answered - misses, answered)


def test_requests_that_the_edit_touches_count_by_themselves():
    looked = probe(12, 100, 4, 0.97)
    said = [DECLINES] * 12 + [ANSWERS] * 98 + [DECLINES] * 2
    assert not looked.done(said) and looked.readings[0].touched == (2, 4)


def test_nothing_held_back_is_never_done():
    assert not probe(0, 0, 0, 0.97).done([])
