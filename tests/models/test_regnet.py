"""The RegNet equals torchvision's and timm's, and has their shapes for all published models."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from timm.models.regnet import adjust_widths_groups_comp, generate_regnet, model_cfgs
from tiny import REGNET, deviation, images, randomise, tiny, torchvision_twin
from torch import Tensor, nn
from torchvision.models.regnet import BlockParams
from twins import timm_regnet

from swag_models.architectures import RegNetConfig
from swag_models.catalog.configs import REGNETY_16GF, REGNETY_32GF, REGNETY_128GF
from swag_models.errors import ConfigError
from swag_models.layouts import translate_layout
from swag_models.models import RegNet, build

RULES = {  # timm's RegNetY models that follow the paper without additions
    name: shape
    for name, shape in model_cfgs.items()
    if name.startswith("regnety_") and not name.endswith(("_tv", "_sgn"))
}


def freeze_statistics(model: nn.Module) -> nn.Module:
    """Set training mode, except for batch norms, which use their running statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


@pytest.mark.parametrize("name", RULES)
def test_stages_follow_the_published_rule(name: str) -> None:
    rule = RULES[name]
    blocks, stages, groups = generate_regnet(rule.wa, rule.w0, rule.wm, rule.depth, rule.group_size)
    widths = sorted(set(blocks))
    adjusted, _ = adjust_widths_groups_comp(widths, [1.0] * stages, groups)
    ours = RegNetConfig(
        depth=rule.depth, w_0=rule.w0, w_a=rule.wa, w_m=rule.wm, group_width=rule.group_size
    )
    assert ours.stages == tuple(
        (width, blocks.count(before)) for before, width in zip(widths, adjusted)
    )


@pytest.mark.parametrize(
    "config", [REGNETY_16GF, REGNETY_32GF, REGNETY_128GF], ids=lambda config: str(config.w_0)
)
def test_stages_of_the_published_models_are_torchvisions(config: RegNetConfig) -> None:
    theirs = BlockParams.from_init_params(
        depth=config.depth,
        w_0=config.w_0,
        w_a=config.w_a,
        w_m=config.w_m,
        group_width=config.group_width,
    )
    assert config.stages == tuple(zip(theirs.widths, theirs.depths))


class TestEquality:
    @pytest.mark.parametrize("image_size", [64, 32, (96, 40), (33, 47)])
    def test_equals_torchvision(self, image_size: int | tuple[int, int]) -> None:
        model, reference, batch = (
            tiny("regnet"),
            torchvision_twin(REGNET, 10, 64),
            images(image_size=image_size),
        )
        reference.load_state_dict(translate_layout(model.state_dict(), "torchvision"))
        assert deviation(model(batch), reference(batch)) < 1e-4

    def test_equals_torchvision_if_the_first_stage_is_as_wide_as_the_stem(self) -> None:
        config = RegNetConfig(depth=4, w_0=32, w_a=32.0, w_m=2.0, group_width=8)
        assert config.stages[0][0] == config.stem_width
        model = randomise(build(config, num_classes=3, image_size=64)).eval()
        reference, batch = torchvision_twin(config, 3, 64), images()
        reference.load_state_dict(translate_layout(model.state_dict(), "torchvision"))
        assert deviation(model(batch), reference(batch)) < 1e-4

    @pytest.mark.parametrize("image_size", [64, (33, 47)])
    def test_equals_timm(self, image_size: int | tuple[int, int]) -> None:
        model, reference, batch = tiny("regnet"), timm_regnet(), images(image_size=image_size)
        reference.load_state_dict(model.state_dict())
        assert deviation(model(batch), reference(batch)) < 1e-4
        assert deviation(model.forward_features(batch), reference.forward_features(batch)) < 1e-4
        pooled = reference.forward_head(reference.forward_features(batch), pre_logits=True)
        assert (
            deviation(model.forward_head(model.forward_features(batch), pre_logits=True), pooled)
            < 1e-4
        )

    def test_features_without_a_head_equal_timms(self) -> None:
        model, reference, batch = (
            tiny("regnet", num_classes=None),
            timm_regnet(num_classes=0),
            images(),
        )
        reference.load_state_dict(model.state_dict())
        assert model(batch).shape == (2, 128, 2, 2)
        assert deviation(model(batch), reference.forward_features(batch)) < 1e-4

    @pytest.mark.parametrize("in_chans", [1, 2, 4])
    def test_equals_timm_for_other_channel_counts(self, in_chans: int) -> None:
        model, reference = tiny("regnet", in_chans=in_chans), timm_regnet(in_chans=in_chans)
        reference.load_state_dict(model.state_dict())
        batch = images(in_chans=in_chans)
        assert deviation(model(batch), reference(batch)) < 1e-4

    def test_batch_statistics_equal_torchvisions(self) -> None:
        model, reference, batch = (
            tiny("regnet").train(),
            torchvision_twin(REGNET, 10, 64).train(),
            images(8),
        )
        reference.load_state_dict(translate_layout(model.state_dict(), "torchvision"))
        assert deviation(model(batch), reference(batch)) < 1e-3
        theirs = reference.state_dict()
        for name, tensor in translate_layout(model.state_dict(), "torchvision").items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)

    def test_gradients_equal_timms(self) -> None:
        model, reference, batch = tiny("regnet"), timm_regnet(), images()
        reference.load_state_dict(model.state_dict())
        freeze_statistics(model)(batch).square().sum().backward()
        freeze_statistics(reference)(batch).square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
        for name, parameter in model.named_parameters():
            assert deviation(parameter.grad, gradients[name]) < 1e-2, name

    def test_equals_timm_at_full_size(self) -> None:
        with torch.device("meta"):
            reference = timm.create_model("regnety_160", pretrained=False)
        model = randomise(build(REGNETY_16GF, num_classes=1000, image_size=224)).eval()
        reference.load_state_dict(model.state_dict(), assign=True)
        batch = images(image_size=224)
        with torch.inference_mode():
            assert deviation(model(batch), reference.eval()(batch)) < 1e-4


