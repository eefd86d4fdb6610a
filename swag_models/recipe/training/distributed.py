"""The ranks of a run: one process, or as many as `torchrun` or a scheduler started, and a model spread over them.

torch.distributed is always there, with one rank too, so that nothing above has to ask.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from swag_models.errors import ConfigError, OutputError, SwagModelsError, TrainingError
from swag_models.models import Backbone
from swag_models.models.layers import Blocks
from swag_models.recipe.config import Engine

T = TypeVar("T")
logger = logging.getLogger("swag_models")


@dataclass(frozen=True)
class DistContext:
    """This process among those of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_sum(self, *values: float) -> list[float]:
        """The sums of these numbers over all ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return list(total.tolist())

    def gather(self, value: Any) -> list[Any]:
        """What every rank gave, in order, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def run_on_main(self, work: Callable[[], T]) -> T:
        """What the first rank alone does, and its answer on every rank; or its error."""
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = work()
            except SwagModelsError as error:
                answer[1] = error
            except OSError as error:
                answer[1] = OutputError(
                    f"{error.filename or 'a file'} cannot be written: {error.strerror or error}"
                )
        dist.broadcast_object_list(answer)
        if answer[1]:
            raise answer[1]
        return answer[0]


@contextmanager
def init_distributed() -> Iterator[DistContext]:
    """Join the other ranks, as RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT tell; alone without them.

    Tensors go by NCCL on GPUs, one for each rank, and by Gloo on processors; what is not a tensor of a GPU always by Gloo.
    ConfigError if they do not meet; TrainingError if a GPU's memory is too little or another rank is lost inside, OutputError
    if a process of a DataLoader is killed.
    """
    rank, world_size = (
        int(os.environ.get(name, alone)) for name, alone in (("RANK", 0), ("WORLD_SIZE", 1))
    )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count()))
        )
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        if "RANK" in os.environ:
            dist.init_process_group(backend, rank=rank, world_size=world_size)
        else:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
    except (ValueError, dist.DistError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"rank {rank} cannot meet the others ({reason}); "
            "use torchrun, or set MASTER_ADDR and MASTER_PORT to a free port of rank 0"
        ) from None
    try:
        yield DistContext(rank, world_size, device)
        dist.barrier()  # else a rank may leave while another still needs it
    except torch.OutOfMemoryError:
        raise TrainingError(
            f"the memory of {device} is too little (rank {rank}); take fewer pictures at once (engine.micro_batch in training, "
            "--batch-size in an evaluation), or train with engine.grad_checkpointing=true"
        ) from None
    except RuntimeError as error:
        # Raised anywhere, since torch hears of it by a signal.
        if str(error).startswith("DataLoader worker"):
            raise OutputError(
                "a process that reads pictures was killed, perhaps for its memory, or because /dev/shm is too small; set fewer "
                "engine.workers, or give more of either, and run it again"
            ) from None
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise TrainingError(
                f"rank {rank} lost another, whose own last words say why; run it again to go on"
            ) from None
        raise
    finally:
        dist.destroy_process_group()


def spread(model: nn.Module, engine: Engine, ranks: DistContext, *others: nn.Module) -> nn.Module:
    """The model to call in training, whose gradients are the mean over all ranks. `others` are sharded like it, if it is.

    FSDP2 changes the modules themselves, block by block; DDP wraps the model, which keeps its weights.
    """
    if engine.parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for each in (model, *others):
            for module in each.modules():
                if isinstance(module, Blocks):
                    for block in module.children():
                        fully_shard(block)
            fully_shard(each)
        return model
    if ranks.world_size == 1:
        return model
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[ranks.device] if ranks.device.type == "cuda" else None
    )


def sync_batch_norm(model: Backbone, ranks: DistContext) -> Backbone:
    """The model with batch statistics over all ranks, where there are GPUs, which torch needs for it."""
    if ranks.world_size == 1 or not any(
        isinstance(module, nn.BatchNorm2d) for module in model.modules()
    ):
        return model
    if ranks.device.type == "cpu":
        if ranks.is_main:
            logger.warning(
                "batch statistics are those of each rank: torch synchronises them on GPUs only"
            )
        return model
    return cast(Backbone, nn.SyncBatchNorm.convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]


@torch.no_grad()
def average_statistics(model: nn.Module, ranks: DistContext) -> None:
    """Give every rank the mean of all ranks' running batch statistics, which would else be its own without `sync_batch_norm`.

    A checkpoint takes what is alike from any rank, and an evaluation needs the same model on all.
    """
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d) and each.training]
    if ranks.world_size == 1 or not norms:
        return
    buffers = [buffer for norm in norms for buffer in norm.buffers() if buffer.is_floating_point()]
    whole = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(whole)
    whole /= ranks.world_size
    for buffer, mean in zip(buffers, torch.split(whole, [buffer.numel() for buffer in buffers])):
        buffer.copy_(mean.view_as(buffer))


def hold_gradients(model: nn.Module, hold: bool) -> AbstractContextManager[Any]:
    """While gradients of several parts are added up: all but the last need not travel."""
    if set_sync := getattr(model, "set_requires_gradient_sync", None):
        set_sync(not hold)
    elif hold and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def collect_weights(model: nn.Module) -> dict[str, Any]:
    """All weights of a model, sharded or not, on the processor of the first rank; nothing on the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
