"""Files and folders of systems, such as __MACOSX, are left out wherever files are listed."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from swag_models.inference.image_sources import find_images
from swag_models.paths import is_system_name, is_system_path
from swag_models.recipe.curation.post_files import find_files
from swag_models.recipe.curation.posts import Post
from swag_models.recipe.curation.readers import read_posts
from swag_models.recipe.data.datasets import open_image_folder
from swag_models.recipe.data.image_index import find_locations

FOLDERS = ("__MACOSX", "@eaDir", ".AppleDouble", "$RECYCLE.BIN", "#recycle", ".ipynb_checkpoints")
FILES = ("._dog.png", "Thumbs.db", ".DS_Store", "desktop.ini")


def make_image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one image of a user, in the folder of a class, and system files everywhere."""
    for parent in (".", "cat"):
        for name in FOLDERS:
            (tmp_path / parent / name / "deep").mkdir(parents=True)
            (tmp_path / parent / name / "deep" / "dog.png").write_bytes(make_image())
            (tmp_path / parent / name / "posts.jsonl").write_text("{}")
        for name in FILES:
            (tmp_path / parent / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "._posts.jsonl").write_bytes(b"\0\5\x16\7")
    (tmp_path / "cat" / "dog.png").write_bytes(make_image())
    return tmp_path


def test_system_files_in_folders_are_left_out_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [str(folder / "cat" / "dog.png")]
    with caplog.at_level(logging.WARNING):
        assert [str(image.source) for image in find_images(folder)] == expected
        assert [image.name for image in find_locations([folder])] == expected
        assert open_image_folder(folder).class_names == ("cat",)
    counts = f"{2 * len(FOLDERS)} system folder, {2 * len(FILES) + 1} system file"
    assert [line.split(": ")[1] for line in caplog.messages[:2]] == [counts, counts]
    assert "system folder" in caplog.messages[2]
    (folder / "cat" / "posts.jsonl").write_text("")
    assert find_files([folder], None) == [folder / "cat" / "posts.jsonl"]


def test_system_files_in_tar_files_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "shard.tar"
    image, record = make_image(), json.dumps({"id": "0", "tags": ["dog"], "classes": [0]}).encode()
    with tarfile.open(path, "w") as archive:
        for name, content in {
            "._000.png": b"\0\5\x16\7",
            "000.png": image,
            "._000.json": b"\0\5\x16\7",
            "000.json": record,
            "__MACOSX/000.png": image,
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (location,) = find_locations([path])
    assert (location.id, location.size) == ("0", len(image))
    assert caplog.messages == ["left out beside the images: 3 system file in a tar file"]
    assert [image.name for image in find_images(path)] == [f"{path}/000.png"]
    assert list(read_posts(path)) == [Post("0", None, ["dog"], None)]


@pytest.mark.parametrize("name", ["cat", ".hidden", "macosx", "thumbs", "_._", "eaDir", "git"])
def test_other_names_are_no_system_names(name: str) -> None:
    assert not is_system_name(name)
    assert not is_system_path(f"a/{name}/{name}.png")
    assert is_system_path(f"a/__macosx/{name}.png")
