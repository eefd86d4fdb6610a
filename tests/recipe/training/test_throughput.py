"""Speed, waiting, memory and MFU of a rank."""

from __future__ import annotations

import resource
import sys
import time

import pytest
import torch

from swag_models.recipe.training.logging import Throughput, find_peak

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_numbers_are_consistent_and_start_again_after_each_read() -> None:
    throughput = Throughput(2e6, CPU, "fp32")
    begin = time.perf_counter()
    throughput.read()
    with throughput.wait():
        time.sleep(0.2)
    throughput.count(30)
    throughput.count(12)
    time.sleep(0.05)
    numbers = throughput.read()
    seconds = time.perf_counter() - begin
    assert numbers.keys() == {"images_per_second", "wait_share", "memory_gib"}
    assert 42 / seconds <= numbers["images_per_second"] <= 42 / 0.25
    assert 0.2 / seconds <= numbers["wait_share"] <= 1
    assert numbers["memory_gib"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    again = throughput.read()
    assert (again["images_per_second"], again["wait_share"]) == (0, 0)


def test_mfu_is_the_fraction_of_a_known_peak() -> None:
    throughput = Throughput(2e6, CPU, "bf16")
    assert throughput.peak is None
    throughput.peak = 1e9
    throughput.count(10)
    numbers = throughput.read()
    assert numbers["mfu"] == pytest.approx(numbers["images_per_second"] * 2e6 / 1e9)


def test_waiting_that_fails_counts_as_waiting() -> None:
    throughput = Throughput(1, CPU, "fp32")
    with pytest.raises(StopIteration), throughput.wait():
        next(iter([]))
    assert throughput.read()["wait_share"] > 0


@pytest.mark.slow
def test_memory_is_the_peak_of_the_process() -> None:
    throughput = Throughput(1, CPU, "fp32")
    before = throughput.read()["memory_gib"]
    # More than the process has ever had, even if it has given some back.
    block = torch.ones(int((before + 0.2) * 2**28))
    assert throughput.read()["memory_gib"] >= before + 0.15
    del block
    assert throughput.read()["memory_gib"] >= before + 0.15


def test_memory_is_unknown_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert Throughput(1, CPU, "fp32").read()["memory_gib"] == 0


def test_a_peak_is_found_by_whole_words() -> None:
    for name, half, single in (
        ("NVIDIA A100-SXM4-80GB", 312e12, None),
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, None),
        ("NVIDIA GB200", 2500e12, None),
        ("NVIDIA GH200 480GB", 989e12, None),
        ("NVIDIA RTX A1000 6GB Laptop GPU", None, None),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA GeForce RTX 4090 D", None, None),
    ):
        assert find_peak(name, "bf16") == find_peak(name, "fp16") == half, name
        assert find_peak(name, "fp32") == single, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_the_peak_of_its_data_sheet_and_the_memory_of_its_tensors() -> None:
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    throughput = Throughput(1, device, "bf16")
    assert throughput.peak == find_peak(name, "bf16")
    if throughput.peak:
        assert 0.3 * throughput.peak < measure_product(device) <= throughput.peak
    throughput.read()
    block = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert throughput.read()["memory_gib"] >= 0.25
    del block
    throughput.read()
    assert throughput.read()["memory_gib"] < 0.25


def measure_product(device: torch.device, size: int = 8192) -> float:
    """FLOP/s of a bf16 matrix product, the best of three after a first."""
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(4):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])
