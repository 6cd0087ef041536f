"""Turns what a rule forbids or allows into an action: a verb phrase such as "reveal an address".

The words may be a verb phrase ("reveal an address"), a gerund ("revealing an address"), a passive
("addresses must not be revealed") or a noun phrase ("disclosure of addresses", "firearms").
"""

import re

from policyalign_assets.policy.reading import words as w

_HELPED = (
    r"(?:any ?one(?: else)?|some ?one(?: else)?|any ?body|some ?body|people|persons?|users?|them"
    r"|others"
    r"|individuals|customers|clients|patients|students|staff|employees|visitors|callers|children"
    r"|minors|(?:a|an|the|any|our|your|another|such) (?:[\w-]+ )?(?:person|user|individual|customer"
    r"|client|patient|student|party|employee|member|visitor|caller|child|minor|people|users"
    r"|customers|clients|patients)(?: or (?:group|organi[sz]ation|entity))?)"
)
_WANTS = (
    r"(?:,? (?:who|that) (?:wants?|wishes|asks?|intends?|tries|try|attempts?|seeks?|plans?) to)?"
)
_INSTRUCTIONS = (
    r"(?:(?:detailed|step-by-step|specific|any|practical|actionable|operational|technical|the)"
    r"(?:,? and |,? or |, | ))*"
    r"(?:instructions?|guidance|help|assistance|directions|tips|guides?|tutorials?|support)"
)
# Each pattern ends where the action begins; "(ing)" marks those after which a gerund follows.
_HELPERS = (
    re.compile(rf"(?:help|assist|aid|enable|allow|let|permit|support) {_HELPED}{_WANTS} (?:to "
               rf")?(?=\w)"),
    re.compile(
        rf"(?:help|assist|aid|support) (?:{_HELPED} )?(?:with|in|to) "
        r"(?:(?:the|any) )?(?:(?:attempts?|efforts?|requests?|plans?) to )?"
    ),
    re.compile(r"(?:help|assist|aid) (?:to )?(?=\w)"),
    re.compile(rf"(?:give|provide|offer|supply|share|produce|write|post) (?:{_HELPED} )?(?:with )?"
               rf"{_INSTRUCTIONS} (?:for|on|to|about|in|with|that (?:help|enable|allow)s? "
               rf"{_HELPED} to)"
               r" (?:how to )?"),
    re.compile(rf"(?:give|provide|offer|share) (?:{_HELPED} )?(?:any )?(?:advice|information"
               rf"|details|tips) (?:on|about) how to "),
    re.compile(rf"(?:explain|show|teach|describe)(?: to)?(?: {_HELPED})? (?:on )?"
               r"how (?:to|one (?:can|could|might)|they (?:can|could|might)) "),
    re.compile(r"(?:assistance|help|support|aid|guidance) (?:with|in|for|on) (?=\w+ing\b)"),
    re.compile(r"be (?:used|helped|asked|told|allowed|permitted|able|induced|made) to "),
    re.compile(r"be (?:used|relied (?:up)?on|deployed|applied|employed) (?:for|in|as part of) "),
    re.compile(r"(?:attempt|try|seek|agree|offer|plan|consent|propose) to "),
    re.compile(r"(?:engage|take part|participate|be involved|get involved) in (?=\w+ing\b)"),
    re.compile(r"(?:respond to|answer|fulfil|fulfill|follow|accept|comply with|entertain|process"
               r"|act on) "
               r"(?:any |all )?(?:requests?|questions?|instructions?|prompts?) (?:to|asking to) "),
    re.compile(r"use (?:it|them|this (?:service|tool|system|product|model)|the (?:service"
               r"|services|tool|tools|"
               r"assistant|system|model|models|product|api|platform|software)|our (?:services?"
               r"|tools?|"
               r"models?|products?|platform)) (?:to|for|in|as part of) "),
    re.compile(r"(?:promote or facilitate|facilitate or promote) (?=\w+ing\b)"),
)  # fmt: skip

