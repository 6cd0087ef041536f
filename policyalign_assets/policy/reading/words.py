"""English words: which are verbs, and the base form behind "revealing", "revealed", "reveals".

The dictionary is LemmInflect's (a table of English inflections); what it lacks or gets wrong for
policy text stands here.
"""

import re
from functools import cache

# Words that the dictionary also lists as verbs, but that begin a noun phrase in policy text.
_NOUNS = frozenset(
    "people crew content weapon gun drug malware fraud media text image speech sex porn staff spam"
    " client patient minor user customer data information material matter purpose case harm crime"
    " legal medical financial personal private sexual political high low illegal key individual"
    " email document privacy security member party person weather water food time money"
    " other such any all no some each every this that these those in on at for to of with by as"
    " hate suicide murder terror torture violence racial child children adult health salary".split()
)
_VERBS = frozenset(
    "phish doxx dox jailbreak geolocate deepfake defame deanonymise deanonymize anonymise"
    " backdate sext catfish hotlink offboard onboard email google".split()
)
_NOT_GERUNDS = frozenset(
    "thing something anything nothing everything during morning evening king string bring spring"
    " ring wing sing swing sting including regarding concerning according following pending being"
    " ceiling sibling darling wedding".split()
)
_NOT_COORDINATED = frozenset(
    "misleading existing remaining following upcoming outstanding underlying competing conflicting"
    " incoming outgoing ongoing pending opposing threatening harassing demeaning degrading"
    " disparaging life-threatening distressing sensitive alarming leading binding building"
    " lodging housing clothing banking".split()
)
_BASES = {
    "lying": "lie",
    "dying": "die",
    "doxxing": "doxx",
    "doxing": "dox",
    "phishing": "phish",
    "being": "be",
    "been": "be",
    "is": "be",
    "are": "be",
    "has": "have",
    "does": "do",
    "goes": "go",
    "found": "find",
    "left": "leave",
    "lent": "lend",
    "bound": "bind",
    "felt": "feel",
    "ground": "grind",
    "wound": "wind",
    "saw": "see",
    "crew": "crew",
    "tampering": "tamper",
    "targeting": "target",
    "targeted": "target",
}
DETERMINERS = frozenset(
    "a an the any some all every each no this that these those our their your his her its my"
    " another one's someone's anyone's other others such both either".split()
)
PRONOUNS = frozenset("it them him her us you me themselves itself himself yourself".split())
PREPOSITIONS = frozenset(
    "of for to that which in on with about from against by who whose whom into onto over under"
    " involving intended designed containing based depicting without within between among around"
    " through via at as towards toward relating related targeting aimed promoting per upon".split()
)
CONJUNCTIONS = frozenset("and or nor and/or".split())


@cache
def lemmas(word: str) -> dict[str, tuple[str, ...]]:
    """The dictionary's entries for a word, {"NOUN": ("report",), "VERB": ("report",)}."""
    # Imported late: it loads NumPy, which reading the list of policies does not need.
    from lemminflect import getAllLemmas

    found: dict[str, tuple[str, ...]] = getAllLemmas(word)
    return found


def is_base_verb(word: str) -> bool:
    """Whether the word can be a verb in its base form ("report", not "reports")."""
    word = word.lower()
    if word in _VERBS or word == "be":
        return True
    if "-" in word:  # "hot-wire", "force-push"
        return is_base_verb(word.rpartition("-")[2])
    return word not in _NOUNS and word in lemmas(word).get("VERB", ())


def is_noun(word: str) -> bool:
    word = word.lower()
    return word in _NOUNS or "NOUN" in lemmas(word) or (not lemmas(word) and word.endswith("s"))


def is_plural(word: str) -> bool:
    word = word.lower()
    return any(n != word for n in lemmas(word).get("NOUN", ()))


def is_gerund(word: str) -> bool:
    word = word.lower()
    return (
        len(word) > 4
        and word.endswith("ing")
        and word not in _NOT_GERUNDS
        and ("VERB" in lemmas(word) or not lemmas(word))
    )


