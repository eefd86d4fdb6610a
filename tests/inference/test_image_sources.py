"""Image sources: every kind becomes one ordered list; errors name the source in one line."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fetch_support import wait_until
from image_support import encode_image, make_pixels, write_file, write_images, write_tar
from numpy.typing import NDArray
from PIL import Image

from swag_models.errors import ConfigError, ImageError
from swag_models.inference.image_sources import ImageRef, find_images, read_ahead

PIXELS = make_pixels(0)


def read(ref: ImageRef) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of an image."""
    image = ref.read()
    return np.asarray(image.permute(1, 2, 0) if isinstance(image, torch.Tensor) else image)


def names(images: Any) -> list[str]:
    """Names of all images of a source."""
    return [ref.name for ref in find_images(images)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image file with PIXELS."""
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    return tmp_path / "image.png"


KINDS: dict[str, Callable[[Path], object]] = {
    "text": str,
    "path": Path,
    "folder": lambda path: path.parent,
    "pattern": lambda path: f"{path.parent}/ima*.p?g",
    "shard": lambda path: write_tar(path.parent / "shard.tar", {"x.png": path.read_bytes()}),
    "image": lambda path: Image.fromarray(PIXELS),
    "opened": Image.open,
    "array": lambda path: PIXELS,
    "array that is not contiguous": lambda path: PIXELS[::-1].copy()[::-1],
    "arrays": lambda path: PIXELS[None],
    "tensor": lambda path: torch.from_numpy(PIXELS).permute(2, 0, 1),
    "tensors": lambda path: torch.from_numpy(PIXELS).permute(2, 0, 1)[None],
    "list": lambda path: [str(path)],
    "tuple": lambda path: (path,),
    "generator": lambda path: (x for x in [path]),
    "image refs": find_images,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_is_accepted(kind: str, path: Path) -> None:
    (ref,) = find_images(KINDS[kind](path))
    assert np.array_equal(read(ref), PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_an_image_in_memory_is_read_like_its_file(mode: str, tmp_path: Path) -> None:
    grey = Image.fromarray(PIXELS).convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    image = deep if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / "saved.tiff")
    in_memory, in_file = find_images([image, tmp_path / "saved.tiff"])
    assert read(in_memory).shape == PIXELS.shape
    assert np.array_equal(read(in_memory), read(in_file))


def test_an_image_with_an_exif_rotation_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(np.rot90(PIXELS)).save(tmp_path / "turned.png", exif=exif)
    for source in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert np.array_equal(read(find_images(source)[0]), PIXELS)


def test_a_grey_array_gets_three_equal_channels() -> None:
    (ref,) = find_images(PIXELS[..., 0])
    assert np.array_equal(read(ref), np.repeat(PIXELS[..., :1], 3, axis=2))


def test_batches_in_memory_are_numbered_in_order() -> None:
    batch = np.stack([make_pixels(seed) for seed in range(4)])
    refs = find_images([batch[:2], torch.from_numpy(batch[2:]).permute(0, 3, 1, 2)])
    assert [ref.name for ref in refs] == ["image 0", "image 1", "image 2", "image 3"]
    assert all(np.array_equal(read(ref), pixels) for ref, pixels in zip(refs, batch, strict=True))


def test_a_mixed_list_keeps_its_order(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "folder", 2)
    shard = write_tar(tmp_path / "shard.tar", {"b.png": encode_image(7), "a.png": encode_image(8)})
    mixed = [PIXELS, shard, str(tmp_path / "folder"), Image.fromarray(PIXELS), paths[0]]
    assert names(mixed) == [
        "image 0",
        f"{shard}/b.png",
        f"{shard}/a.png",
        *map(str, paths),
        "image 5",
        str(paths[0]),
    ]


def test_a_folder_is_searched_to_any_depth_in_sorted_order(tmp_path: Path) -> None:
    images = ["B.JPEG", "a.jpg", "deep/er/x.webp", "deep/y.TIF", "z.gif"]
    for name in [*images, "notes.txt", "deep/labels.json", "shard.tar"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "album.jpg").mkdir()  # a folder, whatever its name
    assert names(tmp_path) == [str(tmp_path / name) for name in images]


def test_a_pattern_can_match_files_folders_and_shards(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "photos" / "2001", 2) + write_images(
        tmp_path / "photos" / "2002", 1
    )
    shards = [
        write_tar(tmp_path / f"{number}.tar", {f"{number}.png": encode_image(number)})
        for number in (1, 0)
    ]
    assert names(f"{tmp_path}/photos/*/000[01].png") == [str(path) for path in paths]
    assert names(f"{tmp_path}/photos/*") == [str(path) for path in paths]
    assert names(f"{tmp_path}/photos/**") == [str(path) for path in paths], "each once"
    assert names(f"{tmp_path}/*.tar") == [f"{shards[1]}/0.png", f"{shards[0]}/1.png"]


def test_an_existing_path_is_not_treated_as_a_pattern(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path / "photos [1]", 1)
    assert names(tmp_path / "photos [1]") == names(path) == [str(path)]


def test_the_images_of_a_shard_are_in_the_order_of_its_members(tmp_path: Path) -> None:
    members = {
        "b/c/2.png": encode_image(2),
        "b/c/2.txt": b"a label",
        "1.PNG": encode_image(1),
        "x" * 120 + ".png": encode_image(3),
        "0.jpg": b"?",
    }
    shard = write_tar(tmp_path / "shard.tar", members)
    refs = find_images(shard)
    assert [ref.name for ref in refs] == [
        f"{shard}/{name}" for name in members if name != "b/c/2.txt"
    ]
    assert [int((read(ref) == make_pixels(seed)).all()) for ref, seed in zip(refs, (2, 1, 3))] == [
        1,
        1,
        1,
    ]
    with pytest.raises(
        ImageError, match=re.escape(f"{shard}/0.jpg is not an image that Pillow can read")
    ):
        refs[3].read()


def test_a_truncated_image_in_a_shard_does_not_affect_the_others(tmp_path: Path) -> None:
    shard = write_tar(
        tmp_path / "shard.tar", {"cut.png": encode_image(1)[:500], "whole.png": encode_image(2)}
    )
    truncated, complete = find_images(shard)
    with pytest.raises(ImageError, match=re.escape(f"{shard}/cut.png cannot be read: ")):
        truncated.read()
    assert np.array_equal(read(complete), make_pixels(2))


def test_a_deleted_shard_is_named_in_the_error(tmp_path: Path) -> None:
    (ref,) = find_images(write_tar(tmp_path / "shard.tar", {"0.png": encode_image(0)}))
    (tmp_path / "shard.tar").unlink()
    with pytest.raises(
        ImageError, match=r"shard\.tar/0\.png cannot be read: No such file or directory"
    ):
        ref.read()


def test_a_truncated_shard_is_rejected(tmp_path: Path) -> None:
    shard = write_tar(
        tmp_path / "shard.tar", {f"{number}.png": encode_image(number) for number in range(2)}
    )
    content = shard.read_bytes()
    second = content.index(b"1.png")
    for length in (0, 100, 512, 700, second, second + 100, second + 512, second + 600):
        shard.write_bytes(content[:length])
        with pytest.raises(
            ConfigError, match=re.escape(f"{shard} cannot be read as an uncompressed tar file: ")
        ):
            find_images(shard)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("x.tar.gz", "w:gz"), ("x.TGZ", "w:gz"), ("x.tar", "w:gz"), ("x.tar.xz", "w:xz")],
)
def test_a_compressed_shard_is_rejected_in_one_line(name: str, mode: str, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / name, {"0.png": encode_image(0)}, mode)
    for images in (shard, f"{tmp_path}/x*"):
        with pytest.raises(
            ConfigError,
            match=re.escape(f"{shard} cannot be read as an uncompressed tar file: invalid header"),
        ):
            find_images(images)


def test_a_missing_shard_is_rejected_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"gone\.tar cannot be read as an uncompressed tar file: No such file or directory",
    ):
        find_images(tmp_path / "gone.tar")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "images is a NoneType; pass paths, PIL images, arrays or tensors"),
        (3, "images is a int; pass paths"),
        ([None], "cannot read a NoneType; pass paths"),
        ([["a.jpg"]], "cannot read a list; pass paths"),
        (
            np.zeros((4, 4)),
            "invalid array (4, 4) of float64; pass uint8 (H, W), (H, W, 3) or (N, H, W, 3)",
        ),
        (np.zeros((4, 4, 4), np.uint8), "invalid array (4, 4, 4) of uint8; pass uint8"),
        (np.uint8(3), "cannot read a uint8; pass paths"),
        (
            torch.rand(3, 4, 4),
            "invalid tensor (3, 4, 4) of torch.float32; pass uint8 (3, H, W) or (N, 3, H, W)",
        ),
        (
            torch.zeros(1, 4, 4, dtype=torch.uint8),
            "invalid tensor (1, 4, 4) of torch.uint8; pass uint8",
        ),
        (
            "nothing/*.jpg",
            "no image in nothing/*.jpg; pass files, folders, tar shards or patterns with .avif",
        ),
    ],
)
def test_an_invalid_source_is_rejected_in_one_line(images: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_images(images)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_folder_without_an_image_is_rejected_but_not_an_empty_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"no image in {tmp_path}; ")):
        find_images(tmp_path)
    assert find_images([]) == []
    assert find_images(np.zeros((0, 4, 4, 3), np.uint8)) == []


def test_a_folder_without_read_permission_is_rejected() -> None:
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name), 1)
        (Path(name) / "private").mkdir(mode=0)
        os.chmod(name, 0o755)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root can read every folder
            with pytest.raises(
                ConfigError, match=f"{name}/private cannot be searched: Permission denied"
            ):
                find_images(name)
        finally:
            os.seteuid(user)


def make_dangling_link(path: Path) -> Path:
    path.symlink_to("nowhere")
    return path


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda folder: folder / "gone.jpg",
        "gone.jpg cannot be read: No such file or directory",
    ),
    "dangling": (
        lambda folder: make_dangling_link(folder / "x.png"),
        "x.png cannot be read: No such file or directory",
    ),
    "folder": (
        lambda folder: ImageRef(str(folder), folder),
        " cannot be read: it is a folder, not a regular file",
    ),
    "empty": (
        lambda folder: write_file(folder / "x.png", b""),
        "x.png is not an image that Pillow can read",
    ),
    "page": (
        lambda folder: write_file(folder / "x.jpg", b"<html>not found</html>"),
        "x.jpg is not an image that Pillow can read",
    ),
    "truncated": (
        lambda folder: write_file(folder / "x.png", encode_image(0)[:500]),
        "x.png cannot be read: ",
    ),
    "truncated and opened": (
        lambda folder: Image.open(io.BytesIO(encode_image(0)[:500])),
        "image 0 cannot be read: ",
    ),
    "float": (
        lambda folder: Image.new("F", (4, 4)),
        "image 0 cannot be read: a 32-bit floating-point image has no defined range",
    ),
    "no pixels": (
        lambda folder: np.zeros((0, 5), np.uint8),
        "image 0 cannot be read: it has no pixels",
    ),
    "tensor without pixels": (
        lambda folder: torch.zeros(3, 5, 0, dtype=torch.uint8),
        "image 0 has no pixels",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_error_of_an_unreadable_image_names_it_and_the_reason(
    kind: str, tmp_path: Path
) -> None:
    make, message = BROKEN[kind]
    (ref,) = find_images(make(tmp_path))
    with pytest.raises(ImageError) as caught:
        ref.read()
    assert message in str(caught.value)
    assert str(caught.value).startswith(ref.name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_bytes_of_a_name_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    shutil.copy(write_images(tmp_path / "images", 1)[0], os.fsencode(tmp_path) + b"/caf\xe9.png")
    (ref,) = find_images(f"{tmp_path}/*.png")
    assert ref.name == f"{tmp_path}/caf\\xe9.png"
    assert np.array_equal(read(ref), make_pixels(0))
    write_tar(tmp_path / "shard.tar", {"caf\udce9.png": encode_image(1)})
    (ref,) = find_images(tmp_path / "shard.tar")
    assert ref.name == f"{tmp_path}/shard.tar/caf\\xe9.png"


def test_threads_can_share_an_image_that_is_not_decoded_yet() -> None:
    file = io.BytesIO()
    Image.fromarray(make_pixels(0, 400, 500)).save(file, "jpeg")
    expected = np.asarray(Image.open(file))
    for _ in range(10):
        refs = find_images([Image.open(file)] * 16)
        results = read_ahead(read, refs, 8, 16, overlap=True)
        assert all(np.array_equal(pixels, expected) for pixels in results)


def list_readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read")]


@pytest.mark.parametrize("overlap", [True, False])
def test_read_ahead_keeps_the_order_and_uses_its_workers(overlap: bool) -> None:
    def slowest_first(number: int) -> tuple[int, str]:
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number, threading.current_thread().name

    results = list(read_ahead(slowest_first, range(20), 4, 8, overlap=overlap))
    assert [number for number, _ in results] == list(range(20))
    assert 2 <= len({thread for _, thread in results}) <= 4
    assert not list_readers()


@pytest.mark.parametrize(("overlap", "limit"), [(True, 9), (False, 8)])
def test_read_ahead_reads_a_limited_number_of_items(overlap: bool, limit: int) -> None:
    started: list[int] = []
    results = read_ahead(started.append, range(100), 2, 8, overlap=overlap)
    assert not started, "nothing is read before the first result is requested"
    next(results)
    time.sleep(0.1)
    assert len(started) == limit
    results.close()


@pytest.mark.parametrize("overlap", [True, False])
def test_an_abandoned_or_failed_reader_leaves_no_threads(overlap: bool) -> None:
    results = read_ahead(lambda number: time.sleep(0.01), range(1000), 4, 8, overlap=overlap)
    next(results)
    assert list_readers()
    del results
    wait_until(lambda: not list_readers())

    def fail(number: int) -> None:
        raise RuntimeError(f"number {number}")

    with pytest.raises(RuntimeError, match="number 0"):
        list(read_ahead(fail, range(1000), 4, 8, overlap=overlap))
    assert not list_readers()


def test_only_cpus_that_the_process_may_use_are_counted() -> None:
    code = """
import os
os.sched_setaffinity(0, {0})
from swag_models.runtime import count_cpus
print(count_cpus())
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout == "1\n"


@pytest.mark.parametrize("pattern", ["**", "**/*", "**/*.jpg"])
def test_other_files_are_counted_unless_a_pattern_leaves_them_out(
    pattern: str, tmp_path: Path
) -> None:
    for name in ("1.jpg", "2.heic", "3.jpg"):
        (tmp_path / name).touch()
    left_out = Counter[str]()
    assert len(find_images(tmp_path / pattern, left_out)) == 2
    assert left_out == ({} if pattern.endswith("jpg") else {".heic": 1})
