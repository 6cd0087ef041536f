"""Rows of one rule, kept under a name that says what they were made from: an unchanged rule is never drafted twice.

The name covers the rule's id and words, the settings, the generator, the firewalls and the words of the grid, and nothing of
the policy around the rule; domains that share a rule share its rows, and the cost of an edit is that of the edited rules.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

from policyalign_assets.engine.base import Engine
from policyalign_assets.files import replacing_file
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.policy import Rule
from policyalign_assets.settings import SynthesisSettings
from policyalign_assets.synthesis.drafting import CODE_VERSION, DraftChecks, RuleYield
from policyalign_assets.synthesis.texts import prompt_texts

_LATER = {"recombined_ratio", "heldout"}  # applied to the rows after they were drafted


class RuleStore:
    """`made_on`: whatever else decides what the generator writes, such as the number format of its weights."""

    def __init__(self, folder: Path, made_on: object = None):
        self._folder, self._made_on = folder, made_on

    def name(
        self, rule: Rule, engine: Engine, settings: SynthesisSettings, checks: DraftChecks
    ) -> str:
        made_from = [
            CODE_VERSION,
            self._made_on,
            rule.content_hash,
            settings.model_dump(exclude=_LATER),
            engine.model_id,
            engine.revision,
            [wall.digest for wall in checks.walls],
            prompt_texts(settings.grid == "full"),
            RuleBasedJudge().id,
        ]
        if checks.judge:
            made_from.append([checks.judge.id, checks.judge.revision, checks.judge.template])
        return hashlib.sha256(
            json.dumps(made_from, sort_keys=True, default=str).encode()
        ).hexdigest()[:40]

    def load(self, name: str) -> tuple[list[dict], RuleYield] | None:
        path = self._folder / f"{name}.json"
        if not path.exists():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        counted = {
            key: Counter(value) if isinstance(value, dict) else value
            for key, value in kept["yield"].items()
        }
        return kept["rows"], RuleYield(**counted)

    def save(self, name: str, rows: list[dict], out: RuleYield) -> None:
        with replacing_file(self._folder / f"{name}.json") as aside:
            aside.write_text(
                json.dumps({"rows": rows, "yield": vars(out)}, ensure_ascii=False), encoding="utf-8"
            )
