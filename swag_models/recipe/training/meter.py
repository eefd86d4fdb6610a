"""How fast a rank works: images per second, waiting, memory, and the share of the device's peak that is used."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Dense products in bf16 or fp16, FLOP/s, by words of the device's name, the special ones first. Source: NVIDIA's data sheets
# of B200 and GB200 NVL72, H200, GH200, H100 and A100; where these give figures with sparsity, half of them.
PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Throughput:
    """Measures one rank between two calls of `read`.

    flops_per_image: of a training step, forward and backward. precision: "fp32", "bf16" or "fp16". `peak`: FLOP/s of the
    device: from `PEAKS`, else those of a matrix product, measured here, and then `measured` is true.
    """

    def __init__(self, flops_per_image: float, device: torch.device, precision: str) -> None:
        self.flops_per_image, self.device = flops_per_image, device
        peak = None
        if device.type == "cuda" and precision != "fp32":
            peak = find_peak(torch.cuda.get_device_name(device))
        self.measured = peak is None
        self.peak = peak or measure_peak(device, DTYPES[precision])
        self._begin()

    @contextmanager
    def wait(self) -> Iterator[None]:
        """What is done inside is waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def count(self, images: int) -> None:
        """So many images of this rank's own are done."""
        self._images += images

    def read(self) -> dict[str, float]:
        """What was measured since the last call, on a GPU after the work that was sent to it.

        images_per_second, wait_share (0 to 1), memory_gib (the peak: of a GPU's tensors since the last call; of a process on a
        CPU since it began), mfu (of `peak`).
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._start
        speed = self._images / seconds
        numbers = {
            "images_per_second": speed,
            "wait_share": self._waited / seconds,
            "memory_gib": self._read_memory() / 2**30,
            "mfu": speed * self.flops_per_image / self.peak,
        }
        self._begin()
        return numbers

    def _begin(self) -> None:
        self._start, self._waited, self._images = time.perf_counter(), 0.0, 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _read_memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )


def find_peak(name: str) -> float | None:
    """Of the device of this name, if it is one of `PEAKS`: an A1000 is no A100."""
    return next((peak for words, peak in PEAKS.items() if re.search(rf"\b{words}\b", name)), None)


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of square matrices that are large enough to take a while, the best of three after a first."""
    # Of its own, so that a run draws the same random numbers with and without a meter.
    generator = torch.Generator(device).manual_seed(0)
    size = 256
    while True:
        matrix = torch.randn(size, size, device=device, generator=generator).to(dtype)
        seconds = min([_time_product(matrix) for _ in range(4)][1:])
        if seconds > 0.01 or size == 8192:
            return 2 * size**3 / seconds
        size *= 2


def _time_product(matrix: torch.Tensor) -> float:
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
    start = time.perf_counter()
    torch.mm(matrix, matrix)
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
    return time.perf_counter() - start
