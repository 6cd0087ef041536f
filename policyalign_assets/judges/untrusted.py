"""Text that is judged goes into the judge's prompt as data: it can neither close its block nor speak as another role."""

from __future__ import annotations

import hashlib
import re

from policyalign_assets.judges.verdict import Dialogue

# Control tokens of common chat formats, and the marks of Qwen3Guard's own template. Servers read them as control tokens
# wherever they stand, so a space behind the first bracket makes text of them.
_CONTROL = re.compile(
    r"<(?=\||/?s>|/?think>|(?:start|end)_of_turn>|(?:BEGIN|END) )|\[(?=/?INST\])", re.IGNORECASE
)


def harmless(text: str) -> str:
    """`text` without anything that a chat format could read as a control token. People read the same."""
    return _CONTROL.sub(lambda match: match[0] + " ", text)


def block(name: str, text: str, dialogue: Dialogue) -> str:
    """`text` between two marks that hold a nonce. It is a hash over the whole dialogue: whoever wrote one half of the dialogue
    cannot write the nonce into it, and the same dialogue still gives the same prompt."""
    nonce = hashlib.sha256(
        repr((dialogue.prompt, dialogue.response)).encode("utf-8", "surrogatepass")
    ).hexdigest()[:24]
    return f"[{name} {nonce}]\n{harmless(text)}\n[end of {name} {nonce}]"
