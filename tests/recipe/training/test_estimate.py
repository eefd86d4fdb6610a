"""Plans against what really happens: torch's counter over a real backward pass, real optimizers, real saved tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tiny import CONFIGS, IMAGE_SIZE, images, tiny
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from swag_models.api import SPECS, load_model
from swag_models.errors import ConfigError
from swag_models.models import Backbone, build
from swag_models.models.layers import Blocks
from swag_models.recipe.config import EMA, Engine, Run, change
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.estimate import Footprint, count_steps, measure_footprint, plan

RUN = Run(arch="vit_nano", image_size=32, batch_size=64, epochs=2)
SGD = change(RUN, ["optimizer.kind=sgd"])
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16"])
FAMILIES = pytest.mark.parametrize("family", CONFIGS)

pytestmark = pytest.mark.usefixtures("one_thread")


def nano() -> Backbone:
    return load_model("vit_nano_hashtags", pretrained=False, num_classes=10, image_size=32).train()


def sum_saved(run: Callable[[], Tensor], precision: str) -> int:
    """Bytes of the storages that a real forward pass keeps for the backward one."""
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        output = run()
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def slope(run: Callable[[int], Tensor], precision: str) -> int:
    """Bytes that are kept for one more sample in a batch."""
    return (sum_saved(lambda: run(7), precision) - sum_saved(lambda: run(2), precision)) // 5


def count_saved(model: Backbone, precision: str) -> int:
    """The same of a real model and its loss."""
    return slope(lambda count: model(images(count)).float().log_softmax(dim=-1), precision)


def run_block(block: torch.nn.Module, x: Tensor, count: int) -> Tensor:
    """Some samples of a batch, whose storage is the whole batch's and so no part of a slope."""
    return block(x[:count].requires_grad_())


def estimate(family: str, run: Run, freeze: bool = False) -> Footprint:
    with torch.device("meta"):
        model = build(CONFIGS[family], num_classes=10, image_size=IMAGE_SIZE)
    if freeze:
        model.freeze()
    return measure_footprint(model, run)


def test_eight_epochs_of_imagenet_are_20_000_steps() -> None:
    preset = get_preset("regnety_16gf_in1k")
    assert count_steps(preset.run, preset.samples_per_epoch) == 20_018  # told as 20,000
    assert (
        count_steps(change(preset.run, ["epochs=none", "steps=20000"]), preset.samples_per_epoch)
        == 20_000
    )


def test_steps_are_epochs_to_the_nearest_and_at_least_one() -> None:
    assert count_steps(RUN, 6400) == 200
    assert count_steps(replace(RUN, epochs=0.5), 6400) == 50
    assert count_steps(RUN, 6400 + 15) == 200
    assert count_steps(RUN, 6400 + 17) == 201
    assert count_steps(RUN, 3) == 1
    two = get_preset("vit_h14_hashtags")
    assert (
        abs(count_steps(two.run, two.samples_per_epoch) * two.run.batch_size - 10**10)
        < two.run.batch_size
    )


@pytest.mark.parametrize("name", ["vit_b16_in1k", "regnety_16gf_in1k"])
def test_operations_and_parameters_are_those_published(name: str) -> None:
    preset, spec = get_preset(name), SPECS[name]
    made = plan(preset.run, preset.samples_per_epoch, num_classes=preset.num_classes)
    assert made.parameters == made.trained == spec.num_params
    assert made.passes == 3
    assert made.flops / 6e9 == pytest.approx(spec.gmacs, abs=1e-3)
    assert (made.steps, made.samples) == (20_018, 20_018 * 512)


def test_three_forward_passes_are_what_training_takes() -> None:
    with FlopCounterMode(display=False) as counter:
        nano()(images(1, 32)).sum().backward()
    made = plan(RUN, 100, num_classes=10)
    assert counter.get_total_flops() == pytest.approx(
        made.flops, rel=0.05
    )  # attention's backward pass multiplies once more


def test_a_frozen_trunk_is_passed_once_and_checkpointing_makes_it_four_times() -> None:
    whole = plan(RUN, 100, num_classes=10)
    head = plan(replace(RUN, trainable="head"), 100, num_classes=10)
    again = plan(replace(RUN, engine=Engine(grad_checkpointing=True)), 100, num_classes=10)
    assert (head.flops * 3, again.flops * 3) == (whole.flops, whole.flops * 4)
    assert head.trained == 96 * 10 + 10
    assert head.parameters == whole.parameters
    assert head.memory.gradients == 4 * head.trained
    assert head.memory.activations < whole.memory.activations / 50
    assert again.memory.activations < whole.memory.activations / 2


@pytest.mark.parametrize("run", [RUN, SGD], ids=["adamw", "sgd"])
def test_weights_gradients_and_optimizer_are_those_of_a_real_step(run: Run) -> None:
    model = nano()
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters())
        if run.optimizer.kind == "adamw"
        else torch.optim.SGD(model.parameters(), momentum=0.9)
    )
    model(images(2, 32)).sum().backward()
    optimizer.step()
    memory = plan(run, 100, num_classes=10).memory
    states = [
        state
        for kept in optimizer.state.values()
        for state in kept.values()
        if torch.is_tensor(state) and state.ndim
    ]
    assert memory.optimizer == sum(state.nbytes for state in states)
    assert memory.weights == sum(weight.nbytes for weight in model.parameters())
    assert memory.gradients == sum(
        weight.grad.nbytes for weight in model.parameters() if weight.grad is not None
    )


