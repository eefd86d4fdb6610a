"""What code for timm's models uses beside the forward methods, compared with timm's own models."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import FeatureDictNet, FeatureListNet
from timm.models._features import FeatureGetterNet, FeatureHookNet
from timm.models._features import FeatureInfo as TimmFeatureInfo
from timm.models.regnet import RegNet as TimmRegNet
from timm.models.regnet import RegNetCfg
from timm.models.vision_transformer import VisionTransformer
from tiny import REGNET, VIT, deviation, images, load_tiny, randomise, tiny

import swag_models
from swag_models import load_model, load_preprocess, publish
from swag_models.errors import ConfigError
from swag_models.models import FeatureNet, RegNet, ViT, build
from swag_models.spec import ImageSize, Preprocess

FAMILIES = ("vit", "regnet")
NANO = {"vit": "vit_nano_hashtags", "regnet": "regnety_nano_hashtags"}
DEEP_VIT = replace(VIT, depth=4)  # to have blocks to remove


def make_twin(model: ViT | RegNet, **options: Any) -> Any:
    """timm's model of the same shape with the same weights."""
    options = {"num_classes": model.num_classes, "global_pool": model.global_pool, **options}
    twin: Any
    if isinstance(model, ViT):
        twin = VisionTransformer(
            img_size=model.image_size,
            patch_size=model.patch_size,
            embed_dim=model.embed_dim,
            depth=len(model.blocks),
            num_heads=VIT.num_heads,
            mlp_ratio=VIT.mlp_width / VIT.width,
            fc_norm=False,
            **options,
        )
    else:
        config = RegNetCfg(
            depth=REGNET.depth,
            w0=REGNET.w_0,
            wa=REGNET.w_a,
            wm=REGNET.w_m,
            group_size=REGNET.group_width,
            se_ratio=REGNET.se_ratio,
        )
        twin = TimmRegNet(config, **options)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def deep(family: str, **options: Any) -> ViT | RegNet:
    """A tiny model with four blocks or stages."""
    if family == "regnet":
        return tiny("regnet", **options)
    return randomise(build(DEEP_VIT, **{"num_classes": 10, "image_size": 64, **options})).eval()


def equal(ours: Any, theirs: Any) -> bool:
    """Whether two results have the same structure and, up to rounding, the same values."""
    if isinstance(theirs, torch.Tensor):
        return ours.shape == theirs.shape and deviation(ours, theirs) < 1e-4
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in theirs)
    return len(ours) == len(theirs) and all(map(equal, ours, theirs))


