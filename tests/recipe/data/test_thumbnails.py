"""Near copies of images are close, and other images of the same kind are not."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.duplicates import EDITS
from studies.scenes.scene import plan_held_out, render
from swag_models.recipe.data.pack_copies import LIKE_THRESHOLD
from swag_models.recipe.data.thumbnails import (
    ZOOM,
    Descriptors,
    compare_descriptors,
    compute_descriptors,
    list_orientations,
    make_thumbnail,
    measure_distance,
)

# Edits of which copies are recognised; the others of EDITS are documented as not recognised.
FOUND = list(EDITS)[: list(EDITS).index("white border of 5%")]


def draw_flag(*colours: str, upright: bool) -> Image.Image:
    flag = Image.new("RGB", (240, 160))
    draw = ImageDraw.Draw(flag)
    for number, colour in enumerate(colours):
        first, last = number / len(colours), (number + 1) / len(colours)
        box = (first * 240, 0, last * 240, 160) if upright else (0, first * 160, 240, last * 160)
        draw.rectangle(box, colour)
    return flag


def draw_sign(symbol: int) -> Image.Image:
    """A warning sign; signs differ in the symbol only."""
    sign = Image.new("RGB", (200, 180), "white")
    draw = ImageDraw.Draw(sign)
    draw.polygon([(100, 8), (192, 168), (8, 168)], "gold", "black", 8)
    box = (76, 92, 124, 140)
    if symbol == 0:
        draw.ellipse(box, "black")
    elif symbol == 1:
        draw.line((76, 92, 124, 140), "black", 12)
    else:
        draw.rectangle((94, 60, 106, 140), "black")
    return sign


def list_kinds() -> dict[str, list[Image.Image]]:
    """Different images of the same kinds."""
    flags = [
        draw_flag("blue", "white", "red", upright=True),
        draw_flag("green", "white", "red", upright=True),
        draw_flag("red", "white", "blue", upright=False),
        draw_flag("red", "white", "red", upright=False),
        draw_flag("black", "red", "gold", upright=False),
        draw_flag("black", "gold", "red", upright=True),
        draw_flag("green", "white", "orange", upright=True),
    ]
    return {
        "scenes": [render(plan_held_out(0, number), 192) for number in range(5)],
        "flags": flags,
        "signs": [draw_sign(number) for number in range(3)],
    }


@pytest.fixture(scope="module")
def kinds() -> dict[str, list[Image.Image]]:
    return list_kinds()


def find_distance(one: Image.Image, other: Image.Image) -> float:
    """The smaller distance of an image, and of its mirror image, to another one."""
    first, second = make_thumbnail(one), make_thumbnail(other)
    mirrored = np.ascontiguousarray(first[:, ::-1])
    return min(measure_distance(each, second, LIKE_THRESHOLD) for each in (first, mirrored))


@pytest.mark.parametrize("name", FOUND)
def test_an_edited_copy_is_close_to_its_original(
    name: str, kinds: dict[str, list[Image.Image]]
) -> None:
    for kind, images in kinds.items():
        for number, image in enumerate(images[:4]):
            copy = EDITS[name](image, random.Random(number))
            assert find_distance(copy, image) <= LIKE_THRESHOLD, (kind, number)
            assert find_distance(image, copy) <= LIKE_THRESHOLD, (kind, number)


def test_different_images_of_a_kind_are_distant(kinds: dict[str, list[Image.Image]]) -> None:
    for kind, images in kinds.items():
        for number, image in enumerate(images):
            for other in images[:number]:
                assert find_distance(image, other) > LIKE_THRESHOLD, (kind, number)


def test_descriptors_find_crops_and_mirror_images(kinds: dict[str, list[Image.Image]]) -> None:
    scenes = kinds["scenes"]
    whole = np.stack([make_thumbnail(scene) for scene in scenes])
    copies = np.stack(
        [
            make_thumbnail(EDITS["mirrored"](EDITS["5% cropped"](scene, random.Random(3)), random))  # type: ignore[arg-type]
            for scene in scenes
        ]
    )
    one, other = compute_descriptors(copies), compute_descriptors(whole, ZOOM)
    similarities = compare_descriptors(one, other)
    assert similarities.argmax(axis=1).tolist() == list(range(len(scenes)))
    assert similarities.diagonal().min() > 0.9
    for number in range(len(scenes)):
        pair = [Descriptors(each.even[number], each.odd[number]) for each in (one, other)]
        assert True in list_orientations(*pair), "the copy is mirrored"


def test_equal_descriptors_have_similarity_1_and_one_colour_resembles_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    pixels[2] = (200, 200, 200)
    rows = compute_descriptors(pixels)
    expected = np.eye(3)
    expected[2, 2] = 0
    similarities = compare_descriptors(rows, rows)
    assert np.allclose(similarities.diagonal(), expected.diagonal(), atol=1e-5)
    assert compare_descriptors(rows, rows)[:2, :2].max() <= 1 + 1e-5
    assert similarities[2].max() == 0


def test_equal_thumbnails_have_distance_0_and_blank_ones_are_not_close_to_others() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    blank = np.full((64, 64, 3), 255, np.uint8)
    assert measure_distance(noise, noise, LIKE_THRESHOLD) < 1e-3
    for other in (blank, np.zeros_like(blank)):
        assert measure_distance(noise, other, LIKE_THRESHOLD) > LIKE_THRESHOLD
        assert np.isfinite(measure_distance(other, noise, LIKE_THRESHOLD))