_OBJECTS = {  # the head noun of a noun phrase: the verb that makes an action of it
    "give": "advice advices opinion opinions guidance diagnosis diagnoses instruction instructions"
    " recommendation recommendations information prediction predictions estimate estimates"
    " access guarantee guarantees assurance assurances prescription prescriptions answer answers"
    " discount discounts refund refunds quote prognosis counsel",
    "make": "decision decisions claim claims joke jokes statement statements comment comments"
    " remark remarks promise promises assumption assumptions call calls payment payments"
    " purchase purchases copy copies threat threats accusation accusations comparison comparisons"
    " change changes exception exceptions commitment commitments bomb bombs",
    "use": "language profanity profanities slang sarcasm slur slurs jargon emoji emojis humour "
    "humor"
    " stereotype stereotypes abbreviation abbreviations acronym acronyms tool tools software"
    " tone metaphor metaphors technique techniques tactics tactic device devices drugs drug",
    "share": "data detail details secret secrets password passwords credential credentials record"
    " records address addresses number numbers key keys id ids identifier identifiers",
    "commit": "fraud theft crime crimes violence plagiarism murder suicide self-harm perjury arson"
    " assault extortion blackmail forgery treason genocide terrorism abuse vandalism bribery",
    "engage in": "harassment stalking bullying gambling misconduct piracy trafficking espionage"
    " cheating cyberbullying racism sexism corruption collusion doxing doxxing activity activities"
    " conduct behaviour behavior behaviours behaviors practices acts wrongdoing",
}
_VERB_OF = {noun: verb for verb, nouns in _OBJECTS.items() for noun in nouns.split()}
_NOMINALS = {  # nouns that name an act, and its verb
    "development": "develop", "creation": "create", "distribution": "distribute",
    "generation": "generate", "promotion": "promote", "disclosure": "disclose",
    "exploitation": "exploit", "manipulation": "manipulate", "impersonation": "impersonate",
    "dissemination": "disseminate", "sale": "sell", "sales": "sell", "use": "use", "misuse": "mis"
                                                                                             "use",
    "theft": "steal", "possession": "possess", "violation": "violate", "violations": "violate",
    "infringement": "infringe", "incitement": "incite", "glorification": "glorify",
    "facilitation": "facilitate", "solicitation": "solicit", "production": "produce",
    "manufacture": "manufacture", "purchase": "purchase", "collection": "collect",
    "publication": "publish", "removal": "remove", "deletion": "delete", "destruction": "destroy",
    "alteration": "alter", "modification": "modify", "falsification": "falsify",
    "fabrication": "fabricate", "circumvention": "circumvent", "harassment": "harass",
    "identification": "identify", "recruitment": "recruit", "intimidation": "intimidate",
    "sexualization": "sexualise", "sexualisation": "sexualise", "acquisition": "acquire",
    "synthesis": "synthesise", "transfer": "transfer", "storage": "store", "release": "release",
    "processing": "process", "endorsement": "endorse", "evasion": "evade", "abuse": "abuse",
    "suppression": "suppress", "interference": "interfere", "denial": "deny", "access": "access",
    "encouragement": "encourage", "discrimination": "discriminate", "surveillance": "surveil",
    "construction": "construct", "installation": "install", "submission": "submit",
    "reproduction": "reproduce", "transmission": "transmit", "exposure": "expose",
    "concealment": "conceal", "mockery": "mock", "ridicule": "ridicule", "prediction": "predict",
    "recording": "record", "cultivation": "cultivate", "extraction": "extract",
}  # fmt: skip
_KEPT = frozenset(
    ("insider trading", "day trading", "body shaming", "stock trading", "price gouging")
)
_ACTIVITY = re.compile(r"(?:tion|sion|ment|ance|ism|ship|ing|cy|sis|age)s?$")
_NO_ACTIVITY = frozenset("information misinformation disinformation document image message".split())
_COMPOUND_HEADS = frozenset(
    "decisions decision purposes purpose process processes campaign campaigns materials policies"
    " software tools strategies services systems".split()
)
_COMPOUND_GERUNDS = frozenset(
    "phishing marketing advertising training hacking banking gambling".split()
)


