"""The model of a run, its moving average and its optimizer: built, distributed, updated.

Axes: N samples of one forward pass on one rank, C classes, S pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from swag_models.models import build
from swag_models.preprocess import Transform
from swag_models.publish import save
from swag_models.recipe.config import Run
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.training.classes import Classes, weigh_classes
from swag_models.recipe.training.distributed import (
    DistContext,
    accumulate_gradients,
    average_statistics,
    distribute_model,
    sync_batch_norm,
)
from swag_models.recipe.training.estimate import (
    check_batch_memory,
    check_train_sizes,
    count_step_flops,
)
from swag_models.recipe.training.losses import compute_losses, make_targets, mix
from swag_models.recipe.training.model import make_model
from swag_models.recipe.training.optimizer import make_average, make_optimizer, update_average
from swag_models.spec import ModelSpec

StateT = TypeVar("StateT", bound="TrainState")

AUTOCAST_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_train_state(run: Run, classes: Classes, dist: DistContext) -> "TrainState":
    """Build the model of a run, its average and its optimizer, distributed over all ranks.

    Raises:
        ConfigError: the settings do not fit the architecture, the initial weights or the data.
    """
    check_batch_memory(run, dist.world_size)
    check_train_sizes(run)
    torch.manual_seed(run.seed)  # the same initial weights on all ranks
    class_weights = weigh_classes(run.objective, classes)
    model, spec = make_model(run, classes)
    model.set_grad_checkpointing(run.engine.grad_checkpointing)
    return assemble_state(TrainState, run, dist, model, spec, class_weights=class_weights)


def assemble_state(
    kind: type[StateT],
    run: Run,
    dist: DistContext,
    model: nn.Module,
    spec: ModelSpec,
    *,
    select_trained: Callable[[nn.Module], nn.Module] = lambda model: model,
    **fields: Any,
) -> StateT:
    """Move a model to this rank, distribute it, and make its average and its optimizer.

    Args:
        kind: class of the state.
        run: the settings.
        dist: this process.
        model: what a checkpoint stores.
        spec: of the model that is published.
        select_trained: returns the part of `model` that a training step calls.
        **fields: further fields of `kind`.
    """
    if run.engine.sync_bn:
        model = sync_batch_norm(model, dist)
    if run.engine.channels_last and run.engine.parallel != "fsdp":
        # FSDP2 shards contiguous weights only
        model.to(memory_format=torch.channels_last)
    model.to(dist.device)
    average = make_average(model, run.ema) if run.ema else None
    distributed = distribute_model(
        select_trained(model),
        run.engine,
        dist,
        average=select_trained(average.module) if average else None,
    )
    precision, device = run.engine.precision, dist.device.type
    return kind(
        run=run,
        dist=dist,
        spec=spec,
        transform=Transform(spec.preprocess),
        model=model,
        average=average,
        distributed=distributed,
        forward=compile_model(distributed, run) if run.engine.compile else distributed,
        optimizer=make_optimizer(model, run.optimizer, run.lr),
        scaler=torch.amp.GradScaler(device, enabled=precision == "fp16"),
        # Weights, gradients and norms stay float32 and autocast casts the products, under FSDP2
        # too: one rule for all engines.
        autocast=torch.autocast(device, AUTOCAST_DTYPES[precision], enabled=precision != "fp32"),
        **fields,
    )


def compile_model(model: nn.Module, run: Run) -> Callable[[Tensor], Any]:
    """Compile a model for the image sizes of a run."""
    if (count := len(run.train_sizes)) == 1:
        return torch.compile(model)
    # One graph for each size: with free sizes a graph is slower. torch keeps 8 by default.
    from torch._dynamo import config

    config.cache_size_limit = max(config.cache_size_limit, 2 * count)
    return torch.compile(model, dynamic=False)


@dataclass(frozen=True)
class TrainState:
    """The tensors that a run trains, and what changes them.

    What a step feeds to the model and what its loss is are methods, which subclasses replace.

    Attributes:
        run: the settings.
        dist: this process.
        spec: of the model.
        transform: from uint8 images to the model's input.
        model: the bare model, whose parameters are sharded under FSDP2.
        average: the moving average of the weights, if the run has one.
        distributed: the model whose backward pass averages gradients over the ranks.
        forward: `distributed`, compiled if the run asks for it.
        optimizer: of the trainable parameters of `model`.
        scaler: of the loss; does nothing unless the precision is "fp16".
        autocast: context of a forward pass.
        class_weights: as for `make_targets`.
    """

    run: Run
    dist: DistContext
    spec: ModelSpec
    transform: Transform
    model: nn.Module
    average: AveragedModel | None
    distributed: nn.Module
    forward: Callable[[Tensor], Any]
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    autocast: torch.autocast
    class_weights: Sequence[float] | None = field(default=None, kw_only=True)

    @property
    def final_model(self) -> nn.Module:
        """The model that is evaluated and published."""
        return self.average.module if self.average else self.model

    def count_flops(self) -> int:
        """Operations of a training step for one image, without recomputation."""
        # a backward pass costs two forward passes
        passes = 1 if self.run.trainable == "head" else 3
        return passes * count_step_flops(self.run, self.spec)

    @property
    def local_batch_size(self) -> int:
        """Samples of this rank in a step; `open_train_loader` rejects sizes with a remainder."""
        return self.run.batch_size // self.dist.world_size

    @property
    def micro_batch_size(self) -> int:
        """Samples that go through the model at once."""
        return min(self.run.engine.micro_batch or self.local_batch_size, self.local_batch_size)

    def publish(self, folder: Path, weights: Mapping[str, Any], **details: Any) -> None:
        """Write the model as a folder.

        Args:
            folder: created if missing.
            weights: a state dict of `final_model`, on the CPU.
            **details: as for `publish.save`.
        """
        # The weights are gathered already: a model on the meta device takes them without a copy.
        with torch.device("meta"):
            model = build(
                self.spec.config,
                num_classes=self.spec.num_classes,
                image_size=self.run.image_size,
                merge_tokens=self.run.merge_tokens,
                global_pool=self.spec.global_pool,
            )
        model.load_state_dict(weights, assign=True)
        model.spec = self.spec
        save(model, folder, **details)

    def collect_tensors(self) -> dict[str, Any]:
        """The tensors of a checkpoint, not copied; see the function of this name."""
        average = self.average.module if self.average else None
        return collect_tensors(self.model, self.optimizer, average)

    def restore_tensors(self, tensors: dict[str, Any]) -> None:
        """The inverse of `collect_tensors`."""
        average = self.average.module if self.average else None
        restore_tensors(tensors, self.model, self.optimizer, average)

    def compute_gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run forward and backward passes over this rank's samples, a micro batch at a time.

        Returns:
            The mean loss of this rank's samples, and the norm of the gradients of all ranks.
        """
        count, size = self.local_batch_size, self.micro_batch_size
        loss = torch.zeros((), device=self.dist.device)
        for start in range(0, count, size):
            part = batch.select(slice(start, start + size))
            with accumulate_gradients(self.distributed, start + size < count):
                mean = self.compute_losses(part).sum() / count
                self.scaler.scale(mean).backward()  # type: ignore[no-untyped-call]
            loss += mean.detach()
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm(
            [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        )
        return loss, norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2's DTensor

    def compute_losses(self, batch: Batch) -> Tensor:
        """Run the forward pass over a micro batch; returns the loss of each sample (N,)."""
        run, device = self.run, self.dist.device
        num_classes = self.spec.num_classes
        assert num_classes is not None  # `make_model` sets it
        inputs = self.prepare_inputs(batch.images.to(device, non_blocking=True))
        targets = make_targets(
            batch.classes, run.objective.kind, num_classes, self.class_weights
        ).to(device, non_blocking=True)
        inputs, targets = mix(inputs, targets, run.objective.mixup, torch.default_generator)
        with self.autocast:
            logits = self.forward(self.order_channels(inputs))  # (N, C)
        return compute_losses(run.objective, logits, targets)

    def prepare_inputs(self, pixels: Tensor) -> Tensor:
        """Make the input of `forward` from what the loader sends: uint8 pixels (N, 3, S, S)."""
        return self.transform.normalise(pixels)

    def order_channels(self, images: Tensor) -> Tensor:
        """Give images (N, 3, S, S) the memory format of the run."""
        if self.run.engine.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def update_weights(self, norm: Tensor, *, copy_average: bool) -> None:
        """Update weights, batch statistics and moving average from the gradients.

        Args:
            norm: of the gradients, to clip them.
            copy_average: replace the average by the weights.
        """
        if clip_norm := self.run.optimizer.clip_norm:
            clip_grads_with_norm_(self.model.parameters(), clip_norm, norm)
        self.scaler.step(self.optimizer)
        average_statistics(self.model, self.dist)
        if self.average:
            update_average(self.average, self.model, copy=copy_average)

    def end_step(self) -> None:
        """Update the loss scale and drop the gradients, after a step taken or skipped."""
        self.scaler.update()
        self.optimizer.zero_grad()


def collect_tensors(
    model: nn.Module, optimizer: Optimizer | None = None, average: nn.Module | None = None
) -> dict[str, Any]:
    """Collect weights and optimizer state by the names of parameters. Tensors are not copied.

    The names are the same for plain modules, DDP and FSDP2, so that a run can change between them.

    Args:
        model: the model.
        optimizer: of its parameters. If it is new, it gets its state by a step that changes no
            weight, so that `Checkpointer.load` has tensors to fill.
        average: a copy of the model with averaged weights.
    """
    if optimizer is None:
        tensors: dict[str, Any] = {"model": get_model_state_dict(model)}
    else:
        weights, state = get_state_dict(model, optimizer)
        tensors = {"model": weights, "optimizer": state}
    return tensors if average is None else {**tensors, "average": get_model_state_dict(average)}


def restore_tensors(
    tensors: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    average: nn.Module | None = None,
) -> None:
    """Load collected tensors into modules and optimizer; the inverse of `collect_tensors`."""
    if optimizer is None:
        set_model_state_dict(model, tensors["model"])
    else:
        set_state_dict(
            model,
            optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizer"],
        )
    if average is not None:
        set_model_state_dict(average, tensors["average"])
