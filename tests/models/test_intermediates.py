"""Intermediate maps equal timm's for every option; attention maps are those the blocks use."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from timm.models._features import FeatureGetterNet, FeatureHookNet, FeatureListNet
from tiny import CONFIGS, VIT, deviation, images, randomise, tiny
from torch import Tensor
from twins import timm_twin

from swag_models.errors import ConfigError
from swag_models.models import build

FAMILIES = ("vit", "regnet")
SIZES: list[int | tuple[int, int]] = [64, (32, 96)]


def assert_same(ours: Any, theirs: Any) -> None:
    """Compare tensors in equally nested lists and tuples."""
    if isinstance(theirs, Tensor):
        assert ours.is_contiguous() or not theirs.is_contiguous()
        assert deviation(ours, theirs) < 1e-4
        return
    assert isinstance(ours, type(theirs))
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs):
        assert_same(our, their)


@pytest.fixture(scope="module")
def vits() -> dict[Any, tuple[Any, Any]]:
    """Return our ViT and timm's for each image size."""
    torch.manual_seed(0)
    models = {size: tiny("vit", image_size=size) for size in SIZES}
    return {size: (model, timm_twin(model)) for size, model in models.items()}


@pytest.fixture(scope="module")
def regnets() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = tiny("regnet")
    return model, timm_twin(model)


class TestViT:
    @pytest.mark.parametrize("image_size", SIZES)
    @pytest.mark.parametrize("indices", [None, 1, 2, [0], [-1], [1, 0], [0, 0], (-2,)])
    def test_intermediates_are_timms_for_every_option(
        self, vits: Any, image_size: Any, indices: Any
    ) -> None:
        model, twin = vits[image_size]
        batch = images(image_size=image_size)
        options = ("norm", "return_prefix_tokens", "stop_early", "intermediates_only")
        for output_fmt, *chosen in product(("NCHW", "NLC"), *[(False, True)] * len(options)):
            arguments = {"indices": indices, "output_fmt": output_fmt, **dict(zip(options, chosen))}
            with torch.inference_mode():
                assert_same(
                    model.forward_intermediates(batch, **arguments),
                    twin.forward_intermediates(batch, **arguments),
                )

    def test_arguments_come_in_timms_order(self, vits: Any) -> None:
        model, twin = vits[64]
        batch, arguments = images(), ([0], True, False, True, "NLC", False)
        assert_same(
            model.forward_intermediates(batch, *arguments),
            twin.forward_intermediates(batch, *arguments),
        )

    def test_features_are_those_of_forward_features(self, vits: Any) -> None:
        model, batch = vits[64][0], images()
        features, maps = model.forward_intermediates(
            batch, norm=True, output_fmt="NLC", return_prefix_tokens=True
        )
        assert torch.equal(features, model.forward_features(batch))
        patches, token = maps[-1]
        assert torch.equal(torch.cat([token, patches], dim=1), features)

    def test_other_image_sizes_give_maps_of_their_grid(self, vits: Any) -> None:
        maps = vits[64][0].forward_intermediates(
            images(image_size=(24, 80)), intermediates_only=True
        )
        assert [level.shape for level in maps] == [(2, 32, 3, 10)] * VIT.depth

    def test_stopping_early_skips_further_blocks(self, vits: Any) -> None:
        model, ran = vits[64][0], []
        handle = model.blocks[1].register_forward_hook(lambda *_: ran.append(1))
        model.forward_intermediates(images(), [0], stop_early=True)
        assert not ran
        model.forward_intermediates(images(), [0])
        handle.remove()
        assert ran

    def test_unknown_format_is_rejected(self) -> None:
        with pytest.raises(
            ConfigError, match=r"output_fmt is 'NHWC'; allowed for a ViT: NCHW, NLC$"
        ):
            tiny("vit").forward_intermediates(images(), output_fmt="NHWC")


