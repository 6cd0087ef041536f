"""The sweep file of the study: which arms are tried, on which policies, seeds and size.

An arm is a way to make a model follow a policy. Each has a type: how it is trained, on which
instructions, and what stands around the model when it answers. The file that the package ships is
`study.yaml` in this folder. Everything that a file says is checked before any work starts.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from policyalign_assets.settings import Settings, SettingsError, load_settings
from policyalign_assets.settings.base import Section

SHIPPED = Path(__file__).parent / "study.yaml"
COMMAND = "policyalign study --work data/study --page docs/study.md"
LARGEST_FILE = 65_536  # bytes
ARM = re.compile(r"[a-z][a-z0-9_+]{0,31}")
PARTITION = re.compile(r"[a-z0-9-]+\|[a-z0-9-]+")
# Sections that all arms share, and those that one arm may change.
OF_ALL = ("model", "synthesis", "sensitivity", "filtering", "distillation", "evaluation", "judge")
OF_AN_ARM = ("distillation", "filtering")
FROM_THE_SEED = ("seed", "seeds")  # of any section: the sweep's own list of seeds decides

Kind = Literal["twins", "neighbours", "everyday"]


class SweepError(ValueError):
    """A sweep file that cannot be used. The message names the file, the value and the fix."""


class Arm(Section):
    """One way to make a model follow a policy.

    training: how the weights are changed. `distillation` is the product's own training.
    instructions: which violations are trained on: those that the filter ranks first (`top`), all
        of them, or a random choice of as many.
    without: kinds of benign requests that are left out of the training mix.
    guard: what screens requests or answers. See `guards.py`.
    beta: of DPO, how strongly the reference model holds.
    against: the arm that this one is compared with; None: the sweep's reference.
    settings: values that this arm changes, by section.
    """

    about: str = Field(min_length=1, max_length=200)
    training: Literal["none", "distillation", "sft", "dpo"] = "distillation"
    policy_in_prompt: bool = False
    guard: Literal["none", "words", "model", "judge"] = "none"
    instructions: Literal["top", "all", "random"] = "top"
    without: tuple[Kind, ...] = ()
    beta: float | None = Field(None, gt=0, le=10)
    against: str | None = None
    settings: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Arm:
        if self.training == "none" and (
            self.instructions != "top" or self.without or self.settings
        ):
            raise ValueError(
                "training is none, but instructions, without or settings speak of a training. "
                "Fix: remove them, or name a training"
            )
        if (self.training == "dpo") != (self.beta is not None):
            raise ValueError("beta belongs to training: dpo alone. Fix: set both, or neither")
        if unknown := set(self.settings) - set(OF_AN_ARM):
            raise ValueError(
                f"settings has the section {min(unknown)!r}, which all arms must share. "
                f"Fix: an arm may change {' and '.join(OF_AN_ARM)}"
            )
        teacher = self.settings.get("distillation", {}).get("teacher", "frozen")
        if self.training in ("sft", "dpo") and teacher != "frozen":
            raise ValueError(
                f"training: {self.training} has answers of the untrained teacher alone, so "
                f"distillation.teacher={teacher!r} has no effect. Fix: remove it"
            )
        _no_seed(self.settings)
        return self


class Sweep(Section):
    """What the study runs. Trials run in the order of the arms, each with all seeds.

    share: of the default rows of a rule and of the default held-out cases.
    steps: training steps for up to `distillation.steps_for_rules` rules.
    reference: the arm that the others are compared with.
    made_by: the command that the page names.
    """

    partitions: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1, max_length=20)
    share: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    reference: str
    latency_requests: int = Field(24, ge=4, le=1000)
    settings: dict[str, dict[str, Any]] = {}
    made_by: str = Field(COMMAND, pattern=r"^[^`\n]{1,300}$")
    arms: dict[str, Arm] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_fit(self) -> Sweep:
        for name in self.arms:
            if not ARM.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no name of an arm. Fix: a lower-case letter, then letters, "
                    "digits, _ and +"
                )
        for name in (self.reference, *(a.against for a in self.arms.values() if a.against)):
            if name not in self.arms:
                raise ValueError(f"{name!r} is no arm of this file. Fix: name one of its arms")
        for name, arm in self.arms.items():
            if arm.against == name:
                raise ValueError(f"{name} is compared with itself. Fix: remove its `against`")
        for partition in self.partitions:
            if not PARTITION.fullmatch(partition):
                raise ValueError(f"{partition!r} is no partition. Fix: write <domain>|<policy>")
        for what, values in (("partitions", self.partitions), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what} names one twice. Fix: name each once")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds has {min(self.seeds)}. Fix: no seed is below 0")
        if unknown := set(self.settings) - set(OF_ALL):
            raise ValueError(
                f"settings has the section {min(unknown)!r}. Fix: one of {', '.join(OF_ALL)}"
            )
        _no_seed(self.settings)
        for name in self.arms:  # a wrong setting is said now, not after an hour
            try:
                self.settings_of(name, self.seeds[0])
            except SettingsError as error:
                raise ValueError(f"arm {name}: {error}") from None
        return self

    def settings_of(self, arm: str, seed: int) -> Settings:
        """The settings of one trial. The environment is not read, so that all arms share theirs.

        The seed draws the instructions, the scores and the training anew. The held-out cases stay
        the same, but for those that a seed's instructions happen to contain. Raises SettingsError.
        """
        spec = self.arms[arm]
        default = load_settings(overrides=self.settings, environ={})
        rows = _some(default.synthesis.per_rule, self.share, 10)
        kept = max(1, round(rows * default.filtering.per_rule / default.synthesis.per_rule))
        sized: dict[str, Any] = {
            "synthesis": {"per_rule": rows, "seed": seed},
            "sensitivity": {"seed": seed},
            "filtering": {"per_rule": kept, "seed": seed},
            "distillation": {"steps": self.steps, "seed": seed},
            "evaluation": {
                name: _some(getattr(default.evaluation, name), self.share, 40)
                for name in ("cases_per_suite", "benign_cases", "capability_cases")
            }
            | {"cases_per_rule": 2, "pressure_cases": 0},
        }
        if spec.instructions == "all":
            sized["filtering"] |= {"per_rule": rows, "share": 1.0, "minimum": 0.0}
        if spec.instructions == "random":
            sized["filtering"] |= {"score": "random"}
        if "everyday" in spec.without:
            sized["distillation"] |= {"anchors": 0}
        settings = load_settings(
            overrides=_merged(_merged(self.settings, sized), spec.settings), environ={}
        )
        if spec.guard == "judge" and settings.judge.kind == "rules":
            raise SettingsError(
                "guard: judge asks the configured judge whether an answer is unsafe, and "
                "judge.kind='rules' reads only whether it declines. "
                "Fix: guard: words or guard: model, or set judge.kind under `settings`"
            )
        if spec.training in ("sft", "dpo") and settings.model.engine != "transformers":
            raise SettingsError(
                f"training: {spec.training} samples by model.engine='transformers' alone. "
                "Fix: set model.engine='transformers' under `settings`"
            )
        return settings


def read_sweep(file: Path = SHIPPED) -> Sweep:
    """The sweep of a file. Raises SweepError, which says all that pydantic found wrong."""
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise SweepError(
                f"{file} is larger than {LARGEST_FILE} bytes. Fix: name a sweep file, such as "
                f"{SHIPPED.name} of the package."
            )
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_EachKeyOnce)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise SweepError(f"{file} cannot be read: {said}. Fix: write it as UTF-8 YAML.") from None
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, fault['loc'])) or 'the file'}: "
            + fault["msg"].removeprefix("Value error, ")
            for fault in error.errors()
        ]
        fix = "" if any("Fix:" in line for line in lines) else ". Fix: see study.yaml, which ships"
        raise SweepError(f"{file}: " + "; ".join(lines) + fix + ".") from None


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _some(number: int, share: float, least: int) -> int:
    """A share of `number`, but not fewer than `least` where there are as many."""
    return min(number, max(least, round(share * number)))


def _no_seed(settings: Mapping[str, Mapping[str, Any]]) -> None:
    for section, values in settings.items():
        for name in FROM_THE_SEED:
            if name in values and section != "evaluation":
                raise ValueError(
                    f"settings has {section}.{name}, which the sweep's own seeds decide. "
                    "Fix: remove it, and list the seeds under `seeds`"
                )


def _merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = {section: dict(values) for section, values in base.items()}
    for section, values in extra.items():
        merged.setdefault(section, {}).update(values)
    return merged
