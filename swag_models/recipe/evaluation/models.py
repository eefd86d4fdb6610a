"""A model that is measured: of our catalog, a folder or the Hub, or for comparison one of timm's or torchvision's.

Axes: N batch, D features, K classes, H W pixels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from swag_models.api import (
    Name,
    check_device,
    check_dtype,
    get_spec,
    load_classes,
    load_model,
    load_preprocess,
)
from swag_models.errors import ConfigError, FetchError, UnknownModelError, suggest_names
from swag_models.recipe.hashtags import load_imagenet
from swag_models.runtime import import_extra
from swag_models.spec import ImageSize, Metrics

PEERS = ("timm:", "torchvision:")
IMAGENET = "imagenet-1k"


class EvaluatedModel(ABC):
    """A model in inference, with its own preprocessing.

    name: as it was asked for. classes: the name of each, None if it has none or nobody named them. synsets: the WordNet id of
    each class, where they are known. published: its accuracy as its makers state it, in percent. preprocess: in words.
    fit: an upright RGB image -> what `classify` and `embed` take in batches: bytes or floats (3, H, W). It is sent to worker
    processes, and so knows nothing of the network.
    """

    name: str
    network: nn.Module
    num_classes: int | None
    classes: tuple[str, ...] | None
    synsets: tuple[str, ...] | None
    published: Metrics | None
    preprocess: str
    fit: Callable[[Image.Image], Tensor]
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def normalise(self, images: Tensor) -> Tensor:
        """Those (N, 3, H, W) -> the model's input, float32."""

    @abstractmethod
    def _run(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images -> logits (N, K), anything if there are no classes, and features before the head (N, D)."""

    @torch.inference_mode()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What `fit` gave (N, 3, H, W) -> logits (N, K) and features before the head (N, D), float32 on the CPU."""
        inputs = self.normalise(images.to(self.device, non_blocking=True)).to(self.dtype)
        logits, features = self._run(inputs)
        return logits.float().cpu(), features.float().cpu()

    def classify(self, images: Tensor) -> Tensor:
        """The logits alone."""
        return self.forward(images)[0]

    def embed(self, images: Tensor) -> Tensor:
        """The features alone."""
        return self.forward(images)[1]

    def hash_content(self) -> str:
        """SHA-256 of all weights, the preprocessing and the dtype: what makes the features what they are."""
        digest = hashlib.sha256(f"{self.preprocess}\n{self.dtype}\n".encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(np.ascontiguousarray(content).data)
        return digest.hexdigest()


class SwagModel(EvaluatedModel):
    """Whatever `load_model` takes."""

    def __init__(
        self, name: Name, device: torch.device, dtype: torch.dtype, image_size: ImageSize | None
    ) -> None:
        spec = get_spec(name)
        self.name, self.arch = spec.name, spec.arch
        self.num_classes, self.published = spec.num_classes, spec.metrics
        self.classes = load_classes(spec) if spec.classes is not None else None
        self.synsets = tuple(load_imagenet()) if spec.classes == IMAGENET else spec.synsets
        self.network = self._model = load_model(
            spec, device=device, dtype=dtype, image_size=image_size
        )
        self._transform = load_preprocess(spec, image_size=image_size)
        self.preprocess, self.fit = repr(self._transform), self._transform.fit
        self.device, self.dtype = device, dtype

    def normalise(self, images: Tensor) -> Tensor:
        return self._transform.normalise(images)

    def _run(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        last = self._model.forward_features(inputs)
        return self._model.forward_head(last), self._model.forward_head(last, pre_logits=True)


class ExternalModel(EvaluatedModel):
    """What others offer: their transform makes normalised floats of a picture, and features are what their last layer gets."""

    published = None

    def __init__(
        self,
        name: str,
        network: nn.Module,
        transform: Any,
        classes: Sequence[str] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.name, self.network = name, network.eval().to(device, dtype)
        self.preprocess, self.fit = " ".join(repr(transform).split()), transform
        self._last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        self.num_classes, self.device, self.dtype = self._last.out_features, device, dtype
        self.synsets = tuple(load_imagenet()) if self.num_classes == 1000 else None
        self.classes = tuple(classes) if classes else None

    def normalise(self, images: Tensor) -> Tensor:
        return images

    def _run(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        hook = self._last.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        try:
            logits: Tensor = self.network(inputs)
        finally:
            hook.remove()
        return logits, found[0].flatten(1)


def open_evaluated_model(
    name: Name,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    image_size: ImageSize | None = None,
) -> EvaluatedModel:
    """A name of the catalog, a folder that `publish.save` wrote, hf-hub:org/repo, timm:NAME, or torchvision:NAME[@WEIGHTS].

    dtype: of the weights, float32 by default. image_size: in place of the model's own, of ours only. UnknownModelError suggests
    names, ConfigError says what else cannot be, and FetchError why weights do not come.
    """
    where, kind = check_device(device), check_dtype(dtype)
    if not isinstance(name, str) or not name.startswith(PEERS):
        return SwagModel(name, where, kind, image_size)
    if image_size is not None:
        raise ConfigError(
            f"image_size goes with our own models; {name} is measured as its makers prepare pictures"
        )
    prefix, _, rest = name.partition(":")
    open_peer = _open_timm if prefix == "timm" else _open_torchvision
    return ExternalModel(name, *open_peer(rest), where, kind)


def _open_timm(name: str) -> tuple[nn.Module, Any, Sequence[str] | None]:
    timm = import_extra("timm", "timm", "a timm: model")
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise UnknownModelError(suggest_names("timm model", name, known))
    with _explain_fetching(f"timm:{name}"):
        network = timm.create_model(name, pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    return network, transform, load_classes("vit_b16_in1k") if network.num_classes == 1000 else None


def _open_torchvision(name: str) -> tuple[nn.Module, Any, Sequence[str] | None]:
    from torchvision import models

    name, _, chosen = name.partition("@")
    known = models.list_models(module=models)
    if name not in known:
        raise UnknownModelError(suggest_names("torchvision model", name, known))
    kinds = models.get_model_weights(name)
    if chosen and chosen not in kinds.__members__:
        raise ConfigError(
            f"{name} has no weights {chosen!r}; allowed: {', '.join(kinds.__members__)}"
        )
    weights = kinds[chosen] if chosen else kinds.DEFAULT
    with _explain_fetching(f"torchvision:{name}"):
        network = models.get_model(name, weights=weights)
    return network, weights.transforms(), weights.meta["categories"]


@contextmanager
def _explain_fetching(name: str) -> Iterator[None]:
    """Both clients' errors are OSErrors, where the network or the disk fails."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise FetchError(
            f"weights of {name} cannot be fetched: {reason}; try again with a network"
        ) from None
