"""Reads clauses that forbid: "You must not ...", "... is prohibited", "Refuse to ..."."""

import re

from policyalign_assets.policy.reading import forms
from policyalign_assets.policy.reading import words as w
from policyalign_assets.policy.reading.actions import (
    action_of,
    noun_phrase_action,
    passive_action,
    verb_phrase_action,
)
from policyalign_assets.policy.reading.forms import Frame


def forbidding_frame(main: str) -> Frame | None:
    """The frame of a clause that forbids, or None."""
    main = re.sub(
        r"^(?:please|note that|remember:?|important:?|generally|also|further(?:more)?|in "
        r"addition),? ",
        "",
        main,
        flags=re.IGNORECASE,
    )
    for read in (
        _careful,
        _leads_to,
        _under_no,
        _disallowed,
        _it_is,
        _be_forbidden,
        _no_one,
        _modal,
        _refuse,
        _avoid,
        _not_for,
        _no,
    ):
        frame = read(main)
        if frame is not None:
            return frame
    return None


def _under_no(main: str) -> Frame | None:
    found = forms.UNDER_NO.fullmatch(main)
    if found is None:
        return None
    rest = re.sub(r"^(?:should|may|must|shall|can|will|do|does|is|are) ", "", found["rest"])
    inverted = rest != found["rest"]
    inner = None if inverted else forbidding_frame(rest)
    if inner is not None:
        return inner
    if inverted:
        tokens = rest.split(" ")
        for at in range(1, min(len(tokens), 8)):
            if tokens[at] == "be" and at + 1 < len(tokens):
                return Frame(
                    "prohibit", passive_action(" ".join(tokens[:at]), " ".join(tokens[at + 1 :]))
                )
            if w.is_base_verb(tokens[at].strip(",")) and forms.AGENT.match(" ".join(tokens[:at])):
                return Frame("prohibit", verb_phrase_action(" ".join(tokens[at:])))
    modal = forms.REQUIRE.fullmatch(rest) or forms.PERMIT.fullmatch(rest)
    if modal:
        be = re.match(r"be (.+)", modal["rest"])
        subject = (modal["subject"] or "").strip()
        return Frame(
            "prohibit", passive_action(subject, be[1]) if be else verb_phrase_action(modal["rest"])
        )
    return Frame("prohibit", action_of(rest))


def _disallowed(main: str) -> Frame | None:
    found = forms.DISALLOW.fullmatch(main)
    if found is None:
        return None
    if forms.NOT_FORBIDDEN.fullmatch(main):
        return None
    rest = re.sub(r"^(?:the following:? ?|any |all )", "", found["rest"])
    who = re.match(
        r"(?:(?:\w+ ){0,4}?)(?:users?|you|customers?|anyone|staff|employees|people|the (?:model"
        r"|models|service|services|assistant|product|products|tool)"
        r"|our (?:\w+ )?(?:models?|services?|tools?|products?|platform|technology)|it|them) "
        r"(?:to be used |being used |from |to )(?:to |for )?(?P<vp>.+)",
        rest,
        re.IGNORECASE,
    )
    used = re.match(
        r"(?:the )?uses? of (?:our |the |this |any )?[\w -]*?(?:services?|models?|tools?"
        r"|products?|platform|system|ai|software|technology) (?:to|for|in) (?P<vp>.+)",
        rest,
        re.IGNORECASE,
    )
    if re.search(r"\b(?:not|right|authority|permission) to $", main[: found.start("rest")]):
        return Frame("prohibit", verb_phrase_action(rest))
    chosen = who or used
    if chosen is None and re.match(r"(?:any(?:one|body)|others|some(?:one|body))\b", rest, re.I):
        return Frame("prohibit", f"allow {rest}")
    return Frame("prohibit", action_of(chosen["vp"] if chosen else rest))


def _it_is(main: str) -> Frame | None:
    found = forms.IT_IS.fullmatch(main)
    if found is None:
        return None
    return Frame("prohibit", verb_phrase_action(found["rest"]))


def _forbidden_at(main: str) -> tuple[str, str] | None:
    """The subject before "is prohibited", and what follows it.

    "Is illegal" in "content that is illegal" tells which content, and is passed over.
    """
    at = forms.IS_FORBIDDEN.search(main)
    while at is not None:
        subject = main[: at.start()]
        if subject and not re.search(r"\b(?:that|which|who|what)$", subject):
            return subject, at["rest"]
        at = forms.IS_FORBIDDEN.search(main, at.start() + 1)
    will = forms.WILL_NOT_BE.fullmatch(main)
    return (will["subject"], will["rest"]) if will else None


