"""Parameter groups equal those that timm makes for its models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import group_modules
from timm.models import group_parameters as timm_group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from tiny import images, tiny
from torch import nn
from twins import timm_twin

from swag_models.errors import ConfigError
from swag_models.models import group_parameters

FAMILIES = ("vit", "regnet")


def name_groups(
    model: nn.Module, groups: list[dict[str, Any]], lr: float = 1.0
) -> dict[str, tuple[float, float]]:
    """Return (learning rate, weight decay) per parameter; assert that groups do not overlap."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    named: dict[str, tuple[float, float]] = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[parameter] not in named
            named[names[parameter]] = (
                group.get("lr", lr * group.get("lr_scale", 1.0)),
                group["weight_decay"],
            )
    return named


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_classes", [10, None])
class TestAgainstTimm:
    @pytest.mark.parametrize("layer_decay", [0.75, 1.0])
    def test_layer_decay(self, family: str, num_classes: int | None, layer_decay: float) -> None:
        model = tiny(family, num_classes=num_classes)
        twin = timm_twin(model)
        skipped = twin.no_weight_decay() if hasattr(twin, "no_weight_decay") else ()
        theirs = param_groups_layer_decay(twin, 0.05, skipped, layer_decay=layer_decay)
        ours = group_parameters(model, lr=1.0, weight_decay=0.05, layer_decay=layer_decay)
        ours, theirs = name_groups(model, ours), name_groups(twin, theirs)
        assert ours.keys() == theirs.keys()
        for name, rates in ours.items():
            assert rates == pytest.approx(theirs[name]), name

    def test_weight_decay_alone(self, family: str, num_classes: int | None) -> None:
        model = tiny(family, num_classes=num_classes)
        twin = timm_twin(model)
        skipped = twin.no_weight_decay() if hasattr(twin, "no_weight_decay") else ()
        theirs = param_groups_weight_decay(twin, 0.05, no_weight_decay_list=skipped)
        ours = group_parameters(model, lr=0.3, weight_decay=0.05)
        assert name_groups(model, ours) == name_groups(twin, theirs, lr=0.3)
        assert len(ours) == 2

    def test_timms_functions_group_it_as_timms_model(
        self, family: str, num_classes: int | None
    ) -> None:
        model = tiny(family, num_classes=num_classes)
        twin = timm_twin(model)
        for coarse in (False, True):
            ours, theirs = (
                timm_group_parameters(backbone, backbone.group_matcher(coarse), reverse=True)
                for backbone in (model, twin)
            )
            assert ours == theirs
            ours, theirs = (
                group_modules(backbone, backbone.group_matcher(coarse), reverse=True)
                for backbone in (model, twin)
            )
            assert {name: layer for name, layer in ours.items() if name} == {
                name: layer for name, layer in theirs.items() if name
            }
        ours, theirs = (
            create_optimizer_v2(
                backbone, "adamw", lr=0.1, weight_decay=0.05, layer_decay=0.6
            ).param_groups
            for backbone in (model, twin)
        )
        assert name_groups(model, ours) == name_groups(twin, theirs)
        assert [group["lr_scale"] for group in ours] == [group["lr_scale"] for group in theirs]

    def test_layers_are_those_of_the_group_matcher(
        self, family: str, num_classes: int | None
    ) -> None:
        model = tiny(family, num_classes=num_classes)
        layers = timm_group_parameters(model, model.group_matcher(), reverse=True)
        for number, parts in enumerate(model.layers):
            for part in parts:
                numbers = {
                    layer
                    for name, layer in layers.items()
                    if name == part or name.startswith(f"{part}.")
                }
                assert numbers == {number} or part == "patch_drop"  # which has no parameters


