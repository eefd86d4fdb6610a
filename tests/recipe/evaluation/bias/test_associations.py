"""The associations command, from a table to the report, with a shipped model on scenes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import finish, read_errors, start
from scipy import stats
from shards_support import read_bytes
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
from swag_models.recipe.evaluation.bias.disparity import Groups, measure_disparities
from swag_models.recipe.evaluation.models import open_evaluated_model

Capture = pytest.CaptureFixture[str]
MODEL = "regnety_nano_hashtags"
pytestmark = pytest.mark.usefixtures("one_thread")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def list_arguments(table: Path, output: Path, *options: str) -> list[str]:
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
    """400 scenes grouped by what they show; those of two things are in no group."""
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
    (folder / rest[0]["path"]).write_bytes(b"not an image")
    (folder / rest[1]["path"]).unlink()
    rest[2]["path"] = ""
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


def test_labels_are_the_top_k_above_the_threshold() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.94, 0.02, 0.03, 0.01]]).log()
    assert choose_labels(logits, 2, 0.2).tolist() == [[1, 2], [0, -1]]
    assert choose_labels(logits, 9, 0.015).tolist()[1] == [0, 2, 1, -1]
    sigmoids = torch.tensor([[0.9, 0.8, 0.1]]).logit()
    assert choose_labels(sigmoids, 3, 0.7, multi_label=True).tolist() == [[0, 1, -1]]


def test_command_writes_report_and_prints_table(
    table: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(list_arguments(table, tmp_path / "out")) == 1  # some images could not be read
    captured = capsys.readouterr()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("associations.json", "associations.md", "disparities.png", "neighbours.png")
    ]
    values = json.loads((tmp_path / "out" / "associations.json").read_text())
    with table.open() as file:
        motifs = [row["motif"] for row in csv.DictReader(file)]
    assert values["groups"] == {
        name: motifs.count(name) - 3 * (name == "rest") for name in ("cars", "flowers", "rest")
    }
    small, ungrouped = {"mushrooms": motifs.count("mushrooms")}, motifs.count("")
    left_out = {"groups": small, "without_group": ungrouped, "without_path": 1, "unreadable": 2}
    assert values["left_out"] == left_out
    assert "2 images could not be read" in captured.err
    rows = {(row["label"], row["group"]): row for row in values["disparities"]}
    for cell in (("flower", "flowers"), ("car", "cars")):
        assert rows[cell]["significant"]
        assert 0.2 < rows[cell]["interval"][0] < rows[cell]["disparity"] < rows[cell]["interval"][1]
    assert rows["flower", "cars"]["disparity"] < 0
    assert np.allclose(np.sum(values["neighbours"]["share"], 1), 1)
    assert values["neighbours"]["share"][0][0] > values["neighbours"]["expected"][0][0]
    text = (tmp_path / "out" / "associations.md").read_text()
    assert captured.out in text
    assert "not facts about people" in text
    assert "groups of fewer than 30 images: mushrooms" in text
    assert "the column `motif`" in text
    for name in ("disparities.png", "neighbours.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert min(image.size) > 200


def test_command_prints_json_without_neighbours(
    table: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = ["--json", "--neighbours", "0", "--threshold", "0.99", "--min-group", "2"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "neighbours.png").write_text("of an earlier report")
    assert main(list_arguments(table, tmp_path / "out", *options)) == 1
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads((tmp_path / "out" / "associations.json").read_text())
    assert values["neighbours"] is None
    assert "mushrooms" in values["groups"]
    assert values["labels"]["tested"] == len(values["disparities"]) == 0
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            ["--group-column", "country"],
            "has no column 'country'; its columns: path, motif, same; name one of them",
        ),
        (
            ["--group-column", "same"],
            "groups of 30 images or more: 1, but a comparison needs two",
        ),
        (["--top-k", "0"], "invalid top_k 0: allowed: 1 or more"),
        (["--threshold", "1"], "invalid threshold 1.0: allowed: 0 to below 1"),
        (["--permutations", "10"], "invalid permutations 10: allowed: 100 or more"),
        (["--neighbours", "1000"], "invalid neighbours 1000: allowed: 0 to "),
    ],
)
def test_command_rejects_invalid_options(
    options: list[str], problem: str, table: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(list_arguments(table, tmp_path / "out", *options)) == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_command_names_a_folder_that_cannot_be_written(
    table: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    assert main(list_arguments(table, tmp_path / "file" / "out")) == 1
    assert "out cannot be written" in capsys.readouterr().err


def test_missing_images_are_reported(tmp_path: Path, capsys: Capture) -> None:
    lines = [f"images/{number}.png,{number % 2}" for number in range(80)]
    (tmp_path / "table.csv").write_text("\n".join(["path,motif", *lines]))
    assert main(list_arguments(tmp_path / "table.csv", tmp_path / "out")) == 2
    message = capsys.readouterr().err
    assert "80 of 80 images cannot be read, and too few are left to compare: " in message
    assert "0.png" in message
    assert f"paths are relative to {tmp_path}, the table's folder" in message


def test_failure_to_open_the_model_leaves_no_folder(table: Path, tmp_path: Path) -> None:
    assert main([*list_arguments(table, tmp_path / "out"), "--device", "nowhere"]) == 2
    assert not list(tmp_path.iterdir())


def test_model_without_classes_is_rejected(table: Path, tmp_path: Path) -> None:
    folder = save(load_tiny(num_classes=None), tmp_path / "model", license="mit")
    with pytest.raises(ConfigError, match="has no classes and so no labels"):
        measure_associations(
            open_evaluated_model(str(folder)), open_grouped_images(table, "motif"), progress=False
        )


@pytest.mark.slow
def test_shipped_model_shows_planted_associations_and_none_with_shuffled_clubs(
    tmp_path: Path,
) -> None:
    """6,000 posts. Other findings are true of its labels: similar things, colours of each club."""
    write_scenes(tmp_path / "scenes", posts=6_000, held_out=0, progress=False)
    model, images = (
        open_evaluated_model(MODEL),
        open_grouped_images(tmp_path / "scenes" / "posts.jsonl", "group"),
    )
    disparities = measure_associations(
        model, images, AssociationConfig(permutations=500, neighbours=0), progress=False
    ).disparities
    names = model.classes
    assert names
    named = {
        (names[disparities.labels[row]], disparities.groups.names[group])
        for row, group in disparities.rank()
        if disparities.significant[row, group]
    }
    assert len(PLANTED.items() & named) >= 3
    assert not {(name, "ab"[club == "a"]) for name, club in PLANTED.items()} & named
    labels = torch.cat(
        [
            choose_labels(
                model.classify(torch.stack([model.fit(images.read(row)) for row in rows])),
                5,
                0.1,
            )
            for rows in torch.arange(len(images)).split(100)
        ]
    ).numpy()
    shuffled = [
        Groups(codes, disparities.groups.names) for codes in disparities.groups.permute(20, 11)
    ]
    hits = sum(
        measure_disparities(
            labels, groups, permutations=99, resamples=2, seed=seed
        ).significant.any()
        for seed, groups in enumerate(shuffled)
    )
    assert hits <= stats.binom.ppf(0.999, 20, 0.05)


@pytest.mark.slow
def test_number_of_ranks_does_not_change_results(table: Path, tmp_path: Path) -> None:
    outputs = dict[int, dict[str, bytes]]()
    for ranks in (1, 2, 3):
        arguments = list_arguments(table, tmp_path / str(ranks), "--batch-size", "7")
        assert finish(start(arguments, ranks)) == [1] * ranks, read_errors(arguments)
        outputs[ranks] = read_bytes(tmp_path / str(ranks))
        assert read_errors(arguments).count("2 images could not be read") == 1  # one rank prints
    assert len(outputs[1]) == 4
    assert outputs[1] == outputs[2] == outputs[3]
