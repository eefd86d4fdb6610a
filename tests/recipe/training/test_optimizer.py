"""Optimizer, schedule and average against formulas in float64 and timm's groups."""

from __future__ import annotations

import copy
import math
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim import param_groups_layer_decay
from tiny import images, tiny
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from twins import timm_twin

from swag_models.errors import ConfigError
from swag_models.recipe.config import EMA, Objective, Optimizer, Run
from swag_models.recipe.training.losses import compute_losses, make_targets
from swag_models.recipe.training.optimizer import (
    count_stable_steps,
    make_average,
    make_optimizer,
    schedule_lr,
    set_lr,
    update_average,
)

FAMILIES = ("vit", "regnet")
CLASSES = [[0, 3], [1], [2, 4, 5]]
STEPS = 6


def train(model: Any, optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One step on fixed images."""
    torch.manual_seed(7)
    set_lr(optimizer, lr)
    optimizer.zero_grad()
    x = images(3).to(next(model.parameters()).dtype)
    compute_losses(Objective(), model(x), make_targets(CLASSES, "softmax", 10)).mean().backward()
    optimizer.step()


def describe(
    model: nn.Module, groups: list[dict[str, Any]], scale: str
) -> dict[str, tuple[float, float]]:
    """(scale, weight decay) of each parameter in the groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[each]: (group[scale], group["weight_decay"])
        for group in groups
        for each in group["params"]
    }


def is_norm(name: str) -> bool:
    return re.search(r"(^|\.)(norm\d?|bn)\.", name) is not None


def list_layers(family: str) -> list[str]:
    """Patterns of each layer's parameter names, the head first."""
    if family == "vit":
        return ["head", r"blocks\.1\.|norm\.", r"blocks\.0\.", "patch_embed|cls_token|pos_embed"]
    blocks = [
        name for name, _ in tiny("regnet").named_modules() if re.fullmatch(r"s\d\.b\d+", name)
    ]
    return ["head", *(rf"{re.escape(block)}\." for block in reversed(blocks)), "stem"]


class TestGroups:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("layer_decay", [0.6, 1.0])
    def test_are_timms(self, family: str, layer_decay: float) -> None:
        model = tiny(family)
        twin = timm_twin(model)
        skipped = twin.no_weight_decay() if hasattr(twin, "no_weight_decay") else ()
        made = make_optimizer(model, Optimizer(weight_decay=0.05, layer_decay=layer_decay), 0.3)
        theirs = param_groups_layer_decay(twin, 0.05, skipped, layer_decay=layer_decay)
        assert describe(model, made.param_groups, "scale") == describe(twin, theirs, "lr_scale")
        assert all(group["lr"] == 0.3 * group["scale"] for group in made.param_groups)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_only_norms_are_exempt(self, family: str) -> None:
        model = tiny(family)
        groups = describe(
            model,
            make_optimizer(model, Optimizer(weight_decay=0.1, no_decay="norms"), 1).param_groups,
            "scale",
        )
        assert groups == {
            name: (1, 0 if is_norm(name) else 0.1) for name, _ in model.named_parameters()
        }
        assert 0 < sum(map(is_norm, groups)) < len(groups)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_nothing_is_exempt(self, family: str) -> None:
        model = tiny(family)
        (group,) = make_optimizer(
            model, Optimizer(weight_decay=0.1, no_decay="nothing"), 1
        ).param_groups
        assert group["params"] == list(model.parameters())
        assert group["weight_decay"] == 0.1

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_frozen_backbone_leaves_the_head_at_full_rate(self, family: str) -> None:
        model = tiny(family)
        model.freeze()
        groups = make_optimizer(model, Optimizer("sgd", layer_decay=0.5), 1).param_groups
        assert {id(each) for group in groups for each in group["params"]} == {
            id(each) for each in model.head.parameters()
        }
        assert {group["scale"] for group in groups} == {1}

    def test_a_frozen_model_is_rejected(self) -> None:
        with pytest.raises(ConfigError, match=r"^all parameters are frozen; "):
            make_optimizer(tiny("vit").requires_grad_(False), Optimizer(), 1)

    def test_sgd_without_momentum(self) -> None:
        made = make_optimizer(tiny("vit"), Optimizer("sgd", momentum=0), 1)
        assert not made.defaults["nesterov"]
        assert made.defaults["momentum"] == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("no_decay", ["norms", "norms and biases"])
