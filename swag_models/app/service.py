"""The work behind the page: weights fetched, models kept open, a picture classified and looked at.

Axes: K maps, h w grid.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from PIL import Image
from tqdm import tqdm

from swag_models.app.overlay import Heat
from swag_models.app.saliency import find_heat
from swag_models.errors import FetchError, ImageError, SwagModelsError
from swag_models.hub.fetch import fetch_weights, find_weights, is_offline
from swag_models.inference.predict import Classifier, Embedder, Prediction
from swag_models.preprocess import read_image
from swag_models.spec import ModelSpec

ONE_AT_A_TIME = Lock()  # two large models at once would be no faster
BATCH_SIZE = 8  # of a folder's pictures at a time: seconds, even for a large model


@dataclass(
    frozen=True, eq=False
)  # each is another one, also to Gradio, which looks at hashes for changes
class Sight:
    """A picture and what a model made of it: its classes, best first, and the maps (K, h, w) of the layers looked at."""

    spec: ModelSpec
    picture: Image.Image
    predictions: Sequence[Prediction] = ()
    maps: dict[int, Heat] = field(default_factory=dict)


class StoppedError(Exception):
    """The user stopped a download."""


class Download:
    """A model's weights on their way to this machine, in a thread that ends with the process; the next one continues it."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.done, self.total = 0, 0  # bytes; 0 in all while that is not known
        self.stopping = False
        self.error: SwagModelsError | None = None
        self.thread = Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        if is_offline() and find_weights(self.spec) is None:
            forbidden = "SWAG_MODELS_OFFLINE or HF_HUB_OFFLINE forbids the network"
            self.error = FetchError(f"{self.spec.name} is not on this machine, and {forbidden}")
            return
        try:
            fetch_weights(self.spec, progress=self.make_bar())
        except StoppedError:
            pass
        except SwagModelsError as error:
            self.error = error

    def make_bar(self) -> type[tqdm[Any]]:
        """A kind of tqdm's bar that says here how far it is, instead of drawing."""
        download = self

        class Bar(tqdm):  # type: ignore[type-arg]
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": False, "file": io.StringIO()})
                download.done, download.total = int(self.n), int(self.total or 0)

            def update(self, n: float | None = 1) -> bool | None:
                if download.stopping:  # not while drawing, when tqdm holds a lock
                    raise StoppedError
                due = super().update(n)
                download.done = int(self.n)
                return due

            def display(self, *args: Any, **options: Any) -> None:
                pass

        return Bar


def find_upload(upload: Any, folder: Path) -> tuple[Path, str]:
    """The file that a request names as its image, and what the user calls it.

    A request can name any path of this machine, so nothing is opened unless it is a regular file inside of `folder`, where
    uploads are stored, after symbolic links are resolved. ImageError otherwise, whether or not such a file exists.
    """
    path = upload.get("path") if isinstance(upload, dict) else None
    refused = ImageError(f"{path!r} is not an uploaded image: upload the file, then choose it")
    if not isinstance(path, str):
        raise refused
    try:
        real = Path(path).resolve()
        if not real.is_relative_to(folder.resolve()) or not stat.S_ISREG(os.stat(real).st_mode):
            raise refused
    except (OSError, ValueError, RuntimeError):  # missing, a NUL byte, a circle of links
        raise refused from None
    name = upload.get("orig_name")
    return real, name if isinstance(name, str) and name else real.name


def classify(spec: ModelSpec, path: str | os.PathLike[str], name: str, top_k: int = 5) -> Sight:
    """Read a picture, called `name` in messages, and find its most probable classes; none if the model names none."""
    picture = read_image(path, name)
    with ONE_AT_A_TIME:
        model = open_model(spec)
        if not isinstance(model, Classifier):
            return Sight(spec, picture)
        (predictions,) = model(picture, top_k=top_k)
        return Sight(spec, picture, predictions)


def look(sight: Sight, layer: int) -> Heat:
    """The maps (K, h, w) of a layer, counted from 0."""
    with ONE_AT_A_TIME:
        if layer not in sight.maps:
            model = open_model(sight.spec)
            sight.maps[layer] = find_heat(
                model.model, model.preprocess(sight.picture).unsqueeze(0), layer
            )
        return sight.maps[layer]


@lru_cache(maxsize=2)
def open_model(spec: ModelSpec) -> Classifier | Embedder:
    """A model that is on this machine, ready; the last two stay open."""
    return Classifier(spec, progress=False) if spec.classes else Embedder(spec, progress=False)


@lru_cache(maxsize=1)
def open_embedder(spec: ModelSpec) -> Embedder:
    """The same model again, for folders, since Grad-CAM changes the other while it is made; both share the mapped weights."""
    return Embedder(spec, progress=False, batch_size=BATCH_SIZE)
