"""`recipe duplicates` finds copies among images, or of other ones, by thumbnails or a model."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from image_support import write_tar
from PIL import Image

from benchmarks.duplicates import EDITS
from studies.scenes.scene import plan_held_out, render
from swag_models.cli import main
from swag_models.inference.predict import Embedder
from swag_models.recipe.data import duplicates
from swag_models.recipe.data.duplicates import find_duplicates


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images a0 to a5; equal and edited copies of the first of them, and a broken file."""
    folder = tmp_path_factory.mktemp("duplicates") / "images"
    folder.mkdir()
    for number in range(6):
        image = render(plan_held_out(0, number), 128)
        image.save(folder / f"a{number}.png")
        if number == 0:
            image.save(folder / "b0.png", compress_level=0)
            image.save(folder / "c0.jpg", quality=50)
        if number == 1:
            EDITS["mirrored"](image, random.Random(0)).save(folder / "b1.png")
    (folder / "broken.png").write_bytes(b"<html>")
    return folder


def read_copies(output: Path) -> dict[str, str]:
    lines = (output / "copies.jsonl").read_text().splitlines()
    return {row["id"]: row["copy_of"] for row in map(json.loads, lines)}


def test_copies_among_images_are_found(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = ["recipe", "duplicates", str(images), "-o", str(tmp_path / "out"), "--quiet"]
    assert main(command) == 0
    assert read_copies(tmp_path / "out") == {"b0": "a0", "c0": "a0", "b1": "a1"}
    assert (tmp_path / "out" / "exclude.txt").read_text() == "b0\nb1\nc0\n"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    counts = [manifest[name] for name in ("images", "unreadable", "copies", "equal")]
    assert counts == [10, 1, 3, 1]
    with Image.open(tmp_path / "out" / "copies.png") as sheet:
        assert sheet.size[0] > 900
    (line,) = [*capsys.readouterr().err.splitlines(), *caplog.messages]
    assert (
        "3 of 9 images are copies, 1 of them with equal pixels; 1 of 10 could not be read, the "
        f"first: {images}/broken.png is not an image" in line
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    before = (tmp_path / "out" / "copies.png").stat().st_mtime_ns
    assert main(command) == 0
    assert "already done" in caplog.text
    assert (tmp_path / "out" / "copies.png").stat().st_mtime_ns == before
    assert main([*command, "--threshold", "0"]) == 0
    assert read_copies(tmp_path / "out") == {"b0": "a0"}


def test_tables_have_columns_of_any_name(images: Path, tmp_path: Path) -> None:
    rows = "".join(f"{n},{images}/{name}.png\n" for n, name in enumerate(("a0", "b0", "a2")))
    for name in ("t.csv", "like.csv"):
        (tmp_path / name).write_text(f"photo,file\n{rows}")
    command = ["recipe", "duplicates", str(tmp_path / "t.csv"), "--quiet", "--path-column", "file"]
    command += ["--key-column", "photo", "-o"]
    assert main([*command, str(tmp_path / "out")]) == 0
    assert read_copies(tmp_path / "out") == {"1": "0"}
    assert main([*command, str(tmp_path / "x"), "--like", str(tmp_path / "like.csv")]) == 0
    assert read_copies(tmp_path / "x") == {"0": "0", "1": "0", "2": "2"}


def test_copies_of_other_images_are_found(images: Path, tmp_path: Path) -> None:
    other = write_tar(tmp_path / "other.tar", {"x.png": (images / "a1.png").read_bytes()})
    find_duplicates(images, tmp_path / "out", like=other, progress=False)
    assert read_copies(tmp_path / "out") == {"a1": "x", "b1": "x"}


def test_a_model_compares_images_by_its_features(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = Embedder("vit_nano_hashtags", device="cpu")
    options: dict[str, Any] = {"embedder": embedder, "threshold": 0.05, "progress": False}
    manifest = find_duplicates(images, tmp_path / "out", **options)
    assert read_copies(tmp_path / "out") == {"b0": "a0", "c0": "a0", "b1": "a1"}
    assert (manifest["images"], manifest["unreadable"]) == (10, 1)
    assert "broken.png is not an image" in manifest["first_unreadable"]
    assert not caplog.messages
    content = {"x.png": (images / "a1.png").read_bytes(), "y.png": b"<html>"}
    other = write_tar(tmp_path / "other.tar", content)
    find_duplicates(images, tmp_path / "like", like=other, **options)
    assert read_copies(tmp_path / "like") == {"a1": "x", "b1": "x"}
    (message,) = caplog.messages
    assert "1 of 2 images in" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "1.5"], "threshold 1.5: allowed: 1 or less"),
        (["--like", "missing"], "missing does not exist"),
        (["--like", "full"], "full has no images; left out: "),
        (
            ["--like", "t.csv"],
            "no column 'path'; its columns: id, file; name one with --path-column",
        ),
        (["--model", "vit_nano_hashtags"], "threshold is not set"),
        (["-o", "full"], "full is not an empty folder"),
        (["-o", "full/file"], "file is not an empty folder"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(
    options: list[str],
    message: str,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    if "t.csv" in options:
        (tmp_path / "t.csv").write_text("id,file\n1,a.png\n")
    (tmp_path / "full" / "file").write_text("")
    assert main(["recipe", "duplicates", str(images), "-o", "out", "--quiet", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert {path.name for path in tmp_path.rglob("*")} - {"t.csv"} == {"full", "file"}


def test_an_interrupted_search_is_resumed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(duplicates, "write_contact_sheet", interrupt)
    with pytest.raises(KeyboardInterrupt):
        find_duplicates(images, tmp_path / "out", progress=False)
    monkeypatch.undo()
    assert not (tmp_path / "out" / "manifest.json").exists()
    find_duplicates(images, tmp_path / "out", progress=False)
    assert read_copies(tmp_path / "out") == {"b0": "a0", "c0": "a0", "b1": "a1"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


FULL_DISK = """
mount -t tmpfs -o size=100k none "$1" || exit 77
exec "$2" -m swag_models recipe duplicates "$3" -o "$1/copies" --quiet
"""


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    """The index must not be written through mapped memory, which ends the process (SIGBUS)."""
    for folder in ("images", "disk"):
        (tmp_path / folder).mkdir()
    for number in range(12):  # 148 KB of thumbnails
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh"]
    arguments = [str(tmp_path / "disk"), sys.executable, str(tmp_path / "images")]
    try:
        result = subprocess.run([*command, *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare")
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("no file system can be mounted")
    assert result.returncode == 1
    assert "cannot be written: No space left on device" in result.stderr
    assert result.stderr.count("\n") == 1
