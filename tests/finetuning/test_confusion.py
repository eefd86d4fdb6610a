"""The table and the picture of predictions, for any number of classes with any names."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swag_models.finetuning.confusion import count_confusions, draw_confusions, write_predictions
from swag_models.recipe.evaluation.results import Estimate, Evaluation, ImageResult

NAMES = ["$x_1$ & \\alpha", "猫", "a|b", 'say "hi", twice', "é" * 80, "\u202eabc", "", "🐈"]


def make_evaluation(classes: list[str], images: int) -> Evaluation:
    draw = np.random.default_rng(0)
    records = tuple(
        ImageResult(
            f"{number}.png",
            (int(draw.integers(len(classes))),),
            tuple(draw.choice(len(classes), 2, replace=False).tolist()),
            draw.random(),
        )
        for number in range(images)
    )
    estimate = Estimate(0, 0, 0)
    values = {"model": "m", "benchmark": "folder", "facts": {}, "settings": {}, "skipped": {}}
    measures = dict.fromkeys(("top1", "top5", "mean_per_class", "ece"), estimate)
    return Evaluation(
        **values, **measures, classes=tuple(classes), bins=(), published=None, records=records
    )


@pytest.mark.parametrize("count", [2, len(NAMES), 45, 100_000])
def test_any_classes_can_be_drawn_and_listed(count: int, tmp_path: Path) -> None:
    classes = [f"{NAMES[number % len(NAMES)]} {number}" for number in range(count)]
    evaluation = make_evaluation(classes, 200)
    draw_confusions(evaluation, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 300
        assert max(image.size) < 2500
    write_predictions(evaluation, tmp_path / "held_out.csv")
    with open(tmp_path / "held_out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [record.name for record in evaluation.records]
    assert [row["class"] for row in rows] == [
        classes[record.labels[0]] for record in evaluation.records
    ]
    assert [row["predicted"] for row in rows] == [
        classes[record.top[0]] for record in evaluation.records
    ]


def test_images_are_counted_by_class_and_prediction() -> None:
    labels, predicted = np.array([0, 0, 2, 4, 4, 4]), np.array([0, 2, 2, 4, 1, 0])
    counts = count_confusions(labels, predicted, np.arange(5))
    assert counts.sum() == 6
    assert [tuple(pair) for pair in np.argwhere(counts)] == sorted(set(zip(labels, predicted)))
    assert count_confusions(labels, predicted, np.array([0, 4])).tolist() == [[1, 0], [1, 1]]
