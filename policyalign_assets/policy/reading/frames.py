"""The forms in which English says that something is forbidden, allowed, required or defined."""

import re
from dataclasses import dataclass
from typing import Literal

from policyalign_assets.policy.reading import words as w
from policyalign_assets.policy.reading.actions import (
    action_of,
    noun_phrase_action,
    passive_action,
    verb_phrase_action,
)

FrameKind = Literal["prohibit", "require", "permit", "define"]


@dataclass(frozen=True)
class Frame:
    """What a main clause says. `phrase` is the clause behind "you must" and the like."""

    kind: FrameKind
    action: str | None = None
    exceptions: tuple[str, ...] = ()
    phrase: str = ""


_SUBJECT = r"(?P<subject>(?:[^\s.;:]+ ){1,25}?)"
_ADVERBS = (
    r"(?:(?:also|ever|then|strictly|expressly|explicitly|absolutely|generally|always|normally|therefore"
    r"|under any circumstances|under no circumstances|in any case|in no case|at any time|knowingly"
    r"|currently|categorically|hereby|completely|simply|instead|please),? )*"
)
_NOT = (
    r"(?:(?:must|shall|should|may|might|can|could|will|would|do|does|did|is to|are to|ought to|need to|needs to|has to"
    r"|have to|is|are)(?:, at all times,| also| in no case| under no circumstances| at no time)? (?:not|never)"
    r"|(?:must|should|can|could|wo|would|do|does|did|is|are)n't|can't|won't|cannot|can not|never)"
)
_FORBIDDEN = (
    r"(?:prohibited|forbidden|banned|barred|disallowed|unacceptable|impermissible|off[- ]limits|out of (?:bounds|scope)"
    r"|not (?:be )?(?:allowed|permitted|acceptable|tolerated|authori[sz]ed|appropriate|ok|okay|an option|in scope"
    r"|(?:an? )?(?:acceptable|permitted|allowed)(?: uses?)?)"
    r"|never (?:be )?(?:allowed|permitted|acceptable|ok|okay|appropriate|tolerated)"
    r"|(?:a )?(?:violations?|breach(?:es)?) of (?:this|the|our|company|these)[\w ]*(?:policy|policies|rules|terms)"
    r"|against (?:our|the|this|company)[\w ]*(?:policy|policies|rules|terms|law)|strictly (?:prohibited|forbidden)"
    r"|prohibited uses?|unlawful|illegal|not for)"
)
_ALLOWED = (
    r"(?:allowed|permitted|fine|acceptable|ok|okay|permissible|free|welcome|authori[sz]ed|entitled|appropriate|"
    r"not (?:prohibited|forbidden|a problem)|in scope)"
)
_AGENT = re.compile(
    r"^(?:you|we|it|they|he|she|i|(?:the |an? |our |this |all |any |every |no )?[\w' -]*\b(?:assistants?|agents?|models?|bots?|chatbots?|systems?"
    r"|staff|employees?|users?|customers?|workers?|advisers?|advisors?|members?|personnel|contractors?|people|clinicians?|doctors?"
    r"|nurses?|lawyers?|attorneys?|associates?|ai|llm|claude|chatgpt|gemini|copilot|tools?|services?|students?|teachers?|teams?"
    r"|individuals?|persons?|operators?|developers?|landlords?|sellers?|buyers?|preparers?|providers?|physicians?|pharmacists?"
    r"|representatives?|managers?|officers?|vendors?|partners?|partys?|parties|customer|deployers?|licensees?|bankers?|traders?|pilots?))$",
    re.IGNORECASE,
)
_DEFINE = re.compile(
    r"(?:(?:for (?:the )?purposes? of|in|under) this [\w ]+, )?(?:the (?:term|word|phrase|expression)s? )?"
    r"(?P<term>[\"'“‘]?[\w][\w /()-]{0,60}?[\"'”’]?) (?:means?|refers? to|shall mean|is defined as|are defined as|denotes?"
    r"|is understood (?:as|to mean)|stands for|shall include|is (?:any|a|an|the) [\w ,-]*?(?:that|which|who|identif|about|from|relating)) ?(?P<rest>.+)",
    re.IGNORECASE,
)
_DOUBLE = re.compile(
    rf"(?:{_SUBJECT})??{_NOT} {_ADVERBS}(?:fail|forget|neglect|omit|hesitate) to (?P<rest>.+)",
    re.IGNORECASE,
)
_BE_FORBIDDEN = re.compile(
    rf"(?P<subject>.+?) (?:is|are|remains?|shall be|must be|will be|should be|be|constitutes?|counts? as|is considered|are considered) "
    rf"{_ADVERBS}(?P<word>{_FORBIDDEN})(?P<rest>\b.*)",
    re.IGNORECASE,
)
_WILL_NOT_BE = re.compile(
    rf"(?P<subject>.+?) (?:will|shall|must|should|may|can) (?:not|never) be (?:allowed|permitted|tolerated|accepted)(?P<rest>\b.*)",
    re.IGNORECASE,
)
_MODAL = re.compile(rf"(?:{_SUBJECT})??(?P<not>{_NOT}) {_ADVERBS}(?P<rest>.+)", re.IGNORECASE)
_NO_ONE = re.compile(
    r"(?:no ?one|nobody|no [\w -]+?|none of [\w ]+?|neither .+? nor .+?|nothing) (?:(?:may|must|shall|should|can|will|could)(?: ever)?"
    r"|(?:is|are) (?:allowed |permitted |authori[sz]ed )?to) (?P<rest>.+)",
    re.IGNORECASE,
)
_NO = re.compile(
    r"(?:there (?:must|shall|should|may|will|can) be |absolutely |have )?no (?P<rest>.+)",
    re.IGNORECASE,
)
_UNDER_NO = re.compile(
    r"(?:under no (?:circumstances?|conditions?)|in no (?:event|case|circumstances?|way)|at no (?:time|point)|on no account"
    r"|by no means|never ever|not under any circumstances?),? (?P<rest>.+)",
    re.IGNORECASE,
)
_REFUSE = re.compile(
    rf"(?:{_SUBJECT})??(?:(?:must|shall|should|will|to|please|always|politely|firmly|immediately|has to|needs to) )*"
    r"(?P<verb>refuses?|declines?|rejects?|denies|deny|turns? down|blocks?|withholds?)(?: (?:politely|firmly|always|outright),?)? (?P<rest>.+)",
    re.IGNORECASE,
)
_REQUESTS = (
    r"(?:to )?(?:(?:all|any|every|each|such|user|users'|the user's|customer)(?: other)? )*(?:requests?|prompts?|questions?|instructions?|attempts?|orders?"
    r"|demands?|quer(?:y|ies)|inquir(?:y|ies)|tasks?|conversations?)"
)
_REFUSED = re.compile(
    rf"(?:{_REQUESTS} (?:(?:that |which )?(?:ask(?:s|ing)?|seek(?:s|ing)?|involv(?:es?|ing)|aim(?:s|ed)?|tr(?:y|ies)|attempts?|want(?:s|ing)?"
    r"|intended|designed|require[sd]?|would|relat(?:ed|ing)|call(?:s|ing)?) ?(?:you |it |the assistant |the model )?)?"
    r"(?P<how>to|for|about|on|that|which|involving|of|regarding|concerning|at|in|from)? ?)(?P<rest>.+)",
    re.IGNORECASE,
)
_MANNER = re.compile(
    r"(?:politely|briefly|firmly|clearly|calmly|gently|and|in a|in an|with|by|if|when|where|whenever|any time|or|it\b|them\b|this\b|before"
    r"|then|immediately|such requests?$|the request$|requests?$|without)\b",
    re.IGNORECASE,
)
_AVOID = re.compile(
    rf"(?:{_SUBJECT})??(?:(?:must|shall|should|will|to|please|always|strictly|has to|needs to) )*"
    r"(?:avoids?|refrains? from|abstains? from|desists? from|stays? away from|steers? clear of|keeps? from|stops? short of|ceases?|stop(?=\s\w+ing\b)"
    r"|keeps? (?:out of|away from)|watch out for) (?:the )?(?P<rest>.+)",
    re.IGNORECASE,
)
_IT_IS = re.compile(
    rf"it (?:is|shall be|would be|will be|remains) {_ADVERBS}(?:{_FORBIDDEN}|wrong|unethical|illegal|unlawful|a crime|inappropriate|dangerous|improper)"
    r"(?: for (?P<who>.+?))? to (?P<rest>.+)",
    re.IGNORECASE,
)
_DISALLOW = re.compile(
    r"(?:(?P<subject>(?:[\w'-]+ ){1,8}?)(?:(?:do|does|will|shall|must|can|should|may) (?:not|never)|don't|doesn't|won't|never) (?:allow|permit|tolerate|condone)"
    r"|(?:[\w'-]+ ){1,8}?(?:strictly |expressly |explicitly )?(?:prohibits?|forbids?|bans?|disallows?|bars?)|(?:(?:users?|you|customers?|they) )?agrees? not to"
    r"|do not (?:allow|permit|tolerate)|don't (?:allow|permit)|zero tolerance for|we have zero tolerance for|(?:[\w'-]+ ){1,6}?(?:has|have) no (?:right|authority|permission) to) (?P<rest>.+)",
    re.IGNORECASE,
)
_ONLY_MODAL = re.compile(
    rf"{_SUBJECT}(?P<modal>may|can|could|should|must|shall|is|are|will)(?: be)? only (?P<rest>.+)",
    re.IGNORECASE,
)
_ONLY_WHO = re.compile(
    r"only (?P<who>.+?) (?:may|can|are allowed to|is allowed to|are permitted to|is permitted to|shall|should|must|will|have the right to) (?P<rest>.+)",
    re.IGNORECASE,
)
_ONLY = re.compile(
    r"(?P<main>.+?),? (?:(?P<tight>only (?:if|when|where|after|once|in case|upon|as long as))|only (?P<prep>with|to|for|by|in|on|under|through|from|within|during|at)) (?P<limit>.+)",
    re.IGNORECASE,
)
_ONLY_FIRST = re.compile(
    r"only (?P<main>.+?) (?P<link>if|when|where|after|once|with|to|for|upon|under|unless) (?P<limit>.+)",
    re.IGNORECASE,
)
_CONSENT = re.compile(
    r"\b(?:consent|approval|permission|authori[sz]ation|confirmation|supervision|agreement|warrant|prescription|licen[cs]e|request)\b",
    re.IGNORECASE,
)
_DISCLOSES = frozenset(
    "share disclose give provide send release show discuss reveal access grant transfer hand pass forward report publish".split()
)
_PERMIT = re.compile(
    rf"(?:{_SUBJECT})??(?:(?:may|can|could)(?! not\b|not\b)(?: still| always| also| freely| however)*"
    rf"|(?:is|are|remains?) (?:always |also |still |generally )*{_ALLOWED} to|(?:is|are) (?:free|welcome) to|has permission to|have permission to) (?P<rest>.+)",
    re.IGNORECASE,
)
_IT_IS_ALLOWED = re.compile(
    rf"(?:it|this) is (?:always |also |still |generally |perfectly )*{_ALLOWED}(?: for (?P<who>.+?))? to (?P<rest>.+)|feel free to (?P<free>.+)|we allow (?P<we>.+)",
    re.IGNORECASE,
)
_BE_ALLOWED = re.compile(
    rf"(?P<subject>.+?) (?:is|are|remains?|would be) (?:always |also |still |generally |perfectly |expressly )*{_ALLOWED}(?P<rest>(?: (?:if|when|in|for|with|as|provided|under|where|unless)\b.*)?)",
    re.IGNORECASE,
)
_REQUIRE = re.compile(
    rf"(?:{_SUBJECT})??(?:(?:must|shall|should|will|ought to|need to|needs to|has to|have to|always|is to|are to|is required to|are required to"
    r"|is expected to|are expected to|is responsible for|are responsible for|is obliged to|are obliged to|agrees? to|aims? to)(?: also| always)?) (?P<rest>.+)",
    re.IGNORECASE,
)
_REQUIRED = re.compile(
    r"(?P<subject>.+?) (?:is|are) (?:always )?(?:required|mandatory|obligatory|compulsory|essential)\b.*|.+? (?:requires?|needs?) .+",
    re.IGNORECASE,
)


