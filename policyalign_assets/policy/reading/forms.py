"""The forms in which English forbids, allows, requires or defines, as patterns."""

import re
from dataclasses import dataclass
from typing import Literal

FrameKind = Literal["prohibit", "require", "permit", "define"]


@dataclass(frozen=True)
class Frame:
    """What a main clause says. `phrase` is the clause behind "you must" and the like."""

    kind: FrameKind
    action: str | None = None
    exceptions: tuple[str, ...] = ()
    phrase: str = ""


SUBJECT = r"(?P<subject>(?:[^\s.;:]+ ){1,25}?)"
ADVERBS = (
    r"(?:(?:also|ever|then|strictly|expressly|explicitly|absolutely|generally|always|normally"
    r"|therefore"
    r"|under any circumstances|under no circumstances|in any case|in no case|at any time|knowingly"
    r"|currently|categorically|hereby|completely|simply|instead|please),? )*"
)
NOT = (
    r"(?:(?:must|shall|should|may|might|can|could|will|would|do|does|did|is to|are to|ought to"
    r"|need to|needs to|has to"
    r"|have to|is|are)(?:, at all times,| also| in no case| under no circumstances| at no time)? "
    r"(?:not|never)"
    r"|(?:must|should|can|could|wo|would|do|does|did|is|are)n't|can't|won't|cannot|can not|never)"
)
FORBIDDEN = (
    r"(?:prohibited|forbidden|banned|barred|disallowed|unacceptable|impermissible|off[- ]limits"
    r"|out of (?:bounds|scope)"
    r"|not (?:be )?(?:allowed|permitted|acceptable|tolerated|authori[sz]ed|appropriate|ok|okay"
    r"|an option|in scope"
    r"|(?:an? )?(?:acceptable|permitted|allowed)(?: uses?)?)"
    r"|never (?:be )?(?:allowed|permitted|acceptable|ok|okay|appropriate|tolerated)"
    r"|(?:a )?(?:violations?|breach(?:es)?) of (?:this|the|our|company|these)[\w ]*(?:policy"
    r"|policies|rules|terms)"
    r"|against (?:our|the|this|company)[\w ]*(?:policy|policies|rules|terms|law)|strictly "
    r"(?:prohibited|forbidden)"
    r"|prohibited uses?|unlawful|illegal|not for)"
)
ALLOWED = (
    r"(?:allowed|permitted|fine|acceptable|ok|okay|permissible|free|welcome|authori[sz]ed"
    r"|entitled|appropriate|"
    r"not (?:prohibited|forbidden|a problem)|in scope)"
)
AGENT = re.compile(
    r"^(?:you|we|it|they|he|she|i|(?:the |an? |our |this |all |any |every |no )?[\w' "
    r"-]*\b(?:assistants?|agents?|models?|bots?|chatbots?|systems?"
    r"|staff|employees?|users?|customers?|workers?|advisers?|advisors?|members?|personnel"
    r"|contractors?|people|clinicians?|doctors?"
    r"|nurses?|lawyers?|attorneys?|associates?|ai|llm|claude|chatgpt|gemini|copilot|tools?"
    r"|services?|students?|teachers?|teams?"
    r"|individuals?|persons?|operators?|developers?|landlords?|sellers?|buyers?|preparers?"
    r"|providers?|physicians?|pharmacists?"
    r"|representatives?|managers?|officers?|vendors?|partners?|partys?|parties|customer"
    r"|deployers?|licensees?|bankers?|traders?|pilots?))$",
    re.IGNORECASE,
)
DEFINE = re.compile(
    r"(?:(?:for (?:the )?purposes? of|in|under) this [\w ]+, )?(?:the (?:term|word|phrase"
    r"|expression)s? )?"
    r"(?P<term>[\"'“‘]?[\w][\w /()-]{0,60}?[\"'”’]?) (?:means?|refers? to|shall mean|is defined "
    r"as|are defined as|denotes?"
    r"|is understood (?:as|to mean)|stands for|shall include|is (?:any|a|an|the) [\w ,-]*?(?:that"
    r"|which|who|identif|about|from|relating)) ?(?P<rest>.+)",
    re.IGNORECASE,
)
DOUBLE = re.compile(
    rf"(?:{SUBJECT})??{NOT} {ADVERBS}(?:fail|forget|neglect|omit|hesitate) to (?P<rest>.+)",
    re.IGNORECASE,
)
IS_FORBIDDEN = re.compile(
    rf" (?:is|are|remains?|shall be|must be|will be|should be|be|constitutes?"
    rf"|counts? as|is considered|are considered) "
    rf"{ADVERBS}(?P<word>{FORBIDDEN})(?P<rest>\b.*)",
    re.IGNORECASE,
)
WILL_NOT_BE = re.compile(
    r"(?P<subject>.+?) (?:will|shall|must|should|may|can) (?:not|never) be (?:allowed|permitted"
    r"|tolerated|accepted)(?P<rest>\b.*)",
    re.IGNORECASE,
)
MODAL = re.compile(rf"(?:{SUBJECT})??(?P<not>{NOT}) {ADVERBS}(?P<rest>.+)", re.IGNORECASE)
NO_ONE = re.compile(
    r"(?:no ?one|nobody|no [\w -]+?|none of [\w ]+?|neither .+? nor .+?|nothing) (?:(?:may|must"
    r"|shall|should|can|will|could)(?: ever)?"
    r"|(?:is|are) (?:allowed |permitted |authori[sz]ed )?to) (?P<rest>.+)",
    re.IGNORECASE,
)
NO = re.compile(
    r"(?:there (?:must|shall|should|may|will|can) be |absolutely |have )?no (?P<rest>.+)",
    re.IGNORECASE,
)
UNDER_NO = re.compile(
    r"(?:under no (?:circumstances?|conditions?)|in no (?:event|case|circumstances?|way)|at no "
    r"(?:time|point)|on no account"
    r"|by no means|never ever|not under any circumstances?),? (?P<rest>.+)",
    re.IGNORECASE,
)
REFUSE = re.compile(
    rf"(?:{SUBJECT})??(?:(?:must|shall|should|will|to|please|always|politely|firmly|immediately"
    rf"|has to|needs to) )*"
    r"(?P<verb>refuses?|declines?|rejects?|denies|deny|turns? down|blocks?|withholds?)(?: "
    r"(?:politely|firmly|always|outright),?)? (?P<rest>.+)",
    re.IGNORECASE,
)
REQUESTS = (
    r"(?:to )?(?:(?:all|any|every|each|such|user|users'|the user's|customer)(?: other)? "
    r")*(?:requests?|prompts?|questions?|instructions?|attempts?|orders?"
    r"|demands?|quer(?:y|ies)|inquir(?:y|ies)|tasks?|conversations?)"
)
REFUSED = re.compile(
    rf"(?:{REQUESTS} (?:(?:that |which )?(?:ask(?:s|ing)?|seek(?:s|ing)?|involv(?:es?|ing)"
    rf"|aim(?:s|ed)?|tr(?:y|ies)|attempts?|want(?:s|ing)?"
    r"|intended|designed|require[sd]?|would|relat(?:ed|ing)|call(?:s|ing)?) ?(?:you |it |the "
    r"assistant |the model )?)?"
    r"(?P<how>to|for|about|on|that|which|involving|of|regarding|concerning|at|in|from)? "
    r"?)(?P<rest>.+)",
    re.IGNORECASE,
)
MANNER = re.compile(
    r"(?:politely|briefly|firmly|clearly|calmly|gently|and|in a|in an|with|by|if|when|where"
    r"|whenever|any time|or|it\b|them\b|this\b|before"
    r"|then|immediately|such requests?$|the request$|requests?$|without)\b",
    re.IGNORECASE,
)
AVOID = re.compile(
    rf"(?:{SUBJECT})??(?:(?:must|shall|should|will|to|please|always|strictly|has to|needs to) )*"
    r"(?:avoids?|refrains? from|abstains? from|desists? from|stays? away from|steers? clear of"
    r"|keeps? from|stops? short of|ceases?|stop(?=\s\w+ing\b)"
    r"|keeps? (?:out of|away from)|watch out for) (?:the )?(?P<rest>.+)",
    re.IGNORECASE,
)
IT_IS = re.compile(
    rf"it (?:is|shall be|would be|will be|remains) {ADVERBS}(?:{FORBIDDEN}|wrong|unethical"
    rf"|illegal|unlawful|a crime|inappropriate|dangerous|improper)"
    r"(?: for (?P<who>.+?))? to (?P<rest>.+)",
    re.IGNORECASE,
)
DISALLOW = re.compile(
    r"(?:(?P<subject>(?:[\w'-]+ ){1,8}?)(?:(?:do|does|will|shall|must|can|should|may) (?:not"
    r"|never)|don't|doesn't|won't|never) (?:allow|permit|tolerate|condone)"
    r"|(?:[\w'-]+ ){1,8}?(?:strictly |expressly |explicitly )?(?:prohibits?|forbids?|bans?"
    r"|disallows?|bars?)|(?:(?:users?|you|customers?|they) )?agrees? not to"
    r"|do not (?:allow|permit|tolerate)|don't (?:allow|permit)|zero tolerance for|we have zero "
    r"tolerance for|(?:[\w'-]+ ){1,6}?(?:has|have) no (?:right|authority|permission) to) "
    r"(?P<rest>.+)",
    re.IGNORECASE,
)
ONLY_MODAL = re.compile(
    rf"{SUBJECT}(?P<modal>may|can|could|should|must|shall|is|are|will)(?: be)? only (?P<rest>.+)",
    re.IGNORECASE,
)
ONLY_WHO = re.compile(
    r"only (?P<who>.+?) (?:may|can|are allowed to|is allowed to|are permitted to|is permitted to"
    r"|shall|should|must|will|have the right to) (?P<rest>.+)",
    re.IGNORECASE,
)
ONLY = re.compile(
    r"(?P<main>.+?),? (?:(?P<tight>only (?:if|when|where|after|once|in case|upon|as long as))"
    r"|only (?P<prep>with|to|for|by|in|on|under|through|from|within|during|at)) (?P<limit>.+)",
    re.IGNORECASE,
)
ONLY_FIRST = re.compile(
    r"only (?P<main>.+?) (?P<link>if|when|where|after|once|with|to|for|upon|under|unless) "
    r"(?P<limit>.+)",
    re.IGNORECASE,
)
CONSENT = re.compile(
    r"\b(?:consent|approval|permission|authori[sz]ation|confirmation|supervision|agreement"
    r"|warrant|prescription|licen[cs]e|request)\b",
    re.IGNORECASE,
)
DISCLOSES = frozenset(
    "share disclose give provide send release show discuss reveal access grant transfer hand "
    "pass forward report publish".split()
)
PERMIT = re.compile(
    rf"(?:{SUBJECT})??(?:(?:may|can|could)(?! not\b|not\b)(?: still| always| also| freely| "
    rf"however)*"
    rf"|(?:is|are|remains?) (?:always |also |still |generally )*{ALLOWED} to|(?:is|are) (?:free"
    rf"|welcome) to|has permission to|have permission to"
    rf"|ha(?:s|ve) the right to|(?:is|are) entitled to) (?P<rest>.+)",
    re.IGNORECASE,
)
NOT_NEEDED = re.compile(
    r"(?:[\w'-]+ ){1,6}?(?:(?:do|does|will) not (?:need|have) to|don't (?:need|have) to"
    r"|doesn't (?:need|have) to|need not|(?:is|are) not (?:required|obliged|expected) to) .+",
    re.IGNORECASE,
)
NOT_FORBIDDEN = re.compile(
    r"(?:[\w'-]+ ){1,6}?(?:do|does|will) not (?:\w+ly )?(?:prohibit|forbid|restrict|prevent|ban"
    r"|block) (?P<rest>.+)",
    re.IGNORECASE,
)
MODAL_WORD = re.compile(
    r"\b(?:must|shall|should|may not|can ?not|need|needs|required|has to|have to|is to|are to)\b",
    re.IGNORECASE,
)
DESCRIBE = re.compile(
    r"(?P<subject>(?:each|every|all|an?|the|our|some|many|most|these|those|this) (?:[\w'/-]+ )"
    r"{1,6}?)(?:has|have|contains?|includes?|consists? of|comprises?|belongs? to) .+"
    r"|(?:this|these|the|our) (?:\w+ )?(?:policy|policies|rules|document|guidelines?|section"
    r"|standard|page|principles|guidance|list) (?:and \w+ )?(?:is|are|appl\w+|describes?|covers?"
    r"|sets?|explains?|defines?|outlines?|supplements?|do(?:es)? not (?:apply|replace|cover)"
    r"|may be|can be|will be|has been|have been|was|were)\b.*"
    r"|the (?:goal|purpose|aim|objective|intent|intention|scope|rationale) (?:of|is|behind)\b.*"
    r"|(?:[\w'/-]+ ){1,8}?(?:may|might) not (?:be (?:accurate|complete|correct|available|suitable"
    r"|appropriate|reliable|required|needed|necessary|current|up|true|perfect|aware)|always|reflect"
    r"|work|contain|represent|know|have|understand|meet|suit|apply|fit|match|exist)\b.*"
    r"|(?:any |a )?(?:violations?|breach(?:es)?) of (?:this|these|the|our|any) .+"
    r"|not (?:all|every) .+? (?:will|can|may|do|does|is|are|has|have)\b.*"
    r"|(?:some|many|most) (?:[\w'/-]+ ){1,3}?(?:may|can|might|could|are|will)\b.*",
    re.IGNORECASE,
)
IT_IS_ALLOWED = re.compile(
    rf"(?:it|this) is (?:always |also |still |generally |perfectly )*{ALLOWED}(?: for "
    rf"(?P<who>.+?))? to (?P<rest>.+)|feel free to (?P<free>.+)|we allow (?P<we>.+)",
    re.IGNORECASE,
)
BE_ALLOWED = re.compile(
    rf"(?P<subject>.+?) (?:is|are|remains?|would be) (?:always |also |still |generally "
    rf"|perfectly |expressly )*{ALLOWED}(?P<rest>(?: (?:if|when|in|for|with|as|provided|under"
    rf"|where|unless)\b.*)?)",
    re.IGNORECASE,
)
REQUIRE = re.compile(
    rf"(?:{SUBJECT})??(?:(?:must|shall|should|will|ought to|need to|needs to|has to|have to"
    rf"|always|is to|are to|is required to|are required to"
    r"|is expected to|are expected to|is responsible for|are responsible for|is obliged to|are "
    r"obliged to|agrees? to|aims? to)(?: also| always)?) (?P<rest>.+)",
    re.IGNORECASE,
)
REQUIRED = re.compile(
    r"(?P<subject>.+?) (?:is|are) (?:always )?(?:required|mandatory|obligatory|compulsory"
    r"|essential)\b.*|.+? (?:requires?|needs?) .+",
    re.IGNORECASE,
)
