"""How the classes of a curation cover other synsets, such as the classes of ImageNet-1k."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

from swag_models.recipe.hashtags import load_imagenet, name_class
from swag_models.recipe.wordnet import WordNet


class Coverage(NamedTuple):
    """The class that covers a synset.

    Attributes:
        target: id of the synset.
        how: "same"; "hyponym" if the class is below the target; "hypernym" if it is above; or None.
        synset: id of the class.
        distance: number of steps between them.
    """

    target: str
    how: str | None
    synset: str | None = None
    distance: int | None = None


def find_coverage(
    wordnet: WordNet, classes: Iterable[str], targets: Iterable[str]
) -> list[Coverage]:
    """Find the class that covers each target synset.

    This is the same synset, otherwise the nearest class below it, otherwise the nearest above it.

    Args:
        wordnet: the nouns of WordNet.
        classes: ids of the synsets that are classes.
        targets: ids of the synsets to cover.
    """
    chosen = set(classes)
    return [_cover_synset(wordnet, chosen, target) for target in targets]


def cover_imagenet(wordnet: WordNet, classes: Path) -> dict[str, Any]:
    """Find how the classes of ImageNet-1k are covered by the classes of a curation.

    Args:
        wordnet: the nouns of WordNet.
        classes: Parquet file with the column synset.

    Returns:
        Facts for the manifest: numbers of classes of ImageNet by kind of coverage, and those that
        are not covered.
    """
    synsets = pyarrow.parquet.read_table(classes)["synset"].to_pylist()
    coverages = find_coverage(wordnet, synsets, load_imagenet())
    counts = Counter(coverage.how or "none" for coverage in coverages)
    missing = [coverage.target for coverage in coverages if not coverage.how]
    return {
        "counts": {how: counts[how] for how in ("same", "hyponym", "hypernym", "none")},
        # an excerpt of WordNet may lack the synset and thus its name
        "missing": [
            f"{synset} {name_class(wordnet, synset)}" if synset in wordnet.synsets else synset
            for synset in missing
        ],
    }


def _cover_synset(wordnet: WordNet, classes: set[str], target: str) -> Coverage:
    if target in classes:
        return Coverage(target, "same", target, 0)
    for how, walk in (("hyponym", wordnet.descendants), ("hypernym", wordnet.ancestors)):
        candidates = [
            (distance, synset) for synset, distance in walk(target).items() if synset in classes
        ]
        if candidates:
            distance, synset = min(candidates)
            return Coverage(target, how, synset, distance)
    return Coverage(target, None)
