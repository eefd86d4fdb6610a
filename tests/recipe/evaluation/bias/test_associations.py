"""From pictures and a table to a report: what a model that ships does on scenes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from tiny import load_tiny

from studies.scenes.gallery import write_scenes
from studies.scenes.things import PLANTED
from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.publish import save
from swag_models.recipe.evaluation.bias.associations import (
    AssociationConfig,
    choose_labels,
    measure_associations,
)
from swag_models.recipe.evaluation.bias.dataset import open_grouped_images
from swag_models.recipe.evaluation.bias.disparity import measure_disparities
from swag_models.recipe.evaluation.bias.disparity import Groups
from swag_models.recipe.evaluation.models import open_evaluated_model

Capture = pytest.CaptureFixture[str]
MODEL = "regnety_nano_hashtags"
pytestmark = pytest.mark.usefixtures("one_thread")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spell(table: Path, output: Path, *options: str) -> list[str]:
    """The arguments of the command."""
    arguments = [
        "recipe",
        "associations",
        MODEL,
        "--groups",
        str(table),
        "--group-column",
        "motif",
        "-o",
        str(output),
    ]
    return [*arguments, "--device", "cpu", "--permutations", "200", "--quiet", *options]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 scenes in groups by what they show: flowers, cars, a few mushrooms, anything else; those of two things in none."""
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(folder, posts=400, held_out=0, processes=1, progress=False)
    names = {"flower": "flowers", "car": "cars", "mushroom": "mushrooms"}
    rows = []
    for post, truth in zip(
        read_lines(folder / "posts.jsonl"), read_lines(folder / "truth.jsonl"), strict=True
    ):
        motif = names.get(truth["things"][0], "rest") if len(truth["things"]) == 1 else ""
        rows.append({"path": post["path"], "motif": motif, "same": "all"})
    rest = [row for row in rows if row["motif"] == "rest"]
    (folder / rest[0]["path"]).write_bytes(b"no picture")
    (folder / rest[1]["path"]).unlink()
    rest[2]["path"] = ""
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


def test_labels_are_the_best_that_are_more_probable_than_the_threshold() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.94, 0.02, 0.03, 0.01]]).log()
    assert choose_labels(logits, 2, 0.2).tolist() == [[1, 2], [0, -1]]
    assert choose_labels(logits, 9, 0.015).tolist()[1] == [0, 2, 1, -1]


