"""Match hashtags with WordNet, and count how they and the classes of ImageNet are matched."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from swag_models.errors import ConfigError
from swag_models.formatting import describe
from swag_models.recipe.curation.context import ContextRules
from swag_models.recipe.hashtags import Match, Matcher, name_class
from swag_models.recipe.wordnet import WordNet

MAX_LISTED_HASHTAGS = 50  # hashtags of each kind in the manifest
KINDS = ("lemma", "inflection", "ambiguous", "override", "dropped", "stopped", "unknown")
# Synsets are numbered, since joining and grouping by integers takes less time and memory.
MATCHES = pa.schema(
    {
        "tag": pa.string(),
        "number": pa.int32(),
        "synset": pa.string(),
        "how": pa.string(),
        "uses": pa.int64(),
    }
)


def match_hashtags(
    path: Path, matcher: Matcher, wordnet: WordNet
) -> tuple[dict[str, Any], pa.Table, pa.Table, pa.Table]:
    """Match every hashtag of a table with WordNet.

    This runs in Python, once for each distinct hashtag. Work for each post is done in SQL.

    Args:
        path: Parquet file or folder with the columns tag, uses.
        matcher: finds the synsets of a hashtag.
        wordnet: describes ambiguous hashtags.

    Returns:
        (facts for the manifest, table `MATCHES`, tables `context.CODES` and `context.RULES`). The
        facts are the numbers of distinct hashtags
        and uses of each kind, and the most used hashtags that were stopped, unknown or ambiguous.
        `MATCHES` has a row for each pair of hashtag and synset, with 0 uses for senses that other
        hashtags of the post can point to.

    Raises:
        ConfigError: no hashtag has a synset.
    """
    distinct, uses, ambiguous = Counter[str](), Counter[str](), Counter[str]()
    listed: dict[str, list[tuple[int, str]]] = {"stopped": [], "unknown": []}
    pairs: list[tuple[str, str, str, int]] = []
    unused = set(matcher.overrides)
    context = ContextRules(matcher)
    for batch in pyarrow.dataset.dataset(path).to_batches(columns=["tag", "uses"]):
        for tag, count in zip(batch["tag"].to_pylist(), batch["uses"].to_pylist(), strict=True):
            match = matcher.match(tag)
            distinct[match.how] += 1
            uses[match.how] += count
            pairs += [(synset, tag, match.how, count) for synset in match.synsets]
            if match.reason == "override":
                unused.discard(match.lemma)
            others = {other.synset for other in match.alternatives} - {"", *match.synsets}
            pairs += [(synset, tag, match.how, 0) for synset in others]
            context.add(tag, match)
            if match.how in listed:
                listed[match.how].append((-count, tag))
            elif match.how == "ambiguous":
                ambiguous[match.lemma] += count
        # shortened after each batch, since there can be hundreds of millions of unknown hashtags
        listed = {how: heapq.nsmallest(MAX_LISTED_HASHTAGS, tags) for how, tags in listed.items()}
    pairs.sort()  # so that numbers do not depend on the order in which the backend returns hashtags
    synsets = sorted({synset for synset, *_ in pairs})
    numbers = {synset: number for number, synset in enumerate(synsets)}
    rows = [
        {"tag": tag, "number": numbers[synset], "synset": synset, "how": how, "uses": count}
        for synset, tag, how, count in pairs
    ]
    facts: dict[str, Any] = {
        how: [[tag, -count] for count, tag in tags] for how, tags in listed.items()
    }
    most_used = sorted(ambiguous.items(), key=lambda item: (-item[1], item[0]))
    facts["ambiguous"] = [
        [lemma, count, *_describe_senses(wordnet, matcher.match(lemma))]
        for lemma, count in most_used[:MAX_LISTED_HASHTAGS]
    ]
    facts["unused_overrides"] = sorted(unused)
    facts["distinct"] = {"all": distinct.total(), **{how: distinct[how] for how in KINDS}}
    facts["uses"] = {"all": uses.total(), **{how: uses[how] for how in KINDS}}
    if not rows:
        kinds = ("unknown", "stopped", "ambiguous")
        examples = [describe(tag) for kind in kinds for tag, *_ in facts[kind]][:5]
        raise ConfigError(
            "no hashtag of the posts is a noun of WordNet; the most used: "
            f"{', '.join(examples) or 'none'}; check --hashtags, --caption and --senses"
        )
    matches = pa.Table.from_pylist(rows, schema=MATCHES)
    return facts, matches, *context.make_tables(matches, numbers)


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


def _describe_senses(wordnet: WordNet, match: Match) -> tuple[str, str]:
    """The senses of an ambiguous hashtag that are used, and its other senses, as text."""
    chosen = [
        f"{synset} {name_class(wordnet, synset)}: {wordnet.synsets[synset].gloss.split(';')[0]}"
        for synset in match.synsets
    ]
    rejected = [
        f"{synset} {name_class(wordnet, synset)}"
        for synset in match.senses
        if synset not in match.synsets
    ]
    return "; ".join(chosen) or "nothing", ", ".join(rejected)
