"""Runs one trial: an arm with one seed under one policy, from the policy's text to its outcomes.

Data, training, cases and verdicts come from the same code as those of the product. The tables of
a seed are made once and shared by all of its arms.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from policyalign_assets.distillation.anchors import anchors
from policyalign_assets.distillation.batches import Instruction, training_mix
from policyalign_assets.distillation.budget import DistillationFailed
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.engine.base import Engine
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.evaluation.held_out import held_out_cases
from policyalign_assets.files import location, write_parquet
from policyalign_assets.judges.choose import make_judge
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.policy import PolicyDocument, parse_policy
from policyalign_assets.runtime.execution import make
from policyalign_assets.settings import Settings
from policyalign_assets.stages.fingerprints import own_version
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.stages.sources import code_version, digest
from policyalign_assets.study.baselines import train_dpo, train_sft
from policyalign_assets.study.guards import JudgedEngine, ScreenedEngine, model_screen, word_screen
from policyalign_assets.study.measuring import CountingEngine, cost, load, measured
from policyalign_assets.study.results import (
    Training,
    TrialResult,
    file_of,
    read_result,
    write_result,
)
from policyalign_assets.study.sweep import Arm, Sweep

KINDS = {"twins": "twin", "neighbours": "neighbour"}  # of the sweep file: of the tables
DATA_STAGES = ("violating_instructions", "sensitivity_scores")
MEASURED_BY = ("generations", "judgements")
Log = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """`work`: the folder of tables, unfinished work and results. `policies`: that of policies."""

    sweep: Sweep
    arm: str
    partition: str
    seed: int
    work: Path
    policies: Path

    @property
    def spec(self) -> Arm:
        return self.sweep.arms[self.arm]

    @property
    def settings(self) -> Settings:
        return self.sweep.settings_of(self.arm, self.seed)

    @property
    def policy(self) -> PolicyDocument:
        domain, _, policy_id = self.partition.partition("|")
        return parse_policy(self.policies, policy_id, domain)

    @property
    def name(self) -> str:
        return f"{self.arm}, {self.partition}, seed {self.seed}"

    @property
    def results(self) -> Path:
        return self.work / "results"

    def fingerprint(self) -> str:
        """Covers all that decides the result: the arm, policy, settings, texts, weights, code.

        What is said about an arm, and what it is compared with, decides nothing.
        """
        settings, spec = self.settings, self.spec
        stages = [*DATA_STAGES, *MEASURED_BY]
        modules = ["policyalign_assets.study.measuring"]
        if spec.training != "none":
            stages += ["filtered_instructions", "distilled_checkpoint"]
        if spec.training in ("sft", "dpo"):
            modules.append("policyalign_assets.study.baselines")
        return digest(
            [
                spec.model_dump(mode="json", exclude={"about", "against"}),
                self.partition,
                self.seed,
                self.policy.content_hash,
                self.sweep.latency_requests,
                {stage: own_version(stage, settings) for stage in stages},
                {module: code_version(module) for module in modules},
            ]
        )

    def asked(self) -> str:
        """Covers what the sweep file and the policy ask for, without the code that does it."""
        sweep = self.sweep
        return digest(
            [
                self.spec.model_dump(mode="json", exclude={"about", "against"}),
                [self.partition, self.seed, self.policy.content_hash],
                [sweep.share, sweep.steps, sweep.latency_requests, sweep.settings],
            ]
        )

    def there(self) -> TrialResult | None:
        """The result that is there, up to date or not. Raises ResultError."""
        file = file_of(self.results, self.partition, self.arm, self.seed)
        return read_result(file) if file.exists() else None

    def kept(self) -> TrialResult | None:
        """The result, if it is there and up to date. Raises ResultError."""
        result = self.there()
        return result if result and result.fingerprint == self.fingerprint() else None

    def run(self, log: Log = lambda _: None) -> TrialResult:
        """Runs the trial and keeps its result.

        A training that diverged is a result too. Whatever else goes wrong is raised.
        """
        fingerprint, settings, policy = self.fingerprint(), self.settings, self.policy
        empty = TrialResult(
            self.arm, self.partition, self.seed, fingerprint, self.sweep.share,
            settings.distillation.steps, asked=self.asked(),
        )  # fmt: skip
        unfinished = self.work / "unfinished" / fingerprint
        instructions, scores = data_tables(policy, settings, self.work, log)
        loaded, training = load_model(settings.model), None
        if self.spec.training != "none":
            chosen = self._chosen(instructions, scores, settings)
            try:
                loaded, training = self._trained(policy, chosen, loaded, settings, unfinished, log)
            except DistillationFailed as error:
                failed = TrialResult(**{**vars(empty), "failed": str(error)})
                write_result(failed, self.results)
                return failed
        log("answering held-out cases")
        cases = held_out_cases(policy, instructions, settings).cases
        system = policy.prompt_text if self.spec.policy_in_prompt else None
        judge = make_judge(settings.judge, settings.model.id, policy, log)
        forward = forward_of(loaded.model)
        forward.read()  # once: a deployed model's weights do not change between requests
        own = TransformersEngine(loaded, settings.model.batch_tokens, forward)
        counting = CountingEngine(own, loaded.tokenizer)
        engine = self._guarded(counting, policy, settings)
        suites = measured(cases, engine, system, policy, judge, settings)
        added, latency = cost(
            cases, engine, counting, system, settings, self.sweep.latency_requests
        )
        result = TrialResult(
            **{
                **vars(empty),
                "suites": suites,
                "added_prompt_tokens": added,
                "latency": latency,
                "training": training,
            }
        )
        write_result(result, self.results)
        shutil.rmtree(unfinished, ignore_errors=True)
        return result

    def _chosen(self, instructions: pa.Table, scores: pa.Table, settings: Settings) -> pa.Table:
        """The selected rows without the kinds that the arm leaves out."""
        context = StageContext(settings, location(str(self.work / "data")))
        tables: dict[str, Any] = {
            "violating_instructions": instructions,
            "sensitivity_scores": scores,
        }
        filtered = make("filtered_instructions", context, tables).value
        out = [KINDS[kind] for kind in self.spec.without if kind in KINDS]
        chosen = filtered.filter(filtered["selected"])
        return chosen.filter(pc.invert(pc.is_in(chosen["kind"], pa.array(out, pa.string()))))

    def _trained(
        self,
        policy: PolicyDocument,
        chosen: pa.Table,
        loaded: LoadedModel,
        settings: Settings,
        unfinished: Path,
        log: Log,
    ) -> tuple[LoadedModel, Training]:
        rules = len(set(chosen["rule_id"].to_pylist()))
        distillation = settings.distillation.model_copy(
            update={"steps": settings.distillation.planned_steps(rules)}
        )
        mix: list[Instruction] = [
            *training_mix(chosen),
            *anchors(distillation, settings.model.id),
        ]
        batch_tokens, text = settings.model.batch_tokens, policy.prompt_text
        resumed, begun = unfinished.exists(), time.process_time()
        if self.spec.training == "distillation":
            model, history = distill(
                [text], mix, loaded, distillation, unfinished, batch_tokens, log
            )
            lengths = history["mean_length"].to_pylist()
            training = Training(
                sum(history["seconds"].to_pylist()),
                round(sum(lengths) * distillation.batch_size),
                history.num_rows * (distillation.batch_size // distillation.mini_batch_size),
                len(mix),
                load(),
            )
        else:
            if self.spec.training == "sft":
                made = train_sft(text, mix, loaded, distillation, batch_tokens, log)
            else:
                beta = self.spec.beta
                assert beta is not None  # the sweep file was checked
                made = train_dpo(text, mix, loaded, distillation, batch_tokens, beta, log)
            model = made.model
            training = Training(
                made.seconds, made.tokens, made.updates, len(mix), load(), made.same
            )
        if not resumed:
            training = replace(training, cpu_seconds=time.process_time() - begun)
        revision = f"{loaded.revision}+{self.arm}"
        return LoadedModel(model, loaded.tokenizer, loaded.model_id, revision), training

    def _guarded(
        self, engine: CountingEngine, policy: PolicyDocument, settings: Settings
    ) -> Engine:
        match self.spec.guard:
            case "none":
                return engine
            case "words":
                return ScreenedEngine(engine, word_screen(policy))
            case "model":
                base = load_model(settings.model)
                forward = forward_of(base.model)
                forward.read()
                guard = CountedWith(
                    TransformersEngine(base, settings.model.batch_tokens, forward), engine
                )
                judge = judge_for(settings.model.id)
                longest = settings.evaluation.max_new_tokens
                return ScreenedEngine(engine, model_screen(guard, policy, judge, longest))
            case "judge":
                return JudgedEngine(engine, make_judge(settings.judge, settings.model.id, policy))


class CountedWith(CountingEngine):
    """Counts the prompts of a second model together with those of the first."""

    def __init__(self, engine: Engine, first: CountingEngine):
        super().__init__(engine, first.tokenizer)
        self.first = first

    def generate(self, chats, sampling, progress=None):
        before = self.tokens
        made = super().generate(chats, sampling, progress)
        self.first.tokens += self.tokens - before
        return made


def trials_of(
    sweep: Sweep,
    work: Path,
    policies: Path,
    arms: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
) -> Iterator[Trial]:
    """The trials of the sweep in their order, or those of some arms and seeds."""
    for arm in sweep.arms:
        for partition in sweep.partitions:
            for seed in sweep.seeds:
                if (not arms or arm in arms) and (not seeds or seed in seeds):
                    yield Trial(sweep, arm, partition, seed, work, policies)


def data_tables(
    policy: PolicyDocument, settings: Settings, work: Path, log: Log
) -> tuple[pa.Table, pa.Table]:
    """The INSTRUCTIONS and SCORES tables of a policy, made once for all trials in `work`."""
    made_from = [policy.content_hash, [own_version(stage, settings) for stage in DATA_STAGES]]
    folder = work / "tables" / digest(made_from)
    context = StageContext(settings, location(str(work / "data")), log)
    made: dict[str, Any] = {"policy_document": policy}
    for stage, reads in zip(DATA_STAGES, (["policy_document"], [*made, DATA_STAGES[0]])):
        file = folder / f"{stage}.parquet"
        if not file.exists():
            log(f"{stage} of {policy.policy_id}")
            value = make(stage, context, {name: made[name] for name in reads}).value
            write_parquet(value, file)
        made[stage] = pq.read_table(file)
    return made[DATA_STAGES[0]], made[DATA_STAGES[1]]
