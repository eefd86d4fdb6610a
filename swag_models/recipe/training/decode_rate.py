"""Images that a CPU core of this machine decodes, crops and resizes for training in a second."""

import io
import time
from collections.abc import Callable
from functools import partial
from itertools import islice

from PIL import Image

from swag_models.errors import ConfigError
from swag_models.image_decoding import View, read_image
from swag_models.image_formats import is_image_name
from swag_models.recipe.config import Run
from swag_models.recipe.data.collate import choose_decoder
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.shards import read_shard
from swag_models.recipe.data.sources import ShardSource
from swag_models.recipe.data.transforms import Augmentation, make_augmentation

# Sizes of generated JPEGs: what `pack --resize 256` makes of a photo of 4:3, and Flickr's "large"
GENERATED_SIZES = ((341, 256), (1024, 768))
MEASURED_SECONDS = 0.2  # of CPU time, for each kind of images
MAX_IMAGES = 64  # that are read from a data set, so that they stay in the cache of the disk
MAX_ENCODED_BYTES = 1 << 28  # of images kept in memory

Reader = Callable[[], Image.Image | View]


def measure_decode_rates(
    run: Run, data: ImageDataset | ShardSource | None = None
) -> dict[str, float]:
    """Measure how many images a CPU core reads and augments in a second.

    CPU time counts, so that other work on the machine changes the result little.

    Args:
        run: its augmentation and image size.
        data: the images to read; by default generated JPEGs of GENERATED_SIZES.

    Returns:
        Rate by a name of the images.

    Raises:
        ConfigError: the data have no image.
        ImageError: an image cannot be read.
        ShardError: a shard cannot be read.
    """
    augmentation = make_augmentation(run, run.train_sizes[-1])
    if data is None:
        return {
            f"{width} x {height}": _measure(
                [_open_bytes(make_jpeg(width, height), augmentation)], augmentation
            )
            for width, height in GENERATED_SIZES
        }
    readers = _list_readers(data, augmentation)
    if not readers:
        raise ConfigError(f"{data.title} has no image; give data that can be trained on")
    return {data.title: _measure(readers, augmentation)}


def make_jpeg(width: int, height: int) -> bytes:
    """Make a JPEG of about the size of a photo's: smooth areas, with some noise."""
    smooth = Image.effect_noise((width // 16, height // 16), 96).resize((width, height))
    noise = Image.effect_noise((width, height), 24)
    file = io.BytesIO()
    image = Image.blend(smooth, noise, 0.25)
    Image.merge("RGB", (image, smooth, image)).save(file, "JPEG", quality=85)
    return file.getvalue()


def _open_bytes(content: bytes, augmentation: Augmentation) -> Reader:
    return lambda: read_image(io.BytesIO(content), "a measured image", augmentation.decode)


def _list_readers(data: ImageDataset | ShardSource, augmentation: Augmentation) -> list[Reader]:
    if isinstance(data, ImageDataset):
        step = max(1, len(data.names) // MAX_IMAGES)
        indices = range(0, len(data.names), step)[:MAX_IMAGES]
        decode = choose_decoder(augmentation)
        return [partial(data.read, index, decode) for index in indices]
    contents, size = list[bytes](), 0
    for sample in islice(read_shard(data.urls[0]), MAX_IMAGES):
        for suffix, content in sample.items():
            if isinstance(content, bytes) and is_image_name(f"image.{suffix}"):
                contents.append(content)
                size += len(content)
        if size > MAX_ENCODED_BYTES:
            break
    return [_open_bytes(content, augmentation) for content in contents]


def _measure(readers: list[Reader], augmentation: Augmentation) -> float:
    augmentation(readers[0]())  # imports torch and torchvision
    count, start = 0, time.thread_time()
    while (seconds := time.thread_time() - start) < MEASURED_SECONDS:
        augmentation(readers[count % len(readers)]())
        count += 1
    return count / seconds
