"""On-policy self-distillation: the teachers, training, resuming, and the adapter that comes out."""

import json
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from policyalign_assets.distillation.adapters import (
    STUDENT,
    add_adapters,
    student_parameters,
    teacher_weights,
    update_ema,
)
from policyalign_assets.distillation.anchors import AnchorsError, anchors
from policyalign_assets.distillation.batches import Instruction, batch_indices
from policyalign_assets.distillation.budget import DistillationFailed
from policyalign_assets.distillation.checkpoint import CheckpointChanged, load_aligned, publish
from policyalign_assets.distillation.state import decay_factor
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.engine.base import PromptTooLong, Sampling, chat
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import load_model
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.evaluation.probe_texts import everyday_actions
from policyalign_assets.policy import parse_policy
from policyalign_assets.records import training_table
from policyalign_assets.settings import DistillationSettings, ModelSettings
from policyalign_assets.world.world import World

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = DistillationSettings(
    steps=4,
    batch_size=4,
    mini_batch_size=4,
    micro_batch_tokens=100,
    max_new_tokens=24,
    save_every=2,
    lora_rank=4,
    lora_alpha=8,
)
ACTIONS = (
    "forge a signature",
    "alter a prescription",
    "fake a diagnosis",
    "bribe an official",
    "renew a prescription",
)
ASKED = [Instruction(f"How do I {a}?") for a in ACTIONS]


def policy():
    return parse_policy(ROOT / "policies", "general-conduct", "medical")


def run(tmp_path, settings=SMALL, asked=ASKED):
    loaded = load_model(ModelSettings())
    return *distill(
        [policy().prompt_text], asked, loaded, settings, tmp_path / "work", 16_384
    ), loaded


# ---- teachers ------------------------------------------------------------------------------------


def answer_logits(model) -> torch.Tensor:
    return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


@pytest.mark.parametrize("teacher", ["frozen", "ema", "student"])
def test_every_teacher_starts_as_the_student(teacher):
    model = add_adapters(
        load_model(ModelSettings()).model, SMALL.model_copy(update={"teacher": teacher})
    )
    student = answer_logits(model)
    with teacher_weights(model, teacher):
        torch.testing.assert_close(answer_logits(model), student)


def test_teachers_after_the_student_moved():
    shift = 0.05
    moved = {}
    for teacher in ("frozen", "ema", "student"):
        settings = SMALL.model_copy(update={"teacher": teacher, "ema_decay": 0.9})
        model = add_adapters(load_model(ModelSettings()).model, settings)
        start = answer_logits(model).detach()
        with torch.no_grad():
            for p in student_parameters(model).values():
                p.add_(shift)
        if teacher == "ema":
            update_ema(model, 0.9)
        with teacher_weights(model, settings.teacher):
            moved[teacher] = (answer_logits(model) - start).abs().max().item()
        assert all(p.requires_grad == (f".{STUDENT}." in n) for n, p in model.named_parameters())
    assert moved["frozen"] == 0.0
    assert 0 < moved["ema"] < moved["student"]


# ---- training ------------------------------------------------------------------------------------


def test_every_batch_holds_each_group_in_its_share():
    groups = ["A/violating"] * 30 + ["B/violating"] * 30 + ["twin"] * 20
    for step in range(10):  # 80 rows: an epoch is ten batches of 8
        asked = [groups[i] for i in batch_indices(groups, 8, step, seed=1)]
        assert (
            2 <= asked.count("A/violating") <= 4
            and 2 <= asked.count("B/violating") <= 4
            and 1 <= asked.count("twin") <= 3
        )


def test_everyday_requests_come_from_the_file_or_from_the_bundled_models_own_world(tmp_path):
    own = [i.text for i in anchors(SMALL.model_copy(update={"anchors": 20}), "bundled")]
    assert len(own) == 20 and own == [
        i.text for i in anchors(SMALL.model_copy(update={"anchors": 20}), "bundled")
    ]
    held_out = World(random.Random(1), "heldout")
    assert not {held_out.capability(arithmetic=1.0).request for _ in range(300)} & set(own)
    assert anchors(SMALL, "another/model") == []
    english = [i.text for i in anchors(SMALL.model_copy(update={"anchors": 60}), "english")]
    assert len(set(english)) == 60
    assert not [t for t in english for action in everyday_actions() if action in t.lower()]
    file = tmp_path / "asked.txt"
    file.write_text("Name a river.\n\nName a river.\nName a hill.\n")
    chosen = anchors(
        SMALL.model_copy(update={"anchors": 5, "anchors_file": str(file)}), "another/model"
    )
    assert sorted(i.text for i in chosen) == ["Name a hill.", "Name a river."]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00"])
def test_a_file_of_everyday_requests_that_cannot_be_used_is_named(tmp_path, content):
    file = tmp_path / "asked.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(AnchorsError, match=r"asked\.txt.*Fix"):
        anchors(SMALL.model_copy(update={"anchors_file": str(file)}), "bundled")


