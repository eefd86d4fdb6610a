r"""Repair the text of a hashtag that was encoded twice, where only one reading is possible.

entity     caf&eacute; caf&#233; caf&amp;eacute;       not terminated by ";": unchanged
escape     caf\u00e9 caf\xe9 caf%C3%A9 it\'s           also cu00e9ru00e9monie, whose "\" were lost
mojibake   cafÃ© cafÃƒÂ© caf√©                         UTF-8 that was read as another encoding

This runs once for each distinct hashtag, so that it is the same in all formats and backends.
"""

import html
import re
import unicodedata
from collections.abc import Callable
from functools import partial

from swag_models.recipe.curation.hashtag_text import ENTITY

MAX_ROUNDS = 3  # a text may be encoded several times
MACHINE_TAG = re.compile(r"[A-Za-z][A-Za-z0-9_]*:[A-Za-z][A-Za-z0-9_]*=.*", re.DOTALL)  # of Flickr
HEX = "[0-9A-Fa-f]"
PLAIN = re.compile(r"[^&\\%\x80-\U0010ffff]*")
CODE = re.compile(rf"\\u({HEX}{{4}})|\\U({HEX}{{8}})|\\u\{{({HEX}{{1,6}})\}}")
CODE_RUNS = re.compile(f"(?:{re.sub('[(](?![?])', '(?:', CODE.pattern)})+")
BYTES = re.compile(rf"(?:\\x{HEX}{{2}})+|(?:\\[0-3][0-7]{{2}})+|(?:%{HEX}{{2}})+")
CONTROL = re.compile("[\x80-\x9f]")  # which no language uses
QUOTE = re.compile(r"""\\(["'/\\])""")
# Escapes without "\". Of words with accents: in "menu0142" it may be a number.
LATIN_CODE = re.compile(rf"u(0[0-2]{HEX}{{2}})(?![0-9])(?=([a-z]?))")
OTHER_CODES = re.compile(rf"(?:u{HEX}{{4}}){{2,}}")  # a whole word, or pairs of surrogates

# The byte of each character in Windows' encoding; latin-1 where that has none
_BYTES = {bytes([n]).decode("cp1252", "ignore") or chr(n): n for n in range(0x80, 0x100)}
_WINDOWS = {ord(character): byte for character, byte in _BYTES.items()}
_WINDOWS |= {n: n for n in range(0xA0)}
_CONTINUATION = "".join(map(re.escape, (c for c, byte in _BYTES.items() if byte < 0xC0)))
_LEAD = "".join(c for c, byte in _BYTES.items() if 0xC2 <= byte <= 0xF4)
SUSPECT = re.compile(f"[{_LEAD}\u221a][{_CONTINUATION}\x80-\x9f\u00c4-\u2260]")


def repair_hashtag(tag: str) -> tuple[str, str | None]:
    """Repair a hashtag.

    Returns:
        The text, and the first of `REPAIRS` that was repaired; None if nothing was.
    """
    if PLAIN.fullmatch(tag) and "u0" not in tag and tag[:1] != "u":
        return tag, None
    first = None
    for _ in range(MAX_ROUNDS):
        for kind, repair in REPAIRS.items():
            if (repaired := repair(tag)) != tag:
                tag, first = repaired, first or kind
                break
        else:
            break
    return tag, first


def is_machine_tag(tag: str) -> bool:
    """Whether a hashtag is a machine tag, namespace:predicate=value, such as geo:lat=12.3."""
    return ":" in tag and MACHINE_TAG.fullmatch(tag) is not None


def _decode_entities(text: str) -> str:
    # each alone, since html.unescape also decodes "&copy" at the start of "&copycat"
    return re.sub(ENTITY, lambda entity: html.unescape(entity[0]), text) if "&" in text else text


