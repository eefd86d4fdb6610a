"""Models to evaluate: those of this library and, for comparison, those of timm and torchvision.

Axes: N batch, D feature width, K classes, H and W pixels.
"""

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
    get_spec,
    load_classes,
    load_model,
    load_preprocess,
)
from swag_models.devices import check_device, check_dtype
from swag_models.errors import ConfigError, FetchError, UnknownModelError, suggest_names
from swag_models.inference.embed_job import count_merged
from swag_models.inference.finite import check_finite
from swag_models.recipe.classes.class_matching import NamedClasses, find_installed_wordnet
from swag_models.recipe.classes.spec_classes import find_synsets, name_spec_classes
from swag_models.recipe.hashtags import load_imagenet
from swag_models.reruns import identify_packages
from swag_models.runtime import import_extra
from swag_models.spec import ImageSize, Metrics

EXTERNAL_PREFIXES = ("timm:", "torchvision:")


class EvaluatedModel(ABC):
    """A model in inference mode, with its own preprocessing.

    Attributes:
        name: the name by which the model was opened.
        network: the PyTorch module.
        num_classes: number of classes; None for a model without a head.
        classes: name of each class; None if there are no classes or no names.
        synsets: WordNet id of each class, if known.
        multi_label: whether probabilities are sigmoids, not a softmax.
        published: accuracy in percent that the authors of the model report, if any.
        preprocess: description of the preprocessing.
        fit: upright RGB image -> (3, H, W), uint8 or floats; `forward` takes batches of these. It
            is sent to worker processes, so it has no reference to the network.
        device: where the network runs.
        dtype: dtype of its weights.
    """

    name: str
    network: nn.Module
    num_classes: int | None
    classes: tuple[str, ...] | None
    synsets: tuple[str, ...] | None
    multi_label: bool = False
    published: Metrics | None
    preprocess: str
    fit: Callable[[Image.Image], Tensor]
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def normalise(self, images: Tensor) -> Tensor:
        """Convert a batch of results of `fit` (N, 3, H, W) to the float32 input of the network."""

    @abstractmethod
    def _run_network(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, K), which are meaningless without classes, and features (N, D)."""

    @torch.inference_mode()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the network.

        Args:
            images: batch of results of `fit` (N, 3, H, W).

        Returns:
            Logits (N, K) and the features before the head (N, D), both float32 on the CPU.

        Raises:
            CheckpointError, ConfigError: they are not finite, see `check_finite`.
        """
        inputs = self.normalise(images.to(self.device, non_blocking=True)).to(self.dtype)
        logits, features = self._run_network(inputs)
        # float32, because numpy has no bfloat16.
        logits, features = logits.float().cpu(), features.float().cpu()
        for outputs in (features, logits) if self.num_classes else (features,):
            check_finite(outputs, self.network, self.name)
        return logits, features

    def classify(self, images: Tensor) -> Tensor:
        """Return the logits of `forward`."""
        return self.forward(images)[0]

    def embed(self, images: Tensor) -> Tensor:
        """Return the features of `forward`."""
        return self.forward(images)[1]

    def hash_content(self) -> str:
        """Return the SHA-256 of what determines the features.

        These are the weights, the preprocessing, the dtype and the number of tokens merged.
        """
        digest = hashlib.sha256(f"{self.preprocess}\n{self.dtype}\n".encode())
        if merged := count_merged(self.network):
            digest.update(f"merge_tokens {merged}\n".encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            # As bytes, because numpy has no bfloat16.
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(np.ascontiguousarray(content).data)
        return digest.hexdigest()

    def name_classes(self) -> NamedClasses:
        """Return the classes with all their spellings; they need names."""
        assert self.classes is not None
        synsets = self.synsets and [(synset,) for synset in self.synsets]
        return NamedClasses("the model", self.classes, synsets, load_wordnet=find_installed_wordnet)

    def identify(self) -> list[Any]:
        """Return JSON values that differ for models that may give other results."""
        return [
            self.name,
            self.classes,
            self.multi_label,
            str(self.published),
            self.hash_content(),
            self.device.type,
            identify_packages(),
        ]


class SwagModel(EvaluatedModel):
    """A model of this library: anything that `load_model` accepts."""

    def __init__(
        self, name: Name, device: torch.device, dtype: torch.dtype, image_size: ImageSize | None
    ) -> None:
        self._spec = spec = get_spec(name)
        self.name, self.arch = spec.name, spec.arch
        self.num_classes, self.published = spec.num_classes, spec.metrics
        self.multi_label = spec.multi_label
        self.classes = load_classes(spec) if spec.classes is not None else None
        self.synsets = find_synsets(spec)
        # Two names, because `network` is declared as nn.Module, without our methods.
        self.network = self._model = load_model(
            spec, device=device, dtype=dtype, image_size=image_size
        )
        self._transform = load_preprocess(spec, image_size=image_size)
        self.preprocess, self.fit = repr(self._transform), self._transform.fit
        self.device, self.dtype = device, dtype

    def name_classes(self) -> NamedClasses:
        return name_spec_classes(self._spec)

    def normalise(self, images: Tensor) -> Tensor:
        return self._transform.normalise(images)

    def _run_network(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self._model.forward_features(inputs)
        return self._model.forward_head(hidden), self._model.forward_head(hidden, pre_logits=True)


class ExternalModel(EvaluatedModel):
    """A model of timm or torchvision. Its features are the input of its last linear layer.

    Args:
        name: name with its prefix, "timm:" or "torchvision:".
        network: the module.
        transform: its preprocessing: image -> normalised floats (3, H, W).
        classes: names of its classes, if known.
        device: where to run.
        dtype: dtype of the weights.
    """

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
        self._head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        self.num_classes, self.device, self.dtype = self._head.out_features, device, dtype
        # Both libraries use the order of ImageNet-1k for 1000 classes.
        self.synsets = tuple(load_imagenet()) if self.num_classes == 1000 else None
        self.classes = tuple(classes) if classes else None

    def normalise(self, images: Tensor) -> Tensor:
        return images  # `fit` has normalised them

    def _run_network(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        # A hook, because the libraries have no common interface for features.
        head_inputs: list[Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _, args: head_inputs.append(args[0]))
        try:
            logits: Tensor = self.network(inputs)
        finally:
            hook.remove()
        return logits, head_inputs[0].flatten(1)


def open_evaluated_model(
    name: Name,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    image_size: ImageSize | None = None,
) -> EvaluatedModel:
    """Load a model with its preprocessing.

    Args:
        name: a catalog name, a folder that `publish.save` wrote, hf-hub:ORG/REPO, timm:NAME,
            or torchvision:NAME[@WEIGHTS].
        device: where to run.
        dtype: dtype of the weights; float32 by default.
        image_size: replaces the image size of a model of this library.

    Raises:
        UnknownModelError: the model does not exist; the message suggests names.
        ConfigError: another argument is invalid.
        FetchError: the weights cannot be downloaded.
    """
    torch_device, torch_dtype = check_device(device), check_dtype(dtype)
    if not isinstance(name, str) or not name.startswith(EXTERNAL_PREFIXES):
        return SwagModel(name, torch_device, torch_dtype, image_size)
    if image_size is not None:
        raise ConfigError(
            f"invalid image_size {image_size} for {name}: allowed only for models of this library; "
            "omit it to use the preprocessing of the model's authors"
        )
    library, _, external_name = name.partition(":")
    open_external = _open_timm if library == "timm" else _open_torchvision
    return ExternalModel(name, *open_external(external_name), torch_device, torch_dtype)


def find_named_classes(name: Name) -> NamedClasses | None:
    """Return the classes of a model without loading it; None if it has no names of classes."""
    if isinstance(name, str) and name.startswith(EXTERNAL_PREFIXES):
        return None
    spec = get_spec(name)
    return None if spec.classes is None else name_spec_classes(spec)


def _open_timm(name: str) -> tuple[nn.Module, Any, Sequence[str] | None]:
    """Network, preprocessing and class names."""
    timm = import_extra("timm", "timm", "a timm: model")
    architectures = timm.list_models()
    if name.partition(".")[0] not in architectures:
        raise UnknownModelError(suggest_names("timm model", name, architectures))
    with _fetch_errors(f"timm:{name}"):
        network = timm.create_model(name, pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    # timm has no class names; those of any of our ImageNet models are the same.
    classes = load_classes("vit_b16_in1k") if network.num_classes == 1000 else None
    return network, transform, classes


def _open_torchvision(name: str) -> tuple[nn.Module, Any, Sequence[str] | None]:
    """Network, preprocessing and class names."""
    from torchvision import models  # takes a while to import

    name, _, weights_name = name.partition("@")
    architectures = models.list_models(module=models)
    if name not in architectures:
        raise UnknownModelError(suggest_names("torchvision model", name, architectures))
    all_weights = models.get_model_weights(name)
    if weights_name and weights_name not in all_weights.__members__:
        raise ConfigError(
            f"invalid weights {weights_name!r} for {name}: "
            f"allowed {', '.join(all_weights.__members__)}"
        )
    weights = all_weights[weights_name] if weights_name else all_weights.DEFAULT
    with _fetch_errors(f"torchvision:{name}"):
        network = models.get_model(name, weights=weights)
    return network, weights.transforms(), weights.meta["categories"]


@contextmanager
def _fetch_errors(name: str) -> Iterator[None]:
    """Turn the OSErrors of both download clients into a one-line FetchError."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise FetchError(
            f"weights of {name} cannot be fetched: {reason}; check the network connection"
        ) from None
