"""An image on stdin, in place of a file."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from swag_models.cli import main
from swag_models.inference import Embedder
from swag_models.inference.embeddings_file import read_embeddings

IMAGE, NANO = Path("examples/scenes/cup.jpg"), "regnety_nano_hashtags"
CLASSIFY = ["classify", "--model", NANO, "--top-k", "1", "-"]


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_an_image_is_classified_from_a_pipe() -> None:
    command = [sys.executable, "-m", "swag_models", *CLASSIFY, str(IMAGE), "--json"]
    with IMAGE.open("rb") as file:
        process = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    piped, file_rows = map(json.loads, process.stdout.splitlines())
    assert piped == {**file_rows, "image": "stdin"}


def test_an_image_on_stdin_is_embedded_and_searched_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.npy"
    for _ in range(2):  # the second run finds the file of the first
        pipe(monkeypatch, IMAGE.read_bytes())
        assert main(["embed", "-", str(IMAGE), "--model", NANO, "-o", str(output), "--quiet"]) == 0
    vectors, names, _ = read_embeddings(output)
    assert names == ["stdin", str(IMAGE)]
    assert vectors[0].tolist() == vectors[1].tolist() == Embedder(NANO)(IMAGE).vectors[0].tolist()
    capsys.readouterr()
    pipe(monkeypatch, IMAGE.read_bytes())
    assert main(["nearest", str(output), "-"]) == 0
    assert f"copy  {IMAGE}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "arguments", "code", "message"),
    [
        (b"", [], 2, "error: - reads an image from stdin, which is empty; pipe one"),
        (b"x", ["-"], 2, "error: - is given more than once, and stdin has one image"),
        (b"not an image", [], 1, "skipped: stdin is not an image that Pillow can read"),
    ],
)
def test_what_is_no_image_on_stdin_is_one_line(
    content: bytes,
    arguments: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe(monkeypatch, content)
    assert main([*CLASSIFY, *arguments]) == code
    assert capsys.readouterr().err.splitlines()[0] == f"swag-models: {message}"


def test_without_stdin_a_pipe_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(CLASSIFY) == 2
    assert "stdin, which is a terminal or closed; pipe one" in capsys.readouterr().err
