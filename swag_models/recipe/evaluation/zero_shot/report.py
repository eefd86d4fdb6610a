"""Results of zero-shot classification as files and as text."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from swag_models.atomic import write_texts
from swag_models.formatting import count_noun, markdown_table
from swag_models.recipe.evaluation.zero_shot.results import ZeroShotResult


def write_zero_shot(results: Sequence[ZeroShotResult], folder: Path) -> None:
    """Write zeroshot.json with all values.

    Also zeroshot.md if the images have labels, and predictions.jsonl if there is one result.

    Args:
        results: results of one model on the same images.
        folder: output folder; created if missing.

    Raises:
        OutputError: the files cannot be written.
    """
    files = {"zeroshot.json": json.dumps([result.to_dict() for result in results], indent=1)}
    if results[0].labelled:  # otherwise accuracy is undefined
        files["zeroshot.md"] = format_zero_shot(results)
    if len(results) == 1:  # for an ablation, only accuracies are written
        files["predictions.jsonl"] = format_predictions_jsonl(results[0])
    write_texts(folder, {name: text + "\n" for name, text in files.items()})


def format_zero_shot(results: Sequence[ZeroShotResult]) -> str:
    """A Markdown table of accuracies, and the targets that cannot be predicted.

    Args:
        results: results of one model on the same labelled images.
    """
    first = results[0]
    chance = 100 / len(first.targets)
    summary = (
        f"{first.model} on {first.facts['name']}: {count_noun(len(first.predictions), 'image')}, "
        f"{count_noun(len(first.targets), 'target')}, no training labels. In percent; chance is "
        f"{chance:.1f}."
    )
    rows = [
        [
            "yes" if result.config.platt else "no",
            result.config.mapping.kind,
            result.config.aggregation,
            f"{result.mean_per_class:.2f}",
            f"{result.top1:.2f}",
            f"{result.top5:.2f}",
        ]
        for result in results
    ]
    header = ["Platt scaling", "mapping", "aggregation", "mean per class", "top-1", "top-5"]
    return "\n".join([summary, "", markdown_table(header, rows), *_list_unreached(results)])


def format_predictions(result: ZeroShotResult) -> str:
    """A line for each image: its name, and the best targets with their shares of the scores.

    Args:
        result: result for images, labelled or not.
    """
    lines = []
    for prediction in result.predictions:
        best = ", ".join(
            f"{result.titles[index]} {share:.1%}"
            for index, share in zip(prediction.top, prediction.shares)
        )
        lines.append(f"{prediction.name}: {best or 'no hashtag has a weight for a target'}")
    return "\n".join([*lines, *_list_unreached([result])])


def format_predictions_jsonl(result: ZeroShotResult) -> str:
    """A line of JSON for each image: name, label, and the best targets with their shares.

    Args:
        result: result for images, labelled or not.
    """
    names = result.targets
    return "\n".join(
        json.dumps(
            {
                "name": prediction.name,
                "label": None if prediction.label is None else names[prediction.label],
                "top": {
                    names[index]: share for index, share in zip(prediction.top, prediction.shares)
                },
            }
        )
        for prediction in result.predictions
    )


def _list_unreached(results: Sequence[ZeroShotResult]) -> Iterator[str]:
    """A line for each kind of mapping that leaves targets without a hashtag."""
    titles = dict(zip(results[0].targets, results[0].titles))
    # only the kind of mapping decides which targets are reached
    by_kind = {result.config.mapping.kind: result.unreached for result in results}
    for kind, unreached in by_kind.items():
        if unreached:
            names = ", ".join(titles[name] for name in unreached)
            yield (
                f"\nMapping {kind}: no hashtag reaches these targets, so they are never predicted: "
                f"{names}"
            )
