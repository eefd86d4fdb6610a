"""Estimates against published numbers, FLOP counters, real optimizers and activations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import images
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from swag_models.api import SPECS, load_model
from swag_models.errors import ConfigError
from swag_models.models import Backbone
from swag_models.recipe.config import EMA, Engine, Run
from swag_models.recipe.config_overrides import override
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.estimate import (
    check_batch_memory,
    count_steps,
    plan,
)
from swag_models.recipe.training.memory import (
    estimate_activations,
    estimate_memory,
    list_fitting_settings,
)

RUN = Run(arch="vit_nano", image_size=32, batch_size=64, epochs=2)
SGD = override(RUN, ["optimizer.kind=sgd"])

pytestmark = pytest.mark.usefixtures("one_thread")


def load_nano(arch: str = "vit_nano") -> Backbone:
    name = f"{arch}_hashtags"
    return load_model(name, pretrained=False, num_classes=10, image_size=32).train()


def sum_saved(model: Backbone, count: int, precision: str) -> int:
    """Bytes that a forward pass of a batch stores for the backward pass."""
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        assert model(images(count, 32)).float().log_softmax(dim=-1).requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def test_eight_epochs_of_imagenet_are_20_000_steps() -> None:
    preset = get_preset("regnety_16gf_in1k")
    assert count_steps(preset.run, preset.samples_per_epoch) == 20_018  # stated as 20,000
    assert (
        count_steps(override(preset.run, ["epochs=none", "steps=20000"]), preset.samples_per_epoch)
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


def test_training_takes_three_forward_passes() -> None:
    # The FLOPs of attention's backward pass depend on its kernel, and the kernel on the CPU: force
    # the one that is made of plain matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        load_nano()(images(1, 32)).sum().backward()
    estimated = plan(RUN, 100, num_classes=10)
    # the first layer computes no gradient of its input: 16 patches x (3 x 8 x 8) x 96
    assert counter.get_total_flops() == estimated.flops - 2 * 16 * 192 * 96


def test_a_frozen_backbone_takes_one_pass_and_checkpointing_four() -> None:
    full = plan(RUN, 100, num_classes=10)
    head = plan(replace(RUN, trainable="head"), 100, num_classes=10)
    checkpointed = plan(replace(RUN, engine=Engine(grad_checkpointing=True)), 100, num_classes=10)
    assert (head.flops * 3, checkpointed.flops * 3) == (full.flops, full.flops * 4)
    assert head.trained == 96 * 10 + 10
    assert head.parameters == full.parameters
    assert head.memory.gradients == 4 * head.trained


@pytest.mark.parametrize("run", [RUN, SGD], ids=["adamw", "sgd"])
def test_weights_gradients_and_optimizer_are_those_of_a_real_step(run: Run) -> None:
    model = load_nano()
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


@pytest.mark.parametrize(
    ("arch", "precision", "expected"),
    [
        # 12 blocks, 197 tokens, width 768, MLP 3072: two norm inputs in float32; two norm outputs,
        # Q, K, V, attention, and twice the MLP width
        ("vit_b16", "bf16", 12 * 197 * (2 * 768 * 4 + (6 * 768 + 2 * 3072) * 2)),
        ("vit_b16", "fp32", 12 * 197 * (2 * 768 + 6 * 768 + 2 * 3072) * 4),
        (
            "regnety_16gf",
            "bf16",
            2
            * (
                224 * (2 * 112**2 + 6 * 56**2 + 1 * 7 * 56**2)
                + 448 * (2 * 56**2 + 6 * 28**2 + 3 * 7 * 28**2)
                + 1232 * (2 * 28**2 + 6 * 14**2 + 10 * 7 * 14**2)
                + 3024 * (2 * 14**2 + 6 * 7**2)
            ),
        ),
    ],
)
def test_activations_by_hand(arch: str, precision: str, expected: int) -> None:
    run = Run(arch=arch, image_size=224, batch_size=8, epochs=1, engine=Engine(precision=precision))  # type: ignore[arg-type]
    assert estimate_activations(run) == expected


def test_activations_by_hand_of_checkpointed_and_frozen_models() -> None:
    run = Run(arch="vit_b16", image_size=224, batch_size=8, epochs=1)
    block = 197 * (2 * 768 * 4 + (6 * 768 + 2 * 3072) * 2)
    checkpointed = replace(run, engine=Engine(grad_checkpointing=True))
    assert estimate_activations(checkpointed) == 12 * 197 * 768 * 4 + block
    assert estimate_activations(replace(run, trainable="head")) == block
    regnet = replace(checkpointed, arch="regnety_16gf")
    # inputs: the stem's 32 channels, then the width of each block before
    inputs = 32 * 112**2 + 224 * (2 * 56**2) + 448 * 4 * 28**2 + 1232 * 11 * 14**2
    largest = 224 * (2 * 112**2 + 6 * 56**2)
    assert estimate_activations(regnet) == 2 * (inputs + largest)


@pytest.mark.parametrize("arch", ["vit_nano", "regnety_nano"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_about_those_of_a_real_model(arch: str, precision: str) -> None:
    model = load_nano(arch)
    measured = (sum_saved(model, 7, precision) - sum_saved(model, 2, precision)) / 5
    run = override(RUN, [f"arch={arch}", f"engine.precision={precision}"])
    # a rule of thumb: small models store relatively more beside their blocks, and kernels differ
    assert estimate_activations(run) == pytest.approx(measured, rel=0.5)


@pytest.mark.parametrize(
    ("preset", "gpus", "gigabytes"),
    [
        ("regnety_128gf_hashtags", 8, 80),
        ("vit_b16_hashtags", 8, 40),
        ("vit_b16_in1k", 1, 80),
        ("vit_l16_hashtags", 8, 7),
        ("vit_h14_in1k", 16, 8),
    ],
)
def test_the_settings_that_are_named_fit(preset: str, gpus: int, gigabytes: int) -> None:
    run, parameters = get_preset(preset).run, 100_000_000

    def fits(*settings: str) -> bool:
        changed = override(run, settings)
        return estimate_memory(changed, parameters, parameters, gpus).total <= gigabytes * 1e9

    assert not fits()
    alternatives = list_fitting_settings(run, parameters, parameters, gpus, gigabytes * 1e9)
    assert alternatives
    for settings in alternatives:
        assert fits(*settings)
        for index in range(len(settings)):
            assert not fits(*settings[:index], *settings[index + 1 :]), "no setting is superfluous"
        if (name := settings[-1]).startswith("engine.micro_batch="):
            samples, size = -(-run.batch_size // gpus), int(name.partition("=")[2])
            parts = -(-samples // size)
            assert -(-samples // parts) == size, "equal parts"
            assert not fits(*settings, f"engine.micro_batch={-(-samples // (parts - 1))}")


def test_memory_follows_the_layout() -> None:
    ddp = plan(RUN, 100, num_classes=10, gpus=4).memory
    assert ddp == plan(override(RUN, ["batch_size=16"]), 100, num_classes=10).memory
    fsdp = plan(override(RUN, ["engine.parallel=fsdp"]), 100, num_classes=10, gpus=4).memory
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(fsdp, name) == getattr(ddp, name) // 4
    assert fsdp.activations == ddp.activations == 16 * ddp.sample
    two = plan(override(RUN, ["engine.micro_batch=2"]), 100, num_classes=10, gpus=4).memory
    assert two.activations == 2 * ddp.sample
    assert plan(override(RUN, ["engine.micro_batch=99"]), 100, num_classes=10, gpus=4).memory == ddp
    assert plan(replace(RUN, ema=EMA()), 100, num_classes=10).memory.ema == ddp.weights
    assert (ddp.ema, ddp.casts) == (0, ddp.weights // 2)
    assert plan(override(RUN, ["engine.precision=fp32"]), 100, num_classes=10).memory.casts == 0
    parts = (ddp.weights, ddp.gradients, ddp.optimizer, ddp.ema, ddp.casts, ddp.activations)
    assert ddp.total == sum(parts)


def test_time_follows_the_throughput() -> None:
    given = plan(RUN, 6400, num_classes=10, gpus=2, throughput=10)
    assert (given.samples, given.basis) == (12_800, "given")
    assert given.days == pytest.approx(12_800 / 20 / 86400)
    assumed = plan(RUN, 6400, num_classes=10)
    assert assumed.throughput == pytest.approx(0.4 * 989e12 / assumed.flops)
    assert assumed.basis == "assumed: 40% of 989 TFLOP/s (H100 in bf16)"
    for name, title in (("a100", "A100"), ("h100-pcie", "H100 PCIe"), ("RTX4090", "RTX 4090")):
        assert f"({title} in bf16)" in plan(RUN, 6400, num_classes=10, gpu=name).basis
    other = plan(RUN, 6400, num_classes=10, gpu="V100", flops=125e12, gpu_memory=32e9)
    assert other.gpu_memory == 32e9
    slow = plan(RUN, 6400, num_classes=10, flops=100e12)
    assert slow.throughput == pytest.approx(0.4 * 100e12 / slow.flops)
    assert slow.basis == "assumed: 40% of 100 TFLOP/s (given)"
    assert (
        "67 TFLOP/s (H100 in fp32)"
        in plan(override(RUN, ["engine.precision=fp32"]), 6400, num_classes=10).basis
    )


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ([], {"gpus": 0}, "gpus is 0; give a positive number"),
        ([], {"gpus": 65}, "gpus is 65; a batch of 64 samples keeps at most 64 busy"),
        ([], {"samples_per_epoch": 0}, "samples_per_epoch is 0; give a positive number"),
        ([], {"throughput": -1.0}, "throughput is -1.0; give a positive number"),
        ([], {"flops": float("nan")}, "flops is nan; give a positive number"),
        ([], {"gpu": "RTX"}, "unknown GPU 'RTX'; known: GB200"),
        ([], {"gpu": "\u0130"}, "unknown GPU .* for another GPU, give flops= and gpu_memory="),
        (["engine.precision=fp32"], {"gpu": "H200"}, "the peak of H200 in fp32 is not known here"),
        ([], {"num_classes": 0}, "num_classes is 0; give a whole number from 1"),
        (["arch=vit_b61"], {}, "unknown arch 'vit_b61'; did you mean: vit_b16"),
        (["arch=timm:resnet18"], {}, "arch is timm:resnet18, and only `recipe distill` takes"),
        (["image_size=30"], {}, "image size 30x30 is not a multiple of the patch size 8"),
    ],
)
def test_invalid_values_are_rejected(
    settings: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        plan(override(RUN, settings), **{"samples_per_epoch": 100, "num_classes": 10, **options})


def test_a_batch_larger_than_the_memory_is_refused() -> None:
    run = Run(arch="vit_nano", image_size=2**14, batch_size=2**20, steps=1)
    with pytest.raises(ConfigError, match=r"^batch_size is 1048576: its images of 16384 pixels"):
        check_batch_memory(run, 1)
    check_batch_memory(replace(run, image_size=32, batch_size=512), 1)
