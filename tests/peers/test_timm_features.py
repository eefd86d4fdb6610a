"""Scenarios of timm's tests of intermediate features, and of tracing and scripting models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from peers.subjects import LARGE, OURS, REGNET, TIMM, TIMM_REGNET, TIMM_VIT, VIT, Subject, on
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import swag_models
from swag_models.models import build

SPECS = {spec.arch: spec for spec in map(swag_models.get_spec, swag_models.list_models())}


def check_maps(maps: list[Tensor], info: FeatureInfo, images: Tensor) -> None:
    """Assert that maps have the channels and the stride that the model states."""
    assert len(maps) == len(info.channels()) >= 3
    for level, channels, reduction in zip(maps, info.channels(), info.reduction()):
        assert level.shape[:2] == (len(images), channels)
        for cells, pixels in zip(level.shape[2:], images.shape[2:]):
            assert abs(cells - math.ceil(pixels / reduction)) <= 1
        assert torch.isfinite(level).all()


@on(*OURS, *TIMM, *LARGE)
class TestFeatures:
    @pytest.mark.parametrize("kind", [None, "getter", "hook"])
    def test_a_features_only_model_returns_the_maps_it_describes(
        self, kind: str | None, subject: Subject
    ) -> None:
        if kind == "hook" and subject.family == "vit":
            pytest.skip("hooks give tokens, which timm does not lay out as maps")
        model = subject.create(features_only=True, **({"feature_cls": kind} if kind else {}))
        images = subject.images()
        with torch.no_grad():
            check_maps(model(images), model.feature_info, images)

    def test_chosen_maps_are_those_of_the_whole_list(self, subject: Subject) -> None:
        torch.manual_seed(0)
        every = subject.create(features_only=True, feature_cls="getter", out_indices=(0, 1, 2))
        torch.manual_seed(0)
        some = subject.create(features_only=True, feature_cls="getter", out_indices=(0, 2))
        images = subject.images()
        with torch.no_grad():
            first, _, third = every(images)
            for ours, expected in zip(some(images), (first, third), strict=True):
                torch.testing.assert_close(ours, expected)

    def test_intermediates_are_described_and_come_with_the_features(self, subject: Subject) -> None:
        model, images = subject.create(), subject.images()
        info = FeatureInfo(model.feature_info, len(model.feature_info))
        with torch.no_grad():
            features, maps = model.forward_intermediates(images, output_fmt="NCHW")
            check_maps(maps, info, images)
            torch.testing.assert_close(features, model.forward_features(images))
            last = model.forward_intermediates(images, 2, intermediates_only=True)
            assert all(torch.equal(ours, level) for ours, level in zip(last, maps[-2:]))
        model.set_grad_checkpointing()
        again, _ = model.forward_intermediates(images)
        torch.testing.assert_close(again, features, rtol=1e-4, atol=1e-5)

    def test_pruned_layers_do_not_change_the_kept_maps(self, subject: Subject) -> None:
        model, images = subject.create(), subject.images()
        before = sum(parameter.numel() for parameter in model.parameters())
        with torch.no_grad():
            (expected,) = model.forward_intermediates(images, [1], intermediates_only=True)
            kept = model.prune_intermediate_layers([1])
            (level,) = model.forward_intermediates(images, kept, intermediates_only=True)
        assert list(kept) == [1]
        assert torch.equal(level, expected)
        assert sum(parameter.numel() for parameter in model.parameters()) < before


@on(VIT, TIMM_VIT, LARGE[0])
class TestTokens:
    def test_tokens_are_the_cells_of_the_map(self, subject: Subject) -> None:
        model, images = subject.create(), subject.images()
        with torch.no_grad():
            maps = model.forward_intermediates(images, 1, intermediates_only=True)
            tokens = model.forward_intermediates(
                images, 1, output_fmt="NLC", intermediates_only=True
            )
        assert torch.equal(maps[0].flatten(2).mT, tokens[0])

    @pytest.mark.parametrize("prefix", [False, True])
    @pytest.mark.parametrize("only", [False, True])
    def test_a_dictionary_has_what_the_tuple_has(
        self, prefix: bool, only: bool, subject: Subject
    ) -> None:
        model, images = subject.create(), subject.images()
        options = {"return_prefix_tokens": prefix, "intermediates_only": only}
        with torch.no_grad():
            named = model.forward_intermediates(images, [0, -1], output_dict=True, **options)
            plain = model.forward_intermediates(images, [0, -1], **options)
        maps = plain if only else plain[1]
        if prefix:
            maps, tokens = zip(*maps)
            ours = named["image_intermediates_prefix"]
            assert all(torch.equal(a, b) for a, b in zip(ours, tokens, strict=True))
        expected = named["image_intermediates"]
        assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
        assert ("image_features" in named) is not only
        assert only or torch.equal(named["image_features"], plain[0])
        assert ("image_intermediates_prefix" in named) is prefix

    def test_layers_are_returned_in_the_form_of_dino(self, subject: Subject) -> None:
        model, images = subject.create(), subject.images()
        with torch.no_grad():
            (tokens,) = model.get_intermediate_layers(images, n=1, norm=True)
            ((level, token),) = model.get_intermediate_layers(
                images, n=[-1], reshape=True, return_prefix_tokens=True, norm=True
            )
            features = model.forward_features(images)
        assert torch.equal(tokens, features[:, model.num_prefix_tokens :])
        assert torch.equal(token, features[:, : model.num_prefix_tokens])
        assert torch.equal(level.flatten(2).mT, tokens)

    @pytest.mark.parametrize("method", ["fx", "hook"])
    def test_attention_is_extracted(self, method: str, subject: Subject) -> None:
        from timm.layers import set_fused_attn

        set_fused_attn(False)  # timm's models compute their attention maps only then
        try:
            model = subject.create()
        finally:
            set_fused_attn(True)
        if hasattr(model, "set_fused_attn"):
            model.set_fused_attn(False)
        maps = timm.utils.AttentionExtract(model, method=method)(subject.images())
        assert len(maps) == len(model.blocks)
        tokens = model.patch_embed.num_patches + model.num_prefix_tokens
        for level in maps.values():
            assert level.shape[-2:] == (tokens, tokens)
            torch.testing.assert_close(level.sum(-1), torch.ones_like(level[..., 0]))


def extract(model: nn.Module) -> nn.Module:
    """Trace a model as torchvision does, up to its output, in both modes."""
    options: dict[str, Any] = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    train, evaluation = get_graph_node_names(model, tracer_kwargs=options)
    return create_feature_extractor(
        model,
        train_return_nodes=[train[-1]],
        eval_return_nodes=[evaluation[-1]],
        tracer_kwargs=options,
    )


@on(*OURS, *TIMM, *LARGE)
class TestGraphs:
    def test_the_traced_graph_gives_the_same_logits(self, subject: Subject) -> None:
        model, images = subject.create(), subject.images()
        with torch.inference_mode():
            (logits,) = extract(model)(images).values()
            assert torch.equal(logits, model(images))

    @pytest.mark.peers
    def test_gradients_flow_through_the_traced_graph(self, subject: Subject) -> None:
        graph = extract(subject.create(num_classes=42).train()).train()
        (logits,) = graph(subject.images(2)).values()
        logits.mean().backward()
        assert logits.shape == (2, 42)
        assert not [name for name, value in graph.named_parameters() if value.grad is None]

    @pytest.mark.peers
    def test_torchscript_gives_the_same_logits(self, subject: Subject) -> None:
        with timm.set_scriptable(True):
            model = subject.create()
        images = subject.images()
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.script(model)(images), model(images))

    @pytest.mark.peers
    def test_the_traced_graph_can_be_scripted(self, subject: Subject) -> None:
        model, images = subject.create(), subject.images()
        with torch.no_grad():
            (logits,) = torch.jit.script(extract(model))(images).values()
            torch.testing.assert_close(logits, model(images))


@on(REGNET, TIMM_REGNET)
def test_traced_features_can_be_scripted(subject: Subject) -> None:
    model = subject.create(features_only=True, feature_cls="fx")
    images = subject.images()
    with torch.no_grad():
        maps = torch.jit.script(model)(images)
        check_maps(maps, model.feature_info, images)


@pytest.mark.parametrize(
    "arch",
    [pytest.param(arch, marks=() if "nano" in arch else pytest.mark.peers) for arch in SPECS],
)
def test_every_architecture_is_traceable(arch: str) -> None:
    spec = SPECS[arch]
    with torch.device("meta"):
        model = build(spec.config, num_classes=10, image_size=spec.image_size).eval()
        graph = torch.fx.symbolic_trace(model)
        assert graph(torch.zeros(2, 3, *spec.preprocess.size)).shape == (2, 10)
