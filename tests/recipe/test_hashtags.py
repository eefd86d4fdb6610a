"""All backends extract the same hashtags, which are normalised and matched with WordNet nouns."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wordnet_support import needs_wordnet, write_wordnet

from swag_models.errors import ConfigError
from swag_models.recipe.curation.coverage import Coverage, find_coverage
from swag_models.recipe.hashtags import (
    SENSES,
    Match,
    Matcher,
    canonicalise,
    extract_hashtags,
    extract_hashtags_ibis,
    load_imagenet,
    load_stoplist,
    name_class,
)
from swag_models.recipe.wordnet import WordNet

BROWN_BEAR, BEAR, SYRIAN = "n02132136", "n02131653", "n02132466"
CAPTIONS = {
    "": [],
    "no hashtag, # nor ## here #": [],
    "a #bear, #brown_bear!": ["bear", "brown_bear"],
    "#a#b#a": ["a", "b", "a"],
    "text#bear": ["bear"],
    "\uff03\u718a\u3068 #\u304f\u307e": ["\u718a\u3068", "\u304f\u307e"],
    "#caf\u00e9 #cafe\u0301": ["caf\u00e9", "cafe\u0301"],
    "#2019 #100 #\u0661\u0662 #_ #4k #_a": ["4k", "_a"],
    "#1\ufe0f\u20e3 #\ufe0f\u20e3 #\u0301a #\u200da": [],
    "#\U0001f468\u200d\U0001f469\u200d\U0001f467! #\u2764\ufe0f #\U0001f44b\U0001f3fd": [
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u2764\ufe0f",
        "\U0001f44b\U0001f3fd",
    ],
    "#\U0001f1eb\U0001f1f7 #\U0001f3f4\U000e0067\U000e0062\U000e007f": [
        "\U0001f1eb\U0001f1f7",
        "\U0001f3f4\U000e0067\U000e0062\U000e007f",
    ],
    "https://x.org/#no Http://y#no www.z.org/#no awww.#yes": ["yes"],
    "it&#39;s &#x27; &amp;#q &lt;#r": ["q", "r"],
    "#caf&eacute;s, #&Aacute;rbol; #gr&#246;&#xDF;e; #a&amp;b #dog&#39;s #&eacute": [
        *("caf&eacute;s", "&Aacute;rbol", "gr&#246;&#xDF;e", "a", "dog"),
    ],
    "#dog's #rock'n'roll #a.b #c-d #e/f #g\\h #i&j": ["dog", "rock", "a", "c", "e", "g", "i"],
    "#\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 #\u0939\u093f\u0928\u094d\u0926\u0940": [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0939\u093f\u0928\u094d\u0926\u0940",
    ],
    "#\u30b9\u30bf\u30fc\u30fb\u30a6\u30a9\u30fc\u30ba #\u4e2d\u6587#\u65e5": [
        "\u30b9\u30bf\u30fc\u30fb\u30a6\u30a9\u30fc\u30ba",
        "\u4e2d\u6587",
        "\u65e5",
    ],
    "#C# #F#, #C++! #A+ #dog# #C#m #TV# #ab## #d\uff03": ["dog", "C", "m", "TV", "ab"],
    "#x\n#y\r\n#z\t#w\u3000#v\u00a0#u": ["x", "y", "z", "w", "v", "u"],
    "#a\u2022b #c\u2192d #e\u2122 #\u00ae": ["a", "c", "e"],
    "'q' \"#d\" \\#esc %#p": ["d", "esc", "p"],
}
ALPHABET = [
    *"aB1_ #.&;\\'/:h\n\uff03\u00e9\u0301\u200d\ufe0f\u718a\u0663\u30fb",
    *"\U0001f468\U0001f3fd\U0001f1eb",
]
ALPHABET += ["https://", "www.", "&#x2", "&amp;"]


@pytest.fixture(scope="module")
def captions() -> list[str]:
    """The captions above and many random ones."""
    generator = random.Random(0)
    return [*CAPTIONS, *("".join(generator.choices(ALPHABET, k=30)) for _ in range(2000))]


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    return WordNet.load(write_wordnet(tmp_path_factory.mktemp("wordnet")))


@pytest.fixture(scope="module")
def matcher(wordnet: WordNet) -> Matcher:
    return Matcher(wordnet, "first")


@pytest.mark.parametrize("caption", CAPTIONS)
def test_hashtags_of_a_caption(caption: str) -> None:
    assert extract_hashtags(caption) == CAPTIONS[caption]


def check_backend(connection: Any, captions: list[str]) -> None:
    import ibis
    import pyarrow as pa

    table = ibis.memtable(
        pa.table({"number": range(len(captions) + 1), "caption": [*captions, None]})
    ).order_by("number")
    extracted = connection.to_pyarrow(table.select(hashtags=extract_hashtags_ibis(table.caption)))[
        "hashtags"
    ].to_pylist()
    assert extracted == [*map(extract_hashtags, captions), None]


def test_duckdb_extracts_the_same_hashtags_as_python(captions: list[str]) -> None:
    import ibis

    check_backend(ibis.duckdb.connect(), captions)


@pytest.fixture
def spark() -> Iterator[Any]:
    pyspark = pytest.importorskip("pyspark.sql")
    session = (
        pyspark.SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # pyspark warns about pandas and leaves sockets open
def test_spark_extracts_the_same_hashtags_as_python(spark: Any, captions: list[str]) -> None:
    import ibis

    check_backend(ibis.pyspark.connect(spark), captions)


@pytest.mark.parametrize(
    ("tags", "canonical"),
    [
        ("brownbear brown_bear BrownBear BROWN-BEAR brown.bear #brownbear", "brownbear"),
        ("\uff42\uff45\uff41\uff52 BEAR", "bear"),
        ("stra\u00dfe STRASSE Stra\u1e9ee", "strasse"),
        ("caf\u00e9 cafe\u0301 CAF\u00c9", "caf\u00e9"),
        ("\ufb01sh FISH", "fish"),
        ("\u2764 \u2764\ufe0f", "\u2764"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\U0001f469"),
        ("\U0001f44b\U0001f3fd", "\U0001f44b\U0001f3fd"),
        ("... _ \u200d", ""),
    ],
)
def test_spellings_of_a_hashtag_have_one_canonical_form(tags: str, canonical: str) -> None:
    assert {canonicalise(tag) for tag in tags.split()} == {canonical}
    assert canonicalise("brown bear") == "brownbear"


def test_the_canonical_form_is_stable_under_unicode_normalisation() -> None:
    def check(text: str) -> None:
        canonical = canonicalise(text)
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            assert canonicalise(unicodedata.normalize(form, text)) == canonical, ascii(text)
        assert canonicalise(canonical) == canonical, ascii(text)

    points = [point for point in range(0x20000) if not 0xD800 <= point < 0xE000]
    generator = random.Random(0)
    marks = [point for point in points if unicodedata.category(chr(point))[0] == "M"]
    for point in points[:0x3000]:
        check(chr(point))
    for _ in range(20_000):
        check(
            "".join(
                chr(generator.choice(marks if generator.random() < 0.4 else points))
                for _ in range(4)
            )
        )


@pytest.mark.parametrize(
    ("tags", "synset", "how"),
    [
        ("brownbear brown_bear bruin Ursus_Arctos ursusarctos", BROWN_BEAR, "lemma"),
        ("BrownBears brown-bears brownbear's bruins", BROWN_BEAR, "inflection"),
        ("birdofprey raptor", "n01604330", "lemma"),
        ("birdsofprey raptors", "n01604330", "inflection"),
        ("mice", "n02330245", "inflection"),
        ("housemice house_mice housemouses", "n02332156", "inflection"),
        ("policemen", "n10448983", "inflection"),
        ("glasses", "n04272054", "lemma"),
        ("caf\u00e9 CAFE caf\u00e9\u2764\ufe0f \u2615cafe", "n02935658", "lemma"),
        ("caf\u00e9s", "n02935658", "inflection"),
        ("istanbul \u0130stanbul ISTANBUL", "n09041785", "lemma"),
    ],
)
def test_a_hashtag_matches_its_synset(tags: str, synset: str, how: str, matcher: Matcher) -> None:
    for tag in tags.split():
        assert matcher.match(tag)[:2] == ((synset,), how), tag


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "_",
        "2019",
        "\U0001f43b",
        "xbear",
        "bearsx",
        "mouseses",
        "s",
        "ss",
        "octopi",
        "bea",
        "\u718a",
    ],
)
def test_other_words_are_unknown(tag: str, matcher: Matcher) -> None:
    assert matcher.match(tag) == Match((), "unknown")


@pytest.mark.parametrize(
    ("lemma", "plural", "other"),
    [
        ("bee", "bees", "beees"),
        ("as", "ases", "ass"),  # words in -ss are not plurals
        ("glass", "glasses", "glassess"),
        ("box", "boxes", "boxen"),
        ("buzz", "buzzes", "buzzies"),
        ("church", "churches", "churchies"),
        ("brush", "brushes", "brushies"),
        ("fireman", "firemen", "firemens"),
        ("lady", "ladies", "ladyes"),
        ("canada_goose", "canadageese", "canadageeses"),
        ("goose_of_fire", "geeseoffire", "goosesoffire"),
        ("lady_of_fire", "ladiesoffire", "ladysoffire"),
        ("day_of_fire", "daysoffire", "daiesoffire"),
        ("fireman_at_sea", "firemenatsea", "firemansatsea"),
        ("box_on_fire", "boxesonfire", "boxsonfire"),
        ("bus_in_fire", "busesinfire", "bussinfire"),
        ("waltz_at_sea", "waltzesatsea", "waltzsatsea"),
        ("church_at_sea", "churchesatsea", "churchsatsea"),
        ("brush_with_fire", "brusheswithfire", "brushswithfire"),
    ],
)
def test_plurals_follow_the_rules(lemma: str, plural: str, other: str) -> None:
    matcher = Matcher(WordNet({}, {lemma: ["n1"]}, {"geese": ["goose"]}), "first")
    key = lemma.replace("_", "")
    assert matcher.match(plural) == Match(("n1",), "inflection", key, ("n1",), "only sense")
    assert matcher.match(other) == Match((), "unknown")


def test_words_of_two_letters_are_not_plurals() -> None:
    assert Matcher(WordNet({}, {"a": ["n1"]}, {})).match("as") == Match((), "unknown")


@pytest.mark.parametrize("policy", SENSES)
def test_a_hashtag_of_several_senses_follows_the_policy(policy: str, wordnet: WordNet) -> None:
    matcher = Matcher(wordnet, policy)
    for tag, lemma, senses, meant in [
        ("banks", "bank", ("n09213565", "n08420278"), "n08420278"),
        ("crane", "crane", ("n03126707", "n02012849"), "n03126707"),
        # the lemma with the spelling of the hashtag comes first
        ("Hot_Dog", "hotdog", ("n07697537", "n10187710"), "n07697537"),
    ]:
        chosen = {"first": senses[:1], "all": senses, "drop": (), "context": (meant,)}[policy]
        assert matcher.match(tag)[:4] == (chosen, "ambiguous", lemma, senses)
    assert matcher.match("bruin").synsets == (BROWN_BEAR,), "synonyms share one sense"


def test_an_invalid_policy_is_rejected(wordnet: WordNet) -> None:
    allowed = "context, first, all, drop"
    with pytest.raises(ConfigError, match=f"invalid senses 'best': allowed: {allowed}"):
        Matcher(wordnet, "best")


def test_stopped_hashtags_and_their_inflections_have_no_class(wordnet: WordNet) -> None:
    matcher = Matcher(wordnet, stop={"bear", "nofilter"})
    assert {
        matcher.match(tag).how for tag in ("bear", "BEARS", "bear\u2764\ufe0f", "#no_filter")
    } == {"stopped"}
    assert matcher.match("brownbear").how == "lemma"


def test_a_class_is_named_by_its_first_lemma(wordnet: WordNet) -> None:
    assert [name_class(wordnet, synset) for synset in (BROWN_BEAR, "n09041785")] == [
        "brownbear",
        "istanbul",
    ]


def test_targets_are_covered_by_the_same_synset_or_the_nearest_below_or_above(
    wordnet: WordNet,
) -> None:
    assert find_coverage(
        wordnet, [BROWN_BEAR], [BROWN_BEAR, BEAR, SYRIAN, "n00015388", "n02330245", "n99999999"]
    ) == [
        Coverage(BROWN_BEAR, "same", BROWN_BEAR, 0),
        Coverage(BEAR, "hyponym", BROWN_BEAR, 1),
        Coverage(SYRIAN, "hypernym", BROWN_BEAR, 1),
        Coverage("n00015388", "hyponym", BROWN_BEAR, 2),
        Coverage("n02330245", None),
        Coverage("n99999999", None),
    ]
    assert find_coverage(wordnet, ["n00015388", SYRIAN, BROWN_BEAR], [BEAR]) == [
        Coverage(BEAR, "hyponym", BROWN_BEAR, 1)
    ]
    assert find_coverage(wordnet, ["n00001740", "n00015388"], [SYRIAN]) == [
        Coverage(SYRIAN, "hypernym", "n00015388", 3)
    ]


def test_the_stop_list_is_canonical_and_replaceable(tmp_path: Path) -> None:
    stop = load_stoplist()
    assert {
        "instagood",
        "photooftheday",
        "love",
        "nofilter",
        "repost",
        "follow4follow",
        "tbt",
        "canon",
        "the",
    } <= stop
    assert not stop & {"bear", "sunset", "dog", "food", "beach", "cat", "flower", "camera"}
    path = tmp_path / "stop.txt"
    path.write_text("# a comment\n#Bear\n\nno_filter  # another\n#\n", encoding="utf-8")
    assert load_stoplist(path) == {"bear", "nofilter"}


def test_an_unreadable_stop_list_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt cannot be read: No such file"):
        load_stoplist(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.txt cannot be read: it is not UTF-8"):
        load_stoplist(tmp_path / "latin.txt")


def test_imagenet_has_a_thousand_classes_in_order() -> None:
    ids = load_imagenet()
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
    assert (ids[0], ids[294], ids[-1]) == ("n01440764", BROWN_BEAR, "n15075141")


@needs_wordnet
@pytest.mark.slow
def test_wordnet_contains_imagenet_and_matching_is_fast() -> None:
    wordnet = WordNet.load()
    matcher = Matcher(wordnet, stop=load_stoplist())
    assert set(load_imagenet()) <= wordnet.synsets.keys()
    for synset in load_imagenet():
        assert not [
            lemma for lemma in wordnet.synsets[synset].lemmas if canonicalise(lemma) in matcher.stop
        ]
    for tag in ("brownbear", "brown_bear", "BrownBears", "ursusarctos"):
        assert matcher.match(tag).synsets == (BROWN_BEAR,)
    crane = matcher.match("cranes").senses
    assert {wordnet.synsets[sense].lemmas[0] for sense in crane} >= {"crane", "Crane"}
    generator, lemmas = random.Random(0), sorted(matcher.lemmas)
    endings = ["", "s", "_x", "2"]
    tags = [
        generator.choice(lemmas) + generator.choice([*endings, generator.choice(lemmas)])
        for _ in range(100_000)
    ]
    start = time.process_time()
    for tag in tags:
        matcher.match(tag)
    assert time.process_time() - start < 3, "it takes 0.3 s on a machine of 2026"


def test_the_module_imports_no_heavy_packages() -> None:
    heavy = {"ibis", "torch", "pyarrow", "numpy"}
    code = f"import sys, swag_models.recipe.hashtags; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
