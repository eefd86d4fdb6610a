"""Outputs that ranks compute are stored in the order of the images; an error ends all ranks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_support import write_tar
from PIL import Image
from ranks import run_ranks
from row_pass_support import COUNT, collect, work_on_rank
from shards_support import encode_jpeg

from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.evaluation.row_pass import CollectedRows
from swag_models.recipe.evaluation.stored_rows import StoredRows
from swag_models.recipe.training.distributed import SINGLE_PROCESS

pytestmark = pytest.mark.usefixtures("one_thread")
BOUND = 512  # MiB, stated in docs/zeroshot.md
COUNTS = (3,)  # numbers of ranks; slow tests of the commands also have 2
BROKEN = {4, 6, 8, 10, 11}  # one of batches 0 and 5, and all of batch 1


def write_folder(root: Path) -> Path:
    """Write images in two classes whose pixels are their number."""
    for number in range(COUNT):
        path = root / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        if number in BROKEN:
            path.write_bytes(b"")
    return root


def write_shards(root: Path) -> list[str]:
    """Write images in five shards, with a name that two images of equal class have in common."""
    root.mkdir()
    for shard in range(5):
        members: dict[str, bytes] = {}
        for number in range(shard, COUNT, 5):
            row = {"id": f"{max(1, number)}", "classes": [0], "repeat": 2.5}
            members[f"{number}.jpg"] = encode_jpeg(number, 16)
            members[f"{number}.json"] = json.dumps(row).encode()
        write_tar(root / f"{shard}.tar", members)
    return [str(root / f"{shard}.tar") for shard in range(5)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What the ranks have written, and the data."""
    root = tmp_path_factory.mktemp("ranks")
    data: dict[str, Any] = {"folder": write_folder(root / "x"), "shards": write_shards(root / "s")}
    (root / "output").mkdir()
    other = write_folder(root / "y")
    Image.new("RGB", (40, 40)).save(other / "a" / "new.png")
    for count in COUNTS:
        run_ranks(count, work_on_rank, root / "output", data | {"other": other})
    return root / "output", data


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_number_of_ranks_does_not_change_the_rows(
    kind: str, outputs: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    output, data = outputs
    rows = collect(data[kind], SINGLE_PROCESS, tmp_path)
    expected = [stored[:] for stored in rows.outputs]
    for count in COUNTS:
        with np.load(output / f"{kind} {count}.npz") as stored:
            for name, values in zip(stored, expected, strict=True):
                assert stored[name].dtype == values.dtype
                assert stored[name].tobytes() == values.tobytes()
        assert json.loads((output / f"{kind} {count}.json").read_text()) == [
            rows.names,
            [list(labels) for labels in rows.classes],
        ]
    if kind == "folder":
        numbers = [number for parity in (0, 1) for number in range(parity, COUNT, 2)]
        readable = [number for number in numbers if number not in BROKEN]
        assert rows.names == [f"{'ab'[number % 2]}/{number:02}.png" for number in readable]
        assert expected[0][:, 0].tolist() == pytest.approx([number / 3 for number in readable])
    else:
        assert rows.names == sorted(rows.names)
        with_worker = collect(data[kind], SINGLE_PROCESS, tmp_path, workers=1)
        assert with_worker.outputs[0][:].tobytes() == expected[0].tobytes()


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("compute", "rank 1 fails"),  # it reads batch 4, which has b/01.png
        ("data", "rank 1 finds other images of x than rank 0; give all machines the same files"),
        ("disk", "00.png cannot be written: "),
    ],
)
def test_error_of_one_rank_is_raised_on_all(
    problem: str, message: str, outputs: tuple[Path, dict[str, Any]]
) -> None:
    for count in COUNTS:
        errors = {(outputs[0] / f"{problem} {count} {rank}").read_text() for rank in range(count)}
        [error] = errors
        assert re.search(message, error)


def test_no_readable_image_gives_no_rows(tmp_path: Path) -> None:
    (tmp_path / "x" / "a").mkdir(parents=True)
    (tmp_path / "x" / "a" / "0.png").write_bytes(b"")
    images = ImageDataset.from_files(tmp_path / "x", ["a/0.png"] * COUNT, [(0,)] * COUNT, ["a"])
    assert collect(images, SINGLE_PROCESS, tmp_path) == CollectedRows()


def test_stored_rows_equal_the_array(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    rows = StoredRows(tmp_path / "new", 7)
    assert rows[:].shape == (0, 7)
    for start in range(0, 50, 8):
        rows.append(values[start : start + 8].astype(np.float64))
    assert (rows.shape, len(rows), rows.dtype) == (values.shape, 50, np.float32)
    order = np.random.default_rng(1).permutation(50)[:31]
    for stored, expected in (
        (rows, values),
        (rows.select(order), values[order]),
        (rows.select(order).select(np.arange(30, 0, -3)), values[order][30:0:-3]),
    ):
        assert (stored[:] == expected).all()
        assert (stored[3:9] == expected[3:9]).all()
        assert stored[len(expected) + 5 :].shape == (0, 7)
        assert [len(block) for block in stored.split(4)] == [
            min(4, len(expected) - start) for start in range(0, len(expected), 4)
        ]
        assert (np.concatenate(list(stored.split(4))) == expected).all()
    assert not list((tmp_path / "new").iterdir())  # the file has no name
    selected = StoredRows(tmp_path, 7)
    selected.append(values)
    selected = selected.select(order)  # is the last user of the file
    assert (selected[:] == values[order]).all()


MEASURED = """
import resource
import sys
from pathlib import Path

import torch

from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.evaluation.zero_shot.calibration import fit_platt
from swag_models.recipe.evaluation.zero_shot.classifier import _predict
from swag_models.recipe.evaluation.zero_shot.logits import read_logits
from PIL import Image

IMAGES, CLASSES, TARGETS = 8000, 27_000, 1000


class Model:
    name, num_classes = "random", CLASSES

    def fit(self, image):
        return torch.zeros(3, 1, 1, dtype=torch.uint8)

    def classify(self, images):
        return torch.randn(len(images), CLASSES) + torch.linspace(-2, 2, CLASSES)


def read(index, decode=None):
    return Image.new("RGB", (1, 1))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MiB


names = [str(number) for number in range(IMAGES)]
images = ImageDataset(
    kind="images", root=Path("x"), title="x", names=names, labels=[()] * IMAGES,
    class_names=None, num_classes=0, sha256="", files=[], reader=read,
)
weights = torch.sparse_coo_tensor(
    torch.stack([torch.arange(CLASSES), torch.arange(CLASSES) % TARGETS]),
    torch.rand(CLASSES), (CLASSES, TARGETS),
).coalesce()
before = peak()
logits = read_logits(Model(), images, None, progress=False, scratch=Path(sys.argv[1]))
platt = fit_platt(logits.values, tolerance=0.2)
predictions = tuple(_predict(logits, platt.apply, weights, "sum"))
assert len(predictions) == IMAGES
assert [prediction.name for prediction in predictions] == names
print(logits.values.shape[0] * logits.values.shape[1] * 4 >> 20, peak() - before)
"""


@pytest.mark.slow
def test_zero_shot_needs_at_most_the_stated_memory(tmp_path: Path) -> None:
    """Logits of 27,000 classes, which are larger than the bound of docs/zeroshot.md."""
    process = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    stored, used = map(int, process.stdout.split())
    print(f"{stored} MiB of logits, {used} MiB of memory")
    assert used < BOUND < stored
