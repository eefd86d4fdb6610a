"""Patch dropout: in training only, a random part of the patches, always the class token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import VIT_SPEC, images, load_tiny, tiny
from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.models import ViT
from swag_models.models.vit_block import count_kept_patches, drop_patches
from swag_models.publish.model_info import count_flops

RATES = (0.1, 0.5, 0.75, 0.9, 0.99)


@pytest.mark.slow  # imports timm
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("patches", [1, 9, 64, 196])
def test_as_many_are_kept_as_by_timms(rate: float, patches: int) -> None:
    from timm.layers import PatchDropout

    tokens = torch.randn(3, 1 + patches, 4)
    theirs = PatchDropout(rate).train()(tokens)
    kept = drop_patches(tokens, rate)
    assert kept.shape == theirs.shape == (3, 1 + count_kept_patches(patches, rate), 4)
    for sample, old in zip(kept, tokens):
        assert torch.equal(sample[0], old[0])  # the class token
        found = [int((old == token).all(dim=1).nonzero()) for token in sample[1:]]
        assert len(set(found)) == len(found)
        assert 0 not in found


def test_each_patch_is_kept_equally_often_and_images_differ() -> None:
    torch.manual_seed(0)
    tokens = torch.arange(17.0).expand(4000, 17).unsqueeze(2)
    kept = drop_patches(tokens, 0.75)[:, 1:, 0].int()  # (N, 4)
    share = torch.bincount(kept.flatten(), minlength=17)[1:] / len(kept)
    assert (share - 0.25).abs().max() < 0.03  # 4 standard deviations
    assert len({tuple(sorted(row.tolist())) for row in kept}) > 1000


def run_by_hand(model: ViT, x: Tensor, seed: int) -> Tensor:
    """Logits from the patches that are kept, by masking all others out of attention."""
    patches = (x.shape[2] // model.patch_size) ** 2
    torch.manual_seed(seed)
    scores = torch.rand(len(x), patches)
    seen = torch.ones(len(x), 1 + patches, dtype=torch.bool)
    order = scores.argsort(dim=1)
    seen[:, 1:].scatter_(1, order[:, count_kept_patches(patches, 0.5) :], value=False)
    return model.forward_head(model.forward_features(x, attn_mask=seen[:, None, None]))


def test_what_is_left_out_has_no_effect() -> None:
    """In float64, against attention that does not see the patches that were dropped."""
    model, plain = (tiny("vit", patch_drop_rate=rate).double() for rate in (0.5, 0.0))
    plain.load_state_dict(model.state_dict())
    assert isinstance(plain, ViT)
    x = images(3).double()
    assert torch.equal(model(x), plain(x))  # off in evaluation
    model.train()
    torch.manual_seed(5)
    logits = model(x)
    torch.testing.assert_close(logits, run_by_hand(plain, x, 5), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(logits, plain(x))
    gradients = {}
    for each in (model, plain):
        torch.manual_seed(5)
        output = each(x) if each is model else run_by_hand(plain, x, 5)
        output.square().sum().backward()
        gradients[each] = {name: weight.grad for name, weight in each.named_parameters()}
    torch.testing.assert_close(*gradients.values(), rtol=1e-8, atol=1e-8)


def test_maps_have_all_patches_and_a_mask_is_refused() -> None:
    model: Any = tiny("vit", patch_drop_rate=0.5).train()
    x = images(2)
    assert model.forward_features(x).shape[1] == 33
    tokens, (last,) = model.forward_intermediates(x, 1)
    assert tokens.shape[1] == 65
    assert last.shape[2:] == (8, 8)
    mask = torch.ones(65, 65, dtype=torch.bool)
    with pytest.raises(
        ConfigError, match=r"^attn_mask needs all patches, but patch_drop_rate is 0.5 in"
    ):
        model.forward_features(x, attn_mask=mask)
    assert model.eval().forward_features(x, attn_mask=mask).shape[1] == 65


def test_a_frozen_backbone_sees_all_patches() -> None:
    model = tiny("vit", patch_drop_rate=0.5).train()
    x = images(2)
    model.freeze("pos_embed")
    assert model.forward_features(x).shape[1] == 33
    model.freeze()
    assert model.forward_features(x).shape[1] == 65
    model.unfreeze()
    assert model.forward_features(x).shape[1] == 33


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_reproducible(checkpointing: bool) -> None:
    model = tiny("vit", patch_drop_rate=0.5, drop_path_rate=0.5).train()
    model.set_grad_checkpointing(checkpointing)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        model.zero_grad()
        model(images(2)).square().sum().backward()
        weight = model.get_parameter("blocks.0.mlp.fc1.weight")
        assert weight.grad is not None
        results.append(weight.grad.clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_wrong_rates_and_regnets_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^patch_drop_rate is 1; give a number of at least 0 and"
    ):
        tiny("vit", patch_drop_rate=1)
    for make in (tiny, load_tiny):
        with pytest.raises(
            ConfigError, match=r"^patch_drop_rate is 0.5; a RegNet has no patches, leave it at 0$"
        ):
            make("regnet", patch_drop_rate=0.5)
    assert tiny("regnet", patch_drop_rate=0.0)


@pytest.mark.slow
def test_timm_and_load_model_pass_the_rate_on() -> None:
    import timm

    import swag_models.timm

    for model in (
        timm.create_model("swag_vit_nano_hashtags", patch_drop_rate=0.25),
        swag_models.load_model("vit_nano_hashtags", patch_drop_rate=0.25),
    ):
        assert repr(model.patch_drop) == "PatchDropout(rate=0.25)"


def test_operations_are_those_of_the_kept_patches() -> None:
    """Of a size with as many patches as are kept; embedding all patches is the difference."""
    half = count_flops(VIT_SPEC, patch_drop_rate=0.5)
    whole = count_flops(VIT_SPEC)
    width, mlp, pixels = 32, 64, 8 * 8 * 3
    embedding, head = 2 * 64 * pixels * width, 2 * width * 10

    def count_blocks(tokens: int) -> int:
        products = 2 * tokens * width * (4 * width + 2 * mlp)
        return 2 * (products + 2 * 2 * tokens**2 * width)

    assert whole == embedding + head + count_blocks(65)
    assert half == embedding + head + count_blocks(33)
