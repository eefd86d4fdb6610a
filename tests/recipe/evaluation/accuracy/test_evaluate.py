"""Every picture has one record, whatever ranks there are, and what is written is what was measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks_support import list_pictures, run_by_hand, save_tiny
from image_support import list_names, render_scenes, write_images, write_tar
from pyarrow.parquet import read_table
from runs import finish, make_digits, read_errors, start
from shards_support import encode_jpeg, make_shards, read_bytes

from swag_models import load_classes
from swag_models.cli import main
from swag_models.errors import ConfigError, OutputError
from swag_models.recipe.evaluation.accuracy.evaluate import (
    evaluate,
    tabulate_evaluations,
    write_evaluation,
)
from swag_models.recipe.evaluation.models import open_evaluated_model
from swag_models.recipe.evaluation.results import Evaluation
from swag_models.recipe.training.distributed import init_distributed

pytestmark = pytest.mark.usefixtures("one_thread")

DIGITS = [f"digit {number}" for number in range(10)]
NANO = "regnety_nano_hashtags"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_tiny(tmp_path_factory.mktemp("tiny") / "tiny", DIGITS, 10)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 pictures that can be read, and one that cannot."""
    root = make_digits(tmp_path_factory.mktemp("digits") / "test", 30)
    next(root.rglob("7.png")).write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 pictures in 6 shards."""
    return make_shards(tmp_path_factory.mktemp("packed"), 22, 4)


@pytest.fixture(scope="module")
def found(model: Path, digits: Path) -> Evaluation:
    return measure(str(model), digits)


def measure(model: str, data: Any, **options: Any) -> Evaluation:
    with init_distributed() as dist:
        return evaluate(
            open_evaluated_model(model),
            data,
            dist=dist,
            **{"batch_size": 4, "progress": False, **options},
        )


def test_records_are_those_of_the_model_by_hand(
    found: Evaluation, model: Path, digits: Path
) -> None:
    readable = {name: path for name, path in list_pictures(digits).items() if path.stat().st_size}
    logits = run_by_hand(model, readable)
    assert [record.name for record in found.records] == sorted(readable)
    for record in found.records:
        best = logits[record.name].topk(5).indices
        assert record.top == tuple(best.tolist())
        assert record.labels == (DIGITS.index(record.name.split("/")[0]),)
        assert record.probability == pytest.approx(
            logits[record.name].softmax(0).max().item(), rel=1e-5
        )
    hits = [logits[name].argmax() == DIGITS.index(name.split("/")[0]) for name in readable]
    assert found.top1.value == pytest.approx(100 * np.mean(hits))
    assert (list(found.skipped.values()), found.facts["samples"]) == ([1], 30)
    assert "7.png" in next(iter(found.skipped))


def test_equal_classes_are_in_their_order(model: Path, digits: Path) -> None:
    with init_distributed() as dist:
        candidate = open_evaluated_model(str(model))
        head = candidate.network.head
        with torch.no_grad():
            head.weight[[2, 5, 8]], head.bias[[2, 5, 8]] = 0, 1  # to the bit
        records = evaluate(candidate, digits, dist=dist, progress=False).records
    together = [[each for each in record.top if each in (2, 5, 8)] for record in records]
    assert [2, 5, 8] in together
    assert all(each == [2, 5, 8][: len(each)] for each in together)


@pytest.mark.parametrize("kind", [pytest.param("folder", marks=pytest.mark.slow), "shards"])
def test_one_two_and_three_ranks_find_the_same(
    kind: str, model: Path, digits: Path, packed: Path, tmp_path: Path
) -> None:
    """A RegNet's logits depend on the size of the batch, and how shards end in batches on the number of ranks."""
    data, name, expected = (
        (digits, str(model), 1) if kind == "folder" else (packed, NANO, 0)
    )  # 1: a picture is broken
    runs = {}
    for ranks in (1, 2, 3):
        output = tmp_path / str(ranks)
        arguments = [
            "recipe",
            "evaluate",
            name,
            "--data",
            str(data),
            "-o",
            str(output),
            "--batch-size",
            "4",
            "--quiet",
        ]
        assert finish(start(arguments, ranks)) == [expected] * ranks, read_errors(arguments)
        runs[ranks] = read_bytes(output)
        assert read_errors(arguments).count("| folder |") == 1  # the table, from the first
    assert len(runs[1]) == 3
    assert runs[1] == runs[2] == runs[3]
    rows = read_table(next(output.glob("*.parquet"))).to_pylist()
    assert len(rows) == (29 if kind == "folder" else 22) == len({row["name"] for row in rows})


