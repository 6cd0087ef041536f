"""Chat templates in the styles of many families: what is rendered, and what the doctor says.

The templates are short ones of our own, written in the style of each family.
"""

import time

import pytest
from helpers import tiny_tokenizer

from policyalign_assets.doctor import prompts
from policyalign_assets.doctor.prompts import clock_check, end_of_turn_check, prompt_checks
from policyalign_assets.engine.base import chat
from policyalign_assets.engine.chat import NoChatTemplate, has_system_role, render, set_arguments
from policyalign_assets.engine.version import TEMPLATE_DATE

POLICY = "Never help anyone forge a signature."
REQUEST = "How do I alter a prescription?"
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|system|>", "<|user|>"]
SPECIAL += ["<|assistant|>", "<|end|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"]
SPECIAL += ["<think>", "</think>"]


def each(body: str, generation: str) -> str:
    return (
        "{% for m in messages %}" + body + "{% endfor %}"
        "{% if add_generation_prompt %}" + generation + "{% endif %}"
    )


CHATML = each(
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n", "<|im_start|>assistant\n"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    + NO_SYSTEM
    + each(
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n",
        "<start_of_turn>model\n",
    )
)
ALTERNATING = (  # older Mistral: roles must alternate from a user's turn on
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ bos_token }}[INST] "
    "{{ (system if loop.first else '') + m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
LAST_TURN = (  # newer Mistral: the system prompt stands in the last user turn
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "[INST] {% if s and loop.last %}{{ s + '\n\n' }}{% endif %}{{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
PHI = each("<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n", "<|assistant|>\n")
ZEPHYR = each("<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n", "<|assistant|>\n")
TULU = each("<|{{ m['role'] }}|>\n{{ m['content'] }}\n", "<|assistant|>\n")
ALPACA = each(
    "{% if m['role'] == 'user' %}### Instruction:\n{% elif m['role'] == 'assistant' %}"
    "### Response:\n{% endif %}{{ m['content'] }}\n\n",
    "### Response:\n",
)
VICUNA = each(
    "{% if m['role'] == 'user' %}USER: {% elif m['role'] == 'assistant' %}ASSISTANT: {% endif %}"
    "{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}",
    "ASSISTANT:",
)
DATED = "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML
THINKING = CHATML.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}",
)
DROPS_SYSTEM = each(
    "{% if m['role'] != 'system' %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}",
    "<|assistant|>",
)
UPPER_ROLE = each(
    "<|im_start|>{{ m['role'] | upper }}\n{{ m['content'] }}<|im_end|>", "<|im_start|>"
)
SPACED = each(
    "<|im_start|>{{ m['role'] }}\n {{ m['content'] | trim }} <|im_end|>\n", "<|im_start|>A\n"
)
LAST_SYSTEM = (  # the system prompt stands after the request
    "{% for m in messages if m['role'] != 'system' %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
    "{% endfor %}{% for m in messages if m['role'] == 'system' %}"
    "<|system|>{{ m['content'] }}<|end|>"
    "{% endfor %}"
)
TWICE = each("<|{{ m['role'] }}|>{{ m['content'] }} {{ m['content'] }}<|end|>", "<|assistant|>")
SHORTENS = each("<|{{ m['role'] }}|>{{ m['content'][:5] }}<|end|>", "<|assistant|>")
PARTLY_TWICE = each(
    "<|{{ m['role'] }}|>{{ m['content'][:24] }}|{{ m['content'] }}<|end|>", "<|assistant|>"
)
SHOUTS = each("<|{{ m['role'] }}|>{{ m['content'] | upper }}<|end|>", "<|assistant|>")
BROKEN = "{% for m in messages %}{{ m['content'] }}"
REFUSES_ALL = "{{ raise_exception('not a chat model') }}"
LIST_CONTENT = each("<|{{ m['role'] }}|>{{ m['content'][0]['text'] }}<|end|>", "<|assistant|>")

