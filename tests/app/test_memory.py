"""Bounds on the memory for images."""

import threading
from pathlib import Path

import pytest

from swag_models.app.memory import KeptImages, Turn
from swag_models.app.uploads import Uploads
from swag_models.errors import ImageError


class Kept:
    """Something with pixels."""

    released = False

    def release(self) -> None:
        self.released = True


def test_the_images_used_least_recently_are_released() -> None:
    kept = KeptImages(max_pixels=100)
    first, second, third = Kept(), Kept(), Kept()
    for image in (first, second, first, third):
        kept.use(image, 40)
    assert [image.released for image in (first, second, third)] == [False, True, False]
    assert sum(kept.pixels.values()) == 80


def test_one_image_is_kept_even_if_it_is_larger_than_the_limit() -> None:
    kept = KeptImages(max_pixels=100)
    small, large = Kept(), Kept()
    kept.use(small, 10)
    kept.use(large, 500)
    assert (small.released, large.released) == (True, False)


def test_an_image_that_its_session_drops_is_not_kept() -> None:
    kept = KeptImages(max_pixels=100)
    kept.use(Kept(), 60)
    image = Kept()
    kept.use(image, 60)
    assert dict(kept.pixels) == {image: 60}


def test_a_request_waits_for_its_turn_only_for_a_limited_time() -> None:
    turn = Turn(1, seconds=0.1)
    message = r"the page was busy with other images for 0\.1 s"
    with turn.take(), pytest.raises(ImageError, match=message):
        take_in_thread(turn)
    take_in_thread(turn)


def take_in_thread(turn: Turn) -> None:
    """Take a turn in another thread, and raise what it raises."""
    errors: list[ImageError] = []

    def run() -> None:
        try:
            with turn.take():
                pass
        except ImageError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("limits", [{"max_files": 2}, {"max_bytes": 20}])
def test_the_oldest_uploads_are_deleted_if_there_are_too_many(
    tmp_path: Path, limits: dict[str, int]
) -> None:
    content = tmp_path / "content"
    content.write_bytes(b"0123456789")
    uploads = Uploads(tmp_path / "uploads", **limits)
    uploads.folder.mkdir()
    paths = []
    for _ in range(4):
        with content.open("rb") as file:
            paths.append(uploads.add(file, "a.PNG", "me"))
    assert [Path(path).exists() for path in paths] == [False, False, True, True]
    assert len(list(uploads.folder.iterdir())) == 2
    with pytest.raises(ImageError, match="is not an uploaded image"):
        uploads.open({"path": paths[0]}, "me", "s")
    file, name = uploads.open({"path": paths[-1]}, "me", "s")
    with file:
        assert (file.read(), name) == (b"0123456789", "image.png")
