"""100,000 damaged image files of every format: each is read, or refused in one line."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
from faults.counts import DEFECTS, judge, record, scaled
from hostile_images import BOMBS, make_chunk, make_exif
from PIL import Image

from swag_models.image_decoding import read_image
from swag_models.image_formats import FORMATS
from swag_models.preprocess import Transform
from swag_models.spec import Preprocess

pytestmark = pytest.mark.faults

CASES = 100_000
MEMORY = 6 << 30  # bytes of a process that reads images; a failed allocation is an error, too
NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 32, 127, 128, 255, 256, 1024, 32767, 32768, 65535, 65536)
NUMBERS += (2**24, 2**31 - 1, 2**31, 2**32 - 1, 89_478_485)
# Files of formats that Pillow only reads, without pixels that matter.
WRITTEN_BY_HAND = {
    "CUR": b"\0\0\2\0\1\0\4\4\0\0\1\0\1\0\xa8\0\0\0\x16\0\0\0"
    + struct.pack("<IiiHHIIiiII", 40, 4, 8, 1, 32, 0, 128, 0, 0, 0, 0)
    + bytes(range(128)),
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 5, 8, 3) + bytes(12) + b"\0\0"
    + bytes(range(60)),
    "SUN": struct.pack(">8I", 0x59A66A95, 4, 5, 24, 60, 1, 0, 0) + bytes(range(60)),
}  # fmt: skip


def make_seeds(kind: str) -> list[bytes]:
    """Encode small images of a format, in its modes and with its options."""
    if kind in WRITTEN_BY_HAND:
        return [WRITTEN_BY_HAND[kind]]
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (19, 23, 3), dtype=np.uint8))
    variants: list[dict[str, object]] = [{}]
    if kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
        variants.append({"exif": make_exif(3, 20)})
    variants += {
        "JPEG": [{"progressive": True}, {"comment": b"x" * 99}],
        "TIFF": [
            {"compression": name} for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
        ],
        "WEBP": [{"lossless": True}],
        "PPM": [],
        "TGA": [{"compression": "tga_rle"}],
        "DDS": [{"pixel_format": name} for name in ("DXT1", "DXT5", "BC5")],
        "JPEG2000": [{"irreversible": True}, {"no_jp2": True}],
        "PNG": [{"save_all": True, "append_images": [rgb]}],
    }.get(kind, [])
    seeds = list[bytes]()
    for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16", "YCbCr"):
        for options in variants:
            file = io.BytesIO()
            if options.get("compression") == "jpeg" and mode not in ("RGB", "L"):
                continue  # Pillow's encoder corrupts the memory of the process
            try:
                image = rgb.convert("L").convert(mode) if mode == "I;16" else rgb.convert(mode)
                size = (16, 16) if kind == "ICO" else image.size
                image.resize(size, Image.Resampling.NEAREST).save(file, kind, **options)
            except (OSError, ValueError, LookupError, NameError, SystemError):  # no such mode
                continue
            seeds.append(file.getvalue())
    if kind == "GIF":
        frames, file = [rgb, rgb.rotate(90)], io.BytesIO()
        frames[0].save(file, "GIF", save_all=True, append_images=frames, comment=b"x" * 600)
        seeds.append(file.getvalue())
    assert seeds
    return seeds


def mutate(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    """Damage a file once to three times."""
    for _ in range(random.choice((1, 1, 2, 3))):
        content = random.choice(MUTATIONS)(content, seeds, random)
    return repair_png(content) if random.random() < 0.7 else content


def pick(content: bytes, random: Random) -> int:
    """Pick a position, most often in the header."""
    end = len(content) if random.random() < 0.4 else min(len(content), 64)
    return random.randrange(max(1, end))


def truncate(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def change_bytes(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(random.randint(1, 6)):
        changed[pick(changed, random)] = random.randrange(256)
    return bytes(changed)


def change_number(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    size, order = random.choice((1, 2, 4)), random.choice(("big", "little"))
    number = random.choice(NUMBERS) & (256**size - 1)
    start = pick(content, random)
    return content[:start] + number.to_bytes(size, order) + content[start + size :]


def repeat_slice(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    start = pick(content, random)
    stop = start + random.choice((1, 4, 12, 64, 256))
    return content[:stop] + content[start:stop] * random.choice((1, 2, 50)) + content[stop:]


def remove_slice(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    start = pick(content, random)
    return content[:start] + content[start + random.choice((1, 4, 12, 64)) :]


def splice(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    other = random.choice(seeds)
    return content[: pick(content, random)] + other[pick(other, random) :]


def repair_png(content: bytes) -> bytes:
    """Correct the checksums of a PNG, so that its damage reaches the decoder."""
    if not content.startswith(b"\x89PNG"):
        return content
    chunks, offset = [content[:8]], 8
    while offset + 12 <= len(content):
        length = int.from_bytes(content[offset : offset + 4], "big")
        kind, body = content[offset + 4 : offset + 8], content[offset + 8 : offset + 8 + length]
        chunk = make_chunk(kind, body)
        chunks.append(content[offset : offset + 4] + chunk[4:])
        offset += 12 + length
    return b"".join(chunks) + content[offset:]


MUTATIONS: tuple[Callable[[bytes, list[bytes], Random], bytes], ...] = (
    truncate, change_bytes, change_bytes, change_number, change_number, change_number,
    repeat_slice, remove_slice, splice,
)  # fmt: skip


def read_cases(kind: str, start: int, stop: int, folder: Path) -> Counter[str]:
    """Read the numbered cases of a format; write those with a defect into a folder."""
    seeds, transform, counts = make_seeds(kind), Transform(Preprocess(8)), Counter[str]()
    for number in range(start, stop):
        random = Random(f"{kind}/{number}")
        content = mutate(random.choice(seeds), seeds, random)
        # Written first, so that it is known if the interpreter crashes.
        (folder / "case").write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter(random.choice(("ignore", "error")))
            outcome = judge(lambda: transform(read_image(io.BytesIO(content), "x")))  # noqa: B023
        counts[outcome] += 1
        if outcome in DEFECTS:
            (folder / f"{kind}-{number}-{outcome}").write_bytes(content)
    return counts


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    """In a process of its own, which a decoder can crash."""
    count, done, counts = scaled(CASES // len(FORMATS)), 0, Counter[str]()
    step = 1000
    for start in range(0, count, step):
        stop = min(start + step, count)
        command = [sys.executable, __file__, kind, str(start), str(stop), str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.run(command, capture_output=True, text=True, env=environment)
        if child.returncode:
            counts["crash"] += 1
            print(child.stderr[-2000:])
            (tmp_path / "case").rename(tmp_path / f"{kind}-{start}-crash")
            continue
        counts.update(json.loads(child.stdout.splitlines()[-1]))
        done += stop - start
    record("images", counts, row=f"{kind}: damaged files")
    assert not counts["crash"]
    assert not [file.name for file in tmp_path.iterdir() if file.name != "case"], tmp_path
    assert counts["clean"] > 0
    assert done == count


def test_files_that_cause_much_work() -> None:
    files = [io.BytesIO(make()) for make in BOMBS.values()]
    counts = Counter(judge(partial(read_image, file, "x")) for file in files)
    record("images", counts, row="files that cause much work")
    assert counts == {"clean": len(BOMBS)}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _, kind, start, stop, folder = sys.argv
    print(json.dumps(read_cases(kind, int(start), int(stop), Path(folder))))
