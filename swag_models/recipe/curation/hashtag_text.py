r"""Split a cell of text into hashtags: in Python for text files, and in Ibis for Parquet.

Both use the same regular expressions and the same order of rules:
  1. a list in brackets, as JSON, Python, NumPy, PostgreSQL or Spark write it: ['dog', "red car"]
  2. text with hashtags: #dog #car
  3. text with separators: dog; red car
  4. text without: dog car
The characters of a hashtag are not changed, except at its ends: `text_repair` decodes escapes and
entities once per distinct hashtag. Entities are only recognised here because ";" and "#" in them
are neither separator nor hashtag.
"""

from __future__ import annotations

import re
from functools import cache
from html.entities import name2codepoint
from typing import TYPE_CHECKING, Any

from swag_models.recipe.hashtags import (
    HASH,
    START,
    SYMBOLS,
    SYMBOLS_END,
    URL,
    compile_pattern,
    extract_hashtags,
    extract_hashtags_ibis,
    find_all_ibis,
)

if TYPE_CHECKING:
    import ibis

# The patterns use only syntax that Python, RE2 (DuckDB) and Java (Spark) share. They have no
# alternatives within repetitions, for which Java needs a stack as deep as the text is long.
SPACE = " \t-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SEPARATORS = ",;|\r\n\u060c\u061b\u3001\uff0c\uff1b\uff5c"  # ASCII, Arabic and full-width
HASHTAG_SPACE = " \t\r\n"  # stripped from both ends of a hashtag
HASHTAG_START = f"{HASH}{HASHTAG_SPACE}"  # stripped from its start only: C#
MISSING = ("", "None", "null", "NULL", "NaN", "nan", "<NA>", "\\N")  # of pandas, SQL and Hive

_NAMES = "|".join(sorted({*name2codepoint, "apos", "AMP", "LT", "GT", "QUOT"}))
# HTML 4's; "&amp;eacute;" was encoded twice
ENTITY = f"&(?:amp;)*(?:#[0-9]{{1,7}}|#[Xx][0-9A-Fa-f]{{1,6}}|{_NAMES});"
PIECE = (  # between two separators
    f"(?:{ENTITY}|[^{SEPARATORS}])[^{SEPARATORS}&]*(?:(?:{ENTITY}|&)[^{SEPARATORS}&]*)*"
)
QUOTED = (  # NumPy 2 writes np.str_('dog')
    r"(?:np\.str_\()?[bu]?"
    r"""(?:"[^"\\]*(?:\\[\s\S][^"\\]*)*"|'[^'\\]*(?:\\[\s\S][^'\\]*)*')\)?"""
)
# Numbers and NumPy's "..." for omitted items are not hashtags.
BARE = rf"""[0-9.+-]*[^{SPACE},"'\[\]()\{{\}}0-9.+-][^,"'\[\]()\{{\}}]*"""
QUOTES = r"""^(?:np\.str_\()?[bu]?["']|["']\)?$"""  # around an item
# NumPy separates items by spaces alone.
_ITEMS = f"(?:{QUOTED}(?:[{SPACE}]+{QUOTED})*[{SPACE}]*|{BARE})"
LIST = (
    rf"^(?:(?:np\.)?array\(|frozenset\()?[\[(\{{][{SPACE}]*"
    rf"((?:{_ITEMS}(?:,[{SPACE}]*{_ITEMS})*)?),?[{SPACE}]*[\])\}}]"
    rf"(?:,[{SPACE}]*dtype=[^()]*)?\)?$"
)
QUOTED_LIST = f"^({QUOTED}(?:[{SPACE}{SEPARATORS}]+{QUOTED})*)$"  # without brackets
LIST_START = r"""^[\[({"'anfbu]"""  # where a list may start; saves time
OPAQUE = f"{URL}|{ENTITY}"  # here "#" starts no hashtag, and ";" separates nothing
OPAQUE_START = "&|://|[Ww]ww[.]"  # saves time
SYMBOLIC = f"[{HASH}]{SYMBOLS}(?:{SYMBOLS_END})"  # "#C#", which becomes "C#"
SYMBOLIC_START = f"[{HASH}]{SYMBOLS}"  # saves time
_START = r"^[\[{]"  # text that starts like this must be a list
# "$" also matches before the last line break: in Java, before any of Unicode's.
_OUTER_SPACE = rf"^[{SPACE}]+|[{SPACE}]+\z"
_MISSING = rf"^[{SPACE}]*(?:{'|'.join(map(re.escape, MISSING))})[{SPACE}]*\z"
_OUTER_EDGES = rf"^[{HASHTAG_START}]+|[{HASHTAG_SPACE}]+\z"
_ITEM = f"({QUOTED}|{BARE})"


