"""Paths that users pass, and files that are not regular."""

import os
import socket
from pathlib import Path

import pytest

from swag_models.errors import ConfigError
from swag_models.paths import expand_path, open_regular


def test_the_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert expand_path("~/weights.pt") == Path("/home/someone/weights.pt")
    assert expand_path(Path("~") / "a") == Path("/home/someone/a")
    assert expand_path("a~b") == Path("a~b")


@pytest.mark.parametrize("path", [None, b"x", 3, ["a"], {}, True, "", "a\0b"])
def test_what_is_not_a_path_is_rejected(path):
    with pytest.raises(ConfigError, match="invalid weights"):
        expand_path(path, "weights")


def test_a_regular_file_and_a_link_to_it_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"


def test_other_kinds_of_files_are_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to a pipe").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the address of a socket has at most 107 bytes
        server.bind("socket")
        for name, kind in {
            "pipe": "named pipe",
            "link to a pipe": "named pipe",
            "folder": "folder",
            "socket": "socket",
            "/dev/zero": "device",
        }.items():
            with pytest.raises(OSError, match=f"is a {kind}, not a regular file"):
                open_regular(tmp_path / name)
