"""Every image makes one record for any number of ranks; files contain all results."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks_support import compute_logits, list_images, save_tiny
from image_support import list_names, render_scenes, write_images, write_tar
from pyarrow.parquet import read_table
from runs import finish, make_digits, read_errors, start
from shards_support import encode_jpeg, make_shards, read_bytes

from swag_models import load_classes
from swag_models.cli import main
from swag_models.errors import CheckpointError, ConfigError, OutputError
from swag_models.recipe.evaluation.accuracy.evaluate import evaluate
from swag_models.recipe.evaluation.evaluation_files import format_evaluations, write_evaluation
from swag_models.recipe.evaluation.models import open_evaluated_model
from swag_models.recipe.evaluation.results import Evaluation
from swag_models.recipe.training.distributed import init_distributed

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = [f"digit {number}" for number in range(10)]
NANO = "regnety_nano_hashtags"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_tiny(tmp_path_factory.mktemp("tiny") / "tiny", CLASSES, 10)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 images that can be read, and a broken one."""
    root = make_digits(tmp_path_factory.mktemp("digits") / "test", 30)
    next(root.rglob("7.png")).write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 images in 6 shards."""
    return make_shards(tmp_path_factory.mktemp("packed"), 22, 4)


@pytest.fixture(scope="module")
def evaluation(model: Path, digits: Path) -> Evaluation:
    return measure(str(model), digits)


def measure(model: str, data: Any, **options: Any) -> Evaluation:
    with init_distributed() as dist:
        return evaluate(
            open_evaluated_model(model),
            data,
            dist=dist,
            **{"batch_size": 4, "progress": False, **options},
        )


def test_records_equal_predictions_of_the_model(
    evaluation: Evaluation, model: Path, digits: Path
) -> None:
    readable = {name: path for name, path in list_images(digits).items() if path.stat().st_size}
    logits = compute_logits(model, readable)
    assert [record.name for record in evaluation.records] == sorted(readable)
    for record in evaluation.records:
        image_logits = logits[record.name]
        assert record.top == tuple(image_logits.topk(5).indices.tolist())
        assert record.labels == (CLASSES.index(record.name.split("/")[0]),)
        assert record.probability == pytest.approx(image_logits.softmax(0).max().item(), rel=1e-5)
    hits = [logits[name].argmax() == CLASSES.index(name.split("/")[0]) for name in readable]
    assert evaluation.top1.value == pytest.approx(100 * np.mean(hits))
    assert evaluation.facts["samples"] == 30
    [(message, count)] = evaluation.skipped.items()
    assert "7.png" in message
    assert count == 1


def test_classes_with_equal_logits_keep_their_order(model: Path, digits: Path) -> None:
    with init_distributed() as dist:
        evaluated = open_evaluated_model(str(model))
        head = evaluated.network.head
        with torch.no_grad():
            head.weight[[2, 5, 8]], head.bias[[2, 5, 8]] = 0, 1  # exactly equal logits
        records = evaluate(evaluated, digits, dist=dist, progress=False).records
    equal = [[label for label in record.top if label in (2, 5, 8)] for record in records]
    assert [2, 5, 8] in equal
    assert all(labels == [2, 5, 8][: len(labels)] for labels in equal)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_number_of_ranks_does_not_change_results(
    kind: str, model: Path, digits: Path, shards: Path, tmp_path: Path
) -> None:
    """A RegNet's logits depend on the batch size; the last batch of a shard on the ranks."""
    if kind == "folder":
        data, name, exit_code, num_images = digits, str(model), 1, 29  # 1: an image is broken
    else:
        data, name, exit_code, num_images = shards, NANO, 0, 22
    outputs = {}
    for ranks in (1, 2, 3):
        output = tmp_path / str(ranks)
        arguments = ["recipe", "evaluate", name, "--data", str(data), "-o", str(output)]
        arguments += ["--batch-size", "4", "--quiet"]
        assert finish(start(arguments, ranks)) == [exit_code] * ranks, read_errors(arguments)
        outputs[ranks] = read_bytes(output)
        assert read_errors(arguments).count("| folder |") == 1  # one rank prints the table
    assert len(outputs[1]) == 3
    assert outputs[1] == outputs[2] == outputs[3]
    rows = read_table(next(output.glob("*.parquet"))).to_pylist()
    assert len(rows) == num_images == len({row["name"] for row in rows})


