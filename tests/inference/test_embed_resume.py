"""Interrupted work on embeddings is resumed, after any kind of damage, if it is the same work."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fetch_support import small_disk
from image_support import NANO, encode_image, interrupt_when, list_names, write_file, write_images

from swag_models.errors import ConfigError, OutputError
from swag_models.inference.embed import merge_embeddings, write_embeddings
from swag_models.inference.embeddings_file import read_embeddings
from swag_models.inference.image_sources import ImageRef
from swag_models.inference.predict import Embedder

pytestmark = pytest.mark.usefixtures("one_thread")

SUFFIXES = pytest.mark.parametrize("suffix", [".parquet", ".npy"])
COUNT = 200


@pytest.fixture(scope="module")
def embedder(one_thread: None) -> Embedder:
    return Embedder(NANO, batch_size=4, workers=2)


@dataclass(frozen=True)
class Interrupted:
    """Interrupted work: its images, its folder, and the output of the same work done at once."""

    paths: list[Path]
    folder: Path
    complete: dict[str, bytes]  # by suffix


@pytest.fixture(scope="module")
def interrupted(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    root = tmp_path_factory.mktemp("interrupted")
    paths = write_images(root / "images", COUNT)
    paths[5].write_bytes(encode_image(5)[:300])
    complete = {}
    for suffix in (".parquet", ".npy"):
        write_embeddings(embedder, paths, root / f"x{suffix}", progress=False)
        complete[suffix] = (root / f"x{suffix}").read_bytes()
        (root / f"x{suffix}").unlink()
    (root / "x.json").unlink()
    journal = root / "x.npy.work" / "rows.jsonl"
    with (
        interrupt_when(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 8),
        pytest.raises(KeyboardInterrupt),
    ):
        write_embeddings(embedder, paths, root / "x.npy", progress=False)
    assert 8 <= journal.read_bytes().count(b"\n") < COUNT // 4
    return Interrupted(paths, root / "x.npy.work", complete)


def copy_work(interrupted: Interrupted, output: Path) -> Path:
    """Copy the interrupted work, for another output."""
    return Path(shutil.copytree(interrupted.folder, output.with_name(f"{output.name}.work")))


@SUFFIXES
def test_interrupted_work_is_resumed_where_it_stopped(
    embedder: Embedder,
    interrupted: Interrupted,
    tmp_path: Path,
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / f"x{suffix}"
    work = copy_work(interrupted, output)
    lines = (work / "rows.jsonl").read_text().splitlines()
    num_done = sum(json.loads(line)["count"] for line in lines)
    read: list[ImageRef] = []
    run = embedder.run
    monkeypatch.setattr(embedder, "run", lambda refs: (read.extend(refs), run(refs))[1])
    summary = write_embeddings(embedder, interrupted.paths, output, progress=False)
    assert [ref.source for ref in read] == interrupted.paths[num_done:]
    assert (summary.rows, [image.name for image in summary.skipped]) == (
        COUNT - 1,
        [str(interrupted.paths[5])],
    )
    assert output.read_bytes() == interrupted.complete[suffix]
    assert not work.exists()


def cut_line(work: Path) -> None:
    """The state after a kill while a line is written."""
    journal = work / "rows.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])


def cut_newline(work: Path) -> None:
    """The state after a kill before the end of a line is written."""
    journal = work / "rows.jsonl"
    journal.write_bytes(journal.read_bytes()[:-1])


def add_rows(work: Path) -> None:
    """The state after a kill between the rows and their line."""
    with (work / "vectors.f32").open("ab") as file:
        file.write(bytes(96 * 4 * 3 + 10))


def lose_rows(work: Path) -> None:
    """A possible state after a power failure."""
    vectors = work / "vectors.f32"
    vectors.write_bytes(vectors.read_bytes()[:-900])


def lose_all(work: Path) -> None:
    for name in ("rows.jsonl", "vectors.f32"):
        (work / name).write_bytes(b"")


def lose_files(work: Path) -> None:
    for path in work.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "damage", [cut_line, cut_newline, add_rows, lose_rows, lose_all, lose_files]
)
def test_damaged_work_is_repeated_as_far_as_needed(
    damage: Callable[[Path], None], embedder: Embedder, interrupted: Interrupted, tmp_path: Path
) -> None:
    damage(copy_work(interrupted, tmp_path / "x.parquet"))
    write_embeddings(embedder, interrupted.paths, tmp_path / "x.parquet", progress=False)
    assert (tmp_path / "x.parquet").read_bytes() == interrupted.complete[".parquet"]


def test_work_is_resumed_only_with_the_same_settings(
    embedder: Embedder, interrupted: Interrupted, tmp_path: Path
) -> None:
    output, paths = tmp_path / "x.npy", interrupted.paths
    copy_work(interrupted, output)
    other_work = {
        "model": (Embedder(NANO, pretrained=False), paths),
        "image size": (Embedder(NANO, image_size=64), paths),
        "dtype": (Embedder(NANO, dtype="bfloat16"), paths),
        "order": (embedder, paths[::-1]),
        "number": (embedder, paths[:-1]),
        "images": (embedder, [paths[0].with_name("other.png"), *paths[1:]]),
    }
    for other, images in other_work.values():
        with pytest.raises(
            ConfigError,
            match=r"x\.npy holds other work, with \w+ .*, not .*; delete .*x\.npy\.work or choose",
        ):
            write_embeddings(other, images, output, progress=False)
    faster = Embedder(NANO, batch_size=32, workers=1)  # these do not change results
    write_embeddings(faster, paths, output, progress=False)
    assert np.allclose(
        np.load(output),
        np.load(write_file(tmp_path / "whole.npy", interrupted.complete[".npy"])),
        atol=1e-4,
    )


@SUFFIXES
def test_a_finished_file_is_kept_on_a_rerun(
    embedder: Embedder, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [*write_images(tmp_path / "images", 6), tmp_path / "missing.png"]
    output = tmp_path / f"x{suffix}"
    first = write_embeddings(embedder, paths, output, progress=False)
    before = output.stat().st_ino
    run = embedder.run
    monkeypatch.setattr(embedder, "run", None)  # no image is read again
    output.with_name(f"{output.name}.work").mkdir()  # left by a kill after the last step
    assert write_embeddings(embedder, paths, output, progress=False) == first
    assert output.stat().st_ino == before
    assert not output.with_name(f"{output.name}.work").exists()
    monkeypatch.setattr(embedder, "run", run)
    for other, images in ((embedder, paths[1:]), (Embedder(NANO, dtype="bfloat16"), paths)):
        with pytest.raises(
            ConfigError,
            match=rf"x\{suffix} contains other embeddings; delete it or choose another name",
        ):
            write_embeddings(other, images, output, progress=False)
    assert output.stat().st_ino == before


def flip_byte(path: Path) -> None:
    """Change a byte in the middle of a file, and keep its size and times."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("damage", [flip_byte, lambda path: os.truncate(path, 500), Path.unlink])
