"""Work on embeddings goes on where it was left, whatever stopped it, and only as the same work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fetch_support import small_disk
from image_support import NANO, encode_image, interrupt_when, list_names, write_file, write_images

from swag_models.errors import ConfigError, OutputError
from swag_models.inference.embed import write_embeddings
from swag_models.inference.predict import Embedder

pytestmark = pytest.mark.usefixtures("one_thread")

SUFFIXES = pytest.mark.parametrize("suffix", [".parquet", ".npy"])
COUNT = 200


@pytest.fixture(scope="module")
def embedder(one_thread: None) -> Embedder:
    return Embedder(NANO, batch_size=4, workers=2)


@dataclass(frozen=True)
class Begun:
    """Work on `pictures` that was interrupted, and what it gives if it is not."""

    pictures: list[Path]
    folder: Path
    whole: dict[str, bytes]  # by suffix


@pytest.fixture(scope="module")
def begun(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Begun:
    root = tmp_path_factory.mktemp("begun")
    pictures = write_images(root / "pictures", COUNT)
    pictures[5].write_bytes(encode_image(5)[:300])
    whole = {}
    for suffix in (".parquet", ".npy"):
        write_embeddings(embedder, pictures, root / f"x{suffix}", progress=False)
        whole[suffix] = (root / f"x{suffix}").read_bytes()
        (root / f"x{suffix}").unlink()
    (root / "x.json").unlink()
    journal = root / "x.npy.work" / "rows.jsonl"
    with (
        interrupt_when(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 8),
        pytest.raises(KeyboardInterrupt),
    ):
        write_embeddings(embedder, pictures, root / "x.npy", progress=False)
    assert 8 <= journal.read_bytes().count(b"\n") < COUNT // 4
    return Begun(pictures, root / "x.npy.work", whole)


def copy_work(begun: Begun, output: Path) -> Path:
    """The interrupted work, as that for another output."""
    return Path(shutil.copytree(begun.folder, output.with_name(f"{output.name}.work")))


@SUFFIXES
def test_interrupted_work_goes_on_where_it_was(
    embedder: Embedder, begun: Begun, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"x{suffix}"
    work = copy_work(begun, output)
    lines = (work / "rows.jsonl").read_text().splitlines()
    done = sum(json.loads(line)["count"] for line in lines)
    hidden = [path.rename(f"{path}.hidden") for path in begun.pictures[:done] if path.exists()]
    try:
        report = write_embeddings(embedder, begun.pictures, output, progress=False)
    finally:
        for path in hidden:
            path.rename(path.with_suffix(""))
    assert (report.rows, [each.name for each in report.skipped]) == (
        COUNT - 1,
        [str(begun.pictures[5])],
    )
    assert output.read_bytes() == begun.whole[suffix]
    assert not work.exists()


def cut_line(work: Path) -> None:
    """As a kill within the writing of a line leaves it."""
    journal = work / "rows.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])


def cut_newline(work: Path) -> None:
    journal = work / "rows.jsonl"
    journal.write_bytes(journal.read_bytes()[:-1])


def add_rows(work: Path) -> None:
    """As a kill between rows and their line leaves it."""
    with (work / "vectors.f32").open("ab") as file:
        file.write(bytes(96 * 4 * 3 + 10))


def lose_rows(work: Path) -> None:
    """As a loss of power can leave it."""
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
def test_damaged_work_is_done_again_as_far_as_needed(
    damage: Callable[[Path], None], embedder: Embedder, begun: Begun, tmp_path: Path
) -> None:
    damage(copy_work(begun, tmp_path / "x.parquet"))
    write_embeddings(embedder, begun.pictures, tmp_path / "x.parquet", progress=False)
    assert (tmp_path / "x.parquet").read_bytes() == begun.whole[".parquet"]


def test_work_is_gone_on_with_only_under_the_same_settings(
    embedder: Embedder, begun: Begun, tmp_path: Path
) -> None:
    output, pictures = tmp_path / "x.npy", begun.pictures
    copy_work(begun, output)
    others = {
        "model": (Embedder(NANO, pretrained=False), pictures),
        "image size": (Embedder(NANO, image_size=64), pictures),
        "dtype": (Embedder(NANO, dtype="bfloat16"), pictures),
        "order": (embedder, pictures[::-1]),
        "number": (embedder, pictures[:-1]),
        "pictures": (embedder, [pictures[0].with_name("other.png"), *pictures[1:]]),
    }
    for other, images in others.values():
        with pytest.raises(
            ConfigError,
            match=r"x\.npy holds other work, with \w+ .*, not .*; delete .*x\.npy\.work or choose",
        ):
            write_embeddings(other, images, output, progress=False)
    faster = Embedder(NANO, batch_size=32, workers=1)  # how it is done may change
    write_embeddings(faster, pictures, output, progress=False)
    assert np.allclose(
        np.load(output), np.load(write_file(tmp_path / "whole.npy", begun.whole[".npy"])), atol=1e-4
    )


@SUFFIXES
def test_a_finished_file_is_found_again_and_not_made_again(
    embedder: Embedder, tmp_path: Path, suffix: str
) -> None:
    pictures = [*write_images(tmp_path / "pictures", 6), tmp_path / "missing.png"]
    output = tmp_path / f"x{suffix}"
    first = write_embeddings(embedder, pictures, output, progress=False)
    before = output.stat().st_ino
    shutil.rmtree(tmp_path / "pictures")
    output.with_name(f"{output.name}.work").mkdir()  # as a kill after the last step leaves it
    assert write_embeddings(embedder, pictures, output, progress=False) == first
    assert output.stat().st_ino == before
    assert not output.with_name(f"{output.name}.work").exists()
    for other, images in ((embedder, pictures[1:]), (Embedder(NANO, dtype="bfloat16"), pictures)):
        with pytest.raises(
            ConfigError,
            match=rf"x\{suffix} holds other embeddings; delete it or choose another name",
        ):
            write_embeddings(other, images, output, progress=False)
    assert output.stat().st_ino == before


def test_names_without_their_vectors_are_no_finished_file(
    embedder: Embedder, begun: Begun, tmp_path: Path
) -> None:
    output = tmp_path / "x.npy"
    write_embeddings(embedder, begun.pictures, output, progress=False)
    output.unlink()  # as a kill between the two files leaves it
    copy_work(begun, output)
    write_embeddings(embedder, begun.pictures, output, progress=False)
    assert output.read_bytes() == begun.whole[".npy"]


@SUFFIXES
@pytest.mark.parametrize("kibibytes", [8, 40, 60], ids=["first-rows", "rows", "output"])
def test_a_full_disk_is_an_error_until_there_is_space(
    embedder: Embedder, begun: Begun, tmp_path: Path, suffix: str, kibibytes: int
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        output, ballast = disk / f"x{suffix}", disk / "ballast"
        ballast.write_bytes(bytes(1024 * (1024 - kibibytes)))
        for _ in range(2):  # trying again without space does no harm
            with pytest.raises(
                OutputError,
                match=rf"{output} cannot be written: .*No space left .*rerun the same command to resume",
            ):
                write_embeddings(embedder, begun.pictures, output, progress=False)
            assert set(list_names(disk)) <= {"ballast", "x.json", f"{output.name}.work"}, (
                "nothing half-written is left"
            )
        ballast.unlink()
        write_embeddings(embedder, begun.pictures, output, progress=False)
        assert output.read_bytes() == begun.whole[suffix]
