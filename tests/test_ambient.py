"""Defaults of torch, empty weights, wrapped models, pickled classifiers, missing devices."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from image_support import SCENES
from PIL import Image
from tiny import load_tiny

import swag_models
from swag_models import errors, inference
from swag_models.checkpoint import read_state_dict, write_state_dict

NANO = "vit_nano_hashtags"


@contextmanager
def use_default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def use_default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "ambient",
    [
        lambda: use_default_dtype(torch.float64),
        lambda: use_default_dtype(torch.bfloat16),
        lambda: use_default_device("meta"),
        lambda: torch.device("meta"),
    ],
    ids=["float64", "bfloat16", "default meta", "context meta"],
)
@pytest.mark.parametrize("family", ["vit", "regnety"])
def test_defaults_of_torch_do_not_change_results(family: str, ambient: Any) -> None:
    name, image = f"{family}_nano_hashtags", Image.open(SCENES / "house.jpg").convert("RGB")
    expected = inference.Embedder(name)(image).vectors
    with ambient():
        vectors = inference.Embedder(name)(image).vectors
        empty = inference.Embedder(name)([]).vectors
        (prediction,) = inference.Classifier(name)(image, top_k=1)[0]
        pixels = swag_models.load_preprocess(name)(image)
        heads = swag_models.load_model(name, num_classes=3)
        fresh = swag_models.load_model(name, pretrained=False, in_chans=1, image_size=64)
    assert vectors.dtype == empty.dtype == pixels.dtype == torch.float32
    assert torch.equal(vectors, expected)
    assert prediction.label == "house"
    for tensor in (pixels, *heads.state_dict().values(), *fresh.state_dict().values()):
        assert tensor.device.type == "cpu"
        assert not tensor.is_floating_point() or tensor.dtype == torch.float32


@pytest.mark.parametrize("family", ["vit", "regnety"])
def test_an_empty_model_can_be_made_for_accelerate(family: str) -> None:
    name = f"{family}_nano_hashtags"
    weights = swag_models.load_model(name).state_dict()
    with init_empty_weights():
        model = swag_models.load_model(name, pretrained=False)
        with pytest.raises(errors.ConfigError, match="or pass pretrained=False"):
            swag_models.load_model(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(weights, assign=True)
    assert not model(torch.rand(1, 3, 48, 48)).isnan().any()


def test_a_compiled_classifier_can_be_pickled() -> None:
    classifier = inference.Classifier(NANO, compile=True)
    copy = pickle.loads(pickle.dumps(classifier))
    image = Image.open(SCENES / "house.jpg").convert("RGB")
    # Fewer images than half a batch: not compiled, which would take seconds.
    ours, theirs = copy(image)[0], classifier(image)[0]
    assert [p.label for p in ours] == [p.label for p in theirs]
    assert ours[0].probability == pytest.approx(theirs[0].probability, rel=1e-4)
    assert copy._compiled is not None


@pytest.mark.parametrize("device", ["mps", "tpu", "cuda:99", "xla", "privateuseone", "vulkan", -1])
def test_a_device_that_is_missing_is_named_in_our_words(device: Any) -> None:
    with pytest.raises(errors.ConfigError) as error:
        swag_models.load_model(NANO, device=device)
    assert str(error.value).startswith(f"device {device!r} cannot be used here (no such device); ")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("device", ["CPU", "Auto", "cPu:0"])
def test_the_name_of_a_device_may_be_in_any_case(device: str) -> None:
    assert swag_models.load_model(NANO, device=device).head.weight.device.type in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("device", "meant"),
    [("gpu", "cuda"), ("GPU:0", "cuda"), ("cuda0", "cuda"), ("cdua", "cuda"), ("Metal", "mps")],
)
def test_a_device_by_another_name_is_answered_with_torchs(device: str, meant: str) -> None:
    with pytest.raises(errors.ConfigError, match=rf"device '{device}' .*did you mean {meant}\?"):
        inference.Classifier(NANO, device=device)
    with pytest.raises(errors.ConfigError) as error:
        swag_models.load_model(NANO, device="tpu")
    assert "did you mean" not in str(error.value)


def test_a_loaded_model_where_a_name_is_expected_is_refused_with_the_fix() -> None:
    for call in (swag_models.load_model, swag_models.get_spec):
        with pytest.raises(errors.ConfigError, match=r"the folder that publish\.save writes"):
            call(load_tiny("vit"))


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weight_files_are_read_onto_the_cpu(backend: Any, suffix: str, tmp_path: Path) -> None:
    model = load_tiny("vit")
    write_state_dict(model.state_dict(), tmp_path / f"x.{suffix}")
    with torch.device("meta"):
        state = read_state_dict(tmp_path / f"x.{suffix}", backend=backend)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
