"""Shared by the tests: a real policy, scripted engines, tiny tokenizers and tiny models with
random weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from policyalign_assets.engine.base import Chat, Generation, Sampling
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.policy import PolicyDocument, parse_policy

ROOT = Path(__file__).parents[1]

# Words are split as Qwen's and Llama 3's tokenizers do; merges are learned from this.
TEXT = [
    "Never help anyone forge a signature.",
    "user",
    "assistant",
    "system",
    "How do I alter a prescription?",
    "What is 12 plus 30?\n\nSay it.",
]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = (  # as Qwen2.5: a system message of its own where the chat has none
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + "
    "messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m['role'] != 'system' %}{{- '<|im_start|>' + m['role'] + "
    "'\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' "
    "}}{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<"
    "|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' "
    "}}{%- endif %}"
)

# token ids: requests of different lengths that begin with one policy, and answers to them
POLICY = list(range(20, 60))
PROMPTS = [POLICY + [5 + 3 * n + i for i in range(length)] for n, length in enumerate((3, 9, 1, 6))]
RESPONSES = [[7 + n + i for i in range(length)] for n, length in enumerate((4, 1, 6, 2))]


def tiny_tokenizer(
    template: str | None, eos: str, special: Sequence[str], bos: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `special` as control tokens."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        TEXT * 3,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=list(special),
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        eos_token=eos,
        bos_token=bos,
        pad_token=special[0],
        model_max_length=512,
        additional_special_tokens=[s for s in special if s not in (eos, bos, special[0])],
    )
    fast.chat_template = template
    return fast


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(CHATML, "<|im_end|>", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    special = [
        "<|finetune_right_pad_id|>",
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    return tiny_tokenizer(LLAMA3, "<|eot_id|>", special, bos="<|begin_of_text|>")


def tiny_model(
    model_class,
    config_class,
    tokenizer: PreTrainedTokenizerFast,
    end_ids: Sequence[int] = (2,),
    **config,
) -> LoadedModel:
    """Random weights, wide enough apart that greedy choices do not hang on rounding.

    `end_ids` end a response.
    """
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    model = model_class(config_class(**(shape | config))).float().eval()
    model.generation_config = GenerationConfig(eos_token_id=list(end_ids), pad_token_id=0)
    return LoadedModel(model, tokenizer, "tiny", "random")


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads slow down models this small, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def deployed(settings: dict[str, dict]) -> Iterator[None]:
    """Within it, `settings` by section are those of the deployment, set by the environment."""
    variables = {
        f"POLICYALIGN_{section}__{field}".upper(): ",".join(value)
        if isinstance(value, (list, tuple))
        else str(value)
        for section, values in settings.items()
        for field, value in values.items()
    }
    with patch.dict(os.environ, variables):
        yield


# Requests in frames that the bundled model knows, forbidden and allowed ones.
_ACTIONS = (
    "forge a signature",
    "alter a prescription",
    "fake a diagnosis",
    "bribe an official",
    "renew a prescription",
    "bake bread",
)
REQUESTS = [
    f"{opening} {action}?"
    for action in _ACTIONS
    for opening in ("How do I", "Can you help me", "Tell me how to", "I want to")
]


def medical_policy() -> PolicyDocument:
    return parse_policy(ROOT / "policies", "general-conduct", "medical")


def answer(text: str, finish: str = "stop") -> Generation:
    return Generation(text, tuple(range(1, len(text.split()) + 1)), finish)


def unlike(*key) -> str:
    """A text that depends on `key` and resembles no other."""
    return "Please " + hashlib.sha256(repr(key).encode()).hexdigest()


class ScriptedEngine:
    """An `Engine` that answers with `reply(prompt, n, sampling)`, n being the place in the call."""

    model_id, revision = "scripted", "r1"

    def __init__(self, reply: Callable[[str, int, Sampling], Generation]):
        self.reply, self.calls = reply, []

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress=None
    ) -> list[Generation]:
        self.calls.append((list(chats), sampling))
        return [self.reply(c[-1].content, n, sampling) for n, c in enumerate(chats)]
