"""The classifier, and the accuracy claimed for the model that ships."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import swag_models
from swag_models.errors import ConfigError
from swag_models.inference import Classifier


def test_the_model_that_ships_is_as_accurate_on_held_out_digits_as_the_catalog_says() -> None:
    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype("uint8")
    split = train_test_split(pixels, digits.target, test_size=0.25, random_state=0, stratify=digits.target)
    pictures, targets = split[1], split[3]
    predictions = Classifier("vit_nano_digits")([Image.fromarray(picture) for picture in pictures], top_k=1)
    accuracy = 100 * np.mean([best.index == target for (best,), target in zip(predictions, targets)])
    metrics = swag_models.get_spec("vit_nano_digits").metrics
    assert metrics is not None
    assert accuracy == pytest.approx(metrics.top1, abs=0.25)  # one picture
    assert accuracy >= 95


def test_predictions_are_softmax_of_the_models_logits() -> None:
    classifier = Classifier("vit_nano_digits")
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    (predictions,) = classifier([image], top_k=10)
    with torch.inference_mode():
        logits = classifier.model(classifier.preprocess(image)[None])[0]
    for each in predictions:
        assert each.probability == pytest.approx(float(logits.softmax(0)[each.index]), abs=1e-6)
        assert each.label == classifier.classes[each.index]
    assert sum(each.probability for each in predictions) == pytest.approx(1, abs=1e-5)


def test_a_batch_gives_what_single_images_give() -> None:
    classifier = Classifier("vit_nano_digits", dtype="bfloat16")
    images = [Image.new("L", (9, 7), shade) for shade in (0, 90, 255)]
    together = classifier(images, top_k=1)
    assert [each[0].index for each in together] == [classifier([image], top_k=1)[0][0].index for image in images]
    assert classifier([]) == []


def test_a_trunk_or_another_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="vit_l16 gives features and has no classes"):
        Classifier("vit_l16")
    with pytest.raises(ConfigError, match="leave num_classes out"):
        Classifier("vit_nano_digits", num_classes=4)
