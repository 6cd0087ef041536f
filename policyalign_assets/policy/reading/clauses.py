"""Conditions and exceptions of a sentence: those before its main clause and those behind it."""

import re
from dataclasses import dataclass

from policyalign_assets.policy.reading import words as w

NEGATIVE = (
    r"(?:do not|don't|does not|doesn't|never|cannot|can ?not|can't|(?:must|shall|should|may|will"
    r"|would|could)"
    r"(?: not|n't| never)|mustn't|shouldn't|won't|refuse|decline|avoid|refrain|no|not|under no"
    r"|in no|at no)\b"
)
_STRONG = re.compile(
    rf"(?:(?:then|please|always|also|simply|instead) )*(?:{NEGATIVE}"
    r"|(?:[\w'/-]+ ){1,6}?(?:must|shall|should|may|can|cannot|can't|will|is|are|does|do|has to"
    r"|needs? to)\b)",
    re.IGNORECASE,
)
_LEADING = re.compile(
    r"(?P<word>if|when|whenever|where|wherever|while|before|after|in case(?: of)?|once|until|as "
    r"soon as"
    r"|in the event (?:that|of)|should|unless|except(?: in| for| where| when| with| to| as| if)?"
    r"|with the exception of|outside(?: of)?|without|for|in|during|on|at|with|upon|absent|only if"
    r"|only when) "
    r"(?P<rest>.+)",
    re.IGNORECASE,
)
_CLAUSE_WORDS = frozenset(
    "if when whenever where wherever should unless once until".split()
    + ["in case", "as soon as", "in the event that", "except where", "except when", "except if"]
)
_DROPPED = frozenset(
    "if when whenever where wherever should unless except without absent".split()
    + ["in case", "in case of", "in the event that", "in the event of", "except for"]
    + ["except where", "except when", "except if", "with the exception of", "only if", "only when"]
)
_NOT_CONDITIONS = re.compile(
    r"(?:general|all cases|particular|addition|any case|any event|no (?:case|event|way)|short"
    r"|principle|example"
    r"|instance|all times|the same|every case|practice|accordance|line with|order to|this (?:way"
    r"|reason)"
    r"|(?:safety|legal|security|compliance|privacy) reasons|any (?:time|reason|circumstances)|no "
    r"(?:time|account)"
    r"|these reasons|the purposes? of|purposes of|the avoidance"
    r"|us(?:ing|e of) (?:the|our|this|these|any of our) "
    r"(?:services?|platforms?|(?:web)?sites?|apps?|products?|software|tools?|assistants?))\b",
    re.IGNORECASE,
)
_EXCEPTION = re.compile(
    r",? *\b(?:unless|except(?:ing)?(?: that| when| where| if| for)?|other than|apart from|aside "
    r"from|save (?:for|where|when|that)"
    r"|until|with the exception of|with the following exceptions?:?) +(?P<exception>.+)",
    re.IGNORECASE,
)
_WITHOUT = re.compile(
    r" without (?P<exception>(?!exception\b|limit|regard\b|(?:first |ever |even )?\w+ing\b).+)",
    re.IGNORECASE,
)
_TRAILING = re.compile(
    r",? +(?P<word>only if|if and only if|provid(?:ed|ing) that|(?<!who )(?<!that )(?<!which )"
    r"(?<!not )(?<!be )provided(?= (?:you|it|they|he|she|we|the|an?|this|these|those|no|all|any"
    r"|such|each|every|both|one|users?|staff|\w+ (?:is|are|has|have|does|do|can))\b)"
    r"|as long as|so long as"
    r"|on (?:the )?condition that|if|when|whenever|in case|in the event (?:that|of)) +",
    re.IGNORECASE,
)
_WHETHER = re.compile(
    r"\b(?:even|as|whether|what|ask|asks|asking|check|checks|know|see|tell|tells|determine|verify"
    r"|unsure|clear|certain|sure"
    r"|wonder|clarify|confirm|decide|find out|about|of|how|where|who|only|and|or|predict|estimate"
    r"|say|to|explain|on|tell(?:ing)? any(?:one|body))$",
    re.IGNORECASE,
)  # fmt: skip
FINITE = frozenset(
    "is are was were has have had does do did can could may might must should will would".split()
    + "isn't aren't hasn't haven't doesn't don't it's they're there's seems asks".split()
)


_SHORTENED = frozenset(  # "If asked ...", "When in doubt, ..."
    (
        "asked prompted requested told pressed challenged required instructed given in unsure"
        " uncertain possible necessary appropriate needed relevant applicable not so available"
        " at on under"
    ).split()
)


@dataclass(frozen=True)
class Clause:
    """A main clause, with what limits it. `trailing` says that the condition stood behind it."""

    main: str
    condition: str | None = None
    exceptions: tuple[str, ...] = ()
    trailing: str = ""


