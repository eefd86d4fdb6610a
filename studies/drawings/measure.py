"""Measure a hashtag model on held-out drawings: keywords, zero-shot names, neighbours.

    python -m studies.drawings.measure MODEL DRAWINGS [--held-out twemoji] [--json FILE]

Three questions, each answered in percent with its 95% interval (Wilson):

- keywords: is the most probable class, or one of the first five, a keyword of the image?
- names: of emoji whose name is a noun of WordNet, is it named by zero-shot among all these names?
- neighbours: is the same emoji by another artist among the first five neighbours?

Zero-shot's configuration is the one with the highest top-1 accuracy on the validation images, and
Platt scaling is fitted on images of the training set; no test image chooses anything.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from studies.drawings.held_out import LABELS_FILE, read_synsets
from studies.drawings.names import describe_share, measure_names, read_copies, read_emoji
from studies.drawings.split import SPLITS
from swag_models.atomic import write_json
from swag_models.cli import run_command
from swag_models.cli.common import OK
from swag_models.errors import ConfigError, check_choice
from swag_models.formatting import count_noun
from swag_models.hub.progress import make_bar
from swag_models.paths import expand_path
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model
from swag_models.recipe.evaluation.probes.knn import find_neighbours
from swag_models.recipe.evaluation.results import Estimate
from swag_models.recipe.evaluation.zero_shot.logits import open_unlabelled
from swag_models.recipe.wordnet import WordNet

NEIGHBOURS = 5


class Outputs(NamedTuple):
    """What a model computes of images.

    Attributes:
        ids: of the images (N).
        logits: (N, K).
        features: (N, D).
    """

    ids: list[str]
    logits: torch.Tensor
    features: np.ndarray[Any, Any]


def measure_drawings(
    name: str,
    drawings: str | os.PathLike[str],
    held_out: str = "twemoji",
    *,
    wordnet: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a model on a held-out set.

    Args:
        name: a published folder or a name of the catalog, of a model with WordNet ids.
        drawings: the folder that `python -m studies.drawings` wrote.
        held_out: "twemoji", "clipart_test" or "val"; names and neighbours are of emoji only.
        wordnet: folder of WordNet's database files, as for `curate`.
        progress: whether to show progress bars.

    Returns:
        For each measure, its value, low and high, with the numbers behind it.

    Raises:
        ConfigError: the folder has no such set, or the model has no WordNet ids.
    """
    check_choice("held_out", held_out, *SPLITS[1:])
    root = expand_path(drawings, "drawings")
    folder = root / held_out
    if not (folder / LABELS_FILE).is_file():
        raise ConfigError(f"{root} has no {held_out}/{LABELS_FILE}; run python -m studies.drawings")
    model = open_evaluated_model(name)
    if model.synsets is None:
        raise ConfigError(f"{name} has no WordNet ids of its classes; give a hashtag model")
    outputs = run_model(model, folder / "images", progress)
    result = {
        "model": name,
        "held_out": held_out,
        "images": len(outputs.ids),
        "classes": len(model.synsets),
        **measure_keywords(model.synsets, outputs, read_synsets(folder)),
    }
    if emoji := read_emoji(folder):
        net = WordNet.load(wordnet)
        gallery = run_gallery(model, root, progress)
        result |= measure_names(model, root, held_out, net, progress)
        result |= measure_neighbours(outputs, emoji, gallery, read_emoji(root))
    return result


def run_gallery(model: EvaluatedModel, drawings: Path, progress: bool) -> Outputs:
    """Compute logits and features of the training images, without near copies of held-out ones.

    Args:
        model: the model.
        drawings: folder of `build_drawings`.
        progress: whether to show a progress bar.
    """
    outputs, copies = run_model(model, drawings / "images", progress), read_copies(drawings)
    kept = [row for row, identifier in enumerate(outputs.ids) if identifier not in copies]
    ids = [outputs.ids[row] for row in kept]
    return Outputs(ids, outputs.logits[kept], outputs.features[kept])


