"""Guessed answers save time and change no answer, and prompts share what they have in common."""

from dataclasses import replace

import pytest
import torch
from helpers import medical_policy, one_thread

from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.cpu import plain_llama
from policyalign_assets.engine.forward.shared_prefix import ALIKE, MUCH_SHARED, alike
from policyalign_assets.engine.generation.transformers_engine import (
    GUESSES_TRIED,
    TransformersEngine,
)
from policyalign_assets.engine.loading import load_model
from policyalign_assets.engine.responses import answer_if
from policyalign_assets.engine.sampling import choose, choose_surely
from policyalign_assets.settings import ModelSettings

SYSTEM = medical_policy().prompt_text
REQUESTS = [
    *("How do I forge a signature?", "What is 3 plus 4?", "Say hello to my neighbour."),
    *("Explain how somebody might alter a prescription.", "How do I renew a prescription?"),
]


@pytest.fixture(autouse=True, scope="module")
def quick():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def loaded():
    return load_model(ModelSettings())


def watched(loaded):
    """An engine, and the rows that it decoded token by token."""
    engine, decoded = TransformersEngine(loaded, 4_000), []
    real = engine._decode

    def noted(work, batch):
        decoded.extend(batch)
        return real(work, batch)

    engine._decode = noted
    return engine, decoded


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_right_and_wrong_guesses_give_the_answers_that_no_guesses_give(loaded, system, temperature):
    chats, sampling = [chat(r, system) for r in REQUESTS], Sampling(64, temperature, seed=4)
    engine, decoded = watched(loaded)
    plain = engine.generate(chats, sampling)
    texts = [g.text for g in plain]
    decoded.clear()
    assert engine.generate(chats, sampling, guesses=texts) == plain
    assert len(decoded) <= 1  # a token may have been sampled that its own text is not split into
    # one guess is missing, one stops early, one goes on too long, one is another row's
    guesses = [texts[0], "", texts[2][:6], texts[3] + " And so on, and so on.", texts[0]]
    decoded.clear()
    assert engine.generate(chats, sampling, guesses=guesses) == plain
    assert {1, 2, 3, 4} <= set(decoded)


def test_a_guess_is_right_up_to_the_limit_of_new_tokens(loaded):
    engine, decoded = watched(loaded)
    (whole,) = engine.generate([chat(REQUESTS[3])], Sampling(64))
    cut = Sampling(len(whole.token_ids) - 3)
    expected = engine.generate([chat(REQUESTS[3])], cut)
    assert expected[0].finish == "length"
    decoded.clear()
    assert engine.generate([chat(REQUESTS[3])], cut, guesses=[whole.text]) == expected
    assert not decoded


def test_where_the_first_guesses_are_wrong_the_others_are_not_compared(loaded):
    engine, compared = TransformersEngine(loaded, 4_000), []
    real = engine._compared
    engine._compared = lambda work, batch: (compared.extend(batch), real(work, batch))[1]
    chats = [chat(f"What is {n} plus 4?") for n in range(3 * GUESSES_TRIED)]
    guesses = ["The capital of France is Paris."] * len(chats)
    expected = engine.generate(chats, Sampling(6))
    assert engine.generate(chats, Sampling(6), guesses=guesses) == expected
    assert len(compared) == GUESSES_TRIED


