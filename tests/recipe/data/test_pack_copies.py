"""Packing lists equal images, and keeps images to exclude and their near copies out of shards."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from image_support import write_tar
from PIL import Image, PngImagePlugin
from shards_support import pack_images, read_bytes
from test_image_tables import write_table

from benchmarks.duplicates import EDITS
from studies.scenes.scene import plan_held_out, render
from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.recipe.data import pack_shards
from swag_models.recipe.data.pack_copies import EQUAL, NEAR
from swag_models.recipe.data.shards import read_shard

NEAR_COPIES = {
    "half": "half the size",
    "jpeg": "JPEG of quality 50",
    "crop": "5% cropped",
    "dark": "brightness x 0.7",
    "mirror": "mirrored",
}
OTHERS = [f"other{number}" for number in range(6)]


def draw(number: int) -> Image.Image:
    return render(plan_held_out(0, number), 128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`wanted`: images of an evaluation. `images`: copies of them, and other images."""
    folder = tmp_path_factory.mktemp("copies")
    for name in ("wanted", "images"):
        (folder / name).mkdir()
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Author", "someone")
    for number, (name, edit) in enumerate(NEAR_COPIES.items()):
        draw(number).save(folder / "wanted" / f"{number}.png")
        copy = EDITS[edit](draw(number), random.Random(number))
        copy.save(folder / "images" / f"{name}.png")
    draw(5).save(folder / "wanted" / "5.png", pnginfo=comment)
    draw(5).save(folder / "images" / "equal.png", compress_level=1)
    for number, name in enumerate(OTHERS, 10):
        draw(number).save(folder / "images" / f"{name}.png")
    draw(10).save(folder / "images" / "again.png", pnginfo=comment)
    return folder


def make_labels(folder: Path) -> dict[str, Any]:
    return {path.stem: ([0], 1.0) for path in sorted((folder / "images").iterdir())}


def list_packed(shards: Path) -> list[str]:
    return sorted(
        json.loads(sample["json"])["id"]
        for path in shards.glob("*.tar")
        for sample in read_shard(str(path))
    )


