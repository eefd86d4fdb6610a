"""Uses that type checkers accept, with the types that they find. Read by tests/test_typing.py."""

from collections import OrderedDict

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import assert_type

import swag_models
from swag_models import load_model, load_preprocess, vit_b16_in1k
from swag_models.inference import Classifier, Embedder
from swag_models.models import FeatureNet, FeaturePyramid, RegNet, ResNet, ViT
from swag_models.preprocess import Transform
from swag_models.train_transform import TrainTransform


def check_builders(x: Tensor) -> None:
    vit = swag_models.vit_b16(pretrained=False, num_classes=3, image_size=(32, 48), device="cuda")
    assert_type(vit, ViT)
    assert_type(vit(x), Tensor)
    assert_type(vit.embed_dim, int)
    regnet = swag_models.regnety_16gf(False, drop_path_rate=0.1)
    assert_type(regnet, RegNet)
    assert_type(regnet(x), Tensor)
    assert_type(swag_models.resnet18_swsl_in1k(False), ResNet)
    assert_type(vit_b16_in1k(features_only=True, out_indices=(0, 2))(x), list[Tensor])
    assert_type(swag_models.get_model("vit_b16", weights="DEFAULT"), ViT)
    swag_models.get_model_weights(vit_b16_in1k)


def check_names(x: Tensor, name: str) -> None:
    assert_type(load_model("vit_b16", dtype=torch.dtype()), ViT)
    assert_type(load_model("regnety_nano_hashtags", weights=None), RegNet)
    assert_type(load_model("vit_b16", features_only=True), FeatureNet)
    model = load_model(name, num_classes=None)
    assert_type(model, ViT | RegNet | ResNet)
    assert_type(model(x), Tensor)
    assert_type(model.forward_head(model.forward_features(x), pre_logits=True), Tensor)


def check_maps(x: Tensor, vit: ViT, regnet: RegNet, model: ViT | RegNet | ResNet) -> None:
    pairs = vit.forward_intermediates(x, return_prefix_tokens=True)
    assert_type(pairs, tuple[Tensor, list[tuple[Tensor, Tensor]]])
    assert_type(vit.forward_intermediates(x), tuple[Tensor, list[Tensor]])
    assert_type(regnet.forward_intermediates(x, 2), tuple[Tensor, list[Tensor]])
    maps = vit.forward_intermediates(x, [1], norm=True, attn_mask=None, intermediates_only=True)
    assert_type(maps, list[Tensor])
    assert_type(model.forward_intermediates(x, intermediates_only=True), list[Tensor])
    assert_type(vit.forward_attention(x), list[Tensor])
    assert_type(FeaturePyramid(vit)(x), OrderedDict[str, Tensor])


def check_inference(model: ViT | RegNet | ResNet, image: Image.Image) -> None:
    assert_type(load_preprocess("vit_b16"), Transform)
    assert_type(load_preprocess(model, train=True, image_size=64), TrainTransform)
    assert_type(load_preprocess(model)(image), Tensor)
    assert_type(swag_models.load_classes(model), tuple[str, ...])
    classifier = Classifier(model, classes=["cat", "dog"], device="cpu", fast=True)
    assert_type(classifier([image])[0][0].label, str)
    assert_type(Embedder("vit_b16", weights="x.pt", dtype="bfloat16")(image).vectors, Tensor)
