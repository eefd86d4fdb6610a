"""Commands with token merging; embeddings of merged tokens are not mixed with others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swag_models.cli import main
from swag_models.inference.embeddings_file import read_embeddings_metadata
from swag_models.inference.search import ImageSearch

SCENES = Path(__file__).parents[2] / "examples" / "scenes"
MODEL = ["--model", "vit_nano_hashtags"]


def test_classify_merges(capsys: pytest.CaptureFixture[str]) -> None:
    scores = []
    for count in ("0", "8"):
        image = str(SCENES / "cup.jpg")
        assert main(["classify", image, *MODEL, "--json", "--merge-tokens", count]) == 0
        scores.append(json.loads(capsys.readouterr().out)["predictions"][0]["probability"])
    assert scores[0] != scores[1]
    assert abs(scores[0] - scores[1]) < 0.3


def test_a_file_of_embeddings_states_the_merging(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scenes.parquet"
    command = ["embed", str(SCENES), *MODEL, "-o", str(output)]
    assert main([*command, "--merge-tokens", "6"]) == 0
    assert read_embeddings_metadata(output)["merge_tokens"] == 6
    search = ImageSearch(output)
    assert search.embedder.model.merge_tokens == 6
    assert main(["nearest", str(output), str(SCENES / "cup.jpg"), "--top-k", "1"]) == 0
    capsys.readouterr()
    assert main(command) != 0  # the same images without merging have other embeddings
    assert str(output) in capsys.readouterr().err


def test_a_regnet_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    image = str(SCENES / "cup.jpg")
    arguments = ["classify", image, "--model", "regnety_nano_hashtags", "--merge-tokens", "2"]
    assert main(arguments) != 0
    assert "merge_tokens is 2; a RegNet has no tokens" in capsys.readouterr().err
