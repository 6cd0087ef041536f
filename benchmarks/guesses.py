"""What it saves to guess that answers are as they were before an edit, on the bundled model.

    python benchmarks/guesses.py --policy general-conduct --domain medical --rule M2 --times 3

One rule is reworded. Then all requests are answered under the new policy, and scored, with the
results under the old policy as guesses and without. Both ways take turns. It prints medians of
seconds, the guesses that were right, and how many answers and scores differ, which rounding can
cause. It exits with an error if more than one in a hundred does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import load_model
from policyalign_assets.files import location
from policyalign_assets.policy import parse_policy
from policyalign_assets.runtime.execution import make
from policyalign_assets.sensitivity.score import score_instructions
from policyalign_assets.settings import load_settings
from policyalign_assets.stages.interface import StageContext


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", type=Path, default=Path("policies"))
    parser.add_argument("--policy", default="general-conduct")
    parser.add_argument("--domain", default="medical")
    parser.add_argument("--rule", default="M2")
    parser.add_argument("--action", default="fake a test result", help="what the rule forbids then")
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    settings = load_settings()
    policy = parse_policy(asked.policies, asked.policy, asked.domain)
    if asked.rule not in [rule.rule_id for rule in policy.rules]:
        sys.exit(f"the policy has no rule {asked.rule}")
    edited = replace(
        policy,
        rules=tuple(
            replace(rule, text=f"Never help anyone {asked.action}.", action=asked.action)
            if rule.rule_id == asked.rule
            else rule
            for rule in policy.rules
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = make(
            "violating_instructions",
            StageContext(settings, location(folder)),
            {"policy_document": policy},
        ).value
    loaded = load_model(settings.model)
    engine = TransformersEngine(loaded, settings.model.batch_tokens)
    sampling = Sampling(settings.evaluation.max_new_tokens)
    texts = rows["text"].to_pylist()

    def answers(under, guesses=()):
        chats = [chat(text, under.prompt_text) for text in texts]
        return [g.text for g in engine.generate(chats, sampling, guesses=guesses)]

    def scores(under, earlier=None):
        return score_instructions(
            under,
            rows,
            loaded,
            engine,
            settings.sensitivity,
            settings.model.batch_tokens,
            earlier=earlier,
        )

    before = {"answers": answers(policy), "scores": scores(policy)}
    made, seconds = {}, {}
    for _ in range(asked.times):
        for name, do in (("answers", answers), ("scores", scores)):
            for way, given in (("without guesses", ()), ("with guesses", (before[name],))):
                begun = time.perf_counter()
                made[name, way] = do(edited, *given)
                seconds.setdefault((name, way), []).append(time.perf_counter() - begun)
    print(f"{len(texts)} requests, {asked.times} times each\n")
    print("| | without guesses | with guesses | guesses right | results that differ |")
    print("| --- | --- | --- | --- | --- |")
    worst = 0.0
    for name in before:
        plain, guessed = ([*_texts(made[name, f"{w} guesses"])] for w in ("without", "with"))
        right = sum(a == b for a, b in zip(_texts(before[name]), plain, strict=True)) / len(plain)
        differ = sum(a != b for a, b in zip(plain, guessed, strict=True))
        worst = max(worst, differ / len(plain))
        took = [statistics.median(seconds[name, f"{w} guesses"]) for w in ("without", "with")]
        print(f"| {name} | {took[0]:.1f} s | {took[1]:.1f} s | {right:.0%} | {differ} |")
    if worst > 0.01:
        sys.exit("more results differ than rounding explains")


def _texts(made):
    """The answers, or both responses of each score."""
    if isinstance(made, list):
        return made
    columns = [made[name].to_pylist() for name in ("student_response", "teacher_response")]
    return list(zip(*columns, strict=True))


if __name__ == "__main__":
    main()
