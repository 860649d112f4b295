"""Captions as text: stable ids, normalised forms, content words, and the phrases that a caption is made of.

The splitter knows the closed classes of English (articles, prepositions, auxiliaries, pronouns), the endings of verbs
and the few dozen verbs that captions use without an ending. It parses nothing: a word that it takes for the wrong
class makes a clumsy phrase, which is still made of words of the caption in their order and so still contains it. What
a caption denies ("without a hat") is no phrase of it: from the denial to punctuation or a "but" all is left out.
"""

import hashlib
import unicodedata

# Its \w has the marks that letters of Hindi, Thai or Arabic carry; to the standard library they are punctuation.
import regex as re


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


ARTICLES = _set("a an the")
# Left out of a phrase where it begins: alone, "her dog" says no more than "dog".
DETERMINERS = ARTICLES | _set("his her its their our my your this that these those another some other")
PREPOSITIONS = _set(
    "in on at by with without of from to into onto over under above below behind beside besides between among near "
    "next through across along around against toward towards during outside inside atop off up down past upon amongst "
    "beneath underneath alongside amid amidst out for about after before like as"
)
AUXILIARIES = _set("is are was were be been being am has have had do does did can will would could may")
BREAKS = AUXILIARIES | _set(
    "and or but while as when where who which whom whose what that there it he she they them him we us i you "
    "each both himself herself itself themselves so then than not also just very too together "
    "because if although though until since"
)
DENIALS = _set("no not never without none nobody nothing nor neither cannot")
COLOURS = _set(
    "black white red blue green yellow orange brown purple pink gray grey tan gold silver beige blond "
    "blonde dark light"
)
BASE_VERBS = _set(
    "run walk stand sit play ride jump wait look watch hold pose smile ski swim dance race climb perform work talk "
    "eat drink wear gather fight chase lie lay lean compete practice prepare sleep throw catch kick pull push carry "
    "leap fly wrestle slide skate surf stare laugh cook read sing march cross cheer enjoy take try go get make help "
    "fall hike bike paddle raft point reach crouch dig bite travel lead relax rest cut use"
)
# Past forms that no ending betrays.
PAST_VERBS = _set(
    "held worn made seen shown taken thrown fallen sat stood ran rode ate drank caught built led laid lit"
)
ING_NOUNS = _set(
    "building ceiling string ring king morning evening clothing railing wedding thing something nothing anything "
    "everything swing wing spring sling painting crossing awning lightning sibling earring stocking icing siding "
    "wedding offspring bring"
)
ED_NOT_VERBS = _set("red bed shed sled weed seed speed feed breed hundred naked wicked sacred")
IRREGULAR_PLURALS = {"men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot"} | {
    "mice": "mouse", "geese": "goose", "teeth": "tooth", "leaves": "leaf", "wolves": "wolf", "knives": "knife"
}  # fmt: skip
STOP_WORDS = DETERMINERS | PREPOSITIONS | BREAKS | _set("one several many few all")

_TOKEN = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[^\w\s]|_")
_POSSESSIVE = re.compile(r"\s*['’]s\b", re.IGNORECASE)
_SPACE_BEFORE_POSSESSIVE = re.compile(r" (?=['’]s\b)")
_NO_WORD = re.compile(r"[\W_]+")
_VOWELS = frozenset("aeiouy")