def split_text(text: str) -> list[str] | None:
    """Split a cell into hashtags.

    Returns:
        Hashtags, without "#"; None if the cell is empty, or says that its value is missing.

    Raises:
        ValueError: the cell starts like a list and is none.
    """
    text = text.strip()  # SPACE
    if text in MISSING:
        return None
    if _compile(LIST_START).match(text):
        for pattern in (LIST, QUOTED_LIST):
            if found := _compile(pattern).match(text):
                items = _compile(_ITEM).findall(found[1])
                return [_compile(QUOTES).sub("", item) for item in items if item not in MISSING]
        if text[0] in "[{":
            raise ValueError
    if _compile(SYMBOLIC_START).search(text):
        text = compile_pattern(SYMBOLIC).sub(lambda match: f" {match[0][1:]}", text)
    plain = _compile(OPAQUE).sub("", text) if _compile(OPAQUE_START).search(text) else text
    if extract_hashtags(plain):
        return extract_hashtags(text)
    if not _compile(f"[{SEPARATORS}]").search(plain):
        return text.split()
    return _compile(PIECE if "&" in text else f"[^{SEPARATORS}]+").findall(text)


def drop_missing(value: Any) -> Any:
    """A value of a row; None for text that says that it is missing."""
    return None if type(value) is str and value.strip() in MISSING else value


def strip_hashtags(hashtags: list[str]) -> list[str]:
    """Hashtags without "#" at the start and spaces at both ends; empty ones are dropped."""
    stripped = (tag.lstrip(HASHTAG_START).rstrip(HASHTAG_SPACE) for tag in hashtags)
    return [tag for tag in stripped if tag]


def split_text_ibis(text: ibis.Value) -> ibis.Value:
    """`split_text` as an Ibis expression; null for a missing value and for a malformed list."""
    import ibis

    cell = text.re_replace(_OUTER_SPACE, "")
    # no replacement that refers to groups: engines write these in different ways
    pieces = find_all_ibis(cell, f"{SYMBOLIC}|(?s:.)", 0)
    # searched first, because replacing takes much longer and few texts need it
    text = ibis.cases(
        (
            (cell.contains(HASH[0]) | cell.contains(HASH[1])) & cell.re_search(SYMBOLIC_START),
            pieces.map(
                lambda piece: ibis.cases((piece.length() > 1, " " + piece.substr(1)), else_=piece)
            ).join(""),
        ),
        else_=cell,
    )
    plain = ibis.cases(
        (text.re_search(OPAQUE_START), text.re_replace(OPAQUE, "")),
        else_=text,
    )

    def split_list(pattern: str) -> tuple[ibis.Value, ibis.Value]:
        items = find_all_ibis(cell.re_extract(pattern, 1), _ITEM, 1)
        kept = items.filter(lambda item: item.notin(MISSING))
        is_list = cell.re_search(LIST_START) & cell.re_search(pattern)
        return is_list, kept.map(lambda item: item.re_replace(QUOTES, ""))

    return ibis.cases(
        (cell.isin(MISSING), ibis.null("array<string>")),
        split_list(LIST),
        split_list(QUOTED_LIST),
        (cell.re_search(_START), ibis.null("array<string>")),
        (
            plain.re_search(f"[{HASH}]") & plain.re_search(f"[{HASH}]{START}"),
            extract_hashtags_ibis(text),
        ),
        (~plain.re_search(f"[{SEPARATORS}]"), text.re_split(f"[{SPACE}]+")),
        (text.contains("&"), find_all_ibis(text, f"({PIECE})", 1)),
        else_=text.re_split(f"[{SEPARATORS}]+"),
    )


def strip_hashtags_ibis(hashtags: ibis.Value) -> ibis.Value:
    """`strip_hashtags` as an Ibis expression; null items are dropped too."""
    import ibis

    def strip(tag: ibis.Value) -> ibis.Value:
        # searched first, because replacing takes much longer and few hashtags need it
        has_edge = tag.re_search(f"[{HASHTAG_START}]")
        return ibis.cases((has_edge, tag.re_replace(_OUTER_EDGES, "")), else_=tag)

    return hashtags.map(strip).filter(lambda tag: tag != "")


def is_malformed_ibis(text: ibis.Value) -> ibis.Value:
    """Whether `split_text` raises ValueError, as an Ibis expression."""
    text = text.re_replace(_OUTER_SPACE, "")
    return text.re_search(_START) & ~text.re_search(LIST)


def is_missing_ibis(text: ibis.Value) -> ibis.Value:
    """Whether text says that its value is missing, as an Ibis expression."""
    # one search, which ends at the first character of nearly all: replacing takes ten times as long
    return text.re_search(_MISSING)


_compile = cache(re.compile)
