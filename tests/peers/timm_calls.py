"""What users of timm call on a model, with assertions on what they rely on.

Each function is the check of one row of compatibility.py.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from peers.subjects import Subject
from PIL import Image
from timm.models import FeatureInfo, _features, _features_fx
from torch import Tensor, nn


def equal(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def data_config(subject: Subject) -> None:
    model = subject.load()
    config = timm.data.resolve_model_data_config(model)
    size = subject.image_size if subject.family == "vit" else config["input_size"][1:]
    assert config["input_size"] == (3, *size)
    for key in ("mean", "std", "interpolation", "crop_pct"):
        expected = model.pretrained_cfg[key]
        assert config[key] == (tuple(expected) if isinstance(expected, list) else expected)
    image = Image.effect_noise((300, 200), 80).convert("RGB")
    assert timm.data.create_transform(**config)(image).shape == config["input_size"]


def pretrained_cfg(subject: Subject) -> None:
    model = subject.load()
    assert model.default_cfg == model.pretrained_cfg
    assert model.pretrained_cfg["num_classes"] == model.num_classes
    for key in ("classifier", "first_conv"):
        assert f"{model.pretrained_cfg[key]}.weight" in model.state_dict()


def set_input_size(subject: Subject) -> None:
    model = subject.load()
    patch = model.patch_embed.patch_size[0]
    size = (3 * patch, 5 * patch)
    model.set_input_size(img_size=size)
    assert model.patch_embed.grid_size == (3, 5)
    assert model(torch.randn(1, 3, *size)).shape == (1, model.num_classes)


def prune_intermediate_layers(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    with torch.no_grad():
        expected = model.forward_intermediates(images, [0, 1], intermediates_only=True)
        assert list(model.prune_intermediate_layers([0, 1])) == [0, 1]
        assert equal(model.forward_intermediates(images, [0, 1], intermediates_only=True), expected)


def get_intermediate_layers(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    with torch.no_grad():
        first, second = model.get_intermediate_layers(images, n=2)
        maps = model.forward_intermediates(images, 2, intermediates_only=True)
    assert equal([level.flatten(2).mT for level in maps], [first, second])


def last_intermediates(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    with torch.no_grad():
        features, maps = model.forward_intermediates(images, indices=2)
        assert torch.equal(features, model.forward_features(images))
        every = model.forward_intermediates(images, intermediates_only=True)
    assert equal(maps, every[-2:])


def intermediate_tokens(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    with torch.no_grad():
        (tokens,) = model.forward_intermediates(
            images, 1, output_fmt="NLC", intermediates_only=True
        )
        (level,) = model.forward_intermediates(images, 1, intermediates_only=True)
    assert torch.equal(tokens, level.flatten(2).mT)


def intermediate_dictionary(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    with torch.no_grad():
        named = model.forward_intermediates(images, 1, output_dict=True)
        features, maps = model.forward_intermediates(images, 1)
    assert torch.equal(named["image_features"], features)
    assert equal(named["image_intermediates"], maps)


def attention_mask(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    tokens = model.patch_embed.num_patches + model.num_prefix_tokens
    with torch.no_grad():
        everything = model.forward_features(images, attn_mask=torch.ones(tokens, tokens).bool())
        torch.testing.assert_close(everything, model.forward_features(images))
        itself = model.forward_features(images, attn_mask=torch.eye(tokens).bool())
    assert not torch.allclose(itself, everything, atol=1e-2)


def pooled_without_head(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert torch.equal(model(images), pooled)
    assert pooled.shape == (1, model.num_features)


def unpooled_without_head(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    with torch.no_grad():
        model.reset_classifier(0, "")
        assert torch.equal(model(images), model.forward_features(images))


def create_without_head(subject: Subject) -> None:
    model = subject.create(num_classes=0)
    assert model.num_classes == 0
    assert model(subject.images()).shape == (1, model.num_features)


def load_without_head(subject: Subject) -> None:
    model = subject.load(num_classes=0)
    assert model.num_classes == 0
    assert model(subject.images()).shape == (1, model.num_features)


def load_without_pooling(subject: Subject) -> None:
    model, images = subject.load(num_classes=0, global_pool=""), subject.images()
    with torch.no_grad():
        assert torch.equal(model(images), model.forward_features(images))


def create_without_pooling(subject: Subject) -> None:
    model, images = subject.create(num_classes=0, global_pool=""), subject.images()
    with torch.no_grad():
        assert torch.equal(model(images), model.forward_features(images))


def create_with_img_size(subject: Subject) -> None:
    patch = subject.create().patch_embed.patch_size[0]
    model = subject.create(img_size=(4 * patch, 6 * patch))
    assert model.patch_embed.grid_size == (4, 6)
    assert model.default_cfg["input_size"][0] == 3


def create_features_only(subject: Subject) -> None:
    model = subject.create(features_only=True, out_indices=(0, 1))
    maps = model(subject.images())
    assert [level.shape[1] for level in maps] == model.feature_info.channels()


def create_with_checkpoint(subject: Subject) -> None:
    model = subject.create()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        torch.save(model.state_dict(), path)
        again = subject.create(checkpoint_path=str(path))
    assert equal(model.state_dict().values(), again.state_dict().values())


def _feature_net(kind: str, **options: Any) -> Any:
    def check(subject: Subject) -> None:
        net: Any = getattr(_features, kind, None) or getattr(_features_fx, kind)
        torch.manual_seed(0)
        expected = subject.load()
        torch.manual_seed(0)
        # As timm's own entry points pass them; a ViT has its maps in blocks.
        names = [info["module"] for info in expected.feature_info]
        model = net(subject.load(), out_indices=(0, 2), **options).eval()
        images = subject.images()
        with torch.no_grad():
            maps = model(images)
            if isinstance(maps, dict):
                assert len(maps) == 2
                maps = list(maps.values())
            modules = {names[index]: index for index in (0, 2)}
            assert list(model.feature_info.module_name()) == list(modules)
            theirs = expected.forward_intermediates(images, [0, 2], intermediates_only=True)
        for ours, level in zip(maps, theirs, strict=True):
            if ours.ndim == 3:  # hooks and graphs of a ViT give all tokens
                ours = ours[:, -level[0, 0].numel() :].mT.unflatten(2, level.shape[2:])
            torch.testing.assert_close(ours, level)

    return check


feature_list_net = _feature_net("FeatureListNet")
feature_dict_net = _feature_net("FeatureDictNet")
feature_hook_net = _feature_net("FeatureHookNet")
feature_getter_net = _feature_net("FeatureGetterNet")
feature_graph_net = _feature_net("FeatureGraphNet")


def feature_info(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    info = FeatureInfo(model.feature_info, out_indices=(0, 2))
    maps = model.forward_intermediates(images, [0, 2], intermediates_only=True)
    assert info.channels() == [level.shape[1] for level in maps]
    assert info.reduction() == [images.shape[-1] // level.shape[-1] for level in maps]


def graph_extract_net(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    name = "norm" if subject.family == "vit" else "s1"
    node = [node for node in _features_fx.get_graph_node_names(model)[1] if name in node][-1]
    net = _features_fx.GraphExtractNet(model, [node], return_dict=True)
    assert net(images)[node].shape[0] == 1


def _attention_extract(method: str) -> Any:
    def check(subject: Subject) -> None:
        model = subject.load()
        turn_off_fused_attention(model)
        maps = timm.utils.AttentionExtract(model, method=method)(subject.images())
        assert len(maps) == len(model.blocks)
        for level in maps.values():
            torch.testing.assert_close(level.sum(-1), torch.ones_like(level[..., 0]))

    return check


attention_extract_fx = _attention_extract("fx")
attention_extract_hook = _attention_extract("hook")


def turn_off_fused_attention(model: nn.Module) -> None:
    """Make a model compute its attention maps, as timm's users do for rollout."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def attention_rollout(subject: Subject) -> None:
    model, images, maps = subject.load(), subject.images(), []
    turn_off_fused_attention(model)
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda *call: maps.append(call[2]))
    with torch.no_grad():
        model(images)
    rollout: Tensor = torch.eye(maps[0].shape[-1])
    for level in maps:
        rollout = (level.mean(1) / 2 + torch.eye(level.shape[-1]) / 2) @ rollout
    torch.testing.assert_close(rollout.sum(-1), torch.ones_like(rollout[..., 0]))


def token_attributes(subject: Subject) -> None:
    model = subject.load()
    embed = model.patch_embed
    tokens = model.forward_features(subject.images())
    assert tokens.shape == (1, model.num_prefix_tokens + embed.num_patches, model.embed_dim)
    rows, columns = embed.grid_size
    height, width = embed.patch_size
    assert (rows * height, columns * width) == tuple(embed.img_size) == subject.image_size


def head_attributes(subject: Subject) -> None:
    model = subject.load()
    assert model.num_features == model.head_hidden_size == model.get_classifier().in_features
    assert model.num_classes == model.get_classifier().out_features


def pool(subject: Subject) -> None:
    model = subject.load()
    tokens = model.forward_features(subject.images())
    assert torch.equal(model.pool(tokens), tokens[:, 0])
    assert torch.equal(model.pool(tokens, "avg"), tokens[:, 1:].mean(1))


def global_pool(subject: Subject) -> None:
    model = subject.load()
    assert model.global_pool == ("token" if subject.family == "vit" else "avg")


def init_weights(subject: Subject) -> None:
    model = subject.load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.init_weights()