def test_updates_equal_the_formulas(family: str, kind: Any, no_decay: Any) -> None:
    config = Optimizer(
        kind, momentum=0.8, betas=(0.7, 0.95), weight_decay=0.2, no_decay=no_decay, layer_decay=0.7
    )
    model = tiny(family).double()
    plain = copy.deepcopy(model)
    optimizer = make_optimizer(model, config, 0.05)
    layers = list_layers(family)
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    for step in range(STEPS):
        lr = 0.05 * (
            0.5
            if step == 0
            else 1
            if step == 1
            else (1 + math.cos(math.pi * (step - 2) / (STEPS - 2))) / 2
        )
        train(model, optimizer, schedule_lr(step, STEPS, 0.05, 1 / 3))
        plain.zero_grad()
        torch.manual_seed(7)
        losses = compute_losses(
            Objective(), plain(images(3).double()), make_targets(CLASSES, "softmax", 10)
        )
        losses.mean().backward()
        for name, parameter in plain.named_parameters():
            exempted = is_norm(name) or (
                no_decay == "norms and biases" and re.search(r"bias$|cls_token|pos_embed", name)
            )
            above = next(number for number, layer in enumerate(layers) if re.match(layer, name))
            decay, rate = 0.0 if exempted else 0.2, lr * 0.7**above
            value, gradient = parameter.data, parameter.grad
            if kind == "sgd":
                gradient = gradient + decay * value
                first[name] = 0.8 * first[name] + gradient if step else gradient
                value = value - rate * (gradient + 0.8 * first[name])
            else:
                first[name] = 0.7 * first.get(name, 0.0) + 0.3 * gradient
                second[name] = 0.95 * second.get(name, 0.0) + 0.05 * gradient**2
                mean, square = (
                    first[name] / (1 - 0.7 ** (step + 1)),
                    second[name] / (1 - 0.95 ** (step + 1)),
                )
                value = value * (1 - rate * decay) - rate * mean / (square.sqrt() + 1e-8)
            parameter.data = value
    assert first
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8, msg=name)


class TestSchedule:
    @pytest.mark.parametrize(("steps", "rise"), [(20, 5), (7, 1), (1000, 50)])
    def test_every_step(self, steps: int, rise: int) -> None:
        found = [schedule_lr(step, steps, 0.4, rise / steps) for step in range(steps + 1)]
        up = [0.4 * (step + 1) / rise for step in range(rise)]
        down = [
            0.2 * (1 + math.cos(math.pi * step / (steps - rise)))
            for step in range(steps - rise + 1)
        ]
        assert found == pytest.approx(up + down, rel=1e-12, abs=1e-12)
        assert found[-1] == 0 < found[-2]

    @pytest.mark.parametrize(
        ("steps", "rise", "fall"), [(20, 5, 4), (7, 1, 6), (1000, 50, 200), (8, 0, 0), (5, 0, 5)]
    )
    def test_every_step_with_a_cooldown(self, steps: int, rise: int, fall: int) -> None:
        found = [schedule_lr(step, steps, 0.4, rise / steps, fall / steps) for step in range(steps)]
        up = [0.4 * (step + 1) / rise for step in range(rise)]
        down = 0.4 * (1 - np.sqrt(np.linspace(0, 1, fall + 1)))
        stable = [0.4] * (steps - rise - fall)
        assert found == pytest.approx([*up, *stable, *down[:-1]], rel=1e-12, abs=1e-12)
        if fall:
            assert schedule_lr(steps, steps, 0.4, rise / steps, fall / steps) == 0

    @pytest.mark.parametrize("cooldown", [0.0, 0.1, 0.2, 0.3, 0.7, 1.0])
    @pytest.mark.parametrize("steps", [1, 3, 10, 333])
    def test_is_stable_for_the_steps_that_are_counted(self, steps: int, cooldown: float) -> None:
        run = Run(
            "vit_nano", 32, 8, steps=steps, schedule="wsd", cooldown=cooldown, optimizer=Optimizer()
        )
        count = count_stable_steps(run, steps)
        assert count is not None
        rates = [schedule_lr(step, steps, 0.3, 0.0, cooldown) for step in range(steps)]
        assert rates[:count] == [0.3] * count
        assert all(rate < 0.3 for rate in rates[count + 1 :])

    def test_starts_at_the_peak_without_warmup(self) -> None:
        assert schedule_lr(0, 10, 0.3, 0.0) == 0.3
        assert schedule_lr(0, 1, 0.3, 0.0) == 0.3

    @pytest.mark.parametrize("step", [-1, 11])
    def test_has_no_rate_for_other_steps(self, step: int) -> None:
        with pytest.raises(AssertionError):
            schedule_lr(step, 10, 0.3, 0.1)

    @pytest.mark.parametrize("warmup", [0.01, 0.25, 0.33, 0.9, 0.999])
    @pytest.mark.parametrize("steps", [1, 2, 9, 10, 333])
    def test_rises_to_the_peak_once_and_falls(self, steps: int, warmup: float) -> None:
        rates = [schedule_lr(step, steps, 1.0, warmup) for step in range(steps)]
        top = rates.index(max(rates))
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert 0 < min(rates) <= max(rates) <= 1
        assert max(rates) > 0.9 or steps == 1


