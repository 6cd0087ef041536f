"""Which language a rule is in, and what kind of rule it is in languages other than English.

Only the kind is read there: an action becomes part of English sentences, so it stays None.
"""

import re

_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("zh", re.compile(r"[\u4e00-\u9fff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("fa", re.compile(r"[\u067e\u0686\u0698\u06af\u06a9\u06cc]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("uk", re.compile(r"[\u0456\u0457\u0454\u0491]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
)
_COMMON = {  # frequent short words; a language needs two more of its own than English has
    "en": "the of and to is are not must never do any or for with that you may should without be "
    "a an in on at by as no"
    " from it its has have who if when this their user users help another anyone only unless",
    "de": "der die das und nicht ist sind ein eine keine keinen für mit von zu den dem des im "
    "oder wenn"
    " darf dürfen muss müssen niemals nie bei auf werden wird nur ohne sie immer nach an als "
    "verboten",
    "fr": "le la les des et est sont une un du pour avec ne pas que qui dans sur ou au aux "
    "jamais doit"
    " doivent sans toujours interdit il ce cette vous être peut aucun",
    "es": "el la los las y es son una un del para con no que en se por nunca debe deben sin "
    "siempre o al"
    " prohibido está puede ser cualquier como su",
    "it": "il lo la gli le e è sono una un del della per con non che in si mai deve devono senza "
    "sempre o"
    " vietato può essere di alla nel",
    "pt": "o a os as e é são uma um do da para com não que em se nunca deve devem sem sempre ou "
    "proibido"
    " pode ser ao na no",
    "nl": "de het een en is zijn niet voor met van te op of nooit moet moeten zonder altijd geen "
    "wordt"
    " worden verboden mag mogen aan bij",
    "sv": "och är inte för med av att som på eller aldrig ska får måste utan alltid inga ingen "
    "det den en"
    " ett till",
    "pl": "i nie jest są dla z na do że się lub nigdy musi należy bez zawsze w o wolno",
}
_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}
_NAMES = {
    "ar": "Arabic", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fa": "Persi"
                                                                                           "an",
    "fr": "French", "he": "Hebrew", "hi": "Hindi", "it": "Italian", "ja": "Japanese", "ko": "Kore"
                                                                                            "an",
    "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sv": "Swedish", "th": "T"
                                                                                               "h"
                                                                                               "a"
                                                                                               "i",
    "uk": "Ukrainian", "zh": "Chinese",
}  # fmt: skip

# By language: prohibit, permit, condition (a leading one), require. The first match wins.
_KINDS: dict[str, tuple[tuple[str, str], ...]] = {
    "de": (
        ("prohibit", r"\b(?:niemals|nie|keinesfalls|unter keinen umständen|verboten|untersagt"
                     r"|unzulässig|nicht (?:gestattet|erlaubt|zulässig))\b"
         r"|\b(?:darf|dürfen|soll|sollen|kann|können|wird|werden)\b.*\b(?:nicht|kein\w*"
         r"|niemand\w*)\b|^(?:keine?[nrms]?|nicht)\b|\bniemand\w*\b|\bvermeiden?\b"
         r"|\bunterlassen?\b"
         r"|\b(?:geben|nennen|helfen|verraten|teilen|veröffentlichen|senden|verwenden|erstellen"
         r"|machen|schreiben)\s+sie\b.*\b(?:nicht|kein\w*|niemand\w*)\b|\blehnen? .*\bab\b"
         r"|\bverweiger\w*"),
        ("permit", r"\b(?:darf|dürfen|kann|können)\b|\b(?:erlaubt|gestattet|zulässig)\b"),
        ("define", r"\b(?:bedeutet|bezeichnet|sind alle|ist jede[rs]?)\b"),
        ("condition", r"^(?:wenn|falls|sofern|sobald|bei)\b.*,|^(?:ist|sind|wird|hat|fragt|bittet"
                      r"|verlangt)\b.*,"),
    ),
    "fr": (
        ("prohibit", r"\b(?:jamais|interdit\w*|défense de|aucun\w*|en aucun cas|proscrit\w*)\b"
                     r"|\bne\b.*\b(?:pas|jamais|point)\b|\bn'\w+ .*\bpas\b|\brefuse[rz]?\b"
                     r"|\bévite[rz]?\b"),
        ("permit", r"\b(?:peut|peuvent|pouvez|autorisé\w*|permis\w*)\b"),
        ("define", r"\b(?:désigne|signifie)\w*\b"),
        ("condition", r"^(?:si|lorsque?|quand|en cas)\b.*,|^s'il\b.*,"),
    ),
    "es": (
        ("prohibit", r"\b(?:nunca|jamás|prohíb\w+|prohib\w+|ningún|ninguna|bajo ninguna|en "
                     r"ningún caso)\b|^no\b|\bno (?:se )?(?:debe\w*|puede\w*|permite\w*|está "
                     r"permitido|podrá\w*|ayude\w*)\b|\bevit[ae]\w*\b|\brechaz\w+\b"),
        ("permit", r"\b(?:puede\w*|podrá\w*|permitid[oa]s?|autorizad[oa]s?)\b"),
        ("define", r"\b(?:significa|se entiende por|se refiere a)\b"),
        ("condition", r"^(?:si|cuando|en caso de)\b.*,"),
    ),
    "it": (
        ("prohibit", r"\b(?:mai|vietat\w+|proibit\w+|in nessun caso|nessun\w*)\b|^non\b|\bnon "
                     r"(?:deve|devono|può|possono|è consentito|si deve|si può)\b|\bevita\w*\b"
                     r"|\brifiuta\w*\b"),
        ("permit", r"\b(?:può|possono|consentit\w+|permess\w+)\b"),
        ("condition", r"^(?:se|quando|qualora|in caso)\b.*,"),
    ),
    "pt": (
        ("prohibit", r"\b(?:nunca|jamais|proibid\w+|vedad\w+|em nenhum caso|nenhum\w*)\b|^não\b"
                     r"|\bnão (?:deve\w*|pode\w*|é permitido)\b|\bevit[ae]\w*\b|\brecus\w+\b"),
        ("permit", r"\b(?:pode\w*|permitid\w+|autorizad\w+)\b"),
        ("condition", r"^(?:se|quando|em caso)\b.*,"),
    ),
    "nl": (
        ("prohibit", r"\b(?:nooit|verboden|niet toegestaan|in geen geval|onder geen)\b|\b(?:mag"
                     r"|mogen|moet|kunnen|kan|zal)\b.*\b(?:niet|geen|nooit)\b|^(?:geen|niet)\b"
                     r"|\bvermijd\w*\b|\bweiger\w*\b"),
        ("permit", r"\b(?:mag|mogen|toegestaan)\b"),
        ("condition", r"^(?:als|wanneer|indien)\b.*,"),
    ),
    "sv": (
        ("prohibit", r"\b(?:aldrig|förbjud\w+|inte tillåt\w+|under inga)\b|\b(?:får|ska|bör"
                     r"|kan)\b.*\b(?:inte|ej|inga)\b|\bundvik\w*\b|\bvägra\w*\b"),
        ("permit", r"\b(?:får|tillåt\w+)\b"),
        ("condition", r"^(?:om|när)\b.*,"),
    ),
    "pl": (
        ("prohibit", r"\b(?:nigdy|zabrania|zabronion\w+|zakaz\w*|nie wolno|nie może|nie należy"
                     r"|nie można)\b|^nie\b"),
        ("permit", r"\b(?:można|może|wolno|dozwolon\w+)\b"),
        ("condition", r"^(?:jeśli|jeżeli|gdy)\b.*,"),
    ),
    "zh": (
        ("prohibit", r"不得|禁止|严禁|嚴禁|不要|不可以?|切勿|不能|不应|不應|不允许"
                     r"|不允許|不准|勿|绝不|絕不|拒绝|拒絕|避免|请勿"),
        ("define", r"是指|指的是|系指"),
        ("condition", r"^(?:如果|如|若|当|當|在).*(?:时|時|的情况下|，|,)"),
        ("permit", r"可以|允许|允許|可(?=[^能])"),
    ),
    "ja": (
        ("prohibit", r"禁止|してはならない|してはいけ|しないで|いけません|なりません"
                     r"|ないこと|避け|拒否|決して"),
        ("permit", r"してもよい|できます|許可"),
        ("condition", r"(?:場合|とき|たら|れば)[はに、]"),
    ),
    "ko": (
        ("prohibit", r"금지|하지 ?마|해서는 안|안 ?됩니다|않아야|말아야|절대"),
        ("permit", r"해도 됩니다|허용|수 있습니다"),
        ("condition", r"(?:경우|때)[에는,]"),
    ),
    "fa": (
        ("prohibit", r"نباید|ممنوع|هرگز|مجاز نیست|مجاز نمی|خودداری|نکنید|ندهید|نکند|ندهد|هیچ ?گاه"
                     r"|پرهیز|اجتناب"),
        ("condition", r"^(?:اگر|در صورتی|هنگامی|چنانچه|وقتی)"),
        ("permit", r"می ?[\u200c ]?توان|مجاز است|مجاز به"),
    ),
    "ar": (
        ("prohibit", r"لا يجوز|يحظر|يُحظر|ممنوع|محظور|لا ت|لا ي(?:جب|سمح|نبغي)|يمنع|يُمنع|أبد"),
        ("condition", r"^(?:إذا|عند|في حال)"),
        ("permit", r"يجوز|يمكن|مسموح"),
    ),
    "ru": (
        ("prohibit", r"\b(?:никогда|запрещ\w+|нельзя|недопустим\w+|ни в коем случае|избега\w+"
                     r"|отказыва\w+)\b|^не\b|\bне (?:должн\w+|следует|разреш\w+|допуска\w+|может"
                     r"|могут|вправе)\b"),
        ("condition", r"^(?:если|когда|в случае)\b"),
        ("permit", r"\b(?:можно|разреш\w+|допуска\w+|может|могут|вправе)\b"),
    ),
    "uk": (
        ("prohibit", r"\b(?:ніколи|заборон\w+|не можна|не дозволя\w+)\b|^не\b|\bне (?:повин\w+"
                     r"|слід|може)\b"),
        ("condition", r"^(?:якщо|коли)\b"),
        ("permit", r"\b(?:можна|дозволя\w+|може)\b"),
    ),
    "hi": (
        ("prohibit", r"कभी नहीं|निषिद्ध|वर्जित|मना है|न करें|नहीं करना|मत |अनुमति नहीं|नहीं (?:कर"
                     r"|दे|बता)"),
        ("permit", r"सकते हैं|अनुमति है"),
        ("condition", r"^(?:यदि|अगर|जब)"),
    ),
}  # fmt: skip


def language_of(text: str) -> str:
    """The ISO 639-1 code of a text's language; "en" where nothing tells otherwise."""
    letters = re.findall(r"[^\W\d_]", text)
    foreign = [c for c in letters if ord(c) > 0x2FF]
    if letters and 2 * len(foreign) > len(letters):
        return next((code for code, script in _SCRIPTS if script.search(text)), "und")
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower())
    counts = {language: sum(x in known for x in words) for language, known in _WORDS.items()}
    counts["de"] += 2 * bool(re.search(r"[äöüß]", text.lower()) and counts["de"])
    best = max(counts, key=lambda language: counts[language])
    return best if counts[best] >= max(counts["en"] + 2, 2) else "en"


def language_name(code: str) -> str:
    return _NAMES.get(code, "an unknown language" if code == "und" else code)


def foreign_kind(text: str, language: str) -> tuple[str, bool] | None:
    """The kind of a rule in another language and whether it forbids; None where nothing tells."""
    found = [
        kind
        for kind, pattern in _KINDS.get(language, ())
        if re.search(pattern, text.strip().lower())
    ]
    if not found:
        return None
    if "condition" in found and "define" not in found:
        return "condition", "prohibit" in found
    return found[0], found[0] == "prohibit"