def run_model(model: EvaluatedModel, images: Path, progress: bool) -> Outputs:
    """Compute logits and features of all images of a folder.

    Args:
        model: the model.
        images: the folder; the names of its files are ids.
        progress: whether to show a progress bar.
    """
    loader = open_eval_loader(
        open_unlabelled(images), model.fit, batch_size=64, rank=0, world_size=1, workers=0
    )
    ids, parts = list[str](), list[tuple[torch.Tensor, torch.Tensor]]()
    with make_bar(progress, total=loader.samples, unit=" images") as bar:
        for batch in loader:
            parts.append(model.forward(batch.images))
            ids += [Path(identifier).stem for identifier in batch.ids]
            bar.update(len(batch.ids))
    logits, features = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Outputs(ids, logits, features.numpy())


def measure_keywords(
    synsets: Sequence[str], outputs: Outputs, keywords: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The share of images with one of their own keywords as the first, or in the first 5 classes.

    Images without any keyword among the classes of the model are counted, and left out.

    Args:
        synsets: WordNet id of each class.
        outputs: of the model.
        keywords: id of an image -> WordNet ids of its keywords.
    """
    known, hits = set(synsets), list[list[bool]]()
    top = outputs.logits.topk(min(5, len(synsets))).indices.tolist()
    for identifier, classes in zip(outputs.ids, top, strict=True):
        own = known.intersection(keywords.get(identifier, ()))
        if own:
            hits.append([synsets[index] in own for index in classes])
    if not hits:
        raise ConfigError("no image has a keyword among the classes of the model")
    return {
        "keyword_top1": describe_share([row[0] for row in hits]),
        "keyword_top5": describe_share([any(row) for row in hits]),
        "without_keywords": len(outputs.ids) - len(hits),
    }


def measure_neighbours(
    outputs: Outputs, emoji: Mapping[str, str], gallery: Outputs, shown: Mapping[str, str]
) -> dict[str, Any]:
    """The share of emoji with the same emoji by another artist among the first five neighbours.

    Emoji that no other artist has drawn are counted, and left out.

    Args:
        outputs: of the held-out images.
        emoji: id of a held-out image -> its emoji.
        gallery: features of the other artists' images, with clip art among them.
        shown: id of an image of the gallery -> its emoji.
    """
    of_gallery = [shown.get(identifier) for identifier in gallery.ids]
    drawn = set(of_gallery)
    count = min(NEIGHBOURS, len(of_gallery))
    _, neighbours = find_neighbours(gallery.features, outputs.features, count)
    queries = [
        (emoji[identifier], row)
        for identifier, row in zip(outputs.ids, neighbours.tolist(), strict=True)
        if identifier in emoji
    ]
    hits = [own in {of_gallery[index] for index in row} for own, row in queries if own in drawn]
    return {
        "neighbours_top5": describe_share(hits),
        "gallery": len(gallery.ids),
        "without_other_artist": len(queries) - len(hits),
    }


def format_measures(result: Mapping[str, Any]) -> str:
    """One line for each measure.

    Args:
        result: of `measure_drawings`.
    """
    titles = {
        "keyword_top1": "most probable class is a keyword",
        "keyword_top5": "one of the first five is a keyword",
        "name_top1": f"named among {result.get('names')} names, first",
        "name_top5": f"named among {result.get('names')} names, first five",
        "neighbours_top5": "same emoji by another artist in 5 neighbours",
    }
    lines = []
    for key, title in titles.items():
        if key in result:
            value = Estimate(*(result[key][part] for part in Estimate._fields))
            count = count_noun(result[key]["count"], "image")
            lines.append(
                f"{title}: {value.value:.1f}% ({value.low:.1f} to {value.high:.1f}), {count}"
            )
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    """Measure a model; print the measures."""
    result = measure_drawings(
        options.model,
        options.drawings,
        options.held_out,
        wordnet=options.wordnet,
        progress=not options.quiet,
    )
    if options.json:
        write_json(expand_path(options.json, "json"), result)
    print(format_measures(result))
    return OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit codes are those of `swag-models`."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.drawings.measure",
        description="Measure a hashtag model on held-out drawings.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", help="published folder, or name of the catalog")
    parser.add_argument("drawings", help="folder of python -m studies.drawings")
    parser.add_argument(
        "--held-out", default="twemoji", choices=SPLITS[1:], help="set (default: twemoji)"
    )
    parser.add_argument("--json", help="file to write all values to")
    parser.add_argument("--wordnet", help="folder of WordNet's database files")
    parser.add_argument("--quiet", action="store_true", help="hide the progress bars")
    return run_command(lambda: parser.parse_args(arguments), ends=arguments is None)


if __name__ == "__main__":
    sys.exit(main())