def is_participle(word: str) -> bool:
    """Whether the word can be a past participle ("shared", "given")."""
    word = word.lower()
    if word in _BASES:
        return word in ("been", "found", "left", "lent", "bound", "felt", "targeted")
    verbs = lemmas(word).get("VERB", ())
    return bool(verbs) and (
        word.endswith(("ed", "en", "n", "t")) or (word not in verbs and not word.endswith("s"))
    )


@cache
def base_form(word: str) -> str:
    """The base form of a verb in any form; the word itself where none is known."""
    from lemminflect import getLemma

    low = word.lower()
    if low in _BASES:
        return _BASES[low]
    if "-" in low:  # "re-identifying": the last part is inflected
        head, _, tail = low.rpartition("-")
        return f"{head}-{base_form(tail)}"
    known = lemmas(low).get("VERB", ())
    if known:
        return str(known[0])
    if low.endswith("s") and not low.endswith("ss"):
        return low
    guessed = getLemma(low, "VERB")
    return str(guessed[0]) if guessed else low


def starts_as_verb(text: str) -> bool:
    """Whether a fragment starts with an imperative ("Share files"), not a noun ("Report cards")."""
    words = re.findall(r"[\w'-]+|[,;:.]", text)
    if not words:
        return False
    first = words[0].lower()
    if first.endswith("ly") and len(words) > 1 and first not in ("supply", "apply", "rely"):
        return starts_as_verb(text.split(None, 1)[1])
    if not is_base_verb(first):
        return False
    if first not in _VERBS and "NOUN" not in lemmas(first):
        return True
    rest = [w.lower() for w in words[1:]]
    if not rest or rest[0] in (".", ";", ":"):
        return len(words) == 1 and first not in _COMMON_NOUNS
    following = rest[0]
    if following in DETERMINERS or following in PRONOUNS:
        return True
    if following in CONJUNCTIONS or following == ",":
        tail = [w for w in rest if w not in CONJUNCTIONS and w != ","]
        return bool(tail) and is_base_verb(tail[0]) and first not in _COMMON_NOUNS
    if following in ("of", "is", "are"):
        return False
    return first not in _COMMON_NOUNS or is_plural(following) or following in ("to", "for", "in")


# Nouns that are verbs too; without an object they are read as nouns.
_COMMON_NOUNS = frozenset(
    "abuse attack exploit research trade access report force threat scam hack stalk bomb trick"
    " bribe tip bet race gender market design release account address name state test control"
    " contact transfer debt ban joke comment view claim dose bias conduct discharge study".split()
)


def verb_list_to_base(text: str) -> str:
    """Turns the verbs at the start into base forms: "altering, forging or selling a permit".

    A later verb counts where an object follows it ("... and selling it").
    """
    words = text.split(" ")
    out, start, after_join, opened = [], True, False, False
    for index, word in enumerate(words):
        bare = word.strip(",.;:()\"'").lower()
        joined = bare in CONJUNCTIONS or (word.endswith(",") and not is_gerund(bare))
        if is_gerund(bare) and (start or (after_join and _takes_object(words, index, opened))):
            out.append(word.lower().replace(bare, base_form(bare), 1))
            opened, start, after_join = True, False, True
            after_join = word.endswith(",")
            continue
        out.append(word)
        if not (start and bare.endswith("ly")):
            start = False
        after_join = joined or word.endswith(",") or (after_join and bare in ("otherwise", "then"))
    return " ".join(out)


def _takes_object(words: list[str], index: int, opened: bool) -> bool:
    """Whether the gerund at `index` is a further verb of the list, not the adjective of a noun."""
    bare = words[index].strip(",.;:").lower()
    if not opened:
        return False
    if index + 1 == len(words):
        return all(is_base_verb(w.strip(",")) or w in CONJUNCTIONS for w in words[:index])
    following = words[index + 1].strip(",.;:").lower()
    if following in DETERMINERS or following in PRONOUNS:
        return True
    return bare not in _NOT_COORDINATED and (
        following in PREPOSITIONS
        or following in CONJUNCTIONS
        or is_gerund(following)
        or words[index].endswith(",")
        or is_plural(following)
        or "ADJ" in lemmas(following)
        or is_noun(following)
    )
