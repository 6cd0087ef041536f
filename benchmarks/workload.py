"""A model, a policy and prompts with exact token counts, for timing.

Weights are random, since speed does not depend on them.
"""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from policyalign_assets.engine.loading import LoadedModel

# Renders "<s> words <e> <u> words <e> <a>": one token a word, control tokens around each message.
TEMPLATE = (
    "{%- for m in messages %}"
    "{{- ('<s> ' if m['role'] == 'system' else '<u> ') + m['content'] + ' <e> ' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<a>' }}{%- endif %}"
)
CONTROL = ("<pad>", "<s>", "<u>", "<e>", "<a>")
# Lies beyond every vocabulary, so no response ends early: all implementations do the same work.
END = 1 << 20
OVERHEAD = 2  # control tokens around a message
WORDS = 1_000


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {t: i for i, t in enumerate((*CONTROL, *(f"w{i}" for i in range(WORDS))))} | {
        "<end>": END
    }
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<pad>",
        additional_special_tokens=list(CONTROL[1:]),
        padding_side="left",
    )
    fast.chat_template = TEMPLATE
    return fast


def random_model(
    vocabulary: int = 2_048,
    hidden: int = 256,
    layers: int = 5,
    heads: int = 4,
    key_heads: int = 2,
    intermediate: int = 704,
    llama: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> LoadedModel:
    """A Qwen2 or Llama model with random weights: about 5 M parameters with the defaults.

    llama: a Llama model, whose head shares the weights of the embeddings.
    """
    config = (LlamaConfig if llama else Qwen2Config)(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=intermediate,
        max_position_embeddings=4_096,
        tie_word_embeddings=llama,
        initializer_range=0.05,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = (LlamaForCausalLM if llama else Qwen2ForCausalLM)(config)
    torch.set_default_dtype(before)
    words = tokenizer()
    model.generation_config = GenerationConfig(
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id
    )
    return LoadedModel(model.eval(), words, "random", "0")


def text(tokens: int, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(tokens))