def test_images_in_shards_give_the_same_predictions_as_files(model: Path, tmp_path: Path) -> None:
    """Seven JPEGs in one shard: one is broken, and two have several labels."""
    members: dict[str, bytes] = {}
    for number in range(7):
        members[f"{number}.jpg"] = b"" if number == 3 else encode_jpeg(number, 40)
        classes = [number, 9] if number < 2 else [number]
        row = {"id": f"{number}", "classes": classes, "repeat": 2.5}
        members[f"{number}.json"] = json.dumps(row).encode()
    packed = measure(str(model), write_tar(tmp_path / "x.tar", members))
    assert [(record.name, record.labels) for record in packed.records] == [
        (str(number), (number, 9) if number < 2 else (number,)) for number in (0, 1, 2, 4, 5, 6)
    ]
    for name, content in members.items():
        if name.endswith(".jpg") and content:
            folder = tmp_path / "files" / CLASSES[int(name[0])]
            folder.mkdir(parents=True)
            (folder / name).write_bytes(content)
    files = measure(str(model), tmp_path / "files")
    assert [record.top for record in files.records] == [record.top for record in packed.records]


def test_files_contain_the_evaluation(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation = replace(evaluation, model="hf-hub:org/x@main")
    folder = tmp_path / "new" / "folder"
    write_evaluation(evaluation, folder)
    stem = "hf-hub-org-x-main-folder"
    assert list_names(folder) == [f"{stem}.json", f"{stem}.md", f"{stem}.parquet"]
    stored = json.loads((folder / f"{stem}.json").read_text())
    assert stored == json.loads(json.dumps(evaluation.summarise()))
    assert stored["top1"]["value"] == evaluation.top1.value
    rows = read_table(folder / f"{stem}.parquet").to_pylist()
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    for row, record in zip(rows, evaluation.records, strict=True):
        assert row["label_names"] == [row["name"].split("/")[0]]
        assert (row["labels"], row["predicted"]) == (list(record.labels), record.top[0])
        assert row["predicted_name"] == CLASSES[row["predicted"]]
        assert row["hit1"] == (row["labels"][0] == record.top[0])
        assert row["hit5"] == (row["labels"][0] in record.top)
    assert np.mean([row["hit5"] for row in rows]) * 100 == pytest.approx(evaluation.top5.value)


def test_evaluation_survives_a_round_trip_through_json(evaluation: Evaluation) -> None:
    values = json.loads(json.dumps(evaluation.to_dict()))
    assert Evaluation.from_dict(values) == evaluation


def test_files_are_complete_or_absent(
    evaluation: Evaluation, model: Path, digits: Path, tmp_path: Path
) -> None:
    write_evaluation(evaluation, tmp_path)
    before = read_bytes(tmp_path)
    not_json = replace(evaluation, skipped={"name": object()})
    with pytest.raises(TypeError):
        write_evaluation(not_json, tmp_path)
    assert read_bytes(tmp_path) == before
    blocked = tmp_path / "tiny-folder.md" / "below"  # below a file
    with init_distributed() as dist, pytest.raises(OutputError, match="cannot be written"):
        evaluate(open_evaluated_model(str(model)), digits, dist=dist, output=blocked)
    with init_distributed() as dist, pytest.raises(OutputError, match="cannot be written"):
        dist.run_on_main(lambda: write_evaluation(evaluation, blocked))


def test_results_of_other_data_or_settings_are_not_overwritten(
    evaluation: Evaluation,
    model: Path,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, other = tmp_path / "out", make_digits(tmp_path / "other", 2)
    command = ["recipe", "evaluate", str(model), "-o", str(output), "--quiet", "--data"]
    assert main([*command, str(other)]) == 0
    before = read_bytes(output)
    for arguments, different in (
        ([str(digits)], "data"),
        ([str(other), "--only-present"], "settings"),
        ([str(other), "--image-size", "64"], "settings"),
        ([str(digits), "--dtype", "bfloat16"], "data and settings"),
    ):
        assert main([*command, *arguments]) == 2
        message = f"tiny-folder.json has results of other {different}; choose another folder"
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match="results of other data"):
        write_evaluation(evaluation, output)
    assert main([*command, str(other)]) == 0
    assert read_bytes(output) == before
    (output / "tiny-folder.json").write_text("[]")
    assert main([*command, str(other)]) == 2
    assert "is not an evaluation or is damaged; move it" in capsys.readouterr().err


def test_table_marks_differences_from_published_results(evaluation: Evaluation) -> None:
    top1 = evaluation.top1.value
    for published, cell in (
        (None, " |  |"),
        (top1 - 0.05, "| +0.05 |"),
        (top1 + 0.25, "| **-0.25** |"),
    ):
        table = format_evaluations([replace(evaluation, published=published)])
        assert table.count("\n") == 3
        assert table.rstrip().endswith(cell)
    assert "| 29, 1 broken |" in table
    incomplete = replace(evaluation, benchmark="imagenet-a")
    assert "| 29 of 7,500, 1 broken |" in format_evaluations([incomplete])


def test_only_present_excludes_other_classes(tmp_path: Path) -> None:
    images, class_names = render_scenes(64)
    for number, (image, class_name) in enumerate(zip(images, class_names)):
        (tmp_path / class_name).mkdir(exist_ok=True)
        image.save(tmp_path / class_name / f"{number}.png")
    all_classes = measure(NANO, tmp_path, batch_size=64)
    present = measure(NANO, tmp_path, batch_size=64, only_present=True)
    assert 15 < all_classes.top1.value <= present.top1.value < 80
    labels = {load_classes(NANO).index(class_name) for class_name in class_names}
    assert {label for record in present.records for label in record.top} <= labels
    assert not {label for record in all_classes.records for label in record.top} <= labels


def test_unreadable_data_and_invalid_options_are_rejected(model: Path, tmp_path: Path) -> None:
    for path in write_images(tmp_path / CLASSES[0], 3):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no image in .* can be read: .*png"):
        measure(str(model), tmp_path)
    for name, value, allowed in (("batch_size", 0, "1 or more"), ("workers", -1, "0 or more")):
        with pytest.raises(ConfigError, match=f"{name} .*{value}.* allowed:? {allowed}"):
            measure(str(model), tmp_path, **{name: value})
    unlabelled = {"0.jpg": encode_jpeg(0), "0.json": b'{"id": "a", "classes": [], "repeat": 1}'}
    with pytest.raises(ConfigError, match="a has no class; give images with at least one"):
        measure(str(model), write_tar(tmp_path / "x.tar", unlabelled))


def test_logits_that_are_not_finite_are_rejected(model: Path, digits: Path) -> None:
    with init_distributed() as dist:
        evaluated = open_evaluated_model(str(model))
        with torch.no_grad():
            evaluated.network.head.bias[3] = torch.nan
        message = r"tiny.* returns NaN or infinity, because its weights .*: head\.bias; load"
        with pytest.raises(CheckpointError, match=message):
            evaluate(evaluated, digits, dist=dist, progress=False)


def test_command_prints_a_table_or_json(
    model: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readable = tmp_path / "readable"
    shutil.copytree(digits, readable)
    next(readable.rglob("7.png")).unlink()
    command = ["recipe", "evaluate", str(model), "--data"]
    assert main([*command, str(readable)]) == 0
    out, err = capsys.readouterr()
    assert [line.split(" | ")[:3] for line in out.splitlines()[::2]] == [
        ["| model", "benchmark", "images"],
        ["| tiny", "folder", "29"],
    ]
    assert "29/29" not in err  # a progress bar is for terminals
    options = ["--json", "--quiet", "--workers", "1", "--dtype", "bfloat16"]
    assert main([*command, str(digits), *options]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["facts"]["samples"] == 30
    assert err.startswith("swag-models: skipped: ")
    assert err.count("\n") == 1
    assert main([*command, str(readable), "--device", "nowhere"]) == 2
    assert "device 'nowhere' cannot be used here" in capsys.readouterr().err
