"""Settings of the training data: synthesis, firewall, sensitivity, filtering."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
)

from policyalign_assets.settings.base import NO_EFFECT, Section


class SynthesisSettings(Section):
    per_rule: int = Field(
        40, ge=1, description="violating instructions wanted per rule, after de-duplication"
    )
    twin_ratio: float = Field(0.6, ge=0, le=2, description="benign twins per violating instruction")
    neighbour_ratio: float = Field(
        0.4,
        ge=0,
        le=4,
        description="requests that sound risky but break no rule, per violating instruction",
    )
    recombined_ratio: float = Field(
        1.0,
        ge=0,
        le=4,
        description="neighbours made by recombining the rules, per violating instruction",
    )
    grid: Literal["reduced", "full"] = Field(
        "reduced",
        description="`full`, for instruct models: intent x persona x format x difficulty, with "
        "attack styles, and further prompts if the model refuses to draft; the bundled model was "
        "trained for `reduced`",
    )
    style_share: float = Field(
        0.35,
        ge=0,
        le=2,
        description="violating instructions rewritten in an attack style, per plain violating "
        "instruction (full grid only)",
    )
    oversample: float = Field(2.0, ge=1, description="drafts per wanted instruction in each round")
    rounds: int = Field(
        4, ge=1, description="rounds of drafting before a rule is reported as starved"
    )
    temperature: float = Field(1.0, gt=0, le=2)
    max_new_tokens: int = Field(64, ge=8)
    near_duplicate: float = Field(
        0.85,
        gt=0,
        le=1,
        description="MinHash Jaccard similarity of character 5-grams from which a draft counts as "
        "a near duplicate",
    )
    rouge_l: float = Field(
        1.0,
        gt=0,
        le=1,
        description="ROUGE-L to another draft of the rule from which a draft counts as a near "
        "duplicate; 1 turns this check off",
    )
    language: str | None = Field(
        "en",
        pattern="^[a-z]{2}$",
        description="language that drafts must be in; without it, all languages are kept",
    )
    heldout: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="share of each rule's instructions held out of training, by cluster",
    )
    entailment: bool = Field(
        False,
        description="ask the judge (judge.kind=policy) whether each draft fits its rule, and drop "
        "those that do not",
    )
    attribution: Literal["auto", "on", "off"] = Field(
        "auto",
        description="drop drafts that are gibberish or do not belong to their rule, according to "
        "the model's own likelihoods; `auto` turns this on, except for the bundled model or if a "
        "judge decides (synthesis.entailment)",
    )
    teacher_check: bool = Field(
        False,
        description="first send the model a few direct violations, and stop if it ignores the "
        "policy in its prompt; for models other than the bundled one",
    )
    unjudged: Literal["drop", "keep"] = Field(
        "drop",
        description="what to do with drafts that the judge could not judge; a rule that loses too "
        "many drafts is starved, which stops the partition",
    )
    seed: int = Field(11, ge=0)


class FirewallSettings(Section):
    references: str | None = Field(
        None,
        description="folder of evaluation prompts (CSV, JSON, JSONL, Parquet); texts similar to "
        "one of them are dropped",
        json_schema_extra=NO_EFFECT,
    )
    column: str | None = Field(
        None,
        description="column that holds the prompts; without it, the first column with a known name",
    )
    threshold: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Jaccard similarity of words and pairs of words from which a text is dropped",
    )
    own_cases: bool = Field(
        False,
        description="also drop texts similar to the project's own held-out templates; not for the "
        "bundled model, which knows few other words",
    )


class SensitivitySettings(Section):
    judge: Literal["configured", "rules"] = Field(
        "configured",
        description="what decides whether the model declined: the judge of `judge.kind`, or always "
        "the phrases, so that a change of the judge does not require new training",
    )
    max_new_tokens: int = Field(64, ge=8)
    temperature: float = Field(1.0, gt=0, le=2)
    seed: int = Field(12, ge=0)
    top_logprobs: int = Field(
        20,
        ge=1,
        description="likeliest tokens that servers list at each place, where `model.weights` is "
        "`servers`; a server's own limit is `--max-logprobs`",
    )

    def shaping(self) -> dict[str, Any]:
        values = super().shaping()
        if self.top_logprobs == 20:  # as before the setting existed, so nothing is out of date
            del values["top_logprobs"]
        return values


class FilterSettings(Section):
    score: Literal[
        "reverse_kl", "forward_kl", "jeffreys", "js", "reverse_kl_p90", "flip", "random"
    ] = "reverse_kl"
    per_rule: int = Field(
        30, ge=1, description="most violating instructions kept per rule (the top by `score`)"
    )
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of a rule's violating instructions kept (the top by `score`)",
    )
    at_least: int = Field(
        10,
        ge=0,
        description="violating instructions kept per rule even if `share` is lower; a rule with "
        "fewer than this (or than `per_rule`, if that is lower) stops the partition",
    )
    minimum: float = Field(
        0.0, ge=0, description="drop violating instructions scoring below this (nats)"
    )
    twins_low: float = Field(
        0.2, ge=0, description="fewer twins per selected violating instruction stop the partition"
    )
    twins_high: float = Field(
        0.9, gt=0, description="more twins per selected violating instruction stop the partition"
    )
    seed: int = Field(15, ge=0, description="seed of the score `random`")
