"""Frozen layers keep their parameters and statistics, even after train(); all others learn."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tiny import images, randomise, tiny
from torch import Tensor, nn

from swag_models.errors import ConfigError
from swag_models.models import RegNet, ViT
from swag_models.models.drop_path import DropPath

FAMILIES = ("vit", "regnet")
CASES = [  # family, up_to, prefixes of the names of all frozen parameters
    ("vit", None, ("patch_embed.", "cls_token", "pos_embed", "blocks.", "norm.")),
    ("vit", "patch_embed", ("patch_embed.",)),
    ("vit", "pos_embed", ("patch_embed.", "cls_token", "pos_embed")),
    ("vit", "blocks.0", ("patch_embed.", "cls_token", "pos_embed", "blocks.0.")),
    ("vit", "blocks.1", ("patch_embed.", "cls_token", "pos_embed", "blocks.")),
    ("vit", "blocks", ("patch_embed.", "cls_token", "pos_embed", "blocks.")),
    ("vit", "norm", ("patch_embed.", "cls_token", "pos_embed", "blocks.", "norm.")),
    ("regnet", None, ("stem.", "s1.", "s2.", "s3.", "s4.")),
    ("regnet", "stem", ("stem.",)),
    ("regnet", "s1", ("stem.", "s1.")),
    ("regnet", "s3", ("stem.", "s1.", "s2.", "s3.")),
    ("regnet", "s2.b1", ("stem.", "s1.", "s2.b1.")),
]
RATES: dict[str, dict[str, float]] = {
    "vit": {"attn_drop_rate": 0.4, "drop_path_rate": 0.4},
    "regnet": {"drop_path_rate": 0.4},
}


def train_steps(model: ViT | RegNet, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    for _ in range(steps):
        model(images(4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("family", "up_to", "begins"), CASES)
def test_training_changes_all_but_frozen_layers(
    family: str, up_to: str | None, begins: tuple[str, ...]
) -> None:
    model = tiny(family, **RATES[family])
    model.freeze(up_to)
    before = copy.deepcopy(model.state_dict())
    train_steps(model.train())
    unchanged = {
        name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])
    }
    assert unchanged == {name for name in before if name.startswith(begins)}
    assert {
        name for name, parameter in model.named_parameters() if not parameter.requires_grad
    } == unchanged - {name for name, _ in model.named_buffers()}


@pytest.mark.parametrize("family", FAMILIES)
class TestFrozen:
    def test_only_the_backbone_stays_in_eval_mode(self, family: str) -> None:
        model = tiny(family, drop_rate=0.3, **RATES[family])
        model.freeze()
        for _ in range(2):
            model.train()
            assert {name for name, module in model.named_modules() if module.training} <= {
                "",
                "head_drop",
                "head",
                "head.fc",
            }
            assert model.training
            assert model.head_drop.training
        still = [
            module for module in model.modules() if isinstance(module, (nn.BatchNorm2d, DropPath))
        ]
        assert still
        assert not any(module.training for module in still)
        assert not any(module.training for module in model.eval().modules())

    def test_features_in_training_equal_those_in_evaluation(self, family: str) -> None:
        model, batch = tiny(family, **RATES[family]), images()
        expected = model.forward_features(batch)
        assert not torch.equal(model.train().forward_features(batch), expected)
        model = tiny(family, **RATES[family])
        expected = model.forward_features(batch)
        model.freeze()
        features = model.train().forward_features(batch)
        assert torch.equal(features, expected)
        assert not features.requires_grad

    def test_freezing_in_training_mode_takes_effect_at_once(self, family: str) -> None:
        model = tiny(family, **RATES[family]).train()
        before = copy.deepcopy(model.state_dict())
        model.freeze()
        train_steps(model)
        assert {
            name.split(".")[0]
            for name, tensor in model.state_dict().items()
            if not torch.equal(tensor, before[name])
        } == {"head"}

    def test_freezing_adds_up_and_unfreezing_undoes_it(self, family: str) -> None:
        first, second = {"vit": ("blocks.0", "patch_embed"), "regnet": ("s2", "stem")}[family]
        model = tiny(family, **RATES[family]).train()
        model.freeze(first)
        frozen = {
            name for name, parameter in model.named_parameters() if not parameter.requires_grad
        }
        model.freeze(second)
        assert frozen == {
            name for name, parameter in model.named_parameters() if not parameter.requires_grad
        }
        model.unfreeze()
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert all(module.training for module in model.modules())
        model.eval().unfreeze()
        assert not any(module.training for module in model.modules())

    def test_unfreezing_keeps_parameters_frozen_by_the_user(self, family: str) -> None:
        model = tiny(family)
        model.get_classifier().bias.requires_grad_(False)
        model.freeze()
        model.unfreeze()
        assert [
            name for name, parameter in model.named_parameters() if not parameter.requires_grad
        ] == [{"vit": "head.bias", "regnet": "head.fc.bias"}[family]]

    def test_a_new_head_learns_on_a_backbone_that_stays_frozen(self, family: str) -> None:
        model = tiny(family)
        model.freeze()
        model.reset_classifier(3)
        randomise(model)
        assert all(parameter.requires_grad for parameter in model.get_classifier().parameters())
        before = copy.deepcopy(model.state_dict())
        train_steps(model.train())
        changed = {
            name
            for name, tensor in model.state_dict().items()
            if not torch.equal(tensor, before[name])
        }
        assert changed == {
            f"{name}.{part}"
            for name in {"vit": ["head"], "regnet": ["head.fc"]}[family]
            for part in ("weight", "bias")
        }

    @pytest.mark.parametrize(
        "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
    )
    def test_copies_stay_frozen(self, family: str, clone: Any) -> None:
        model = tiny(family, **RATES[family])
        model.freeze()
        batch = images()
        assert torch.equal(
            clone(model).train().forward_features(batch), model.forward_features(batch)
        )

    def test_the_state_dict_is_unchanged(self, family: str) -> None:
        model = tiny(family)
        names = list(model.state_dict())
        model.freeze()
        assert list(model.state_dict()) == names
        fresh = tiny(family)
        fresh.load_state_dict(model.state_dict())
        assert all(parameter.requires_grad for parameter in fresh.parameters())

    @pytest.mark.parametrize("assign", [False, True])
    def test_loading_other_weights_keeps_it_frozen(self, family: str, assign: bool) -> None:
        model, other = tiny(family), tiny(family)
        model.freeze()
        model.load_state_dict(other.state_dict(), assign=assign)
        assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {
            "head"
        }

    def test_frozen_layers_store_nothing_for_the_backward_pass(self, family: str) -> None:
        model = tiny(family).train()
        stored: list[Tensor] = []
        model.freeze()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: stored.append(tensor) or tensor, lambda tensor: tensor
        ):
            model.forward_features(images())
        assert stored == []

    @pytest.mark.parametrize("up_to", ["head", "blocks.7", "s9", "", 6, "attn"])
    def test_unknown_part_is_rejected(self, family: str, up_to: Any) -> None:
        allowed = {
            "vit": "patch_embed, cls_token, pos_embed, patch_drop, blocks, blocks.0, blocks.1, ",
            "regnet": "stem, s1, s1.b1, s2, s2.b1, ",
        }[family]
        model = tiny(family)
        with pytest.raises(
            ConfigError,
            match=rf"up_to is {up_to!r}; allowed: {allowed}.*, or None for the whole backbone$",
        ):
            model.freeze(up_to)
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_vit_trains_at_another_size_after_inference() -> None:
    model, batch = tiny("vit"), images(image_size=96)
    with torch.inference_mode():
        model(batch)
    model.freeze("pos_embed")
    model.train()(batch).square().mean().backward()
    assert model.blocks[0].attn.qkv.weight.grad.any()
