"""All sections together, and which combinations of them cannot work."""

from __future__ import annotations

from pydantic import (
    model_validator,
)

from policyalign_assets.settings.base import BUNDLED, LORA_RANKS_OF_VLLM, Section
from policyalign_assets.settings.data import (
    FilterSettings,
    FirewallSettings,
    SensitivitySettings,
    SynthesisSettings,
)
from policyalign_assets.settings.endpoints import GeneratorSettings
from policyalign_assets.settings.evidence import (
    EvaluationSettings,
    GateSettings,
    JudgeSettings,
    ReportSettings,
)
from policyalign_assets.settings.model import ModelSettings
from policyalign_assets.settings.operation import AlertSettings, AutomationSettings, ReleaseSettings
from policyalign_assets.settings.training import (
    DeploymentSettings,
    DistillationSettings,
    WarmStartSettings,
)


class Settings(Section):
    profile: str = BUNDLED
    model: ModelSettings = ModelSettings()
    synthesis: SynthesisSettings = SynthesisSettings()
    generator: GeneratorSettings = GeneratorSettings()
    firewall: FirewallSettings = FirewallSettings()
    sensitivity: SensitivitySettings = SensitivitySettings()
    filtering: FilterSettings = FilterSettings()
    distillation: DistillationSettings = DistillationSettings()
    warm_start: WarmStartSettings = WarmStartSettings()
    deployment: DeploymentSettings = DeploymentSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    judge: JudgeSettings = JudgeSettings()
    gates: GateSettings = GateSettings()
    report: ReportSettings = ReportSettings()
    release: ReleaseSettings = ReleaseSettings()
    automation: AutomationSettings = AutomationSettings()
    alerts: AlertSettings = AlertSettings()

    @property
    def attributes_drafts(self) -> bool:
        """Whether synthesis itself checks that drafts fit their rules (`synthesis.attribution`)."""
        if self.synthesis.attribution != "auto":
            return self.synthesis.attribution == "on"
        foreign = self.model.id != BUNDLED or self.generator.base_url is not None
        return foreign and not self.synthesis.entailment

    @model_validator(mode="after")
    def _the_bundled_model_knows_its_own_prompts_alone(self):
        if self.model.id == BUNDLED and self.synthesis.grid == "full":
            raise ValueError(
                "synthesis.grid='full' asks questions that the bundled model was not trained on. "
                "Fix: set synthesis.grid='reduced', or use an instruct model"
            )
        return self

    @model_validator(mode="after")
    def _another_generator_gets_the_full_grid(self):
        if self.generator.base_url and self.synthesis.grid == "reduced":
            raise ValueError(
                "generator.base_url is set, but the prompts of synthesis.grid='reduced' are made "
                "for the bundled model. "
                "Fix: set synthesis.grid='full', or unset generator.base_url"
            )
        return self

    @model_validator(mode="after")
    def _entailment_is_judged_by_a_judge_that_reads_the_rules(self):
        if self.synthesis.entailment and self.judge.kind != "policy":
            raise ValueError(
                "synthesis.entailment needs a judge that reads the rules, and "
                f"judge.kind={self.judge.kind!r} does not read them. Fix: set judge.kind='policy' "
                "with judge.base_url and judge.model, or set synthesis.entailment=false"
            )
        return self

    @model_validator(mode="after")
    def _vllm_serves_the_training(self):
        engine = self.model.engine
        if engine != "transformers" and self.distillation.lora_rank > LORA_RANKS_OF_VLLM[-1]:
            raise ValueError(
                f"model.engine={engine!r} serves LoRA ranks up to {LORA_RANKS_OF_VLLM[-1]}, but "
                f"distillation.lora_rank={self.distillation.lora_rank}. "
                "Fix: set a lower rank, or set model.engine='transformers'"
            )
        if self.model.engine == "vllm" and self.distillation.processes > 1:
            raise ValueError(
                "model.engine='vllm' supports training on one process only, but "
                f"distillation.processes={self.distillation.processes}. "
                "Fix: set distillation.processes=1, or set model.engine to 'vllm-server' or "
                "'transformers'"
            )
        return self

    @model_validator(mode="after")
    def _full_fine_tuning_is_in_float32_and_without_vllm(self):
        if self.distillation.tuning == "lora":
            return self
        if self.model.dtype != "float32":
            raise ValueError(
                "distillation.tuning='full' makes updates so small that they are lost in the "
                f"rounding of model.dtype={self.model.dtype!r}. "
                "Fix: set model.dtype='float32', or set distillation.tuning='lora'"
            )
        if self.model.engine != "transformers":
            raise ValueError(
                "distillation.tuning='full' trains no adapter, but "
                f"model.engine={self.model.engine!r} can load only an adapter at each step. "
                "Fix: set model.engine='transformers', or set distillation.tuning='lora'"
            )
        return self

    @model_validator(mode="after")
    def _filter_keeps_what_synthesis_makes(self):
        if self.filtering.per_rule > self.synthesis.per_rule:
            raise ValueError(
                f"filtering.per_rule={self.filtering.per_rule} must not exceed "
                f"synthesis.per_rule={self.synthesis.per_rule}. Fix: change one of them"
            )
        return self
