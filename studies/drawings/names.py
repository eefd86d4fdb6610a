"""Zero-shot classification of emoji by their names, as a user would do it with the library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.drawings.split import SPLITS
from swag_models.atomic import write_json
from swag_models.errors import ConfigError
from swag_models.paths import read_lines
from swag_models.recipe.classes.wordnet_mapping import HashtagMapping, Target
from swag_models.recipe.curation.post_files import read_values
from swag_models.recipe.evaluation.accuracy.metrics import estimate_share
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.evaluation.zero_shot.classifier import run_ablation
from swag_models.recipe.evaluation.zero_shot.results import (
    AGGREGATIONS,
    ZeroShotConfig,
    ZeroShotResult,
)
from swag_models.recipe.hashtags import Matcher
from swag_models.recipe.wordnet import WordNet

MAPPINGS = ("same", "related")
NOUNS = ("lemma", "ambiguous", "inflection")  # how a name that is one noun of WordNet matches
UNLABELLED = 2000  # training images that Platt scaling is fitted on


def list_things(posts: Sequence[Mapping[str, Any]], wordnet: WordNet) -> dict[str, Target]:
    """The emoji whose names are nouns of WordNet, with their targets.

    Names with the same meaning are one thing, by the first of them.

    Args:
        posts: rows with an emoji and its name as the caption.
        wordnet: defines the nouns.
    """
    matcher, first, things = Matcher(wordnet), dict[tuple[str, ...], str](), dict[str, Target]()
    for row in posts:
        match = matcher.match(row["caption"])
        if row["emoji"] and match.how in NOUNS:
            synsets = tuple(match.synsets)
            name = first.setdefault(synsets, row["caption"])
            things[row["emoji"]] = Target(name, synsets)
    return things


def measure_names(
    model: EvaluatedModel, root: Path, held_out: str, wordnet: WordNet, progress: bool
) -> dict[str, Any]:
    """Name emoji by zero-shot, among the names of all emoji that are a class of the model.

    Args:
        model: a model with WordNet ids.
        root: the folder of drawings.
        held_out: the set to measure on.
        wordnet: contains the synsets.
        progress: whether to show progress bars.
    """
    posts = [
        row for split in SPLITS for row in read_posts(root / split if split != "train" else root)
    ]
    things = list_things(posts, wordnet)
    known = set(model.synsets or ())
    named = {emoji: target for emoji, target in things.items() if known & set(target.synsets)}
    targets = list({target.name: target for target in named.values()}.values())
    copies = read_copies(root)
    trained = [str(root / row["path"]) for row in read_posts(root) if row["id"] not in copies]
    unlabelled = trained[:: max(1, len(trained) // UNLABELLED)]
    configs = [
        ZeroShotConfig(platt, HashtagMapping(mapping), aggregation)
        for platt in ((False,) if model.multi_label else (True, False))
        for mapping in MAPPINGS
        for aggregation in AGGREGATIONS
    ]

    def run(split: str, choices: Sequence[ZeroShotConfig]) -> list[ZeroShotResult]:
        return run_ablation(
            model,
            write_names(root / split, named),
            targets,
            wordnet,
            choices,
            unlabelled=unlabelled if any(choice.platt for choice in choices) else None,
            progress=progress,
        )

    best = max(run("val", configs), key=lambda result: result.top1).config
    (result,) = run(held_out, [best])
    hits = [
        [prediction.label in prediction.top[:count] for prediction in result.predictions]
        for count in (1, 5)
    ]
    return {
        "name_top1": describe_share(hits[0]),
        "name_top5": describe_share(hits[1]),
        "names": len(targets),
        "nouns": len({target.name for target in things.values()}),
        "zero_shot": {
            "platt": best.platt,
            "mapping": best.mapping.kind,
            "aggregation": best.aggregation,
        },
    }


def write_names(folder: Path, things: Mapping[str, Target]) -> Path:
    """Write the annotations that zero-shot evaluation reads: file name and name of the thing.

    The name of the file contains the hash of its content, so that measurements of models with other
    classes, which may run at the same time, write other files.

    Args:
        folder: of a held-out set.
        things: emoji -> the thing.
    """
    labels = {
        row["path"]: [things[row["emoji"]].name]
        for row in read_posts(folder)
        if row["emoji"] in things
    }
    if not labels:
        raise ConfigError(f"no emoji of {folder} has a name among the classes of the model")
    digest = hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()
    path = folder / f"names-{digest[:16]}.json"
    write_json(path, labels, unique=True)
    return path


def read_posts(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of posts.jsonl.

    Args:
        folder: of a set of drawings.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    path = folder / "posts.jsonl"
    lines = read_lines(path, "the posts of drawings", str(path))
    try:
        return [dict(json.loads(line)) for line in lines if line.strip()]
    except (ValueError, TypeError):
        raise ConfigError(f"{path} is damaged; delete it and rerun studies.drawings") from None


def read_copies(folder: Path) -> set[str]:
    """Return the ids of near copies of held-out images, which are no training images.

    Args:
        folder: of a set of drawings.
    """
    excluded = folder / "shards" / "excluded.txt"
    return set(read_values(excluded if excluded.exists() else None))


def read_emoji(folder: Path) -> dict[str, str]:
    """Return the emoji of each image that shows one, by its id, without near copies.

    Args:
        folder: of a set of drawings.
    """
    copies = read_copies(folder)
    return {
        row["id"]: row["emoji"]
        for row in read_posts(folder)
        if row["emoji"] and row["id"] not in copies
    }


def describe_share(hits: Sequence[bool]) -> dict[str, float]:
    """Return the share of hits in percent, its 95% interval, and the number of images.

    Args:
        hits: one for each image.

    Raises:
        ConfigError: there is no image.
    """
    if not hits:
        raise ConfigError("nothing is left to measure; use a larger set of drawings")
    return {**estimate_share(sum(hits), len(hits))._asdict(), "count": len(hits)}