def forbidding_frame(main: str) -> Frame | None:
    """The frame of a clause that forbids, or None."""
    main = re.sub(
        r"^(?:please|note that|remember:?|important:?|generally|also|further(?:more)?|in addition),? ",
        "",
        main,
        flags=re.IGNORECASE,
    )
    for read in (
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


def double_negative(main: str) -> bool:
    """Whether the clause requires by two negations: "Never fail to ..."."""
    return bool(_DOUBLE.fullmatch(main))


def only_frame(main: str) -> Frame | None:
    """ "Give dosing advice only if a clinician asks" forbids everything but that case."""
    who = _ONLY_WHO.fullmatch(main)
    if who:
        return Frame("prohibit", _limited_action(who["rest"]), (who["who"],))
    modal = _ONLY_MODAL.fullmatch(main)
    if modal and not re.match(
        r"(?:use|contain|include|answer|discuss)\b(?!.* (?:if|when|after|with)\b)", modal["rest"]
    ):
        split = re.match(
            r"(?P<main>.+?) (?P<link>if|when|where|after|once|with|to|for|by|upon|under|on|in|within|through|from|as) (?P<limit>.+)",
            modal["rest"],
        )
        if split and (
            modal["modal"].lower() in ("may", "can", "could", "is", "are")
            or _is_tight(split["link"], split["limit"])
        ):
            subject = modal["subject"].strip()
            passive = re.search(r"\b(?:be|is|are) only$", main[: modal.start("rest")].strip())
            action = (
                passive_action(subject, split["main"])
                if passive
                else verb_phrase_action(split["main"])
            )
            return Frame("prohibit", action, (_limit(split["link"], split["limit"]),))
    first = _ONLY_FIRST.fullmatch(main)
    if (
        first
        and w.starts_as_verb(first["main"])
        and (
            _is_tight(first["link"], first["limit"])
            or first["main"].split(" ")[0].lower() in _DISCLOSES
        )
    ):
        return Frame("prohibit", action_of(first["main"]), (_limit(first["link"], first["limit"]),))
    found = _ONLY.fullmatch(main)
    if found is None or forbidding_frame(found["main"]):
        return None
    permitted = _PERMIT.fullmatch(found["main"])
    required = _REQUIRE.fullmatch(found["main"])
    phrase = permitted["rest"] if permitted else required["rest"] if required else found["main"]
    if not found["tight"]:
        verb = re.sub(r"^be ", "", phrase).split(" ")[0].lower()
        discloses = w.base_form(verb) in _DISCLOSES
        if not (permitted or discloses or _CONSENT.search(found["limit"])):
            return None
    link = (
        ""
        if found["tight"] and found["tight"].lower() in ("only if", "only when", "only where")
        else ((found["prep"] or found["tight"].split(" ", 1)[1]) + " ")
    )
    subject = (permitted or required or {"subject": ""})["subject"] or ""
    be = re.match(r"be (.+)", phrase)
    action = passive_action(subject.strip(), be[1]) if be else action_of(phrase)
    return Frame("prohibit", action, (f"{link}{found['limit']}",))


def _limited_action(rest: str) -> str | None:
    if re.search(r"\bdo so$", rest):
        return None
    be = re.match(r"be (.+)", rest)
    return None if be else verb_phrase_action(rest)


def _is_tight(link: str, limit: str) -> bool:
    return link in ("if", "when", "where", "after", "once", "upon", "unless") or bool(
        _CONSENT.search(limit)
    )


def _limit(link: str, limit: str) -> str:
    return limit if link in ("if", "when", "where") else f"{link} {limit}"


def permitting_frame(main: str) -> Frame | None:
    """The frame of a clause that allows, or None."""
    it_is = _IT_IS_ALLOWED.fullmatch(main)
    if it_is:
        return Frame("permit", action_of(it_is["rest"] or it_is["free"] or it_is["we"]))
    found = _PERMIT.fullmatch(main)
    if found:
        subject = (found["subject"] or "").strip()
        be = re.match(r"be (.+)", found["rest"])
        if (
            be
            and (passive := passive_action(subject, be[1]))
            and w.is_participle(be[1].split(" ")[0].strip(","))
        ):
            return Frame("permit", passive)
        if not subject or _AGENT.match(re.sub(r",.*", "", subject)):
            return Frame("permit", verb_phrase_action(found["rest"]))
    allowed = _BE_ALLOWED.fullmatch(main)
    if allowed and not re.match(r"(?:if|when)\b", main, re.IGNORECASE):
        return Frame("permit", _said(allowed["subject"]))
    return None


def _said(subject: str) -> str:
    first = subject.split(" ", 1)[0]
    return (action_of(subject) or subject) if w.is_gerund(first) else subject


def requiring_frame(main: str) -> Frame | None:
    """The frame of a clause that requires in so many words, or by an imperative; or None."""
    found = _REQUIRE.fullmatch(main)
    if found:
        return Frame("require", phrase=found["rest"])
    if _REQUIRED.fullmatch(main) or w.starts_as_verb(main):
        return Frame("require", phrase=main)
    return None


def is_definition(sentence: str) -> bool:
    return bool(_DEFINE.fullmatch(sentence)) and not re.match(
        r"(?:it|this|that|which|these|you|we|they)\b", sentence, re.IGNORECASE
    )


def _under_no(main: str) -> Frame | None:
    found = _UNDER_NO.fullmatch(main)
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
            if w.is_base_verb(tokens[at].strip(",")) and _AGENT.match(" ".join(tokens[:at])):
                return Frame("prohibit", verb_phrase_action(" ".join(tokens[at:])))
    modal = _REQUIRE.fullmatch(rest) or _PERMIT.fullmatch(rest)
    if modal:
        be = re.match(r"be (.+)", modal["rest"])
        subject = (modal["subject"] or "").strip()
        return Frame(
            "prohibit", passive_action(subject, be[1]) if be else verb_phrase_action(modal["rest"])
        )
    return Frame("prohibit", action_of(rest))


def _disallowed(main: str) -> Frame | None:
    found = _DISALLOW.fullmatch(main)
    if found is None:
        return None
    rest = re.sub(r"^(?:the following:? ?|any |all )", "", found["rest"])
    who = re.match(
        r"(?:(?:\w+ ){0,4}?)(?:users?|you|customers?|anyone|staff|employees|people|the (?:model|models|service|services|assistant|product|products|tool)"
        r"|our (?:\w+ )?(?:models?|services?|tools?|products?|platform|technology)|it|them) (?:to be used |being used |from |to )(?:to |for )?(?P<vp>.+)",
        rest,
        re.IGNORECASE,
    )
    used = re.match(
        r"(?:the )?uses? of (?:our |the |this |any )?[\w -]*?(?:services?|models?|tools?|products?|platform|system|ai|software|technology) (?:to|for|in) (?P<vp>.+)",
        rest,
        re.IGNORECASE,
    )
    chosen = who or used
    return Frame("prohibit", action_of(chosen["vp"] if chosen else rest))


def _it_is(main: str) -> Frame | None:
    found = _IT_IS.fullmatch(main)
    if found is None:
        return None
    return Frame("prohibit", verb_phrase_action(found["rest"]))


def _be_forbidden(main: str) -> Frame | None:
    found = _BE_FORBIDDEN.fullmatch(main) or _WILL_NOT_BE.fullmatch(main)
    if found is None:
        return None
    subject, rest = found["subject"].strip(), found["rest"].strip(" ,:")
    if re.match(r"(?:if|when|where)\b", subject, re.IGNORECASE):
        return None
    aimed = re.match(r"(?:from|to|for) (.+)", rest)
    if aimed and (
        rest.startswith("from ")
        or (rest.startswith("to ") and not w.is_gerund(subject.split(" ")[0]))
    ):
        return Frame("prohibit", action_of(aimed[1]))
    used = re.match(
        r"(?:the |any )?(?:uses?|using) (?:of )?(?:it|(?:our |the |this |any |these )?[\w -]*?(?:services?|models?|tools?|products?|platform|system|ai|software|assistant|technology)) (?:to|for|in) (?P<vp>.+)",
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
    found = _NO_ONE.fullmatch(main)
    if found is None:
        return None
    be = re.match(r"be (.+)", found["rest"])
    thing = re.match(
        r"no ((?!one\b|body\b|user|employee|staff|person|member|agent)[\w -]+?) (?:may|must|shall|should|can|will|is|are)\b",
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


def _modal(main: str) -> Frame | None:
    found = _MODAL.fullmatch(main)
    if found is None:
        return None
    subject = (found["subject"] or "").strip()
    rest = re.sub(
        r"^(?:to |in any (?:way|case|form) |under any circumstances |knowingly )", "", found["rest"]
    )
    negation = found["not"].lower()
    if re.match(r"(?:that|who|which|if|when|because)\b", subject, re.IGNORECASE):
        return None
    if re.search(
        r"\b(?:that|which|who|if|when|what|whether|because|but|and)$|(?:^| )(?:that|which|who|what|whether|because) ",
        f"{subject}",
        re.IGNORECASE,
    ):
        # "Say that it is not advice": the negation belongs to a subordinate clause
        if not re.match(
            r"(?:any|a|an|the|content|information|data|users?|requests?|people|those|staff)\b",
            subject,
            re.IGNORECASE,
        ):
            return None
    if (
        subject
        and w.starts_as_verb(subject)
        and not _AGENT.match(subject)
        and len(subject.split()) > 1
    ):
        if re.match(
            r"(?:say|state|explain|tell|make|note|ask|remind|mention|add|ensure|check|warn|disclose|admit|clarify)\b",
            subject,
            re.IGNORECASE,
        ):
            return None
    be_only = re.fullmatch(r"(?:is|are)(?: not|n't| never)", negation)
    if be_only:
        aimed = re.match(
            r"(?:allowed|permitted|authori[sz]ed|able|entitled|supposed|intended) (?:to|for) (.+)",
            rest,
        )
        if aimed is None and not re.match(r"(?:to be )", found["rest"]):
            return None
        if aimed:
            return Frame("prohibit", action_of(aimed[1]))
    be = re.match(r"be (.+)", rest)
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
                f"{m[1]}{re.sub(r'[a-z]+s(?=,)', lambda v: w.base_form(v[0]), m[2])}{w.base_form(m[3])}"
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
    found = _REFUSE.fullmatch(main)
    if found is None or _MANNER.match(found["rest"]):
        return None
    subject, rest = (found["subject"] or "").strip(), found["rest"]
    if subject and not (
        _AGENT.match(subject)
        or re.fullmatch(r"(?:please|always|you should|politely)", subject, re.IGNORECASE)
    ):
        return None
    to = re.match(r"to (?!(?:any|all|every) (?:requests?|questions?))(.+)", rest)
    if to:
        return Frame("prohibit", verb_phrase_action(to[1]))
    asked = _REFUSED.fullmatch(rest)
    if asked:
        how = (asked["how"] or "").lower()
        if how in ("that", "which"):
            said = re.sub(r"^(?:would |could |might |may )", "", asked["rest"])
            said = re.sub(
                r"^(?:asks?|seeks?|involves?|calls?|aims?|contains?|concerns?|requires?|tries|try|wants?) (?:for |to |about |how to )?",
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
        r"(?:harmful|unsafe|dangerous|illegal|unlawful|inappropriate|such|those|these|these kinds of|abusive)? ?(?:requests?|prompts?|questions?)",
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
    found = _AVOID.fullmatch(main)
    if found is None:
        return None
    subject = (found["subject"] or "").strip()
    if subject and not (
        _AGENT.match(subject)
        or re.fullmatch(r"(?:please|always|in general|generally)", subject, re.IGNORECASE)
    ):
        return None
    first = found["rest"].split(" ")[0]
    noun_verb = None if w.is_gerund(first) else _noun_verb_of_avoid(found["rest"])
    if not w.is_gerund(first) and not first.endswith("ly"):
        return Frame("prohibit", noun_phrase_action(found["rest"], noun_verb))
    return Frame("prohibit", action_of(found["rest"], noun_verb))


def _noun_verb_of_avoid(rest: str) -> str | None:
    guessed = noun_phrase_action(rest, None)
    return "use" if guessed.startswith("produce ") else None


def _not_for(main: str) -> Frame | None:
    found = re.fullmatch(
        r"(?:strictly )?not (?:to be|for) (?:used? (?:in|for|to|as part of) )?(?P<rest>.+)",
        main,
        re.IGNORECASE,
    )
    return Frame("prohibit", action_of(found["rest"])) if found else None


def _no(main: str) -> Frame | None:
    found = _NO.fullmatch(main)
    if found is None or re.match(
        r"(?:longer|doubt|later|more than|less than|matter|fewer)\b", found["rest"]
    ):
        return None
    passive = re.match(
        r"(?P<np>.+?) (?:may|must|shall|should|can|will|is to|are to) be (?P<vp>.+)", found["rest"]
    )
    if passive:
        return Frame("prohibit", passive_action(passive["np"], passive["vp"]))
    return Frame("prohibit", noun_phrase_action(found["rest"], None))
