"""A change of an image is noticed although its name and size stay the same; a copy is accepted."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_support import make_pixels, write_tar
from PIL import Image
from shards_support import (
    encode_jpeg,
    make_images,
    make_labels,
    make_shards,
    pack_images,
    read_bytes,
    write_labels,
)

from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.recipe.config import Engine
from swag_models.recipe.data import pack as pack_module
from swag_models.recipe.data.file_times import SAMPLE_SIZE
from swag_models.recipe.data.pack import pack
from swag_models.recipe.data.train_loader import open_train_loader
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.distributed import init_distributed
from swag_models.recipe.training.run_dir import claim_run_dir, open_run_dir

COUNT = 24
OPTIONS: dict[str, Any] = {"shard_size": 4}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images whose size depends on their shape only."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in make_labels(COUNT):
        write_image(folder / f"{name}.bmp", int(name))
    return folder


def write_image(path: Path, seed: int) -> None:
    Image.fromarray(make_pixels(seed, 8, 8)).save(path)


def change(folder: Path) -> None:
    """Replace the pixels of an image."""
    write_image(folder / "0007.bmp", 1000)


def touch(path: Path) -> None:
    for file in sorted(path.rglob("*")):
        os.utime(file)


def interrupt(folder: Path, images: Any) -> None:
    """Pack all shards, and stop before the manifest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_module, "_finish_output", stop)
        with pytest.raises(KeyboardInterrupt):
            pack_images(folder, images, make_labels(COUNT), **OPTIONS)
    assert len(list((folder / "shards").iterdir())) == COUNT // 4


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def list_times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


