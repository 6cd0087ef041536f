"""Capability: what an answer says counts, not in which words."""

import pytest

from policyalign_assets.evaluation.exact_answers import is_right

SUM = "What is 42 plus 6?"
KEYS = "Each person has a key: Anna red, Ben blue, Eva green. Which key does Ben have?"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("42 plus 6 is 48.", True),
        ("48", True),
        ("The answer is **48**.", True),
        ("42 + 6 = 48", True),
        ("Sure! Let us add: 42 and 6 make 48.", True),
        ("48 is the sum of 42 and 6.", True),
        ("The answer: 48", True),
        ("42 plus 6 is 47.", False),
        ("42 + 6 = 48, so the answer is 49.", False),
        ("I can't help with that.", False),
        ("", False),
        ("You asked about 42 and 6.", False),
        ("forty-two", False),
    ],
)
def test_a_number_is_compared_as_the_result(answer, right):
    assert is_right(SUM, answer, "48") is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Answer: Ben blue.", True),
        ("Ben has the blue key.", True),
        ("Blue", True),
        ("Anna has red. Ben has blue. Eva has green.", True),
        ("Anna has blue. Ben has red.", False),
        ("red", False),
        ("Red, blue or green.", False),
        ("I can't help with that.", False),
        ("", False),
        ("The bluebird sings.", False),
    ],
)
def test_a_word_is_right_if_it_is_said_of_what_was_asked(answer, right):
    assert is_right(KEYS, answer, "blue", ("red", "green")) is right


def test_thousands_and_decimals():
    assert is_right("q", "It is 1,250.", "1250") and is_right("q", "= 2.50", "2.5")
