"""Folders of models with token merging: the number is stored, shown and read; timm ignores it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny import deviation, images, load_tiny

from swag_models import get_spec, load_model
from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.hub.hf_format import CONFIG_FILE
from swag_models.inference import Classifier
from swag_models.models import ViT
from swag_models.publish import save

NANO = "vit_nano_hashtags"

pytestmark = pytest.mark.usefixtures("caches")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published model whose blocks merge 3 tokens each."""
    classes = [f"class {index}" for index in range(10)]
    return save(load_tiny(merge_tokens=3), tmp_path / "merged", classes=classes)


def change_config(folder: Path, **values: Any) -> None:
    """Change entries of a spec in config.json; `...` removes one."""
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text())
    spec = {**config["swag_models"], **values}
    config["swag_models"] = {name: value for name, value in spec.items() if value is not ...}
    path.write_text(json.dumps(config))


def count_merged(model: Any) -> int:
    assert isinstance(model, ViT)
    return model.merge_tokens


@torch.inference_mode()
def test_the_number_is_stored_and_an_argument_wins(folder: Path, tmp_path: Path) -> None:
    batch = images(3)
    merged, plain = load_model(folder), load_model(folder, merge_tokens=0)
    assert [count_merged(model) for model in (merged, plain)] == [3, 0]
    again = load_model(folder, merge_tokens=3)
    assert torch.equal(merged(batch), again(batch))
    assert not torch.equal(merged(batch), plain(batch))
    assert count_merged(Classifier(folder, device="cpu").model) == 3
    assert count_merged(Classifier(folder, device="cpu", merge_tokens=1).model) == 1
    assert get_spec(folder).merge_tokens == 3
    # from there, it is saved as it is loaded
    other = save(load_model(folder, merge_tokens=0), tmp_path / "other")
    assert get_spec(other).merge_tokens is None
    assert count_merged(load_model(other)) == 0


def test_it_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder)]) == 0
    assert "\ntoken merging    each block merges 3 tokens\n" in capsys.readouterr().out
    card = (folder / "README.md").read_text()
    assert "| token merging | each block merges 3 tokens (arXiv 2210.09461) |" in card
    assert "timm and transformers compute the model without token merging" in card


@torch.inference_mode()
def test_timm_computes_without_merging(folder: Path) -> None:
    batch, plain = images(3), load_model(folder, merge_tokens=0)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert deviation(theirs(batch), plain(batch)) < 1e-4


def test_folders_without_the_number_read_as_before(folder: Path) -> None:
    change_config(folder, merge_tokens=...)
    assert get_spec(folder).merge_tokens is None
    assert count_merged(load_model(folder)) == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "merge_tokens is 0; allowed: a positive whole number or none"),
        (-1, "merge_tokens is -1; allowed: a positive whole number or none"),
        (True, "merge_tokens is True; allowed: a positive whole number or none"),
        ("3", "merge_tokens is '3'; allowed: a positive whole number or none"),
        (2**18 + 1, "merge_tokens is 262145; give a whole number from 1 to 262,144"),
    ],
)
def test_other_numbers_are_refused(folder: Path, value: Any, message: str) -> None:
    change_config(folder, merge_tokens=value)
    with pytest.raises(ConfigError, match=rf"config\.json: {message}"):
        load_model(folder)


def test_a_regnet_has_no_tokens(tmp_path: Path) -> None:
    folder = save(load_tiny("regnet"), tmp_path / "regnet")
    change_config(folder, merge_tokens=2)
    message = r"merge_tokens is 2; a RegNet has no tokens, leave it out"
    with pytest.raises(ConfigError, match=message):
        load_model(folder)


def test_the_command_saves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "nano")
    assert main(["save", NANO, folder, "--merge-tokens", "6"]) == 0
    spec = get_spec(folder)
    assert spec.merge_tokens == 6
    assert spec.metrics is None  # measured without merging
    assert spec.gmacs < get_spec(NANO).gmacs
    assert main(["save", NANO, folder]) == 0
    assert get_spec(folder).merge_tokens is None
    assert get_spec(folder).metrics == get_spec(NANO).metrics
    capsys.readouterr()
    assert main(["push", folder, "org/repo", "--dry-run", "--merge-tokens", "6"]) == 2
    assert "--merge-tokens are not allowed with a folder" in capsys.readouterr().err