_INSERTED = re.compile(
    rf"(?P<before>(?:[\w'/-]+ ){{0,6}}?{NEGATIVE.replace('|no|not|under no|in no|at no', '')})"
    r"(?:, (?P<a>[^,]+),| [–—-] (?P<b>[^–—]+?) [–—-]) (?P<after>.+)",
    re.IGNORECASE,
)
_AT_NO_TIME = re.compile(
    r"\b(must|shall|should|may|can|will) (?:in no (?:case|event|way|circumstances)|under no "
    r"circumstances|at no time|on no account)\b",
    re.IGNORECASE,
)


_ALTHOUGH = re.compile(r"^(?:although|though|even though|whilst) [^,]+, (?=\w)", re.IGNORECASE)
_ASIDE = re.compile(
    r", (?:for any reason|under any circumstances|in any (?:way|form)|at any time), ", re.IGNORECASE
)
_IN_PARENTHESES = re.compile(r" *\(((?:unless|except)\b[^()]+)\)", re.IGNORECASE)
_LIST_END = re.compile(r"[;,] *(?:and|or)?[ .]*$", re.IGNORECASE)
_NOT_LIMITED = re.compile(r"\bincluding,? (?:but|and) not limited to,? ", re.IGNORECASE)


def straightened(sentence: str) -> str:
    """ "You must not, without consent, disclose ..." with its insertion at the end or left out.

    An exception in parentheses goes to the end as well. What a list puts behind an item, as in
    "forge a permit; or", is left out.
    """
    sentence = _LIST_END.sub("", sentence)
    if aside := _IN_PARENTHESES.search(sentence):
        rest = sentence[: aside.start()] + sentence[aside.end() :]
        sentence = f"{rest.rstrip(' .;,')} {aside[1].strip()}"
    sentence = _AT_NO_TIME.sub(r"\1 never", sentence)
    sentence = _ALTHOUGH.sub("", sentence)
    sentence = _ASIDE.sub(" ", sentence)
    sentence = _NOT_LIMITED.sub("including ", sentence)
    sentence = re.sub(r"\bif,? and only if,?\b", "only if", sentence, flags=re.IGNORECASE)
    found = _INSERTED.fullmatch(sentence)
    if found is None:
        return sentence
    inserted = (found["a"] or found["b"]).strip()
    if re.match(r"(?:without|unless|except|if|when|until)\b", inserted, re.IGNORECASE):
        return f"{found['before']} {found['after']} {inserted}"
    if re.match(
        r"(?:under|in|at|even|ever|for|as|regardless|directly|however|on|by|whether|knowingly|of "
        r"course)\b",
        inserted,
        re.IGNORECASE,
    ):
        return f"{found['before']} {found['after']}"
    return sentence


def read_leading(sentence: str) -> Clause:
    """Cuts what stands before the main clause: "If a user is a minor, never ..."."""
    found = _LEADING.match(sentence)
    if found is None:
        return Clause(sentence)
    word, rest = found["word"].lower(), found["rest"]
    if word == "should" and re.match(r"not\b|always\b", rest):
        return Clause(sentence)
    if not word.startswith(("unless", "except", "if")) and _NOT_CONDITIONS.match(rest):
        cut = rest.find(", ")
        return Clause(rest[cut + 2 :] if cut > 0 else sentence)
    at = _main_clause(word, rest)
    if at is None:
        return Clause(sentence)
    limit, main = rest[: at[0]].strip(" ,"), rest[at[1] :]
    main = re.sub(r"^then ", "", main.strip(), flags=re.IGNORECASE)
    said = limit if word in _DROPPED else f"{word} {limit}"
    said = re.sub(r"^except ", "", said)
    if word == "until" and re.match(NEGATIVE, main, re.IGNORECASE):
        return Clause(main, exceptions=(limit,))
    if word.startswith(("unless", "except", "with the exception", "outside", "without", "absent")):
        inner = read_leading(main)
        return Clause(inner.main, inner.condition, (said, *inner.exceptions))
    inner = read_leading(main) if re.match(r"(?:unless|except)\b", main) else Clause(main)
    return Clause(inner.main, said, inner.exceptions)


_PARENTHESES = re.compile(r"\([^()]*\)")
_SUBJECT_AND_MODAL = re.compile(
    r"(?:then )?(?:you|we|it|staff|the (?:assistant|agent|model|chatbot|system))"
    r" (?:must|shall|should|may|can|cannot|will|have to|has to|need to|needs to)\b"
    r"|(?:the|an?|our) (?:[\w'/-]+ ){1,6}?then \w+s?\b",
    re.IGNORECASE,
)