def _be_forbidden(main: str) -> Frame | None:
    found = _forbidden_at(main)
    if found is None:
        return None
    subject, rest = found[0].strip(), found[1].strip(" ,:")
    if re.match(r"(?:if|when|where)\b", subject, re.IGNORECASE):
        return None
    aimed = re.match(r"(?:from|to|for) (.+)", rest)
    if aimed and (
        rest.startswith("from ")
        or (rest.startswith("to ") and not w.is_gerund(subject.split(" ")[0]))
    ):
        return Frame("prohibit", action_of(aimed[1]))
    used = re.match(
        r"(?:the |any )?(?:uses?|using) (?:of )?(?:it|(?:our |the |this |any |these )?[\w "
        r"-]*?(?:services?|models?|tools?|products?|platform|system|ai|software|assistant"
        r"|technology)) (?:to|for|in) (?P<vp>.+)",
        subject, re.IGNORECASE,
    )  # fmt: skip
    said = used["vp"] if used else subject
    if re.match(r"(?:the )?following|these|the (?:below|above)|any of", subject, re.IGNORECASE):
        return Frame("prohibit", action_of(rest) if rest else None)
    if re.fullmatch(r"(?:it|this|that|they)", subject, re.IGNORECASE):
        return Frame("prohibit", None)
    action = action_of(said)
    return Frame("prohibit", f"{action} {rest}".strip() if action else None)


def _no_one(main: str) -> Frame | None:
    found = forms.NO_ONE.fullmatch(main)
    if found is None:
        return None
    be = re.match(r"be (.+)", found["rest"])
    thing = re.match(
        r"no ((?!one\b|body\b|user|employee|staff|person|member|agent)[\w -]+?) (?:may|must|shall"
        r"|should|can|will|is|are)\b",
        main,
        re.IGNORECASE,
    )
    if be:
        helped = re.match(
            r"be (?:helped|allowed|permitted|told how|shown how|enabled|asked|able) to (.+)",
            found["rest"],
        )
        if helped:
            return Frame("prohibit", verb_phrase_action(helped[1]))
        return Frame("prohibit", passive_action(thing[1] if thing else "anyone", be[1]))
    return Frame("prohibit", verb_phrase_action(found["rest"]))


_SUBORDINATE = re.compile(
    r"(?:that|who|which|if|when|because)\b|.*(?:^| )(?:that|which|who|what|whether|because)\b"
    r"|.*\b(?:if|when|but|and)$",
    re.IGNORECASE,
)
_THINGS = re.compile(
    r"(?:any|a|an|the|content|information|data|users?|requests?|people|those|staff)\b",
    re.IGNORECASE,
)
_SAYING = re.compile(
    r"(?:say|state|explain|tell|make|note|ask|remind|mention|add|ensure|check|warn|disclose|admit"
    r"|clarify)\b",
    re.IGNORECASE,
)


def _is_subordinate(subject: str) -> bool:
    """Whether a negation belongs to "that it is not advice" or the like, and forbids nothing."""
    if _SUBORDINATE.match(subject):
        of_a_thing = _THINGS.match(subject) and not re.match(r"(?:that|if|when)\b", subject, re.I)
        return not of_a_thing or bool(re.search(r"\b(?:but|and)$", subject))
    many = len(subject.split()) > 1 and w.starts_as_verb(subject) and not forms.AGENT.match(subject)
    return many and bool(_SAYING.match(subject))


_EPISTEMIC = re.compile(
    r"(?:may|might) not (?:be (?:accurate|complete|correct|available|suitable|appropriate|reliable"
    r"|required|needed|necessary|current|up|true|perfect|aware)|always|reflect|work|contain"
    r"|represent|know|have|understand|meet|suit|apply|fit|match|exist)\b",
    re.IGNORECASE,
)
_DONE = forms.DISCLOSES | frozenset(
    "store use accept issue offer make take copy record delete install connect collect sell leave"
    " download upload print read enter process keep".split()
)


def _not_done(subject: str, rest: str) -> Frame | None:
    """ "Cash is not accepted" forbids; "This list is not limited to ..." does not."""
    verb = re.sub(r"^\w+ly ", "", rest).split(" ")[0].strip(",").lower()
    if (
        not subject
        or len(subject.split()) > 6
        or re.match(r"(?:it|this|that|these|there|which)\b", subject, re.I)
    ):
        return None
    if w.is_participle(verb) and w.base_form(verb) in _DONE:
        return Frame("prohibit", passive_action(subject, rest))
    return None


