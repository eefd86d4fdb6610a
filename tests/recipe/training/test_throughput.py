"""Speed, waiting, memory and MFU of a rank."""

from __future__ import annotations

import resource
import time

import pytest
import torch

from swag_models.recipe.training.meter import Throughput, find_peak, measure_peak

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_numbers_fit_each_other_and_begin_again() -> None:
    meter = Throughput(2e6, CPU, "fp32")
    assert meter.measured
    begin = time.perf_counter()
    meter.read()
    with meter.wait():
        time.sleep(0.2)
    meter.count(30)
    meter.count(12)
    time.sleep(0.05)
    numbers = meter.read()
    seconds = time.perf_counter() - begin
    assert numbers.keys() == {"images_per_second", "wait_share", "memory_gib", "mfu"}
    assert 42 / seconds <= numbers["images_per_second"] <= 42 / 0.25
    assert 0.2 / seconds <= numbers["wait_share"] <= 1
    assert numbers["mfu"] == pytest.approx(numbers["images_per_second"] * 2e6 / meter.peak)
    assert numbers["memory_gib"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    again = meter.read()
    assert (again["images_per_second"], again["wait_share"], again["mfu"]) == (0, 0, 0)


def test_waiting_that_fails_is_waiting() -> None:
    meter = Throughput(1, CPU, "fp32")
    with pytest.raises(StopIteration), meter.wait():
        next(iter([]))
    assert meter.read()["wait_share"] > 0


def test_memory_is_the_peak_of_the_process() -> None:
    meter = Throughput(1, CPU, "fp32")
    before = meter.read()["memory_gib"]
    # More than the process has ever had, even if it has given some back.
    block = torch.ones(int((before + 0.2) * 2**28))
    assert meter.read()["memory_gib"] >= before + 0.15
    del block
    assert meter.read()["memory_gib"] >= before + 0.15


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_measured_peak_is_what_a_product_takes(precision: str) -> None:
    state = torch.get_rng_state()
    peak = Throughput(1, CPU, precision).peak
    assert torch.equal(torch.get_rng_state(), state), (
        "a run draws the same numbers with and without a meter"
    )
    assert 1e7 < peak < 1e14


def test_a_peak_is_found_by_whole_words() -> None:
    for name, peak in (
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA RTX A1000 6GB Laptop GPU", None),
    ):
        assert find_peak(name) == peak, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_the_peak_of_its_data_sheet_and_the_memory_of_its_tensors() -> None:
    device = torch.device("cuda")
    meter = Throughput(1, device, "bf16")
    if find_peak(torch.cuda.get_device_name(device)):
        assert not meter.measured
        assert 0.3 * meter.peak < measure_peak(device, torch.bfloat16) <= meter.peak
    assert Throughput(1, device, "fp32").measured
    meter.read()
    block = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert meter.read()["memory_gib"] >= 0.25
    del block
    meter.read()
    assert meter.read()["memory_gib"] < 0.25
