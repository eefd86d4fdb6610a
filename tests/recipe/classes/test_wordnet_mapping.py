"""Weights equal those of a search over all paths, in small hierarchies and in WordNet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from studies.scenes.gallery import WORDNET
from swag_models.errors import ConfigError
from swag_models.recipe.classes.mapping_kinds import MAPPINGS
from swag_models.recipe.classes.wordnet_mapping import HashtagMapping, Target
from swag_models.recipe.wordnet import Synset, WordNet

DECAY = 0.5
# wup_similarity and path_similarity of nltk 3.10.4 on WordNet 3.0. Of 4,000 pairs of ImageNet
# classes and 4,000 pairs of any nouns, all are equal by path, and 187 and 152 differ by wup: those
# with several common ancestors, of which nltk takes the one with the greatest minimum depth.
NLTK = (
    ("n01621127", "n01846331", 0.7692307692307693, 0.14285714285714285),  # owl, duck
    ("n01621127", "n01503061", 0.9090909090909091, 0.3333333333333333),  # owl, bird
    ("n02958343", "n04490091", 0.9166666666666666, 0.3333333333333333),  # car, truck
    ("n04379243", "n03405725", 0.9411764705882353, 0.5),  # table, furniture
    ("n07739125", "n13134947", 0.9, 0.3333333333333333),  # apple, fruit
    ("n03147509", "n04398044", 0.7777777777777778, 0.2),  # cup, teapot
    ("n09444100", "n04398044", 0.47058823529411764, 0.1),  # star, teapot
)
# parents of each synset: e has several paths up of one length, f a long and a short one
DIAMOND = {"r": "", "a": "r", "b": "r", "c": "a", "d": "a b", "e": "c d", "g": "e", "f": "g r"}


def make_wordnet(parents: dict[str, str]) -> WordNet:
    synsets = {
        name: Synset(name, (name,), tuple(above.split()), "") for name, above in parents.items()
    }
    return WordNet(synsets, {name: [name] for name in parents}, {})


def make_random(seed: int) -> WordNet:
    """A hierarchy with up to three parents per synset, and possibly several roots."""
    rng = random.Random(seed)
    names = [f"s{number}" for number in range(14)]
    return make_wordnet(
        {
            name: " ".join(rng.sample(names[:at], min(at, rng.randint(0, 3))))
            for at, name in enumerate(names)
        }
    )


def list_paths(wordnet: WordNet, synset: str) -> Iterator[list[str]]:
    """Every path from a synset up to each of its ancestors."""
    yield [synset]
    for parent in wordnet.synsets[synset].parents:
        for path in list_paths(wordnet, parent):
            yield [synset, *path]


def weigh_by_search(
    wordnet: WordNet, kind: str, hashtag: str, target: str, targets: list[str]
) -> float:
    """The weight from all pairs of paths up from both that end in one synset."""
    weights = [0.0]
    below = [
        other
        for other in targets
        if other != hashtag and any(path[-1] == hashtag for path in list_paths(wordnet, other))
    ]
    for left, right in itertools.product(list_paths(wordnet, hashtag), list_paths(wordnet, target)):
        if left[-1] != right[-1]:
            continue
        up, down = len(left) - 1, len(right) - 1
        depth = max(len(path) for path in list_paths(wordnet, left[-1]))
        lower = DECAY**up if down == 0 else 0.0
        upper = DECAY**down / (len(below) if down else 1) if up == 0 else 0.0
        weights.append(
            {
                "same": float(up == down == 0),
                "hyponyms": lower,
                "hypernyms": upper,
                "related": max(lower, upper),
                "path": 1 / (1 + up + down),
                "wup": 2 * depth / (2 * depth + up + down),
            }[kind]
        )
    return max(weights)


@pytest.mark.parametrize("kind", MAPPINGS)
@pytest.mark.parametrize("wordnet", [make_wordnet(DIAMOND), *map(make_random, range(3))])
def test_weights_equal_a_search_over_all_paths(wordnet: WordNet, kind: str) -> None:
    synsets = list(wordnet.synsets)
    hashtags, targets = synsets[::-1], synsets[1:]
    weights = HashtagMapping(kind, DECAY, threshold=0).weigh(
        wordnet, hashtags, [Target(name, (name,)) for name in targets]
    )
    for (row, hashtag), (column, target) in itertools.product(
        enumerate(hashtags), enumerate(targets)
    ):
        expected = weigh_by_search(wordnet, kind, hashtag, target, targets)
        assert weights[row, column].item() == pytest.approx(expected), (kind, hashtag, target)


def test_similarities_equal_those_of_nltk() -> None:
    wordnet = WordNet.load(WORDNET)
    for one, other, wup, path in NLTK:
        for hashtag, target in ((one, other), (other, one)):
            for kind, expected in (("wup", wup), ("path", path)):
                weights = HashtagMapping(kind, threshold=0).weigh(
                    wordnet, [hashtag], [Target("target", (target,))]
                )
                assert weights.to_dense().item() == pytest.approx(expected, abs=1e-12)


def test_nearest_of_several_synsets_counts() -> None:
    wordnet = make_wordnet(DIAMOND)
    weights = (
        HashtagMapping("hyponyms")
        .weigh(wordnet, ["e", "c", "r"], [Target("either", ("a", "c"))])
        .to_dense()
    )
    assert weights.flatten().tolist() == [0.5, 1, 0]


def test_threshold_and_best_select_weights() -> None:
    wordnet = make_wordnet(DIAMOND)
    target = [Target("c", ("c",))]
    hashtags = ["c", "a", "e", "r", "b"]
    assert HashtagMapping("path", threshold=0).weigh(
        wordnet, hashtags, target
    ).to_dense().flatten().tolist() == pytest.approx([1, 1 / 2, 1 / 2, 1 / 3, 1 / 4])
    default = HashtagMapping("path").weigh(wordnet, hashtags, target).to_dense().flatten()
    assert (default > 0).tolist() == [True, True, True, True, False]
    half = (
        HashtagMapping("path", threshold=0.5, best=2)
        .weigh(wordnet, hashtags, target)
        .to_dense()
        .flatten()
    )
    assert half.tolist() == [1, 0.5, 0, 0, 0], "the first of equal weights"


def test_target_without_a_hashtag_has_no_weight() -> None:
    weights = HashtagMapping("same").weigh(make_wordnet(DIAMOND), ["a"], [Target("b", ("b",))])
    assert weights.shape == (1, 1)
    assert weights.to_dense().item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "wu"}, "invalid mapping 'wu': allowed: same, "),
        ({"decay": 0.0}, "invalid decay 0: allowed: above 0"),
        ({"threshold": 1.5}, "invalid threshold 1.5: allowed: 0 to 1"),
        ({"best": 0}, "invalid best 0: allowed: 1 or more"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HashtagMapping(**options)  # type: ignore[arg-type]