class TestAverage:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("share", [1e-4, 0.3, 1.0])
    def test_equals_the_formula(self, family: str, share: float) -> None:
        model = tiny(family).double().train()
        average = make_average(model, EMA(1 - share))
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = make_optimizer(model, Optimizer("sgd"), 0.1)
        for step in range(8):
            train(model, optimizer, 0.1)
            update_average(average, model, copy=step < 2)
            for name, tensor in model.state_dict().items():
                if step < 2 or not tensor.is_floating_point():
                    expected[name] = tensor.clone()
                else:
                    expected[name] = (1 - share) * expected[name] + share * tensor
            torch.testing.assert_close(
                average.module.state_dict(), OrderedDict(expected), rtol=1e-12, atol=1e-12
            )
        if share < 1:
            assert not torch.equal(
                average.module.get_classifier().weight, model.get_classifier().weight
            )

    def test_without_copying_it_starts_with_the_initial_weights(self) -> None:
        model = tiny("vit").double()
        before = model.head.weight.detach().clone()
        average = make_average(model, EMA(0.5))
        with torch.no_grad():
            model.head.weight += 1
        update_average(average, model, copy=False)
        torch.testing.assert_close(average.module.head.weight, before + 0.5)

    def test_dtypes_may_be_mixed(self) -> None:
        model = tiny("vit")
        model.head.bias = nn.Parameter(model.head.bias.double())  # the only tensor of this dtype
        average = make_average(model, EMA(0.5))
        with torch.no_grad():
            model.head.bias += 1
        update_average(average, model, copy=False)
        torch.testing.assert_close(average.module.head.bias, model.head.bias - 0.5)

    def test_is_in_evaluation_mode_and_shares_no_memory(self) -> None:
        model = tiny("regnet").train()
        average = make_average(model, EMA()).module
        assert not any(module.training for module in average.modules())
        assert not any(parameter.requires_grad for parameter in average.parameters())
        assert all(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        for ours, theirs in zip(
            average.state_dict().values(), model.state_dict().values(), strict=True
        ):
            assert ours.data_ptr() != theirs.data_ptr()

    def test_resumes_from_its_state(self) -> None:
        model = tiny("regnet").train()
        optimizer = make_optimizer(model, Optimizer(), 0.01)
        straight, stopped = (make_average(model, EMA(0.8)) for _ in range(2))
        for step in range(4):
            train(model, optimizer, 0.01)
            update_average(straight, model, copy=step < 2)
            if step < 2:
                update_average(stopped, model, copy=True)
                continue
            resumed = make_average(model, EMA(0.8))
            resumed.module.load_state_dict(stopped.module.state_dict())
            update_average(resumed, model, copy=False)
            stopped = resumed
        for ours, theirs in zip(
            resumed.module.state_dict().values(), straight.module.state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs)

    def test_the_next_update_uses_weights_loaded_after_the_last(self) -> None:
        model = tiny("vit")
        average = make_average(model, EMA(0.5))
        update_average(average, model, copy=False)
        average.module.load_state_dict(
            {name: tensor + 2 for name, tensor in model.state_dict().items()}
        )
        update_average(average, model, copy=False)
        torch.testing.assert_close(average.module.head.weight, model.head.weight + 1)

    def test_parts_that_fsdp2_gathered_are_freed_before_the_update(self) -> None:
        model = tiny("vit")
        average = make_average(model, EMA(0.5))
        before = average.module.head.weight.clone()
        with torch.no_grad():
            model.head.weight += 1
        weights_at_call: list[Tensor] = []
        for module in (average.module, average.module.blocks[1]):
            module.reshard = lambda: weights_at_call.append(average.module.head.weight.clone())
        update_average(average, model, copy=False)
        torch.testing.assert_close(weights_at_call, [before, before], rtol=0, atol=0)

    def test_a_wrapped_model_updates_it_alike(self) -> None:
        model = tiny("vit")
        average = make_average(model, EMA(0.5))
        with torch.no_grad():
            model.head.weight += 1
        update_average(average, nn.Sequential(model), copy=False)
        torch.testing.assert_close(average.module.head.weight, model.head.weight - 0.5)


def run_rank(rank: int, family: str, kind: Any, folder: str) -> None:
    """Train and average a sharded model on this rank's image.

    Rank 0 writes all weights of both, and the average's logits after each step.
    """
    import torch.distributed as torch_dist
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch_dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    model, average, x, targets = prepare(family)
    for each in (model, average.module):
        for layer in each.layers[1:]:
            fully_shard(each.get_submodule(layer[0]))
        fully_shard(each)
    optimizer = make_optimizer(model, Optimizer(kind, weight_decay=0.1, layer_decay=0.7), 0.01)
    logits = []
    for step in range(3):
        set_lr(optimizer, schedule_lr(step, 4, 0.01, 0.25))
        optimizer.zero_grad()
        own = type(targets)(*(part[rank::2] for part in targets))
        compute_losses(Objective(), model(x[rank::2]), own).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        update_average(average, model, copy=step < 1)
        with torch.no_grad():
            logits.append(average.module(x))
    update_average(average, model, copy=False)
    for each in [*model.modules(), *average.module.modules()]:
        if hasattr(each, "reshard"):
            each.reshard()
    states = [
        {
            name: getattr(tensor, "full_tensor", tensor.clone)()
            for name, tensor in each.state_dict().items()
        }
        for each in (model, average.module)
    ]
    if not rank:
        torch.save([*states, logits], f"{folder}/states.pt")
    torch_dist.barrier()  # a rank that leaves early ends the other
    torch_dist.destroy_process_group()


def prepare(family: str) -> tuple[Any, AveragedModel, Tensor, Any]:
    torch.manual_seed(3)
    model = tiny(family).double()  # in evaluation: batch statistics would be each rank's
    average = make_average(model, EMA(0.5))
    return model, average, images(4).double(), make_targets([*CLASSES, [9]], "softmax", 10)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_training_sharded_over_two_processes_equals_one(
    family: str, kind: Any, tmp_path: Path
) -> None:
    torch.multiprocessing.spawn(run_rank, (family, kind, str(tmp_path)), nprocs=2)
    theirs, their_average, their_logits = torch.load(tmp_path / "states.pt")
    model, average, x, targets = prepare(family)
    optimizer = make_optimizer(model, Optimizer(kind, weight_decay=0.1, layer_decay=0.7), 0.01)
    for step in range(3):
        set_lr(optimizer, schedule_lr(step, 4, 0.01, 0.25))
        optimizer.zero_grad()
        compute_losses(Objective(), model(x), targets).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        update_average(average, model, copy=step < 1)
        with torch.no_grad():
            torch.testing.assert_close(their_logits[step], average.module(x), rtol=1e-6, atol=1e-6)
    update_average(average, model, copy=False)
    assert (
        their_logits[2] - their_logits[1]
    ).abs().max() > 1e-3  # what is compared moves by more than the tolerance
    torch.testing.assert_close(theirs, dict(model.state_dict()), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        their_average, dict(average.module.state_dict()), rtol=1e-6, atol=1e-6
    )
