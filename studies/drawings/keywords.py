"""What people wrote about the drawings: keywords of emoji, and the metadata of clip art."""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ElementTree  # nosec B405: expat limits the expansion of entities
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
CREATIVE_COMMONS = "{http://web.resource.org/cc/}"
RESOURCE = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}resource"
# The tool that once edited the collection wrote the addresses of Perl's hashes as keywords.
PERL_HASH = re.compile(r"hash|(hash\()?0x[0-9a-f]{6,}\)?", re.IGNORECASE)
VARIATION = "\ufe0f"  # asks for the colourful form of a character; tables write it or not


class ClipArtInfo(NamedTuple):
    """The metadata of a clip art file.

    Attributes:
        keywords: what its author tagged it with.
        caption: title and description.
        artist: its author; "" if unknown.
        license: URL of the licence; "" if the file states none.
    """

    keywords: list[str]
    caption: str
    artist: str
    license: str


class EmojiNames:
    """Finds the emoji of an icon by the icon's name.

    Args:
        keywords: emoji -> its keywords, of which the first is its name: the table of emojilib,
            which has no variants by skin tone.
    """

    def __init__(self, keywords: Mapping[str, list[str]]) -> None:
        self.by_characters = {emoji.replace(VARIATION, ""): emoji for emoji in keywords}
        self._by_name = {
            _flatten(unicodedata.name(characters, "")): emoji
            for characters, emoji in self.by_characters.items()
            if len(characters) == 1
        }
        self._by_name |= {_flatten(words[0]): emoji for emoji, words in keywords.items() if words}
        self._by_name.pop("", None)

    def add_charts(self, charts: Iterable[Mapping[str, str]]) -> None:
        """Learn the names of icons.

        Args:
            charts: code points, such as "1f34e" -> name of the icon, of one package each. The
                first package that has a name wins.
        """
        for chart in charts:
            for codes, name in chart.items():
                if emoji := self.find_codes(codes):
                    self._by_name.setdefault(_flatten(name), emoji)

    def find_codes(self, codes: str) -> str | None:
        """Return the emoji with these code points, such as "1f468-200d-1f33e"."""
        characters = "".join(chr(int(code, 16)) for code in codes.split("-"))
        return self.by_characters.get(characters.replace(VARIATION, ""))

    def find_name(self, name: str) -> str | None:
        """Return the emoji that an icon with this name shows."""
        flat = _flatten(name)
        return self._by_name.get(flat) or self._by_name.get(flat.replace("flagfor", "flag", 1))


def name_emoji(keywords: list[str]) -> str:
    """Return the name of an emoji as text: "red apple"."""
    return keywords[0].replace("_", " ")


def read_clip_art(path: Path) -> ClipArtInfo | None:
    """Read the metadata of an SVG file; None if it is not well-formed.

    Args:
        path: the file.
    """
    try:
        root: Any = ElementTree.parse(path).getroot()  # nosec B314
    except (ElementTree.ParseError, ValueError, LookupError):  # LookupError: an unknown encoding
        return None
    subject = root.find(f".//{DUBLIN_CORE}subject")
    words = [] if subject is None else [_clean(element.text) for element in subject.iter()]
    texts = [_clean(root.findtext(f".//{DUBLIN_CORE}{name}")) for name in ("title", "description")]
    creator = root.find(f".//{DUBLIN_CORE}creator")
    licence = root.find(f".//{CREATIVE_COMMONS}license")
    return ClipArtInfo(
        list(dict.fromkeys(filter(None, words))),
        ". ".join(dict.fromkeys(filter(None, texts))),
        "" if creator is None else _clean("".join(creator.itertext())),
        "" if licence is None else licence.get(RESOURCE, ""),
    )


def _flatten(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _clean(text: str | None) -> str:
    """The text in one line; "" for an address."""
    line = " ".join((text or "").split())
    return "" if PERL_HASH.fullmatch(line) else line