class TestDataConfig:
    """timm's two lines for a transform give this library's preprocessing."""

    PHOTO = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    ).resize((330, 250))

    def check(self, model: ViT | RegNet, name: Any, image_size: ImageSize | None = None) -> None:
        config = resolve_model_data_config(model)
        preprocess = load_preprocess(name, image_size=image_size)
        assert config["input_size"] == (3, *preprocess.preprocess.size)
        assert torch.equal(create_transform(**config)(self.PHOTO), preprocess(self.PHOTO))
        assert model.default_cfg is model.pretrained_cfg

    @pytest.mark.parametrize("name", NANO.values())
    @pytest.mark.parametrize("size", [None, 64, (64, 96), (96, 48)])
    @pytest.mark.parametrize("pretrained", [True, False])
    def test_catalog(self, name: str, size: ImageSize | None, pretrained: bool) -> None:
        self.check(load_model(name, image_size=size, pretrained=pretrained), name, size)

    @pytest.mark.parametrize("name", ["vit_b16_in1k", "regnety_16gf_in1k_linear"])
    def test_large_models(self, name: str) -> None:
        with torch.device("meta"):
            spec = swag_models.get_spec(name)
            model = build(spec.config, num_classes=1000, image_size=spec.image_size)
        model.spec = spec
        self.check(model, name)
        assert resolve_model_data_config(model)["crop_pct"] == 1.0

    @pytest.mark.parametrize("family", FAMILIES)
    def test_folder_of_another_preprocessing(self, family: str, tmp_path: Path) -> None:
        spec = swag_models.get_spec(NANO[family])
        preprocess = Preprocess((64, 48), "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        model = load_model(NANO[family], image_size=(64, 48))
        model.spec = replace(spec, preprocess=preprocess)
        self.check(model, model.spec)
        publish.save(model, tmp_path / "model")
        self.check(load_model(tmp_path / "model"), tmp_path / "model")
        self.check(load_model(tmp_path / "model", image_size=96), tmp_path / "model", 96)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_built_without_spec(self, family: str) -> None:
        config = resolve_model_data_config(tiny(family, image_size=(32, 64), in_chans=4))
        assert (config["input_size"], config["crop_pct"]) == ((4, 32, 64), 1.0)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_size_that_was_set_and_copies(self, family: str) -> None:
        model = load_model(NANO[family])
        model.set_input_size((96, 64))
        for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            self.check(same, NANO[family], (96, 64))

    def test_a_change_by_the_user_is_kept(self) -> None:
        model = load_model(NANO["vit"])
        model.default_cfg["mean"] = (0.5, 0.5, 0.5)
        model.reset_classifier(3)
        assert resolve_model_data_config(model)["mean"] == (0.5, 0.5, 0.5)
        model.pretrained_cfg = {"input_size": (3, 80, 80)}
        assert resolve_model_data_config(model)["input_size"] == (3, 80, 80)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_names_in_it_are_those_of_the_model(self, family: str) -> None:
        model = load_model(NANO[family])
        names = model.state_dict()
        for key in ("first_conv", "classifier"):
            assert f"{model.pretrained_cfg[key]}.weight" in names
        assert model.pretrained_cfg["num_classes"] == 65
        assert model.pretrained_cfg["label_names"] == swag_models.load_classes(NANO[family])
        if family == "regnet":
            x = torch.zeros(1, *model.pretrained_cfg["input_size"])
            assert model.forward_features(x).shape[2:] == model.pretrained_cfg["pool_size"]

    def test_timm_saves_a_folder_that_it_reads(self, tmp_path: Path) -> None:
        model, batch = load_model(NANO["vit"]), images(2, 48)
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
        twin = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert equal(model(batch), twin(batch).detach())
        assert resolve_model_data_config(twin)["input_size"] == (3, 48, 48)


@pytest.mark.parametrize("family", FAMILIES)
class TestHeads:
    @pytest.mark.parametrize("pool", [None, ""])
    def test_no_classes_is_timms(self, family: str, pool: str | None, tmp_path: Path) -> None:
        options = {} if pool is None else {"global_pool": pool}
        model, batch = load_tiny(family, num_classes=0, **options), images()
        assert model.num_classes == 0
        twin = make_twin(model)
        assert equal(model(batch), twin(batch))
        assert model(batch).ndim == (2 if pool is None else 3 if family == "vit" else 4)
        publish.save(model, tmp_path / "model", license="mit")
        loaded = load_model(tmp_path / "model")
        assert equal(loaded(batch), model(batch))
        assert (loaded.num_classes, loaded.global_pool) == (0, model.global_pool)
        # Another head of the same folder is pooled.
        assert load_model(tmp_path / "model", num_classes=0)(batch).ndim == 2
        assert load_model(tmp_path / "model", num_classes=3)(batch).shape == (2, 3)

    @pytest.mark.parametrize("name", NANO.values())
    def test_reset_is_timms(self, family: str, name: str) -> None:
        model, batch = tiny(family), images()
        twin = make_twin(model)
        pre_logits = model.forward_head(model.forward_features(batch), pre_logits=True)
        for arguments in ((0,), (0, ""), (0, "avg")):
            model.reset_classifier(*arguments)
            twin.reset_classifier(*arguments)
            assert model.num_classes == twin.num_classes == 0
            assert equal(model(batch), twin(batch))
        if family == "regnet":
            assert torch.equal(model(batch), pre_logits)
        model.reset_classifier(4)
        assert (model.num_classes, model(batch).shape) == (4, (2, 4))

    def test_none_is_the_originals(self, family: str, tmp_path: Path) -> None:
        model, batch = load_tiny(family, num_classes=None), images()
        assert model.num_classes == 0
        assert model(batch).ndim == (2 if family == "vit" else 4)
        publish.save(model, tmp_path / "backbone", license="mit")
        assert equal(load_model(tmp_path / "backbone")(batch), model(batch))
        pooled = load_model(tmp_path / "backbone", num_classes=0)(batch)
        assert pooled.shape == (2, model.num_features)
        pooled = load_tiny(family, num_classes=0)
        publish.save(pooled, tmp_path / "pooled", license="mit")
        unpooled = load_model(tmp_path / "pooled", num_classes=None)
        assert unpooled(batch).ndim == (2 if family == "vit" else 4)

    def test_old_config_of_a_backbone_means_the_same(self, family: str, tmp_path: Path) -> None:
        """Before `global_pool=""`, a backbone of a RegNet was written without it."""
        folder = publish.save(load_tiny(family, num_classes=None), tmp_path / "old", license="mit")
        config = json.loads((folder / "config.json").read_text())
        assert config["swag_models"]["global_pool"] == ("token" if family == "vit" else None)

    def test_a_head_needs_pooled_features(self, family: str, tmp_path: Path) -> None:
        model = load_tiny(family)
        if family == "regnet":
            with pytest.raises(ConfigError, match="pass num_classes=0 for the feature map"):
                model.reset_classifier(3, "")
            assert model.num_classes == 10
        else:
            twin = make_twin(model)
            for each in (model, twin):
                each.reset_classifier(10, "")
            twin.load_state_dict(model.state_dict())
            assert model(images()).shape == twin(images()).shape == (2, 65, 10)
            with pytest.raises(ConfigError, match="head is applied to every token"):
                publish.save(model, tmp_path / "dense")


class TestTokens:
    def test_attributes(self) -> None:
        model = deep("vit", image_size=(32, 64))
        twin = make_twin(model)
        for name in ("embed_dim", "num_prefix_tokens", "num_reg_tokens", "has_class_token"):
            assert getattr(model, name) == getattr(twin, name)
        for name in ("patch_size", "grid_size", "img_size", "num_patches"):
            assert getattr(model.patch_embed, name) == getattr(twin.patch_embed, name)
        for name in ("scale", "num_heads", "head_dim"):
            assert getattr(model.blocks[0].attn, name) == getattr(twin.blocks[0].attn, name)
        assert not hasattr(tiny("regnet"), "num_prefix_tokens")  # by which code recognises a ViT

    @pytest.mark.parametrize("pool", ["token", "avg", "", None])
    def test_pool(self, pool: str | None) -> None:
        model = deep("vit", global_pool="avg")
        tokens = model.forward_features(images())
        assert equal(model.pool(tokens, pool), make_twin(model).pool(tokens, pool))

    @pytest.mark.parametrize("n", [1, 2, (0, 2), [-1]])
    @pytest.mark.parametrize("reshape", [False, True])
    @pytest.mark.parametrize("prefix", [False, True])
    @pytest.mark.parametrize("norm", [False, True])
    def test_get_intermediate_layers(self, n: Any, reshape: bool, prefix: bool, norm: bool) -> None:
        model, batch = deep("vit"), images()
        arguments = (batch, n, reshape, prefix, norm)
        assert equal(
            model.get_intermediate_layers(*arguments),
            make_twin(model).get_intermediate_layers(*arguments),
        )

    def test_get_intermediate_layers_of_dinov2(self) -> None:
        """Dinov2's result: tuples of normalised patch tokens and class token (N, D)."""
        model, batch = deep("vit"), images()
        ((patches, token),) = model.get_intermediate_layers(batch, n=1, return_class_token=True)
        tokens = model.forward_features(batch)
        assert torch.equal(token, tokens[:, 0])
        assert torch.equal(patches, tokens[:, 1:])
        (maps,) = model.get_intermediate_layers(batch, reshape=True, norm=True)
        assert torch.equal(maps.flatten(2).transpose(1, 2), patches)

    @pytest.mark.parametrize("shape", [(65, 65), (1, 65), (2, 1, 65, 65), (2, 4, 65, 65)])
    @pytest.mark.parametrize("kind", [torch.bool, torch.float32])
    def test_attention_mask(self, shape: tuple[int, ...], kind: torch.dtype) -> None:
        model, batch = deep("vit"), images()
        twin = make_twin(model)
        mask = torch.rand(shape) > 0.5
        mask[..., 0] = True  # each token sees at least one
        mask = mask if kind == torch.bool else mask.float()
        expected = twin.forward_features(batch, attn_mask=mask)
        assert not equal(model.forward_features(batch), expected)
        assert equal(model.forward_features(batch, mask), expected)
        layers = twin.get_intermediate_layers(batch, 2, attn_mask=mask)
        assert equal(model.get_intermediate_layers(batch, 2, attn_mask=mask), layers)
        for block in model.blocks:
            block.attn.fused_attn = False
        assert equal(model.forward_features(batch, mask), expected)
        model.set_grad_checkpointing()
        assert equal(model.train().forward_features(batch, mask), expected)

    @pytest.mark.parametrize(
        "mask",
        [torch.ones(65), torch.ones(64, 64), torch.ones(3, 1, 65, 65), torch.ones(65, 65).int(), 3],
    )
    def test_wrong_attention_mask(self, mask: Any) -> None:
        for method in (deep("vit").forward_features, deep("vit").forward_intermediates):
            with pytest.raises(ConfigError, match=r"attn_mask is .*S=65"):
                method(images(), attn_mask=mask)

    @pytest.mark.parametrize("prefix", [False, True])
    @pytest.mark.parametrize("only", [False, True])
    def test_output_dict(self, prefix: bool, only: bool) -> None:
        model, batch = deep("vit"), images()
        options = {
            "return_prefix_tokens": prefix,
            "intermediates_only": only,
            "output_dict": True,
            "output_fmt": "NLC",
        }
        assert equal(
            model.forward_intermediates(batch, 2, **options),
            make_twin(model).forward_intermediates(batch, 2, **options),
        )
        regnet = tiny("regnet")
        output = regnet.forward_intermediates(batch, output_dict=True, intermediates_only=only)
        assert output.keys() - {"image_features"} == {"image_intermediates"}
        assert ("image_features" in output) is not only


@pytest.mark.parametrize("family", FAMILIES)
class TestPruning:
    @pytest.mark.parametrize("indices", [1, 2, (0, 2), [1], (-2,)])
    @pytest.mark.parametrize("norm", [False, True])
    def test_is_timms(self, family: str, indices: Any, norm: bool) -> None:
        model, batch = deep(family), images()
        twin = make_twin(model)
        before = model.forward_intermediates(batch, indices, intermediates_only=True)
        chosen = model.prune_intermediate_layers(indices, prune_norm=norm)
        assert chosen == twin.prune_intermediate_layers(indices, prune_norm=norm)
        assert model.state_dict().keys() == twin.state_dict().keys()
        assert model.num_classes == 0
        assert equal(model(batch), twin(batch))
        assert equal(model.forward_intermediates(batch, chosen, intermediates_only=True), before)
        assert model.layers[-1][0].startswith(model.feature_info[-1]["module"])
        for name in model.layers[-1]:
            assert model.get_submodule(name) is not None

    def test_a_pruned_model_trains_and_freezes(self, family: str) -> None:
        model, batch = deep(family), images()
        last = model.layers[1][0]
        model.freeze(up_to=last)
        model.prune_intermediate_layers([1])
        model.set_grad_checkpointing()
        model.train().reset_classifier(3, "avg")
        model(batch).sum().backward()
        trained = {name for name, p in model.named_parameters() if p.grad is not None}
        assert trained
        assert not [name for name in trained if name.startswith(f"{last}.")]
        model.freeze()
        model.unfreeze()
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_all_layers_can_be_kept(self, family: str) -> None:
        model, batch = deep(family), images()
        logits = model(batch)
        model.prune_intermediate_layers(1, prune_head=False)
        assert torch.equal(model(batch), logits)

    def test_a_pruned_model_is_not_published_as_a_whole_one(
        self, family: str, tmp_path: Path
    ) -> None:
        model = load_tiny(family)
        model.prune_intermediate_layers([0])
        with pytest.raises(ConfigError, match="tensors differ from those of a"):
            publish.save(model, tmp_path / "model")
        assert not (tmp_path / "model").exists()


class TestInputSize:
    @pytest.mark.parametrize("size", [32, (64, 32), (96, 128), 64])
    def test_vit_is_timms(self, size: ImageSize) -> None:
        model, pair = tiny("vit"), size if isinstance(size, tuple) else (size, size)
        twin = make_twin(model)
        for each in (model, twin):
            each.set_input_size(img_size=pair)
        assert model.image_size == twin.patch_embed.img_size
        assert model.pos_embed.shape == twin.pos_embed.shape
        # timm resizes with another filter: equal shapes, and equal positions for the same grid
        batch = images(image_size=pair)
        twin.pos_embed.data.copy_(model.pos_embed)
        assert equal(model(batch), twin(batch))

    def test_equals_loading_with_the_size(self) -> None:
        for name in NANO.values():
            model, batch = load_model(name).requires_grad_(False), images(2, (64, 96))
            model.set_input_size((64, 96))
            expected = load_model(name, image_size=(64, 96))
            assert torch.equal(model(batch), expected(batch))
            assert not any(parameter.requires_grad for parameter in model.parameters())

    def test_wrong_sizes(self) -> None:
        model = tiny("vit")
        for options, message in (
            ({"img_size": 60}, "not a multiple of the patch size 8"),
            ({"patch_size": 16}, "patches have 8 pixels, which cannot be changed"),
            ({"img_size": "64"}, "image_size is '64'"),
        ):
            with pytest.raises(ConfigError, match=message):
                model.set_input_size(**options)
        model.set_input_size(None, 8)
        model.set_input_size()
        assert model.image_size == (64, 64)
        with pytest.raises(ConfigError, match="too small"):
            tiny("regnet").set_input_size(16)


@pytest.mark.parametrize("family", FAMILIES)
class TestFeatures:
    def test_feature_info_has_timms_methods(self, family: str) -> None:
        info = tiny(family).feature_info
        theirs = TimmFeatureInfo([dict(level) for level in info], tuple(range(len(info))))
        for same in (info, copy.deepcopy(info), pickle.loads(pickle.dumps(info))):
            for method in ("channels", "reduction", "module_name"):
                for idx in (None, 0, [1, 0]):
                    assert getattr(same, method)(idx) == getattr(theirs, method)(idx)
        assert info.get_dicts(["num_chs"], [0]) == theirs.get_dicts(["num_chs"], [0])

    @pytest.mark.parametrize("indices", [None, 1, 2, (0, 2), (-1,)])
    def test_features_only(self, family: str, indices: Any) -> None:
        name, batch = NANO[family], images(2, 64)
        model = load_model(name)
        net = load_model(name, features_only=True, out_indices=indices)
        assert isinstance(net, FeatureNet)
        chosen = indices or (3 if family == "vit" else None)
        expected = model.forward_intermediates(batch, chosen, intermediates_only=True)
        assert equal(net(batch), expected)
        assert [level.shape[1] for level in net(batch)] == net.feature_info.channels()
        assert [64 // level.shape[2] for level in net(batch)] == net.feature_info.reduction()
        assert not net.training
        assert "num_classes" not in net.pretrained_cfg
        assert resolve_model_data_config(net)["input_size"] == (3, 48, 48)

    def test_features_only_by_a_function_and_with_options(self, family: str) -> None:
        entry = getattr(swag_models, NANO[family])
        net = entry(False, features_only=True, num_classes=0, in_chans=1, image_size=64)
        net.set_grad_checkpointing()
        sum(level.sum() for level in net.train()(images(2, 64, 1))).backward()
        assert all(parameter.grad is not None for parameter in net.parameters())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"out_indices": 2}, "out_indices needs features_only=True"),
            ({"features_only": True, "num_classes": 3}, "leave num_classes and global_pool out"),
            ({"features_only": True, "out_indices": (9,)}, r"indices is \(9,\)"),
            ({"features_only": "yes"}, "features_only 'yes': allowed: bool"),
        ],
    )
    def test_wrong_options(self, family: str, options: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_model(NANO[family], **options)

    def test_timms_extractors(self, family: str) -> None:
        batch = images()
        for make in (FeatureGetterNet, FeatureHookNet, FeatureListNet, FeatureDictNet):
            if family == "vit" and make in (FeatureListNet, FeatureDictNet):
                continue  # they do not find the blocks of timm's ViT either
            model = deep(family)
            expected = model.forward_intermediates(batch, (0, 2), intermediates_only=True)
            maps = make(model, out_indices=(0, 2))(batch)
            maps = list(maps.values()) if isinstance(maps, dict) else maps
            if make is FeatureHookNet and family == "vit":
                maps = [x[:, 1:].transpose(1, 2).unflatten(2, (8, 8)) for x in maps]
            assert equal(maps, expected)
