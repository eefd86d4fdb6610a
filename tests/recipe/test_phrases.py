"""Words and phrases inside hashtags, and the words of lemmas."""

import pytest
from wordnet_support import needs_wordnet

from swag_models.recipe.compounds import load_compounds
from swag_models.recipe.hashtags import Matcher, load_stoplist
from swag_models.recipe.phrases import is_noun, load_not_nouns, spell_symbols, split_lemma
from swag_models.recipe.wordnet import WordNet


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return Matcher(WordNet.load(), stop=load_stoplist())


@needs_wordnet
@pytest.mark.parametrize(
    ("tag", "lemmas"),
    [
        ("rome,italy", "rome italy"),
        ("signs_and_symbols", "sign symbol"),
        ("ukraine map", "ukraine map"),
        ("space astronomy planet earth", "space astronomy planet earth"),
        ("lemon_theme_icon", "lemon theme icon"),
        ("united-nations-member", "unitednations member"),
        ("BlackForestCake", "blackforest cake"),
        ("HTMLPage", "page"),
        ("cats&dogs", "cat dog"),
        ("paris/louvre/museum", "paris louvre museum"),
        ("goldenretrieverpuppy", "goldenretriever puppy"),
        ("moonface", "moon face"),
        ("flamingosofinstagram", "flamingo"),
        ("streetart", "street art"),
    ],
)
def test_phrases_and_compounds_have_the_synsets_of_their_nouns(
    matcher: Matcher, tag: str, lemmas: str
) -> None:
    match = matcher.match(tag)
    assert (match.how, match.lemma) == ("phrase", lemmas)
    parts = [synset for lemma in lemmas.split() for synset in matcher.match(lemma).synsets]
    assert match.synsets == tuple(dict.fromkeys(parts))


@needs_wordnet
@pytest.mark.parametrize(
    ("tag", "lemmas"),
    [
        ("traffic signal girl man go stop", "trafficsignal girl man"),  # no mango
        ("soup be an", "soup"),  # no bean
        ("sky to day", "sky"),
        ("art is an icon", "art icon"),  # no artisan
        ("tooth brush icon", "toothbrush icon"),
        ("ice cream icon", "icecream icon"),
        ("black board chalk", "blackboard chalk"),
        ("golden retrievers puppy", "goldenretriever puppy"),
        ("car pet icon", "car pet icon"),
        # as whole hashtags
        ("man go", "man"),
        ("car pet", "car pet"),
        ("car_pet", "car pet"),
        ("CarPet", "car pet"),
        ("car,pet", "car pet"),
        ("son net", "son net"),
        ("leg end", "leg"),
        ("car nation", "car nation"),
        ("tooth brushes", "toothbrush"),
        ("flower pot", "flowerpot"),  # a synonym of pot
        ("butter flies", "butterfly"),  # listed
        ("straw berry", "strawberry"),  # a berry
        ("land scape", "landscape"),  # nobody writes of scapes
        ("ice cream", "icecream"),
        ("ice,cream", "icecream"),
        ("sun,glasses", "sun glasses"),  # items of a list
        ("smart phone", "smartphone"),  # of the table
    ],
)
def test_words_are_joined_only_if_they_are_those_of_the_lemma(
    matcher: Matcher, tag: str, lemmas: str
) -> None:
    assert matcher.match(tag).lemma == lemmas


@needs_wordnet
def test_listed_compounds_are_not_recognised_otherwise(
    matcher: Matcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = load_compounds()
    monkeypatch.setattr("swag_models.recipe.compounds.load_compounds", frozenset)
    for compound in words:
        whole = matcher.match(compound.replace(" ", ""))
        assert whole.how != "unknown", compound
        assert not matcher.splitter.are_joined(compound, whole), compound


@needs_wordnet
@pytest.mark.parametrize(
    "tag",
    [
        "c++",
        "C#",
        "f#",
        ".net",
        "at&t",
        "q&a",
        "hash(0x85a0c44)",
        "wikipedia",
        "engrenagem",
        "ballon",
        "forbici",
        "sonne",
        "massaging",
        "overwards",
        "jan_kowalczyk",
        "2014",
        "IMG_2034",
        "xyzzyxyzzyx",
    ],
)
def test_other_hashtags_stay_unknown(matcher: Matcher, tag: str) -> None:
    assert matcher.match(tag).how == "unknown"


@needs_wordnet
def test_symbols_are_part_of_names(matcher: Matcher) -> None:
    assert matcher.match("r&b") == matcher.match("R and B")
    assert matcher.match("r&b").lemma == "randb"
    assert matcher.match("rock'n'roll").synsets == matcher.match("rock_and_roll").synsets
    assert matcher.match("Rock & Roll").synsets == matcher.match("rock_and_roll").synsets
    assert spell_symbols("rock & roll") is None
    assert spell_symbols("u.s.") is None


def test_words_of_lemmas_are_those_of_captions() -> None:
    assert split_lemma("golden_retriever") == [("golden", "retriever")]
    assert split_lemma("T-shirt") == [("t", "shirt")]
    assert split_lemma("St._Bernard") == [("st", "", "bernard"), ("st", "bernard")]
    assert split_lemma("bishop's_cap") == [("bishop", "", "cap"), ("bishop", "cap")]
    assert split_lemma("café_au_lait") == [("cafe", "au", "lait")]


def test_function_words_verbs_and_adjectives_are_no_nouns() -> None:
    words = (
        "a in it no at be can will may have do show stands sits riding red small two 12 front as"
    )
    assert [word for word in words.split() if is_noun(word)] == []
    nouns = "bear dress train ring building painting tv surfing leaves dog"
    assert [word for word in nouns.split() if not is_noun(word)] == []
    assert all(word == word.strip().lower() for word in load_not_nouns())
