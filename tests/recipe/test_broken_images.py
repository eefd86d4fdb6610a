"""One broken image never ends a job: it is named, and all others are used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hostile_images
import pytest
import torch
from decoding import to_bytes
from image_support import NANO, write_images, write_tar
from shards_support import make_images, make_labels, write_labels

from swag_models.cli import main
from swag_models.inference import Classifier, Embedder
from swag_models.inference.image_sources import find_images
from swag_models.recipe.data.datasets import open_image_folder
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.data.loader import Decode, Loader
from swag_models.recipe.data.pack import pack
from swag_models.recipe.data.strip_metadata import strip_metadata
from swag_models.recipe.evaluation.zero_shot.logits import open_unlabelled

pytestmark = pytest.mark.usefixtures("one_thread")


def break_avif() -> bytes:
    """An AVIF for which Pillow raises RuntimeError."""
    content = hostile_images.encode("AVIF")
    start = content.index(b"mdat") + 4
    return content[:start] + b"\xff" * (len(content) - start)


def write_broken(folder: Path) -> list[str]:
    """Write files that no image can be read from; return their names."""
    files = {
        "avif.jpg": break_avif(),
        "row.png": hostile_images.BOMBS["wide png"](),
        "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "texture.dds": hostile_images.encode("DDS")[:84] + b"XXXX" + bytes(60),
        "palette.qoi": b"qoif" + bytes(4) + bytes([0, 0, 0, 9, 3, 0]) + b"\xfe",
        "empty.tga": b"",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "nowhere.png").symlink_to("nothing")
    return sorted([*files, "pipe.jpg", "nowhere.png"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A class folder with two images and the broken ones."""
    write_images(tmp_path / "data" / "a", 2)
    write_broken(tmp_path / "data" / "a")
    return tmp_path / "data"


def check_skipped(messages: Sequence[str]) -> None:
    """Check that every broken image is named in one short line."""
    assert len(messages) == 8
    for name in ("avif", "row", "program", "texture", "palette", "empty", "pipe", "nowhere"):
        (message,) = [text for text in messages if f"/a/{name}." in text or f"/{name}." in text]
        assert message.isprintable()
        assert len(message) < 500


def test_embed_and_classify(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    embeddings = Embedder(NANO, workers=2)(folder)
    assert [Path(name).name for name in embeddings.names] == ["0000.png", "0001.png"]
    check_skipped([image.reason for image in embeddings.skipped])
    assert sum(map(bool, Classifier(NANO)(folder))) == 2


def test_commands_end_with_1_and_name_the_images(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder.parent / "out.npy"
    assert main(["embed", str(folder), "--model", NANO, "-o", str(output), "--quiet"]) == 1
    lines = capsys.readouterr().err.splitlines()
    check_skipped([line for line in lines if "skipped: " in line])
    assert output.exists()


def test_evaluate(folder: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "rank": 0, "world_size": 1, "workers": 0}
    for data in (folder, open_unlabelled(folder)):
        loader = open_eval_loader(data, to_bytes, **options)
        assert sum(len(batch.ids) for batch in loader) == 2
        check_skipped(list(loader.skipped))


def test_read_from_shards(folder: Path) -> None:
    members = {
        f"{path.stem}.{path.suffix[1:]}": path.read_bytes()
        for path in sorted((folder / "a").iterdir())
        if path.is_file()
    }
    shard = write_tar(folder.parent / "x.tar", members)
    loader = Loader(
        str(shard),
        decode=Decode(to_bytes),
        batch_size=4,
        skip_broken=True,
        classes=lambda sample: (),
    )
    assert sum(len(images) for images, _ in loader) == 2
    assert loader.skipped.total() == 6
    assert all(message.isprintable() for message in loader.skipped)


def test_pack(tmp_path: Path) -> None:
    labels = make_labels(4)
    images = make_images(tmp_path / "images", list(labels))
    broken = write_broken(images)
    labels |= {Path(name).stem: ([0], 1.0) for name in broken}
    path = write_labels(tmp_path / "labels.parquet", labels)
    manifest = pack(path, [images], tmp_path / "shards", processes=1, progress=False)
    assert manifest["count"] == 4
    assert manifest["rejects"] == {"unreadable": 8}


def test_a_damaged_colour_profile_does_not_end_packing() -> None:
    profile = hostile_images.make_chunk(b"iCCP", b"x\0\0damaged")
    png = hostile_images.make_png(2, 2, bytes(6), profile)
    assert strip_metadata(png, "x.png")[1] == "png"


def test_symlinked_class_folders_are_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path / "real", 2)
    write_images(tmp_path / "data" / "dogs", 1)
    (tmp_path / "data" / "cats").symlink_to("../real")
    (tmp_path / "data" / "loop").symlink_to("..")
    (tmp_path / "data" / "all").symlink_to(".")
    (tmp_path / "data" / ".hidden").mkdir()
    for name in ("loose.png", "shard.tar", "cats/x.heic"):
        (tmp_path / "data" / name).touch()
    dataset = open_image_folder(tmp_path / "data")
    assert dataset.class_names == ("cats", "dogs")
    assert list(dataset.labels) == [(0,), (0,), (1,)]
    assert all(dataset.read(index).size == (32, 24) for index in range(3))
    (message,) = [record.message for record in caplog.records if record.name == "swag_models"]
    for kind in ("2 link to a folder above", "1 hidden folder", "1 .png", "1 .tar", "1 .heic"):
        assert kind in message


def test_a_narrow_image_is_named(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path, 1, height=1, width=60_000)
    (image,) = Embedder(NANO)(path).skipped
    assert image.reason.startswith(f"{path}: an image of 60000x1 would be")
    assert find_images(path)[0].read().size == (60_000, 1)


def test_memory_that_cannot_be_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of an image, not of the job."""

    def fail(*arguments: object) -> None:
        raise MemoryError

    (path,) = write_images(tmp_path, 1)
    monkeypatch.setattr("swag_models.preprocess.to_rgb", fail)
    (image,) = Embedder(NANO)(path).skipped
    assert image.reason == f"{path} cannot be read: MemoryError"
    assert torch.equal(Embedder(NANO)([]).vectors, torch.empty(0, 96))
