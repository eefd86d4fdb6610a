"""Scenarios of timm's tests of every model: outputs, gradients, heads, checkpoints, input sizes.

Both sides are made by `timm.create_model`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from peers.subjects import LARGE, OURS, TIMM, TIMM_VIT, VIT, Subject, on
from PIL import Image
from torch import nn

import swag_models

CLASSES = 42


@on(*OURS, *TIMM, *LARGE)
class TestModel:
    def test_logits_are_finite_and_as_many_as_stated(self, subject: Subject) -> None:
        model = subject.create()
        with torch.no_grad():
            logits = model(subject.images())
        assert logits.shape == (1, model.num_classes)
        assert torch.isfinite(logits).all()

    def test_gradient_checkpointing_changes_no_gradient(self, subject: Subject) -> None:
        model, images = subject.create(num_classes=CLASSES), subject.images(2)
        gradients = []
        for enable in (False, True):
            model.set_grad_checkpointing(enable)
            model.zero_grad()
            model(images).square().mean().backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        for plain, checkpointed in zip(*gradients):
            torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-5)

    def test_every_parameter_gets_a_gradient(self, subject: Subject) -> None:
        model = subject.create(num_classes=CLASSES).train()
        logits = model(subject.images(2))
        logits.mean().backward()
        assert logits.shape == (2, CLASSES)
        assert not [name for name, value in model.named_parameters() if value.grad is None]

    def test_layers_are_those_that_the_config_names(self, subject: Subject) -> None:
        model = subject.create()
        config, names = model.default_cfg, model.state_dict().keys()
        assert model.num_classes == config["num_classes"] > 0
        assert model.pretrained_cfg is config or model.pretrained_cfg == config
        assert f"{config['classifier']}.weight" in names
        assert f"{config['first_conv']}.weight" in names
        assert isinstance(model.get_classifier(), nn.Linear)

    def test_without_a_head_the_output_is_the_pooled_features(self, subject: Subject) -> None:
        model, images = subject.create(), subject.images()
        with torch.no_grad():
            features = model.forward_features(images)
            pooled = model.forward_head(features, pre_logits=True)
            assert pooled.shape == (1, model.head_hidden_size)
            assert features.shape[-1 if features.ndim == 3 else 1] == model.num_features
            model.reset_classifier(0)
            assert model.num_classes == 0
            assert torch.equal(model(images), pooled)
            headless = subject.create(num_classes=0)
            assert headless.num_classes == 0
            assert headless(images).shape == pooled.shape

    def test_without_pooling_the_output_is_the_features(self, subject: Subject) -> None:
        model, images = subject.create(), subject.images()
        with torch.no_grad():
            features = model.forward_features(images)
            model.reset_classifier(0, "")
            assert torch.equal(model(images), features)
            unpooled = subject.create(num_classes=0, global_pool="")
            assert unpooled(images).shape == features.shape

    def test_a_new_head_takes_the_place_of_the_removed_one(self, subject: Subject) -> None:
        model = subject.create()
        model.reset_classifier(0, "")
        model.reset_classifier(7, "avg")
        assert model.num_classes == 7
        assert model(subject.images(2)).shape == (2, 7)

    def test_a_checkpoint_is_loaded_by_its_path(self, subject: Subject, tmp_path: Path) -> None:
        model, path = subject.create(num_classes=5), tmp_path / "model.pth"
        torch.save(model.state_dict(), path)
        again = subject.create(num_classes=5, checkpoint_path=str(path))
        images = subject.images()
        assert torch.equal(again(images), model(images))

    def test_pretrained_weights_are_adapted(self, subject: Subject, tmp_path: Path) -> None:
        """Grey images and another number of classes, or no classifier."""
        weights = tmp_path / "weights.pth"
        torch.save(subject.create().state_dict(), weights)
        overlay = {"file": str(weights)}
        height, width = subject.image_size
        for num_classes in (5, 0):
            model = subject.create(
                pretrained=True,
                pretrained_cfg_overlay=overlay,
                in_chans=1,
                num_classes=num_classes,
            )
            output = model(torch.randn(1, 1, height, width))
            assert output.shape == (1, num_classes or model.num_features)

    def test_preprocessing_is_found_by_the_model(self, subject: Subject) -> None:
        model = subject.create()
        config = timm.data.resolve_model_data_config(model)
        for key in ("input_size", "mean", "std", "interpolation", "crop_pct"):
            expected = model.pretrained_cfg[key]
            assert config[key] == (tuple(expected) if isinstance(expected, list) else expected)
        image = Image.effect_noise((300, 200), 80).convert("RGB")
        assert timm.data.create_transform(**config)(image).shape == config["input_size"]


@pytest.mark.parametrize("name", swag_models.list_models())
def test_timms_preprocessing_of_our_models_is_ours(name: str) -> None:
    """timm finds it by the attributes of a model of either library's entry point."""
    spec = swag_models.get_spec(name)
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(f"swag_{name}").to_dict()
    )
    image = Image.effect_noise((500, 400), 80).convert("RGB")
    theirs = timm.data.create_transform(**config)(image)
    assert theirs.shape[1:] == spec.preprocess.size
    assert torch.equal(theirs, swag_models.load_preprocess(name)(image))


@on(VIT, TIMM_VIT, LARGE[0])
class TestInputSize:
    def test_positions_are_resized_to_the_new_grid(self, subject: Subject) -> None:
        model = subject.create()
        patch = model.patch_embed.patch_size[0]
        model.set_input_size(img_size=(3 * patch, 5 * patch))
        assert model.patch_embed.grid_size == (3, 5)
        assert model.patch_embed.num_patches == 15
        assert model.pos_embed.shape[1] == 15 + model.num_prefix_tokens
        assert model(torch.randn(1, 3, 3 * patch, 5 * patch)).shape == (1, model.num_classes)

    def test_the_size_can_be_chosen_on_creation(self, subject: Subject) -> None:
        side = 4 * subject.create().patch_embed.patch_size[0]
        model = subject.create(img_size=side)
        assert model.patch_embed.grid_size == (4, 4)
        assert model(torch.randn(1, 3, side, side)).shape == (1, model.num_classes)


@on(*OURS, *TIMM)
def test_a_model_made_twice_with_one_seed_is_the_same(subject: Subject) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        states.append(subject.create().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
