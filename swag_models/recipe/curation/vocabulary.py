"""vocabulary.parquet: the classes of a curation, named by what people wrote most."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from swag_models.atomic import atomic_write
from swag_models.recipe.curation import queries
from swag_models.recipe.curation.backends import Backend
from swag_models.recipe.curation.steps import Facts
from swag_models.recipe.hashtags import canonicalise
from swag_models.recipe.wordnet import WordNet

MAX_HASHTAG_NAME = 100  # characters of a hashtag that can be a name
VOCABULARY = pa.schema(
    {
        "class": pa.int32(),
        "synset": pa.string(),
        "hashtag": pa.string(),
        "hashtags": pa.list_(pa.string()),
        "images": pa.int64(),
        "samples": pa.float64(),
        "repeat": pa.float64(),
    }
)


def write_vocabulary(
    backend: Backend,
    wordnet: WordNet,
    matches: Path,
    classes: Path,
    factors: Path,
    labels: Path,
    output: Path,
) -> Facts:
    """Write the table of all classes.

    Args:
        backend: computes the tables.
        wordnet: distinguishes classes of the same spelling.
        matches: file written by `match_posts`.
        classes: file written by `choose_classes`.
        factors: file written by `resample_labels`.
        labels: labels written by `resample_labels`.
        output: Parquet file to write, see `VOCABULARY`.
    """
    samples = backend.fetch(queries.sum_samples(backend.read(labels))).to_pylist()
    samples_of = {row["class"]: row["samples"] for row in samples}
    rows = pyarrow.parquet.read_table(classes).to_pylist()
    numbers = {row["number"] for row in rows}
    table = pyarrow.parquet.read_table(matches)
    spellings, nouns = list_spellings(table, numbers), list_spellings(_keep_nouns(table), numbers)
    names = name_classes(wordnet, ((row["synset"], nouns.get(row["number"], ())) for row in rows))
    vocabulary = [
        {
            "class": row["class"],
            "synset": row["synset"],
            "hashtag": name,
            "hashtags": [tag for tag, _ in spellings[row["number"]]],
            "images": row["images"],
            "samples": samples_of[row["class"]],
            "repeat": factor,
        }
        for row, name, factor in zip(
            rows, names, pyarrow.parquet.read_table(factors)["repeat"].to_pylist(), strict=True
        )
    ]
    # written by pyarrow, so that it is a single file with any backend
    with atomic_write(output) as temporary:
        pyarrow.parquet.write_table(
            pa.Table.from_pylist(vocabulary, VOCABULARY), temporary, compression="zstd"
        )
    return {}


def name_classes(
    wordnet: WordNet, classes: Iterable[tuple[str, Sequence[tuple[str, int]]]]
) -> list[str]:
    """Name each class by its most used spelling: `toy`, not WordNet's `plaything`.

    Spellings with the same canonical hashtag are counted together. If senses of one word are
    several classes, the first of them has the plain name, and the others add a hypernym in
    brackets: `flag`, `flag (emblem)`.

    Args:
        wordnet: contains the synsets.
        classes: synset of each class, and its spellings with their numbers of uses; the classes
            that come first have the first choice of a name. Without a spelling, a class is named by
            its first lemma.

    Returns:
        The names, which are different even without their separators and brackets.
    """
    names, taken = [], set[str]()
    for synset, spellings in classes:
        for name in _propose_names(wordnet, synset, spellings):
            if canonicalise(name) not in taken:
                break
        taken.add(canonicalise(name))
        names.append(name)
    return names


def _propose_names(
    wordnet: WordNet, synset: str, spellings: Sequence[tuple[str, int]]
) -> Iterator[str]:
    """Yield names for a class, the best first; the last one contains its id, so it is unique."""
    uses = Counter[str]()
    for tag, count in spellings:
        key = canonicalise(tag)
        # a name is shown everywhere: in terminals, tables, file names
        uses[key if key.isprintable() and 0 < len(key) <= MAX_HASHTAG_NAME else synset] += count
    if not uses:
        uses[canonicalise(wordnet.synsets[synset].lemmas[0])] = 0
    # of equally used spellings, the first in the alphabet, whatever order the backend returns
    name = min(uses, key=lambda spelling: (-uses[spelling], spelling))
    yield name
    for ancestor in wordnet.ancestors(synset):
        yield f"{name} ({wordnet.synsets[ancestor].lemmas[0].replace('_', ' ')})"
    yield f"{name} ({synset})"


def _keep_nouns(matches: pa.Table) -> pa.Table:
    """Rows of `MATCHES` without hashtags of several words or synsets, which name none of them."""
    overrides = matches.filter(pa.compute.equal(matches["how"], "override"))
    counts = Counter(overrides["tag"].to_pylist())
    several = pa.array([tag for tag, count in counts.items() if count > 1], pa.string())
    is_several = pa.compute.is_in(matches["tag"], several)
    is_phrase = pa.compute.equal(matches["how"], "phrase")
    return matches.filter(pa.compute.invert(pa.compute.or_(is_several, is_phrase)))


def list_spellings(matches: pa.Table, numbers: Collection[int]) -> dict[int, list[tuple[str, int]]]:
    """The hashtags, as written, of each synset with their uses, the most used first.

    Args:
        matches: the table `MATCHES`.
        numbers: numbers of the synsets.
    """
    spellings = defaultdict(list)
    for row in matches.to_pylist():
        if row["number"] in numbers:
            spellings[row["number"]].append((-row["uses"], row["tag"]))
    return {
        number: [(tag, -uses) for uses, tag in sorted(tags)] for number, tags in spellings.items()
    }
