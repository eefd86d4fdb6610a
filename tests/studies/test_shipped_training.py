"""Training of the model that ships: the shift of the biases, and (slow) the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_drawings import WORDNET, make_command

from studies import models
from studies.__main__ import main
from studies.drawings.__main__ import main as build
from studies.models import MODEL, Head, read_head, shift_biases
from swag_models import load_model


def test_biases_are_shifted_by_the_log_of_the_number_of_images() -> None:
    shift = shift_biases(Head(torch.tensor([100.0, 10.0, 1.0]), ("a", "b", "c")), 0.5)
    assert shift.tolist() == pytest.approx([2.302585, 1.151293, 0.0])


@pytest.mark.slow
def test_the_model_is_trained_rounded_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps on small drawings; a rerun does nothing."""
    drawings, folder = tmp_path / "drawings", tmp_path / "models"
    assert build(make_command(tmp_path, monkeypatch)) == 0
    monkeypatch.setattr(models, "POSTS", 60)
    monkeypatch.setattr(models, "MIN_IMAGES", 3)
    command = ["models", str(folder), str(drawings), "--wordnet", str(WORDNET), "--quiet"]
    settings = ["epochs=none", "steps=2", "batch_size=8", "image_size=32", "engine.workers=0"]
    command += [part for setting in settings for part in ("--set", setting)]
    assert main(command) == 0
    measured = json.loads((folder / "measured.json").read_text())
    assert [row["held_out"] for row in measured] == ["val", "twemoji", "clipart_test"]
    chosen = json.loads((folder / "models" / f"{MODEL}.json").read_text())
    shift = chosen["result"]["shift"]
    weights, trained = (
        load_file(folder / path / "model.safetensors")
        for path in (f"models/{MODEL}", f"runs/{MODEL}/model")
    )
    assert {tensor.dtype for tensor in weights.values()} <= {torch.float16, torch.int64}
    head = read_head(folder / "curated" / "vocabulary.parquet")
    trained["head.fc.bias"] += shift_biases(head, shift)
    assert weights.keys() == trained.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor.float(), trained[name].float(), atol=1e-3, rtol=1e-3)
    assert load_model(folder / "models" / MODEL).num_classes == len(head.synsets)
    before = {path: path.stat().st_mtime_ns for path in (folder / "models").rglob("*")}
    assert main(command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "models").rglob("*")}
