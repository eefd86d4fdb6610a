"""`weights=` as in torchvision, and torchvision's functions by name."""

from __future__ import annotations

import enum
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import RegNet_Y_16GF_Weights, ResNet50_Weights, ViT_B_16_Weights

import swag_models
from swag_models import list_models, load_model
from swag_models.catalog import MODELS
from swag_models.errors import ConfigError, UnknownModelError
from swag_models.weights_argument import VARIANTS, find_model, resolve_weights

NANO = ("vit_nano_hashtags", "regnety_nano_hashtags")


def is_same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[1])


@pytest.mark.parametrize("name", NANO)
class TestOwnWeights:
    def test_none_is_freshly_initialised(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        published = load_model(name)
        for options in ({"weights": None}, {"weights": None, "pretrained": True}):
            torch.manual_seed(1)
            fresh = load_model(name, **options)
            assert not is_same(fresh, published)
            torch.manual_seed(1)
            assert is_same(fresh, load_model(name, pretrained=False))
            assert fresh.spec is not None
            assert fresh.spec.sources == ()  # as for pretrained=False
            assert fresh.spec.metrics is None

    def test_default_is_the_catalogs(self, name: str) -> None:
        published = load_model(name)
        member = swag_models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
        text = f"{name}_Weights.DEFAULT"
        for weights in ("DEFAULT", member, text):
            assert is_same(load_model(name, weights=weights), published)
            assert is_same(load_model(name, weights=weights, pretrained=False), published)
            entry = getattr(swag_models, name)
            assert is_same(entry(weights=weights), published)
        assert not is_same(getattr(swag_models, name)(weights=None), published)

    def test_a_file_can_be_called_default(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        fresh = load_model(name, pretrained=False)
        save_file(fresh.state_dict(), tmp_path / "DEFAULT")
        assert is_same(load_model(name, weights="./DEFAULT"), fresh)
        assert is_same(load_model(name, weights=Path("DEFAULT")), fresh)
        assert is_same(load_model(name, weights="DEFAULT"), load_model(name))

    def test_a_folder_has_its_own(self, name: str, tmp_path: Path) -> None:
        model = load_model(name, weights=None)
        nn.init.ones_(next(model.parameters()))
        folder = swag_models_save(model, tmp_path / name)
        assert is_same(load_model(folder, weights="DEFAULT"), model)
        assert not is_same(load_model(folder, weights=None), model)
        # Although the folder has the name of the catalog's model, its weights are others.
        with pytest.raises(ConfigError, match="load it by this name"):
            load_model(folder, weights=swag_models.get_weight(f"{name}_Weights.DEFAULT"))


def swag_models_save(model: Any, folder: Path) -> Path:
    from swag_models import publish

    return publish.save(model, folder, license="mit")


PUBLISHED = [
    spec for spec in MODELS if spec.pretraining == "swag" and spec.variant in VARIANTS.values()
]


class TestTorchvisionsWeights:
    @pytest.mark.parametrize("spec", PUBLISHED)
    def test_each_is_a_model_of_the_catalog(self, spec: swag_models.ModelSpec) -> None:
        """By torchvision's URL, which is one of our sources."""
        members = [
            weights
            for builder in torchvision.models.list_models(torchvision.models)
            for weights in torchvision.models.get_model_weights(builder)
            if weights.url == spec.sources[0].url
        ]
        (member,) = members
        for weights in (member, str(member), member.name):
            assert resolve_weights(weights, spec) is None
        assert find_model(str(member)) is spec
        weight = swag_models.get_weight(str(member))
        assert (weight.value, weight.url) == (spec, member.url)
        assert weight.meta["num_params"] == member.meta["num_params"]
        assert weight.meta["categories"] == member.meta["categories"]
        assert weight.meta["_metrics"]["imagenet-1k"]["acc@1"] == pytest.approx(
            member.meta["_metrics"]["ImageNet-1K"]["acc@1"], abs=0.05
        )

    def test_a_backbone_shares_the_file_of_its_linear_classifier(self) -> None:
        spec = swag_models.get_spec("vit_b16")
        assert resolve_weights(ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1, spec) is None

    @pytest.mark.parametrize(
        ("name", "weights", "message"),
        [
            (
                "vit_b16_in1k_linear",
                ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,
                "those of the model vit_b16_in1k; load it by this name",
            ),
            (
                "vit_l16_in1k",
                "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1",
                "those of the model vit_b16_in1k; load it by this name",
            ),
            (
                "vit_b16_in1k",
                RegNet_Y_16GF_Weights.IMAGENET1K_SWAG_E2E_V1,
                "those of the model regnety_16gf_in1k",
            ),
            ("vit_b16_in1k", "IMAGENET1K_SWAG_LINEAR_V1", "those of the model vit_b16_in1k_linear"),
            # torchvision's DEFAULT of these are not SWAG's
            ("vit_b16_in1k", ViT_B_16_Weights.DEFAULT, "unknown weights"),
            ("vit_b16_in1k", ResNet50_Weights.DEFAULT, "unknown weights"),
            ("vit_b16_in1k", "IMAGENET1K_V1", "unknown weights"),
            (NANO[0], "IMAGENET1K_SWAG_E2E_V1", "unknown weights"),
            (NANO[0], enum.Enum("Odd\n", {"A\x1b": 1})["A\x1b"], "unknown weights"),
            (NANO[0], f"{NANO[1]}_Weights.DEFAULT", f"those of the model {NANO[1]}"),
            (NANO[0], "https://example.org/x.pth", "download it first"),
            (NANO[0], "hf://org/repo/x.pth", "download it first"),
            (NANO[0], {"a": 1}, "model.load_state_dict"),
            (NANO[0], True, "invalid weights True"),
            (NANO[0], torch.ones(2), "invalid weights"),
            (NANO[0], "", "weights"),
        ],
    )
    def test_others_are_refused_in_one_line(self, name: str, weights: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as error:
            load_model(name, weights=weights)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 500


class TestFunctions:
    def test_get_model_is_random_unless_weights_are_given(self) -> None:
        for name in NANO:
            assert not is_same(swag_models.get_model(name), load_model(name))
            assert is_same(swag_models.get_model(name, weights="DEFAULT"), load_model(name))
            assert swag_models.get_model(name, num_classes=3).num_classes == 3

    def test_builders_and_weights_by_name(self) -> None:
        builder = swag_models.get_model_builder(NANO[0])
        assert builder.__name__ == NANO[0]
        weights = swag_models.get_model_weights(builder).DEFAULT  # type: ignore[attr-defined]
        assert weights is weights.__class__[weights.name]
        assert str(weights) == f"{NANO[0]}_Weights.DEFAULT"
        model = builder(weights=weights)
        assert weights.transforms().preprocess == load_model(NANO[0]).spec.preprocess  # type: ignore[union-attr]
        assert weights.meta["categories"] == list(swag_models.load_classes(NANO[0]))
        state = weights.get_state_dict(progress=False)
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())

    @pytest.mark.parametrize("name", ["vit_nano", "vit_b_16", 3, None, "\x1b"])
    def test_unknown_names(self, name: Any) -> None:
        for function in (swag_models.get_model_builder, swag_models.get_model_weights):
            with pytest.raises((UnknownModelError, ConfigError)):
                function(name)
        with pytest.raises(ConfigError, match=r"invalid name|unknown weights"):
            swag_models.get_weight(name)

    def test_list_models_with_torchvisions_filters(self) -> None:
        everything = list_models()
        assert list_models(include="vit*") == list_models("vit*")
        assert list_models(include=["vit_b16*", "regnety_16gf"]) == [
            name for name in everything if name.startswith("vit_b16") or name == "regnety_16gf"
        ]
        assert list_models(exclude=("*_in1k*", "*nano*")) == [
            name for name in everything if "in1k" not in name and "nano" not in name
        ]
        assert list_models("vit*", include="*nano*", exclude="regnet*") == [NANO[0]]
        with pytest.raises(ConfigError):
            list_models(include=3)  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            list_models(exclude=[3])  # type: ignore[list-item]


class TestTimmsNames:
    def test_options(self, tmp_path: Path) -> None:
        fresh = load_model(NANO[0], weights=None)
        save_file(fresh.state_dict(), tmp_path / "x.safetensors")
        options: Any = {"img_size": 64, "checkpoint_path": os.fspath(tmp_path / "x.safetensors")}
        model = load_model(NANO[0], **options)
        assert model.image_size == (64, 64)
        assert torch.equal(model.cls_token, fresh.cls_token)
        defaults: Any = {"img_size": None, "checkpoint_path": ""}
        assert is_same(load_model(NANO[0], **defaults), load_model(NANO[0]))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"img_size": 64, "image_size": 64}, "pass image_size or img_size"),
            ({"checkpoint_path": "x", "weights": "y"}, "pass weights or checkpoint_path"),
            ({"num_clases": 3}, "unknown option 'num_clases'; did you mean: num_classes"),
            ({"proj_drop_rate": 0.1}, "unknown option 'proj_drop_rate'; did you mean"),
            ({"x\ny": 3}, "unknown option"),
        ],
    )
    def test_other_options_are_refused_in_one_line(self, options: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as error:
            load_model(NANO[0], **options)
        assert str(error.value).isprintable()


def test_a_pickled_spec_keeps_its_weights() -> None:
    """An entry of the catalog under another name still has its own weights."""
    spec = replace(swag_models.get_spec("vit_b16_in1k"), name="mine")
    assert resolve_weights(ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1, spec) is None
