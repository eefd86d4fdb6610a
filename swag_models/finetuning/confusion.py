"""What a fine-tuned model predicts for the held-out images: a table, and a confusion matrix.

Axes: K classes.
"""

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swag_models.atomic import write_text
from swag_models.formatting import printable
from swag_models.recipe.evaluation.multilabel.results import AnyEvaluation
from swag_models.recipe.evaluation.results import Evaluation, ImageResult
from swag_models.recipe.plotting import make_figure, save_png
from swag_models.runtime import import_extra

MAX_CLASSES = 40  # rows of the picture; of more classes, those with most errors
MAX_NUMBERS = 20  # rows up to which the cells have numbers
MAX_LABEL = 24  # characters
COLUMNS = ("image", "class", "predicted", "probability")
SEPARATOR = " | "  # of several classes


def write_predictions(evaluation: AnyEvaluation, path: Path) -> None:
    """Write a CSV file with a row for each image: its classes, the predicted ones, how probable."""
    text, names = io.StringIO(), evaluation.classes
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in evaluation.records:
        if isinstance(record, ImageResult):
            predicted, probabilities = record.top[:1], [record.probability]
        else:
            predicted, probabilities = record.predicted, list(record.probabilities)
        texts = (
            [names[label] for label in record.labels],
            [names[label] for label in predicted],
            [f"{probability:.4f}" for probability in probabilities],
        )
        writer.writerow((record.name, *map(SEPARATOR.join, texts)))
    write_text(path, text.getvalue())


def count_confusions(records: Sequence[ImageResult], classes: int) -> NDArray[np.int64]:
    """Count the images of each class, the first of an image, by predicted class: (K, K)."""
    counts = np.zeros((classes, classes), np.int64)
    pairs = [(record.labels[0], record.top[0]) for record in records]
    np.add.at(counts, tuple(np.array(pairs).T), 1)
    return counts


def draw_confusions(evaluation: Evaluation, path: Path) -> None:
    """Draw the confusion matrix as a PNG file; of many classes, those with most errors."""
    counts = count_confusions(evaluation.records, len(evaluation.classes))
    shown, title = _choose_classes(counts)
    names = [_shorten(evaluation.classes[index]) for index in shown]
    part, totals = counts[np.ix_(shown, shown)], counts.sum(1)[shown]
    shares = part / np.maximum(totals, 1)[:, None]  # of the images of a class
    side = 2.4 + 0.3 * max(len(names), 4)  # inches
    matplotlib = import_extra("matplotlib")
    # names may have dollar signs, and letters that the font lacks, which are drawn as boxes
    with warnings.catch_warnings(), matplotlib.rc_context({"text.parse_math": False}):
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure = make_figure(side + 0.6, side)
        axes: Any = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        ticks = range(len(names))
        axes.set_xticks(ticks, names, rotation=90, fontsize=8)
        axes.set_yticks(
            ticks, [f"{name} ({total})" for name, total in zip(names, totals)], fontsize=8
        )
        axes.set(xlabel="predicted", ylabel="class (images)")
        axes.set_title(title, fontsize=9)
        if len(names) <= MAX_NUMBERS:
            for row, column in zip(*part.nonzero()):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(
                    column,
                    row,
                    str(part[row, column]),
                    color=colour,
                    ha="center",
                    va="center",
                    fontsize=8,
                )
        figure.colorbar(image, label="share of the class", shrink=0.7)
        save_png(figure, path)


def _choose_classes(counts: NDArray[np.int64]) -> tuple[NDArray[np.intp], str]:
    """The classes to show, in order, and a title that says if some are left out."""
    images, right = int(counts.sum()), int(counts.trace())
    title = f"{right} of {images} held-out images right"
    if len(counts) <= MAX_CLASSES:
        return np.arange(len(counts)), title
    errors = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    worst = np.sort(np.argsort(-errors, kind="stable")[:MAX_CLASSES])
    return worst, f"{title}\nthe {MAX_CLASSES} of {len(counts)} classes with most errors"


def _shorten(name: str) -> str:
    text = printable(name)
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"
