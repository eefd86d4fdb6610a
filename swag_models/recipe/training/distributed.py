"""Processes of a run (ranks) and the model distributed over them: DDP, FSDP2, batch norm.

torch.distributed is initialised with a single process too, so that checkpoints and sums have one
code path for any number of ranks.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from swag_models.errors import ConfigError, OutputError, SwagModelsError, TrainingError
from swag_models.formatting import count_noun, describe_error, list_names
from swag_models.models.layers import Blocks
from swag_models.recipe.config import Engine
from swag_models.runtime import import_extra, read_environment

T = TypeVar("T")
logger = logging.getLogger("swag_models")

# For ranks that wait while rank 0 computes, perhaps for hours. A rank that ends closes its
# connections, which ends the others at once.
LONGEST_WAIT = timedelta(days=30)


@dataclass(frozen=True)
class DistContext:
    """This process among those of the run.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        device: where this process trains.
        main_group: process group that sends results of rank 0, with a timeout of `LONGEST_WAIT`
            instead of torch's 30 minutes; None for the default group.
    """

    rank: int
    world_size: int
    device: torch.device
    main_group: torch_dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and messages."""
        return self.rank == 0

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Sum each number over all ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        torch_dist.all_reduce(total)
        return list(total.tolist())

    def gather(self, value: Any) -> list[Any]:
        """Collect the values of all ranks, ordered by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch_dist.all_gather_object(values, value)
        return values

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Call `work` on rank 0 only; see `run_on_main`."""
        if self.world_size > 1:
            return run_on_main(work, self.main_group)
        result, error = _catch_error(work)
        if error:
            raise error
        return cast(T, result)


SINGLE_PROCESS = DistContext(0, 1, torch.device("cpu"))  # needs no process group


def run_on_main(
    work: Callable[[], T], group: torch_dist.ProcessGroup | None = None, path: Path | None = None
) -> T:
    """Call a function on rank 0 only.

    Args:
        work: takes no arguments.
        group: process group of all ranks that sends the result; by default that of training.
        path: what the function writes, for the message of a disk error.

    Returns:
        Its result, on every rank.

    Raises:
        SwagModelsError: its error, on every rank, so that none waits for a failed rank 0.
    """
    answer: list[Any] = [None, None]
    if torch_dist.get_rank() == 0:
        answer[:] = _catch_error(work, path)
    torch_dist.broadcast_object_list(answer, src=0, group=group)
    result, error = answer
    if error:
        raise error
    return cast(T, result)


def _catch_error(
    work: Callable[[], T], path: Path | None = None
) -> tuple[T | None, SwagModelsError | None]:
    """Call `work`; return its result and None, or None and the error that `run_on_main` raises."""
    try:
        return work(), None
    except SwagModelsError as error:
        return None, error
    except OSError as error:
        name = path or error.filename or "a file"
        return None, OutputError(f"{name} cannot be written: {describe_error(error)}")


@contextmanager
def init_distributed(device: torch.device | None = None) -> Iterator[DistContext]:
    """Initialise torch.distributed for the `with` block.

    The variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe the ranks, as
    torchrun sets them. Without them this process is the only rank.

    Args:
        device: the CPU or a GPU; by default a GPU if there is one.

    Raises:
        ConfigError: the ranks cannot connect to each other, or outnumber the GPUs.
        TrainingError: the memory of a GPU is too small, or another rank was lost, in the block.
        OutputError: a worker process of a DataLoader was killed in the block.
    """
    rank, world_size = read_environment("RANK", 0), read_environment("WORLD_SIZE", 1)
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    elif device is None and torch.cuda.is_available():
        num_gpus = torch.cuda.device_count()
        local_rank = read_environment("LOCAL_RANK", rank % num_gpus)
        local_size = read_environment("LOCAL_WORLD_SIZE", min(world_size, local_rank + 1))
        if local_size > num_gpus:
            raise ConfigError(
                f"{count_noun(local_size, 'process')} on {count_noun(num_gpus, 'GPU')}, but each "
                "needs one; start "
                f"{num_gpus} on this machine, or set CUDA_VISIBLE_DEVICES= to train on its CPU"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    device = device or torch.device("cpu")
    # NCCL for tensors on GPUs; Gloo for everything else, objects and sums of floats included.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        if "RANK" in os.environ:
            torch_dist.init_process_group(backend, rank=rank, world_size=world_size)
        else:
            store = torch_dist.HashStore()  # type: ignore[attr-defined]
            torch_dist.init_process_group(backend, store=store, rank=0, world_size=1)
    except (ValueError, torch_dist.DistError) as error:
        reason = describe_error(error)
        raise ConfigError(
            f"rank {rank} cannot connect to the other ranks ({reason}); "
            "use torchrun, or set MASTER_ADDR and MASTER_PORT to a free port of rank 0"
        ) from None
    try:
        with _explain_errors(rank, device):
            main_group: Any = None
            if world_size > 1:
                main_group = torch_dist.new_group(timeout=LONGEST_WAIT, backend="gloo")
            yield DistContext(rank, world_size, device, main_group)
            torch_dist.barrier()  # a rank that leaves early would break the others' connections
    finally:
        torch_dist.destroy_process_group()


@contextmanager
def _explain_errors(rank: int, device: torch.device) -> Iterator[None]:
    """Turn torch's errors that have a cause outside of the program into one line."""
    try:
        yield
    except ValueError as error:
        # in training, a batch norm of one pixel of one image has no variance
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "a batch norm gets one value per channel, because the last feature map of this "
            "image_size has one pixel and a rank processes one image at a time; increase "
            "image_size, or engine.micro_batch or batch_size"
        ) from None
    except RuntimeError as error:
        # torch has no class for the error of the CPU, which may come from a worker process
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise TrainingError(
                f"out of memory on {device} (rank {rank}); process fewer images at once "
                "(engine.micro_batch in training, batch_size= in an evaluation), "
                "or train with engine.grad_checkpointing=true"
            ) from None
        # torch raises this one wherever the main thread is when the signal of a dead worker comes
        if str(error).startswith("DataLoader worker"):
            raise OutputError(
                "a worker process that reads images was killed, perhaps because memory or /dev/shm "
                "is full; set fewer engine.workers or provide more of either, then rerun to resume"
            ) from None
        if isinstance(error, torch_dist.DistError) or "gloo" in str(error):
            raise TrainingError(
                f"rank {rank} lost contact with another rank; see that rank's log, "
                "then rerun to resume"
            ) from None
        raise


