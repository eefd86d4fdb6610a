"""The included images and weights match their descriptions."""

import io
from pathlib import Path

import numpy as np
from image_support import SCENES, predict_labels
from PIL import Image

import swag_models
from studies.scenes.scene import encode, plan_held_out
from studies.scenes.things import NAMES, THINGS

WEIGHTS = Path(swag_models.__file__).parent / "weights"


def test_images_are_the_first_held_out_ones_of_the_ten_most_frequent_classes() -> None:
    assert {path.name for path in SCENES.iterdir()} == {f"{name}.jpg" for name in NAMES[:10]}
    for number, name in enumerate(NAMES[:10]):
        generated = Image.open(io.BytesIO(encode(plan_held_out(0, number), 64)))
        stored = Image.open(SCENES / f"{name}.jpg")
        # Versions of Pillow round differently: about 1 of 255 on average.
        difference = np.subtract(stored, generated, dtype=np.float32)
        assert np.abs(difference).mean() < 2


def test_images_are_classified_correctly() -> None:
    for model in swag_models.list_models(variant="hashtags"):
        assert len(set(predict_labels(*SCENES.iterdir(), name=model))) >= 4, "of 10"


def test_included_weights_are_small_and_complete() -> None:
    files = {path.stem: path.stat().st_size for path in WEIGHTS.glob("*.safetensors")}
    assert files.keys() == set(swag_models.list_models(variant="hashtags"))
    assert all(size <= (2e6 if "_nano_" in name else 8e6) for name, size in files.items())


def test_every_class_has_its_hashtag_in_the_included_vocabulary() -> None:
    for model in swag_models.list_models(family="scenes"):
        spec = swag_models.get_spec(model)
        assert isinstance(spec.classes, tuple)
        assert spec.synsets
        assert len(set(spec.classes)) == len(set(spec.synsets)) == spec.num_classes
        assert set(NAMES) <= set(spec.classes)
        synsets = dict(zip(spec.classes, spec.synsets, strict=True))
        differing = {thing.name for thing in THINGS if synsets[thing.name] != thing.synset}
        assert differing == {"banana", "table"}, "which WordNet takes for something else"
