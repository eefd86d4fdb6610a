"""Processes of torch.distributed on this machine, and this process as a single rank."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


@contextmanager
def one_rank() -> Iterator[None]:
    """Make this process the only rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def run_ranks(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(*arguments)` in `count` new processes at once; fails if it fails in one of them.

    They are forked from a process without threads that has imported torch, because importing it
    takes seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict"]
    )
    with tempfile.TemporaryDirectory() as folder:
        meet = f"file://{Path(folder) / 'meet'}"
        ranks = [
            context.Process(target=_begin, args=(rank, count, meet, work, arguments))
            for rank in range(count)
        ]
        for process in ranks:
            process.start()
        try:
            for process in ranks:
                process.join(90)
                assert process.exitcode == 0
        finally:
            for process in ranks:
                process.kill()
                process.join()


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Return the values in nested dicts and lists by their paths."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {
            path: leaf
            for key, item in value.items()
            for path, leaf in flatten(item, f"{name}/{key}").items()
        }
    return {name: value}


def assert_same(one: Any, two: Any) -> None:
    """Assert that all values are equal, bit for bit."""
    one, two = flatten(one), flatten(two)
    assert one.keys() == two.keys()
    for name, value in one.items():
        other = two[name]
        if isinstance(value, torch.Tensor):
            assert (value.dtype, value.shape) == (other.dtype, other.shape), name
            value, other = (
                tensor.detach().contiguous().flatten().view(torch.uint8).tolist()
                for tensor in (value, other)
            )
        assert value == other, name


def _begin(
    rank: int, count: int, meet: str, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=count)
    work(*arguments)
    dist.destroy_process_group()
