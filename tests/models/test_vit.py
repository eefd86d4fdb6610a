"""The ViT equals torchvision's and timm's, at the image size it was built for and at others."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from tiny import VIT, deviation, images, randomise, tiny, torchvision_twin
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings
from twins import timm_vit

from swag_models.catalog.configs import VIT_B16
from swag_models.errors import ConfigError
from swag_models.layouts import resize_position_embedding, translate_layout
from swag_models.models import ViT, build, vit

OTHER_SIZES = [32, 96, (48, 96), (8, 64)]


def at_size(model: ViT, image_size: int | tuple[int, int]) -> ViT:
    """Return a model built for another image size, with the same weights."""
    resized = build(VIT, num_classes=model.num_classes, image_size=image_size)
    state = dict(model.state_dict())
    state["pos_embed"] = resize_position_embedding(
        state["pos_embed"], model.grid_size, resized.grid_size
    )
    resized.load_state_dict(state)
    return resized.eval().to(model.pos_embed.dtype)


class TestEquality:
    def test_equals_torchvision(self) -> None:
        model, reference, batch = tiny("vit"), torchvision_twin(VIT, 10, 64), images()
        reference.load_state_dict(translate_layout(model.state_dict(), "torchvision"))
        assert deviation(model(batch), reference(batch)) < 1e-4

    @pytest.mark.parametrize("image_size", [32, 96])
    def test_equals_torchvision_at_another_size(self, image_size: int) -> None:
        model, reference, batch = (
            tiny("vit"),
            torchvision_twin(VIT, 10, image_size),
            images(image_size=image_size),
        )
        state = translate_layout(model.state_dict(), "torchvision")
        reference.load_state_dict(interpolate_embeddings(image_size, VIT.patch_size, state))
        assert deviation(model(batch), reference(batch)) < 1e-4

    @pytest.mark.parametrize("image_size", [64, (32, 96)])
    @pytest.mark.parametrize("num_classes", [10, None])
    def test_equals_timm(self, num_classes: int | None, image_size: int | tuple[int, int]) -> None:
        model = tiny("vit", num_classes=num_classes, image_size=image_size)
        reference = timm_vit(img_size=image_size, num_classes=num_classes or 0)
        reference.load_state_dict(model.state_dict())
        batch = images(image_size=image_size)
        assert deviation(model(batch), reference(batch)) < 1e-4
        assert deviation(model.forward_features(batch), reference.forward_features(batch)) < 1e-4

    def test_equals_timm_when_patch_tokens_are_averaged(self) -> None:
        model, reference, batch = (
            tiny("vit", global_pool="avg"),
            timm_vit(global_pool="avg", fc_norm=False),
            images(),
        )
        reference.load_state_dict(model.state_dict())
        assert deviation(model(batch), reference(batch)) < 1e-4
        token = tiny("vit")
        token.load_state_dict(model.state_dict())
        assert deviation(token(batch), model(batch)) > 0.1

    @pytest.mark.parametrize("in_chans", [1, 2, 4])
    def test_equals_timm_for_other_channel_counts(self, in_chans: int) -> None:
        model, reference = tiny("vit", in_chans=in_chans), timm_vit(in_chans=in_chans)
        reference.load_state_dict(model.state_dict())
        batch = images(in_chans=in_chans)
        assert deviation(model(batch), reference(batch)) < 1e-4

    def test_gradients_equal_timms(self) -> None:
        model, reference, batch = tiny("vit").train(), timm_vit().train(), images()
        reference.load_state_dict(model.state_dict())
        model(batch).square().sum().backward()
        reference(batch).square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-3)

    @pytest.mark.slow
    def test_equals_timm_at_full_size(self) -> None:
        with torch.device("meta"):
            reference = timm.create_model("vit_base_patch16_224", pretrained=False)
        model = randomise(build(VIT_B16, num_classes=1000, image_size=224)).eval()
        reference.load_state_dict(model.state_dict(), assign=True)
        batch = images(image_size=224)
        with torch.inference_mode():
            assert deviation(model(batch), reference.eval()(batch)) < 1e-4


def scale_in_place(model: ViT) -> None:
    with torch.no_grad():
        model.pos_embed.mul_(2)


def scale_in_inference_mode(model: ViT) -> None:
    with torch.inference_mode():
        model.pos_embed.mul_(2)


def scale_data(model: ViT) -> None:
    model.pos_embed.data.mul_(2)


def replace_data(model: ViT) -> None:
    model.pos_embed.data = model.pos_embed.data * 2


def replace_parameter(model: ViT) -> None:
    model.pos_embed = nn.Parameter(model.pos_embed.detach() * 2)


def load_other(model: ViT) -> None:
    model.load_state_dict(tiny("vit").state_dict())


def assign_other(model: ViT) -> None:
    model.load_state_dict(tiny("vit").state_dict(), assign=True)


def change_dtype(model: ViT) -> None:
    model.double()


def train_a_step(model: ViT) -> None:
    optimiser = torch.optim.SGD(model.train().parameters(), lr=0.5)
    with torch.enable_grad():
        model(images(image_size=96)).square().mean().backward()
    optimiser.step()
    model.eval()


CHANGES = [
    scale_in_place,
    scale_in_inference_mode,
    scale_data,
    replace_data,
    replace_parameter,
    load_other,
    assign_other,
    change_dtype,
    train_a_step,
]


class TestOtherInputSizes:
    @pytest.mark.parametrize("image_size", OTHER_SIZES)
    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_output_equals_that_of_a_model_built_for_that_size(
        self, image_size: int | tuple[int, int], mode: Callable[[], Any]
    ) -> None:
        model, batch = tiny("vit"), images(image_size=image_size)
        with mode():
            outputs = [model(batch) for _ in range(2)]
        expected = at_size(model, image_size)(batch)
        assert all(deviation(output, expected) < 1e-5 for output in outputs)

    def test_sizes_may_alternate(self) -> None:
        model = tiny("vit")
        batches = [images(image_size=size) for size in OTHER_SIZES]
        with torch.no_grad():
            for batch in [*batches, images(), *reversed(batches)]:
                size = (batch.shape[2], batch.shape[3])
                assert deviation(model(batch), at_size(model, size)(batch)) < 1e-5

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("change", CHANGES)
    def test_a_changed_parameter_takes_effect(
        self, change: Callable[[ViT], None], mode: Callable[[], Any]
    ) -> None:
        model, batch = tiny("vit"), images(image_size=96)
        with mode():
            before = model(batch)
        change(model)
        batch = batch.to(model.pos_embed.dtype)
        with mode():
            after = model(batch)
        assert deviation(after, before) > (0.01 if change is not change_dtype else -1)
        assert deviation(after, at_size(model, 96)(batch)) < 1e-5

    def test_positions_are_resized_once_where_they_cannot_change(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[tuple[int, int]] = []

        def resize(position: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
            sizes.append(new)
            return resize_position_embedding(position, old, new)

        monkeypatch.setattr(vit, "resize_position_embedding", resize)
        model = tiny("vit")
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                for image_size in (64, 96, 96, 48, 48):
                    model(images(image_size=image_size))
        assert sizes == [(12, 12), (6, 6)] * 2
        model(images(image_size=48))  # learns
        with torch.no_grad():
            model.to("meta")(images(image_size=48).to("meta"))
            model(images(image_size=48).to("meta"))
        assert sizes[4:] == [(6, 6)] * 3

    def test_inference_mode_and_gradients_may_alternate(self) -> None:
        model, batch = tiny("vit"), images(image_size=96)
        with torch.inference_mode():
            first = model(batch)
        with torch.no_grad():
            second = model(batch)
        third = model(batch)
        third.sum().backward()
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        assert model.pos_embed.grad is not None

    def test_gradients_reach_the_positions(self) -> None:
        model, batch = tiny("vit").train(), images(image_size=96)
        at_96 = at_size(model, 96).train()
        model(batch).square().sum().backward()
        at_96(batch).square().sum().backward()
        position = model.pos_embed.detach().requires_grad_()
        resize_position_embedding(position, (8, 8), (12, 12)).backward(at_96.pos_embed.grad)
        assert model.pos_embed.grad.any(dim=2).all()
        torch.testing.assert_close(model.pos_embed.grad, position.grad, rtol=1e-3, atol=1e-3)

    def test_frozen_positions_leave_the_rest_trainable(self) -> None:
        model = tiny("vit").train()
        model.pos_embed.requires_grad_(False)
        for _ in range(2):
            model(images(image_size=96)).sum().backward()
        assert model.patch_embed.proj.weight.grad.any()

    @pytest.mark.parametrize(
        "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
    )
    def test_copies_do_not_share_the_cached_positions(self, clone: Callable[[ViT], ViT]) -> None:
        model, batch = tiny("vit"), images(image_size=96)
        with torch.no_grad():
            before = model(batch)
            copied = clone(model)
            assert torch.equal(copied(batch), before)
            copied.pos_embed.mul_(2)
            assert deviation(copied(batch), at_size(copied, 96)(batch)) < 1e-5
            assert torch.equal(model(batch), before)

    def test_state_dict_keeps_the_size_the_model_was_built_for(self) -> None:
        model = tiny("vit")
        with torch.no_grad():
            model(images(image_size=96))
        assert model.state_dict()["pos_embed"].shape == (1, 65, 32)
        assert set(model.state_dict()) == set(timm_vit().state_dict())

    def test_compiled_and_exported_equal_eager(self) -> None:
        model, batch = tiny("vit"), images(image_size=(32, 96))
        torch._dynamo.reset()
        with torch.no_grad():
            expected = model(batch)
            assert (
                deviation(torch.compile(model, backend="eager", fullgraph=True)(batch), expected)
                < 1e-5
            )
        shapes = {"x": {0: torch.export.Dim("batch")}}
        exported = torch.export.export(model, (batch,), dynamic_shapes=shapes).module()
        assert deviation(exported(batch[:1].repeat(3, 1, 1, 1)), expected[:1].repeat(3, 1)) < 1e-5

    @pytest.mark.parametrize(
        ("image_size", "shown", "nearest"),
        [
            (65, "65x65", "64x64"),
            ((64, 60), "64x60", "64x64"),
            ((4, 64), "4x64", "8x64"),
            ((30, 53), "30x53", "32x56"),
        ],
    )
    def test_size_that_is_no_multiple_of_the_patch_is_rejected(
        self, image_size: int | tuple[int, int], shown: str, nearest: str
    ) -> None:
        message = f"image size {shown} is not a multiple of the patch size 8; nearest: {nearest}$"
        with pytest.raises(ConfigError, match=message):
            tiny("vit")(images(image_size=image_size))
        with pytest.raises(ConfigError, match=message):
            build(VIT, num_classes=10, image_size=image_size)


@pytest.mark.parametrize("size", [(0, 64), (64, 0)])
def test_images_without_pixels_are_rejected(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"image size {size[0]}x{size[1]} is not a multiple"):
        tiny("vit")(torch.zeros(1, 3, *size))


def test_an_image_may_have_one_pixel() -> None:
    model = build(replace(VIT, patch_size=1), num_classes=3, image_size=1)
    assert model(images(image_size=1)).shape == (2, 3)


def test_images_of_more_than_262144_patches_are_rejected() -> None:
    message = r"^image size 2048x8200 gives 262,400 patches of 8 pixels; allowed: at most 262,144$"
    with torch.device("meta"):
        with pytest.raises(ConfigError, match=message):
            build(VIT, num_classes=10, image_size=(2048, 8200))
        assert build(VIT, num_classes=10, image_size=4096).grid_size == (512, 512)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build(VIT_B16, num_classes=10, image_size=224).state_dict()


class TestInitialisation:
    def test_initialisation_is_as_documented(self, state: dict[str, Tensor]) -> None:
        assert not state["head.weight"].any()
        assert not state["head.bias"].any()
        assert not state["cls_token"].any()
        assert float(state["pos_embed"].std()) == pytest.approx(0.02, rel=0.02)
        patches = state["patch_embed.proj.weight"]
        assert float(patches.std()) == pytest.approx((1 / (3 * 16 * 16)) ** 0.5, rel=0.02)
        assert not state["patch_embed.proj.bias"].any()

    def test_initialisation_is_distributed_as_torchvisions(self, state: dict[str, Tensor]) -> None:
        twin = torchvision_twin(VIT_B16, 10, 224).state_dict()
        for name, ours in translate_layout(state, "torchvision").items():
            theirs = twin[name]
            assert float(ours.mean()) == pytest.approx(
                float(theirs.mean()), abs=0.3 * float(theirs.std()) + 1e-9
            ), name
            assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.2, abs=1e-9), name
            assert float(ours.abs().max()) == pytest.approx(
                float(theirs.abs().max()), rel=0.5, abs=1e-9
            ), name
