"""Keeps the base model's own answers, so that training can hold the adapted model to them.

    python -m policyalign_assets.english_model.answers

Writes the first tokens of SmolLM2's greedy answer, without a policy, to some of the training
requests and to the everyday ones. Answers that the phrase judge reads as refusals, or cannot read,
are left out. So are those that apologize: the judge does not see how they go on, and a model that
was trained on them began "I'm sorry for any confusion, but as a chatbot ..." far more often than
its base.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from policyalign_assets.engine.base import Engine, Sampling, chat
from policyalign_assets.english_model.corpus import CorpusRule, everyday_requests, shipped_corpus
from policyalign_assets.judges.phrases import RuleBasedJudge

_APOLOGIES = re.compile(
    r"\b(?:sorry|apologi\w+|as an? (?:ai|chatbot|language model|digital)|unable|ability to"
    r"|(?:do not|don't) have|(?:i am|i'm) not|can't|cannot)\b",
    re.IGNORECASE,
)
ANSWERS = Path(__file__).parent / "answers.jsonl"
TOKENS = 16
AT_ONCE = 40


def asked(rules: Sequence[CorpusRule], seed: int) -> list[str]:
    """Draw one violation and one twin of each rule, and a neighbour of every third."""
    rng = random.Random(seed)
    texts: list[str] = []
    for rule in rules:
        texts += [rng.choice(kind) for kind in (rule.violations, rule.twins) if kind]
        if rule.neighbours and rng.random() < 0.3:
            texts.append(rng.choice(rule.neighbours))
    return texts


def answered(engine: Engine, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each request with its answer, except where the judge does not read an answer."""
    judge = RuleBasedJudge()
    for at in range(0, len(texts), AT_ONCE):
        some = texts[at : at + AT_ONCE]
        for text, made in zip(
            some, engine.generate([chat(t) for t in some], Sampling(TOKENS)), strict=True
        ):
            answers = made.text.strip() and judge.judge(made.text).refused is False
            if answers and not _APOLOGIES.search(made.text):
                yield text, made.text


def read_answers(file: Path = ANSWERS) -> dict[str, str]:
    """Read a file of this module: JSONL with the keys `request` and `answer`."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {row["request"]: row["answer"] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=ANSWERS)
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
    from policyalign_assets.engine.loading import load_model
    from policyalign_assets.settings import SMOLLM2, ModelSettings

    texts = [*everyday_requests(), *asked(shipped_corpus()[0], options.seed)]
    settings = ModelSettings(id=SMOLLM2)
    engine = TransformersEngine(load_model(settings), settings.batch_tokens)
    aside = options.to.with_suffix(".tmp")
    kept = 0
    with aside.open("w", encoding="utf-8") as out:
        for request, answer in answered(engine, texts):
            out.write(json.dumps({"request": request, "answer": answer}, ensure_ascii=False) + "\n")
            kept += 1
    os.replace(aside, options.to)
    print(f"{kept} of {len(texts)} answers kept", file=sys.stderr)


if __name__ == "__main__":
    main()
