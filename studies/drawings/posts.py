"""The drawings of all sources as posts: an SVG with keywords and a caption."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from studies.drawings.fetch import read_json
from studies.drawings.keywords import EmojiNames, name_emoji, read_clip_art
from studies.drawings.sources import (
    CLIP_ART,
    CLIP_ART_LICENSE,
    PUBLIC_DOMAIN,
    EmojiSource,
)
from studies.drawings.split import Split, choose_split

DEFAULT_SIDE = 16  # of an icon whose set states none, as in Iconify's format


class Drawing(NamedTuple):
    """A drawing and what people wrote about it.

    Attributes:
        id: unique, made of the source and the name in it.
        split: the set that it belongs to.
        svg: text of the SVG, or the path of its file.
        hashtags: its keywords.
        caption: the emoji's name, or the title and description of the clip art.
        source: name of the source.
        artist: who drew it.
        license: SPDX identifier, or "public domain".
        emoji: its character; None for clip art.
    """

    id: str
    split: Split
    svg: str | Path
    hashtags: list[str]
    caption: str
    source: str
    artist: str
    license: str
    emoji: str | None = None

    @property
    def row(self) -> dict[str, Any]:
        """The line of posts.jsonl, with the path of the image relative to its folder."""
        row = {"id": self.id, "path": f"images/{self.source}/{self.id}.png", **self._asdict()}
        del row["svg"], row["split"]
        return row


def list_emoji(
    packages: Mapping[EmojiSource, Path], keywords: Path, left_out: Counter[str]
) -> Iterator[Drawing]:
    """Yield one drawing of each artist for each emoji that has keywords.

    Variants by skin tone have no keywords and are left out, as are further icons of one emoji.

    Args:
        packages: the file of each source's package.
        keywords: the file of emojilib's package.
        left_out: counts what is left out.
    """
    table: dict[str, list[str]] = read_json(keywords, "dist/emoji-en-US.json")
    names = EmojiNames(table)
    charts = {source: read_json(path, "chars.json") for source, path in packages.items()}
    names.add_charts(charts.values())
    for source, path in packages.items():
        codes_of: dict[str, list[str]] = {}
        for codes, name in charts[source].items():
            codes_of.setdefault(name, []).append(codes)
        drawn = set[str]()
        icons = read_json(path, "icons.json")
        for name, icon in icons["icons"].items():
            by_codes = (names.find_codes(codes) for codes in codes_of.get(name, ()))
            emoji = next(filter(None, by_codes), None) or names.find_name(name)
            if emoji is None:
                left_out[f"{source.name}: skin tones, and icons that are no emoji"] += 1
            elif emoji in drawn:
                left_out[f"{source.name}: further icons of an emoji"] += 1
            else:
                drawn.add(emoji)
                words = table[emoji]
                yield Drawing(
                    f"{source.name}-{name}",
                    choose_split(source.name, source.family, emoji),
                    write_svg(icon, icons),
                    [word.replace("_", " ") for word in words],
                    name_emoji(words),
                    source.name,
                    source.artist,
                    source.license,
                    emoji,
                )


def write_svg(icon: Mapping[str, Any], icons: Mapping[str, Any]) -> str:
    """Return the SVG of an icon in Iconify's format.

    Args:
        icon: its "body", and what differs from the defaults of its set.
        icons: the set.
    """
    left, top, width, height = (
        icon.get(name, icons.get(name, default))
        for name, default in (
            ("left", 0),
            ("top", 0),
            ("width", DEFAULT_SIDE),
            ("height", DEFAULT_SIDE),
        )
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">'
        f"{icon['body']}</svg>"
    )


def list_clip_art(folder: Path, left_out: Counter[str]) -> Iterator[Drawing]:
    """Yield the clip art of a folder, sorted by path.

    Args:
        folder: the folder of the package.
        left_out: counts what is left out.
    """
    ids = set[str]()
    for path in sorted(folder.rglob("*.svg")):
        if path.is_symlink():  # the same drawing under another heading
            left_out[f"{CLIP_ART}: links to another file"] += 1
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        info = read_clip_art(path)
        if info is None:
            left_out[f"{CLIP_ART}: not well-formed"] += 1
        elif info.license not in PUBLIC_DOMAIN:
            left_out[f"{CLIP_ART}: not in the public domain"] += 1
        elif not info.keywords and not info.caption:
            left_out[f"{CLIP_ART}: without keywords and title"] += 1
        else:
            identifier = f"{CLIP_ART}-{re.sub(r'[^A-Za-z0-9_.]+', '-', name)}"
            while identifier in ids:
                identifier += "-"
            ids.add(identifier)
            yield Drawing(
                identifier,
                choose_split(CLIP_ART, CLIP_ART, name),
                path,
                info.keywords,
                info.caption,
                CLIP_ART,
                info.artist or "unknown",
                CLIP_ART_LICENSE,
            )
