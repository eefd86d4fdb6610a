"""Token merging against its definition, computed token by token in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VIT, VIT_SPEC, deviation, images, load_tiny, randomise, tiny
from torch import Tensor, nn

import swag_models
from swag_models.errors import ConfigError
from swag_models.export import export_model
from swag_models.models import ViT, build
from swag_models.models.token_merging import merge

Token = tuple[Tensor, set[int]]  # value (D,), the places of the tokens that it consists of


def merging(count: int, **options: Any) -> ViT:
    """The model `tiny("vit")` with merging."""
    model = tiny("vit", merge_tokens=count, **options)
    assert isinstance(model, ViT)
    return model


def attend_slowly(attention: Any, tokens: list[Token], normed: Tensor) -> tuple[Tensor, Tensor]:
    """Attention in which each token is present as often as it has places: (output, mean keys)."""
    copies = [index for index, (_, places) in enumerate(tokens) for _ in places]
    q, k, v = attention._split_heads(normed[None]).unbind(0)
    scores = q[0] @ k[0][:, copies].mT / math.sqrt(attention.head_dim)
    heads = scores.softmax(dim=-1) @ v[0][:, copies]
    return attention.proj(heads.transpose(0, 1).flatten(1)), k[0].mean(dim=0)


def merge_slowly(tokens: list[Token], keys: Tensor, count: int) -> list[Token]:
    unit = keys / keys.norm(dim=1, keepdim=True)
    pairs = []
    for first in range(2, len(tokens), 2):  # the class token is 0
        second = max(range(1, len(tokens), 2), key=lambda j: float(unit[first] @ unit[j]))
        pairs.append((float(unit[first] @ unit[second]), first, second))
    gone = {first: second for _, first, second in sorted(pairs, reverse=True)[:count]}
    groups = {index: [index] for index in range(len(tokens)) if index not in gone}
    for first, second in gone.items():
        groups[second].append(first)
    order = [0, *(i for i in groups if i and i % 2 == 0), *(i for i in groups if i % 2)]
    result = []
    for index in order:
        members = [tokens[member] for member in groups[index]]
        places = set().union(*(places for _, places in members))
        mean = torch.stack([value * len(places) for value, places in members]).sum(0) / len(places)
        result.append((mean, places))
    return result


@torch.no_grad()
def forward_slowly(model: ViT, image: Tensor, count: int) -> Tensor:
    """All tokens (S, D) of one image after the last norm."""
    embedded = model._embed(image[None])[0]
    tokens: list[Token] = [(value, {place}) for place, value in enumerate(embedded)]
    block: Any
    for block in model.blocks:
        x = torch.stack([value for value, _ in tokens])
        y, keys = attend_slowly(block.attn, tokens, block.norm1(x))
        tokens = [(value + new, places) for (value, places), new in zip(tokens, y, strict=True)]
        tokens = merge_slowly(tokens, keys, count)
        x = torch.stack([value for value, _ in tokens])
        x = x + block.mlp(block.norm2(x))
        tokens = [(value, places) for value, (_, places) in zip(x, tokens, strict=True)]
    result = torch.empty_like(embedded)
    for value, places in tokens:
        result[list(places)] = model.norm(value)
    return result


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("count", [1, 3, 5, 1000])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (8, 8), (8, 16)])
def test_tokens_equal_the_definition(size: tuple[int, int], count: int, fused: bool) -> None:
    model = merging(count).double()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    batch = images(3, size).double()
    tokens = model.forward_features(batch)
    for image, result in zip(batch, tokens, strict=True):
        # sums over patches are float32
        expected = forward_slowly(model, image, count)
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
        assert (result.unique(dim=0).shape[0] < result.shape[0]) == (size != (8, 8))


def test_without_merging_nothing_changes() -> None:
    model, plain = merging(0), tiny("vit")
    plain.load_state_dict(model.state_dict())
    batch = images(3)
    assert type(model.blocks[0]) is type(plain.blocks[0])  # type: ignore[index]
    assert torch.equal(model(batch), plain(batch))


def test_without_merging_a_replaced_block_needs_only_tokens() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    for block in (nn.Identity(), Own()):
        model, batch = tiny("vit"), images(1)
        assert isinstance(model, ViT)
        model.blocks[0] = block
        tokens, _ = model.forward_intermediates(batch, norm=True)
        assert torch.equal(tokens, model.forward_features(batch))
        assert len(model.get_intermediate_layers(batch, n=1)) == 1


def test_maps_and_attention_have_the_full_grid() -> None:
    model, batch = merging(4), images(2, (32, 40))
    tokens, maps = model.forward_intermediates(batch, norm=True)
    assert all(level.shape == (2, VIT.width, 4, 5) for level in maps)
    assert torch.equal(maps[-1].flatten(2).mT, tokens[:, 1:])
    assert torch.equal(tokens, model.forward_features(batch))
    weights = model.forward_attention(batch)
    assert all(level.shape == (2, VIT.num_heads, 21, 21) for level in weights)
    torch.testing.assert_close(weights[-1].sum(-1), torch.ones(2, VIT.num_heads, 21))
    # rows of tokens that are one are equal
    assert weights[-1][0, 0].unique(dim=0).shape[0] < 21
    pooled = build_pooled(model)
    torch.testing.assert_close(pooled(batch), tokens[:, 1:].mean(dim=1))


def build_pooled(model: ViT) -> ViT:
    pooled = build(VIT, num_classes=0, image_size=64, global_pool="avg", merge_tokens=4).eval()
    assert isinstance(pooled, ViT)
    state = {name: value for name, value in model.state_dict().items() if "head" not in name}
    pooled.load_state_dict(state)
    return pooled


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_all_parameters(checkpointing: bool) -> None:
    model = merging(3).train()
    model.set_grad_checkpointing(checkpointing)
    batch = images(2)
    model(batch).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert all(g.abs().sum() > 0 for g in gradients.values() if g is not None)


def test_load_model_merges_and_keeps_weights() -> None:
    model = swag_models.load_model("vit_nano_hashtags", merge_tokens=4).eval()
    plain = swag_models.load_model("vit_nano_hashtags").eval()
    assert isinstance(model, ViT)
    assert model.merge_tokens == 4
    assert model.state_dict().keys() == plain.state_dict().keys()
    batch = images(2, model.image_size)
    with torch.inference_mode():
        assert not torch.equal(model(batch), plain(batch))
        assert (model(batch) - plain(batch)).abs().mean() < plain(batch).std()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_digits_do_not_accumulate(dtype: torch.dtype) -> None:
    exact, batch = merging(6), images(4)
    model = merging(6)
    model.load_state_dict(exact.state_dict())
    with torch.inference_mode():
        output = model.to(dtype)(batch.to(dtype)).float()
        reference = exact.double()(batch.double())
        close = [deviation(a[None], b[None]) for a, b in zip(output, reference, strict=True)]
    assert sorted(close)[1] < (1e-4 if dtype == torch.float32 else 0.5)


@pytest.mark.slow  # 12 s
def test_export_and_compilation(tmp_path: Path) -> None:
    model = load_tiny("vit", merge_tokens=3).eval()
    export_model(model, tmp_path / "model.pt2", spec=VIT_SPEC)
    export_model(model, tmp_path / "model.onnx", spec=VIT_SPEC)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    batch = images(2, model.image_size)
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch), model(batch))


@pytest.mark.parametrize("count", [-1, 1.5, True, "3", None, 10**9])
def test_other_numbers_are_refused(count: Any) -> None:
    with pytest.raises(ConfigError, match=r"^merge_tokens is .*; give the number of tokens that"):
        build(VIT, num_classes=1, image_size=32, merge_tokens=count)


def test_what_has_no_tokens_or_needs_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^merge_tokens is 2; a RegNet has no tokens, leave it"):
        swag_models.load_model("regnety_nano_hashtags", merge_tokens=2)
    model, mask = merging(2), torch.ones(17, 17, dtype=torch.bool)
    for call in (model.forward_features, model.forward_intermediates):
        with pytest.raises(ConfigError, match=r"^attn_mask is for all tokens, but merge_"):
            call(images(2), attn_mask=mask)


def test_each_layer_has_all_patches() -> None:
    """The sizes of the tokens sum to the number of patches, and state what each consists of."""
    model, batch = merging(7), images(2, (40, 48))
    total, tokens = 31, 31
    with torch.no_grad():
        state = model.blocks.start(model._embed(batch))
        for block in model.blocks:
            state = model.blocks.advance(block, state)
            tokens -= min(7, (tokens - 1) // 2)
            x, size, source = state
            assert x.shape[1] == size.shape[1] == tokens
            assert torch.equal(size.sum(dim=1), torch.full((2, 1), float(total)))
            for sizes, sources in zip(size[..., 0], source, strict=True):
                assert torch.equal(sources.bincount(minlength=tokens).float(), sizes)
            assert (source[:, 0] == 0).all()
            assert (size[:, 0] == 1).all()  # nothing is merged into the class token
    assert tokens == 17


def test_the_order_of_patches_within_each_set_does_not_matter() -> None:
    """In one block; a later one divides tokens into sets by the order of those that are left."""
    model = merging(5)
    del model.blocks[1:]
    batch = images(2, 48)
    model.set_input_size(48)
    first, second = torch.arange(1, 36, 2), torch.arange(0, 36, 2)  # places of patches
    order = torch.empty(36, dtype=torch.long)
    order[1::2], order[::2] = first[torch.randperm(18)], second[torch.randperm(18)]
    patches = batch.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)[:, :, order]  # (N, 3, 36, 8, 8)
    permuted = patches.unflatten(2, (6, 6)).transpose(3, 4).flatten(2, 3).flatten(3)
    with torch.no_grad():
        expected = model.forward_features(batch)
        positions = torch.cat([torch.zeros(1, dtype=torch.long), order + 1])
        model.pos_embed.copy_(model.pos_embed[:, positions])
        outputs = model.forward_features(permuted)
    torch.testing.assert_close(outputs, expected[:, positions], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(outputs, expected, atol=1e-2)


def test_an_example_by_hand() -> None:
    """Tokens 1 and 3 are the second set. 2 is like 1, and 4 like neither: 2 is merged into 1."""
    x = torch.tensor([[[9.0], [1.0], [4.0], [5.0], [7.0]]])
    size = torch.tensor([[[1.0], [2.0], [1.0], [1.0], [1.0]]])
    source = torch.tensor([[0, 1, 1, 2, 3, 4]])  # of 5 patches and the class token
    keys = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [1.0, 0.1], [0.0, 3.0], [-1.0, -2.0]]])
    tokens, sizes, sources = merge(x, size, source, keys, 1)
    assert tokens[0, :, 0].tolist() == [9, 7, 2, 5]  # (2 * 1 + 1 * 4) / 3 = 2
    assert sizes[0, :, 0].tolist() == [1, 1, 3, 1]
    assert sources.tolist() == [[0, 2, 2, 2, 3, 1]]
    # all of the first set: 4 points away from both, and less from 1
    tokens, sizes, sources = merge(x, size, source, keys, 9)
    assert tokens[0, :, 0].tolist() == [9, 13 / 4, 5]
    assert sizes[0, :, 0].tolist() == [1, 4, 1]
    assert sources.tolist() == [[0, 1, 1, 1, 2, 1]]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_cannot_merge_is_named() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    for block in (nn.Identity(), Own()):
        model, batch = merging(3), images(1)
        model.blocks[1] = block
        for call in (model, model.forward_intermediates, model.forward_attention):
            with pytest.raises(
                ConfigError,
                match=rf"^a block is replaced by {type(block).__name__}, which does not merge",
            ):
                call(batch)
    model = merging(3)
    with torch.no_grad():
        expected = model(batch)
        model.blocks[0] = torch.compile(model.blocks[0], backend="eager")  # still merges
        torch.testing.assert_close(model(batch), expected)
    with pytest.raises(ConfigError, match=r"^torch\.jit\.script does not support merge_tokens; "):
        torch.jit.script(model)


def test_layers_of_the_block_are_those_without_merging() -> None:
    def describe(model: nn.Module) -> list[tuple[str, str]]:
        return [
            (name, type(module).__name__)
            for name, module in model.named_modules()
            if name.count(".") > 1
        ]

    assert describe(merging(2)) == describe(randomise(tiny("vit")))


def test_an_export_for_all_sizes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^dynamic_size is not possible with merge_tokens"):
        export_model(merging(2), tmp_path / "x.pt2", spec=VIT_SPEC, dynamic_size=True)
    assert not list(tmp_path.iterdir())