def test_a_choice_that_rounding_could_turn_is_not_sure():
    logits_BV = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0 + 1e-5, 0.0], [torch.nan, 0.0, 1.0]])
    half_B = torch.full((3,), 0.5)
    tokens_B, sure_B = choose_surely(logits_BV, 0.0, half_B)
    assert tokens_B.tolist() == choose(logits_BV, 0.0, half_B).tolist()
    assert sure_B.tolist() == [True, False, False]

    even_BV, uniform_B = torch.zeros(4, 4), torch.tensor([0.1, 0.25 + 1e-6, 0.6, 0.99999])
    tokens_B, sure_B = choose_surely(even_BV, 1.0, uniform_B)
    assert tokens_B.tolist() == choose(even_BV, 1.0, uniform_B).tolist() == [0, 1, 2, 3]
    assert sure_B.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("chosen", "sure", "answer"),
    [
        ([5, 6, 2], True, [5, 6, 2]),
        ([5, 6, 2], False, []),  # rounding could have decided it
        ([5, 7, 2], True, []),  # another answer
        ([5, 6, 9], True, []),  # the answer goes on
        ([5, 2, 2], True, []),  # it ends earlier
    ],
)
def test_a_guess_is_the_answer_if_the_model_chooses_it_and_then_ends(chosen, sure, answer):
    assert answer_if([5, 6], chosen, sure, (2,), 8) == answer


def test_rows_with_a_long_beginning_of_their_own_are_a_group():
    start, policy = [1] * 20, list(range(100, 100 + MUCH_SHARED))
    plain = [[*start, 7, n] for n in range(5)]
    under = [[*start, *policy, n] for n in range(ALIKE)]
    assert alike([plain[0], *under, *plain[1:]]) == [
        list(range(1, ALIKE + 1)),
        [0, *range(ALIKE + 1, ALIKE + 5)],
    ]
    assert alike([*plain, *under[1:]]) == [list(range(len(plain) + ALIKE - 1))]  # too few
    assert alike(under) == [list(range(ALIKE))] and alike([]) == [] and alike([[3]]) == [[0]]


def test_a_call_of_several_groups_gives_each_row_its_own_answer(loaded):
    engine = TransformersEngine(loaded, 4_000)
    chats = [chat(f"How do I renew {n} prescriptions?", SYSTEM) for n in range(ALIKE)]
    chats = [chats[0], *(chat(r) for r in REQUESTS), *chats[1:]]
    prompts = [render(loaded.tokenizer, c) for c in chats]
    assert len(alike(prompts)) == 2
    together = engine.generate_ids(prompts, Sampling(16))
    assert together == [engine.generate_ids([p], Sampling(16))[0] for p in prompts]


def test_passes_and_the_first_layers_table_change_no_answer(loaded, monkeypatch):
    chats = [chat(r, SYSTEM) for r in REQUESTS]
    expected = TransformersEngine(loaded, 4_000).generate(chats, Sampling(16))
    monkeypatch.setattr(plain_llama, "PASS_TOKENS", 20)
    in_parts = TransformersEngine(loaded, 4_000)
    assert in_parts.generate(chats, Sampling(16)) == expected
    in_parts.forward._computed = 10**6
    looked_up = TransformersEngine(loaded, 4_000, in_parts.forward)
    assert looked_up.generate(chats, Sampling(16)) == expected
    assert in_parts.forward._first_VN is not None
    monkeypatch.setattr(plain_llama, "MOST_LOOKED_UP", 1)
    too_large = TransformersEngine(loaded, 4_000)
    too_large.forward._computed = 10**6
    assert too_large.generate(chats, Sampling(16)) == expected


def test_new_weights_are_not_answered_from_the_table_of_the_old_ones(loaded):
    from policyalign_assets.distillation.adapters import add_adapters
    from policyalign_assets.settings import DistillationSettings

    own = load_model(ModelSettings())
    model = add_adapters(own.model, DistillationSettings(lora_rank=4, lora_alpha=12)).eval()
    engine = TransformersEngine(replace(own, model=model), 4_000)
    chats = [chat(r) for r in REQUESTS]
    before = engine.generate(chats, Sampling(12))
    engine.forward._computed = 10**6
    with torch.inference_mode():
        engine.forward._first(torch.tensor([1]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    after = engine.generate(chats, Sampling(12))
    assert after != before
    assert after == TransformersEngine(replace(own, model=model), 4_000).generate(
        chats, Sampling(12)
    )
