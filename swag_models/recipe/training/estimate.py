"""What a run will take before it is begun: steps, operations, days, and the memory of each GPU.

Axes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from swag_models.catalog import MODELS
from swag_models.errors import ConfigError, suggest_names
from swag_models.models import Backbone, build
from swag_models.models.layers import Blocks
from swag_models.publish.model_info import count_flops
from swag_models.recipe.config import Run
from swag_models.spec import ModelSpec, Preprocess

FLOAT, HALF = 4, 2  # bytes
# Dense operations a second of an H100 SXM: NVIDIA's data sheet. That of float32 is without tensor cores.
PEAK_FLOPS = {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12}
PEAK_SHARE = 0.4  # of the peak that training reaches (our choice; well-tuned training of large models reaches 0.3 to 0.5)
STATES = {"sgd": 1, "adamw": 2}  # numbers that the optimizer keeps for each weight


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU at the worst moment, estimated.

    weights, gradients, optimizer, ema: float32; shared among the GPUs under "fsdp".
    casts: the weights in half precision, which autocast keeps until the step's end.
    activations: what is kept for the backward pass, of all samples that a GPU takes at once; `sample` is that of one of them.
    layer: input and output of the largest layer, and their gradients unless the trunk is frozen.

    Not counted: work space of kernels, buffers of communication, blocks that FSDP gathers, and fragmentation.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    casts: int
    activations: int
    layer: int
    sample: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values()) - self.sample


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    samples: over all steps. trained: of the parameters. flops: of one sample, forward and backward. passes: how many times
    the forward pass's operations that is. throughput: images a second on each GPU. basis: where that number comes from.
    """

    steps: int
    samples: int
    parameters: int
    trained: int
    passes: int
    flops: int
    gpus: int
    throughput: float
    basis: str
    days: float
    memory: Memory


class Footprint(NamedTuple):
    """Bytes for one sample: kept for the backward pass, and input and output of the largest layer."""

    activations: int
    layer: int


def count_steps(run: Run, samples_per_epoch: int) -> int:
    """The optimizer's steps in a run, `samples_per_epoch` being the samples in an epoch: to the nearest step, at least one."""
    if run.steps is not None:
        return run.steps
    assert run.epochs is not None
    return max(1, round(run.epochs * samples_per_epoch / run.batch_size))


def plan(
    run: Run,
    samples_per_epoch: int,
    *,
    num_classes: int,
    gpus: int = 1,
    throughput: float | None = None,
    flops: float | None = None,
) -> Plan:
    """What a run takes on some GPUs, `samples_per_epoch` being the samples in an epoch.

    Operations are those of torch's counter for a forward pass, and the backward pass counts as two; gradient checkpointing adds
    one, and a frozen trunk has no backward pass. Neither needs memory or a GPU: the model is on the meta device, or fake.

    throughput: images a second on each GPU; None for PEAK_SHARE of `flops`, the operations a second that a GPU can do at most,
    by default those of an H100. ConfigError names a value that cannot be.
    """
    for name, value in {
        "samples_per_epoch": samples_per_epoch,
        "gpus": gpus,
        "throughput": throughput,
        "flops": flops,
    }.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is {value}; give a positive number")
    if gpus > run.batch_size:
        raise ConfigError(
            f"gpus is {gpus}; a batch of {run.batch_size} samples keeps at most {run.batch_size} busy"
        )
    spec = replace(
        find_arch(run.arch),
        preprocess=Preprocess(run.image_size),
        num_classes=num_classes,
        in_chans=3,
        global_pool=None,
    )
    model = _build(spec, run)
    parameters = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    passes = 1 if run.trainable == "head" else 4 if run.engine.grad_checkpointing else 3
    operations = passes * count_flops(spec)
    if throughput is None:
        peak, whose = (
            (flops, "given")
            if flops
            else (PEAK_FLOPS[run.engine.precision], f"an H100's in {run.engine.precision}")
        )
        throughput = PEAK_SHARE * peak / operations
        basis = f"assumed: {PEAK_SHARE:.0%} of {peak / 1e12:g} TFLOP/s ({whose})"
    else:
        basis = "given"
    samples = count_steps(run, samples_per_epoch) * run.batch_size
    return Plan(
        steps=count_steps(run, samples_per_epoch),
        samples=samples,
        parameters=parameters,
        trained=trained,
        passes=passes,
        flops=operations,
        gpus=gpus,
        throughput=throughput,
        basis=basis,
        days=samples / (throughput * gpus) / 86400,
        memory=_estimate_memory(run, parameters, trained, measure_footprint(model, run), gpus),
    )


