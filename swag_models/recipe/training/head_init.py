"""Start a new head from the rows of the pre-trained head that are about the same things.

A head for the classes of the data is usually initialised at random, and what the model has learnt
about their names is lost. With `head_init="hashtags"`, each class starts from the mean of the rows
of the hashtags that `class_rows` finds for it. Published as Transfer Init in CatLIP (Mehta et al.
2024, arXiv 2404.15653, section 3.3).

Axes: T classes of the data, K classes of the initial weights, D features.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from swag_models.api import get_spec
from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, escape_unprintable, list_names
from swag_models.recipe.classes.class_rows import ClassRows, match_rows
from swag_models.recipe.config import Run
from swag_models.recipe.training.checkpointer import list_checkpoints
from swag_models.recipe.training.run_dir import PUBLISHED_FILE, RECORD_FILE
from swag_models.recipe.wordnet import WordNet

MAX_LINE = 499  # characters

logger = logging.getLogger("swag_models")


class HeadInit(NamedTuple):
    """How the head of a run starts.

    Attributes:
        rows: that it starts from; None if it is kept, or a checkpoint has it.
        facts: for run.json and recipe.json.
    """

    rows: ClassRows | None
    facts: Mapping[str, Any]


def plan_head(
    run: Run, output: Path, names: tuple[str, ...] | None, synsets: tuple[str, ...] | None
) -> HeadInit | None:
    """Plan the head of a run with `head_init="hashtags"`; None for other runs.

    A run that has a checkpoint is not matched again: it needs neither WordNet nor a log line.

    Args:
        run: the run.
        output: its folder.
        names, synsets: as for `match_head`.
    """
    if run.head_init != "hashtags":
        return None
    has_started = list_checkpoints(output / "checkpoints") or (output / PUBLISHED_FILE).exists()
    if has_started and (facts := _read_facts(output / RECORD_FILE)) is not None:
        return HeadInit(None, facts)
    rows = match_head(run, names, synsets)
    return HeadInit(rows, {"kept": run.init} if rows is None else rows.to_dict())


def match_head(
    run: Run, names: tuple[str, ...] | None, synsets: tuple[str, ...] | None
) -> ClassRows | None:
    """Find the rows that the head of a run starts from, and log what was found.

    Args:
        run: with `head_init="hashtags"`.
        names: of the classes of the data.
        synsets: their WordNet ids, if they are hashtags.

    Returns:
        None if the initial weights have these classes already, so that their head is kept.

    Raises:
        ConfigError: the initial weights or the data have no names of classes, or no class of the
            data is like one of the initial weights.
    """
    if run.init is None:
        raise ConfigError(
            "head_init is 'hashtags' and init is none; give init= a model with hashtags, such as "
            'vit_nano_hashtags, or use head_init="random"'
        )
    if names is None:
        raise ConfigError(
            "head_init is 'hashtags', but the classes of the data have no names; name them, or use "
            'head_init="random"'
        )
    spec = get_spec(run.init)
    if spec.classes == names:
        logger.warning("head_init: %s has the classes of the data; its head is kept", spec.name)
        return None
    try:
        wordnet, problem = WordNet.load(), ""
    except ConfigError as error:  # names, ids and hashtags match without it
        wordnet, problem = None, f"; without WordNet, only equal names match: {error}"
    rows = match_rows(spec, names, synsets, wordnet)
    unmatched = rows.unmatched
    if len(unmatched) == len(names):
        raise ConfigError(
            f"head_init is 'hashtags', but no class of the data ({list_names(names, 5)}) is or is "
            f"near a class of {spec.name} ({list_names(rows.hashtags, 3)}); use "
            f'head_init="random"{problem}'
        )
    counts = {kind: count for kind, count in rows.to_dict()["matched"].items() if count}
    line = (
        f"head_init: {len(names) - len(unmatched)} of {count_noun(len(names), 'class')} start from "
        f"rows of {spec.name} ({', '.join(f'{count} by {kind}' for kind, count in counts.items())})"
    )
    if unmatched:
        line += f", {len(unmatched)} start anew: {list_names(unmatched, 5)}{problem}"
    logger.warning("%s", escape_unprintable(line, MAX_LINE))
    return rows


@torch.no_grad()
def init_head(
    head: nn.Linear, old: nn.Linear, rows: ClassRows, *, keep_biases: bool = True
) -> None:
    """Set the rows of a new head.

    A class starts from the weighted mean of its rows, (T, K) x (K, D). A class without any keeps
    the weights that a new head has, and gets the mean bias of the others, because a softmax ignores
    what all biases have in common.

    Args:
        head: the new head of T classes, as it was initialised.
        old: that of the initial weights, of K classes.
        rows: from `match_head`.
        keep_biases: whether biases are set too. The bias of a softmax says nothing about that of a
            sigmoid, and vice versa.
    """
    matched = [number for number, kind in enumerate(rows.kinds) if kind]
    biases = []
    for number in matched:
        indices = torch.tensor(list(rows.weights[number]))
        weights = torch.tensor(list(rows.weights[number].values()), dtype=torch.float64)
        head.weight[number] = (weights @ old.weight[indices].double()).to(head.weight)
        biases.append(weights @ old.bias[indices].double())
    if keep_biases:
        values = torch.stack(biases)
        head.bias.fill_(values.mean().item())
        head.bias[matched] = values.to(head.bias)


def describe_head(facts: Mapping[str, Any] | None) -> str:
    """A line of the model card on how the head started; empty if at random."""
    if not facts:
        return ""
    if "kept" in facts:
        return "that of the initial weights"
    matched = sum(facts["matched"].values())
    count = count_noun(matched + len(facts["unmatched"]), "class")
    return f"rows of the hashtags of {facts['model']}, for {matched} of {count}"


def _read_facts(record: Path) -> Mapping[str, Any] | None:
    """Read how the head of a run started from its run.json; None if there is no run yet.

    A file that is damaged is reported when the run is claimed.
    """
    try:
        facts = parse_json(record.read_bytes())["head_init"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return facts if isinstance(facts, dict) else None
