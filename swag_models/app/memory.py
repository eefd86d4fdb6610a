"""Bounds on the memory for images: of all sessions together, and of the images being decoded."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore, Lock
from typing import Protocol
from weakref import WeakKeyDictionary

from swag_models.errors import ImageError

MAX_KEPT_PIXELS = 1 << 27  # of all sessions together: 400 MB as RGB
MAX_DECODERS = 2  # images that are decoded at once, each of at most `preprocess.MAX_PIXELS`
MAX_REQUEST_WAIT = 60  # seconds that a request waits for other requests


class Releasable(Protocol):
    """An object that keeps pixels until it is told to release them."""

    def release(self) -> None:
        """Drop the pixels."""


class KeptImages:
    """The images that sessions keep; those that were used least recently are released.

    This class does not keep an object alive that its session has dropped.

    Args:
        max_pixels: the largest number of pixels to keep.
    """

    def __init__(self, max_pixels: int = MAX_KEPT_PIXELS) -> None:
        self.max_pixels = max_pixels
        self.pixels: WeakKeyDictionary[Releasable, int] = WeakKeyDictionary()
        self.lock = Lock()

    def use(self, image: Releasable, num_pixels: int) -> None:
        """Mark an object as the last used one, and release others if there are too many pixels."""
        with self.lock:
            self.pixels.pop(image, None)
            self.pixels[image] = num_pixels  # a dict keeps the order of insertion
            for oldest in list(self.pixels):
                if sum(self.pixels.values()) <= self.max_pixels or oldest is image:
                    break
                del self.pixels[oldest]
                oldest.release()


class Turn:
    """Lets a limited number of requests do some work at once; the others wait for a limited time.

    Args:
        places: the number of requests at once.
        seconds: the longest time that a request waits.
    """

    def __init__(self, places: int, seconds: float = MAX_REQUEST_WAIT) -> None:
        self.semaphore = BoundedSemaphore(places)
        self.seconds = seconds

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a place, and occupy it during the `with` block.

        Raises:
            ImageError: no place became free in time.
        """
        if not self.semaphore.acquire(timeout=self.seconds):
            raise ImageError(
                f"the page was busy with other images for {self.seconds:g} s; choose the image "
                f"again in a minute"
            )
        try:
            yield
        finally:
            self.semaphore.release()