def action_of(phrase: str, noun_verb: str | None = None) -> str | None:
    """The action that a verb phrase, gerund phrase or noun phrase names; None where it is empty.

    noun_verb: the verb for a noun phrase, where the words around it tell it ("produce").
    """
    phrase = _tidy(phrase)
    if not re.search(r"\w", phrase):
        return None
    first = phrase.split(" ", 1)[0].lower().strip(",")
    if re.match(
        r"(?:requests?|attempts?|efforts?|instructions?|orders?|any attempts?) to ", phrase
    ):
        phrase = phrase.split(" to ", 1)[1]
    elif w.is_gerund(first) and not _is_compound(phrase):
        phrase = _without_of(w.verb_list_to_base(phrase))
    elif first.endswith("ly") and " " in phrase and w.is_gerund(phrase.split(" ")[1]):
        phrase = w.verb_list_to_base(phrase)
    elif re.match(r"(?:assistance|help|support|aid|guidance) (?:with|in|for|on) \w+ing\b", phrase):
        return verb_phrase_action(phrase)
    elif not w.starts_as_verb(phrase) or (noun_verb and may_be_noun(phrase)):
        return _tidy(noun_phrase_action(phrase, noun_verb))
    return verb_phrase_action(phrase)


def may_be_noun(phrase: str) -> bool:
    """Whether a fragment can be a noun phrase, as "report cards" below "Never share:"."""
    tokens = phrase.split(" ")
    first = tokens[0].strip(",")
    if not w.is_noun(first) and "ADJ" not in w.lemmas(first.lower()):
        return False
    return len(tokens) < 2 or tokens[1].lower() not in w.DETERMINERS | w.PRONOUNS | {"to"}


def verb_phrase_action(phrase: str) -> str | None:
    """A verb phrase in the base form, without "help anyone", "explain how to" and the like."""
    phrase = _tidy(phrase)
    for _ in range(4):
        shorter = _without_helper(phrase)
        if shorter == phrase:
            break
        phrase = shorter
    if not re.search(r"\w", phrase):
        return None
    if re.match(
        r"(?:who|whom|whose|that|which|anyone|with|by|when|while|if|or|and)\b"
        r"|(?:help|assist) any\w+ (?:who|that|with)\b",
        phrase,
    ):
        return None
    return phrase


def _without_helper(phrase: str) -> str:
    adverb = re.match(r"(?:(?:ever|also|knowingly|directly|actively|in any way) )", phrase)
    if adverb:
        return phrase[adverb.end() :]
    for pattern in _HELPERS:
        found = pattern.match(phrase)
        if not found:
            continue
        rest = phrase[found.end() :].strip()
        first = rest.split(" ", 1)[0].lower().strip(",")
        if not rest:
            return phrase
        if w.is_gerund(first) and not _is_compound(rest):
            based = w.verb_list_to_base(rest)
            return re.sub(
                r"\b(or|and) (?:in|with|by) (\w+ing)\b",
                lambda m: f"{m[1]} {w.base_form(m[2])}" if w.is_gerund(m[2]) else m[0],
                based,
            )
        before_noun = re.search(r"\b(?:with|in|for|on|about|as part of) (?:the |any )?$", found[0])
        if w.is_base_verb(first) and not before_noun:
            helped = _after_beneficiary(rest) if found[0] in ("help ", "assist ", "aid ") else None
            return helped or rest
        if re.match(r"\w+ly \w+", rest) and w.is_base_verb(rest.split(" ")[1].strip(",")):
            return rest
        if found[0].startswith(("help", "assist", "aid")):
            helped = _after_beneficiary(rest)
            if helped:
                return helped
        if re.search(r"(?:for|in|with|as part of|on|about) (?:the |any )?$", found[0]):
            return noun_phrase_action(rest, None) or phrase
    return phrase


