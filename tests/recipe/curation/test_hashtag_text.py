"""Hashtags in a cell of text: the same in Python and in SQL."""

import ibis
import pytest

from swag_models.recipe.curation.hashtag_text import (
    split_text,
    split_text_ibis,
    strip_hashtags,
    strip_hashtags_ibis,
)


@pytest.mark.parametrize(
    ("text", "hashtags"),
    [
        ("C#, F#; c++", ["C#", "F#", "c++"]),
        ("C# .net c++", ["C#", ".net", "c++"]),
        ("['C#', '#F# ', ' .net', '#']", ["C#", "F#", ".net"]),
        ("#dog #cat", ["dog", "cat"]),
        ("##cat;\uff03bear", ["cat", "bear"]),
        ("##", []),
        ("#C#", ["C#"]),
        ("#C#, #F#;#C++", ["C#", "F#", "C++"]),
        ("#C# #A+", ["C#", "A+"]),
        ("#C#\n#dog#cat x", ["dog", "cat"]),
        ("#dog#", ["dog"]),
        ("http://a.b/#C# #C#", ["http://a.b/", "C#", "C#"]),
        ("#&eacute; #C#", ["&eacute;", "C#"]),
    ],
)
def test_hash_signs_are_removed_from_the_start_only(text: str, hashtags: list[str]) -> None:
    assert strip_hashtags(split_text(text) or []) == hashtags
    found = strip_hashtags_ibis(split_text_ibis(ibis.literal(text)))
    assert ibis.duckdb.connect().to_pyarrow(found).as_py() == hashtags