def pack_without(folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    options = {"exclude_like": folder / "wanted", "shard_size": 5, **options}
    return pack_images(output, folder / "images", make_labels(folder), **options)


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("packed")
    pack_without(folder, output)
    return output / "shards"


def test_equal_images_are_listed_whatever_their_metadata(folder: Path, tmp_path: Path) -> None:
    manifest = pack_images(tmp_path, folder / "images", make_labels(folder), shard_size=3)
    assert manifest["copies"] == {"images": 1, "originals": 1}
    assert manifest["count"] == 13
    assert "exclude_like" not in manifest
    lines = (tmp_path / "shards" / "copies.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"id": "other0", "copy_of": "again"}]
    (tmp_path / "shards" / "copies.jsonl").write_text("")
    assert pack_images(tmp_path, folder / "images", make_labels(folder), shard_size=3) == manifest
    assert (tmp_path / "shards" / "copies.jsonl").read_text().splitlines() == lines


def test_copies_of_images_to_exclude_are_left_out_and_shown(packed: Path) -> None:
    assert list_packed(packed) == ["again", *OTHERS]
    manifest = json.loads((packed / "manifest.json").read_text())
    assert manifest["exclude_like"] == {"images": 6, "unreadable": 0, "equal": 1, "near": 5}
    assert manifest["rejects"] == {EQUAL: 1, NEAR: 5}
    assert (packed / "excluded.txt").read_text().split() == sorted([*NEAR_COPIES, "equal"])
    rows = [json.loads(line) for line in (packed / "rejects.jsonl").read_text().splitlines()]
    for row in rows:
        number = 5 if row["id"] == "equal" else list(NEAR_COPIES).index(row["id"])
        assert Path(row["like"]).name == f"{number}.png"
        assert (row["distance"] == 0) == (row["id"] == "equal") or row["id"] == "mirror"
        assert row["distance"] <= 0.3
    with Image.open(packed / "excluded.png") as sheet:
        assert sheet.width > 1000
        assert sheet.height > 300
    assert not packed.with_name("shards.work").exists()


@pytest.mark.parametrize(
    "kind",
    [
        "tar",
        pytest.param("table", marks=pytest.mark.slow),
        pytest.param("several", marks=pytest.mark.slow),
    ],
)
def test_images_to_exclude_can_be_of_any_kind(
    kind: str, folder: Path, packed: Path, tmp_path: Path
) -> None:
    files = sorted((folder / "wanted").iterdir())
    source: Any = tmp_path / "wanted.tar"
    if kind == "tar":
        write_tar(source, {path.name: path.read_bytes() for path in files})
    elif kind == "table":
        source = tmp_path / "wanted.csv"
        source.write_text("id,path\n" + "".join(f"{path.stem},{path}\n" for path in files))
    else:
        for number in range(2):
            (tmp_path / f"part{number}").mkdir()
            for path in files[number::2]:
                shutil.copy(path, tmp_path / f"part{number}")
        source = [tmp_path / "part0", tmp_path / "part1"]
    pack_without(folder, tmp_path, exclude_like=source)
    assert list_packed(tmp_path / "shards") == list_packed(packed)


def test_the_threshold_decides_and_0_means_equal_pixels(folder: Path, tmp_path: Path) -> None:
    manifest = pack_without(folder, tmp_path, like_threshold=0)
    assert manifest["rejects"] == {EQUAL: 1}
    assert manifest["parameters"]["exclude_like"]["threshold"] == 0
    with pytest.raises(ConfigError, match="is not empty"):
        pack_without(folder, tmp_path, like_threshold=0.2)


def test_an_interrupted_run_is_resumed_and_writes_the_same_bytes(
    folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = pack_shards.write_shard, list[int]()

    def write_once(*arguments: Any) -> Any:
        if written:
            raise KeyboardInterrupt
        written.append(arguments[2])
        return write(*arguments)

    monkeypatch.setattr(pack_shards, "write_shard", write_once)
    with pytest.raises(KeyboardInterrupt):
        pack_without(folder, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "shards" / "manifest.json").exists()
    index = tmp_path / "shards.work" / "like" / "thumbnails.npy"
    time = index.stat().st_mtime_ns
    shard = tmp_path / "shards" / "shard-000000.tar"
    state = shard.stat().st_mtime_ns
    kept = tmp_path / "kept.npy"
    kept.hardlink_to(index)
    pack_without(folder, tmp_path)
    assert (kept.stat().st_mtime_ns, shard.stat().st_mtime_ns) == (time, state), "both are kept"
    assert read_bytes(tmp_path / "shards") == read_bytes(packed)


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(
    folder: Path, packed: Path, tmp_path: Path
) -> None:
    pack_without(folder, tmp_path, processes=2)
    assert read_bytes(tmp_path / "shards") == read_bytes(packed)


def test_images_to_exclude_that_cannot_be_read_are_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder / "wanted", tmp_path / "wanted")
    (tmp_path / "wanted" / "0.png").write_bytes(b"<html>")
    manifest = pack_without(folder, tmp_path, exclude_like=tmp_path / "wanted")
    assert manifest["exclude_like"] == {"images": 6, "unreadable": 1, "equal": 1, "near": 4}
    assert "1 of 6 images in" in caplog.text
    assert "0.png is not an image" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_images_to_exclude_can_be_in_a_table_with_any_columns(
    name: str, folder: Path, packed: Path, tmp_path: Path
) -> None:
    """They need no ids; the column of the paths is that of the images, which may be in a folder."""
    rows = [{"file": str(path), "who": "x"} for path in sorted((folder / "wanted").iterdir())]
    table = write_table(tmp_path / name, rows)
    manifest = pack_without(folder, tmp_path, exclude_like=table, path_column="file")
    assert (tmp_path / "shards" / "excluded.txt").read_bytes() == (
        packed / "excluded.txt"
    ).read_bytes()
    assert pack_without(folder, tmp_path, exclude_like=table, path_column="file") == manifest
    with pytest.raises(ConfigError, match="no column 'path'; its columns: file, who"):
        pack_without(folder, tmp_path / "other", exclude_like=table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--like-threshold", "2"], "invalid like_threshold 2.0: allowed: 1 or less"),
        (["--like-threshold", "-1"], "invalid like_threshold -1.0: allowed: 0 or more"),
        (["--exclude-like", "missing"], "missing does not exist"),
        (["--exclude-like", "empty"], "empty has no images"),
        (["--exclude-like", "broken"], "none of 1 image in"),
        (["--exclude-like", "images"], "none of 13 images is left: 13 are like images of"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(
    options: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("wanted", "images"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG")
    rows = [{"id": name, "labels": ["x"]} for name in make_labels(folder)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["recipe", "pack", "--labels", "labels.jsonl", "--images", "images", "-o", "out"]
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments = ["--exclude-like", "wanted"] if options[0] == "--like-threshold" else []
    assert main([*command, *arguments, *options, "--processes", "1", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert len(line) < 500
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_command_says_what_it_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": name, "labels": ["x"]} for name in make_labels(folder)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--labels", tmp_path / "labels.jsonl", "--images", folder / "images"]
    options += ["-o", tmp_path / "out", "--exclude-like", folder / "wanted", "--processes", "1"]
    assert main(["recipe", "pack", *map(str, options), "--quiet"]) == 0
    errors = capsys.readouterr().err
    for text in (f"1 rejected: {EQUAL}", f"5 rejected: {NEAR}", "excluded.png", "copies.jsonl"):
        assert text in errors
