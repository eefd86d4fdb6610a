"""ResNet and ResNeXt against torchvision's and timm's modules with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock as TimmBasicBlock
from timm.models.resnet import Bottleneck as TimmBottleneck
from timm.models.resnet import ResNet as TimmResNet
from tiny import (
    RESNET,
    RESNET_SPEC,
    deviation,
    images,
    load_tiny,
    randomise,
    tiny,
    torchvision_twin,
)
from torch import Tensor, nn

import swag_models
from swag_models.app.saliency import compute_saliency
from swag_models.architectures import ResNetConfig, keep_few_blocks
from swag_models.catalog import MODELS
from swag_models.errors import ConfigError
from swag_models.inference.acceleration import accelerate
from swag_models.models import FeatureNet, FeaturePyramid, ResNet, build, group_parameters
from swag_models.publish import save

CONFIGS = {spec.arch: spec.config for spec in MODELS if isinstance(spec.config, ResNetConfig)}
LARGE = {"resnext101_32x16d", "resnext101_32x32d", "resnext101_32x48d"}
SAME_AT_ONE_BLOCK = {"resnext101_32x4d"}  # as resnext50_32x4d


def make_timm_twin(config: ResNetConfig, num_classes: int = 10) -> TimmResNet:
    block: Any = TimmBasicBlock if config.block == "basic" else TimmBottleneck
    return TimmResNet(
        block,
        config.depths,
        num_classes=num_classes,
        cardinality=config.groups,
        base_width=config.group_width,
    ).eval()


def check_equality(config: ResNetConfig, size: int) -> None:
    model = randomise(build(config, num_classes=10, image_size=size)).eval()
    x = images(2, size)
    with torch.inference_mode():
        ours = model(x)
        for twin in (torchvision_twin(config, 10, size), make_timm_twin(config)):
            twin.load_state_dict(model.state_dict())
            assert deviation(ours, twin(x)) < 1e-5


@pytest.mark.parametrize("arch", sorted(CONFIGS.keys() - LARGE - SAME_AT_ONE_BLOCK))
def test_one_block_of_each_stage_computes_what_torchvision_and_timm_do(arch: str) -> None:
    check_equality(keep_few_blocks(CONFIGS[arch]), 64)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(CONFIGS))
def test_whole_models_compute_what_torchvision_and_timm_do(arch: str) -> None:
    check_equality(CONFIGS[arch], 224)


def test_odd_sizes_and_channels() -> None:
    model = randomise(ResNet(RESNET, num_classes=3, image_size=(33, 70), in_chans=1)).eval()
    assert model(images(1, (33, 70), in_chans=1)).shape == (1, 3)
    with pytest.raises(ConfigError, match="image size 31x64 is too small; a ResNet needs at least"):
        model(images(1, (31, 64), in_chans=1))


def test_pooling_and_heads() -> None:
    assert tiny("resnet", None)(images(1)).shape == (1, 2048, 2, 2)
    assert tiny("resnet", 0)(images(1)).shape == (1, 2048)
    model = tiny("resnet")
    features = model.forward_features(images(1))
    assert model.forward_head(features, pre_logits=True).shape == (1, 2048)
    model.reset_classifier(3)
    assert model.get_classifier().out_features == 3
    with pytest.raises(ConfigError, match="a ResNet with 2 classes, which needs pooled features"):
        model.reset_classifier(2, "")
    with pytest.raises(ConfigError, match=r"attn_drop_rate is 0\.1; a ResNet has no attention"):
        build(RESNET, num_classes=1, image_size=64, attn_drop_rate=0.1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (("wide", (1, 1, 1, 1)), "block is 'wide'; allowed: basic or bottleneck"),
        (("basic", (1, 1, 1, 1), 2), "basic blocks have one group of 64 channels"),
        (("bottleneck", (1, 0, 1, 1)), "depths is 0; give a whole number from 1 to 512"),
        (("bottleneck", (1, 1, 1)), "depths is .*; give a whole number"),
        (("bottleneck", (1, 1, 1, 1), 64, 512), "a width of 262,144; allowed: at most 32,768"),
    ],
)
def test_impossible_architectures_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("wide'; allowed: basic or", ".*")):
        ResNetConfig(*config)


def test_maps_are_those_of_timm() -> None:
    model, x = tiny("resnet"), images(2)
    twin = make_timm_twin(RESNET)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        features, maps = model.forward_intermediates(x)
        expected, expected_maps = twin.forward_intermediates(x)
        assert deviation(features, expected) < 1e-5
        assert [tuple(map.shape) for map in maps] == [tuple(map.shape) for map in expected_maps]
        assert max(map(deviation, maps, expected_maps)) < 1e-5
    assert model.feature_info.reduction() == [info["reduction"] for info in twin.feature_info]
    assert model.feature_info.channels() == [info["num_chs"] for info in twin.feature_info]
    net = FeatureNet(tiny("resnet"), [0, 2])
    assert [tuple(map.shape[1:]) for map in net(x)] == [(64, 32, 32), (512, 8, 8)]
    stem = FeatureNet(tiny("resnet"), [0])
    assert stem.model.layers == (("conv1", "bn1"),)
    assert torch.equal(stem.model(x), stem(x)[0])


def test_inference_mode_and_hooks_do_not_change_results() -> None:
    model, x, kept = tiny("resnet"), images(1), []
    expected = model(x).detach()
    with torch.inference_mode():
        assert deviation(model(x), expected) < 1e-6
        handle = model.layer2[0].bn2.register_forward_hook(
            lambda module, args, output: kept.append((output, output.clone()))
        )
        model(x)
        handle.remove()
    ((output, copy),) = kept
    assert torch.equal(output, copy)  # ReLU was not written into what the hook holds
    assert (copy < 0).any()


def test_gradient_checkpointing_gives_equal_gradients() -> None:
    gradients: list[list[Tensor]] = []
    model, x = tiny("resnet").train(), images(2)
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients))


def test_freezing_layer_decay_and_drop_path() -> None:
    model = build(RESNET, num_classes=4, image_size=64, drop_path_rate=0.4)
    rates = [module.rate for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    groups = group_parameters(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    assert sorted({group["scale"] for group in groups}) == [
        0.5**power for power in range(6, -1, -1)
    ]
    coarse = model.group_matcher(coarse=True)
    assert coarse == make_timm_twin(RESNET).group_matcher(coarse=True) | {"stem": coarse["stem"]}
    model.freeze("layer2")
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4", "fc"}
    assert not model.train().layer2.training
    assert model.layer3.training
    model.unfreeze()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_pyramid_and_grad_cam() -> None:
    levels = FeaturePyramid(tiny("resnet"), out_channels=8)(images(1, (64, 96)))
    assert [tuple(level.shape) for level in levels.values()] == [
        (1, 8, 16, 24), (1, 8, 8, 12), (1, 8, 4, 6), (1, 8, 2, 3), (1, 8, 1, 2)
    ]  # fmt: skip
    assert compute_saliency(tiny("resnet"), images(1), 1).shape == (1, 8, 8)


@torch.no_grad()
def test_fast_inference_folds_every_batch_norm() -> None:
    model, x = tiny("resnet"), images(2)
    expected = model(x)
    accelerate(model, torch.float32)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert deviation(model(x), expected) < 1e-5


@torch.no_grad()
def test_scripted_and_traced_models_compute_the_same() -> None:
    model, x = tiny("resnet"), images(2)
    expected = model(x)
    assert deviation(torch.jit.script(model)(x), expected) < 1e-5
    assert deviation(torch.fx.symbolic_trace(model)(x), expected) < 1e-5
    exported = torch.export.export(model, (x,), strict=False)
    assert deviation(exported.module()(x), expected) < 1e-5


def test_initial_weights_are_reproducible() -> None:
    torch.manual_seed(0)
    model = build(RESNET, num_classes=4, image_size=64)
    torch.manual_seed(0)
    copy = build(RESNET, num_classes=4, image_size=64)
    torch.manual_seed(0)
    copy.init_weights()
    assert all(map(torch.equal, model.state_dict().values(), copy.state_dict().values()))
    std = model.layer1[0].conv2.weight.detach().std()
    assert std == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.1)


def test_a_published_folder_loads_here_and_in_timm(tmp_path: Path) -> None:
    model, x = load_tiny("resnet").eval(), images(1)
    save(model, tmp_path / "model")
    loaded = swag_models.load_model(str(tmp_path / "model"))
    assert isinstance(loaded, ResNet)
    twin = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        assert deviation(twin(x), model(x)) < 1e-5


def test_weights_of_torch_before_counters_load(tmp_path: Path) -> None:
    twin = torchvision_twin(RESNET, 10, 64)
    state = {k: v for k, v in twin.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    model = swag_models.load_model(RESNET_SPEC, weights=tmp_path / "old.pth")
    x = images(1)
    with torch.no_grad():
        assert deviation(model(x), twin(x)) < 1e-5
    assert int(model.bn1.num_batches_tracked) == 0  # type: ignore[union-attr]
