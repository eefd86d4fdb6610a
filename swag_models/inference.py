"""A loaded model put to work on pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from swag_models.api import get_spec, load_classes, load_model, load_preprocess
from swag_models.errors import ConfigError
from swag_models.spec import ModelSpec


@dataclass(frozen=True)
class Prediction:
    """One class of a picture: its name, its index among the logits, its softmax probability."""

    label: str
    index: int
    probability: float


class Classifier:
    """A model with its preprocessing and class names: PIL images -> most probable classes.

    `options` go to `load_model`; `num_classes` cannot be among them, as the names belong to the published head.
    ConfigError if the model has no classes.
    """

    def __init__(self, model: str | ModelSpec, **options: Any) -> None:
        if "num_classes" in options:
            raise ConfigError("a Classifier keeps the model's own classes; leave num_classes out")
        spec = model if isinstance(model, ModelSpec) else get_spec(model)
        self.classes = load_classes(spec)
        self.model = load_model(spec, **options)
        self.preprocess = load_preprocess(spec, image_size=options.get("image_size"))

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image], top_k: int = 5) -> list[list[Prediction]]:
        """The `top_k` most probable classes of each image, best first."""
        if not 1 <= top_k <= len(self.classes):
            raise ConfigError(f"top_k is {top_k}; give a number from 1 to {len(self.classes)}, the classes of the model")
        if not images:
            return []
        weight = next(self.model.parameters())
        batch = torch.stack([self.preprocess(image) for image in images]).to(weight.device, weight.dtype)
        top = self.model(batch).float().softmax(dim=-1).topk(top_k)
        return [
            [Prediction(self.classes[index], index, value) for value, index in zip(values, indices)]
            for values, indices in zip(top.values.tolist(), top.indices.tolist())
        ]
