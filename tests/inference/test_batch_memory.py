"""Batches that cannot fit into the memory are refused before any image is read."""

import pytest
import torch
from image_support import NANO
from PIL import Image
from tiny import load_tiny

from swag_models.errors import ConfigError
from swag_models.hub.model_size import count_activations
from swag_models.inference import Classifier, Embedder, pipeline
from swag_models.runtime import find_free_memory


@pytest.mark.parametrize("family", ["vit", "regnet"])
def test_the_estimate_is_a_lower_bound_of_what_a_layer_takes(family: str) -> None:
    model, pairs = load_tiny(family), list[int]()

    def count(_: object, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        if isinstance(output, torch.Tensor):
            pairs.append(inputs[0].numel() + output.numel())

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    model(torch.rand(1, 3, 64, 64))
    assert model.spec
    assert max(pairs) / 6 < count_activations(model.spec.config, (64, 64)) <= max(pairs)


@pytest.mark.parametrize("kind", [Classifier, Embedder])
def test_a_batch_that_does_not_fit_is_refused(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    image, model = Image.new("RGB", (64, 64)), kind(NANO, image_size=256, batch_size=4)
    values = 3 * 256**2 + count_activations(model.spec.config, (256, 256))
    monkeypatch.setattr(pipeline, "find_free_memory", lambda: 3 * 4 * values)
    model([image] * 3)
    expected = r"^4 images of 256x256 pixels need more than 0 GB of memory at once, and 0 GB are fr"
    with pytest.raises(ConfigError, match=expected):
        model([image] * 9)
    monkeypatch.setattr(pipeline, "find_free_memory", lambda: None)  # not known on every system
    model([image] * 9)


def test_memory_that_cannot_be_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Embedder(NANO)

    def fail(x: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 60)

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(ConfigError, match=r"^cpu has too little memory for 1 image at once; lower"):
        model(Image.new("RGB", (64, 64)))


def test_free_memory_is_known_on_linux() -> None:
    free = find_free_memory()
    assert free is None or 2**20 < free < 2**50