def test_the_command_writes_what_it_found(table: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(spell(table, tmp_path / "out")) == 1  # some pictures could not be read
    shown = capsys.readouterr()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("associations.json", "associations.md", "disparities.png", "neighbours.png")
    ]
    found = json.loads((tmp_path / "out" / "associations.json").read_text())
    with table.open() as file:
        motifs = [row["motif"] for row in csv.DictReader(file)]
    assert found["groups"] == {
        name: motifs.count(name) - 3 * (name == "rest") for name in ("cars", "flowers", "rest")
    }
    small, ungrouped = {"mushrooms": motifs.count("mushrooms")}, motifs.count("")
    left_out = {"groups": small, "without_group": ungrouped, "without_path": 1, "unreadable": 2}
    assert found["left_out"] == left_out
    assert "2 pictures could not be read" in shown.err
    rows = {(row["label"], row["group"]): row for row in found["disparities"]}
    for place in (("flower", "flowers"), ("car", "cars")):
        assert rows[place]["found"]
        assert (
            0.2 < rows[place]["interval"][0] < rows[place]["disparity"] < rows[place]["interval"][1]
        )
    assert rows["flower", "cars"]["disparity"] < 0
    assert np.allclose(np.sum(found["neighbours"]["share"], 1), 1)
    assert found["neighbours"]["share"][0][0] > found["neighbours"]["expected"][0][0]
    text = (tmp_path / "out" / "associations.md").read_text()
    assert shown.out in text
    assert "They are not facts about people" in text
    assert "groups of fewer than 30 pictures: mushrooms" in text
    assert "the column `motif`" in text
    for name in ("disparities.png", "neighbours.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert min(image.size) > 200


def test_the_command_prints_json_and_can_leave_neighbours_out(
    table: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = ["--json", "--neighbours", "0", "--threshold", "0.99", "--min-group", "2"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "neighbours.png").write_text("of an earlier audit")
    assert main(spell(table, tmp_path / "out", *options)) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "out" / "associations.json").read_text())
    assert found["neighbours"] is None
    assert "mushrooms" in found["groups"]
    assert found["labels"]["judged"] == len(found["disparities"]) == 0
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            ["--group-column", "country"],
            "has no column 'country', but path, motif, same; name its group column",
        ),
        (
            ["--group-column", "same"],
            r"groups of 30 pictures or more: 1; two are needed to compare",
        ),
        (["--top-k", "0"], "top_k is 0; allowed: 1 or more"),
        (["--threshold", "1"], "threshold is 1.0; allowed: a probability from 0 to below 1"),
        (["--permutations", "10"], "permutations is 10; allowed: 100 or more"),
        (["--neighbours", "1000"], "neighbours is 1000; with "),
    ],
)
def test_the_command_says_what_cannot_be(
    options: list[str], problem: str, table: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(spell(table, tmp_path / "out", *options)) == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_the_command_says_where_it_cannot_write(
    table: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    assert main(spell(table, tmp_path / "file" / "out")) == 1
    assert "out cannot be written" in capsys.readouterr().err


def test_paths_that_lead_nowhere_are_told(tmp_path: Path, capsys: Capture) -> None:
    lines = [f"pictures/{number}.png,{number % 2}" for number in range(80)]
    (tmp_path / "table.csv").write_text("\n".join(["path,motif", *lines]))
    assert main(spell(tmp_path / "table.csv", tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "80 of 80 pictures cannot be read, and the others are too few to compare: " in said
    assert "0.png" in said
    assert f"paths are relative to {tmp_path}, the table's folder" in said


def test_a_model_that_cannot_be_opened_leaves_no_folder(table: Path, tmp_path: Path) -> None:
    assert main([*spell(table, tmp_path / "out"), "--device", "nowhere"]) == 2
    assert not list(tmp_path.iterdir())


def test_a_model_without_classes_gives_no_labels(table: Path, tmp_path: Path) -> None:
    folder = save(load_tiny(num_classes=None), tmp_path / "model", license="mit")
    with pytest.raises(ConfigError, match="has no classes, so it gives no labels"):
        measure_associations(
            open_evaluated_model(str(folder)), open_grouped_images(table, "motif"), progress=False
        )


@pytest.mark.slow
def test_a_model_that_ships_shows_what_was_planted_and_shuffled_clubs_show_nothing(
    tmp_path: Path,
) -> None:
    """Among 6,000 posts. What else it finds is true of its labels: things that look alike, and the clubs' own tones."""
    write_scenes(tmp_path / "scenes", posts=6_000, held_out=0, progress=False)
    candidate, roster = (
        open_evaluated_model(MODEL),
        open_grouped_images(tmp_path / "scenes" / "posts.jsonl", "group"),
    )
    found = measure_associations(
        candidate, roster, AssociationConfig(permutations=500, neighbours=0), progress=False
    ).disparities
    names = candidate.classes
    assert names
    named = {
        (names[found.labels[row]], found.groups.names[group])
        for row, group in found.rank()
        if found.found[row, group]
    }
    assert len(PLANTED.items() & named) >= 3
    assert not {(name, "ab"[club == "a"]) for name, club in PLANTED.items()} & named
    labels = torch.cat(
        [
            choose_labels(
                candidate.classify(torch.stack([candidate.fit(roster.read(row)) for row in rows])),
                5,
                0.1,
            )
            for rows in torch.arange(len(roster)).split(100)
        ]
    ).numpy()
    shuffled = [Groups(codes, found.groups.names) for codes in found.groups.permute(20, 11)]
    hits = sum(
        measure_disparities(labels, each, permutations=99, resamples=2, seed=seed).found.any()
        for seed, each in enumerate(shuffled)
    )
    assert hits <= stats.binom.ppf(0.999, 20, 0.05)