def _modal(main: str) -> Frame | None:
    found = forms.MODAL.fullmatch(main)
    if found is None:
        return None
    subject = (found["subject"] or "").strip()
    rest = re.sub(
        r"^(?:to |in any (?:way|case|form) |under any circumstances |knowingly )", "", found["rest"]
    )
    negation = found["not"].lower()
    needless = re.match(r"(?:do|does|will)(?: not|n't)", negation)
    if (
        (needless and re.match(r"(?:need|have) to\b", rest))
        or forms.NOT_NEEDED.fullmatch(main)
        or _EPISTEMIC.match(f"{negation} {found['rest']}")
        or forms.NOT_FORBIDDEN.fullmatch(main)
    ):
        return None
    if _is_subordinate(subject):
        return None
    be_only = re.fullmatch(r"(?:is|are)(?: not|n't| never)", negation)
    if be_only:
        aimed = re.match(
            r"(?:allowed|permitted|authori[sz]ed|able|entitled|supposed|intended) (?:to|for) (.+)",
            rest,
        )
        if aimed is None and not re.match(r"to \w", found["rest"]):
            return _not_done(subject, rest)
        if aimed:
            return Frame("prohibit", action_of(aimed[1]))
    be = re.match(r"be (.+)", rest)
    if be and re.fullmatch("there", subject, re.IGNORECASE):
        return Frame("prohibit", _used(be[1]))
    if be and subject and w.is_participle(re.sub(r"^\w+ly ", "", be[1]).split(" ")[0].strip(",")):
        return Frame("prohibit", passive_action(subject, be[1]))
    if be and re.match(r"be (?:used|relied on|asked|told|helped) ", rest):
        return Frame("prohibit", passive_action(subject or "it", be[1]))
    if negation == "never" and subject and rest.split(" ")[0].lower().endswith("s"):
        first, _, tail = rest.partition(" ")
        rest = f"{w.base_form(first)} {tail}".strip()
        rest = re.sub(
            r"^(\w+)((?:, \w+s)*,? (?:or|and) )(\w+s)\b",
            lambda m: (
                f"{m[1]}{re.sub(r'[a-z]+s(?=,)', lambda v: w.base_form(v[0]), m[2])}"
                f"{w.base_form(m[3])}"
                if "VERB" in w.lemmas(m[3]) and not w.is_noun(m[3])
                else m[0]
            ),
            rest,
        )
    if re.match(r"(?:use[ds]? (?:it|them|this) )", rest) and not w.starts_as_verb(rest):
        return Frame("prohibit", action_of(rest))
    first = rest.split(" ")[0].lower().strip(",")
    if w.is_gerund(first):
        return Frame("prohibit", action_of(rest))
    if not (w.is_base_verb(first) or (first.endswith("ly"))) and not subject:
        return (
            Frame("prohibit", noun_phrase_action(rest, None))
            if w.is_noun(first)
            else Frame("prohibit", verb_phrase_action(rest))
        )
    return Frame("prohibit", verb_phrase_action(rest))


def _refuse(main: str) -> Frame | None:
    found = forms.REFUSE.fullmatch(main)
    if found is None or forms.MANNER.match(found["rest"]):
        return None
    subject, rest = (found["subject"] or "").strip(), found["rest"]
    if subject and not (
        forms.AGENT.match(subject)
        or re.fullmatch(r"(?:please|always|you should|politely)", subject, re.IGNORECASE)
    ):
        return None
    to = re.match(r"to (?!(?:any|all|every) (?:requests?|questions?))(.+)", rest)
    if to:
        return Frame("prohibit", verb_phrase_action(to[1]))
    asked = forms.REFUSED.fullmatch(rest)
    if asked:
        how = (asked["how"] or "").lower()
        if how in ("that", "which"):
            if re.match(r"(?:is|are|violates?|breaks?|conflicts?)\b", asked["rest"]):
                return Frame("prohibit", f"answer {rest}")
            said = re.sub(r"^(?:would |could |might |may )", "", asked["rest"])
            said = re.sub(
                r"^(?:asks?|seeks?|involves?|calls?|aims?|contains?|concerns?|requires?|tries|try"
                r"|wants?) (?:for |to |about |how to )?",
                "",
                said,
            )
            first, _, tail = said.partition(" ")
            if first.endswith("s") and "VERB" in w.lemmas(first.lower()):
                said = f"{w.base_form(first)} {tail}"
            return Frame("prohibit", action_of(said))
        return Frame(
            "prohibit",
            action_of(
                asked["rest"],
                "give" if how in ("for",) and _asks_for_words(asked["rest"]) else None,
            ),
        )
    if re.fullmatch(
        r"(?:harmful|unsafe|dangerous|illegal|unlawful|inappropriate|such|those|these|these "
        r"kinds of|abusive)? ?(?:requests?|prompts?|questions?)",
        rest,
        re.IGNORECASE,
    ):
        return Frame("prohibit", None)
    verb = found["verb"].lower()
    if verb.startswith("withhold"):
        return Frame("prohibit", noun_phrase_action(rest, "share"))
    if verb.startswith("block"):
        return None
    return Frame(
        "prohibit", f"accept {rest}" if not w.is_gerund(rest.split(" ")[0]) else action_of(rest)
    )


