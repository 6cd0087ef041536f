"""Trains the bundled model's byte-level BPE tokenizer.

It can encode any text, so there is no unknown token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

from tokenizers import pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from policyalign_assets.world.world import World, lexicon

SYSTEM, USER, ASSISTANT, END, PAD = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
CONTROL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT)

# Content is inserted unchanged: `policyalign_assets.engine.chat` neutralises its control tokens.
CHAT_TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if m['role'] not in ('system', 'user', 'assistant') -%}"
    "{{ raise_exception('unknown role: ' + m['role']) }}{%- endif -%}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def corpus(reserved: frozenset[str], seed: int, n: int = 3000) -> Iterable[str]:
    """Text of the world in proportion to its use, then every training word equally often.

    The second part gives rare words tokens of their own too.
    """
    world = World(random.Random(seed), "train", reserved, invented=0.05)
    for _ in range(n):
        policy = world.policy(world.rng.randint(1, 10))
        yield policy.text
        for case in (
            world.case(policy, "covered"),
            world.case(policy, "unrelated"),
            world.synthesis(),
            world.twin_synthesis(),
            world.capability(),
        ):
            yield case.request + " " + case.answer
    kept = [
        w
        for key, words in lexicon().items()
        if isinstance(words, tuple)
        for w in words
        if not World.is_heldout_word(w, world._reserved_words())
    ]
    yield from (" " + w for w in kept for _ in range(60))


def train_tokenizer(
    reserved: frozenset[str], vocab_size: int = 3072, seed: int = 0
) -> Qwen2Tokenizer:
    """A tokenizer that splits text as every Qwen2 tokenizer does.

    So `AutoTokenizer` builds the same tokenizer from the saved files. Digits are split one by one,
    which makes arithmetic learnable.
    """
    vocab = {
        token: i
        for i, token in enumerate((*CONTROL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())))
    }
    blank = make_tokenizer(vocab, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained = blank.backend_tokenizer
    trained.train_from_iterator(corpus(reserved, seed), trainer)
    model = json.loads(trained.to_str())["model"]
    return make_tokenizer(model["vocab"], [tuple(m) for m in model["merges"]])


def make_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Qwen2Tokenizer:
    # unk_token is never produced. Without it, it would be an id beyond the model's embedding.
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,  # type: ignore[arg-type]  # the annotation lacks the form that it accepts
        unk_token=PAD,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
