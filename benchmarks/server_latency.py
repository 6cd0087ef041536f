"""What a policy in the prompt, or a guard before the model, costs a request at a vLLM server.

    python benchmarks/server_latency.py --server http://localhost:8000 [--partition 'medical|...']

The server must serve the configured model (`model.id`), as docs/deploy.md shows. Requests are sent
one at a time, as in the study (`study/measuring.py`): half of them break a rule and half are near
misses. The row `no policy` is what an aligned model costs, since its weights have the base's shape.
Each request is timed beside the same request without a policy, so the ratio suffers less from a
busy machine than the milliseconds do. vLLM keeps the policy's prefix in its cache.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from policyalign_assets.engine.base import Engine, TokenEngine
from policyalign_assets.engine.generation.opening import opened_servers
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.held_out import held_out_cases
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.policy import PolicyDocument, parse_policy
from policyalign_assets.settings import Settings, load_settings
from policyalign_assets.study.guards import ScreenedEngine, model_screen, word_screen
from policyalign_assets.study.measuring import CountingEngine, cost
from policyalign_assets.study.results import Latency
from policyalign_assets.study.trials import CountedWith
from policyalign_assets.tables import INSTRUCTIONS


@dataclass(frozen=True)
class Cost:
    """Of one way to follow a policy. `added`: prompt tokens of a request, mean."""

    way: str
    added: float
    latency: Latency


def measured(
    servers: TokenEngine,
    policy: PolicyDocument,
    cases: list[TestCase],
    settings: Settings,
    requests: int,
) -> list[Cost]:
    """The cost of each way, in the order of the table."""

    def counting() -> CountingEngine:
        return CountingEngine(servers, servers.tokenizer)

    def guarded(below: CountingEngine) -> Engine:
        guard = CountedWith(servers, below)
        longest = settings.evaluation.max_new_tokens
        screen = model_screen(guard, policy, judge_for(settings.model.id), longest)
        return ScreenedEngine(below, screen)

    ways = [
        ("no policy (aligned)", None, lambda below: below),
        ("policy in the prompt", policy.prompt_text, lambda below: below),
        ("the model screens, with the policy in its prompt", None, guarded),
    ]
    if any(rule.action for rule in policy.prohibitions):
        screen = word_screen(policy)
        ways.append(("a list of words screens", None, lambda b: ScreenedEngine(b, screen)))
    found = []
    for way, system, around in ways:
        below = counting()
        added, latency = cost(cases, around(below), below, system, settings, requests)
        found.append(Cost(way, added, latency))
    return found


def table(costs: list[Cost]) -> str:
    lines = [
        "| way | added prompt tokens | latency (ms), median and quartiles | ratio |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {c.way} | {c.added:.0f} | {c.latency.median:.0f} ({c.latency.low:.0f} to "
        f"{c.latency.high:.0f}) | {c.latency.ratio:.2f} |"
        for c in costs
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", action="append", required=True, help="may be repeated")
    parser.add_argument("--partition", default="medical|general-conduct", help="DOMAIN|POLICY")
    parser.add_argument("--policies", type=Path, default=Path("policies"), help="their folder")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    domain, _, name = given.partition.partition("|")
    settings = load_settings(
        overrides={"model": {"engine": "vllm-server", "servers": tuple(given.server)}}
    )
    policy = parse_policy(given.policies, name, domain)
    cases = held_out_cases(policy, INSTRUCTIONS.empty_table(), settings).cases
    with opened_servers(settings.model) as servers:
        costs = measured(servers, policy, cases, settings, given.requests)
    print(json.dumps([asdict(c) for c in costs]) if given.json else table(costs))


if __name__ == "__main__":
    sys.exit(main())
