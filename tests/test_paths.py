"""Paths that users pass, and files that are not regular."""

import os
import shutil
import socket
from pathlib import Path

import pytest
from image_support import SCENES

from swag_models.api import load_model
from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.inference.embeddings_file import read_embeddings
from swag_models.paths import expand_location, expand_path, open_regular


def test_the_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert expand_path("~/weights.pt") == Path("/home/someone/weights.pt")
    assert expand_path(Path("~") / "a") == Path("/home/someone/a")
    assert expand_path("a~b") == Path("a~b")


@pytest.mark.parametrize("path", [None, b"x", 3, ["a"], {}, True, "", "a\0b"])
def test_what_is_not_a_path_is_rejected(path):
    with pytest.raises(ConfigError, match="invalid weights"):
        expand_path(path, "weights")


def test_what_a_path_raises_is_part_of_the_message():
    def fail(*_):
        raise RuntimeError("first line\nsecond line")

    path = type("Broken", (), {"__fspath__": fail, "__repr__": fail, "__str__": fail})()
    for call in (expand_path, expand_location):
        with pytest.raises(ConfigError) as caught:
            call(path, "weights")
        message = "invalid weights of type Broken: it raises RuntimeError: first line"
        assert str(caught.value) == message


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


def test_a_url_is_a_location_and_the_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert expand_location("https://host//a/~b") == "https://host//a/~b"
    assert expand_location("pipe:cat ~/a") == "pipe:cat ~/a"
    assert expand_location("~/shards/{0..3}.tar") == "/home/someone/shards/{0..3}.tar"
    assert expand_location(Path("shards")) == "shards"
    with pytest.raises(ConfigError, match="invalid data of type dict: allowed: the path"):
        expand_location({})


def test_every_command_and_function_expands_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SCENES, tmp_path / "scenes")
    nano = "vit_nano_hashtags"
    for command in (
        ["save", nano, "~/model"],
        ["info", "~/model"],
        ["convert", "~/model/model.safetensors", "~/timm.pth", "--to", "timm"],
        ["classify", "~/scenes/c*.jpg", "--model", "~/model"],
        ["embed", "~/scenes", "--model", "~/model", "-o", "~/x.npy"],
        ["push", "~/model", "org/repo", "--dry-run"],
        ["recipe", "evaluate", nano, "--data", "~/labelled", "-o", "~/evaluation"],
    ):
        if command[1] == "evaluate":
            for name in ("car", "house"):
                (tmp_path / "labelled" / name).mkdir(parents=True)
                shutil.copy(SCENES / f"{name}.jpg", tmp_path / "labelled" / name)
        assert main([*command]) == 0, command
    load_model(nano, weights="~/timm.pth")
    assert read_embeddings("~/x.npy").vectors.shape == (10, 96)
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            Path("folder", "x" * 256),
            r"invalid output 'folder/xxx.* with names of at most 255 bytes",
        ),
        (Path("a\0b"), r"invalid output 'a\\x00b': allowed: the path of a file or folder$"),
        (b"bytes", r"invalid output b'bytes': allowed: the path"),
    ],
)
def test_an_invalid_path_is_named(path, message):
    with pytest.raises(ConfigError, match=message):
        expand_path(path, "output")