def measure_footprint(model: Backbone, run: Run) -> Footprint:
    """What one more sample in a batch adds: the difference between batches of 4 and 2, which leaves out all that is constant.

    The model, on the meta device, is run on fake tensors as on a processor, whose autocast keeps what a GPU's keeps.
    """
    small, large = (_measure_batch(model, run, count) for count in (2, 4))
    return Footprint((large.activations - small.activations) // 2, (large.layer - small.layer) // 2)


def find_arch(arch: str) -> ModelSpec:
    """A spec of the catalog with this architecture; ConfigError suggests the nearest names."""
    specs = {spec.arch: spec for spec in MODELS}
    if arch not in specs:
        raise ConfigError(suggest_names("arch", arch, specs))
    return specs[arch]


def _build(spec: ModelSpec, run: Run) -> Backbone:
    """The model that a run trains, on the meta device."""
    with torch.device("meta"):
        model = build(
            spec.config,
            num_classes=spec.num_classes,
            image_size=run.image_size,
            drop_path_rate=run.drop_path_rate,
        )
    if run.trainable == "head":
        model.freeze()
    return model


def _estimate_memory(
    run: Run, parameters: int, trained: int, footprint: Footprint, gpus: int
) -> Memory:
    shared = gpus if run.engine.parallel == "fsdp" else 1
    share = -(-run.batch_size // gpus)
    count = min(run.engine.micro_batch or share, share)
    return Memory(
        weights=FLOAT * parameters // shared,
        gradients=FLOAT * trained // shared,
        optimizer=FLOAT * STATES[run.optimizer.kind] * trained // shared,
        ema=FLOAT * parameters // shared if run.ema else 0,
        casts=0 if run.engine.precision == "fp32" else HALF * trained,
        activations=count * footprint.activations,
        layer=count * footprint.layer * (1 if run.trainable == "head" else 2),
        sample=footprint.activations,
    )


def _measure_batch(model: Backbone, run: Run, count: int) -> Footprint:
    """The same of a whole batch, constants included."""
    kept: dict[int, Any] = {}  # storages by address; held, so that none is given twice
    layer = 0
    spans: list[
        tuple[Any, int, int]
    ] = []  # of each block, the storage of its input, and which of `kept` are its own

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, storage)
        return tensor

    def begin(_: nn.Module, inputs: tuple[Tensor]) -> None:
        spans.append((inputs[0].untyped_storage(), len(kept), len(kept)))

    def end(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        spans[-1] = (*spans[-1][:2], len(kept))

    def compare(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal layer
        layer = max(layer, inputs[0].nbytes + output.nbytes)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, Blocks):
                for block in module:
                    stack.callback(block.register_forward_pre_hook(begin).remove)
                    stack.callback(block.register_forward_hook(end).remove)
            elif not list(module.children()):
                stack.callback(module.register_forward_hook(compare).remove)
        shapes = {
            name: (tensor.shape, tensor.dtype, tensor.requires_grad)
            for name, tensor in model.state_dict(keep_vars=True).items()
        }
        stack.enter_context(FakeTensorMode())
        stack.enter_context(saved_tensors_hooks(keep, lambda tensor: tensor))
        stack.enter_context(
            torch.autocast("cpu", torch.bfloat16, enabled=run.engine.precision != "fp32")
        )
        fakes = {
            name: torch.empty(shape, dtype=dtype).requires_grad_(grad)
            for name, (shape, dtype, grad) in shapes.items()
        }
        logits = functional_call(
            model, fakes, torch.empty(count, model.in_chans, *model.image_size)
        )
        logits.float().log_softmax(dim=-1)
    if not run.engine.grad_checkpointing:
        return Footprint(_sum_bytes(kept), layer)
    items = list(kept.items())
    inner = [dict(items[start:stop]) for _, start, stop in spans]
    lasting = {key: storage for key, storage in items if not any(key in block for block in inner)}
    lasting |= {
        storage._cdata: storage for storage, _, _ in spans
    }  # a block keeps its input, until it runs again
    again = max(_sum_bytes(block, {span[0]._cdata}) for block, span in zip(inner, spans))
    return Footprint(_sum_bytes(lasting) + again, layer)


def _sum_bytes(storages: Mapping[int, Any], without: Collection[int] = ()) -> int:
    return sum(storage.nbytes() for key, storage in storages.items() if key not in without)
