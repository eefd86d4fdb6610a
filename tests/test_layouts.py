"""The three layouts: names and shapes of each, and lossless translation between them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import get_args

import pytest
import timm
import torch
from tiny import deviation, images, tiny, torchvision_twin
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from swag_models.api import SPECS
from swag_models.errors import CheckpointError
from swag_models.layouts import (
    find_unknown_keys,
    recognise_layout,
    resize_position_embedding,
    translate_layout,
)
from swag_models.models import build
from swag_models.spec import Layout

PUBLISHED = json.loads((Path(__file__).parent / "golden" / "layouts.json").read_text())
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
FAMILIES = ("vit", "regnet")
TIMM = {
    "regnety_16gf": "regnety_160",
    "regnety_32gf": "regnety_320",
    "regnety_128gf": "regnety_1280",
    "vit_b16": "vit_base_patch16_224",
    "vit_l16": "vit_large_patch16_224",
    "vit_h14": "vit_huge_patch14_224",
}
Shapes = dict[str, tuple[torch.dtype, torch.Size]]


def shapes(state: dict[str, Tensor]) -> Shapes:
    return {key: (tensor.dtype, tensor.shape) for key, tensor in state.items()}


def meta_state(name: str, image_size: int | None = None) -> dict[str, Tensor]:
    spec = SPECS[name]
    with torch.device("meta"):
        return build(
            spec.config, num_classes=spec.num_classes, image_size=image_size or spec.image_size
        ).state_dict()


class TestPublishedNames:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_swag_layout_equals_the_published_file(self, name: str) -> None:
        expected = {
            key: (getattr(torch, dtype), torch.Size(shape))
            for key, (dtype, shape) in PUBLISHED[name]["tensors"].items()
        }
        assert shapes(translate_layout(meta_state(name), "swag")) == expected

    def test_all_published_files_are_checked(self) -> None:
        assert set(PUBLISHED) == {
            spec.name
            for spec in SPECS.values()
            if spec.pretraining == "swag" and spec.variant in ("backbone", "in1k")
        }

    @pytest.mark.parametrize("arch", TIMM)
    def test_torchvision_layout_equals_torchvisions_module(self, arch: str) -> None:
        name = f"{arch}_in1k"
        twin = torchvision_twin(SPECS[name].config, 1000, 224, device="meta")
        assert shapes(translate_layout(meta_state(name, 224), "torchvision")) == shapes(
            twin.state_dict()
        )

    @pytest.mark.parametrize("arch", TIMM)
    def test_timm_layout_equals_timms_module(self, arch: str) -> None:
        with torch.device("meta"):
            twin = timm.create_model(TIMM[arch], pretrained=False, num_classes=1000)
        assert shapes(translate_layout(meta_state(f"{arch}_in1k", 224), "timm")) == shapes(
            twin.state_dict()
        )


class TestRoundTrip:
    @pytest.mark.parametrize("arch", TIMM)
    @pytest.mark.parametrize("pair", list(itertools.permutations(LAYOUTS, 2)), ids="-".join)
    def test_keeps_every_name_and_shape(self, arch: str, pair: tuple[Layout, Layout]) -> None:
        for name in (arch, f"{arch}_in1k"):
            first = translate_layout(meta_state(name), pair[0])
            second = translate_layout(first, pair[1])
            assert recognise_layout(second) == (SPECS[name].family, pair[1])
            assert len(second) == len(first)
            assert shapes(translate_layout(second, pair[0])) == shapes(first)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("path", list(itertools.permutations(LAYOUTS)), ids="-".join)
    def test_keeps_every_value(self, family: str, path: tuple[Layout, ...]) -> None:
        state = tiny(family).state_dict()
        translated = state
        for layout in (*path, "timm"):
            translated = translate_layout(translated, layout)  # type: ignore[arg-type]
        assert translated.keys() == state.keys()
        assert all(torch.equal(translated[key], tensor) for key, tensor in state.items())

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_copies_no_tensor(self, family: str, layout: Layout) -> None:
        state = tiny(family).state_dict()
        pointers = {tensor.data_ptr() for tensor in state.values()}
        assert {
            tensor.data_ptr() for tensor in translate_layout(state, layout).values()
        } == pointers

    @pytest.mark.parametrize("family", FAMILIES)
    def test_does_not_change_its_argument(self, family: str) -> None:
        state = tiny(family).state_dict()
        keys = list(state)
        for layout in LAYOUTS:
            translated = translate_layout(state, layout)
            translated.clear()
        assert list(state) == keys

    def test_keeps_an_unknown_key(self) -> None:
        state = tiny("vit").state_dict() | {"extra.weight": torch.ones(3)}
        for layout in LAYOUTS:
            assert torch.equal(translate_layout(state, layout)["extra.weight"], torch.ones(3))
            assert find_unknown_keys(translate_layout(state, layout)) == ["extra.weight"]


class TestRecognition:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_each_layout_is_recognised(self, family: str, layout: Layout) -> None:
        state = translate_layout(tiny(family).state_dict(), layout)
        assert recognise_layout(state) == (family, layout)
        assert recognise_layout(reversed(list(state))) == (family, layout)
        assert find_unknown_keys(state) == []

    @pytest.mark.parametrize(
        "keys", [[], ["layers.0.conv1.weight"], ["pos_embed", "encoder.pos_embedding"]]
    )
    def test_unknown_keys_are_not_recognised(self, keys: list[str]) -> None:
        assert recognise_layout(keys) is None

    def test_error_shows_the_first_keys_and_the_layouts(self) -> None:
        with pytest.raises(
            CheckpointError, match=r"first keys: a\.weight, b\.bias, c\); .*swag, torchvision, timm"
        ):
            translate_layout(dict.fromkeys(("a.weight", "b.bias", "c", "d"), torch.ones(1)), "timm")
        with pytest.raises(CheckpointError, match=r"unknown state-dict layout .*none"):
            translate_layout({}, "timm")

    def test_error_names_an_unknown_target(self) -> None:
        with pytest.raises(
            CheckpointError, match=r"unknown layout 'keras'; allowed: swag, torchvision, timm"
        ):
            translate_layout(tiny("vit").state_dict(), "keras")  # type: ignore[arg-type]


class TestLoading:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_model_loads_every_layout(self, family: str, layout: Layout) -> None:
        source, model, batch = tiny(family), tiny(family), images()
        assert deviation(model(batch), source(batch)) > 0.01
        result = model.load_state_dict(translate_layout(source.state_dict(), layout))
        assert not result.missing_keys
        assert not result.unexpected_keys
        assert torch.equal(model(batch), source(batch))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_loading_is_strict_by_default(self, layout: Layout) -> None:
        state = translate_layout(tiny("vit").state_dict(), layout)
        del state[next(key for key in state if key.endswith("head.bias"))]
        with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"head.bias\""):
            tiny("vit").load_state_dict(state)
        assert tiny("vit").load_state_dict(state, strict=False).missing_keys == ["head.bias"]

    def test_torchvisions_early_mlp_names_are_loaded(self) -> None:
        source, model, batch = tiny("vit"), tiny("vit"), images()
        state = translate_layout(source.state_dict(), "torchvision")
        early = {
            key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): state[key]
            for key in state
        }
        assert len(early) == len(state)
        assert early.keys() != state.keys()
        assert recognise_layout(early) == ("vit", "torchvision")
        model.load_state_dict(early)
        assert torch.equal(model(batch), source(batch))
        assert translate_layout(early, "timm").keys() == model.state_dict().keys()
        assert translate_layout(early, "swag").keys() == translate_layout(state, "swag").keys()


class TestResizePositionEmbedding:
    @pytest.mark.parametrize(
        ("old", "new"), [(14, 24), (14, 32), (24, 14), (16, 37), (2, 3), (7, 7)]
    )
    def test_equals_torchvisions(self, old: int, new: int) -> None:
        position = torch.randn(1, 1 + old * old, 48)
        theirs = interpolate_embeddings(16 * new, 16, {"encoder.pos_embedding": position})[
            "encoder.pos_embedding"
        ]
        assert torch.equal(resize_position_embedding(position, (old, old), (new, new)), theirs)

    def test_keeps_the_class_token_and_the_corners(self) -> None:
        position = torch.randn(1, 1 + 4 * 6, 8)
        resized = resize_position_embedding(position, (4, 6), (9, 5))
        assert resized.shape == (1, 1 + 9 * 5, 8)
        assert torch.equal(resized[:, 0], position[:, 0])
        before, after = position[0, 1:].reshape(4, 6, 8), resized[0, 1:].reshape(9, 5, 8)
        for row, column in itertools.product((0, -1), repeat=2):
            torch.testing.assert_close(after[row, column], before[row, column])

    def test_grids_are_rows_by_columns(self) -> None:
        rows = torch.arange(4.0).reshape(4, 1).expand(4, 6).reshape(1, 24, 1)
        position = torch.cat([torch.zeros(1, 1, 1), rows], dim=1)
        resized = resize_position_embedding(position, (4, 6), (7, 3))[0, 1:].reshape(7, 3)
        assert torch.allclose(resized, resized[:, :1].expand(7, 3))
        torch.testing.assert_close(resized[[0, -1], 0], torch.tensor([0.0, 3.0]))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_keeps_the_dtype(self, dtype: torch.dtype) -> None:
        position = torch.randn(1, 17, 8).to(dtype)
        resized = resize_position_embedding(position, (4, 4), (6, 6))
        assert resized.dtype == dtype
        expected = resize_position_embedding(position.float(), (4, 4), (6, 6)).to(dtype)
        assert torch.equal(resized, expected)

    def test_passes_gradients(self) -> None:
        position = torch.randn(1, 17, 8, requires_grad=True)
        resize_position_embedding(position, (4, 4), (5, 7)).sum().backward()
        assert position.grad is not None
        assert position.grad.all()
