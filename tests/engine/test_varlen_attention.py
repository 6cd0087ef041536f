"""Attention by variable-length kernels, without a GPU: plain PyTorch replaces the kernel.

The replacement follows the kernel's documentation. The tests cover how this project calls the
kernel and uses its result, and that a kernel with other results is not used.
"""

import pytest
import torch
from helpers import POLICY, PROMPTS, RESPONSES, chatml_tokenizer, one_thread, tiny_model
from transformers import GraniteConfig, GraniteForCausalLM, Qwen2Config, Qwen2ForCausalLM

from policyalign_assets.engine.forward import varlen_attention
from policyalign_assets.engine.forward.modules import ModelForward
from policyalign_assets.engine.forward.scoring import prompt_prefix, response_hidden

TOKENIZER = chatml_tokenizer()
FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "granite": (
        GraniteForCausalLM,
        GraniteConfig,
        {"attention_multiplier": 0.3, "num_key_value_heads": 4},
    ),
}


def documented(lse_by_head=True, ahead=0):
    """`varlen_attn` of torch 2.13.

    Its log-sum-exp is [M, H] by its documentation and [H, M] by its code. `ahead`: the number of
    later tokens that a causal query wrongly sees.
    """

    def varlen_attn(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        *,
        return_aux=None,
        scale=None,
        window_size=(-1, -1),
        enable_gqa=False,
    ):
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and len(cu_seq_q) == len(cu_seq_k)
        assert (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max())) == (max_q, max_k)
        assert (int(cu_seq_q[-1]), int(cu_seq_k[-1])) == (len(query), len(key)) and enable_gqa == (
            query.shape[1] != key.shape[1]
        )
        assert window_size in ((-1, 0), (-1, -1))
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        outs, lses = [], []
        for q0, q1, k0, k1 in zip(cu_seq_q[:-1], cu_seq_q[1:], cu_seq_k[:-1], cu_seq_k[1:]):
            scores_HTS = torch.einsum("thd,shd->hts", query[q0:q1], key[k0:k1]) * scale
            if window_size == (-1, 0):
                scores_HTS = scores_HTS.masked_fill(
                    torch.ones(scores_HTS.shape[1:]).triu(1 + ahead).bool(), -torch.inf
                )
            outs.append(torch.einsum("hts,shd->thd", scores_HTS.softmax(-1), value[k0:k1]))
            lses.append(scores_HTS.logsumexp(-1))
        lse_HM = torch.cat(lses, 1)
        return (
            (torch.cat(outs), lse_HM if lse_by_head else lse_HM.T)
            if return_aux and return_aux.lse
            else torch.cat(outs)
        )

    return varlen_attn


@pytest.fixture(autouse=True)
def kernels_for_cpus(monkeypatch):
    monkeypatch.setattr(varlen_attention, "SERVED", {"cpu": (torch.float32,)})
    varlen_attention.serves.cache_clear()
    with one_thread():
        yield
    varlen_attention.serves.cache_clear()


def computed(family, with_prefix):
    """Hidden states, and the gradient of the embeddings where there is no prefix."""
    model_class, config_class, extra = FAMILIES[family]
    model = tiny_model(model_class, config_class, TOKENIZER, **extra).model
    forward = ModelForward(model)
    prefix = prompt_prefix(forward, PROMPTS) if with_prefix else None
    with torch.set_grad_enabled(not with_prefix):
        hidden_MD = response_hidden(forward, PROMPTS, RESPONSES, prefix)
    if with_prefix:
        return [hidden_MD]
    return [
        hidden_MD,
        *torch.autograd.grad(hidden_MD.square().sum(), model.model.embed_tokens.weight),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("lse_by_head", [False, True])
def test_what_is_asked_of_the_kernels_and_made_of_their_answer_is_attention(
    family, with_prefix, lse_by_head, monkeypatch, caplog
):
    expected = computed(family, with_prefix)
    assert "not used" in caplog.text  # a CPU has no such kernels
    varlen_attention.serves.cache_clear()
    caplog.clear()
    kernel, asked = documented(lse_by_head), []
    monkeypatch.setattr(
        varlen_attention,
        "varlen_attn",
        lambda q, *rest, **options: asked.append(len(q)) or kernel(q, *rest, **options),
    )
    given = computed(family, with_prefix)
    assert not caplog.records
    real = sum(len(p) + len(r) - with_prefix * len(POLICY) for p, r in zip(PROMPTS, RESPONSES))
    assert asked.count(real) == 2 * (1 + with_prefix)  # layers; no token that is padding
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "kernel",
    [
        documented(ahead=1),
        lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no kernel image")),
        lambda q, *_, return_aux=None, **__: (q, q[..., 0]) if return_aux else q,
        lambda q, *_, return_aux=None, **__: (
            (q * torch.nan, q[..., 0]) if return_aux else q * torch.nan
        ),
    ],
    ids=["sees one token ahead", "is not there", "computes something else", "is not a number"],
)
def test_a_kernel_that_is_missing_or_wrong_is_not_used_and_that_is_said_once(
    kernel, monkeypatch, caplog
):
    with monkeypatch.context() as patch:
        patch.setattr(varlen_attention, "SERVED", {})
        expected = computed("qwen2", True)
        assert not caplog.records  # nothing to try, nothing to say
    varlen_attention.serves.cache_clear()
    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel)
    given = computed("qwen2", True)
    assert torch.equal(given[0], expected[0])
    assert (
        len([r for r in caplog.records if "variable-length attention is not used" in r.message])
        == 1
    )


def test_a_kernel_that_is_wrong_with_a_prefix_alone_is_not_used_either(monkeypatch, caplog):
    def forgets_the_denominator(*args, return_aux=None, **options):
        out = documented()(*args, return_aux=return_aux, **options)
        return (out[0], torch.zeros_like(out[1])) if return_aux else out

    monkeypatch.setattr(varlen_attention, "varlen_attn", forgets_the_denominator)
    computed("qwen2", False)
    assert "its answer with a prefix" in caplog.text


def test_running_out_of_memory_in_the_trial_says_nothing_about_the_kernel(monkeypatch):
    def scarce(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(varlen_attention, "varlen_attn", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        computed("qwen2", False)
    monkeypatch.setattr(varlen_attention, "varlen_attn", documented())
    computed("qwen2", False)
    assert varlen_attention.serves.cache_info().currsize == 1
