"""Full fine-tuning: every weight is trained, and the teacher is a copy."""

import os
import signal
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from helpers import ROOT, chatml_tokenizer, medical_policy, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from policyalign_assets.distillation.batches import Instruction, batch_indices
from policyalign_assets.distillation.loss import Divergence, mixed_kl_top_k
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.distillation.tuning import tuning_of
from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.forward.modules import ModelForward
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import load_model
from policyalign_assets.settings import (
    DistillationSettings,
    ModelSettings,
    SettingsError,
    load_settings,
)
from policyalign_assets.stages.fingerprints import own_version

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]

SMALL = DistillationSettings(
    tuning="full",
    steps=4,
    batch_size=4,
    mini_batch_size=4,
    max_new_tokens=16,
    save_every=2,
    learning_rate=1e-4,
)
ASKED = [
    Instruction(f"How do I {a}?")
    for a in ("forge a signature", "alter a prescription", "fake a diagnosis", "bribe an official")
]


def run(work_dir, report=lambda _: None, loaded=None, **update):
    loaded = loaded or load_model(ModelSettings())
    return *distill(
        [medical_policy().prompt_text],
        ASKED,
        loaded,
        SMALL.model_copy(update=update),
        work_dir,
        16_384,
        report,
    ), loaded


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# ---- teachers ------------------------------------------------------------------------------------


def test_frozen_and_ema_begin_as_the_base_model_and_every_weight_is_trained(tmp_path):
    before = weights(load_model(ModelSettings()).model)
    first = {}
    for teacher in ("frozen", "ema", "student"):
        model, table, _ = run(tmp_path / teacher, steps=1, teacher=teacher)
        first[teacher] = table["loss"][0].as_py()
        assert all(not torch.equal(p, before[name]) for name, p in weights(model).items())
    assert (
        first["frozen"] == first["ema"] == first["student"] > 0.1
    )  # nobody has moved yet, and the policy makes the difference
    (lora,) = run(tmp_path / "lora", steps=1, tuning="lora")[1]["loss"].to_pylist()
    assert first["frozen"] == pytest.approx(lora, rel=1e-4)


@pytest.mark.parametrize("teacher", ["frozen", "ema", "student"])
def test_what_the_teacher_is_after_the_student_moved(teacher):
    base = load_model(ModelSettings()).model
    start = weights(base)
    tuning = tuning_of(base, SMALL.model_copy(update={"teacher": teacher, "ema_decay": 0.9}))
    expected = dict(start)
    for shift in (0.5, -0.2):
        with torch.no_grad():
            for p in tuning.trained().values():
                p.add_(shift)
        if teacher == "ema":
            tuning.update_ema()
            expected = {
                name: 0.9 * ema + 0.1 * tuning.trained()[name] for name, ema in expected.items()
            }
    if teacher == "student":
        expected = {name: p + 0.3 for name, p in start.items()}
    for name, p in weights(tuning.teacher).items():
        torch.testing.assert_close(p, expected[name], atol=1e-6, rtol=1e-5)
    assert (
        tuning.head[0] is base.lm_head.weight is base.model.embed_tokens.weight
    )  # tied, and one parameter still
    if teacher != "student":
        assert not any(p.requires_grad for p in tuning.teacher.parameters())
        assert tuning.teacher.lm_head.weight is tuning.teacher.model.embed_tokens.weight


def test_the_loss_is_measured_against_the_teachers_own_head():
    """Its head is no longer the student's once that is trained."""
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, 16, generator=rng) for _ in range(2))
    head, teachers = (torch.randn(50, 16, generator=rng).requires_grad_() for _ in range(2))
    out = mixed_kl_top_k(
        student.requires_grad_(),
        teacher,
        lambda h: h @ head.T,
        Divergence(50, chunk_elements=100),
        parameters=(head,),
        teacher_head=lambda h: h @ teachers.T,
    )
    log_s, log_t = (
        (student @ head.T).log_softmax(-1),
        (teacher @ teachers.T).detach().log_softmax(-1),
    )
    expected = (log_s.exp() * (log_s - log_t)).sum()
    assert out.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, plain in zip(
        torch.autograd.grad(out.loss_sum, [student, head]),
        torch.autograd.grad(expected, [student, head]),
    ):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-4)