def hash_id(text: str) -> int:
    """A stable id of `text` in (0, 2**63), equal in all processes, machines and runs (blake2b; 0 is for padding)."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1


def normalise(text: str) -> str:
    """The canonical form of a phrase: lower case, no punctuation, no articles, single spaces; idempotent.

    Of a text that has nothing else (such as "..." or "The") the punctuation or the article stays, so that only an
    empty text gives "".
    """
    folded = " ".join(_fold(text).split())
    bare = _NO_WORD.sub(" ", _POSSESSIVE.sub(" ", folded)).split()
    return " ".join([word for word in bare if word not in ARTICLES] or bare) or folded


def words(text: str) -> list[str]:
    """The content words of `text` in order, cut to stems, so that "riding bikes" and "rides a bike" have the same.

    Stems are for comparison, not for reading ("riding" gives "rid"). A text of stop words alone gives those.
    """
    tokens = normalise(text).split()
    return [_stem(token) for token in ([token for token in tokens if token not in STOP_WORDS] or tokens)]


def split_phrases(caption: str) -> list[str]:
    """The phrases of an English caption, in order, each once: what the caption says in part.

    Noun phrases with their adjectives ("a blue shirt", "a group of people"), a noun phrase with the preposition phrase
    after it ("a man in a blue shirt"), verbs with their object or preposition ("cleaning a window", "standing on a
    ladder"), and preposition phrases that stand alone ("in the park"). Tokenised captions ("a window .") are welcome.

    Returns:
        At least one phrase for a caption that is not blank (the caption itself where no part is found), else [].
    """
    phrases: dict[str, str] = {}
    for clause in _clauses(_tokens(caption)):
        for phrase in _clause_phrases(_chunks(clause)):
            phrases.setdefault(normalise(phrase), phrase)
    whole = caption.strip()
    return list(phrases.values()) or ([whole] if whole else [])


def _fold(text: str) -> str:
    # Folding may leave characters that NFKC composes anew, and composing may leave some to fold: to a fixed point.
    while (folded := unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())) != text:
        text = folded
    return text


def _tokens(caption: str) -> list[str]:
    return _TOKEN.findall(_SPACE_BEFORE_POSSESSIVE.sub("", " ".join(caption.split())))


def _stem(word: str) -> str:
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    stem = word
    if len(stem) > 3 and stem.endswith("s") and not stem.endswith(("ss", "us", "is")):
        stem = stem[:-3] + "y" if stem.endswith("ies") and len(stem) > 4 else stem[:-1]
        if stem.endswith(("she", "che", "xe", "sse", "zze")):
            stem = stem[:-1]
    for ending in ("ing", "ed"):
        base = stem.removesuffix(ending)
        if base != stem and len(base) > 2 and not _VOWELS.isdisjoint(base):
            stem = base[:-1] if base[-1] == base[-2] and base[-1] not in "lsz" else base
            break
    return stem[:-1] if len(stem) > 3 and stem.endswith("e") else stem


def _clauses(tokens: list[str]) -> list[list[str]]:
    """Cuts at punctuation and at words that belong to no phrase; "black and white" stays whole."""
    clauses: list[list[str]] = [[]]
    denied = False
    for i, token in enumerate(tokens):
        word = token.lower().removesuffix("'s")
        if word in DENIALS or word.endswith(("n't", "n’t")):
            denied = True
            clauses.append([])
            continue
        if denied and token[0].isalnum() and word != "but":
            continue
        denied = False
        pair = {tokens[i - 1].lower(), tokens[i + 1].lower()} if 0 < i < len(tokens) - 1 else {""}
        is_break = (word in BREAKS and (word not in DETERMINERS or word != token.lower())) or not token[0].isalnum()
        if is_break and not (word == "and" and pair <= COLOURS):
            clauses.append([])
        else:
            clauses[-1].append(token)
    return [clause for clause in clauses if clause]


def _chunks(clause: list[str]) -> list[tuple[str, list[str]]]:
    """(kind, words) in order: kind is "noun", "verb" or "preposition"; `of` stays inside its noun phrase."""
    chunks: list[tuple[str, list[str]]] = []
    for i, token in enumerate(clause):
        word = token.lower()
        kind, current = chunks[-1] if chunks else ("", [])
        following = clause[i + 1].lower() if i + 1 < len(clause) else ""
        if word == "of" and kind == "noun" and following:
            current.append(token)
        elif word in PREPOSITIONS:
            if kind == "preposition":
                current.append(token)
            else:
                chunks.append(("preposition", [token]))
        elif kind == "preposition" and word in ("front", "top") and following == "of":
            current.append(token)
        elif kind == "preposition" and current == ["to"] and word in BASE_VERBS:
            chunks[-1] = ("verb", [token])
        elif _is_verb(word, current if kind == "noun" else [], following):
            chunks.append(("verb", [token]))
        elif word in DETERMINERS and kind == "noun" and current[-1].lower() not in DETERMINERS | {"of"}:
            chunks.append(("noun", [token]))
        elif kind == "noun":
            current.append(token)
        else:
            chunks.append(("noun", [token]))
    return chunks


def _is_verb(word: str, noun: list[str], following: str) -> bool:
    """Whether `word` starts a verb, after the words of the noun phrase so far (empty where none is open)."""
    last = noun[-1].lower() if noun else ""
    base = word.removesuffix("s")
    third_person = base != word and (base in BASE_VERBS or base.removesuffix("e") in BASE_VERBS)
    if third_person and following in PREPOSITIONS | DETERMINERS and last not in DETERMINERS:
        return True  # "jumps into", "plays a", but "the plays of"
    if last in DETERMINERS | COLOURS | {"of"} or (last.endswith("ed") and last not in ED_NOT_VERBS):
        return False  # "a running dog", "a filled shopping cart"
    if word.endswith("ing") and len(word) > 4 and word not in ING_NOUNS:
        return True
    if word in PAST_VERBS or (word.endswith("ed") and word not in ED_NOT_VERBS and len(word) > 3):
        return following in PREPOSITIONS  # "dressed in black", but "a striped shirt"
    if not noun:
        return False
    if word in BASE_VERBS:
        # "two dogs run", but "a bike race": only a plural takes the bare verb.
        return last in IRREGULAR_PLURALS or (last.endswith("s") and not last.endswith("ss"))
    # "a dog shakes itself": a single thing has no plural for its head.
    single = noun[0].lower() in ("a", "an", "one", "another") and "of" not in (token.lower() for token in noun)
    is_plural = base != word and not word.endswith(("ss", "us", "is"))
    return third_person or (single and len(noun) > 1 and is_plural)


def _clause_phrases(chunks: list[tuple[str, list[str]]]) -> list[str]:
    phrases: list[str] = []
    kinds = [kind for kind, _ in chunks]
    texts = [_text(tokens, kind) for kind, tokens in chunks]
    for i, kind in enumerate(kinds):
        if kind == "noun":
            if texts[i]:
                phrases.append(texts[i])
        elif kind == "verb":
            end = i + 1
            if kinds[end : end + 1] == ["preposition"]:
                end += 1
            if kinds[end : end + 1] == ["noun"]:
                end += 1
            phrases.append(_join(texts[i:end]))
        elif kinds[i + 1 : i + 2] == ["noun"] and kinds[max(i - 1, 0)] != "verb" and texts[i + 1]:
            owned = kinds[max(i - 1, 0) : i] == ["noun"] and not _is_object(kinds, i - 1)
            phrases.append(_join(texts[i - 1 if owned else i : i + 2]))
    return phrases


def _is_object(kinds: list[str], i: int) -> bool:
    """Whether the noun at `i` belongs to a verb or preposition before it: what follows may belong to that instead."""
    return i > 0 and kinds[i - 1] in ("verb", "preposition")


def _text(tokens: list[str], kind: str) -> str:
    """The words of a chunk, without determiners that point outside the phrase; "" where nothing else is left."""
    if kind == "noun":
        while tokens and tokens[0].lower() in DETERMINERS - ARTICLES:
            tokens = tokens[1:]
        if all(token.lower() in STOP_WORDS for token in tokens):
            return ""
    return " ".join(tokens)


def _join(texts: list[str]) -> str:
    return " ".join(text for text in texts if text)
