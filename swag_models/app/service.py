"""Models behind the page: download weights, cache loaded models, analyse images.

Axes: K maps, h w grid of a map.
"""

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

from swag_models.app.saliency import SaliencyMap, compute_saliency
from swag_models.errors import FetchError, ImageError, SwagModelsError
from swag_models.hub.fetch import fetch_weights, find_weights, is_offline
from swag_models.inference.predict import Classifier, Embedder, Prediction
from swag_models.preprocess import read_image
from swag_models.spec import ModelSpec

MODEL_LOCK = Lock()  # one request at a time: a model uses all cores by itself
BATCH_SIZE = 8  # images of a folder: a batch takes seconds, even with a large model


# eq=False: Gradio detects changes by hash, and every analysis must count as a change
@dataclass(frozen=True, eq=False)
class Analysis:
    """An image and what a model computed from it.

    Attributes:
        spec: the model.
        image: the whole image.
        predictions: most probable classes, best first; empty if the model has no class names.
        saliency: layer from 0 -> its maps (K, h, w), filled by `get_saliency`.
    """

    spec: ModelSpec
    image: Image.Image
    predictions: Sequence[Prediction] = ()
    saliency: dict[int, SaliencyMap] = field(default_factory=dict)


class StoppedError(Exception):
    """The user stopped a download."""


class Download:
    """A download of a model's weights, in a thread that starts at once and ends with the process.

    A later download of the same model resumes it.

    Args:
        spec: the model.

    Attributes:
        done: number of bytes downloaded so far.
        total: number of bytes in all; 0 while unknown.
        stopping: set to True to stop the download when the next bytes arrive.
        error: the error, if the download failed.
        thread: alive while the download runs.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.done, self.total = 0, 0
        self.stopping = False
        self.error: SwagModelsError | None = None
        self.thread = Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Download the weights; runs in the thread."""
        if is_offline() and find_weights(self.spec) is None:
            reason = "SWAG_MODELS_OFFLINE or HF_HUB_OFFLINE turns off the network; unset it"
            self.error = FetchError(f"{self.spec.name} is not on this machine, and {reason}")
            return
        try:
            fetch_weights(self.spec, progress=self.make_bar())
        except StoppedError:
            pass
        except SwagModelsError as error:
            self.error = error

    def make_bar(self) -> "type[tqdm[Any]]":
        """A subclass of tqdm that stores its progress in this object and draws nothing."""
        download = self

        class Bar(tqdm):  # type: ignore[type-arg]
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": False, "file": io.StringIO()})
                download.done, download.total = int(self.n), int(self.total or 0)

            def update(self, n: float | None = 1) -> bool | None:
                # raised here and not in `display`, which tqdm calls while it holds a lock
                if download.stopping:
                    raise StoppedError
                displayed = super().update(n)
                download.done = int(self.n)
                return displayed

            def display(self, *args: Any, **options: Any) -> None:
                pass

        return Bar


def find_upload(upload: Any, folder: Path) -> tuple[Path, str]:
    """Find the uploaded file that a request refers to.

    A request can contain any path of this machine. A file is therefore used only if it is a regular
    file inside the folder of uploads after symbolic links are resolved.

    Args:
        upload: the value in the request: a dict with "path" and perhaps "orig_name".
        folder: where uploads are stored.

    Returns:
        The resolved path, and the name of the file on the user's machine.

    Raises:
        ImageError: the value is not an uploaded file. The message does not reveal whether the file
            exists.
    """
    path = upload.get("path") if isinstance(upload, dict) else None
    rejected = ImageError(f"{path!r} is not an uploaded image: upload the file, then choose it")
    if not isinstance(path, str):
        raise rejected
    try:
        real_path = Path(path).resolve()
        if not real_path.is_relative_to(folder.resolve()):
            raise rejected
        if not stat.S_ISREG(os.stat(real_path).st_mode):  # opening a FIFO could block forever
            raise rejected
    except (OSError, ValueError, RuntimeError):  # missing; a NUL byte; a loop of links
        raise rejected from None
    name = upload.get("orig_name")
    return real_path, name if isinstance(name, str) and name else real_path.name


def classify_image(
    spec: ModelSpec, path: str | os.PathLike[str], name: str, top_k: int = 5
) -> Analysis:
    """Read an image and compute its most probable classes.

    Args:
        spec: a model whose weights are on this machine.
        path: the image file.
        name: its name in messages.
        top_k: number of classes.

    Returns:
        The image with its predictions, which are empty if the model has no class names.

    Raises:
        ImageError: the image cannot be read.
    """
    image = read_image(path, name)
    with MODEL_LOCK:
        model = load_predictor(spec)
        if not isinstance(model, Classifier):
            return Analysis(spec, image)
        (predictions,) = model(image, top_k=top_k)
        return Analysis(spec, image, predictions)


def get_saliency(analysis: Analysis, layer: int) -> SaliencyMap:
    """The saliency maps (K, h, w) of a layer, from 0; computed when they are first needed."""
    with MODEL_LOCK:
        if layer not in analysis.saliency:
            predictor = load_predictor(analysis.spec)
            x = predictor.preprocess(analysis.image).unsqueeze(0)  # (1, 3, H, W)
            analysis.saliency[layer] = compute_saliency(predictor.model, x, layer)
        return analysis.saliency[layer]


@lru_cache(maxsize=2)
def load_predictor(spec: ModelSpec) -> Classifier | Embedder:
    """Load a model for uploaded images; the last two are cached."""
    return Classifier(spec, progress=False) if spec.classes else Embedder(spec, progress=False)


@lru_cache(maxsize=1)
def load_folder_embedder(spec: ModelSpec) -> Embedder:
    """Load a second copy of a model, to embed a folder.

    It can run while Grad-CAM has hooks in the first copy. Both share the mapped weights.
    """
    return Embedder(spec, progress=False, batch_size=BATCH_SIZE)
