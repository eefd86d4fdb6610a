"""Tracers: torch.fx, torchvision's and timm's feature extractors on it, TorchScript."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings
from dataclasses import replace
from typing import Any

import pytest
import timm.layers
import torch
from timm.models._features_fx import FeatureGraphNet, GraphExtractNet
from timm.utils import AttentionExtract
from tiny import deviation, images, tiny
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from twins import timm_twin

from swag_models.architectures import RegNetConfig, ViTConfig
from swag_models.catalog import MODELS
from swag_models.errors import ConfigError
from swag_models.models import build

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
FAMILIES = ("vit", "regnet")
OTHER_SIZE = (96, 64)
TRACERS = {
    "fx": torch.fx.symbolic_trace,
    "script": torch.jit.script,
    "script of fx": lambda model: torch.jit.script(torch.fx.symbolic_trace(model)),
}
ARCHITECTURES = {spec.arch: spec.config for spec in MODELS if spec.family != "resnet"}


def shorten(config: ViTConfig | RegNetConfig) -> ViTConfig | RegNetConfig:
    """A ViT with two blocks; the depth of a RegNet decides its widths."""
    return replace(config, depth=2) if isinstance(config, ViTConfig) else config


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_classes", [10, None])
@pytest.mark.parametrize("tracer", TRACERS)
@torch.no_grad()
def test_a_traced_model_computes_the_same_at_any_size(
    family: str, num_classes: int | None, tracer: str
) -> None:
    model = tiny(family, num_classes=num_classes)
    traced = TRACERS[tracer](model)
    for batch in (images(), images(3, OTHER_SIZE)):
        assert torch.equal(traced(batch), model(batch))


class Maps(nn.Module):
    """A part of a detector: the feature maps of a trunk."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Any:
        return self.trunk.forward_intermediates(x, intermediates_only=True)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_feature_maps_can_be_traced(family: str) -> None:
    model = Maps(tiny(family))
    graph = torch.fx.symbolic_trace(model)
    for batch in (images(), images(3, OTHER_SIZE)):
        assert all(map(torch.equal, graph(batch), model(batch)))


