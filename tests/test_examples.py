"""The examples do what they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import swag_models

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_the_model_that_ships_can_be_made_again(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "train_digits.py"), str(tmp_path / "made.safetensors"), str(tmp_path / "digits")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    accuracy = re.search(r"held-out accuracy ([\d.]+)%", done.stdout)
    assert accuracy
    assert float(accuracy[1]) >= 95
    model = swag_models.load_model("vit_nano_digits", weights=tmp_path / "made.safetensors")
    picture = Image.open(tmp_path / "digits" / "digit_3.png")
    assert int(model(swag_models.load_preprocess("vit_nano_digits")(picture)[None]).argmax()) == 3
    shipped = EXAMPLES / "digits" / "digit_3.png"
    assert shipped.read_bytes() == (tmp_path / "digits" / "digit_3.png").read_bytes()


def test_the_pictures_that_ship_are_read_right() -> None:
    model, preprocess = swag_models.load_model("vit_nano_digits"), swag_models.load_preprocess("vit_nano_digits")
    pictures = torch.stack([preprocess(Image.open(EXAMPLES / "digits" / f"digit_{digit}.png")) for digit in range(10)])
    assert model(pictures).argmax(dim=1).tolist() == list(range(10))