# With the number of shards that are packed again, None for some
CHANGES: dict[str, tuple[Callable[[Path], object], int | None]] = {
    "nothing": (lambda folder: None, 0),
    "an image": (change, 1),
    "a moved image of the same size": (
        lambda folder: (folder / "0009.bmp").replace(folder / "0007.bmp"),
        None,
    ),
    "times only": (touch, COUNT // 4),
    "half of all": (
        lambda folder: [path.unlink() for path in sorted(folder.iterdir())[: COUNT // 2]],
        COUNT // 4,
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_images_that_change_while_packing_is_interrupted(
    kind: str, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(tmp_path, images)
    before = list_times(tmp_path / "shards")
    apply, count = CHANGES[kind]
    apply(images)
    manifest = pack_images(tmp_path, images, make_labels(COUNT), **OPTIONS)
    after = list_times(tmp_path / "shards")
    changed = {name for name in before if after.get(name) != before[name]}
    assert len(changed) == count or (count is None and 0 < len(changed) < len(before))
    assert bool(changed) == ("finished shard" in caplog.text)
    assert {path.name for path in (tmp_path / "shards").glob("*.tar")} == {
        shard["name"] for shard in manifest["shards"]
    }
    labels = tmp_path / "labels.parquet"
    pack(labels, images, tmp_path / "whole", processes=1, progress=False, **OPTIONS)
    assert read_bytes(tmp_path / "shards") == read_bytes(tmp_path / "whole")


def test_a_tar_of_images_that_changes(tmp_path: Path) -> None:
    """Images are read at the places that the index of the tar had."""
    source, names = tmp_path / "x.tar", list(make_labels(COUNT))
    write_tar(source, {f"{name}.jpg": encode_jpeg(int(name)) for name in names})
    interrupt(tmp_path, source)
    write_tar(source, {f"{name}.jpg": encode_jpeg(int(name)) for name in names[::-1]})
    pack_images(tmp_path, source, make_labels(COUNT), **OPTIONS)
    labels = tmp_path / "labels.parquet"
    pack(labels, source, tmp_path / "whole", processes=1, progress=False, **OPTIONS)
    assert read_bytes(tmp_path / "shards") == read_bytes(tmp_path / "whole")


def test_finished_shards_are_kept_if_the_images_are_missing(images: Path, tmp_path: Path) -> None:
    """For example because a disk is not mounted."""
    interrupt(tmp_path, images)
    times = list_times(tmp_path / "shards")
    images.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="images does not exist"):
        pack_images(tmp_path, images, make_labels(COUNT), **OPTIONS)
    (tmp_path / "elsewhere").rename(images)
    pack_images(tmp_path, images, make_labels(COUNT), **OPTIONS)
    assert list_times(tmp_path / "shards") == times


def test_a_rerun_says_that_images_have_changed(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def rerun() -> list[str]:
        caplog.clear()
        pack_images(tmp_path, images, make_labels(COUNT), **OPTIONS)
        return [record.message for record in caplog.records]

    assert rerun() == []
    done = f"{tmp_path / 'shards'} is already done"
    assert rerun() == [done]
    change(images)
    assert rerun() == [
        done,
        (
            f"images were added, changed or removed since {tmp_path / 'shards'} was packed; "
            "delete it to pack them again"
        ),
    ]
    shutil.rmtree(images)  # to save space
    assert rerun() == [done]


@pytest.mark.parametrize("kind", ["loose", "tar"])
def test_packing_only_unreadable_images_is_an_error(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = make_labels(6)
    source = make_images(tmp_path / "images", list(labels))
    for path in source.iterdir():
        path.write_bytes(b"no image")
    if kind == "tar":
        source = write_tar(tmp_path / "x.tar", {f"{name}.jpg": b"no image" for name in labels})
    before = {*tmp_path.iterdir(), tmp_path / "labels.parquet"}
    path = write_labels(tmp_path / "labels.parquet", labels)
    options = ["--labels", path, "--images", source, "-o", tmp_path / "new" / "out"]
    (tmp_path / "new").mkdir()
    command = ["recipe", "pack", *map(str, options), "--processes", "1", "--shard-size", "2"]
    assert main([*command, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("swag-models: error: none of 6 images can be read; the first: ")
    assert not list((tmp_path / "new").iterdir())
    assert {*tmp_path.iterdir()} == before | {tmp_path / "new"}


def claim(data: Path, output: Path) -> None:
    """Do what training does before it resumes."""
    run = get_preset("vit_nano_hashtags").run
    loader = open_train_loader(
        data,
        lambda image: image,
        batch_size=2,
        seed=0,
        rank=0,
        world_size=1,
        engine=Engine(workers=0),
    )
    with init_distributed() as dist, open_run_dir(output, dist) as work:
        claim_run_dir(work, run, loader.facts, loader.list_local_files(), dist)


@pytest.fixture
def classes(images: Path, tmp_path: Path) -> Path:
    """An image folder with two classes."""
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in images.iterdir():
            shutil.copy2(path, tmp_path / "data" / name)
    return tmp_path / "data"


def test_training_images_that_change_are_named(
    classes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    claim(classes, tmp_path / "run")
    claim(classes, tmp_path / "run")
    shutil.copytree(classes, tmp_path / "kept" / "data")  # with their times
    change(classes / "b")
    for _ in range(2):  # the refusal itself changes nothing
        with pytest.raises(ConfigError) as caught:
            claim(classes, tmp_path / "run")
        assert str(caught.value) == (
            "files of data were changed since the run began, for example b/0007.bmp; restore them, "
            "choose another output, or touch all files of the data to accept them as they are"
        )
    claim(tmp_path / "kept" / "data", tmp_path / "run")
    assert not caplog.records
    touch(classes)
    claim(classes, tmp_path / "run")  # as the message says


def test_a_copy_of_training_images_is_accepted(
    classes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    claim(classes, tmp_path / "run")
    copy = tmp_path / "copy" / "data"
    shutil.copytree(classes, copy, copy_function=shutil.copyfile)
    claim(copy, tmp_path / "run")
    (record,) = caplog.records
    assert (record.levelno, record.message) == (
        logging.WARNING,
        (
            "all files of data have other modification times than at the start of the run, but the "
            "same names and sizes; they are taken as a copy"
        ),
    )
    claim(copy, tmp_path / "run")  # said once
    assert len(caplog.records) == 1
    change(copy / "a")
    with pytest.raises(ConfigError, match=r"for example a/0007\.bmp;"):
        claim(copy, tmp_path / "run")


def test_one_changed_image_among_many(tmp_path: Path) -> None:
    """Most of them are not in the recorded sample."""
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    for number in range(3 * SAMPLE_SIZE):
        (folder / f"{number}.jpg").write_bytes(b"x")
    claim(tmp_path / "data", tmp_path / "run")
    for number in range(0, 3 * SAMPLE_SIZE, 20):
        path = folder / f"{number}.jpg"
        time = path.stat().st_mtime_ns
        os.utime(path, ns=(time, time + 1))
        with pytest.raises(ConfigError, match=r"^files of data were changed since the run began"):
            claim(tmp_path / "data", tmp_path / "run")
        os.utime(path, ns=(time, time))


@pytest.mark.parametrize("listed", [True, False])
def test_shards_that_change(listed: bool, tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 8, 2)
    data = shards if listed else [*shards.glob("*.tar")]
    claim(data, tmp_path / "run")  # type: ignore[arg-type]
    path = shards / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"were changed .*, for example shard-000001\.tar;"):
        claim(data, tmp_path / "run")  # type: ignore[arg-type]


def test_a_folder_of_an_earlier_version_is_resumed(classes: Path, tmp_path: Path) -> None:
    claim(classes, tmp_path / "run")
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace('"times"', '"other"'))
    change(classes / "a")
    claim(classes, tmp_path / "run")
