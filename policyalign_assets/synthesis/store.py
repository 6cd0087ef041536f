"""Keeps the rows of one rule on disk, so that an unchanged rule is never drafted twice.

A file's name is a hash of everything that the rows were made from: the rule's id, words and
fields, the settings, the generator, the firewalls and the texts of the prompts. Nothing else of
the policy counts. So domains that share a rule share its rows, and an edit costs only the edited
rules.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from policyalign_assets.engine.base import Engine
from policyalign_assets.files import replacing_file
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.policy import Rule
from policyalign_assets.settings import SynthesisSettings
from policyalign_assets.synthesis.checks import DraftChecks
from policyalign_assets.synthesis.drafting import CODE_VERSION, NO_EXAMPLES, Examples, Row
from policyalign_assets.synthesis.texts import load_yaml, prompt_texts
from policyalign_assets.synthesis.yields import RuleYield

_APPLIED_LATER = {"recombined_ratio", "heldout"}  # they change the rows after they were drafted


class RuleStore:
    """generator_setup: what else decides what the generator writes, such as its number format."""

    def __init__(self, folder: Path, generator_setup: object = None):
        self._folder, self._generator_setup = folder, generator_setup

    def name(
        self,
        rule: Rule,
        engine: Engine,
        settings: SynthesisSettings,
        checks: DraftChecks,
        examples: Examples = NO_EXAMPLES,
    ) -> str:
        made_from = [
            CODE_VERSION,
            self._generator_setup,
            rule.content_hash,
            settings.model_dump(exclude=_APPLIED_LATER),
            engine.model_id,
            engine.revision,
            [firewall.digest for firewall in checks.firewalls],
            prompt_texts(settings.grid == "full"),
            [examples.violates, examples.allowed],
            RuleBasedJudge().id,
        ]
        if judge := checks.judge:
            made_from.append([judge.id, judge.revision, judge.template])
            made_from.append(load_yaml("entailment.yaml"))
        if checks.attribution:
            made_from.append(checks.attribution.id)
        content = json.dumps(made_from, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:40]

    def load(self, name: str) -> tuple[list[Row], RuleYield] | None:
        path = self._folder / f"{name}.json"
        if not path.exists():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored["rows"], RuleYield.from_dict(stored["yield"])

    def save(self, name: str, rows: list[Row], counts: RuleYield) -> None:
        content = json.dumps({"rows": rows, "yield": vars(counts)}, ensure_ascii=False)
        with replacing_file(self._folder / f"{name}.json") as temporary:
            temporary.write_text(content, encoding="utf-8")
