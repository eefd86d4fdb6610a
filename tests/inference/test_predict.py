"""Classifier and Embedder: what the model alone would give, whatever the batches and the threads, and the claimed accuracy."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_support import (
    NANO,
    SCENES,
    encode_image,
    make_pixels,
    make_spec,
    measure_top1,
    predict_labels,
    write_images,
    write_tar,
)
from PIL import Image
from torch import Tensor

import swag_models
from swag_models.errors import ConfigError, ImageError, SwagModelsError
from swag_models.inference.image_sources import ImageRef
from swag_models.inference.predict import Classifier, Embedder
from swag_models.publish import save
from swag_models.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = pytest.mark.parametrize("family", ["vit", "regnet"])
Model = tuple[ModelSpec, Path]


@pytest.fixture
def model(family: str, tmp_path: Path) -> Model:
    return make_spec(family, tmp_path)


def make_files(folder: Path) -> list[Path]:
    """Eleven pictures of different shapes."""
    folder.mkdir()
    for number in range(11):
        Image.fromarray(make_pixels(number, 40 + 9 * number, 120 - 7 * number)).save(
            folder / f"{number:02d}.png"
        )
    return sorted(folder.iterdir())


@torch.inference_mode()
def run_by_hand(
    model: Model, images: list[Any], num_classes: int | None = 10, **options: Any
) -> Tensor:
    """Logits (N, K), or pooled features (N, D) without a head, one image after the other."""
    spec, weights = model
    alone = swag_models.load_model(spec, weights=weights, num_classes=num_classes, **options)
    preprocess = swag_models.load_preprocess(spec, image_size=options.get("image_size"))
    inputs = [
        preprocess(image if isinstance(image, Tensor) else Image.open(image)) for image in images
    ]
    rows = torch.cat(
        [alone(each[None].to(next(alone.parameters()).dtype)) for each in inputs]
    ).float()
    return rows if rows.ndim == 2 else rows.mean((2, 3))  # a RegNet's feature map is pooled


def collect(classifier: Classifier, images: Any) -> Tensor:
    """Probabilities (N, K) in the order of the classes."""
    rows = [{each.index: each.probability for each in row} for row in classifier(images, top_k=10)]
    return torch.tensor([[row[index] for index in range(10)] for row in rows])


@pytest.mark.parametrize("name", swag_models.list_models(variant="hashtags"))
def test_the_models_that_ship_are_as_accurate_on_held_out_scenes_as_the_catalog_says(
    name: str,
) -> None:
    metrics = swag_models.get_spec(name).metrics
    assert metrics is not None
    assert metrics.dataset == "960 held-out scenes"
    assert measure_top1(name) == pytest.approx(
        metrics.top1, abs=0.11
    )  # one picture, which a rounding may turn
    assert metrics.top1 > 5 * 100 / 32, "of guessing"


@FAMILIES
@pytest.mark.parametrize(
    ("batch_size", "workers"), [(None, None), (1, 1), (4, 3), (5, 1), (11, 2), (64, 8)]
)
def test_batches_and_threads_change_nothing(
    model: Model, tmp_path: Path, batch_size: int | None, workers: int | None
) -> None:
    files = make_files(tmp_path / "pictures")
    options: dict[str, Any] = {"weights": model[1], "batch_size": batch_size, "workers": workers}
    embeddings = Embedder(model[0], **options)(files)
    expected = run_by_hand(model, files, num_classes=None)
    assert embeddings.names == [str(file) for file in files]
    assert embeddings.vectors.dtype == torch.float32
    assert not embeddings.skipped
    assert (embeddings.vectors - expected).abs().max() <= 1e-5 * expected.abs().max()
    probabilities = collect(Classifier(model[0], **options), files)
    assert torch.allclose(
        probabilities, run_by_hand(model, files).softmax(dim=1), rtol=0, atol=1e-5
    )


def test_predictions_are_sorted_and_carry_the_class_names() -> None:
    classifier = Classifier(NANO)
    (predictions,) = classifier(SCENES / "house.jpg", top_k=65)
    assert [predictions[0].label] == predict_labels(SCENES / "house.jpg")
    assert [each.label for each in predictions] == [
        classifier.classes[each.index] for each in predictions
    ]
    probabilities = [each.probability for each in predictions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert classifier(SCENES / "house.jpg", top_k=3) == [predictions[:3]]


@FAMILIES
def test_tensors_arrays_and_images_mix_in_one_batch(model: Model, tmp_path: Path) -> None:
    file = make_files(tmp_path / "pictures")[0]
    pixels = np.asarray(Image.open(file))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    shard = write_tar(tmp_path / "shard.tar", {"0.png": file.read_bytes()})
    vectors, names, _ = Embedder(model[0], weights=model[1])(
        [file, pixels, tensor, Image.open(file), shard]
    )
    assert names == [str(file), "image 1", "image 2", "image 3", f"{shard}/0.png"]
    assert torch.allclose(vectors[[0]].expand(4, -1), vectors[[0, 1, 3, 4]], rtol=0, atol=1e-5)
    by_hand = run_by_hand(
        model, [tensor], num_classes=None
    )  # torch resizes a tensor a little differently
    assert torch.allclose(vectors[[2]], by_hand, rtol=0, atol=1e-5 * float(by_hand.abs().max()))


def test_broken_pictures_keep_their_places_and_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.png").write_bytes(encode_image(0)[:200])
    missing, broken, empty = (
        tmp_path / "missing.png",
        tmp_path / "broken.png",
        np.zeros((0, 3), np.uint8),
    )
    images = [missing, SCENES / "chair.jpg", broken, empty, broken, missing, SCENES / "fish.jpg"]
    chair, fish = predict_labels(images[1], images[6])
    for batch_size in (1, 2, 3, 32):  # of two, one batch has nothing left
        predictions = Classifier(NANO, batch_size=batch_size)(images, top_k=1)
        assert [each[0].label if each else None for each in predictions] == [
            None,
            chair,
            None,
            None,
            None,
            None,
            fish,
        ]
        embeddings = Embedder(NANO, batch_size=batch_size)(images)
        assert embeddings.names == [str(images[1]), str(images[6])]
        assert len(embeddings.vectors) == 2
        assert [skipped.name for skipped in embeddings.skipped] == [
            str(missing),
            str(broken),
            "image 3",
            str(broken),
            str(missing),
        ]
        reasons = [f"skipped: {skipped.reason}" for skipped in embeddings.skipped]
        assert caplog.messages == reasons * 2
        assert reasons[0] == f"skipped: {missing} cannot be read: No such file or directory"
        caplog.clear()


def test_nothing_gives_nothing(tmp_path: Path) -> None:
    assert Classifier(NANO)([]) == []
    embedder = Embedder(NANO)
    for images in ([], [tmp_path / "missing.png"] * 3):
        embeddings = embedder(images)
        assert embeddings.vectors.shape == (0, embedder.model.num_features)
        assert embeddings.names == []
        assert len(embeddings.skipped) == len(images)


def test_a_stream_gives_each_picture_as_it_is_done_and_stops_with_its_reader(
    tmp_path: Path,
) -> None:
    files = write_images(tmp_path, 40)
    stream = Classifier(NANO, batch_size=2, workers=2).stream(files, top_k=1)
    name, predictions, reason = next(stream)
    assert (name, len(predictions), reason) == (str(files[0]), 1, None)
    for file in files[32:]:
        file.unlink()  # not read yet
    rest = list(stream)
    assert [name for name, _, reason in rest if reason is None] == [
        str(file) for file in files[1:32]
    ]
    assert [name for name, _, reason in rest if reason] == [str(file) for file in files[32:]]
    abandoned = Classifier(NANO, batch_size=2, workers=2).stream(files)
    next(abandoned)
    abandoned.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


@FAMILIES
@pytest.mark.parametrize("image_size", [96, (64, 128)])
def test_another_image_size_reaches_model_and_preprocessing(
    model: Model, tmp_path: Path, image_size: Any
) -> None:
    files = make_files(tmp_path / "pictures")[:3]
    found = collect(Classifier(model[0], weights=model[1], image_size=image_size), files)
    expected = run_by_hand(model, files, image_size=image_size).softmax(dim=1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found, run_by_hand(model, files).softmax(dim=1), rtol=0, atol=1e-2)


@FAMILIES
def test_another_dtype_is_used_inside_and_results_are_float32(model: Model, tmp_path: Path) -> None:
    files = make_files(tmp_path / "pictures")[:3]
    embedder = Embedder(model[0], weights=model[1], dtype="bfloat16")
    vectors = embedder(files).vectors
    assert embedder.dtype == torch.bfloat16
    assert vectors.dtype == torch.float32
    exact = run_by_hand(model, files, num_classes=None)
    by_hand = run_by_hand(model, files, num_classes=None, dtype="bfloat16")
    assert 0 < (vectors - exact).abs().mean() <= 0.02 * exact.std()
    assert (vectors - by_hand).abs().mean() <= 0.02 * exact.std()


def test_options_of_load_model_pass_through() -> None:
    files = [SCENES / "butterfly.jpg"]
    token, average = (Embedder(NANO, global_pool=pool)(files).vectors for pool in ("token", "avg"))
    assert not torch.allclose(token, average, atol=0.1)
    untrained = Embedder(NANO, pretrained=False)(files).vectors
    assert not torch.allclose(token, untrained, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; give a positive number"),
        ({"batch_size": 2.0}, "batch_size is 2.0; give a positive number"),
        ({"workers": -1}, "workers is -1; give a positive number"),
        ({"workers": True}, "workers is True; give a positive number"),
        ({"num_classes": 4}, "Embedder uses the num_classes of the model; leave it out"),
        (
            {"in_chans": 1, "num_classes": 4},
            "Embedder uses the in_chans and num_classes of the model; leave them out",
        ),
        ({"dtype": "int8"}, "dtype 'int8' is not allowed; give float32"),
        ({"dtype": "int8", "fast": True}, "dtype 'int8' is not allowed; give float32"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        (
            {"image_size": 30},
            "image size 30x30 is not a multiple of the patch size 8; nearest: 32x32",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_a_line(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Embedder(NANO, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_grey_model_gets_grey_pictures_and_one_of_other_channels_is_refused(
    tmp_path: Path,
) -> None:
    for channels in (1, 5):
        save(swag_models.load_model(NANO, in_chans=channels), tmp_path / f"{channels}")
    classifier = Classifier(str(tmp_path / "1"))
    (found,) = classifier([SCENES / "butterfly.jpg"])
    inputs = classifier.preprocess(Image.open(SCENES / "butterfly.jpg"))[None].mean(1, keepdim=True)
    with torch.inference_mode():
        best = classifier.model(inputs).softmax(1).max()
    assert found[0].probability == pytest.approx(best.item(), abs=1e-5)
    with pytest.raises(ConfigError, match=r"takes 5 channels, but images have 3 \(or 1 as grey\)"):
        Classifier(str(tmp_path / "5"))


def test_few_pictures_are_read_by_all_threads(tmp_path: Path) -> None:
    files = write_images(tmp_path, 8)
    seen = set()

    class Slow(Embedder):
        def _read(self, picture: ImageRef) -> Tensor | str:
            seen.add(threading.current_thread().name)
            time.sleep(0.05)
            return super()._read(picture)

    assert len(Slow(NANO, batch_size=8, workers=4)(files).names) == 8
    assert len(seen) == 4


def test_wrong_names_classes_and_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="vit_l16 gives features and has no classes"):
        Classifier("vit_l16")
    with pytest.raises(SwagModelsError, match="unknown model 'vit_nano'"):
        Embedder("vit_nano")
    classifier = Classifier(NANO)
    with pytest.raises(ConfigError, match="top_k is 0; give 1 or more"):
        classifier([SCENES / "butterfly.jpg"], top_k=0)
    assert len(classifier([SCENES / "butterfly.jpg"], top_k=66)[0]) == 65
    with pytest.raises(ConfigError, match="cannot read a dict"):
        classifier([{}])
    assert not issubclass(ImageError, ConfigError), "a broken picture is not wrong usage"
