"""The engine on tiny random models: only temperature and seed change the answers.

Sharing a prefix does not.
"""

import json
import shutil
from collections import Counter

import pytest
import torch
from helpers import chatml_tokenizer, one_thread, tiny_model
from transformers import (
    AutoModelForImageTextToText,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from policyalign_assets.engine.base import NotFinite, PromptTooLong, Sampling, chat
from policyalign_assets.engine.batching import by_length
from policyalign_assets.engine.forward import scoring
from policyalign_assets.engine.forward.modules import ModelForward
from policyalign_assets.engine.forward.scoring import prompt_prefix, response_logits
from policyalign_assets.engine.forward.shared_prefix import _warn_once, shared_length
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import ModelNotFound, load_model
from policyalign_assets.engine.sampling import choose
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.settings import ModelSettings

TOKENIZER = chatml_tokenizer()
COMMON = [int(i) for i in torch.randint(3, 290, (40,), generator=torch.Generator().manual_seed(1))]
# one policy, requests of different lengths, not sorted
PROMPTS = [
    COMMON + [5 + 3 * n + i for i in range(length)] for n, length in enumerate((3, 9, 1, 6, 2, 7))
]
RESPONSES = [[7 + n + i for i in range(length)] for n, length in enumerate((4, 1, 6, 2, 5, 3))]

SHARING = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_hidden_layers": 3}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {"head_dim": 16, "num_key_value_heads": 1}),
}
SCALED_LOGITS = {
    "granite": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 8.0}),
    "cohere": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.0625, "eos_token_id": 2}),
}
SLIDING = {
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 16}),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 16, "sliding_window": 16}),
}
NOT_SHARING = SLIDING | {
    "bloom": (BloomForCausalLM, BloomConfig, {})
}  # which has an attention of its own
ENDS = range(2, 40)  # many end tokens, so that random models stop now and then


@pytest.fixture(autouse=True, scope="module")
def quick():
    with one_thread():
        yield


def make(family, ends=(2,)):
    model_class, config_class, extra = family
    return tiny_model(model_class, config_class, TOKENIZER, ends, **extra)


def greedy(loaded, prompts=PROMPTS, n=12, batch_tokens=10_000):
    return TransformersEngine(loaded, batch_tokens).generate_ids(prompts, Sampling(n))


def sample(loaded, seed, temperature=1.0, prompts=PROMPTS, n=8):
    return [
        g.token_ids
        for g in TransformersEngine(loaded, 10_000).generate_ids(
            prompts, Sampling(n, temperature, seed)
        )
    ]


def by_generate(loaded, prompt, n=12):
    """What Hugging Face's own loop gives for one prompt, cut after the end token."""
    ids = torch.tensor([prompt])
    out = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=n,
        pad_token_id=0,
        eos_token_id=list(loaded.end_ids),
    )
    return tuple(out[0, len(prompt) :].tolist())


@torch.no_grad()
def plain_log_probs(model, prompts, responses):
    """One full forward a row."""
    rows = [
        model(input_ids=torch.tensor([[*p, *r]])).logits[0, len(p) - 1 : len(p) + len(r) - 1]
        for p, r in zip(prompts, responses)
    ]
    return torch.cat(rows).float().log_softmax(-1)