def _decode_escapes(text: str) -> str:
    if "\\" in text or "%" in text:
        text = CODE_RUNS.sub(_decode_codes, text)
        text = BYTES.sub(_decode_bytes, text)
        text = QUOTE.sub(r"\1", text)
    if OTHER_CODES.fullmatch(text):
        return _decode_word(text)
    found = list(LATIN_CODE.finditer(text))
    # A number needs a letter after it, or another escape in the same word.
    if any(not code[1].isdecimal() or code[2] for code in found):
        text = LATIN_CODE.sub(_decode_latin, text)
    return text


def _decode_codes(run: re.Match[str]) -> str:
    points = [int(code[1] or code[2] or code[3], 16) for code in CODE.finditer(run[0])]
    return _join(points) or run[0]


def _decode_word(text: str) -> str:
    points = [int(code, 16) for code in re.findall(f"u({HEX}{{4}})", text)]
    word = _join(points)
    is_word = all(point >= 0x370 for point in points) and _is_text(word or " ")
    return word if word and is_word else text


def _decode_latin(code: re.Match[str]) -> str:
    character = chr(int(code[1], 16))
    return character if "\xc0" <= character <= "\u024f" and character.isalpha() else code[0]


def _join(points: list[int]) -> str | None:
    """Characters of code points, of which pairs may be surrogates; None if any is invalid."""
    try:
        text = "".join(map(chr, points)).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except ValueError:
        return None
    return text if all(unicodedata.category(c) not in ("Cc", "Cn") for c in text) else None


def _decode_bytes(run: re.Match[str]) -> str:
    base = 8 if run[0][1:2].isdecimal() and run[0][0] == "\\" else 16
    codes = re.findall(rf"\\x({HEX}{{2}})|\\([0-7]{{3}})|%({HEX}{{2}})", run[0])
    data = bytes(int("".join(code), base) for code in codes)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        # Python writes characters of one byte as \xe9
        is_latin = run[0].startswith("\\x") and min(data) >= 0xA0
        return data.decode("latin-1") if is_latin else run[0]
    # "%20" and "%26" are a space and "&"; in "50%50" there may be a number
    if text.isascii() and not (run[0][0] == "%" and set(text) <= set(" !\"#$&'()+,-./:;=?@_")):
        return run[0]
    return text if _is_printable(text) else run[0]


def _decode_mojibake(text: str) -> str:
    repaired = _decode_once(text)
    if repaired != text and CONTROL.search(repaired):  # it was misread twice, or it is no text
        deeper = _decode_mojibake(repaired)
        return text if deeper == repaired else deeper
    return repaired


def _decode_once(text: str) -> str:
    if not SUSPECT.search(text):
        return text
    encode: Callable[[str], bytes] = _encode_windows
    if "\u221a" in text:  # the first byte of accented letters, in the encoding of old Macs
        encode = partial(str.encode, encoding="mac_roman")
    try:
        repaired = encode(text).decode()
    except (UnicodeError, KeyError):
        return text
    characters = [c for c in repaired if not c.isascii()]
    # In capital letters, a dash or sign may follow an accented letter: KNÍŽKA, CAFÉ™
    is_shouted = text.isupper() and re.search("[A-Z]", text) and not CONTROL.search(text)
    # Two bytes of another script than Latin are rather two letters of a Latin one.
    is_certain = len(characters) > 1 or any(not "\xff" < c < "\u0800" for c in characters)
    is_text = all(c <= "\xff" or "\u2000" <= c <= "\u206f" or _is_text(c) for c in characters)
    return repaired if is_certain and is_text and not is_shouted else text


def _encode_windows(text: str) -> bytes:
    return bytes(_WINDOWS[ord(character)] for character in text)


def _is_text(text: str) -> bool:
    """Whether all characters are letters, marks, emoji or joiners."""
    kinds = map(unicodedata.category, text)
    return all(kind[0] in "LM" or kind in ("So", "Cf", "Sk") for kind in kinds)


def _is_printable(text: str) -> bool:
    return all(c.isprintable() or unicodedata.category(c) in ("Cf", "Zs") for c in text)


REPAIRS: dict[str, Callable[[str], str]] = {
    "entity": _decode_entities,
    "escape": _decode_escapes,
    "mojibake": _decode_mojibake,
}