class TestRegNet:
    @pytest.mark.parametrize("image_size", [64, (96, 40), (33, 47)])
    @pytest.mark.parametrize(
        "indices", [None, 1, 2, 5, [0], [-1], [3, 1], [2, 2], (-5, -2), [1, 2, 3, 4]]
    )
    def test_intermediates_are_timms_for_every_option(
        self, regnets: Any, image_size: Any, indices: Any
    ) -> None:
        model, twin = regnets
        batch, options = images(image_size=image_size), ("norm", "stop_early", "intermediates_only")
        for chosen in product(*[(False, True)] * len(options)):
            arguments = {"indices": indices, **dict(zip(options, chosen))}
            with torch.inference_mode():
                assert_same(
                    model.forward_intermediates(batch, **arguments),
                    twin.forward_intermediates(batch, **arguments),
                )

    def test_arguments_come_in_timms_order(self, regnets: Any) -> None:
        model, twin = regnets
        batch, arguments = images(), ([0, 2], False, True, "NCHW", False)
        assert_same(
            model.forward_intermediates(batch, *arguments),
            twin.forward_intermediates(batch, *arguments),
        )

    def test_features_are_those_of_forward_features(self, regnets: Any) -> None:
        model, batch = regnets[0], images()
        features, maps = model.forward_intermediates(batch)
        assert torch.equal(features, model.forward_features(batch))
        assert torch.equal(maps[-1], features)

    def test_stopping_early_skips_further_stages(self, regnets: Any) -> None:
        model, ran = regnets[0], []
        handle = model.s2.register_forward_hook(lambda *_: ran.append(1))
        model.forward_intermediates(images(), [1], stop_early=True)
        assert not ran
        model.forward_intermediates(images(), [1])
        handle.remove()
        assert ran

    def test_timms_feature_list_works(self) -> None:
        model = tiny("regnet", drop_rate=0.5)
        ours, theirs = (
            FeatureListNet(twin, out_indices=(0, 2, 4)).train()
            for twin in (model, timm_twin(model))
        )
        batch = images(8)
        for our, their in zip(ours(batch), theirs(batch), strict=True):
            assert deviation(our, their) < 1e-3

    def test_tokens_are_rejected(self) -> None:
        with pytest.raises(ConfigError, match=r"output_fmt is 'NLC'; allowed for a RegNet: NCHW$"):
            tiny("regnet").forward_intermediates(images(), output_fmt="NLC")


@pytest.mark.parametrize("family", FAMILIES)
class TestBothFamilies:
    @pytest.mark.parametrize("indices", [0, -1, 9, [], [9], [-9], [0, 5], ["0"], [0.0]])
    def test_invalid_indices_are_rejected(self, family: str, indices: Any) -> None:
        levels = len(tiny(family).feature_info)
        message = f"; give the number of last levels, 1 to {levels}, or positions below {levels}"
        with pytest.raises(ConfigError, match=message) as error:
            tiny(family).forward_intermediates(images(), indices)
        assert f"indices is {indices!r}" in str(error.value)

    def test_gradients_are_timms(self, family: str) -> None:
        model, batch = tiny(family), images()
        twin = timm_twin(model)
        for backbone in (model, twin):
            sum(
                out.square().mean()
                for out in backbone.forward_intermediates(batch, intermediates_only=True)
            ).backward()
        theirs = {name: parameter.grad for name, parameter in twin.named_parameters()}
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == (theirs[name] is None), name
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, theirs[name], rtol=1e-2, atol=1e-4)

    @pytest.mark.parametrize(
        "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
    )
    def test_compiled_equals_eager(self, family: str, backend: str) -> None:
        model, batch = tiny(family), images()
        torch._dynamo.reset()
        with torch.no_grad():
            compiled = torch.compile(model.forward_intermediates, backend=backend, fullgraph=True)
            assert_same(compiled(batch, [0, 1]), model.forward_intermediates(batch, [0, 1]))

    def test_feature_info_is_timms_and_correct(self, family: str) -> None:
        model, batch = tiny(family), images(image_size=96)
        assert model.feature_info == timm_twin(model).feature_info
        for level, level_map in zip(
            model.feature_info, model.forward_intermediates(batch, intermediates_only=True)
        ):
            assert level_map.shape[1:] == (
                level["num_chs"],
                96 // level["reduction"],
                96 // level["reduction"],
            )
            assert model.get_submodule(level["module"])

    def test_feature_counts_are_timms(self, family: str) -> None:
        model = tiny(family)
        twin = timm_twin(model)
        assert (model.num_features, model.head_hidden_size) == (
            twin.num_features,
            twin.head_hidden_size,
        )

    def test_timms_feature_getter_works(self, family: str) -> None:
        model, batch = tiny(family), images()
        ours, theirs = (
            FeatureGetterNet(backbone, out_indices=2, norm=True)
            for backbone in (model, timm_twin(model))
        )
        assert_same(ours(batch), theirs(batch))
        assert ours.feature_info.channels() == theirs.feature_info.channels()
        assert ours.feature_info.reduction() == theirs.feature_info.reduction()

    def test_timms_feature_hooks_work(self, family: str) -> None:
        model, batch = tiny(family), images()
        ours, theirs = (
            FeatureHookNet(backbone, out_indices=(0, 1), no_rewrite=True, flatten_sequential=False)
            for backbone in (model, timm_twin(model))
        )
        for our, their in zip(ours(batch), theirs(batch), strict=True):
            assert deviation(our, their) < 1e-4


