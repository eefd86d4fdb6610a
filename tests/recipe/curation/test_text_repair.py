"""Text that was encoded twice is repaired where only one reading is possible, and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swag_models.recipe.curation.curate import curate
from swag_models.recipe.curation.text_repair import is_machine_tag, repair_hashtag

WORDS = (
    "été",
    "größe",
    "ñandú",
    "москва",
    "ελλάδα",
    "العربية",
    "ประเทศไทย",
    "熊",
    "🐻",
    "l\u2019été",
)


def misread(text: str, encoding: str) -> str:
    """UTF-8 that is read as another encoding, in which some bytes are control characters."""
    return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("word", WORDS)
def test_mojibake_is_repaired(word: str, encoding: str) -> None:
    once = misread(word, encoding)
    assert repair_hashtag(once) == (word, "mojibake")
    assert repair_hashtag(f"a{once}") == (f"a{word}", "mojibake")
    if encoding == "latin-1":
        assert repair_hashtag(misread(once, "latin-1")) == (word, "mojibake")
    assert repair_hashtag(word) == (word, None)


@pytest.mark.parametrize(
    ("tag", "text", "kind"),
    [
        ("caf&eacute;", "café", "entity"),
        ("caf&#233;", "café", "entity"),
        ("caf&#xE9;", "café", "entity"),
        ("caf&amp;eacute;", "café", "entity"),
        ("rock &amp; roll", "rock & roll", "entity"),
        ("dog&#039;s", "dog's", "entity"),
        (r"caf\u00e9", "café", "escape"),
        (r"di\xf3cesis", "diócesis", "escape"),
        (r"caf\xc3\xa9", "café", "escape"),
        (r"caf\303\251", "café", "escape"),
        (r"\ud83d\udc3b", "🐻", "escape"),
        (r"\U0001f43b\u{e9}", "🐻é", "escape"),
        ("caf%C3%A9", "café", "escape"),
        ("brown%20bear", "brown bear", "escape"),
        (r"it\'s", "it's", "escape"),
        ("cu00e9ru00e9monie", "cérémonie", "escape"),
        ("wrocu0142aw", "wrocław", "escape"),
        ("u043cu043eu0441u043au0432u0430", "москва", "escape"),
        ("ud83dudc3b", "🐻", "escape"),
        ("caf√©", "café", "mojibake"),
        ("CAFÃ\x89", "CAFÉ", "mojibake"),
    ],
)
def test_other_encodings_are_repaired(tag: str, text: str, kind: str) -> None:
    assert repair_hashtag(tag) == (text, kind)


@pytest.mark.parametrize(
    "tag",
    [
        *(
            "AT&T",
            "rock&roll",
            "&copycat",
            "R&B;",
            "sex&regret",
            "50%off",
            "100%",
            "50%50",
            "100%de",
        ),
        *(
            "menu0142",
            "u2019",
            "blu1000",
            "surface",
            "u571b",
            "u00ea0",
            "gnu0200",
            "u0",
            "U2",
            "cloud",
        ),
        *(
            "KNÍŽKA",
            "CAFÉ™",
            "NESTLÉ®",
            "CAFÉ\u2013BAR",
            "Paris\u2013Évry",
            "AMANHÃ\u2013",
            "ÍŽ",
            "PÍŠEŇ",
            "Ã",
            "são",
        ),
        *(
            "cœur",
            "naïve",
            "Ålesund",
            "smörgåsbord",
            "½",
            "x²",
            "°C",
            "«dog»",
            "√done",
            "žluťoučký",
        ),
        *(r"C:\dog", r"a\b", r"\xe9\x20", r"\ud83d", r"\u0000", r"\101", "&#", "", "%", "\\"),
    ],
)
def test_text_with_another_reading_is_kept(tag: str) -> None:
    assert repair_hashtag(tag) == (tag, None)


def test_machine_tags_have_namespace_predicate_and_value() -> None:
    for tag in ("geo:lat=12.3", "upcoming:event=1", "ns:pred=a=b c", "geo:lat="):
        assert is_machine_tag(tag)
    for tag in ("dog", "a:b", "http://x=1", "a=b:c", "1a:b=c", ":a=b"):
        assert not is_machine_tag(tag)


def test_repaired_hashtags_and_machine_tags_are_counted(wordnet: Path, tmp_path: Path) -> None:
    tags = [
        *("café", "caf&eacute;", r"caf\u00e9", "cafÃ©", "caf&#233;", "caf%C3%A9"),
        *("geo:lat=12.3", "geo:lat=12.3", "geo:lon=4"),
    ]
    rows = [{"id": f"{number}", "hashtags": [tag]} for number, tag in enumerate(tags)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text(
        "\n".join(
            json.dumps({"id": row["id"], "caption": f"#{row['hashtags'][0]}"}) for row in rows[:2]
        )
    )
    facts = curate([tmp_path / "p.parquet"], tmp_path / "out", wordnet=wordnet, progress=False)
    assert (facts["classes"]["kept"], facts["labels"]["images"]) == (1, 6)
    assert facts["hashtags"]["repaired"] == {"entity": [2, 2], "escape": [2, 2], "mojibake": [1, 1]}
    assert facts["hashtags"]["distinct"]["machine tag"] == 2
    assert facts["hashtags"]["uses"]["machine tag"] == 3
    assert facts["hashtags"]["unknown"] == []
    report = (tmp_path / "out" / "report.md").read_text()
    assert "repaired first: 2 with entity (2 uses), 2 with escape (2 uses), 1 with" in report
    facts = curate([tmp_path / "p.jsonl"], tmp_path / "captions", wordnet=wordnet, progress=False)
    assert facts["labels"]["images"] == 2
