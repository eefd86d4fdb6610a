"""Links are followed, other files are counted, and paths are read as users write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from image_support import encode_image, make_pixels, write_images, write_tar

from swag_models.errors import ConfigError, ImageError
from swag_models.inference.image_sources import find_images

PIXELS = make_pixels(0)


def names(images: object) -> list[str]:
    """Names of all images of a source."""
    return [ref.name for ref in find_images(images)]


def get_log(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "swag_models"]


class TestLinksAndOtherFiles:
    def test_links_to_folders_and_files_are_followed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (inner,) = write_images(tmp_path / "real" / "deep", 1)
        (own,) = write_images(tmp_path / "data" / "dogs", 1)
        (tmp_path / "data" / "cats").symlink_to("../real")
        (tmp_path / "data" / "file.png").symlink_to(inner)
        expected = ["cats/deep/0000.png", "dogs/0000.png", "file.png"]
        assert names(tmp_path / "data") == [str(tmp_path / "data" / name) for name in expected]
        assert names(f"{tmp_path}/data/**/*.png") == names(tmp_path / "data")
        assert names(tmp_path / "data" / "cats") == [str(tmp_path / "data" / expected[0])]
        assert own.exists()
        assert not get_log(caplog)

    def test_loops_and_repeated_folders_end(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        paths = write_images(tmp_path / "a" / "b", 1)
        (tmp_path / "a" / "b" / "up").symlink_to("../..")
        (tmp_path / "a" / "self").symlink_to(".")
        (tmp_path / "a" / "again").symlink_to("b")  # sorted before b, which keeps its own name
        (tmp_path / "a" / "loop.png").symlink_to("loop.png")
        expected = [str(paths[0]), str(tmp_path / "a" / "loop.png")]
        assert names(tmp_path / "a") == expected
        assert get_log(caplog) == [
            "left out beside the images: 2 link to a folder above, 1 link to a searched folder"
        ]
        assert names(f"{tmp_path}/a/**") == expected
        with pytest.raises(ImageError, match=r"loop\.png cannot be read: Too many levels"):
            find_images(expected[1])[0].read()

    def test_two_folders_that_link_to_each_other_end(self, tmp_path: Path) -> None:
        for name, other in (("a", "b"), ("b", "a")):
            write_images(tmp_path / name, 1)
            (tmp_path / name / "other").symlink_to(tmp_path / other)
        assert len(names(tmp_path / "a")) == 2
        assert len(names(f"{tmp_path}/*/**")) == 4

    def test_other_files_are_counted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_images(tmp_path, 1)
        for name in ("a.heic", "b.HEIC", "notes.txt", "README", "shard.tar", "x.\x1b[2J\n"):
            (tmp_path / name).touch()
        assert len(find_images([tmp_path, PIXELS])) == 2
        (line,) = get_log(caplog)
        kinds = r"2 .heic, 1 without a suffix, 1 .txt, 1 .tar, 1 .\x1b[2j\n"
        assert line == f"left out beside the images: {kinds}; convert .heic to JPEG"
        write_tar(tmp_path / "s.tar", {"a.png": encode_image(0), "a.json": b"{}", "b.raw": b""})
        caplog.clear()
        find_images(tmp_path / "s.tar")
        assert get_log(caplog) == ["left out beside the images: 1 .raw"]

    def test_a_folder_of_other_files_is_rejected_with_their_kinds(self, tmp_path: Path) -> None:
        (tmp_path / "a.heic").touch()
        with pytest.raises(ConfigError, match=r"no image in .* \(1 \.heic\); pass files"):
            find_images(tmp_path)

    def test_an_error_counts_the_files_of_its_source_only(self, tmp_path: Path) -> None:
        write_images(tmp_path / "full", 1)
        (tmp_path / "full" / "notes.txt").touch()
        (tmp_path / "none").mkdir()
        (tmp_path / "none" / "a.heic").touch()
        with pytest.raises(ConfigError, match=r"no image in .*none \(1 \.heic\); pass files"):
            find_images([tmp_path / "full", tmp_path / "none"])


class TestPathsOfUsers:
    def test_home_is_expanded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        paths = write_images(tmp_path / "x", 2)
        assert names("~/x") == names("~/x/*.png") == [str(path) for path in paths]

    def test_brackets_in_folders_are_not_a_pattern(self, tmp_path: Path) -> None:
        paths = write_images(tmp_path / "photos [1]" / "a[b]", 2)
        for pattern in ("a[b]/*.png", "a[b]/000[01].png", "*/*.png", "**/*.png", "**", "a[b]"):
            assert names(f"{tmp_path}/photos [1]/{pattern}") == [str(path) for path in paths]

    @pytest.mark.parametrize(
        "url", ["https://x.org/a.jpg", "s3://b/a.png", "data:image/png;base64,"]
    )
    def test_urls_are_rejected(self, url: str) -> None:
        with pytest.raises(
            ConfigError, match=re.escape(f"invalid image {url!r}: URLs are not read")
        ):
            find_images(url)

    def test_two_double_stars_are_rejected(self) -> None:
        with pytest.raises(
            ConfigError, match=r"invalid pattern 'x/\*\*/y/\*\*': allowed: \*\* once"
        ):
            find_images("x/**/y/**")

    def test_a_shard_that_is_a_named_pipe_is_rejected(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.tar")
        with pytest.raises(ConfigError, match=r"x\.tar is a named pipe, not a regular file"):
            find_images(tmp_path / "x.tar")
