"""The examples of fine-tuning, adapters, saliency and detection, offline, on included models."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from image_support import SCENES, render_scenes
from PIL import Image

from swag_models.api import load_classes
from swag_models.inference import Classifier

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(*arguments: str | Path, cwd: Path) -> str:
    """Run an example in another folder without network access; return what it prints."""
    environment = {
        **os.environ,
        "SWAG_MODELS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(EXAMPLES / arguments[0]), *map(str, arguments[1:])]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def find_number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match, text
    return float(match[1])


SLOW = pytest.mark.slow


@SLOW  # `make demo` runs it too
def test_fine_tuning_on_a_few_labels_beats_random_weights(tmp_path: Path) -> None:
    printed = run_example("finetune.py", cwd=tmp_path)
    before = find_number(r"hashtags alone: ([\d.]+)%", printed)
    tuned = find_number(r"fine-tuned, 20 labels per class: ([\d.]+)% of 240 test images", printed)
    scratch = find_number(r"random weights, 20 labels per class: ([\d.]+)%", printed)
    assert before > 2 * 100 / 8, "of guessing"
    assert tuned > scratch + 10
    assert len((EXAMPLES / "finetune.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    "example",
    [pytest.param("lora.py", marks=SLOW), pytest.param("accelerate_finetune.py", marks=SLOW)],
)
def test_an_adapted_model_learns_the_new_task(example: str, tmp_path: Path) -> None:
    printed = run_example(example, cwd=tmp_path)
    assert find_number(r"held-out accuracy ([\d.]+)%", printed) >= 3 * 100 / 8, "of guessing"
    if example == "lora.py":
        assert find_number(r"trainable%: ([\d.]+)", printed) < 5
        assert find_number(r"ViT, merging changed logits by at most (\S+)", printed) < 1e-4


@SLOW
@pytest.mark.parametrize(
    "example", ["finetune_folder.py", "lightning_finetune.py", "trainer_finetune.py"]
)
def test_a_folder_of_images_becomes_a_classifier(example: str, tmp_path: Path) -> None:
    images, names = render_scenes(960)
    things = sorted(set(names))[:8]
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        if name in things:
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    printed = run_example(example, "photos", "vit_nano_hashtags", "model", "8", cwd=tmp_path)
    assert find_number(r"held-out accuracy ([\d.]+)%", printed) >= 2.5 * 100 / 8, "of guessing"
    assert list(load_classes(tmp_path / "model")) == things
    path = next((tmp_path / "photos" / things[0]).iterdir())
    (best,) = Classifier(tmp_path / "model")(path, top_k=1)[0]
    assert best.label in things
    process = subprocess.run(
        [sys.executable, EXAMPLES / example, "photos"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert f"usage: python examples/{example} FOLDER MODEL OUTPUT" in process.stderr


@pytest.mark.slow
def test_grad_cam_highlights_the_pixels_that_matter(tmp_path: Path) -> None:
    printed = run_example("gradcam.py", SCENES / "flower.jpg", "overlay.png", cwd=tmp_path)
    hottest, coldest = (
        find_number(rf"probability ([\d.]+) with the {part} quarter", printed)
        for part in ("hottest", "coldest")
    )
    assert hottest < coldest
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert (overlay.size, overlay.mode) == ((48, 48), "RGB")
        assert len(overlay.getcolors(48 * 48) or ()) > 100


@pytest.mark.slow
def test_a_detector_finds_objects_like_those_it_was_trained_on(tmp_path: Path) -> None:
    printed = run_example("detection.py", cwd=tmp_path)
    assert find_number(r"step 19 loss ([\d.]+)", printed) < 0.5 * find_number(
        r"step 0 loss ([\d.]+)", printed
    )
    assert find_number(r"detected 3 of 3 things with (\d+) boxes", printed) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("example", ["detection.py", "gradcam.py"])
@pytest.mark.parametrize(
    "name", ["vit_nano_hashtags", "regnety_nano_hashtags", "vit_b16_in1k", "regnety_16gf_in1k"]
)
def test_another_model_needs_nothing_but_its_name(example: str, name: str, tmp_path: Path) -> None:
    text = (EXAMPLES / example).read_text("utf-8").replace('"vit_nano_hashtags"', repr(name))
    if "nano" not in name:  # random weights: the published ones are not in the package
        text = text.replace("load_model(NAME)", "load_model(NAME, pretrained=False)")
    text = text.replace("Path(__file__).parent", f"Path({str(EXAMPLES)!r})")
    (tmp_path / example).write_text(text, "utf-8")
    arguments = ["2"] if example == "detection.py" else []
    printed = run_example(tmp_path / example, *arguments, cwd=tmp_path)
    assert "detected" in printed if arguments else "quarter covered" in printed
