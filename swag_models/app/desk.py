"""The work behind the page: weights fetched, models kept open, a picture classified and looked at.

Axes: K maps, h w grid.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from PIL import Image
from tqdm import tqdm

from swag_models.app.heat import find_heat
from swag_models.app.overlay import Heat
from swag_models.errors import FetchError
from swag_models.fetch import fetch_weights, find_weights, is_offline
from swag_models.inference import Classifier, Embedder, Prediction
from swag_models.preprocess import read_image
from swag_models.spec import ModelSpec

Report = Callable[[int, int | None], None]  # is told how many bytes are here, and of how many if that is known
BATCH_SIZE = 8  # pictures between two reports: seconds, even for a large model


@dataclass(frozen=True)
class Sight:
    """A picture and what a model made of it: its classes, best first, and the maps (K, h, w) of one layer."""

    spec: ModelSpec
    picture: Image.Image
    predictions: tuple[Prediction, ...] = ()
    layer: int = 0
    maps: Heat | None = None

    @property
    def caption(self) -> str:
        """What the maps show."""
        if self.spec.family == "vit":
            return f"Attention of the class token in block {self.layer + 1}"
        return f"Grad-CAM of {self.predictions[0].label if self.predictions else 'the features'} at stage {self.layer + 1}"


class StoppedError(Exception):
    """The user stopped a download."""


def fetch(spec: ModelSpec, report: Report) -> None:
    """Bring a model's weights to this machine. What `report` raises ends the download, which can be continued."""
    if is_offline() and find_weights(spec) is None:
        raise FetchError(f"{spec.name} is not on this machine, and SWAG_MODELS_OFFLINE or HF_HUB_OFFLINE forbids the network")

    class Bar(tqdm):  # type: ignore[type-arg]
        """Reports, several times a second, instead of drawing."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO()})

        def display(self, *args: Any, **options: Any) -> None:
            report(int(self.n), None if self.total is None else int(self.total))

    fetch_weights(spec, progress=Bar)


def classify(spec: ModelSpec, path: str, name: str, top_k: int = 5) -> Sight:
    """Read a picture, called `name` in messages, and find its most probable classes; none if the model gives features only."""
    picture = read_image(path, name)
    model = open_model(spec)
    if not isinstance(model, Classifier):
        return Sight(spec, picture)
    (predictions,) = model([picture], top_k=min(top_k, len(model.classes)))
    return Sight(spec, picture, tuple(predictions))


def look(sight: Sight, layer: int) -> Sight:
    """The same picture with the maps of `layer`, counted from 0."""
    if sight.maps is not None and sight.layer == layer:
        return sight
    model = open_model(sight.spec)
    x = model.preprocess(sight.picture).unsqueeze(0)  # (1, 3, H, W)
    return replace(sight, layer=layer, maps=find_heat(model.model, x, layer))


@lru_cache(maxsize=2)
def open_model(spec: ModelSpec) -> Classifier | Embedder:
    """A model that is on this machine, ready; the last two stay open."""
    return open_embedder(spec) if spec.classes is None else Classifier(spec, progress=False)


@lru_cache(maxsize=2)
def open_embedder(spec: ModelSpec) -> Embedder:
    return Embedder(spec, progress=False, batch_size=BATCH_SIZE)
