"""Parameter groups and freezing give the same inside the wrappers of training code."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from tiny import add_lora, images, tiny
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from swag_models.errors import ConfigError
from swag_models.models import FeaturePyramid, group_parameters

FAMILIES = ("vit", "regnet")
pytestmark = pytest.mark.filterwarnings("ignore")
RATES: dict[str, Any] = {"lr": 1.0, "weight_decay": 0.05, "layer_decay": 0.5}


class Trainer(nn.Module):
    """As a LightningModule: the model in an attribute, beside something with parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model
        self.projection = nn.Linear(3, 3)


def wrap_blocks(model: Any, wrap: Any) -> nn.Module:
    blocks = model.blocks if hasattr(model, "blocks") else model.s2
    for name, block in list(blocks.named_children()):
        setattr(blocks, name, wrap(block))
    return model  # type: ignore[no-any-return]


def wrap_container(model: Any) -> nn.Module:
    name = "blocks" if hasattr(model, "blocks") else "s2"
    setattr(model, name, torch.compile(getattr(model, name)))
    return model  # type: ignore[no-any-return]


WRAPPERS: dict[str, Any] = {
    "compiled": torch.compile,
    "DataParallel": nn.DataParallel,
    "averaged": AveragedModel,
    "EMA": lambda model: ModelEmaV3(model).requires_grad_(True),
    "compiled inside": lambda model: Trainer(torch.compile(model)).net,
    "compiled blocks": lambda model: wrap_blocks(model, torch.compile),
    "compiled container": wrap_container,
    "checkpointed blocks": lambda model: wrap_blocks(model, checkpoint_wrapper),
    "trainer": Trainer,
    "compiled trainer": lambda model: torch.compile(Trainer(model)),
}


@contextmanager
def one_rank(folder: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def list_rates(module: nn.Module) -> dict[str, tuple[float, float]]:
    """Return learning rate and weight decay of each of a module's parameters, in their order."""
    rates = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in group_parameters(module, **RATES)
        for parameter in group["params"]
    }
    return {name: rates[id(p)] for name, p in module.named_parameters() if id(p) in rates}


@pytest.mark.parametrize("family", FAMILIES)
class TestGroups:
    @pytest.mark.parametrize("kind", WRAPPERS)
    def test_rates_are_those_of_the_bare_model(self, family: str, kind: str) -> None:
        model = tiny(family)
        expected = list_rates(model)
        rates = list_rates(WRAPPERS[kind](copy.deepcopy(model)))
        above = [name for name in rates if "projection" in name]
        assert [rates.pop(name) for name in above] in ([], [(1.0, 0.05), (1.0, 0.0)])
        assert list(rates.values()) == list(expected.values())
        assert len(set(rates.values())) > len(model.layers)

    def test_rates_of_a_distributed_model(self, family: str, tmp_path: Path) -> None:
        model = tiny(family)
        expected = list(list_rates(model).values())
        with one_rank(tmp_path):
            ddp = DistributedDataParallel(copy.deepcopy(model))
            assert list(list_rates(ddp).values()) == expected
            sharded = copy.deepcopy(model)
            for block in [m for m in sharded.modules() if type(m).__name__.endswith("Block")]:
                fully_shard(block)
            assert list(list_rates(fully_shard(sharded)).values()) == expected
            flat = FullyShardedDataParallel(model, use_orig_params=True, device_id="cpu")
            with pytest.raises(ConfigError, match="flattened; group them before wrapping, or sha"):
                group_parameters(flat, **RATES)

    def test_what_is_above_the_model_learns_as_its_head(self, family: str) -> None:
        model = tiny(family)
        expected = list_rates(model)
        rates = list_rates(pyramid := FeaturePyramid(model, 8))
        backbone = {name: rate for name, rate in rates.items() if name.startswith("trunk.")}
        assert {f"trunk.{name}": rate for name, rate in expected.items() if "head" not in name} == (
            backbone
        )
        assert {rate for name, rate in rates.items() if name not in backbone} <= {(1, 0.05), (1, 0)}
        assert len(rates) == len(list(pyramid.parameters()))

    def test_adapters_learn_as_their_layer(self, family: str) -> None:
        model = tiny(family)
        target, layer = {"vit": ("fc1", "blocks.0"), "regnet": ("conv3.conv", "s1.b1")}[family]
        expected = list_rates(model)[f"{layer}.{'mlp.' if family == 'vit' else ''}{target}.weight"]
        adapted = add_lora(model, target)
        rates = list_rates(adapted)
        assert all("lora" in name for name in rates)
        assert {rate for name, rate in rates.items() if f"model.{layer}." in name} == {expected}

    def test_two_models_are_refused_in_one_line(self, family: str) -> None:
        pair = nn.ModuleDict({"student": tiny(family), "teacher": tiny(family)})
        for module in (pair, nn.Linear(3, 3), nn.DataParallel(pair)):
            with pytest.raises(ConfigError, match=r"pass (one of|the model)") as error:
                group_parameters(module, **RATES)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
class TestFreezing:
    @pytest.mark.parametrize("kind", [*WRAPPERS, "adapter", "pyramid"])
    def test_frozen_layers_are_those_of_the_bare_model(self, family: str, kind: str) -> None:
        kinds = WRAPPERS | {
            "adapter": lambda model: add_lora(model, "fc1"),
            "pyramid": FeaturePyramid,
        }
        up_to = {"vit": "blocks.0", "regnet": "s2"}[family]
        wrapped = kinds[kind](tiny(family, drop_path_rate=0.5))
        before = [p.requires_grad for p in wrapped.parameters()]
        inner = next(m for m in wrapped.modules() if hasattr(m, "feature_info"))
        target = inner if kind in ("DataParallel", "averaged", "EMA", "trainer") else wrapped
        if kind == "compiled trainer":
            target = wrapped.net
        target.freeze(up_to)
        trained = {name for name, p in inner.named_parameters() if p.requires_grad}
        assert trained
        assert not [n for n in trained if n.startswith(("stem", "s1", "s2", "blocks.0", "pos_em"))]
        wrapped.train()
        frozen = inner.get_submodule({"vit": "blocks", "regnet": "s2"}[family])
        assert not next(m for m in frozen.modules() if type(m).__name__.endswith("Block")).training
        target.unfreeze()
        assert [p.requires_grad for p in wrapped.parameters()] == before

    def test_a_frozen_model_can_be_wrapped(self, family: str) -> None:
        model = tiny(family)
        model.freeze({"vit": "blocks.0", "regnet": "s2"}[family])
        frozen = [not p.requires_grad for p in model.parameters()]
        wrap_blocks(model, checkpoint_wrapper)
        model(images()).square().mean().backward()
        assert [p.grad is None for p in model.parameters()] == frozen
        model.unfreeze()
        assert all(p.requires_grad for p in model.parameters())
