"""Checkpoints of several ranks: written and read by different numbers, safe against kills."""

from __future__ import annotations

import copy
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import assert_same, one_rank, run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from swag_models.errors import OutputError
from swag_models.recipe.training.checkpointer import Checkpointer
from swag_models.recipe.training.train_state import collect_tensors, restore_tensors

ROOT = Path(__file__).parents[3]
COUNT = 20  # kills


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    # Seven rows and five: they do not halve.
    return nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 5))


def wrap(model: nn.Module, kind: str) -> nn.Module:
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in (model[0], model[3]):  # type: ignore[index]
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return DistributedDataParallel(model) if kind == "ddp" else model


def gather(value: Any) -> Any:
    """Gather every sharded tensor."""
    if isinstance(value, dict):
        return {name: gather(each) for name, each in value.items()}
    if isinstance(value, list):
        return [gather(each) for each in value]
    return value.full_tensor() if isinstance(value, DTensor) else value


def make_run(kind: str, seed: int, name: str) -> tuple[nn.Module, torch.optim.Optimizer, nn.Module]:
    model, average = wrap(make_model(seed), kind), make_model(seed + 1)
    average = wrap(average, kind) if kind == "fsdp" else average
    if name == "adamw":
        return model, torch.optim.AdamW(model.parameters(), lr=0.01), average
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), average


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(24.0).reshape(4, 6) / 10).square().mean().backward()
    optimizer.step()


def write(folder: Path, kind: str, name: str, expected: Path) -> None:
    """Train, save, keep training meanwhile, and store what should have been saved."""
    model, optimizer, average = make_run(kind, 0, name)
    for _ in range(2):
        step(model, optimizer)
    checkpoints = Checkpointer(folder, 2)
    tensors = collect_tensors(model, optimizer, average)
    whole = copy.deepcopy(gather(tensors))
    checkpoints.save(2, tensors, {"rank": dist.get_rank()})
    for _ in range(3):
        step(model, optimizer)
        checkpoints.poll()
    assert checkpoints.finish() is None
    assert not torch.equal(
        gather(collect_tensors(model))["model"]["0.weight"], whole["model"]["0.weight"]
    )
    if dist.get_rank() == 0:
        torch.save(whole, expected)


def read(folder: Path, kind: str, name: str, expected: Path) -> None:
    """Load the checkpoint into new modules."""
    model, optimizer, average = make_run(kind, 5, name)
    checkpoints = Checkpointer(folder, 2)
    latest = checkpoints.find_latest()
    assert latest == folder / "step-00000002"
    tensors = collect_tensors(model, optimizer, average)
    assert checkpoints.load(latest, tensors) == {"rank": 0}
    restore_tensors(tensors, model, optimizer, average)
    assert_same(gather(collect_tensors(model, optimizer, average)), torch.load(expected))
    step(model, optimizer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "other"), [("fsdp", "adamw", "ddp"), ("ddp", "sgd", "fsdp")]
)
def test_a_checkpoint_loads_on_any_number_of_ranks(
    tmp_path: Path, kind: str, name: str, other: str
) -> None:
    run_ranks(2, write, tmp_path / "run", kind, name, tmp_path / "expected")
    with one_rank():
        read(tmp_path / "run", "plain", name, tmp_path / "expected")
        write(tmp_path / "single", "plain", name, tmp_path / "single-expected")
    run_ranks(2, read_both, tmp_path, other, name)


def read_both(folder: Path, kind: str, name: str) -> None:
    read(folder / "run", kind, name, folder / "expected")
    read(folder / "single", kind, name, folder / "single-expected")


def fill_one_disk(folder: Path) -> None:
    """Limit the file size of rank 1 only."""
    checkpoints, rank = Checkpointer(folder, 1), dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    tensors = {"value": DTensor.from_local(torch.randn(50_000), mesh, [Shard(0)])}
    checkpoints.save(1, tensors, {}, wait=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000 if rank else limits[0], limits[1]))
    checkpoints.save(2, tensors, {})
    cause = checkpoints.finish()
    assert cause is not None
    assert cause.endswith("File too large (rank 1)")
    with pytest.raises(OutputError, match=r"step-00000003 .*\(rank 1\)"):
        checkpoints.save(3, tensors, {}, wait=True)
    assert checkpoints.failed == 2
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
    dist.barrier()  # the other rank may have started the next save
    checkpoints.save(4, tensors, {}, wait=True)
    assert checkpoints.failed == 2
    assert checkpoints.find_latest() == folder / "step-00000004"


@pytest.mark.slow
def test_ranks_agree_that_a_save_failed_on_one_of_them(tmp_path: Path) -> None:
    run_ranks(2, fill_one_disk, tmp_path / "run")


# The ranks are forked from a process that has imported torch, which takes seconds, but has no
# threads.
KILLS = """
import os, random, signal, sys, time
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from swag_models.recipe.training.checkpointer import Checkpointer
folder, count, parent = sys.argv[1], int(sys.argv[2]), os.getpid()

def tell(name, step):
    with open(f"{folder}/{name}.tmp", "w") as file:
        file.write(str(step))
    os.replace(f"{folder}/{name}.tmp", f"{folder}/{name}")

def start(rank, turn):
    if pid := os.fork():
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        store = f"file://{folder}/meet-{turn}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
        run(rank)
        code = 0
    except BaseException as error:  # the second rank notices that the first was killed
        print(turn, rank, repr(error)[:300], file=sys.stderr, flush=True)
    os._exit(code)

def run(rank):
    checkpoints = Checkpointer(f"{folder}/run", 2)
    mesh = init_device_mesh("cpu", (2,))
    step, value = 0, DTensor.from_local(torch.zeros(200_000), mesh, [Shard(0)])
    tensors = {"value": value, "number": torch.tensor(0)}
    if latest := checkpoints.find_latest():
        step = checkpoints.load(latest, tensors)["step"]
        assert latest.name == f"step-{step:08d}", (latest, step)
        assert tensors["number"].item() == step and (value.to_local() == step).all()
        assert not os.path.exists(f"{folder}/seen") or step >= int(open(f"{folder}/seen").read())
    if rank == 0:
        tell("ready", step)
    while os.getppid() == parent:
        step += 1
        value.to_local().fill_(step)
        tensors["number"].fill_(step)
        checkpoints.save(step, tensors, {"step": step})
        value.to_local().fill_(-1)
        if step % 3 == 0:
            checkpoints.finish()
            if rank == 0:
                tell("seen", step)
        checkpoints.poll()

begun = []
for turn in range(count):
    pids = [start(rank, turn) for rank in range(2)]
    try:
        end = time.monotonic() + 60
        while not os.path.exists(f"{folder}/ready"):
            assert time.monotonic() < end, "never ready"
            time.sleep(0.005)
        begun.append(int(open(f"{folder}/ready").read()))
        os.unlink(f"{folder}/ready")
        time.sleep(random.Random(turn).uniform(0.02, 0.3))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
print(*begun)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, COUNT])
def test_a_kill_at_any_moment_leaves_a_complete_checkpoint(tmp_path: Path, kills: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), str(kills)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    begun = list(map(int, done.stdout.split()))
    assert begun == sorted(begun), done.stderr
    assert begun[0] == 0
    assert begun[-1] > 0, done.stderr
    assert len(set(begun)) > kills // 2, "most runs came further"
