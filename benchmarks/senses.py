"""Precision and recall of the senses of hashtags, step by step.

    python benchmarks/senses.py [--half tune test] [--wordnet FOLDER]

Each use of tests/recipe/judged_uses.jsonl, a hashtag on an image with the other hashtags of this
image, is one post. Each method is run through `curate`, with every part before it:

    first sense        the first sense in WordNet's order; a plural that is a lemma is not its singular
    + both readings    plurals join their singular unless they have a meaning of their own
    + evidence         counts, what can be seen, ImageNet's classes; adjectives are dropped
    + table            senses.tsv, without the other hashtags
    + context          senses.tsv, with the other hashtags: the default of `curate`

Precision is the share of mapped uses whose synsets are all among the judged ones, recall the share
of uses that have a judged synset; intervals are Wilson's of 95%. A use is "in WordNet" if the
hashtag or its singular is a lemma, so that choosing a sense is all there is to do.
"""

import argparse
import contextlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from swag_models.recipe.curation import curate
from swag_models.recipe.hashtags import Matcher, canonicalise, load_imagenet
from swag_models.recipe.senses import Sense, SenseRanker, load_senses
from swag_models.recipe.wordnet import WordNet

USES = Path(__file__).parents[1] / "tests" / "recipe" / "judged_uses.jsonl"
METHODS = ("first sense", "+ both readings", "+ evidence", "+ table", "+ context")


def read_uses(half: str) -> list[dict[str, Any]]:
    """The judged uses of a half, "tune" or "test"."""
    uses = [json.loads(line) for line in USES.read_text("utf-8").splitlines()]
    return [use for use in uses if use["half"] == half]


@contextlib.contextmanager
def use_method(method: str) -> Iterator[str]:
    """Switch off the parts after a method; yields the policy for `Curation`."""
    table: Mapping[str, Sense] = load_senses()
    if method == "+ table":
        table = {tag: Sense(sense.synset) for tag, sense in table.items()}
    elif method != "+ context":
        table = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            mock.patch("swag_models.recipe.hashtags.load_senses", return_value=table)
        )
        if method == "first sense":
            stack.enter_context(mock.patch.object(SenseRanker, "prefers_plural", return_value=True))
        yield "first" if method in METHODS[:2] else "context"


def map_uses(uses: Sequence[Mapping[str, Any]], method: str, wordnet: str | None) -> list[set[str]]:
    """The synsets of the hashtag of each use: of those that it can have, those of its image."""
    with tempfile.TemporaryDirectory() as name, use_method(method) as senses:
        folder = Path(name)
        posts = [{"id": str(use["id"]), "hashtags": [use["tag"], *use["others"]]} for use in uses]
        schema = pa.schema({"id": pa.string(), "hashtags": pa.list_(pa.string())})
        pq.write_table(pa.Table.from_pylist(posts, schema), folder / "posts.parquet")
        curate.curate(
            [folder / "posts.parquet"],
            folder / "out",
            curate.Curation(senses),
            wordnet=wordnet,
            progress=False,
        )
        tags = pq.read_table(folder / "out" / "hashtags.parquet").to_pylist()
        vocabulary = pq.read_table(folder / "out" / "vocabulary.parquet").to_pylist()
        labels = pq.read_table(folder / "out" / "labels.parquet").to_pylist()
    synsets = {row["class"]: row["synset"] for row in vocabulary}
    of_image = {row["id"]: {synsets[index] for index in row["classes"]} for row in labels}
    of_tag = {row["key"]: set(row["synsets"]) for row in tags}
    return [
        of_image.get(str(use["id"]), set()) & of_tag.get(canonicalise(use["tag"]), set())
        for use in uses
    ]


def score_uses(
    uses: Sequence[Mapping[str, Any]], mapped: Sequence[set[str]]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(right, mapped) uses for the precision, and (right, with a judged synset) for the recall."""
    pairs = [(synsets, set(use["right"])) for use, synsets in zip(uses, mapped, strict=True)]
    right = sum(bool(synsets) and synsets <= judged for synsets, judged in pairs)
    return (right, sum(map(bool, mapped))), (right, sum(bool(judged) for _, judged in pairs))


def wilson(right: int, total: int) -> str:
    """A share in percent with its interval of 95%."""
    z, share = 1.96, right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    radius = z / (1 + z * z / total)
    radius *= math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return f"{share:.1%} ({middle - radius:.1%} to {middle + radius:.1%}), {right} of {total}"


def is_in_wordnet(use: Mapping[str, Any], matcher: Matcher) -> bool:
    """Whether the hashtag of a use or its singular is a lemma."""
    return matcher.match(use["tag"]).how in ("lemma", "inflection", "ambiguous", "stopped")


def count_imagenet(matcher: Matcher, wordnet: WordNet) -> tuple[int, int]:
    """Classes of ImageNet-1k that their first name, and that any of their names, reaches."""
    reached = [
        [matcher.match(lemma).synsets == (synset,) for lemma in wordnet.synsets[synset].lemmas]
        for synset in load_imagenet()
    ]
    return sum(names[0] for names in reached), sum(map(any, reached))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--half", nargs="+", choices=("tune", "test"), default=["tune", "test"])
    parser.add_argument("--wordnet")
    options = parser.parse_args()
    wordnet = WordNet.load(options.wordnet)
    every = Matcher(wordnet, "all")
    for half in options.half:
        uses = read_uses(half)
        known = [is_in_wordnet(use, every) or not use["right"] for use in uses]
        print(f"\n{half}: {len(uses)} uses\n")
        print("| method | precision | recall | recall in WordNet |\n|---|---|---|---|")
        for method in METHODS:
            mapped = map_uses(uses, method, options.wordnet)
            precision, recall = score_uses(uses, mapped)
            _, inside = score_uses(
                [use for use, keep in zip(uses, known, strict=True) if keep],
                [synsets for synsets, keep in zip(mapped, known, strict=True) if keep],
            )
            cells = (wilson(*precision), wilson(*recall), wilson(*inside))
            print(f"| {method} | {' | '.join(cells)} |", flush=True)
    print("\n| method | classes of ImageNet-1k by their first name | by any name |\n|---|---|---|")
    for method in METHODS[:4]:
        with use_method(method) as senses:
            print(
                f"| {method} | {' | '.join(map(str, count_imagenet(Matcher(wordnet, senses), wordnet)))} |"
            )


if __name__ == "__main__":
    main()