def test_a_finished_file_that_was_damaged_is_written_again(
    damage: Callable[[Path], object],
    embedder: Embedder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths, output = write_images(tmp_path / "images", 4), tmp_path / "x.npy"
    write_embeddings(embedder, paths, output, progress=False)
    expected = output.read_bytes()
    damage(output)
    write_embeddings(embedder, paths, output, progress=False)
    assert output.read_bytes() == expected
    assert not any("already done" in message for message in caplog.messages)
    damage(output)
    if output.exists():  # as the part of a run
        with pytest.raises(ConfigError, match=r"x\.npy (was changed or damaged|cannot be read)"):
            merge_embeddings([output], tmp_path / "merged.npy")


@pytest.mark.parametrize("in_shard", [False, True])
def test_a_changed_image_is_noticed(embedder: Embedder, tmp_path: Path, in_shard: bool) -> None:
    images = write_images(tmp_path / "images", 3)
    source: Any = images
    if in_shard:
        source = tmp_path / "shard.tar"
        with tarfile.open(source, "w") as archive:
            archive.add(images[0], "a.png")
    output = tmp_path / "x.npy"
    write_embeddings(embedder, source, output, progress=False)
    flip_byte(source if in_shard else images[1])
    changed = source if in_shard else images[1]
    os.utime(changed)
    with pytest.raises(ConfigError, match=r"x\.npy contains other embeddings; delete it"):
        write_embeddings(embedder, source, output, progress=False)


def test_other_weights_are_noticed(embedder: Embedder, tmp_path: Path) -> None:
    paths, output = write_images(tmp_path / "images", 2), tmp_path / "x.npy"
    write_embeddings(embedder, paths, output, progress=False)
    other = Embedder(NANO)
    with torch.no_grad():
        max(other.model.parameters(), key=torch.numel).view(-1)[-1] += 1
    with pytest.raises(ConfigError, match="contains other embeddings"):
        write_embeddings(other, paths, output, progress=False)


def test_a_json_file_without_its_npy_file_is_unfinished_work(
    embedder: Embedder, interrupted: Interrupted, tmp_path: Path
) -> None:
    output = tmp_path / "x.npy"
    write_embeddings(embedder, interrupted.paths, output, progress=False)
    output.unlink()  # the state after a kill between the two files
    copy_work(interrupted, output)
    write_embeddings(embedder, interrupted.paths, output, progress=False)
    assert output.read_bytes() == interrupted.complete[".npy"]


@SUFFIXES
@pytest.mark.parametrize("kibibytes", [8, 40, 60], ids=["first-rows", "rows", "output"])
def test_a_full_disk_is_an_error_and_the_work_is_resumed_later(
    embedder: Embedder, interrupted: Interrupted, tmp_path: Path, suffix: str, kibibytes: int
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        output, ballast = disk / f"x{suffix}", disk / "ballast"
        ballast.write_bytes(bytes(1024 * (1024 - kibibytes)))
        for _ in range(2):  # a rerun without space does no harm
            with pytest.raises(
                OutputError,
                match=rf"{output} cannot be written: .*No space left .*rerun the same command",
            ):
                write_embeddings(embedder, interrupted.paths, output, progress=False)
            assert set(list_names(disk)) <= {"ballast", "x.json", f"{output.name}.work"}, (
                "no temporary file remains"
            )
        ballast.unlink()
        write_embeddings(embedder, interrupted.paths, output, progress=False)
        assert output.read_bytes() == interrupted.complete[suffix]


def test_a_merge_that_was_interrupted_between_its_two_files_can_be_run_again(
    embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_images(tmp_path / "images", 6)
    parts = [
        write_embeddings(
            embedder, paths, tmp_path / "x.npy", rank=rank, world_size=2, progress=False
        ).path
        for rank in range(2)
    ]
    output = tmp_path / "merged.npy"
    merge_embeddings(parts, output)
    expected = output.read_bytes()
    output.unlink()  # the .json file is written first
    assert merge_embeddings(parts, output).rows == 6
    assert output.read_bytes() == expected
    assert merge_embeddings(parts, output).rows == 6
    assert caplog.messages == [f"{output} is already done"]
    output.with_suffix(".json").unlink()
    with pytest.raises(ConfigError, match=r"merged\.json is missing; delete it or choose another"):
        merge_embeddings(parts, output)
    assert output.read_bytes() == expected


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no metadata": lambda record: record.pop("swag_models"),
    "no names": lambda record: record.pop("names"),
    "names of another length": lambda record: record["names"].pop(),
    "names are a text": lambda record: record.update(names="text"),
    "rank is a text": lambda record: record["swag_models"].update(rank="0"),
    "world_size of 400 digits": lambda record: record["swag_models"].update(world_size=0),
    "width is negative": lambda record: record["swag_models"].update(width=-1),
    "width of another model": lambda record: record["swag_models"].update(width=7),
    "skipped is a list of texts": lambda record: record["swag_models"].update(skipped=["x"]),
    "metadata is a list": lambda record: record.update(swag_models=[]),
}


@pytest.mark.parametrize("name", [*DAMAGES, "deep", "cut", "rows"])
def test_damaged_embeddings_are_refused_in_one_line(
    name: str, embedder: Embedder, tmp_path: Path
) -> None:
    output = tmp_path / "x.npy"
    write_embeddings(embedder, write_images(tmp_path / "images", 2), output, progress=False)
    path = output.with_suffix(".json")
    if name == "deep":
        path.write_text('{"names":' * 100_000)
    elif name == "cut":
        output.write_bytes(output.read_bytes()[:-8])
    elif name == "rows":
        np.save(output, np.zeros((2, 7), "<i8"))
    else:
        record = json.loads(path.read_text())
        DAMAGES[name](record)
        path.write_text(json.dumps(record))
    for read in (read_embeddings, lambda path: merge_embeddings([path], tmp_path / "merged.npy")):
        with pytest.raises(ConfigError) as caught:
            read(output)
        assert str(caught.value).isprintable()
    assert not (tmp_path / "merged.npy").exists()
