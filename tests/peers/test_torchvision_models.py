"""Scenarios of torchvision's tests of models, backbones and model lookup."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision.models as zoo
from peers.subjects import LARGE, OURS, TORCHVISION, TORCHVISION_REGNET, Subject, on
from peers.subjects import REGNET as OUR_REGNET
from peers.subjects import VIT as OUR_VIT
from tiny import deviation
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import swag_models
from swag_models.models import FeaturePyramid
from swag_models.spec import ModelSpec

SWAG = {
    "vit_b16": "vit_b_16",
    "vit_l16": "vit_l_16",
    "vit_h14": "vit_h_14",
    "regnety_16gf": "regnet_y_16gf",
    "regnety_32gf": "regnet_y_32gf",
    "regnety_128gf": "regnet_y_128gf",
}
VARIANTS = {
    "in1k": "IMAGENET1K_SWAG_E2E_V1",
    "in1k_linear": "IMAGENET1K_SWAG_LINEAR_V1",
}
CHANNELS = 32  # of pyramids; FCOS normalises 32 groups
PUBLISHED = [
    spec
    for spec in map(swag_models.get_spec, swag_models.list_models(family="swag"))
    if spec.variant in VARIANTS
]


@on(*OURS, *TORCHVISION)
class TestModel:
    def test_logits_in_both_modes_have_one_row_per_image(self, subject: Subject) -> None:
        model = subject.load(num_classes=50)
        for mode in (False, True):
            assert model.train(mode)(subject.images(2)).shape == (2, 50)

    def test_a_loaded_state_dict_gives_the_same_logits(self, subject: Subject) -> None:
        model, again, images = subject.load(), subject.load(), subject.images()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(images), model(images))

    def test_parameters_and_buffers_follow_the_device(self, subject: Subject) -> None:
        model = subject.load().to("meta")
        assert all(value.is_meta for value in model.state_dict().values())
        height, width = subject.image_size
        assert model(torch.zeros(2, 3, height, width, device="meta")).is_meta

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_logits_have_the_dtype_of_the_model(self, dtype: torch.dtype, subject: Subject) -> None:
        assert subject.load().to(dtype)(subject.images().to(dtype)).dtype == dtype


@pytest.mark.parametrize("spec", PUBLISHED, ids=lambda spec: spec.name)
def test_published_weights_are_described_as_by_torchvision(spec: ModelSpec) -> None:
    weights = zoo.get_model_weights(SWAG[spec.arch])[VARIANTS[spec.variant]]
    assert weights.url in [source.url for source in spec.sources]
    assert weights.meta["num_params"] == spec.num_params
    assert list(swag_models.load_classes(spec.name)) == weights.meta["categories"]
    accuracy = weights.meta["_metrics"]["ImageNet-1K"]
    assert spec.metrics is not None
    assert abs(spec.metrics.top1 - accuracy["acc@1"]) < 0.03  # ours are the authors'
    assert abs(spec.metrics.top5 - accuracy["acc@5"]) < 0.03
    image = torch.randint(256, (3, 500, 400), dtype=torch.uint8)
    from torchvision.transforms.v2.functional import to_pil_image

    ours = swag_models.load_preprocess(spec.name)(to_pil_image(image))
    theirs = weights.transforms()(to_pil_image(image))
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2)


@pytest.mark.peers
@pytest.mark.parametrize("subject", LARGE, ids=lambda subject: subject.name)
def test_logits_are_torchvisions_with_its_weights(subject: Subject) -> None:
    spec = swag_models.get_spec(subject.name)
    options: dict[str, Any] = {"image_size": 384} if subject.family == "vit" else {}
    theirs = zoo.get_model(SWAG[spec.arch], weights=None, **options).eval()
    for parameter in theirs.parameters():  # the head is zero
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    ours, images = subject.load(), subject.images()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert deviation(ours(images), theirs(images)) < 1e-4


@on(OUR_REGNET, TORCHVISION_REGNET)
class TestBackbone:
    @pytest.mark.parametrize("extra", [None, "P6P7"])
    def test_a_pyramid_is_built_on_stages(self, extra: str | None, subject: Subject) -> None:
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        trunk, images, layers, widths = _stages(subject)
        block = LastLevelP6P7(CHANNELS, CHANNELS) if extra else None
        model = BackboneWithFPN(trunk, layers, widths, CHANNELS, block)
        levels = model(images)
        assert list(levels) == ["0", "1", "2", *(["p6", "p7"] if extra else ["pool"])]
        assert all(level.shape[:2] == (1, CHANNELS) for level in levels.values())

    def test_frozen_stages_get_no_gradient(self, subject: Subject) -> None:
        trunk, images, layers, widths = _stages(subject)
        model = BackboneWithFPN(trunk, layers, widths, CHANNELS).train()
        first = next(iter(layers))
        model.body[first].requires_grad_(False)
        sum(level.mean() for level in model(images).values()).backward()
        gradients = [parameter.grad for parameter in model.body[first].parameters()]
        assert all(gradient is None for gradient in gradients)
        assert all(parameter.grad is not None for parameter in model.fpn.parameters())


def _stages(subject: Subject) -> tuple[nn.Module, torch.Tensor, dict[str, str], list[int]]:
    """Return a trunk, its input, and names and widths of its first three stages."""
    model = subject.load()
    if subject.is_ours:
        widths = [info["num_chs"] for info in model.feature_info[1:4]]
        return model, subject.images(), {"s1": "0", "s2": "1", "s3": "2"}, widths
    layers = {"block1": "0", "block2": "1", "block3": "2"}
    return model.trunk_output, torch.randn(1, 32, 32, 32), layers, [48, 104, 208]


def _make_detector(subject: Subject, detector: Any) -> nn.Module:
    if subject.is_ours:
        backbone: nn.Module = FeaturePyramid(subject.load(), out_channels=CHANNELS)
    else:
        trunk, _, layers, widths = _stages(subject)
        backbone = nn.Sequential()
        body = subject.load()
        backbone.add_module("stem", body.stem)
        backbone.add_module("fpn", BackboneWithFPN(trunk, layers, widths, CHANNELS))
        backbone.out_channels = CHANNELS  # type: ignore[assignment]
    anchors = {} if subject.is_ours else _anchors(detector)
    return detector(backbone, num_classes=3, min_size=64, max_size=96, **anchors)


def _anchors(detector: Any) -> dict[str, Any]:
    """Anchors for the four levels of the control; torchvision's defaults are for five."""
    sides = ((32,), (64,), (128,), (256,))
    ratios = (((1.0,),) if detector is FCOS else ((0.5, 1.0, 2.0),)) * len(sides)
    name = "rpn_anchor_generator" if detector is FasterRCNN else "anchor_generator"
    return {name: AnchorGenerator(sides, ratios)}


@on(OUR_VIT, OUR_REGNET, TORCHVISION_REGNET)
@pytest.mark.parametrize(
    "detector",
    [
        pytest.param(FasterRCNN, marks=pytest.mark.peers),
        pytest.param(RetinaNet, marks=pytest.mark.peers),
        pytest.param(FCOS, marks=pytest.mark.peers),
    ],
)
def test_detectors_are_trained_and_detect(detector: Any, subject: Subject) -> None:
    model = _make_detector(subject, detector).train()
    images = [torch.rand(3, 70, 90), torch.rand(3, 64, 64)]
    targets = [
        {"boxes": torch.tensor([[10.0, 20.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
        for _ in images
    ]
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    with torch.no_grad():
        detections = model.eval()(images)
    for result in detections:
        assert set(result) == {"boxes", "labels", "scores"}
        assert len(result["boxes"]) == len(result["scores"])
