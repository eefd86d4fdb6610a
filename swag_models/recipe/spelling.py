"""The canonical spelling of hashtags and lemmas."""

import unicodedata


def canonicalise(tag: str) -> str:
    """Normalise a hashtag to the spelling that all its variants share.

    It is NFKC-normalised, case-folded, and without separators, punctuation and invisible
    characters: `brown_bear`, `BrownBear` and `#brownbear` all become `brownbear`.
    """
    if tag.isascii() and tag.isalnum():  # fast path for most hashtags
        return tag.lower()
    # normalised again, because folding and removing characters can leave text that is not
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", tag).casefold())
    return unicodedata.normalize("NFKC", folded.translate(_WORD_CHARACTERS))


def strip_accents(key: str) -> str:
    """A canonical hashtag without accents and emoji."""
    return unicodedata.normalize("NFKD", key).translate(_LETTERS)


class _CharacterFilter(dict[int, int | None]):
    """A table for `str.translate` that keeps characters of some Unicode categories; filled lazily.

    Args:
        categories: the first letters of the categories to keep.
    """

    def __init__(self, *categories: str) -> None:
        self.categories = categories

    def __missing__(self, point: int) -> int | None:
        category = unicodedata.category(chr(point))
        # variation selectors are marks but invisible; skin tones are symbols but change an emoji
        visible = category.startswith(self.categories) and not 0xFE00 <= point <= 0xFE0F
        skin_tone = 0x1F3FB <= point <= 0x1F3FF
        return self.setdefault(point, point if visible or skin_tone else None)


# "So" includes emoji; "Cn" includes characters newer than Python's Unicode tables.
_WORD_CHARACTERS = _CharacterFilter("L", "M", "N", "So", "Cn")
_LETTERS = _CharacterFilter("L", "N")