def test_shards_are_read_as_their_pictures_alone(model: Path, tmp_path: Path) -> None:
    """Of a JPEG each, in one shard, one of them broken, and two with several labels."""
    members: dict[str, bytes] = {}
    for number in range(7):
        members[f"{number}.jpg"] = b"" if number == 3 else encode_jpeg(number, 40)
        classes = [number, 9] if number < 2 else [number]
        members[f"{number}.json"] = json.dumps(
            {"id": f"{number}", "classes": classes, "repeat": 2.5}
        ).encode()
    found = measure(str(model), write_tar(tmp_path / "x.tar", members))
    assert [(record.name, record.labels) for record in found.records] == [
        (str(number), (number, 9) if number < 2 else (number,)) for number in (0, 1, 2, 4, 5, 6)
    ]
    for name, content in members.items():
        if name.endswith(".jpg") and content:
            (tmp_path / "alone" / DIGITS[int(name[0])]).mkdir(parents=True)
            (tmp_path / "alone" / DIGITS[int(name[0])] / name).write_bytes(content)
    alone = measure(str(model), tmp_path / "alone")
    assert [record.top for record in alone.records] == [record.top for record in found.records]


def test_what_is_written_is_what_was_found(found: Evaluation, tmp_path: Path) -> None:
    write_evaluation(replace(found, model="hf-hub:org/x@main"), tmp_path / "new" / "folder")
    stem = "hf-hub-org-x-main-folder"
    folder = tmp_path / "new" / "folder"
    assert list_names(folder) == [f"{stem}.json", f"{stem}.md", f"{stem}.parquet"]
    stored = json.loads((folder / f"{stem}.json").read_text())
    assert stored == json.loads(json.dumps(replace(found, model="hf-hub:org/x@main").summarise()))
    assert stored["top1"]["value"] == found.top1.value
    rows = read_table(folder / f"{stem}.parquet").to_pylist()
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    for row, record in zip(rows, found.records, strict=True):
        assert row["label_names"] == [row["name"].split("/")[0]]
        assert (row["labels"], row["predicted"]) == (list(record.labels), record.top[0])
        assert row["predicted_name"] == DIGITS[row["predicted"]]
        assert (row["hit1"], row["hit5"]) == (
            row["labels"][0] == record.top[0],
            row["labels"][0] in record.top,
        )
    assert np.mean([row["hit5"] for row in rows]) * 100 == pytest.approx(found.top5.value)


def test_files_appear_whole_or_not_at_all(
    found: Evaluation, model: Path, digits: Path, tmp_path: Path
) -> None:
    write_evaluation(found, tmp_path)
    before = read_bytes(tmp_path)
    broken = replace(found, skipped={"name": object()})  # nothing that JSON could hold
    with pytest.raises(TypeError):
        write_evaluation(broken, tmp_path)
    assert read_bytes(tmp_path) == before
    with init_distributed() as dist, pytest.raises(OutputError, match="cannot be written"):
        evaluate(
            open_evaluated_model(str(model)),
            digits,
            dist=dist,
            output=tmp_path / "tiny-folder.md" / "below",
        )
    with init_distributed() as dist, pytest.raises(OutputError, match="cannot be written"):
        dist.run_on_main(lambda: write_evaluation(found, tmp_path / "tiny-folder.md" / "below"))


