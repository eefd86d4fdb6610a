"""Scenes with several things: what they show, and that a sigmoid for each beats one label each."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from studies.__main__ import main
from studies.scenes.scene import render
from studies.several_labels import MOST_THINGS, plan_several, write_several
from swag_models.recipe.data.annotations import open_annotations


def test_scenes_show_one_to_four_things_that_differ() -> None:
    scenes = [plan_several(0, "train", number) for number in range(2000)]
    counts = Counter(len(scene.things) for scene in scenes)
    assert set(counts) == set(range(1, MOST_THINGS + 1))
    assert min(counts.values()) > 400
    assert all(len(set(scene.things)) == len(scene.things) for scene in scenes)
    frequency = Counter(thing for scene in scenes for thing in scene.things)
    assert len(frequency) == 32
    assert min(frequency.values()) > 100
    for scene in [scene for scene in scenes if len(scene.things) > 2][:3]:
        image = np.asarray(render(scene, 64))
        assert np.array_equal(image, np.asarray(render(scene, 64)))
        fewer = render(scene._replace(things=scene.things[:-1]), 64)
        assert not np.array_equal(image, np.asarray(fewer))


def test_the_files_name_all_things_and_one_of_them(tmp_path: Path) -> None:
    everything = write_several(tmp_path, "train", 40)
    rows, one = (
        {row["file_name"]: row["labels"] for row in csv.DictReader(path.read_text().splitlines())}
        for path in (everything, tmp_path / "one.csv")
    )
    assert rows.keys() == one.keys()
    assert all(one[name] in labels.split("|") for name, labels in rows.items())
    dataset = open_annotations(everything)
    assert (len(dataset), dataset.read(0).size) == (40, (64, 64))


def test_a_study_of_no_images_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["several", str(tmp_path / "x"), "--train", "0"]) == 2
    assert "train is 0; allowed: 1 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_the_sigmoid_beats_one_label_per_image(tmp_path: Path) -> None:
    """docs/multilabel.md has the figures of the complete study."""
    sizes = ["--train", "2000", "--test", "500", "--steps", "500", "--seeds", "1", "--quiet"]
    assert main(["several", str(tmp_path / "study"), *sizes]) == 0
    rows = json.loads((tmp_path / "study" / "several.json").read_text())
    values = {row["kind"]: row["mAP"] for row in rows}
    assert values["multilabel"] > values["finetune"] + 1, values