def in_plain_words(
    loaded, teacher: str, steps: int, decay: float, size: int
) -> tuple[list[float], list[list[torch.Tensor]]]:
    """The method with whole prompts, whole logits, recorded gradients and PyTorch's optimizer.

    Returns the loss of each step and the gradients of each update.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    taught_by = model if teacher == "student" else deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses, gradients = [], []
    for step in range(steps):
        chosen = [
            ASKED[i].text
            for i in batch_indices([""] * len(ASKED), SMALL.batch_size, step, SMALL.seed)
        ]
        prompts = [render(tokenizer, chat(text)) for text in chosen]
        answers = TransformersEngine(loaded, 16_384, ModelForward(model)).generate_ids(
            prompts, Sampling(16, 1.0, SMALL.seed * 1_000_003 + step)
        )
        rows, sums = list(zip(chosen, prompts, answers)), []
        for mini in (rows[at : at + size] for at in range(0, len(rows), size)):
            total = tokens = 0
            for text, prompt, answer in mini:
                ids, taught = (
                    list(answer.token_ids),
                    render(tokenizer, chat(text, medical_policy().prompt_text)),
                )
                log_s = (
                    model(input_ids=torch.tensor([prompt + ids]))
                    .logits[0, len(prompt) - 1 : -1]
                    .log_softmax(-1)
                )
                log_t = (
                    taught_by(input_ids=torch.tensor([taught + ids]))
                    .logits[0, len(taught) - 1 : -1]
                    .log_softmax(-1)
                    .detach()
                )
                log_s, top = log_s.topk(16, -1)
                total, tokens = (
                    total + (log_s.exp() * (log_s - log_t.gather(-1, top))).sum(),
                    tokens + len(ids),
                )
            optimizer.zero_grad()
            (total / tokens).backward()
            sums.append((total.item(), tokens))
            gradients.append([p.grad.clone() for p in model.parameters()])
            optimizer.step()
        losses.append(sum(total for total, _ in sums) / sum(tokens for _, tokens in sums))
        if teacher == "ema":
            for ema, p in zip(taught_by.parameters(), model.parameters()):
                ema.data = decay * ema.data + (1 - decay) * p.data
    return losses, gradients


@pytest.mark.parametrize(
    ("teacher", "tied", "size"),
    [
        ("frozen", False, 4),
        ("ema", True, 4),
        ("ema", False, 2),
        ("student", True, 4),
        ("student", True, 2),
    ],
)
def test_losses_and_gradients_are_those_of_the_method_in_plain_words(
    tmp_path, monkeypatch, teacher, tied, size
):
    """Embeddings, norms and head are included, and the teacher's own head and its movement."""

    def make():
        return tiny_model(
            LlamaForCausalLM,
            LlamaConfig,
            chatml_tokenizer(),
            tie_word_embeddings=tied,
            max_position_embeddings=4096,
        )

    expected_losses, expected = in_plain_words(make(), teacher, 3, 0.5, size)
    given, real = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self: (
            given.append([p.grad.clone() for p in self.param_groups[0]["params"]]) or real(self)
        ),
    )
    model, table, _ = run(
        tmp_path,
        loaded=make(),
        steps=3,
        mini_batch_size=size,
        teacher=teacher,
        ema_decay=0.5,
        forward_weight=0.0,
        top_k=16,
        max_grad_norm=1e9,
        learning_rate=1e-2,
        lr_decay=0.0,
    )
    assert table["loss"].to_pylist() == pytest.approx(expected_losses, rel=1e-3)
    for name, mine, plain in zip(weights(model), given[0], expected[0], strict=True):
        assert (mine - plain).norm() < 2e-3 * plain.norm(), name


# ---- training ------------------------------------------------------------------------------------


def test_training_lowers_the_loss_with_gradient_checkpointing_too(tmp_path):
    _, table, _ = run(tmp_path / "plain", steps=12, mini_batch_size=2)
    losses = table["loss"].to_pylist()
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    _, again, _ = run(
        tmp_path / "checkpointed",
        steps=4,
        mini_batch_size=2,
        gradient_checkpointing=True,
        lr_decay=0.0,
    )
    _, whole, _ = run(tmp_path / "whole", steps=4, mini_batch_size=2, lr_decay=0.0)
    assert again["loss"].to_pylist() == pytest.approx(whole["loss"].to_pylist(), rel=2e-3)


@pytest.mark.parametrize("teacher", ["frozen", "ema", "student"])
def test_a_run_that_stops_and_continues_ends_where_an_undisturbed_one_does(tmp_path, teacher):
    settings = {"teacher": teacher, "ema_decay": 0.5, "mini_batch_size": 2}
    whole, table, _ = run(tmp_path / "whole", **settings)

    def stop(line: str) -> None:
        if line.startswith("step 3/"):  # after the save at step 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop, **settings)
    lines = []
    again, table_again, _ = run(tmp_path / "cut", lines.append, **settings)
    assert lines[0].startswith("resumed after step 2")
    assert table_again["loss"].to_pylist() == table["loss"].to_pylist()
    assert all(torch.equal(p, weights(again)[name]) for name, p in weights(whole).items())


def test_a_model_that_could_not_be_saved_is_refused_before_any_work(tmp_path):
    loaded = load_model(ModelSettings())
    loaded.model.generation_config.temperature = 0.5  # without do_sample
    with pytest.raises(ValueError, match="temperature"):
        run(tmp_path, lambda _: pytest.fail("it began"), loaded)


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/distillation"]
from test_full_tuning import run
run(Path(sys.argv[1]), lambda line: print(line, flush=True), steps=6, teacher="ema", ema_decay=0.5)
"""


def test_sigkill_half_way_then_rerun_gives_the_same_run(tmp_path):
    settings = {"steps": 6, "teacher": "ema", "ema_decay": 0.5}
    whole, undisturbed, _ = run(tmp_path / "whole", **settings)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for line in process.stdout:
        if line.startswith("step 3/6"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    lines = []
    again, resumed, _ = run(tmp_path / "killed", lines.append, **settings)
    assert lines[0].startswith("resumed after step")
    assert resumed["loss"].to_pylist() == undisturbed["loss"].to_pylist()
    assert all(torch.equal(p, weights(again)[name]) for name, p in weights(whole).items())


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({"model": {"dtype": "bfloat16"}}, ["model.dtype='bfloat16'", "model.dtype='float32'"]),
        ({"model": {"engine": "vllm"}}, ["model.engine='vllm'", "model.engine='transformers'"]),
    ],
)
def test_what_cannot_be_trained_in_full_is_refused_when_configured(overrides, names):
    overrides = {
        **overrides,
        "distillation": {**overrides.get("distillation", {}), "tuning": "full"},
    }
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides=overrides, environ={})
    assert all(name in str(caught.value) for name in ["distillation.tuning='full'", "Fix", *names])
    load_settings(
        overrides={**overrides, "distillation": {**overrides["distillation"], "tuning": "lora"}},
        environ={},
    )


def test_what_is_trained_is_part_of_the_fingerprint():
    lora, full = (
        load_settings(overrides={"distillation": {"tuning": tuning}}, environ={})
        for tuning in ("lora", "full")
    )
    assert own_version("distilled_checkpoint", lora) != own_version("distilled_checkpoint", full)