def _main_clause(word: str, rest: str) -> tuple[int, int] | None:
    """Where the limit ends and where the main clause starts, or None where there is no other."""
    clause_like = word in _CLAUSE_WORDS
    # commas in parentheses part nothing
    rest = _PARENTHESES.sub(lambda m: m[0].replace(",", "\0"), rest)
    for found in re.finditer(r", +", rest):
        before, after = rest[: found.start()], rest[found.end() :]
        if clause_like and word not in ("once", "until") and not _has_finite_verb(before):
            continue
        if _SUBJECT_AND_MODAL.match(after) or _third_person_main(after):
            return found.start(), found.end()
        if _STRONG.match(after) and not re.match(r"(?:or|and|nor)\b", after):
            segment = re.split(r", ", after, maxsplit=1)
            later = len(segment) > 1 and _starts_main(segment[1])
            if re.match(NEGATIVE, after, re.IGNORECASE) or not later:
                return found.start(), found.end()
            continue
        if _starts_main(after):
            return found.start(), found.end()
    joined = re.search(
        rf" (?:then (?=\w)|(?={NEGATIVE.replace('|no|not|', '|')}))", rest, re.IGNORECASE
    )
    if joined and clause_like and _has_finite_verb(rest[: joined.start()]):
        # "If a user asks for it, ..." without its comma; a negated condition is none of these
        if not re.search(
            r"\b(?:\w+s|he|she|it|they|you|users?|people|who|that)$", rest[: joined.start()]
        ):
            return joined.start(), joined.end()
        if re.match(r" (?:then|never|refuse|decline|avoid|refrain)\b", rest[joined.start() :]):
            return joined.start(), joined.end()
        if re.match(r" (?:do not|don't)\b", rest[joined.start() :]) and not re.search(
            r"\b(?:they|you|users?|people|who|that|we)$", rest[: joined.start()]
        ):
            return joined.start(), joined.end()
    return None


def _third_person_main(text: str) -> bool:
    """Whether a text starts as "the officer approves ..." does."""
    tokens = [token.strip(",") for token in text.split(" ")[:9]]
    if tokens[0].lower() not in ("the", "a", "an", "our"):
        return False
    for token in tokens[2:]:
        if token.lower() in ("that", "which", "who", "and"):
            return False
        if token.endswith("s") and "VERB" in w.lemmas(token.lower()) and not w.is_noun(token):
            return True
    return False


def _starts_main(text: str) -> bool:
    text = re.sub(r"^(?:then|please|always|also|simply|instead|politely|immediately) ", "", text)
    if re.match(NEGATIVE, text, re.IGNORECASE):
        return True
    return w.starts_as_verb(text) and not re.match(
        r"[\w-]+ (?:is|are|or [\w-]+ (?:is|are))\b", text
    )


def _has_finite_verb(text: str) -> bool:
    words = [t.strip(",").lower() for t in text.split(" ")]
    if w.is_gerund(words[0]) or words[0] in _SHORTENED:
        return True
    if any(t in FINITE for t in words):
        return True
    return any(
        "VERB" in w.lemmas(t) and not t.endswith("ing") and (not w.is_noun(t) or t not in w._NOUNS)
        for t in words[1:]
    )


def read_exceptions(clause: str) -> tuple[str, tuple[str, ...]]:
    """Cuts "unless ...", "except ..." and the like from behind a clause."""
    found = _EXCEPTION.search(clause, 1)
    if found is None:
        return clause, ()
    before = clause[: found.start()].rstrip(" ,")
    if re.search(
        r"\b(?:any(?:one|body|thing)?|no(?:body|thing| one)?|none|purposes?|reasons?|else"
        r"|accounts?|or)$",
        before,
    ) and re.match(r" *(?:other than|apart from|except)\b", found[0].lstrip(" ,")):
        return clause, ()  # "anyone other than the owner" names whom the rule is about
    said = found["exception"]
    stop = re.search(r", (?:and|but|or) (?:never|do not|don't|always|you|it)\b|; ", said)
    if stop:
        said = said[: stop.start()]
    return before, (said.rstrip(" .!;,"),)


def read_without(action: str) -> tuple[str, tuple[str, ...]]:
    """ "change a dose without a doctor's consent" -> ("change a dose", ("a doctor's consent",)).

    "Without" and a gerund tell the manner ("without having read it"), and stay in the action.
    """
    found = _WITHOUT.search(action)
    if found is None:
        return action, ()
    return action[: found.start()], (found["exception"].rstrip(" .,;"),)


def read_trailing(clause: str) -> Clause:
    """Cuts a condition behind the clause: "Never change a dose if the patient is a minor"."""
    for found in _TRAILING.finditer(clause):
        before, condition = clause[: found.start()], clause[found.end() :]
        word = found["word"].lower()
        if not before or not condition:
            continue
        if word in ("if", "when", "whenever", "in case") and (
            _WHETHER.search(before) or re.match(r"[,.]|(?:or|and|to|how|not)\b", condition)
        ):
            continue
        return Clause(before.rstrip(" ,"), condition.rstrip(" .!;,"), (), word)
    return Clause(clause)