# style: (template, end token, whether there is a system role)
GOOD = {
    "chatml": (CHATML, "<|im_end|>", True),
    "chatml with a default system message": (DEFAULT_SYSTEM + CHATML, "<|im_end|>", True),
    "chatml with thinking": (THINKING, "<|im_end|>", True),
    "gemma": (GEMMA, "<end_of_turn>", False),
    "alternating mistral": (ALTERNATING, "</s>", False),
    "llama 2": (LLAMA2, "</s>", True),
    "mistral, last turn": (LAST_TURN, "</s>", True),
    "phi": (PHI, "<|end|>", True),
    "zephyr": (ZEPHYR, "</s>", True),
    "tulu, no token after the content": (TULU, "</s>", True),
    "alpaca, no control token": (ALPACA, "</s>", True),
    "vicuna": (VICUNA, "</s>", True),
    "llama 3.1 with a date": (DATED, "<|im_end|>", True),
    "drops the system message": (DROPS_SYSTEM, "<|end|>", False),
    "upper-case roles": (UPPER_ROLE, "<|im_end|>", True),
    "spaces around contents": (SPACED, "<|im_end|>", True),
}
BAD = {
    "system after the request": (LAST_SYSTEM, "after the user message"),
    "content twice": (TWICE, "more than once"),
    "content cut": (SHORTENS, "drops or changes"),
    "content partly twice": (PARTLY_TWICE, "more than once"),
    "content in capitals": (SHOUTS, "drops or changes"),
    "broken": (BROKEN, "chat template"),
    "refuses all": (REFUSES_ALL, "not a chat model"),
    "content parts": (LIST_CONTENT, "chat template"),
    "none": (None, "no chat template"),
}


def tokenizer_of(template, eos="<|im_end|>"):
    return tiny_tokenizer(template, eos, SPECIAL, bos="<s>")


def findings(tokenizer, eos_ids=None, rows=10_000, context=4_096, response=32):
    ends = [tokenizer.eos_token_id] if eos_ids is None else eos_ids
    return {f.check: f for f in prompt_checks(tokenizer, ends, rows, context, POLICY, response)}


def deployed(tokenizer, messages):
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, strftime_now=TEMPLATE_DATE.strftime
    )
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("style", GOOD)
def test_prompts_are_those_that_deployment_sends(style):
    template, eos, system_role = GOOD[style]
    tokenizer = tokenizer_of(template, eos)
    assert has_system_role(tokenizer) == system_role
    user = {"role": "user", "content": REQUEST}
    system = {"role": "system", "content": POLICY}
    joined = {"role": "user", "content": f"{POLICY}\n\n{REQUEST}"}
    assert render(tokenizer, chat(REQUEST)) == deployed(tokenizer, [user])
    assert render(tokenizer, chat(REQUEST, POLICY)) == deployed(
        tokenizer, [system, user] if system_role else [joined]
    )
    assert POLICY in tokenizer.decode(render(tokenizer, chat(REQUEST, POLICY)))


@pytest.mark.parametrize("style", GOOD)
def test_control_tokens_in_a_request_stay_text_in_every_style(style):
    template, eos, _ = GOOD[style]
    tokenizer = tokenizer_of(template, eos)
    plain = render(tokenizer, chat("hello", POLICY))
    hostile = render(tokenizer, chat(f"hello{''.join(SPECIAL)}", POLICY))
    special = set(tokenizer.added_tokens_decoder)
    assert [i for i in hostile if i in special] == [i for i in plain if i in special]


@pytest.mark.parametrize("style", GOOD)
def test_the_doctor_accepts_what_works(style):
    template, eos, system_role = GOOD[style]
    found = findings(tokenizer_of(template, eos))
    assert not [f for f in found.values() if f.level == "error"], found
    assert found["prompt ids"].level == "ok"
    assert found["chat template"].level == ("ok" if system_role else "note")


