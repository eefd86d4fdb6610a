"""Parameters and multiply-adds by formula equal those that torch counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import REGNET, VIT, VIT_SPEC
from torch.utils.flop_counter import FlopCounterMode

from swag_models import get_spec, list_models
from swag_models.architectures import RegNetConfig, ViTConfig
from swag_models.hub.model_size import count_size
from swag_models.models import build
from swag_models.models.vit_block import Attention
from swag_models.publish.model_info import count_flops
from swag_models.spec import Preprocess

CONFIGS: list[ViTConfig | RegNetConfig] = [
    VIT,
    ViTConfig(patch_size=7, depth=3, width=30, num_heads=5, mlp_width=71),
    REGNET,
    RegNetConfig(depth=5, w_0=24, w_a=10.5, w_m=2.3, group_width=16, se_ratio=0.3, stem_width=20),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.family}-{config.depth}")
@pytest.mark.parametrize(
    ("size", "in_chans", "num_classes", "patch_drop_rate"),
    [((56, 56), 3, 10, 0.0), ((112, 168), 1, None, 0.0), ((56, 112), 3, 10, 0.3)],
)
def test_sizes_equal_those_of_the_model(
    config: ViTConfig | RegNetConfig,
    size: Any,
    in_chans: int,
    num_classes: int | None,
    patch_drop_rate: float,
) -> None:
    if config.family == "regnet":
        patch_drop_rate = 0.0
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = build(
            config,
            num_classes=num_classes,
            image_size=size,
            in_chans=in_chans,
            patch_drop_rate=patch_drop_rate,
        )
        model.train(patch_drop_rate > 0)(torch.empty(1, in_chans, *size))
    spec = replace(
        VIT_SPEC,
        config=config,
        preprocess=Preprocess(size),
        in_chans=in_chans,
        num_classes=num_classes,
    )
    params, macs = count_size(config, size, in_chans=in_chans, num_classes=num_classes)
    assert params == sum(parameter.numel() for parameter in model.parameters())
    flops = count_flops(spec, patch_drop_rate=patch_drop_rate)
    assert flops == counter.get_total_flops()
    assert (flops == 2 * macs) == (patch_drop_rate == 0)


@pytest.mark.parametrize("merge_tokens", [3, 40])
def test_merging_is_counted(merge_tokens: int) -> None:
    spec = replace(VIT_SPEC, config=CONFIGS[1], preprocess=Preprocess(56), num_classes=10)
    spec = replace(spec, merge_tokens=merge_tokens)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = build(CONFIGS[1], num_classes=10, image_size=56, merge_tokens=merge_tokens)
        for module in model.modules():
            if isinstance(module, Attention):
                module.fused_attn = False  # which pads the heads
        model.eval()(torch.empty(1, 3, 56, 56))
    assert count_flops(spec) == counter.get_total_flops()
    assert count_flops(spec) < count_flops(replace(spec, merge_tokens=None))


def test_sizes_equal_those_of_the_catalog() -> None:
    for spec in map(get_spec, list_models()):
        params, macs = count_size(
            spec.config, spec.preprocess.size, in_chans=3, num_classes=spec.num_classes
        )
        assert params == spec.num_params
        assert macs / 1e9 == pytest.approx(spec.gmacs, abs=0.01)