def test_a_graph_chooses_the_memory_format_when_it_runs() -> None:
    graph = torch.fx.symbolic_trace(tiny("regnet")).graph
    assert "to_channels_last" in {node.name for node in graph.nodes}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_traced_model_can_be_stored(family: str) -> None:
    model, batch = tiny(family), images()
    graph = torch.fx.symbolic_trace(model)
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert torch.equal(other(batch), model(batch))
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file)(batch), model(batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scripted_model_trains_as_the_model(family: str) -> None:
    model = tiny(family, drop_path_rate=0.5, drop_rate=0.5).train()
    outputs, gradients = [], []
    for module in (model, torch.jit.script(copy.deepcopy(model))):
        torch.manual_seed(0)
        output = module(images(8))
        output.square().mean().backward()
        outputs.append(output)
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert deviation(outputs[1], outputs[0]) < 1e-5
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.jit.script(model.eval())(images()).shape == (2, 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_of_training_mode_drops_branches(family: str) -> None:
    model, batch = tiny(family, drop_path_rate=0.9, drop_rate=0.1).train(), images(8)
    graph = torch.fx.symbolic_trace(model)
    torch.manual_seed(0)
    expected = model(batch)
    torch.manual_seed(0)
    assert torch.equal(graph(batch), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_legacy_trace_records_no_check(family: str) -> None:
    model = tiny(family)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = torch.jit.trace(model, images(), check_trace=False)  # which traces again
    # A ViT's positions are fixed to the traced height and width, about which torch warns.
    count = sum(warning.category is torch.jit.TracerWarning for warning in caught)
    assert count <= {"vit": 2, "regnet": 0}[family]
    for batch in (images(), *([images(3, OTHER_SIZE)] if family == "regnet" else [])):
        assert torch.equal(traced(batch), model(batch))


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(arch, marks=pytest.mark.slow) if "gf" in arch else arch
        for arch in ARCHITECTURES
    ],
)
def test_every_architecture_can_be_traced(arch: str) -> None:
    with torch.device("meta"):
        model = build(shorten(ARCHITECTURES[arch]), num_classes=9, image_size=224).eval()
        batch = torch.empty(1, 3, 224, 224)
        last = model.feature_info[-1]["module"]
        features = create_feature_extractor(model, {last: "last"})(batch)["last"]
        with_width = features.shape[1 if features.ndim == 4 else 2]
        assert (features.shape[0], with_width) == (1, model.num_features)
        assert torch.fx.symbolic_trace(model)(batch).shape == (1, 9)
        assert torch.jit.script(model)(batch).shape == (1, 9)


@pytest.mark.parametrize("family", FAMILIES)
class TestExtractors:
    @torch.no_grad()
    def test_maps_are_those_of_forward_intermediates(self, family: str) -> None:
        model, batch = tiny(family), images()
        levels = list(range(len(model.feature_info)))
        names = [model.feature_info[level]["module"] for level in levels]
        extracted = list(create_feature_extractor(model, names)(batch).values())
        assert all(map(torch.equal, FeatureGraphNet(model, levels)(batch), extracted))
        assert all(map(torch.equal, GraphExtractNet(model, names)(batch), extracted))
        maps = model.forward_intermediates(batch, intermediates_only=True)
        for ours, theirs in zip(extracted, maps, strict=True):
            if family == "vit":
                ours = ours[:, 1:].mT.reshape(theirs.shape)
            assert torch.equal(ours, theirs)

    def test_a_trained_extractor_trains_the_model(self, family: str) -> None:
        model = tiny(family).train()
        last = model.feature_info[-1]["module"]
        extractor = create_feature_extractor(model, {last: "last"})
        extractor(images())["last"].square().mean().backward()
        (name, parameter), *_ = extractor.named_parameters()
        assert parameter is model.get_parameter(name)
        assert parameter.grad is not None

    def test_nodes_are_named_as_modules(self, family: str) -> None:
        model = tiny(family)
        names = set(get_graph_node_names(model)[1])
        called = {
            name
            for name, module in model.named_modules()
            if not list(module.children())
            and not re.search(r"drop_path\d?$|attn_drop$|patch_drop$", name)
        }
        assert called <= names

    def test_checks_of_the_model_itself_remain(self, family: str) -> None:
        model = tiny(family)
        torch.fx.symbolic_trace(model)
        with pytest.raises(ConfigError, match="input is"):
            model("image")


class TestAttention:
    """timm's ways to read attention weights."""

    @pytest.mark.parametrize("method", ["fx", "hook"])
    @torch.no_grad()
    def test_timms_extractor_reads_the_same_as_from_timms_model(self, method: str) -> None:
        model, batch = tiny("vit"), images()
        twin = timm_twin(model)
        for vit in (model, twin):
            for block in vit.blocks:
                block.attn.fused_attn = False
        ours, theirs = (AttentionExtract(vit, method=method)(batch) for vit in (model, twin))
        assert list(ours) == list(theirs)
        expected = model.forward_attention(batch)
        for mine, other, direct in zip(ours.values(), theirs.values(), expected, strict=True):
            assert deviation(mine, other) < 1e-4
            assert torch.equal(mine, direct)

    @torch.no_grad()
    def test_hooks_need_no_switch(self) -> None:
        model, batch = tiny("vit"), images()
        before = model(batch)
        maps = AttentionExtract(model, method="hook")(batch)
        assert all(map(torch.equal, maps.values(), model.forward_attention(batch)))
        assert deviation(model(batch), before) < 1e-5

    @pytest.mark.parametrize("kind", ["forward_pre", "full_backward_pre"])
    def test_hooks_before_the_module_read_attention_too(self, kind: str) -> None:
        model = tiny("vit")
        shapes: list[tuple[int, ...]] = []
        register = getattr(model.blocks[1].attn.attn_drop, f"register_{kind}_hook")
        register(lambda module, tensors: shapes.append(tuple(tensors[0].shape)))
        model(images()).sum().backward()
        assert shapes == [(2, 4, 65, 65)]

    def test_hooks_read_gradients_of_attention(self) -> None:
        model, batch = tiny("vit"), images()
        gradients: list[Any] = []
        for block in model.blocks:
            block.attn.attn_drop.register_full_backward_hook(
                lambda module, before, after: gradients.append(after[0])
            )
        model(batch)[:, 3].sum().backward()
        assert [tuple(gradient.shape) for gradient in gradients] == [(2, 4, 65, 65)] * 2
        assert all(gradient.any() for gradient in gradients)

    def test_timms_switch_counts_for_new_models(self) -> None:
        timm.layers.set_fused_attn(False)
        try:
            assert not any(block.attn.fused_attn for block in tiny("vit").blocks)
        finally:
            timm.layers.set_fused_attn(True)
        assert all(block.attn.fused_attn for block in tiny("vit").blocks)

    @pytest.mark.parametrize("rate", [0.0, 0.5])
    def test_explicit_attention_learns_as_the_fused_one(self, rate: float) -> None:
        outputs, gradients = [], []
        model = tiny("vit", attn_drop_rate=rate).train(rate > 0)
        batch = images()
        for fused in (True, False):
            for block in model.blocks:
                block.attn.fused_attn = fused
            model.zero_grad()
            torch.manual_seed(0)
            output = model(batch)
            output.square().mean().backward()
            outputs.append(output.detach())
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        assert deviation(outputs[1], outputs[0]) < 1e-5
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