def _after_beneficiary(rest: str) -> str | None:
    """ "a landlord force a tenant out" -> "force a tenant out"; None where `rest` names nobody."""
    tokens = rest.split(" ")
    first = tokens[0].lower().strip(",")
    determined = first in w.DETERMINERS
    named = w.is_plural(first) and not w.is_base_verb(first)
    if not determined and not named and first not in ("people", "staff"):
        return None
    at = 2 if determined else 1
    while at < len(tokens) and at < 12:
        bare = tokens[at].lower().strip(",")
        before = tokens[at - 1].lower()
        if before.endswith(",") or before in w.CONJUNCTIONS:
            at += 1
            continue
        if bare in ("to", "with", "in") and at + 1 < len(tokens):
            following = tokens[at + 1].strip(",").lower()
            if bare == "to" and w.is_base_verb(following):
                return " ".join(tokens[at + 1 :])
            if w.is_gerund(following):
                return w.verb_list_to_base(" ".join(tokens[at + 1 :]))
            return None
        if (
            bare.endswith("ly")
            and at + 1 < len(tokens)
            and w.is_base_verb(tokens[at + 1].strip(","))
        ):
            return " ".join(tokens[at:])
        if bare in w.CONJUNCTIONS:
            at += 1
            continue
        if w.is_base_verb(bare) and bare not in ("crew", "party", "member"):
            return " ".join(tokens[at:])
        if bare in w.PREPOSITIONS or bare in w.DETERMINERS:
            return None
        at += 1
    return None


def passive_action(subject: str, participles: str) -> str | None:
    """ "addresses", "shared with a vendor" -> "share addresses with a vendor"."""
    subject, rest = _tidy(subject), participles.strip()
    adverb = re.match(r"(?:\w+ly |ever )", rest)
    if adverb:
        rest = rest[adverb.end() :]
    aimed = re.match(
        r"(?:used|relied on|helped|asked|deployed|employed) (to|for|in(?! an?y? (?:manner|way)))"
        r" (.+)",
        rest,
    )
    if aimed and (aimed[1] == "to" or _is_tool(subject)):
        if aimed[1] == "to" and not _is_tool(subject) and rest.startswith("used"):
            return f"use {subject} to {aimed[2]}"
        return action_of(aimed[2], None)
    helped = re.match(r"(?:helped|allowed|permitted|told how|shown how|enabled) to (.+)", rest)
    if helped:
        return verb_phrase_action(helped[1])
    verbs, tail = _participle_list(rest)
    if not verbs:
        return None
    tail = re.sub(
        r"^ ?by (?:the )?(?:assistant|model|agent|system|chatbot|staff|users?)\b", "", tail
    )
    stranded = re.match(r"(up)?(on|for|with|about|at|into)$", tail.strip())
    middle = f"{tail.strip()} {subject}" if stranded else f"{subject} {tail.strip()}"
    return f"{verbs} {middle}".strip()


def _participle_list(text: str) -> tuple[str, str]:
    """ "altered, forged or sold at night" -> ("alter, forge or sell", "at night")."""
    words = text.split(" ")
    out: list[str] = []
    for index, word in enumerate(words):
        bare = word.strip(",").lower()
        if (
            bare in w.CONJUNCTIONS
            and index + 1 < len(words)
            and w.is_participle(words[index + 1].strip(","))
        ):
            out.append(word)
        elif w.is_participle(bare) and (
            not out or out[-1].endswith(",") or out[-1] in w.CONJUNCTIONS
        ):
            out.append(w.base_form(bare) + ("," if word.endswith(",") else ""))
        elif (bare in _PARTICLES and out and (word.endswith(",") or _joins(words, index + 1))) or (
            bare.endswith("ly") and out and out[-1] in w.CONJUNCTIONS
        ):
            out.append(word)
        else:
            return " ".join(out).rstrip(","), " ".join(words[index:])
    return " ".join(out).rstrip(","), ""


_PARTICLES = frozenset("down up out off away on over in back".split())


def _joins(words: list[str], index: int) -> bool:
    """Whether the word at `index` joins one more participle to the list."""
    return index + 1 < len(words) and (
        words[index].lower() in w.CONJUNCTIONS and w.is_participle(words[index + 1].strip(","))
    )


def _is_tool(subject: str) -> bool:
    return bool(
        re.search(
            r"\b(?:it|they|assistant|model|models|service|services|tool|tools|system|product|ai|api"
            r"|chatbot|bot|platform|outputs?|software|agent|technology|claude|chatgpt|gemini"
            r"|copilot)$",
            subject.lower(),
        )
    )


