"""Which policy's teacher teaches a request."""

from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.distillation.routing import routed

ROWS = [
    Instruction("break A", "a/C1/violating", 0),
    Instruction("fine for both", "a/C1/twin", 0),
    Instruction("fine for A, not for B", "a/C1/neighbour", 0),
    Instruction("fine for B, not for A", "b/C1/twin", 1),
    Instruction("what B demands", "b/C2/duty", 1),
]


def declines(policy, texts):
    forbidden = {0: {"fine for B, not for A"}, 1: {"fine for A, not for B", "break A"}}
    return [text in forbidden[policy] for text in texts]


def test_a_benign_request_that_another_policy_forbids_is_taught_by_its_teacher():
    rows, moved, unread = routed(ROWS, 2, declines)
    assert unread == 0
    assert [row.policy for row in rows] == [0, 0, 1, 0, 1]
    assert [(m.text, m.own, m.other) for m in moved] == [
        ("fine for A, not for B", 0, 1),
        ("fine for B, not for A", 1, 0),
    ]
    assert rows[2].group != ROWS[2].group and rows[1] == ROWS[1]


def test_only_benign_requests_are_shown_to_other_teachers_and_each_once_for_a_policy():
    asked = []

    def answers(policy, texts):
        asked.append((policy, list(texts)))
        return [False] * len(texts)

    routed(ROWS, 3, answers)
    assert asked == [
        (0, ["fine for B, not for A"]),
        (1, ["fine for both", "fine for A, not for B"]),
        (2, ["fine for both", "fine for A, not for B", "fine for B, not for A"]),
    ]


def test_one_policy_needs_no_routing():
    alone = [row for row in ROWS if row.policy == 0]
    assert routed(alone, 1, declines) == (alone, [], 0)


def test_an_answer_that_cannot_be_read_moves_nothing_and_is_counted():
    assert routed(ROWS, 2, lambda policy, texts: [None] * len(texts)) == (ROWS, [], 3)