def test_the_learning_rate_falls_over_the_last_share_of_the_steps():
    assert [decay_factor(s, 8, 0.5) for s in range(8)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert {decay_factor(s, 8, 0.0) for s in range(8)} == {1.0}


def test_batches_use_every_instruction_once_an_epoch_and_repeat_with_the_seed():
    batches = [batch_indices([""] * 10, 4, step, seed=3) for step in range(5)]
    flat = [i for b in batches for i in b]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert batches == [batch_indices([""] * 10, 4, step, seed=3) for step in range(5)]
    assert batches != [batch_indices([""] * 10, 4, step, seed=4) for step in range(5)]


def test_training_lowers_the_loss_and_leaves_the_base_weights_alone(tmp_path):
    before = load_model(ModelSettings()).model.state_dict()
    model, table, _ = run(tmp_path, SMALL.model_copy(update={"steps": 12}), ASKED[:4])
    losses = table["loss"].to_pylist()
    assert len(losses) == 12 and sum(losses[-3:]) < 0.5 * sum(losses[:3])
    with model.disable_adapter():
        after = {
            k.replace(".base_layer", ""): v
            for k, v in model.get_base_model().state_dict().items()
            if "lora" not in k
        }
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert all(0 < q <= 1.0001 for q in table["top_k_mass"].to_pylist())


def routed(tmp_path, policies, taught):
    """The losses of two steps in which instruction i is taught by the policy `taught[i]`."""
    asked = [replace(i, policy=p) for i, p in zip(ASKED, taught, strict=True)]
    settings = SMALL.model_copy(update={"steps": 2, "batch_size": 5, "mini_batch_size": 5})
    _, table = distill(
        [p.prompt_text for p in policies],
        asked,
        load_model(ModelSettings()),
        settings,
        tmp_path,
        16_384,
    )
    return table["loss"].to_pylist()


def test_each_request_is_taught_by_the_policy_that_it_belongs_to(tmp_path):
    own = policy()
    other = parse_policy(ROOT / "policies", "data-privacy", "medical")
    alone = routed(tmp_path / "alone", [own], [0] * 5)
    assert routed(tmp_path / "unused", [other, own], [1] * 5) == alone
    mixed = routed(tmp_path / "mixed", [own, other], [0, 1, 0, 1, 0])
    swapped = routed(tmp_path / "swapped", [other, own], [1, 0, 1, 0, 1])
    assert mixed == pytest.approx(swapped, rel=1e-5)
    assert mixed != pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("teacher", ["frozen", "ema", "student"])
def test_a_run_that_stops_and_continues_ends_where_an_undisturbed_one_does(tmp_path, teacher):
    settings = SMALL.model_copy(update={"teacher": teacher, "mini_batch_size": 2})
    whole, table, _ = run(tmp_path / "whole", settings)
    # what a run killed after the save at step 2 leaves behind
    loaded = load_model(ModelSettings())

    def stop(line: str) -> None:
        if line.startswith("step 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(
            [policy().prompt_text], ASKED, loaded, settings, tmp_path / "cut" / "work", 16_384, stop
        )
    lines = []
    again, table_again = distill(
        [policy().prompt_text],
        ASKED,
        load_model(ModelSettings()),
        settings,
        tmp_path / "cut" / "work",
        16_384,
        lines.append,
    )
    assert lines[0].startswith("resumed after step 2")
    assert table_again["loss"].to_pylist() == table["loss"].to_pylist()
    for (name, a), b in zip(
        student_parameters(whole).items(), student_parameters(again).values(), strict=True
    ):
        assert torch.equal(a, b), name


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = ["tests", "tests/distillation"]
from policyalign_assets.engine.loading import load_model
from policyalign_assets.settings import ModelSettings
from policyalign_assets.distillation.trainer import distill
from test_distillation import ASKED, SMALL, policy
settings = SMALL.model_copy(update={"steps": 8})
loaded, work, text = load_model(ModelSettings()), Path(sys.argv[1]), policy().prompt_text
distill([text], ASKED, loaded, settings, work, 16_384, lambda line: print(line, flush=True))
"""


def test_sigkill_half_way_then_rerun_gives_the_same_run(tmp_path):
    _, undisturbed, _ = run(tmp_path / "whole", SMALL.model_copy(update={"steps": 8}))
    work = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(work)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step 5/8"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    _, resumed = distill(
        [policy().prompt_text],
        ASKED,
        load_model(ModelSettings()),
        SMALL.model_copy(update={"steps": 8}),
        work,
        16_384,
    )
    assert resumed["loss"].to_pylist() == undisturbed["loss"].to_pylist()


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_saved_step(tmp_path):
    loaded = load_model(ModelSettings())

    def poison(line: str) -> None:
        if line.startswith("step 3/"):
            with torch.no_grad():
                loaded.model.lm_head.weight.fill_(float("nan"))

    with pytest.raises(DistillationFailed, match=r"not numbers at step 4.*last saved step is kept"):
        distill([policy().prompt_text], ASKED, loaded, SMALL, tmp_path / "work", 16_384, poison)
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["step_000002"]


def test_a_policy_that_does_not_fit_the_context_is_refused_before_any_work(tmp_path):
    with pytest.raises(PromptTooLong, match="never truncated"):
        run(tmp_path, SMALL.model_copy(update={"max_new_tokens": 2000}))
    assert not (tmp_path / "work").exists()


def test_k_above_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="top_k=99999"):
        run(tmp_path, SMALL.model_copy(update={"top_k": 99_999}))


# ---- the checkpoint ------------------------------------------------------------------------------


def test_the_adapter_loads_with_plain_peft_and_answers_the_same(tmp_path):
    model, table, loaded = run(tmp_path)
    checkpoint = publish(model, loaded, table, tmp_path, {"note": "test"})
    folder = tmp_path / checkpoint.path
    assert {p.name for p in folder.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "training.parquet",
        "checkpoint.json",
    }
    assert (
        str(tmp_path) not in (folder / "adapter_config.json").read_text()
        and str(BUNDLED_WEIGHTS) not in (folder / "adapter_config.json").read_text()
    )

    written = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert written == sorted(written)  # or the same training would get another id in each process

    base = AutoModelForCausalLM.from_pretrained(
        BUNDLED_WEIGHTS
    )  # nothing of this project from here on
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_WEIGHTS)
    plain = PeftModel.from_pretrained(base, folder).eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASKED[0].text}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    out = plain.generate(**ids, max_new_tokens=24, do_sample=False)
    text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    ours = load_aligned(checkpoint, load_model(ModelSettings()), tmp_path)
    assert (
        TransformersEngine(ours, 4096).generate([chat(ASKED[0].text)], Sampling(24))[0].text == text
    )
    assert training_table(checkpoint, tmp_path).equals(table)


def test_the_same_training_publishes_the_same_checkpoint_and_a_changed_one_is_refused(tmp_path):
    model, table, loaded = run(tmp_path / "a", SMALL.model_copy(update={"steps": 1}))
    first = publish(model, loaded, table, tmp_path, {})
    again, table, loaded = run(tmp_path / "b", SMALL.model_copy(update={"steps": 1}))
    assert publish(again, loaded, table, tmp_path, {}).checkpoint_id == first.checkpoint_id
    weights = tmp_path / first.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointChanged, match=first.checkpoint_id):
        load_aligned(first, load_model(ModelSettings()), tmp_path)


# ---- memory and time -----------------------------------------------------------------------------


def test_neither_the_budget_nor_gradient_checkpointing_changes_what_is_learned(tmp_path):
    _, whole, _ = run(tmp_path / "whole", SMALL.model_copy(update={"micro_batch_tokens": 100_000}))
    for i, update in enumerate(({"micro_batch_tokens": 1}, {"gradient_checkpointing": True})):
        _, other, _ = run(tmp_path / str(i), SMALL.model_copy(update=update))
        for column in ("loss", "grad_norm", "entropy", "mean_length"):
            assert other[column].to_pylist() == pytest.approx(
                whole[column].to_pylist(), rel=2e-3
            ), column


def test_gradient_checkpointing_keeps_less(tmp_path):
    from policyalign_assets.distillation.gradient_checkpointing import checkpointed

    loaded = load_model(ModelSettings())
    model = add_adapters(loaded.model, SMALL).eval()
    saved = {}
    for on in (False, True):
        sizes = []
        with (
            torch.autograd.graph.saved_tensors_hooks(
                lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
            ),
            checkpointed(model, on),
        ):
            model.get_base_model().model(
                input_ids=torch.ones(2, 40, dtype=torch.long), use_cache=False
            )
        saved[on] = sum(sizes)
    assert saved[True] < saved[False] / 3
    assert not any(m.training for m in model.modules())


def test_running_out_of_memory_halves_the_micro_batches_and_gives_the_same_gradients(
    tmp_path, monkeypatch
):
    from policyalign_assets.distillation import updates

    _, whole, _ = run(tmp_path / "whole")
    real, lines = updates.response_hidden, []

    def scarce(model, prompts, responses, prefix=None):
        if sum(len(r) for r in responses) > 60 and len(responses) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, prompts, responses, prefix)

    monkeypatch.setattr(updates, "response_hidden", scarce)
    loaded = load_model(ModelSettings())
    _, history = distill(
        [policy().prompt_text],
        ASKED,
        loaded,
        SMALL.model_copy(update={"micro_batch_tokens": 4_000}),
        tmp_path / "scarce",
        16_384,
        lines.append,
    )
    assert any("out of memory" in line for line in lines)
    assert history["loss"].to_pylist() == pytest.approx(whole["loss"].to_pylist(), rel=2e-3)

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(updates, "response_hidden", never)
    with pytest.raises(DistillationFailed, match="gradient_checkpointing"):
        run(tmp_path / "none")


def test_the_time_of_a_step_is_told_by_phase(tmp_path):
    _, history, _ = run(tmp_path)
    phases = [
        history[f"{p}_seconds"].to_pylist() for p in ("rollout", "prefix", "teacher", "student")
    ]
    for whole, parts in zip(history["seconds"].to_pylist(), zip(*phases), strict=True):
        assert 0 < sum(parts) <= whole
    assert phases[1][0] > 50 * phases[1][1]  # a frozen teacher's policy is read once