def test_results_of_other_data_or_settings_are_kept(
    found: Evaluation, model: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_digits(tmp_path / "other", 2)
    command = ["recipe", "evaluate", str(model), "-o", str(tmp_path / "out"), "--quiet", "--data"]
    assert main([*command, str(other)]) == 0
    before = read_bytes(tmp_path / "out")
    for arguments, what in (
        ([str(digits)], "data"),
        ([str(other), "--only-present"], "settings"),
        ([str(other), "--image-size", "64"], "settings"),
        ([str(digits), "--dtype", "bfloat16"], "data and settings"),
    ):
        assert main([*command, *arguments]) == 2
        assert (
            f"tiny-folder.json has results of other {what}; give another folder"
            in capsys.readouterr().err
        )
    with pytest.raises(ConfigError, match="results of other data"):
        write_evaluation(found, tmp_path / "out")
    assert main([*command, str(other)]) == 0
    assert read_bytes(tmp_path / "out") == before
    (tmp_path / "out" / "tiny-folder.json").write_text("[]")
    assert main([*command, str(other)]) == 2
    assert "is no evaluation that can be read; move it" in capsys.readouterr().err


def test_the_table_marks_a_difference_from_what_was_published(found: Evaluation) -> None:
    top1 = found.top1.value
    for published, cell in (
        (None, " |  |"),
        (top1 - 0.05, "| +0.05 |"),
        (top1 + 0.25, "| **-0.25** |"),
    ):
        table = tabulate_evaluations([replace(found, published=published)])
        assert table.count("\n") == 3
        assert table.rstrip().endswith(cell)
    assert "| 29, 1 broken |" in table
    assert "| 29 of 7,500, 1 broken |" in tabulate_evaluations(
        [replace(found, benchmark="imagenet-a")]
    )


def test_without_the_other_classes_no_more_is_mistaken(tmp_path: Path) -> None:
    pictures, things = render_scenes(64)
    for number, (picture, thing) in enumerate(zip(pictures, things)):
        (tmp_path / thing).mkdir(exist_ok=True)
        picture.save(tmp_path / thing / f"{number}.png")
    everything, present = (
        measure(NANO, tmp_path, only_present=only, batch_size=64) for only in (False, True)
    )
    assert 15 < everything.top1.value <= present.top1.value < 80
    present_classes = {load_classes(NANO).index(thing) for thing in things}
    assert {label for record in present.records for label in record.top} <= present_classes
    assert not {label for record in everything.records for label in record.top} <= present_classes


def test_nothing_to_read_is_refused(model: Path, tmp_path: Path) -> None:
    for path in write_images(tmp_path / DIGITS[0], 3):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no picture in .* can be read: .*png"):
        measure(str(model), tmp_path)
    for name, wrong, allowed in (("batch_size", 0, "1 or more"), ("workers", -1, "0 or more")):
        with pytest.raises(ConfigError, match=f"{name} is {wrong}; allowed: {allowed}"):
            measure(str(model), tmp_path, **{name: wrong})
    bare = {"0.jpg": encode_jpeg(0), "0.json": b'{"id": "a", "classes": [], "repeat": 1}'}
    with pytest.raises(ConfigError, match="a has no class to compare with"):
        measure(str(model), write_tar(tmp_path / "x.tar", bare))


def test_numbers_that_are_none_are_refused(model: Path, digits: Path) -> None:
    with init_distributed() as dist:
        candidate = open_evaluated_model(str(model))
        with torch.no_grad():
            candidate.network.head.bias[3] = torch.nan
        with pytest.raises(
            ConfigError,
            match=r"digit 0/\d+.png, or one beside it, numbers that are not finite; try dtype",
        ):
            evaluate(candidate, digits, dist=dist, progress=False)


def test_the_command_prints_a_table_or_json(
    model: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(digits, whole)
    next(whole.rglob("7.png")).unlink()
    command = ["recipe", "evaluate", str(model), "--data"]
    assert main([*command, str(whole)]) == 0
    out, err = capsys.readouterr()
    assert [line.split(" | ")[:3] for line in out.splitlines()[::2]] == [
        ["| model", "benchmark", "pictures"],
        ["| tiny", "folder", "29"],
    ]
    assert "29/29" in err
    assert (
        main([*command, str(digits), "--json", "--quiet", "--workers", "1", "--dtype", "bfloat16"])
        == 1
    )
    out, err = capsys.readouterr()
    assert json.loads(out)["facts"]["samples"] == 30
    assert err.startswith("swag-models: skipped: ")
    assert err.count("\n") == 1
    assert main([*command, str(whole), "--device", "nowhere"]) == 2
    assert "device 'nowhere' cannot be used here" in capsys.readouterr().err
