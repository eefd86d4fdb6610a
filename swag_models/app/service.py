"""Models behind the page: download weights, cache loaded models, analyse images.

Axes: K maps, H W pixels, h w grid of a map.
"""

import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from threading import Thread
from typing import Any, BinaryIO, NamedTuple

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from swag_models.app.memory import MAX_DECODERS, KeptImages, Turn
from swag_models.app.saliency import SaliencyMap, compute_saliency, crop_to_input
from swag_models.errors import FetchError, ImageError, SwagModelsError
from swag_models.hub.fetch import fetch_weights, find_weights, is_offline
from swag_models.image_decoding import read_image
from swag_models.inference.predict import Classifier, Embedder, Prediction
from swag_models.spec import ModelSpec

MODEL_TURN = Turn(1)  # a model uses all cores by itself
DECODER_TURN = Turn(MAX_DECODERS)
KEPT_IMAGES = KeptImages()
MAX_TIMED_RUNS, MAX_TIMED_SECONDS = 5, 0.5  # of `measure_time`
FOLDER_BATCH_SIZE = 8  # images of a folder: a batch takes seconds, even with a large model


class FileContent(NamedTuple):
    """What identifies the content of a file.

    Attributes:
        size: in bytes.
        sha256: hexadecimal.
    """

    size: int
    sha256: str

    @classmethod
    def read(cls, file: BinaryIO) -> "FileContent":
        """Read a file from its start, and return to the start."""
        digest = sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        size = file.tell()
        file.seek(0)
        return cls(size, digest.hexdigest())


# eq=False: Gradio detects changes by hash, and every analysis must count as a change
@dataclass(eq=False)
class Analysis:
    """What a model computed from an image, and the part of the image that the model sees.

    The whole image is not kept: an image of a few kilobytes can have 89 million pixels.

    Attributes:
        spec: the model.
        pixels: the input of the model, uint8 (3, H, W); None after `release`.
        view: the same part of the image, for display; None after `release`.
        predictions: most probable classes, best first; empty if the model has no class names.
        layer_maps: a layer from 0 and its saliency maps (K, h, w), filled by `get_saliency`.
        content: the file, to recognise copies; None if unknown.
    """

    spec: ModelSpec
    pixels: Tensor | None
    view: Image.Image | None
    predictions: Sequence[Prediction] = ()
    layer_maps: tuple[int, SaliencyMap] | None = None
    content: "FileContent | None" = None

    def release(self) -> None:
        """Drop the pixels, because other sessions need the memory."""
        self.pixels = self.view = self.layer_maps = None

    def get_input(self) -> tuple[Tensor, Image.Image]:
        """The input of the model and the part of the image that it shows.

        Raises:
            ImageError: they were released.
        """
        pixels, view = self.pixels, self.view  # another thread may release them meanwhile
        if pixels is None or view is None:
            raise ImageError(
                "the image was removed from memory for images of other visitors; choose it again"
            )
        KEPT_IMAGES.use(self, pixels[0].numel() + view.width * view.height)
        return pixels, view


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


def classify_image(
    spec: ModelSpec, source: str | os.PathLike[str] | BinaryIO, name: str, top_k: int = 5
) -> Analysis:
    """Read an image and compute its most probable classes.

    Args:
        spec: a model whose weights are on this machine.
        source: the image file.
        name: its name in messages.
        top_k: number of classes.

    Returns:
        The analysis, whose predictions are empty if the model has no class names.

    Raises:
        ImageError: the image cannot be read, or the page is busy.
    """
    with MODEL_TURN.take():
        predictor = load_predictor(spec)
    with DECODER_TURN.take():
        image = read_image(source, name)
        pixels = predictor.preprocess.fit(image)  # (3, H, W)
        view = crop_to_input(image, spec.preprocess)
        del image
    analysis = Analysis(spec, pixels, view)
    analysis.get_input()  # counts it
    if isinstance(predictor, Classifier):
        with MODEL_TURN.take():
            (analysis.predictions,) = predictor(pixels, top_k=top_k)
    return analysis


def measure_time(analysis: Analysis) -> float:
    """Measure how long a model takes for an image that it has just classified, in seconds.

    Reading the image does not count. The shortest of several runs is returned, or the time of one
    if it takes long: the classification has loaded the weights into memory.

    Raises:
        ImageError: the image was released, or the page is busy.
    """
    pixels, _ = analysis.get_input()
    times: list[float] = []
    with MODEL_TURN.take():
        predictor = load_predictor(analysis.spec)
        while not times or (len(times) < MAX_TIMED_RUNS and sum(times) < MAX_TIMED_SECONDS):
            start = time.perf_counter()
            predictor(pixels)
            times.append(time.perf_counter() - start)
    return min(times)


def get_saliency(analysis: Analysis, layer: int) -> SaliencyMap:
    """The saliency maps (K, h, w) of a layer, from 0. Those of the last layer are kept.

    Raises:
        ImageError: the image was released, or the page is busy.
    """
    pixels, _ = analysis.get_input()
    if analysis.layer_maps and analysis.layer_maps[0] == layer:
        return analysis.layer_maps[1]
    with MODEL_TURN.take():
        predictor = load_predictor(analysis.spec)
        x = predictor.preprocess.normalise(pixels.unsqueeze(0))  # (1, 3, H, W)
        x = x.to(predictor.device)
        maps = compute_saliency(predictor.model, x, layer)
    analysis.layer_maps = layer, maps
    return maps


@lru_cache(maxsize=2)
def load_predictor(spec: ModelSpec) -> Classifier | Embedder:
    """Load a model for uploaded images; the last two are cached."""
    return Classifier(spec, progress=False) if spec.classes else Embedder(spec, progress=False)


@lru_cache(maxsize=1)
def load_folder_embedder(spec: ModelSpec) -> Embedder:
    """Load a second copy of a model, to embed a folder.

    It can run while Grad-CAM has hooks in the first copy. Both share the mapped weights.
    """
    return Embedder(spec, progress=False, batch_size=FOLDER_BATCH_SIZE)
