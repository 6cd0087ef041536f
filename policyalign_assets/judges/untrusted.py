"""Text that is judged goes into the judge's prompt as data.

It can neither close its block nor speak as another role. The policy's rules are text that others
wrote as well, and are treated alike.
"""

from __future__ import annotations

import hashlib
import re

from policyalign_assets.judges.verdict import Dialogue

# Control tokens of chat formats, and the marks of Qwen3Guard's own template. Servers read them as
# control tokens wherever they stand, so a space behind the first bracket makes text of them.
_NAMES = (
    r"s|bos|eos|pad|unk|mask|sep|cls|sop|eop|eod|eot|eom|eoc|endoftext|end_of_text|"
    r"begin_of_text|(?:start|end)_of_\w+|(?:begin|end)_of_\w+|turn|"
    r"think|thinking|thought|reasoning|answer|reflection|scratchpad|"
    r"tools?|tool_calls?|tool_response|tool_results?|function|functions|function_calls?|"
    r"system|user|assistant|human|model|im_start|im_end|message|channel|call|return|"
    r"image|img|video|audio|vision_start|vision_end|image_soft_token|"
    r"fim_\w+|extra_id_\d+|reserved_\w+|unused_?\d+|special_?\d+|0x[0-9a-f]{2}"
)
_SQUARE = (
    r"inst|sys|system_prompt|available_tools|tool_calls?|tool_results?|tool_content|think|"
    r"img|img_break|img_end|prefix|suffix|middle|bos|eos|pad|unk|cls|sep|mask|gmask|smask|sop|"
    r"control_\d+|args|call_id|model_settings"
)
_CONTROL = re.compile(
    r"<(?="  # <|im_end|>, <｜User｜>, <bos>, </think>, <tool_call>, <<SYS>>, <turn|>
    r"[|｜]|"
    rf"/?(?:{_NAMES})(?:[|｜]|=[^<>\n]{{0,80}})?/?>|"
    r"</?sys>>|"
    r"(?:BEGIN|END) )"
    rf"|\[(?=/?(?:{_SQUARE})\])"
    r"|◁(?=/?\w+▷)",
    re.IGNORECASE,
)
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def harmless(text: str) -> str:
    """`text` without anything that a chat format could read as a control token, and without
    control characters. People read the same."""
    text = _SURROGATE.sub("\ufffd", _UNSEEN.sub("", text))
    return _CONTROL.sub(lambda match: match[0] + " ", text)


def block(name: str, text: str, dialogue: Dialogue) -> str:
    """`text` between two marks that hold a nonce.

    The nonce is a hash over the whole dialogue: whoever wrote one half of the dialogue cannot
    write the nonce into it, and the same dialogue still gives the same prompt.
    """
    nonce = hashlib.sha256(
        repr((dialogue.prompt, dialogue.response)).encode("utf-8", "surrogatepass")
    ).hexdigest()[:24]
    return f"[{name} {nonce}]\n{harmless(text)}\n[end of {name} {nonce}]"