@FAMILIES
@PRECISIONS
def test_activations_are_those_that_a_real_model_keeps(family: str, precision: str) -> None:
    model = tiny(family).train()
    expected = count_saved(model, precision)
    run = change(RUN, [f"engine.precision={precision}"])
    assert estimate(family, run).activations == expected


@FAMILIES
@PRECISIONS
def test_activations_of_a_checkpointed_model_are_inputs_and_one_block(
    family: str, precision: str
) -> None:
    model = tiny(family).train()
    entered: list[tuple[torch.nn.Module, Tensor]] = []
    blocks = [block for each in model.modules() if isinstance(each, Blocks) for block in each]
    hooks = [
        block.register_forward_pre_hook(
            lambda block, inputs: entered.append((block, inputs[0].detach()))
        )
        for block in blocks
    ]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(images(7))
    for hook in hooks:
        hook.remove()
    again = max(slope(partial(run_block, block, x), precision) for block, x in entered)
    model.set_grad_checkpointing()
    inputs = count_saved(model, precision)
    run = change(RUN, [f"engine.precision={precision}", "engine.grad_checkpointing=true"])
    assert estimate(family, run).activations == pytest.approx(inputs + again, rel=1e-3)
    assert (
        inputs < estimate(family, change(run, ["engine.grad_checkpointing=false"])).activations / 2
    )


@FAMILIES
def test_a_frozen_trunk_keeps_nothing_for_the_backward_pass(family: str) -> None:
    model = tiny(family)
    model.freeze()
    run = replace(RUN, trainable="head", engine=Engine(precision="fp32"))
    assert estimate(family, run, freeze=True).activations == count_saved(model.train(), "fp32")


@FAMILIES
def test_the_largest_layer_is_that_of_a_real_model(family: str) -> None:
    model, sizes = tiny(family).train(), []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda _, inputs, output: sizes.append(inputs[0].nbytes + output.nbytes)
            )
    model(images(3))
    assert estimate(family, replace(RUN, engine=Engine(precision="fp32"))).layer == max(sizes) // 3


def test_measuring_leaves_the_model_as_it_was() -> None:
    with torch.device("meta"):
        model = build(CONFIGS["regnet"], num_classes=10, image_size=IMAGE_SIZE)
    measure_footprint(model, RUN)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_memory_follows_the_layout() -> None:
    alone = plan(RUN, 100, num_classes=10, gpus=4).memory
    assert alone == plan(change(RUN, ["batch_size=16"]), 100, num_classes=10).memory
    shared = plan(change(RUN, ["engine.parallel=fsdp"]), 100, num_classes=10, gpus=4).memory
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(shared, name) == getattr(alone, name) // 4
    assert shared.activations == alone.activations == 16 * alone.sample
    assert (
        plan(change(RUN, ["engine.micro_batch=2"]), 100, num_classes=10, gpus=4).memory.activations
        == 2 * alone.sample
    )
    assert plan(change(RUN, ["engine.micro_batch=99"]), 100, num_classes=10, gpus=4).memory == alone
    assert plan(replace(RUN, ema=EMA()), 100, num_classes=10).memory.ema == alone.weights
    assert (alone.ema, alone.casts) == (0, alone.weights // 2)
    assert plan(change(RUN, ["engine.precision=fp32"]), 100, num_classes=10).memory.casts == 0
    parts = (
        alone.weights,
        alone.gradients,
        alone.optimizer,
        alone.ema,
        alone.casts,
        alone.activations,
        alone.layer,
    )
    assert alone.total == sum(parts)


def test_time_follows_the_throughput() -> None:
    given = plan(RUN, 6400, num_classes=10, gpus=2, throughput=10)
    assert (given.samples, given.basis) == (12_800, "given")
    assert given.days == pytest.approx(12_800 / 20 / 86400)
    assumed = plan(RUN, 6400, num_classes=10)
    assert assumed.throughput == pytest.approx(0.4 * 989e12 / assumed.flops)
    assert assumed.basis == "assumed: 40% of 989 TFLOP/s (an H100's in bf16)"
    slow = plan(RUN, 6400, num_classes=10, flops=100e12)
    assert slow.throughput == pytest.approx(0.4 * 100e12 / slow.flops)
    assert slow.basis == "assumed: 40% of 100 TFLOP/s (given)"
    assert (
        "67 TFLOP/s (an H100's in fp32)"
        in plan(change(RUN, ["engine.precision=fp32"]), 6400, num_classes=10).basis
    )


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ([], {"gpus": 0}, "gpus is 0; give a positive number"),
        ([], {"gpus": 65}, "gpus is 65; a batch of 64 samples keeps at most 64 busy"),
        ([], {"samples_per_epoch": 0}, "samples_per_epoch is 0; give a positive number"),
        ([], {"throughput": -1.0}, "throughput is -1.0; give a positive number"),
        ([], {"flops": float("nan")}, "flops is nan; give a positive number"),
        ([], {"num_classes": 0}, "num_classes is 0; give a positive number"),
        (["arch=vit_b61"], {}, "unknown arch 'vit_b61'; did you mean: vit_b16"),
        (["image_size=30"], {}, "image size 30x30 is not a multiple of the patch size 8"),
    ],
)
def test_what_cannot_be_is_refused(
    settings: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        plan(change(RUN, settings), **{"samples_per_epoch": 100, "num_classes": 10, **options})
