"""How many edited copies of images are recognised, and how many other images are taken for copies.

Half of the images, drawn at random, are a set of evaluation images. Copies of them are edited as
in EDITS and compared with the set, and so are the images of the other half. Without a folder, the
images are generated scenes. Prints Markdown tables, with CPU time; the last one is of the search.
"""

import argparse
import io
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from studies.scenes.scene import plan_held_out, render
from swag_models.image_decoding import read_image
from swag_models.recipe.data.image_set import ImageSet, fingerprint, index_images
from swag_models.recipe.data.pack_copies import LIKE_THRESHOLD
from swag_models.recipe.data.thumbnails import WIDTH

Edit = Callable[[Image.Image, random.Random], Image.Image]


def save_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def crop(image: Image.Image, share: float, draw: random.Random) -> Image.Image:
    """Cut off a share of the width and of the height, at random sides."""
    width, height = round(image.width * (1 - share)), round(image.height * (1 - share))
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def resize(image: Image.Image, scale: float) -> Image.Image:
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def brighten(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


EDITS: dict[str, Edit] = {
    "half the size": lambda image, draw: resize(image, 0.5),
    "JPEG of quality 50": lambda image, draw: save_jpeg(image, 50),
    "5% cropped": lambda image, draw: crop(image, 0.05, draw),
    "brightness x 0.7": lambda image, draw: brighten(image, 0.7),
    "brightness x 1.3": lambda image, draw: brighten(image, 1.3),
    "contrast x 0.6": lambda image, draw: ImageEnhance.Contrast(image).enhance(0.6),
    "mirrored": lambda image, draw: ImageOps.mirror(image),
    "mirrored, 5% cropped, x 0.85, half the size, JPEG 60": lambda image, draw: save_jpeg(
        resize(brighten(crop(ImageOps.mirror(image), 0.05, draw), 0.85), 0.5), 60
    ),
    "white border of 5%": lambda image, draw: ImageOps.expand(
        image, round(image.width * 0.05), "white"
    ),
    "10% cropped": lambda image, draw: crop(image, 0.10, draw),
    "20% cropped": lambda image, draw: crop(image, 0.20, draw),
    "grey": lambda image, draw: ImageOps.grayscale(image).convert("RGB"),
    "rotated by 5 degrees": lambda image, draw: image.rotate(5, fillcolor="white"),
    "rotated by 90 degrees": lambda image, draw: image.transpose(Image.Transpose.ROTATE_90),
    "upside down": lambda image, draw: ImageOps.flip(image),
}


def write_scenes(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    for number in range(count):
        render(plan_held_out(0, number), 192).save(folder / f"{number:05}.png")
    return sorted(folder.iterdir())


def measure(paths: list[Path], work: Path, thresholds: list[float]) -> None:
    draw = random.Random(0)
    draw.shuffle(paths)
    wanted, others = paths[: len(paths) // 2], paths[len(paths) // 2 :]
    (work / "wanted").mkdir()
    for path in wanted:
        (work / "wanted" / path.name).symlink_to(path.resolve())
    start = time.process_time()
    index_images([str(work / "wanted")], work / "index", progress=False)
    print(
        f"\nreading and indexing: {1e3 * (time.process_time() - start) / len(wanted):.1f} ms/image"
    )
    found = ImageSet(work / "index")
    print(f"{len(wanted)} images and as many others\n")
    print(f"| edit | {' | '.join(f'distance {limit}' for limit in thresholds)} | ms/image |")
    print(f"|---|{'---|' * (len(thresholds) + 1)}")
    rows: list[tuple[str, list[Path], Edit]] = [
        (name, wanted, edit) for name, edit in EDITS.items()
    ]
    for name, images, edit in [*rows, ("other images", others, lambda image, draw: image)]:
        prints = [
            fingerprint(edit(read_image(path), random.Random(path.name)).convert("RGB"))
            for path in images
        ]
        start = time.process_time()
        matches = [
            match
            for first in range(0, len(prints), 64)
            for match in found.find(prints[first : first + 64], max(thresholds))
        ]
        cost = 1e3 * (time.process_time() - start) / len(images)
        shares = [
            sum(match is not None and match.distance <= limit for match in matches) / len(images)
            for limit in thresholds
        ]
        print(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} | {cost:.1f} |")


def measure_search(work: Path, size: int, queries: int) -> None:
    """Time of a search in a set of unrelated images, of which none is a candidate."""
    draw = np.random.default_rng(0)
    (work / "large").mkdir()
    rows = draw.standard_normal((size, 2, WIDTH), np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    np.save(work / "large" / "descriptors.npy", rows)
    np.save(work / "large" / "thumbnails.npy", np.zeros((size, 1), np.uint8))
    np.save(work / "large" / "pixels.npy", np.arange(size).astype("S64"))
    found = ImageSet(work / "large")
    prints = [
        fingerprint(Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)))
        for _ in range(queries)
    ]
    start = time.process_time()
    for first in range(0, queries, 64):
        found.find(prints[first : first + 64], LIKE_THRESHOLD)
    cost = (time.process_time() - start) / queries
    print(f"\n{size} images: {1e3 * cost:.2f} ms of CPU per image that is searched for")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=800)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.2, 0.3, 0.4])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if options.folder:
            paths = sorted(path for path in options.folder.rglob("*") if path.is_file())
            paths = random.Random(1).sample(paths, min(options.count, len(paths)))
        else:
            paths = write_scenes(work / "scenes", options.count)
        measure(paths, work, options.thresholds)
        measure_search(work, 50_000, 640)


if __name__ == "__main__":
    main()
