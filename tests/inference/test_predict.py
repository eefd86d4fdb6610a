"""Classifier and Embedder: results equal to the model alone, and the stated accuracy."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fetch_support import wait_until
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
BUTTERFLY = Path(swag_models.__file__).parent / "app" / "examples" / "butterfly.jpg"


@pytest.fixture
def model(family: str, tmp_path: Path) -> Model:
    return make_spec(family, tmp_path)


def make_files(folder: Path) -> list[Path]:
    """Eleven images of different shapes."""
    folder.mkdir()
    for number in range(11):
        Image.fromarray(make_pixels(number, 40 + 9 * number, 120 - 7 * number)).save(
            folder / f"{number:02d}.png"
        )
    return sorted(folder.iterdir())


@torch.inference_mode()
def run_model(
    model: Model, images: list[Any], num_classes: int | None = 10, **options: Any
) -> Tensor:
    """Logits (N, K), or pooled features (N, D) without a head, of one image at a time."""
    spec, weights = model
    network = swag_models.load_model(spec, weights=weights, num_classes=num_classes, **options)
    preprocess = swag_models.load_preprocess(spec, image_size=options.get("image_size"))
    inputs = [
        preprocess(image if isinstance(image, Tensor) else Image.open(image)) for image in images
    ]
    rows = torch.cat(
        [network(x[None].to(next(network.parameters()).dtype)) for x in inputs]
    ).float()
    return rows if rows.ndim == 2 else rows.mean((2, 3))  # a RegNet's feature map is pooled


def compute_all_probabilities(classifier: Classifier, images: Any) -> Tensor:
    """Probabilities (N, K) in the order of the classes."""
    rows = [{p.index: p.probability for p in row} for row in classifier(images, top_k=10)]
    return torch.tensor([[row[index] for index in range(10)] for row in rows])


@pytest.mark.parametrize("name", swag_models.list_models(family="scenes"))
def test_the_shipped_models_have_the_accuracy_that_the_catalog_states(
    name: str,
) -> None:
    metrics = swag_models.get_spec(name).metrics
    assert metrics is not None
    assert metrics.dataset == "960 held-out scenes"
    assert measure_top1(name) == pytest.approx(
        metrics.top1, abs=0.11
    )  # one image of 960: rounding may change its class
    assert metrics.top1 > 5 * 100 / 32, "five times chance"


@FAMILIES
@pytest.mark.parametrize(
    ("batch_size", "workers"), [(None, None), (1, 1), (4, 3), (5, 1), (11, 2), (64, 8)]
)
def test_batch_size_and_number_of_workers_do_not_change_results(
    model: Model, tmp_path: Path, batch_size: int | None, workers: int | None
) -> None:
    files = make_files(tmp_path / "images")
    options: dict[str, Any] = {"weights": model[1], "batch_size": batch_size, "workers": workers}
    embeddings = Embedder(model[0], **options)(files)
    expected = run_model(model, files, num_classes=None)
    assert embeddings.names == [str(file) for file in files]
    assert embeddings.vectors.dtype == torch.float32
    assert not embeddings.skipped
    assert (embeddings.vectors - expected).abs().max() <= 1e-5 * expected.abs().max()
    probabilities = compute_all_probabilities(Classifier(model[0], **options), files)
    assert torch.allclose(probabilities, run_model(model, files).softmax(dim=1), rtol=0, atol=1e-5)


def test_candidate_labels_are_the_only_classes_to_choose_from() -> None:
    image = BUTTERFLY
    names = ["tree", "bus", "whale"]
    every = Classifier("regnety_200mf_hashtags")(image, top_k=1751)[0]
    few = Classifier("regnety_200mf_hashtags", candidate_labels=names)(image)[0]
    expected = {row.label: row.probability for row in every if row.label in names}
    total = sum(expected.values())
    assert {row.label: row.probability for row in few} == pytest.approx(
        {label: value / total for label, value in expected.items()}, abs=1e-6
    )
    assert [row.index for row in few] == [row.index for row in every if row.label in names]


@pytest.mark.parametrize("multi_label", [False, True])
def test_candidate_labels_and_a_threshold(multi_label: bool) -> None:
    """Classes that are no candidates are never returned; a sigmoid does not depend on others."""
    options: dict[str, Any] = {"multi_label": multi_label, "candidate_labels": ["tree", "bus"]}
    (rows,) = Classifier("regnety_200mf_hashtags", threshold=0, **options)(BUTTERFLY)
    assert {row.label for row in rows} == {"tree", "bus"}
    if multi_label:
        (every,) = Classifier("regnety_200mf_hashtags", threshold=0, multi_label=True)(BUTTERFLY)
        assert set(rows) < set(every)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["tre"], "unknown candidate label 'tre'; did you mean: tree"),
        ([], "candidate_labels is empty; name one class or more"),
        ("tree", "invalid candidate_labels 'tree': allowed: list or tuple"),
    ],
)
def test_invalid_candidate_labels_are_rejected(labels: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        Classifier("regnety_200mf_hashtags", candidate_labels=labels)


def test_predictions_are_sorted_and_have_class_names() -> None:
    classifier = Classifier(NANO)
    (predictions,) = classifier(SCENES / "house.jpg", top_k=65)
    assert [predictions[0].label] == predict_labels(SCENES / "house.jpg")
    assert [p.label for p in predictions] == [classifier.classes[p.index] for p in predictions]
    probabilities = [p.probability for p in predictions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert classifier(SCENES / "house.jpg", top_k=3) == [predictions[:3]]


@FAMILIES
def test_one_batch_can_mix_tensors_arrays_and_images(model: Model, tmp_path: Path) -> None:
    file = make_files(tmp_path / "images")[0]
    pixels = np.asarray(Image.open(file))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    shard = write_tar(tmp_path / "shard.tar", {"0.png": file.read_bytes()})
    vectors, names, _ = Embedder(model[0], weights=model[1])(
        [file, pixels, tensor, Image.open(file), shard]
    )
    assert names == [str(file), "image 1", "image 2", "image 3", f"{shard}/0.png"]
    assert torch.allclose(vectors[[0]].expand(4, -1), vectors[[0, 1, 3, 4]], rtol=0, atol=1e-5)
    expected = run_model(
        model, [tensor], num_classes=None
    )  # torch resizes a tensor a little differently
    assert torch.allclose(vectors[[2]], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_broken_images_keep_their_positions_and_are_reported(
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
    for batch_size in (1, 2, 3, 32):  # with 2, one batch has no readable image
        predictions = Classifier(NANO, batch_size=batch_size)(images, top_k=1)
        assert [row[0].label if row else None for row in predictions] == [
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


def test_no_images_give_no_results(tmp_path: Path) -> None:
    assert Classifier(NANO)([]) == []
    embedder = Embedder(NANO)
    for images in ([], [tmp_path / "missing.png"] * 3):
        embeddings = embedder(images)
        assert embeddings.vectors.shape == (0, embedder.model.num_features)
        assert embeddings.names == []
        assert len(embeddings.skipped) == len(images)


def test_a_stream_yields_results_early_and_stops_its_threads_when_closed(
    tmp_path: Path,
) -> None:
    files = write_images(tmp_path, 40)
    stream = Classifier(NANO, batch_size=2, workers=2).stream(files, top_k=1)
    name, predictions, reason = next(stream)
    assert (name, len(predictions), reason) == (str(files[0]), 1, None)
    for file in files[32:]:
        file.unlink()  # were not read yet
    rest = list(stream)
    assert [name for name, _, reason in rest if reason is None] == [
        str(file) for file in files[1:32]
    ]
    assert [name for name, _, reason in rest if reason] == [str(file) for file in files[32:]]
    abandoned = Classifier(NANO, batch_size=2, workers=2).stream(files)
    next(abandoned)
    abandoned.close()
    # a thread that is reading an image ends after it
    wait_until(
        lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("read")]
    )


@FAMILIES
@pytest.mark.parametrize("image_size", [96, (64, 128)])
def test_image_size_is_used_by_model_and_preprocessing(
    model: Model, tmp_path: Path, image_size: Any
) -> None:
    files = make_files(tmp_path / "images")[:3]
    probabilities = compute_all_probabilities(
        Classifier(model[0], weights=model[1], image_size=image_size), files
    )
    expected = run_model(model, files, image_size=image_size).softmax(dim=1)
    assert torch.allclose(probabilities, expected, rtol=0, atol=1e-5)
    default_size = run_model(model, files).softmax(dim=1)
    assert not torch.allclose(probabilities, default_size, rtol=0, atol=1e-2)


@FAMILIES
def test_the_dtype_is_that_of_the_model_and_results_are_float32(
    model: Model, tmp_path: Path
) -> None:
    files = make_files(tmp_path / "images")[:3]
    embedder = Embedder(model[0], weights=model[1], dtype="bfloat16")
    vectors = embedder(files).vectors
    assert embedder.dtype == torch.bfloat16
    assert vectors.dtype == torch.float32
    exact = run_model(model, files, num_classes=None)
    expected = run_model(model, files, num_classes=None, dtype="bfloat16")
    assert 0 < (vectors - exact).abs().mean() <= 0.02 * exact.std()
    assert (vectors - expected).abs().mean() <= 0.02 * exact.std()


def test_options_are_passed_to_load_model() -> None:
    files = [SCENES / "butterfly.jpg"]
    token, average = (Embedder(NANO, global_pool=pool)(files).vectors for pool in ("token", "avg"))
    assert not torch.allclose(token, average, atol=0.1)
    untrained = Embedder(NANO, pretrained=False)(files).vectors
    assert not torch.allclose(token, untrained, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "invalid batch_size 0: allowed: 1 or more"),
        ({"batch_size": 2.0}, "invalid batch_size 2.0: allowed: 1 or more"),
        ({"workers": -1}, "invalid workers -1: allowed: 1 or more"),
        ({"workers": True}, "invalid workers True: allowed: 1 or more"),
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
def test_an_invalid_option_is_an_error_of_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Embedder(NANO, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_grey_model_gets_grey_images_and_other_channels_are_rejected(
    tmp_path: Path,
) -> None:
    for channels in (1, 5):
        save(swag_models.load_model(NANO, in_chans=channels), tmp_path / f"{channels}")
    classifier = Classifier(str(tmp_path / "1"))
    (predictions,) = classifier([SCENES / "butterfly.jpg"])
    inputs = classifier.preprocess(Image.open(SCENES / "butterfly.jpg"))[None].mean(1, keepdim=True)
    with torch.inference_mode():
        best = classifier.model(inputs).softmax(1).max()
    assert predictions[0].probability == pytest.approx(best.item(), abs=1e-5)
    with pytest.raises(
        ConfigError, match=r"takes 5 channels, but images have 3, or 1 in greyscale"
    ):
        Classifier(str(tmp_path / "5"))


def test_few_images_are_read_by_all_threads(tmp_path: Path) -> None:
    files = write_images(tmp_path, 8)
    thread_names = set()

    class Slow(Embedder):
        def _read(self, image: ImageRef) -> Tensor | str:
            thread_names.add(threading.current_thread().name)
            time.sleep(0.05)
            return super()._read(image)

    assert len(Slow(NANO, batch_size=8, workers=4)(files).names) == 8
    assert len(thread_names) == 4


def test_invalid_models_and_images_are_rejected() -> None:
    with pytest.raises(ConfigError, match="vit_l16 gives features and has no classes"):
        Classifier("vit_l16")
    with pytest.raises(SwagModelsError, match="unknown model 'vit_nano'"):
        Embedder("vit_nano")
    classifier = Classifier(NANO)
    with pytest.raises(ConfigError, match="invalid top_k 0: allowed: 1 or more"):
        classifier([SCENES / "butterfly.jpg"], top_k=0)
    assert len(classifier([SCENES / "butterfly.jpg"], top_k=66)[0]) == 65
    with pytest.raises(ConfigError, match="cannot read a dict"):
        classifier([{}])
    assert not issubclass(ImageError, ConfigError), "a broken image is not wrong usage"


@pytest.mark.parametrize(
    "head", [torch.nn.Linear(96, 3), torch.nn.Linear(96, 80), torch.nn.Identity()]
)
def test_a_head_of_another_size_gets_no_names(head: torch.nn.Module) -> None:
    model = swag_models.load_model(NANO)
    model.head = head
    with pytest.raises(ConfigError, match=r"head of vit_nano_hashtags gives .* for 65 classes"):
        Classifier(model)(Image.new("RGB", (48, 48)))
