"""Fitting a state dict to a model: head, channels and positions; the rest must match."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONFIGS, TINY_SPECS, images, tiny
from torch import Tensor, nn

from swag_models import load_classes, load_model
from swag_models.errors import CheckpointError
from swag_models.layouts import resize_position_embedding, translate_layout
from swag_models.models import build
from swag_models.publish import save
from swag_models.spec import Preprocess
from swag_models.state_dict import fit_state_dict

FAMILIES = ("vit", "regnet")
STEM = {"vit": "patch_embed.proj.weight", "regnet": "stem.conv.weight"}
State = dict[str, Tensor]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def save_and_load(family: str, state: State, **options: Any) -> Any:
        torch.save(state, tmp_path / "file.pth")
        return load_model(TINY_SPECS[family], weights=tmp_path / "file.pth", **options)

    return save_and_load


def without_head(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if not key.startswith("head")}


def assert_same_backbone(model: nn.Module, state: State) -> None:
    backbone = without_head(model.state_dict())
    assert backbone.keys() == without_head(state).keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.items())


def assert_fresh_head(model: Any, num_classes: int) -> None:
    head = model.get_classifier()
    assert model.num_classes == num_classes
    assert head.weight.shape == (num_classes, model.num_features)
    assert not head.bias.any()
    assert float(head.weight.detach().abs().max()) < 0.1
    assert head.weight.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
class TestHead:
    @pytest.mark.parametrize("requested", [{}, {"num_classes": 10}])
    def test_head_of_the_same_size_is_loaded(
        self, family: str, requested: dict[str, int], load: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        state = tiny(family).state_dict()
        with caplog.at_level(logging.DEBUG, "swag_models"):
            model = load(family, state, **requested)
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
        assert not caplog.messages

    @pytest.mark.parametrize(
        ("in_file", "requested"), [(10, {"num_classes": 7}), (4, {"num_classes": 10})]
    )
    def test_head_of_another_size_is_replaced_with_a_warning(
        self,
        family: str,
        in_file: int,
        requested: dict[str, int],
        load: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        state = tiny(family, num_classes=in_file).state_dict()
        model = load(family, state, **requested)
        num_classes = requested["num_classes"]
        assert_fresh_head(model, num_classes)
        assert_same_backbone(model, state)
        (message,) = caplog.messages
        assert f"a head of {in_file} classes" in message
        assert f"the head of {num_classes} classes is freshly initialised" in message
        assert "file.pth" in message

    def test_head_without_classes_is_replaced(self, family: str, load: Any) -> None:
        state = tiny(family).state_dict()
        state[next(key for key in state if key.startswith("head") and key.endswith("bias"))] = (
            torch.tensor(1.0)
        )
        assert_fresh_head(load(family, state), 10)

    def test_missing_head_is_initialised_on_request(
        self, family: str, load: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        state = tiny(family, num_classes=None).state_dict()
        model = load(family, state, num_classes=10)
        assert_fresh_head(model, 10)
        assert_same_backbone(model, state)
        assert model(images()).shape == (2, 10)
        (message,) = caplog.messages
        assert "has no head" in message

    def test_missing_head_is_an_error_by_default(self, family: str, load: Any) -> None:
        with pytest.raises(CheckpointError, match=r"missing head.*pass num_classes=None"):
            load(family, tiny(family, num_classes=None).state_dict())

    def test_head_is_left_out_on_request(self, family: str, load: Any) -> None:
        state = tiny(family).state_dict()
        model = load(family, state, num_classes=None)
        assert model.num_classes == 0
        assert_same_backbone(model, state)

    def test_head_is_left_out_of_a_model_without_classes(self, family: str, tmp_path: Path) -> None:
        state = tiny(family).state_dict()
        torch.save(state, tmp_path / "file.pth")
        spec = replace(TINY_SPECS[family], num_classes=None, classes=None)
        assert_same_backbone(load_model(spec, weights=tmp_path / "file.pth"), state)
        assert load_model(spec, weights=tmp_path / "file.pth", num_classes=10).num_classes == 10

    @pytest.mark.parametrize("of_spec", [None, 10])
    def test_the_head_of_the_file_is_kept_unless_another_is_chosen(
        self, of_spec: int | None, family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        state = tiny(family, 3).state_dict()
        torch.save(state, tmp_path / "file.pth")
        spec = replace(TINY_SPECS[family], num_classes=of_spec, classes=None)
        model = load_model(spec, weights=tmp_path / "file.pth")
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
        assert model.num_classes == model.spec.num_classes == 3
        assert f"a head of 3 classes, which is kept (tiny_{family}: {of_spec or 'no head'})" in (
            caplog.text
        )
        caplog.clear()
        assert load_model(spec, weights=tmp_path / "file.pth", num_classes=None).num_classes == 0
        assert caplog.text == ""

    @pytest.mark.parametrize(
        "beside",
        [
            {"classes": ["a", "b", "c"]},
            {"class_to_idx": {"c": 2, "a": 0, "b": 1}},
            {"hyper_parameters": {"id2label": {0: "a", 1: "b", 2: "c"}}},
            {"meta": {"CLASSES": ("a", "b", "c"), "labels": ["x", "y"]}},
        ],
        ids=str,
    )
    def test_class_names_in_the_file_are_kept(
        self, beside: dict[str, Any], family: str, load: Any, tmp_path: Path
    ) -> None:
        model = load(family, {"model": tiny(family, 3).state_dict(), **beside})
        assert load_classes(model.spec) == ("a", "b", "c")
        save(model, tmp_path / "out", license="mit")
        assert load_classes(tmp_path / "out") == ("a", "b", "c")

    @pytest.mark.parametrize(
        "names",
        [
            ["a", "b"],
            ["a", "b", 3],
            ["a", "b", "\x1b[2J"],
            {0: "a", 1: "b", 3: "c"},
            {"a": 0, "b": 0, "c": 1},
            {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
            {"a": {}, "b": {}, "c": {}},
            "abc",
        ],
        ids=str,
    )
    def test_what_is_not_a_list_of_class_names_is_ignored(
        self, names: Any, family: str, load: Any
    ) -> None:
        model = load(family, {"model": tiny(family, 3).state_dict(), "classes": names})
        assert model.spec.num_classes == 3
        assert model.spec.classes is None

    def test_head_can_be_dropped_although_it_fits(self, family: str) -> None:
        state = tiny(family).state_dict()
        model = build(CONFIGS[family], num_classes=10, image_size=64)
        model.load_state_dict(fit_state_dict(state, model, origin="here", drop_head=True))
        assert_fresh_head(model, 10)
        assert_same_backbone(model, state)


class TestPositions:
    @pytest.mark.parametrize("image_size", [96, 32, (32, 96), (64, 72)])
    def test_positions_are_resized_to_the_image(
        self, image_size: int | tuple[int, int], load: Any
    ) -> None:
        state = tiny("vit").state_dict()
        model = load("vit", state, image_size=image_size)
        height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
        expected = resize_position_embedding(state["pos_embed"], (8, 8), (height // 8, width // 8))
        assert torch.equal(model.pos_embed, expected)
        assert model.image_size == (height, width)

    def test_positions_of_the_same_size_are_kept(self, load: Any) -> None:
        state = tiny("vit").state_dict()
        assert torch.equal(load("vit", state).pos_embed, state["pos_embed"])

    def test_positions_of_the_same_oblong_grid_are_kept(self, load: Any) -> None:
        state = tiny("vit", image_size=(32, 96)).state_dict()
        assert torch.equal(load("vit", state, image_size=(32, 96)).pos_embed, state["pos_embed"])

    def test_an_oblong_grid_with_the_same_number_of_positions_is_kept_in_timms_layout_only(
        self, load: Any
    ) -> None:
        oblong = tiny("vit", image_size=(32, 128))  # 4x16 positions, the same number as 8x8
        assert torch.equal(
            load("vit", oblong.state_dict(), image_size=(32, 128)).pos_embed, oblong.pos_embed
        )
        # In the swag layout, grids are square.
        published = translate_layout(oblong.state_dict(), "swag")
        resized = resize_position_embedding(oblong.pos_embed, (8, 8), (4, 16))
        torch.testing.assert_close(load("vit", published, image_size=(32, 128)).pos_embed, resized)

    def test_positions_of_another_oblong_grid_are_rejected(self, load: Any) -> None:
        state = tiny("vit", image_size=(32, 96)).state_dict()
        with pytest.raises(
            CheckpointError, match=r"wrong shapes pos_embed \(1, 49, 32\) instead of \(1, 65, 32\)"
        ):
            load("vit", state)

    def test_half_precision_positions_are_resized_in_float32(self, load: Any) -> None:
        state = tiny("vit").half().state_dict()
        model = load("vit", state, image_size=96)
        assert torch.equal(
            model.pos_embed, resize_position_embedding(state["pos_embed"], (8, 8), (12, 12)).float()
        )

    def test_a_regnet_has_no_positions_at_any_size(self, load: Any) -> None:
        state = tiny("regnet").state_dict()
        model = load("regnet", state, image_size=(96, 33))
        assert_same_backbone(model, state)


class TestMismatch:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_mismatch_is_listed_in_one_line(self, family: str, load: Any) -> None:
        state = tiny(family).state_dict()
        (missing, *_, resized) = [key for key in without_head(state) if key.endswith("bias")]
        del state[missing]
        state["neck.weight"] = torch.ones(2, 3)
        state[resized] = torch.ones(5)
        with pytest.raises(CheckpointError) as error:
            load(family, state)
        message = str(error.value)
        assert f"missing {missing}" in message
        assert "unexpected neck.weight" in message
        assert f"wrong shapes {resized} (5,) instead of (" in message
        assert "file.pth" in message
        assert "\n" not in message
        assert "num_classes=None" not in message

    def test_mismatches_of_many_tensors_are_counted(self, load: Any) -> None:
        state = {
            key: tensor
            for key, tensor in tiny("vit").state_dict().items()
            if not key.startswith("blocks.1.")
        }
        with pytest.raises(CheckpointError, match=r"missing blocks\.1$"):
            load("vit", state)

    def test_mismatch_of_families_is_named(self, load: Any) -> None:
        with pytest.raises(
            CheckpointError, match=r"file\.pth contains a regnet, but the model is a vit"
        ):
            load("vit", tiny("regnet").state_dict())
        model = build(CONFIGS["vit"], num_classes=10, image_size=64)
        with pytest.raises(
            CheckpointError,
            match="here contains weights in an unknown layout, but the model is a vit",
        ):
            fit_state_dict({"weight": torch.ones(1)}, model, origin="here")

    @pytest.mark.parametrize(
        ("family", "key", "shape"),
        [
            ("vit", "patch_embed.proj.weight", (3,)),
            ("vit", "patch_embed.proj.weight", (32, 5, 8, 8)),
            ("vit", "patch_embed.proj.weight", ()),
            ("vit", "pos_embed", (65,)),
            ("vit", "pos_embed", (65, 32)),
            ("vit", "pos_embed", (5, 17, 32)),
            ("vit", "pos_embed", (1, 17, 33)),
            ("vit", "pos_embed", (1, 1, 32)),
            ("vit", "pos_embed", (1, 0, 32)),
            ("vit", "head.weight", (10, 33)),
            ("regnet", "stem.conv.weight", (32,)),
        ],
    )
    def test_mismatch_of_a_special_tensor_is_listed(
        self, family: str, key: str, shape: tuple[int, ...], load: Any
    ) -> None:
        state = tiny(family).state_dict()
        state[key] = torch.ones(shape)
        with pytest.raises(CheckpointError, match=f"wrong shapes {key}"):
            load(family, state)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
    def test_mismatch_of_dtype_kind_is_listed(self, dtype: torch.dtype, load: Any) -> None:
        state = tiny("vit").state_dict()
        state["norm.weight"] = torch.ones(32, dtype=dtype)
        with pytest.raises(CheckpointError, match=r"norm\.weight"):
            load("vit", state)


class TestDescription:
    """A file whose spec is known must have the positions, channels and classes of the spec."""

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"num_classes": 4}, r"head\.(fc\.)?weight \(4, \d+\), where its description says 10"),
            ({"in_chans": 4}, r"\w+\.\w+\.weight \(\d+, 4, .*\), where its description says 3"),
            ({"image_size": 96}, r"pos_embed \(1, 145, 32\), where its description says 65"),
        ],
    )
    def test_other_sizes_are_rejected(
        self, family: str, options: dict[str, int], problem: str
    ) -> None:
        state, model = tiny(family, **options).state_dict(), tiny(family)
        spec = TINY_SPECS[family]
        if family == "regnet" and "image_size" in options:
            assert fit_state_dict(state, model, origin="here", published=spec)
            return
        with pytest.raises(
            CheckpointError, match=rf"^here does not fit its description: {problem}$"
        ):
            fit_state_dict(state, model, origin="here", published=spec)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_same_sizes_are_accepted_and_a_backbone_says_nothing_of_classes(
        self, family: str
    ) -> None:
        state, spec = tiny(family).state_dict(), TINY_SPECS[family]
        backbone = replace(spec, num_classes=None, classes=None)
        for published, num_classes in ((spec, 10), (backbone, None)):
            model = tiny(family, num_classes=num_classes)
            fitted = fit_state_dict(state, model, origin="here", published=published)
            assert fitted.keys() == model.state_dict().keys()
            assert all(torch.equal(tensor, state[key]) for key, tensor in fitted.items())

    def test_a_tensor_without_the_described_axis_is_rejected(self) -> None:
        state = tiny("vit").state_dict() | {"pos_embed": torch.ones(65)}
        with pytest.raises(CheckpointError, match=r"wrong shapes pos_embed \(65,\)"):
            fit_state_dict(state, tiny("vit"), origin="here", published=TINY_SPECS["vit"])

    def test_positions_of_an_oblong_description_are_kept(self) -> None:
        oblong = tiny("vit", image_size=(32, 128))
        spec = replace(TINY_SPECS["vit"], preprocess=Preprocess((32, 128)))
        published = translate_layout(oblong.state_dict(), "timm")
        for size in ((32, 128), 64):
            model = tiny("vit", image_size=size)
            fitted = fit_state_dict(published, model, origin="here", published=spec)
            expected = resize_position_embedding(oblong.pos_embed, (4, 16), model.grid_size)
            torch.testing.assert_close(fitted["pos_embed"], expected.detach(), rtol=0, atol=1e-6)


class TestStem:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("in_chans", [1, 2, 4, 6])
    def test_adapted_stem_keeps_the_scale_of_a_constant_image(
        self, family: str, in_chans: int, load: Any
    ) -> None:
        state = tiny(family).state_dict()
        state[STEM[family]] = state[STEM[family]].mean(dim=1, keepdim=True).repeat(1, 3, 1, 1)
        adapted = load(family, state, in_chans=in_chans).state_dict()[STEM[family]]
        torch.testing.assert_close(adapted.sum(dim=1), state[STEM[family]].sum(dim=1))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_stem_of_a_file_with_the_same_channels_is_kept(self, family: str, load: Any) -> None:
        state = tiny(family, in_chans=4).state_dict()
        assert torch.equal(
            load(family, state, in_chans=4).state_dict()[STEM[family]], state[STEM[family]]
        )
        with pytest.raises(CheckpointError, match=f"wrong shapes {STEM[family]}"):
            load(family, state)