@pytest.mark.parametrize("style", BAD)
def test_the_doctor_refuses_what_cannot_work_and_says_why(style):
    template, reason = BAD[style]
    tokenizer = tokenizer_of(template)
    found = findings(tokenizer)
    assert list(found) == ["chat template"] and found["chat template"].level == "error"
    assert reason in found["chat template"].detail and found["chat template"].fix
    with pytest.raises(NoChatTemplate, match=reason):
        render(tokenizer, chat(REQUEST, POLICY))


def test_the_prompt_does_not_change_with_the_clock(monkeypatch):
    tokenizer = tokenizer_of(DATED)
    first = render(tokenizer, chat(REQUEST))
    assert TEMPLATE_DATE.strftime("%d %b %Y") in tokenizer.decode(first)
    assert "date" in clock_check(tokenizer).detail and clock_check(tokenizer).level == "note"


def test_a_template_that_never_returns_is_stopped(monkeypatch):
    monkeypatch.setattr(prompts, "SECONDS", 0.5)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    begun = time.monotonic()
    found = findings(tokenizer_of(loops + CHATML))
    assert (
        found["chat template"].level == "error" and "0.5 seconds" in found["chat template"].detail
    )
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    "style, ends, level",
    [
        ("chatml", ["</s>"], "error"),  # answers would run on
        ("chatml", ["</s>", "<|im_end|>"], "ok"),
        ("phi", ["</s>"], "error"),
        ("gemma", ["</s>"], "error"),
        ("alpaca, no control token", ["</s>"], "note"),
        ("chatml", [], "error"),
    ],
)
def test_the_token_after_an_answer_must_end_it(style, ends, level):
    template, eos, _ = GOOD[style]
    tokenizer = tokenizer_of(template, eos)
    found = end_of_turn_check(tokenizer, [tokenizer.convert_tokens_to_ids(t) for t in ends])
    assert found.level == level, found
    assert level != "error" or found.fix


def test_ids_beyond_the_embeddings_are_refused():
    tokenizer = tokenizer_of(CHATML)
    highest = max(render(tokenizer, chat(prompts.REQUEST, POLICY)))
    assert findings(tokenizer, rows=highest)["vocabulary"].level == "error"
    assert findings(tokenizer, rows=highest + 1)["vocabulary"].level == "ok"


def test_a_policy_that_does_not_fit_is_refused_with_its_length():
    found = findings(tokenizer_of(CHATML), context=40)["policy length"]
    assert found.level == "error" and "context of 40" in found.detail


def test_a_policy_with_control_tokens_is_said_to_differ_from_deployment():
    tokenizer = tokenizer_of(CHATML)
    found = {
        f.check: f for f in prompt_checks(tokenizer, [4], 10_000, 4_096, "Never say <|im_end|>.", 8)
    }
    assert found["prompt ids"].level == "note" and "ours" in found["prompt ids"].detail


@pytest.mark.parametrize("value", [True, False])
def test_arguments_of_the_template_reach_every_rendering(value):
    tokenizer = tokenizer_of(THINKING)
    set_arguments(tokenizer, {"enable_thinking": value})
    ids = render(tokenizer, chat("Is this true?", POLICY))
    messages = [{"role": "system", "content": POLICY}, {"role": "user", "content": "Is this true?"}]
    fresh = tokenizer_of(THINKING)
    asked = fresh.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=value
    )
    assert ids == fresh(asked, add_special_tokens=False).input_ids
    assert ("<think>" in tokenizer.decode(ids)) is not value


@pytest.mark.parametrize("value", ["}}", "%}", '"', "{{ messages }}", "{% raw %}", "\n\\"])
def test_a_text_among_the_arguments_is_never_read_as_code(value):
    tokenizer = tokenizer_of("{{ style }}|" + CHATML)
    set_arguments(tokenizer, {"style": value})
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert text.startswith(f"{value}|")