class TestAttention:
    @pytest.mark.parametrize("image_size", [64, (32, 96), (24, 40)])
    @pytest.mark.parametrize("indices", [None, 1, [0], [-1, 0]])
    def test_maps_times_values_equal_the_output_of_the_block(
        self, image_size: Any, indices: Any
    ) -> None:
        model, batch = tiny("vit"), images(image_size=image_size)
        block_indices = {None: [0, 1], 1: [1], (0,): [0], (-1, 0): [0, 1]}[
            tuple(indices) if isinstance(indices, list) else indices
        ]
        calls: list[tuple[Tensor, Tensor]] = []
        for index in block_indices:
            attention = model.blocks[index].attn
            attention.register_forward_hook(
                lambda _layer, inputs, output: calls.append((inputs[0], output))
            )
        with torch.no_grad():
            model(batch)
            maps = model.forward_attention(batch, indices)
            assert len(maps) == len(block_indices)
            for index, weights, (inputs, output) in zip(block_indices, maps, calls):
                attention = model.blocks[index].attn
                tokens = inputs.shape[1]
                assert weights.shape == (2, VIT.num_heads, tokens, tokens)
                torch.testing.assert_close(
                    weights.sum(dim=-1), torch.ones(2, VIT.num_heads, tokens)
                )
                values = (
                    attention.qkv(inputs)[..., 2 * VIT.width :]
                    .unflatten(2, (VIT.num_heads, -1))
                    .transpose(1, 2)
                )
                mixed = attention.proj((weights @ values).transpose(1, 2).flatten(2))
                assert deviation(mixed, output) < 1e-5

    def test_maps_are_not_flat(self) -> None:
        with torch.no_grad():
            (weights,) = tiny("vit").forward_attention(images(), 1)
        assert float(weights.std(dim=-1).mean()) > 0.1 / weights.shape[-1]

    def test_gradients_flow_and_dropout_is_left_out(self) -> None:
        model, batch = tiny("vit", attn_drop_rate=0.5).train(), images()
        first, second = (model.forward_attention(batch, [0])[0] for _ in range(2))
        assert torch.equal(first, second)
        first.square().sum().backward()
        assert model.blocks[0].attn.qkv.weight.grad.any()

    def test_blocks_after_the_last_chosen_map_are_skipped(self) -> None:
        model, ran = tiny("vit"), []
        for block in model.blocks:
            block.register_forward_hook(lambda *_: ran.append(1))
        model.forward_attention(images(), [0])
        assert not ran

    def test_half_precision_is_kept(self) -> None:
        (weights,) = tiny("vit").bfloat16().forward_attention(images().bfloat16(), 1)
        assert weights.dtype == torch.bfloat16
        torch.testing.assert_close(
            weights.float().sum(dim=-1), torch.ones(weights.shape[:-1]), rtol=0.02, atol=0
        )

    def test_a_regnet_has_no_attention(self) -> None:
        with pytest.raises(
            ConfigError,
            match=r"a RegNet has no attention maps; use a ViT, or Grad-CAM, which works for all",
        ):
            tiny("regnet").forward_attention(images())

    def test_invalid_indices_are_rejected(self) -> None:
        with pytest.raises(
            ConfigError,
            match=r"indices is \[2\]; give the number of last levels, 1 to 2, or positions below 2",
        ):
            tiny("vit").forward_attention(images(), [2])


@pytest.mark.parametrize("family", FAMILIES)
def test_classifier_can_be_reset_with_another_pooling(family: str) -> None:
    model, batch = tiny(family), images()
    twin = timm_twin(model)
    for backbone in (model, twin):
        backbone.reset_classifier(4, "avg")
    randomise(model)
    twin.load_state_dict(model.state_dict())
    assert deviation(model(batch), twin(batch)) < 1e-4
    with pytest.raises(
        ConfigError, match=r"global_pool is 'max'; allowed for a (ViT: token, avg|RegNet: avg), ''$"
    ):
        model.reset_classifier(4, "max")
    assert model(batch).shape == (2, 4)
    fresh = build(CONFIGS[family], num_classes=4, image_size=64).eval()
    fresh.reset_classifier(2)
    assert not fresh.get_classifier().training
