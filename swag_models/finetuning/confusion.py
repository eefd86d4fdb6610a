"""What a fine-tuned model predicts for the held-out images: a table, and a confusion matrix.

Axes: M classes that are shown.
"""

import csv
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swag_models.atomic import write_text
from swag_models.formatting import count_noun, printable
from swag_models.recipe.evaluation.multilabel.results import AnyEvaluation
from swag_models.recipe.evaluation.results import Evaluation, ImageResult
from swag_models.recipe.plotting import make_figure, save_png
from swag_models.runtime import import_extra

MAX_SHOWN_CLASSES = 40  # rows of the figure; if there are more, those with the most errors
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


def count_confusions(
    labels: NDArray[np.intp], predicted: NDArray[np.intp], classes: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Count images by class and predicted class.

    Args:
        labels: class of each image.
        predicted: predicted class of each image.
        classes: those to count, (M,), ascending.

    Returns:
        (M, M); images of other classes, or for which one is predicted, do not count.
    """
    inside = np.isin(labels, classes) & np.isin(predicted, classes)
    rows, columns = (np.searchsorted(classes, part[inside]) for part in (labels, predicted))
    counts = np.bincount(rows * len(classes) + columns, minlength=len(classes) ** 2)
    return counts.reshape(len(classes), len(classes))


def draw_confusions(evaluation: Evaluation, path: Path) -> None:
    """Draw the confusion matrix as a PNG file; of many classes, those with most errors."""
    labels = np.array([record.labels[0] for record in evaluation.records], np.intp)
    predicted = np.array([record.top[0] for record in evaluation.records], np.intp)
    shown, title = _choose_classes(labels, predicted, len(evaluation.classes))
    names = [_shorten(evaluation.classes[index]) for index in shown]
    counts = count_confusions(labels, predicted, shown)
    totals = np.bincount(labels, minlength=len(evaluation.classes))[shown]
    shares = counts / np.maximum(totals, 1)[:, None]  # of the images of a class
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
            for row, column in zip(*counts.nonzero()):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(
                    column,
                    row,
                    str(counts[row, column]),
                    color=colour,
                    ha="center",
                    va="center",
                    fontsize=8,
                )
        figure.colorbar(image, label="share of the class", shrink=0.7)
        save_png(figure, path)


def _choose_classes(
    labels: NDArray[np.intp], predicted: NDArray[np.intp], count: int
) -> tuple[NDArray[np.intp], str]:
    """The classes to show, ascending, and a title that says if some are left out."""
    wrong = labels != predicted
    title = f"{len(labels) - wrong.sum()} of {count_noun(len(labels), 'held-out image')} right"
    if count <= MAX_SHOWN_CLASSES:
        return np.arange(count), title
    # A matrix of all classes could fill the memory.
    errors = sum(np.bincount(part[wrong], minlength=count) for part in (labels, predicted))
    worst = np.sort(np.argsort(-np.asarray(errors), kind="stable")[:MAX_SHOWN_CLASSES])
    title += f"\nthe {MAX_SHOWN_CLASSES} of {count_noun(count, 'class')} with most errors"
    return worst, title


def _shorten(name: str) -> str:
    text = printable(name)
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"