@pytest.mark.parametrize("family", FAMILIES)
class TestGroups:
    def test_the_head_learns_fastest_and_the_stem_slowest(self, family: str) -> None:
        model = tiny(family)
        rates = name_groups(
            model, group_parameters(model, lr=0.01, weight_decay=0.1, layer_decay=0.5)
        )
        stem, head = {
            "vit": ("patch_embed.proj.weight", "head.weight"),
            "regnet": ("stem.conv.weight", "head.fc.weight"),
        }[family]
        assert rates[head] == (0.01, 0.1)
        assert rates[stem] == (pytest.approx(0.01 * 0.5 ** len(model.layers)), 0.1)
        assert all(rates[stem][0] <= rate <= 0.01 for rate, _ in rates.values())

    def test_frozen_parameters_are_left_out_and_the_other_rates_stay(self, family: str) -> None:
        model = tiny(family)
        before = name_groups(
            model, group_parameters(model, lr=0.01, weight_decay=0.1, layer_decay=0.5)
        )
        model.freeze({"vit": "blocks.0", "regnet": "s3"}[family])
        after = name_groups(
            model, group_parameters(model, lr=0.01, weight_decay=0.1, layer_decay=0.5)
        )
        assert after.keys() == {
            name for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        assert 0 < len(after) < len(before)
        assert after.items() <= before.items()

    def test_an_optimizer_accepts_them_and_a_schedule_keeps_their_ratios(self, family: str) -> None:
        model = tiny(family).train()
        optimizer = torch.optim.AdamW(
            group_parameters(model, lr=0.01, weight_decay=0.1, layer_decay=0.5)
        )
        before = [group["lr"] for group in optimizer.param_groups]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1**step)
        model(images(4)).square().mean().backward()
        optimizer.step()
        schedule.step()
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [0.1 * rate for rate in before]
        )
        assert len(set(before)) == len(model.layers) + 1

    def test_an_unknown_exemption_is_rejected(self, family: str) -> None:
        with pytest.raises(
            ConfigError, match="no_decay is 'norm'; allowed: nothing, norms, norms and biases"
        ):
            group_parameters(tiny(family), lr=0.1, weight_decay=0.1, no_decay="norm")

    def test_nothing_is_exempt(self, family: str) -> None:
        model = tiny(family)
        (group,) = group_parameters(model, lr=0.1, weight_decay=0.2, no_decay="nothing")
        assert group["params"] == list(model.parameters())
        assert (group["lr"], group["scale"], group["weight_decay"]) == (0.1, 1, 0.2)

    def test_only_norms_are_exempt(self, family: str) -> None:
        model = tiny(family)
        groups = group_parameters(model, lr=0.1, weight_decay=0.2, no_decay="norms")
        norms = [m for m in model.modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d))]
        exempt = {id(parameter) for norm in norms for parameter in norm.parameters()}
        for group in groups:
            in_norms = {id(parameter) in exempt for parameter in group["params"]}
            assert in_norms == {group["weight_decay"] == 0}
        assert len(groups) == 2

    @pytest.mark.parametrize("option", ["lr", "weight_decay"])
    def test_negative_rates_are_rejected_and_0_is_not(self, family: str, option: str) -> None:
        options = {"lr": 0.1, "weight_decay": 0.1}
        with pytest.raises(ConfigError, match=rf"invalid {option} -0\.001: allowed: 0 or more"):
            group_parameters(tiny(family), **options | {option: -0.001})
        assert group_parameters(tiny(family), **options | {option: 0})

    @pytest.mark.parametrize("layer_decay", [0, -0.5, 1.5, float("nan")])
    def test_invalid_layer_decay_is_rejected(self, family: str, layer_decay: float) -> None:
        message = rf"layer_decay is {layer_decay}; give a number above 0 and up to 1, or None"
        with pytest.raises(ConfigError, match=message):
            group_parameters(tiny(family), lr=0.1, weight_decay=0.1, layer_decay=layer_decay)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_around_the_backbone_is_its_highest_layer(family: str) -> None:
    backbone = tiny(family, num_classes=None)
    model = nn.Sequential(backbone, nn.Linear(4, 2))
    groups = group_parameters(model, lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scales = {id(each): group["scale"] for group in groups for each in group["params"]}
    assert set(scales) == {id(parameter) for parameter in model.parameters()}
    assert [scales[id(parameter)] for parameter in model[1].parameters()] == [1, 1]
    assert max(scales[id(parameter)] for parameter in backbone.parameters()) == 0.5