class TestFeatureMap:
    @pytest.mark.parametrize("image_size", [64, (96, 224)])
    def test_map_is_a_thirty_second_of_the_image_and_contiguous(
        self, image_size: int | tuple[int, int]
    ) -> None:
        height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
        for model in (tiny("regnet", num_classes=None), tiny("regnet").train()):
            features = model.forward_features(images(image_size=image_size))
            assert features.shape == (2, 128, height // 32, width // 32)
            assert features.is_contiguous()

    def test_map_does_not_depend_on_the_memory_format_of_the_input(self) -> None:
        model, batch = tiny("regnet", num_classes=None), images()
        output = model(batch.to(memory_format=torch.channels_last))
        assert output.is_contiguous()
        assert torch.equal(output, model(batch))

    def test_input_is_not_changed(self) -> None:
        for batch in (images(), images().to(memory_format=torch.channels_last)):
            before = batch.clone()
            tiny("regnet")(batch)
            assert torch.equal(batch, before)


class TestErrors:
    @pytest.mark.parametrize(
        ("image_size", "shown"), [(31, "31x31"), ((64, 16), "64x16"), ((8, 64), "8x64")]
    )
    def test_image_below_32_pixels_is_rejected(
        self, image_size: int | tuple[int, int], shown: str
    ) -> None:
        message = f"image size {shown} is too small; a RegNet needs at least 32x32"
        with pytest.raises(ConfigError, match=message):
            build(REGNET, num_classes=10, image_size=image_size)
        with pytest.raises(ConfigError, match=message):
            tiny("regnet")(images(image_size=image_size))

    def test_attention_dropout_is_rejected(self) -> None:
        with pytest.raises(
            ConfigError, match=r"attn_drop_rate is 0\.1; a RegNet has no attention, leave it at 0"
        ):
            build(REGNET, num_classes=10, image_size=64, attn_drop_rate=0.1)

    def test_token_pooling_is_rejected(self) -> None:
        with pytest.raises(ConfigError, match=r"global_pool is 'token'; allowed for a RegNet: avg"):
            build(REGNET, num_classes=10, image_size=64, global_pool="token")
        assert isinstance(build(REGNET, num_classes=10, image_size=64, global_pool="avg"), RegNet)

    @pytest.mark.parametrize("pool", ["token", "max"])
    def test_pooling_is_checked_without_a_head_too(self, pool: str) -> None:
        message = f"global_pool is '{pool}'; allowed for a RegNet: avg"
        with pytest.raises(ConfigError, match=message):
            build(REGNET, num_classes=None, image_size=64, global_pool=pool)
        model, batch = tiny("regnet"), images()
        features = model.forward_features(batch)
        with pytest.raises(ConfigError, match=message):
            model.reset_classifier(None, pool)
        assert model(batch).shape == (2, 10)  # unchanged
        model.reset_classifier(None)
        assert torch.equal(model(batch), features)  # averaged by forward_head only
        pooled = features.mean((2, 3))
        assert torch.equal(model.forward_head(features), pooled)
        assert torch.equal(model.forward_head(features, pre_logits=True), pooled)


@cache
def initial_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build(REGNETY_16GF, num_classes=10, image_size=224).state_dict()


class TestInitialisation:
    def test_initialisation_is_as_documented(self) -> None:
        state = initial_state()
        assert float(state["stem.conv.weight"].std()) == pytest.approx(
            (2 / (9 * 32)) ** 0.5, rel=0.1
        )
        assert float(state["s4.b1.conv1.conv.weight"].std()) == pytest.approx(
            (2 / 3024) ** 0.5, rel=0.01
        )
        assert float(state["s4.b1.conv2.conv.weight"].std()) == pytest.approx(
            (2 / (9 * 3024)) ** 0.5, rel=0.01
        )
        assert float(state["head.fc.weight"].std()) == pytest.approx(0.01, rel=0.05)
        assert not state["head.fc.bias"].any()
        for name, tensor in state.items():
            if ".bn." in name:
                expected = 1.0 if name.endswith(("weight", "running_var")) else 0.0
                assert torch.equal(tensor, torch.full_like(tensor, expected)), name

    def test_initialisation_is_distributed_as_torchvisions(self) -> None:
        twin = torchvision_twin(REGNETY_16GF, 10, 224).state_dict()
        for name, ours in translate_layout(initial_state(), "torchvision").items():
            if ours.is_floating_point():
                theirs = twin[name]
                spread = float(theirs.std())
                assert float(ours.mean()) == pytest.approx(
                    float(theirs.mean()), abs=0.5 * spread + 1e-9
                ), name
                assert float(ours.std()) == pytest.approx(spread, rel=0.25, abs=1e-9), name
