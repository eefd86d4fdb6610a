"""Helpers for tests of the report: images of scenes, a report on the shipped models, its tables."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from studies.scenes.posts import split_held_out
from studies.scenes.scene import encode
from swag_models.recipe.evaluation.report.collect import MEASURED_FOLDER, collect_report
from swag_models.recipe.evaluation.results import Evaluation, Probe

MODELS = ("regnety_nano_hashtags", "vit_nano_hashtags")
DATE = "24 November 2026"


def make_scenes(root: Path, count: int = 3) -> tuple[Path, Path]:
    """Folders of labelled images for training and testing, with `count` images of each thing."""
    folders = (root / "labelled", root / "held out")
    for folder, images in zip(folders, split_held_out(count, count)):
        for number, image in enumerate(images):
            path = folder / image.row["thing"] / f"{number:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image.scene, 64))
    return folders


def measure(
    output: Path,
    train: Path,
    test: Path,
    models: tuple[str, ...] = MODELS,
    shots: tuple[int | None, ...] = (1, 2, None),
) -> Path:
    """Measure models and write a report with all its sections; return the path of the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWAG_MODELS_CACHE", str(output.parent / "cache"))
        return collect_report(
            models,
            [("folder", str(test))],
            output,
            date=DATE,
            train=str(train),
            test=str(test),
            shots=shots,
            progress=False,
        )


def read_measured(output: Path) -> tuple[list[Evaluation], list[Probe]]:
    """The stored results of a report, sorted by model."""
    evaluations, probes = [], []
    for path in (output / MEASURED_FOLDER).glob("*.json"):
        values = json.loads(path.read_text())["result"]
        if isinstance(values, dict):
            evaluations.append(Evaluation.from_dict(values))
        else:
            probes += [Probe.from_dict(row) for row in values]
    evaluations.sort(key=lambda evaluation: evaluation.model)
    probes.sort(key=lambda probe: probe.model)
    return evaluations, probes


class Tables(HTMLParser):
    """The text of every cell in every table body."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._body = self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tbody":
            self._body = True
        elif self._body and tag == "tr":
            self.tables[-1].append([])
        elif self._body and tag in ("th", "td"):
            self._cell = True
            self.tables[-1][-1].append("")
        elif self._cell and tag == "small":
            self.tables[-1][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        self._body = self._body and tag != "tbody"
        self._cell = self._cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data