def _asks_for_words(rest: str) -> bool:
    return bool(
        re.search(
            r"\b(?:advice|information|instructions?|details?|help|code|opinions?|diagnos[ie]s)\b",
            rest,
        )
    )


def _avoid(main: str) -> Frame | None:
    found = forms.AVOID.fullmatch(main)
    if found is None:
        return None
    subject = (found["subject"] or "").strip()
    if subject and not (
        forms.AGENT.match(subject)
        or re.fullmatch(r"(?:please|always|in general|generally)", subject, re.IGNORECASE)
    ):
        return None
    first = found["rest"].split(" ")[0]
    if not w.is_gerund(first) and not first.endswith("ly"):
        return Frame("prohibit", _used(found["rest"]))
    return Frame("prohibit", action_of(found["rest"]))


def _used(phrase: str) -> str:
    """The action of a noun phrase that names something to use, where no better verb is known."""
    action = noun_phrase_action(phrase, None)
    return noun_phrase_action(phrase, "use") if action.startswith("produce ") else action


_CAREFUL = re.compile(
    r"(?:(?:please )?(?:ensure|make sure|be careful|take care|be sure|remember|see to it)(?: "
    r"that)?,?"
    r"|(?:[\w'-]+ ){1,4}(?:is|are) (?:reminded|asked|required|advised|told|instructed|expected"
    r"|urged))"
    r" (?:(?:you|they|staff|users|it|the \w+) )?(?P<rest>(?:never|do not|don't|no|not to) .+)",
    re.IGNORECASE,
)
_LEADS_TO = re.compile(
    r"(?P<subject>.+?) (?:(?:will|may|can|shall) (?:lead to|result in|be (?:punished|grounds"
    r"|treated as))"
    r"|leads to|results in|is grounds for|are grounds for|is cause for) .*"
    r"\b(?:suspension|termination|dismissal|disciplin\w+|ban|removal|sanctions?|prosecution"
    r"|penalt\w+)\b.*",
    re.IGNORECASE,
)


def _careful(main: str) -> Frame | None:
    found = _CAREFUL.fullmatch(main)
    if found is None:
        return None
    to = re.match(r"not to (.+)", found["rest"])
    return Frame("prohibit", verb_phrase_action(to[1])) if to else forbidding_frame(found["rest"])


_NO_ACT = re.compile(
    r"(?:if|failure|failing|not|non-?compliance)\b|(?:any |a )?(?:violations?|breach(?:es)?) of"
    r" (?:this|these|the|our|any)\b",
    re.IGNORECASE,
)


def _leads_to(main: str) -> Frame | None:
    found = _LEADS_TO.fullmatch(main)
    if found is None or _NO_ACT.match(found["subject"]):
        return None
    who = re.match(r"(?:any(?:one|body)?|users?|employees?|staff|those)\b", found["subject"], re.I)
    return None if who else _be_forbidden(f"{found['subject']} is prohibited")


def _not_for(main: str) -> Frame | None:
    found = re.fullmatch(
        r"(?:strictly )?not (?:to be|for) (?:used? (?:in|for|to|as part of) )?(?P<rest>.+)",
        main,
        re.IGNORECASE,
    )
    if found is None:
        return None
    used = re.search(r"\bused? (?P<how>in|for|to|as part of) ", main[: found.start("rest")])
    if used and not (w.is_gerund(found["rest"].split(" ")[0]) or used["how"] == "to"):
        return Frame("prohibit", f"use it {used['how']} {found['rest']}")
    return Frame("prohibit", action_of(found["rest"]))


def _no(main: str) -> Frame | None:
    found = forms.NO.fullmatch(main)
    if found is None or re.match(
        r"(?:longer|doubt|later|more than|less than|matter|fewer)\b", found["rest"]
    ):
        return None
    passive = re.match(
        r"(?P<np>.+?) (?:(?:may|must|shall|should|can|will|is to|are to) be|is|are|gets|get) "
        r"(?P<vp>.+)",
        found["rest"],
    )
    if passive and w.is_participle(passive["vp"].split(" ")[0].strip(",")):
        return Frame("prohibit", passive_action(passive["np"], passive["vp"]))
    return Frame("prohibit", _used(found["rest"]))