def distribute_model(
    model: nn.Module, engine: Engine, dist: DistContext, average: nn.Module | None = None
) -> nn.Module:
    """Distribute a model over all ranks.

    FSDP2 changes the modules themselves, block by block. DDP wraps the model, which keeps its
    weights.

    Args:
        model: on the device of this rank.
        engine: `parallel` chooses "ddp" or "fsdp".
        dist: this process.
        average: a copy of the model, sharded as well if the model is.

    Returns:
        The module to call in training; its gradients are averaged over all ranks.
    """
    if engine.parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for root in filter(None, (model, average)):
            for module in root.modules():
                if isinstance(module, Blocks):
                    for block in module.children():
                        fully_shard(block)
            fully_shard(root)
        return model
    if dist.world_size == 1:
        return model
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[dist.device] if dist.device.type == "cuda" else None
    )


def sync_batch_norm(model: nn.Module, dist: DistContext) -> nn.Module:
    """Make batch norms use the statistics of all ranks' batches; on GPUs only, as torch requires.

    On CPUs a warning says that each rank uses its own batch.

    Raises:
        ConfigError: a norm has statistics of the batch and no synchronised form.
    """
    norms = find_norms(model)
    if dist.world_size == 1 or not norms:
        return model
    if dist.device.type == "cpu":
        if dist.is_main:
            logger.warning(
                "engine.sync_bn has no effect on CPUs: each rank normalises by its own batch"
            )
        return model
    kinds: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    if any(type(norm).__module__.startswith("timm.") for norm in norms):
        layers: Any = import_extra("timm.layers", "timm", "a timm: student")
        # torch's conversion would drop the activation that this norm contains
        kinds, convert = (*kinds, layers.BatchNormAct2d), layers.convert_sync_batchnorm
    # by exact type: a subclass may compute more than the synchronised norm that replaces it
    if others := sorted({type(norm).__name__ for norm in norms if type(norm) not in kinds}):
        raise ConfigError(
            f"engine.sync_bn is true, but the model has norms that cannot be synchronised: "
            f"{list_names(others)}; set engine.sync_bn=false, and each rank normalises by its batch"
        )
    return cast(nn.Module, convert(model))


def find_norms(model: nn.Module) -> list[nn.Module]:
    """Find the norms with running statistics that are not synchronised, by their buffers' names.

    These are batch norms of any dimension, and norms of timm that are no batch norms for torch.
    """
    return [
        module
        for module in model.modules()
        if not isinstance(module, nn.SyncBatchNorm) and _list_statistics(module)
    ]


def _list_statistics(norm: nn.Module) -> list[Tensor]:
    """The running statistics of a norm, without its counter of batches."""
    return [
        buffer
        for name, buffer in norm.named_buffers(recurse=False)
        if name.startswith("running_") and buffer.is_floating_point()
    ]


@torch.no_grad()
def average_statistics(model: nn.Module, dist: DistContext) -> None:
    """Average the running statistics of all norms in training mode over all ranks.

    Without `sync_batch_norm` each rank has its own. They must be equal on all ranks, because a
    checkpoint takes replicated tensors from any rank and an evaluation needs one model.
    """
    if dist.world_size == 1:
        return
    norms = [norm for norm in find_norms(model) if norm.training]
    buffers = [buffer for norm in norms for buffer in _list_statistics(norm)]
    if not buffers:
        return
    # one message for all norms: a RegNetY has hundreds
    means = torch.cat([buffer.flatten() for buffer in buffers])
    torch_dist.all_reduce(means)
    means /= dist.world_size
    for buffer, mean in zip(buffers, torch.split(means, [buffer.numel() for buffer in buffers])):
        buffer.copy_(mean.view_as(buffer))


def accumulate_gradients(model: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
    """Context of a backward pass; if `enabled`, gradients are only added up on this rank.

    Of the parts of a batch, only the last one needs to average gradients over the ranks.
    """
    if set_sync := getattr(model, "set_requires_gradient_sync", None):  # FSDP2's
        set_sync(not enabled)
    elif enabled and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def collect_weights(model: nn.Module) -> dict[str, Any]:
    """Gather all weights of a model, sharded or not, on the CPU of rank 0; empty on other ranks."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
