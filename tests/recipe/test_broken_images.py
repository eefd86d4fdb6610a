"""One broken image never ends a job: it is named, and all others are used."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hostile_images
import pytest
import torch
from decoding import to_bytes
from image_support import NANO, write_images, write_tar
from runs import make_arguments, make_digits
from shards_support import make_images, make_labels, make_shards, write_labels

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
    monkeypatch.setattr("swag_models.image_decoding.to_rgb", fail)
    (image,) = Embedder(NANO)(path).skipped
    assert image.reason == f"{path} cannot be read: MemoryError"
    assert torch.equal(Embedder(NANO)([]).vectors, torch.empty(0, 96))


def test_probe(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = folder.parent / "data"
    (folder.parent / "good").mkdir()
    write_images(folder.parent / "good" / "a", 2)
    options = ["--methods", "knn", "--quiet", "--cache", str(folder.parent / "cache"), "--json"]
    for _ in range(2):  # the second time from the cache
        command = ["recipe", "probe", NANO, "--train", str(data), "--test", str(data), *options]
        assert main(command) == 1
        assert [probe["skipped"] for probe in json.loads(capsys.readouterr().out)] == [16]
        expected = "left out 8 images or shards of data that could not be read: "
        assert [record.message[: len(expected)] for record in caplog.records] == [expected] * 2
        caplog.clear()
    shutil.rmtree(data / "a")
    (data / "a").mkdir()
    (data / "a" / "x.png").touch()
    good = str(folder.parent / "good")
    for train, test in ((str(data), good), (good, str(data))):
        assert main(["recipe", "probe", NANO, "--train", train, "--test", test, *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("swag-models: error: no image of data can be read: ")


def test_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, output = make_digits(tmp_path / "bad", 20), tmp_path / "run"
    for path in bad.rglob("*.png"):
        path.write_bytes(b"no image")
    settings = ["steps=2", "batch_size=4", "engine.workers=0"]
    output.mkdir()
    (output / "notes.txt").touch()  # of the user
    assert main([*make_arguments(bad, output, *settings), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"swag-models: error: 100 images of .*bad in a row cannot be read; the", line)
    assert sorted(path.name for path in output.iterdir()) == [".lock", "notes.txt"]
    assert main([*make_arguments(bad, tmp_path / "new" / "run", *settings), "--quiet"]) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_validation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, output = make_digits(tmp_path / "data", 20), tmp_path / "run"
    validation = make_digits(tmp_path / "validation", 20)
    for path in validation.rglob("*.png"):
        path.write_bytes(b"no image")
    settings = ["steps=4", "batch_size=4", "engine.workers=0", "eval_every=2"]
    arguments = make_arguments(data, output, *settings, options=["--val", validation])
    assert main([*arguments, "--quiet"]) == 0
    (message,) = [line for line in caplog.messages if "could not be read" in line]
    assert message.startswith("validation data: 20 times an image or shard could not be read")


def test_shards_of_which_none_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, output = make_shards(tmp_path, 8, 2), tmp_path / "run"
    for path in shards.glob("*.tar"):
        path.write_bytes(b"x" * 5000)
    settings = ["steps=2", "batch_size=4", "engine.workers=0", "engine.lanes=1"]
    assert main([*make_arguments(shards, output, *settings), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"swag-models: error: none of 4 shards can be read: shard /.*\.tar ", line)
    assert not output.exists()


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_labels_that_the_manifest_does_not_allow(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_shards(tmp_path, 8, 4)
    for count, allowed in ((2, "0 to 1"), (0, "none")):
        manifest = json.loads((shards / "manifest.json").read_text())
        samples = manifest["class_samples"][:count]
        changed = {**manifest, "num_classes": count, "class_samples": samples}
        (shards / "manifest.json").write_text(json.dumps(changed))
        arguments = ["recipe", "evaluate", NANO, "--data", str(shards)]
        if command == "train":
            settings = ["steps=2", "batch_size=4", "engine.workers=0", "engine.lanes=1"]
            arguments = make_arguments(shards, tmp_path / "run", *settings)
        assert main([*arguments, "--quiet"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        if command == "evaluate" or count:
            assert re.search(rf" has class [0-9]+; allowed: {allowed}$", line)
    assert not (tmp_path / "run").exists()