def noun_phrase_action(phrase: str, verb: str | None) -> str:
    """An action for a noun phrase: "disclosure of addresses" -> "disclose addresses"."""
    phrase = re.sub(r"^(?:(?:the|any|all) )?(?:act|practice|practise)s? of ", "", phrase)
    first = phrase.split(" ", 1)[0]
    if w.is_gerund(first) and not _is_compound(phrase):
        return verb_phrase_action(_without_of(w.verb_list_to_base(phrase))) or phrase
    bare = re.sub(r"^(?:the|any|all|a|an|such|unauthorized|unauthorised) ", "", phrase)
    acting = re.match(
        r"([\w-]+)(?: (?:or|and|,) ([\w-]+))? (?:of|to|against|with|based on|toward|towards) (.+)",
        bare,
    )
    if acting and acting[1].lower() in _NOMINALS:
        verbs = _NOMINALS[acting[1].lower()]
        if acting[2]:
            verbs += f" or {_NOMINALS.get(acting[2].lower(), acting[2])}"
        kept = {"discriminate": "against", "interfere": "with"}.get(verbs, "")
        return f"{verbs} {kept} {acting[3]}".replace("  ", " ")
    if re.match(r"(?:attempts?|efforts?|requests?) to ", bare):
        return bare.split(" to ", 1)[1]
    tokens = re.split(rf" (?=(?:{'|'.join(sorted(w.PREPOSITIONS))})\b)", bare, maxsplit=1)[0].split(
        " "
    )
    head = tokens[-1].lower().strip(",")
    if verb is None:
        promised = re.match(r"(?:any )?(\w+(?:ed|en)) ([\w -]+)$", bare)
        if promised and w.is_participle(promised[1]) and "ADJ" not in w.lemmas(promised[1].lower()):
            return f"{w.base_form(promised[1])} {promised[2]}"
        if (
            head in _NOMINALS
            and len(tokens) > 1
            and head not in _VERB_OF
            and all(w.is_noun(t.strip(",")) or t in w.CONJUNCTIONS for t in tokens[:-1])
        ):
            rest = bare[len(" ".join(tokens)) :]
            return f"{_NOMINALS[head]} {' '.join(tokens[:-1])}{rest}"
        if (
            w.is_gerund(head)
            and len(tokens) > 1
            and _is_plain_noun(tokens[-2])
            and " ".join(tokens[-2:]).lower() not in _KEPT
        ):
            rest = bare[len(" ".join(tokens)) :]
            return f"{w.base_form(head)} {' '.join(tokens[:-1])}{rest}"
    chosen = verb or _verb_for(head)
    return f"{chosen} {phrase}"


def _verb_for(head: str) -> str:
    if head in _VERB_OF:
        return _VERB_OF[head]
    if _ACTIVITY.search(head) and head not in _NO_ACTIVITY and not w.is_plural(head):
        return "engage in"
    return "produce"


def _without_of(phrase: str) -> str:
    """ "share of passwords", from "sharing of passwords", as "share passwords"."""
    return re.sub(
        r"^((?!think|speak|dispose|approve|conceive|consist|talk)\w+(?:, \w+)*(?:,? (?:or|and) "
        r"\w+)?) of ",
        r"\1 ",
        phrase,
    )


def _is_plain_noun(word: str) -> bool:
    return w.is_noun(word.strip(",")) and "ADJ" not in w.lemmas(word.strip(",").lower())


def _is_compound(phrase: str) -> bool:
    """Whether a gerund belongs to the noun behind it: "phishing emails"."""
    tokens = phrase.split(" ")
    return len(tokens) > 1 and (
        (tokens[0].lower() in _COMPOUND_GERUNDS and w.is_noun(tokens[1].strip(",")))
        or tokens[1].lower().strip(",") in _COMPOUND_HEADS
    )


def _tidy(phrase: str) -> str:
    """Without outer marks; a capital at the start goes, unless the word is a name or acronym."""
    phrase = re.sub(r"\s+", " ", phrase).strip(" ,.;:!?–—-")
    phrase = re.sub(r"^please,? ", "", phrase, flags=re.IGNORECASE)
    phrase = re.sub(r",? (?:such as|including|for example|e\.g\.?)$", "", phrase)
    if phrase.count('"') % 2:
        phrase = phrase.strip('"')
    first = phrase.split(" ", 1)[0]
    if first[1:] == first[1:].lower() and len(first) > 1:
        phrase = first.lower() + phrase[len(first) :]
    return phrase
