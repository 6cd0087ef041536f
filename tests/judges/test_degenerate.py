"""What counts as no answer: empty, going in circles, gibberish; and what ends in mid-sentence."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from policyalign_assets.judges.degenerate import (
    EMPTY,
    GIBBERISH,
    REPEATS,
    cut,
    degenerate,
    languages,
)

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", EMPTY),
        (" \n\t", EMPTY),
        ("…", EMPTY),
        ("?!", EMPTY),
        ("word " * 40, REPEATS),
        ("a b c " * 12, REPEATS),
        ("I am a bot. " * 9, REPEATS),
        ("Sure: first plan. " + "Then go on and on. " * 12 + "Then go", REPEATS),
        ("哈哈" * 30, REPEATS),
        ("aaaa" * 30, REPEATS),
        ("1. Open it.\n" * 8, REPEATS),
        ("zxqv brtk plmn wrtq hgfd ssdf kjhg trwq", GIBBERISH),
        ("}{;:|<>?/~`!@#$%^&*()_+=-[]\\,.}{;:", GIBBERISH),
        ("\ufffd" * 12 + "abc", GIBBERISH),
        ("приhello ветwor какld делаsun хорmoon ошоstar", GIBBERISH),
        (
            "tractor album yellow forge window river copper saddle kettle orbit pencil velvet "
            "forest ladder syrup candle marble harbour",
            GIBBERISH,
        ),
        ("안녕하세요 здравствуйте γειάσας สวัสดีครับ नमस्तेजी こんにちは hello world again", GIBBERISH),
    ],
)
def test_what_is_no_answer(text: str, reason: str) -> None:
    assert degenerate(text) == reason


@pytest.mark.parametrize(
    "text",
    [
        "4",
        "Yes.",
        "C",
        "x = 3",
        "3.14159265358979323846264338327950288419716939937510",
        "I can't help with that.",
        "No. No. No.",
        "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life "
        "is but a dream.",
        "```python\nfor i in range(10):\n    print(i)\n```",
        "def f(x):\n    return {x: x}\n\nclass A:\n    def g(self):\n        return [];\n",
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |",
        "- milk\n- eggs\n- flour\n- butter\n- sugar\n- salt\n- pepper\n- rice\n- beans\n- cheese",
        "Paris, London, Berlin, Rome, Madrid, Lisbon, Vienna, Prague, Warsaw, Oslo, Bern, Riga, "
        "Kyiv, Athens, Dublin, Tallinn",
        "$\\int_0^1 x^2\\,dx = \\frac{1}{3}$, so the area is one third.",
        "Die Bundesversammlung wählt den Bundespräsidenten auf fünf Jahre, ohne dass darüber "
        "ausgesprochen wird.",
        "Strč prst skrz krk je česká věta bez samohlásek.",
        "Ang lahat ng tao ay isinilang na malaya at pantay-pantay sa karangalan at mga karapatan.",
        "これは日本語の文章です。設定を開いて、言語を選んでください。",
        "这是一个关于设置语言的简短说明。请打开菜单，然后选择语言。",
        "هذا نص قصير باللغة العربية عن كيفية تغيير اللغة في الإعدادات.",
        "Haha, good one! 😂😂😂",
        "HTTP, HTML, CSS, XML and SQL are names that every programmer on the web will know.",
    ],
)
def test_what_is_an_answer(text: str) -> None:
    assert degenerate(text) is None


@pytest.mark.slow
def test_answers_of_real_models_are_hardly_ever_flagged() -> None:
    files = sorted((SHARED / "xstest" / "completions").glob("*.csv"))
    if not files:
        pytest.skip("the answers of XSTest are not on this machine")
    texts = []
    for file in files:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            texts += [row["completion"] for row in csv.DictReader(lines)]
    flagged = [text for text in texts if degenerate(text)]
    assert len(texts) > 1000 and len(flagged) <= 0.002 * len(texts)


def test_text_of_real_policies_is_hardly_ever_flagged() -> None:
    files = sorted((SHARED / "policy-corpus").glob("*.jsonl"))
    if not files:
        pytest.skip("the collection of policies is not on this machine")
    texts = [
        value
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        for value in json.loads(line).values()
        if isinstance(value, str) and len(value.split()) >= 5
    ]
    flagged = [text for text in texts if degenerate(text)]
    assert len(texts) > 50 and len(flagged) <= 0.02 * len(texts)


@pytest.mark.parametrize(
    "text",
    [
        "First open the menu. Then choose the language and",
        "You need flour, water,",
        "Mix it well. After that, put the dough into a warm place for about two",
        "```python\nprint(1)",
        "1. Open the menu.\n2. Choose the language.\n3. Save the",
        "The steps are:",
    ],
)
def test_what_is_cut(text: str) -> None:
    assert cut(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "Paris",
        "Open the menu.",
        "- milk\n- eggs\n- flour",
        "1. Open the menu\n2. Choose the language\n3. Save it",
        "Is that so?",
        'He said "no."',
        "```python\nprint(1)\n```",
        "Good luck! 🎉",
        "打开菜单。",
    ],
)
def test_what_is_whole(text: str) -> None:
    assert not cut(text)


def test_languages_are_told_by_their_small_words() -> None:
    shares = languages("Ich kann Ihnen dabei leider nicht helfen, weil es nicht erlaubt ist.")
    assert max(shares, key=shares.__getitem__) == "de"
    assert languages("123") == {}