# ---- the shared prefix ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", SHARING | SCALED_LOGITS)
def test_response_logits_are_those_of_full_forwards_with_and_without_a_prefix(family):
    loaded = make((SHARING | SCALED_LOGITS)[family])
    expected = plain_log_probs(loaded.model, PROMPTS, RESPONSES)
    forward = ModelForward(loaded.model)
    prefix = prompt_prefix(forward, PROMPTS)
    assert prefix.length == len(COMMON)
    with torch.no_grad():
        without = response_logits(forward, PROMPTS, RESPONSES).log_softmax(-1)
        shared = response_logits(forward, PROMPTS, RESPONSES, prefix).log_softmax(-1)
    torch.testing.assert_close(without, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(shared, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", SHARING)
def test_greedy_answers_are_the_same_with_sharing_without_it_and_from_generate(family, monkeypatch):
    loaded = make(SHARING[family], ENDS)
    shared = greedy(loaded)
    assert shared_length(loaded.model, PROMPTS) == len(COMMON)
    assert [g.token_ids for g in shared] == [by_generate(loaded, p) for p in PROMPTS]
    by_modules = TransformersEngine(loaded, 10_000, ModelForward(loaded.model))
    assert by_modules.generate_ids(PROMPTS, Sampling(12)) == shared
    monkeypatch.setattr(scoring, "shared_length", lambda *_: 0)
    assert greedy(loaded) == by_modules.generate_ids(PROMPTS, Sampling(12)) == shared
    assert (
        len({g.token_ids for g in shared}) > 1
    )  # the prompts matter, so the comparison says something


@pytest.mark.parametrize("family", NOT_SHARING)
def test_a_model_that_cannot_share_shares_nothing_and_still_answers_right(family):
    loaded = make(NOT_SHARING[family], ENDS)
    assert shared_length(loaded.model, PROMPTS) == 0
    assert prompt_prefix(ModelForward(loaded.model), PROMPTS) is None
    assert [g.token_ids for g in greedy(loaded)] == [by_generate(loaded, p) for p in PROMPTS]


def test_a_model_that_shares_nothing_says_so_once(caplog):
    _warn_once.cache_clear()
    model = make(SLIDING["gemma2"], ENDS).model
    for _ in range(2):
        shared_length(model, PROMPTS)
    assert [r.message.split(":")[0] for r in caplog.records] == [
        "the attention of gemma2 cannot share one policy among answers"
    ]


@pytest.mark.parametrize("family", NOT_SHARING)
def test_response_logits_of_a_model_that_cannot_share_are_those_of_full_forwards(family):
    model = make(NOT_SHARING[family]).model
    with torch.no_grad():
        given = response_logits(ModelForward(model), PROMPTS, RESPONSES).log_softmax(-1)
    torch.testing.assert_close(given, plain_log_probs(model, PROMPTS, RESPONSES), atol=1e-4, rtol=0)


def test_the_shared_length_leaves_each_row_a_token_and_is_zero_where_sharing_cannot_pay():
    model = make(SHARING["llama"]).model
    assert shared_length(model, [COMMON, COMMON]) == len(COMMON) - 1  # equal rows
    assert (
        shared_length(model, [COMMON, [*COMMON, 5]]) == len(COMMON) - 1
    )  # one row starts the other
    assert shared_length(model, [COMMON]) == shared_length(model, []) == 0
    assert shared_length(model, [COMMON, COMMON[:10]]) == 0
    assert shared_length(model, [COMMON, [4, *COMMON]]) == 0


def test_a_multimodal_model_shares_nothing():
    """Its text layers slide and read a configuration of their own."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(Gemma3Config())
    assert shared_length(model, PROMPTS) == 0


def test_equal_prompts_share_all_but_one_token_and_answer_alike():
    loaded = make(SHARING["qwen2"])
    assert [g.token_ids for g in greedy(loaded, [COMMON] * 3)] == [by_generate(loaded, COMMON)] * 3


def test_the_model_attends_as_before_once_a_shared_call_is_over_or_has_failed():
    loaded = make(SHARING["qwen2"])
    before = loaded.model.config._attn_implementation

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TransformersEngine(loaded, 10_000).generate_ids(PROMPTS, Sampling(4), stop)
    assert loaded.model.config._attn_implementation == before
    assert greedy(loaded, [[9, 8, 7]])[0].token_ids == by_generate(loaded, [9, 8, 7])


# ---- order, ends, seeds --------------------------------------------------------------------------


def test_results_follow_the_order_of_the_prompts_in_any_batching():
    loaded = make(SHARING["llama"], ENDS)
    expected = [by_generate(loaded, p) for p in PROMPTS]
    for batch_tokens in (1, 45, 10_000):
        assert [g.token_ids for g in greedy(loaded, batch_tokens=batch_tokens)] == expected
    assert [g.token_ids for g in greedy(loaded, PROMPTS[::-1])] == expected[::-1]


def test_progress_counts_up_to_all_prompts():
    seen = []
    TransformersEngine(make(SHARING["llama"]), 45).generate_ids(
        PROMPTS, Sampling(12), lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (6, 6) and len(seen) > 1 and seen == sorted(seen)


def test_a_response_ends_at_the_end_token_or_at_the_budget():
    loaded = make(SHARING["llama"], ENDS)
    results = greedy(loaded) + greedy(loaded, n=1)
    assert {g.finish for g in results} == {"stop", "length"}
    for g in results:
        *inner, last = g.token_ids
        assert (last in ENDS) == (g.finish == "stop")
        assert not set(inner) & set(ENDS)
        assert g.text == TOKENIZER.decode(inner if g.finish == "stop" else g.token_ids).strip()
    assert {len(g.token_ids) for g in results[:6] if g.finish == "length"} <= {12}


def test_the_end_tokens_of_model_and_tokenizer_both_end_a_response():
    loaded = make(SHARING["llama"], (5, 6))
    assert set(loaded.end_ids) == {5, 6, TOKENIZER.eos_token_id}
    loaded.model.generation_config = GenerationConfig(eos_token_id=None)
    assert loaded.end_ids == (TOKENIZER.eos_token_id,)


def test_a_seed_decides_the_samples():
    loaded = make(SHARING["qwen2"])
    first = sample(loaded, 1)
    torch.manual_seed(99)  # the global state is no part of it
    assert sample(loaded, 1) == first
    assert sample(loaded, 2) != first


def test_a_row_is_sampled_alike_alone_in_part_of_the_batch_and_in_batches_of_any_size():
    loaded = make(SHARING["qwen2"])
    whole = sample(loaded, 1)
    assert [
        g.token_ids
        for g in TransformersEngine(loaded, 45).generate_ids(PROMPTS, Sampling(8, 1.0, 1))
    ] == whole
    for rows in ([1, 3, 5], [4]):
        part = TransformersEngine(loaded, 10_000).generate_ids(
            [PROMPTS[r] for r in rows], Sampling(8, 1.0, 1), rows=rows
        )
        assert [g.token_ids for g in part] == [whole[r] for r in rows]
    assert (
        len(set(sample(loaded, 1, prompts=[PROMPTS[0]] * 6))) > 1
    )  # equal prompts have random numbers of their own


def test_no_token_of_probability_zero_is_ever_chosen():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]]).repeat(4, 1)
    least, most = 0.0, 1 - 2.0**-24
    assert choose(logits, 1.0, torch.tensor([least, 0.2, 0.3, most])).tolist() == [1, 1, 3, 3]
    assert choose(logits, 0.0, torch.tensor([0.0] * 4)).tolist() == [3] * 4


def test_sampling_follows_the_models_distribution_at_the_given_temperature():
    loaded = make(SHARING["qwen2"])
    n = 2000
    with torch.no_grad():
        logits = loaded.model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    for temperature in (0.3, 2.0):
        drawn = Counter(t for (t,) in sample(loaded, 3, temperature, [PROMPTS[0]] * n, 1))
        share = torch.tensor([drawn[v] / n for v in range(len(logits))])
        right, plain = (
            (share - (logits / t).softmax(-1)).abs().sum() / 2 for t in (temperature, 1.0)
        )  # total variation
        assert right < 0.2 and right < plain / 2


def test_a_models_own_generation_config_shapes_nothing():
    loaded = make(SHARING["qwen2"])
    samples, answers = sample(loaded, 1), greedy(loaded)
    loaded.model.generation_config = GenerationConfig(
        eos_token_id=[2],
        pad_token_id=0,
        do_sample=True,
        top_k=1,
        top_p=0.1,
        temperature=0.01,
        repetition_penalty=5.0,
        max_new_tokens=2,
    )
    assert sample(loaded, 1) == samples
    assert greedy(loaded) == answers


def test_no_prompts_give_no_results():
    assert greedy(make(SHARING["llama"]), []) == []


def test_a_broken_model_is_an_error_and_not_a_text():
    loaded = make(SHARING["llama"])
    loaded.model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(NotFinite):
        greedy(loaded)


def test_a_prompt_that_does_not_fit_is_refused_before_any_work(monkeypatch):
    loaded = make(SHARING["llama"])
    fits, work = [7] * 500, []
    monkeypatch.setattr(loaded.model, "forward", lambda *_, **__: work.append(1))
    with pytest.raises(PromptTooLong, match=r"500 .*13 .*512"):
        greedy(loaded, [PROMPTS[0], fits], n=13)
    assert work == []
    monkeypatch.undo()
    assert len(greedy(loaded, [fits], n=12)[0].token_ids) <= 12  # 500 + 12 fill the context exactly


def test_chats_are_rendered_for_the_model():
    loaded = make(SHARING["qwen2"])
    engine = TransformersEngine(loaded, 10_000)
    ids = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "How do I?"}], add_generation_prompt=True
    )["input_ids"]
    assert engine.generate([chat("How do I?")], Sampling(6)) == engine.generate_ids(
        [ids], Sampling(6)
    )
    assert (engine.model_id, engine.revision) == ("tiny", "random")


# ---- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lengths", [[], [5], [3, 9, 1, 6, 2, 7], [4] * 7, [50, 1, 1, 1, 60], list(range(1, 40))]
)
@pytest.mark.parametrize("budget", [1, 10, 40, 1000])
def test_batches_hold_each_row_once_and_respect_the_budget(lengths, budget):
    batches = list(by_length(lengths, budget))
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget


def test_batches_start_with_the_longest_rows_and_are_as_full_as_they_can_be():
    assert list(by_length([3, 9, 1, 6], 18)) == [[1, 3], [0, 2]]


# ---- loading -------------------------------------------------------------------------------------


def copy_of_the_bundled_model(tmp_path, *without):
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED_WEIGHTS, folder, ignore=shutil.ignore_patterns(*without))
    return folder


def refusal(model_id) -> str:
    with pytest.raises(ModelNotFound) as caught:
        load_model(ModelSettings(id=str(model_id)))
    assert repr(str(model_id)) in str(caught.value)
    return str(caught.value)


def test_a_folder_is_loaded_and_its_revision_is_its_content(tmp_path):
    folder = copy_of_the_bundled_model(tmp_path)
    loaded, bundled = load_model(ModelSettings(id=str(folder))), load_model(ModelSettings())
    assert loaded.revision == bundled.revision
    assert (loaded.model_id, bundled.model_id) == (str(folder), "bundled")
    assert loaded.model.dtype == torch.float32 and not loaded.model.training
    path = folder / "generation_config.json"
    path.write_text(path.read_text() + "\n")
    assert load_model(ModelSettings(id=str(folder))).revision != bundled.revision


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    refusal(tmp_path / "nowhere")
    refusal(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path):
    folder = copy_of_the_bundled_model(tmp_path, "*.safetensors")
    assert "safetensors" in refusal(folder)
    torch.save(
        {}, folder / "pytorch_model.bin"
    )  # pickled weights could run code: not an alternative
    assert "safetensors" in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"\x08\x00\x00\x00\x00\x00\x00\x00{",
        b"",
    ],
)
def test_damaged_weights_are_refused(tmp_path, content):
    folder = copy_of_the_bundled_model(tmp_path, "*.safetensors")
    (folder / "model.safetensors").write_bytes(content)
    refusal(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    assert "tokenizer" in refusal(copy_of_the_bundled_model(tmp_path, "tokenizer*"))


def test_an_unknown_architecture_is_refused(tmp_path):
    folder = copy_of_the_bundled_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nobody-knows"}))
    assert "nobody-knows" in refusal(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_on_a_machine_without_a_gpu_is_refused():
    with pytest.raises(ModelNotFound, match=r"model.device='cuda'"):
        load_model(ModelSettings(device="cuda"))


def test_running_out_of_memory_halves_the_batch_and_changes_no_answer(monkeypatch, caplog):
    loaded = make(SHARING["qwen2"], ENDS)
    sampling = Sampling(8, temperature=1.0, seed=3)
    expected = TransformersEngine(loaded, 10_000).generate_ids(PROMPTS, sampling)
    engine = TransformersEngine(loaded, 10_000)
    real = engine._decode

    def scarce(work, batch):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(work, batch)

    monkeypatch.setattr(engine, "_decode", scarce)
    assert engine.generate_ids(PROMPTS, sampling) == expected
    assert "out of memory" in caplog.text and engine.batch_tokens < 10_000

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "_decode", never)
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate_ids(PROMPTS, sampling)
