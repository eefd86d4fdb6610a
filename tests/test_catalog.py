"""The catalog equals the publishers' metadata, as contained in torchvision and timm."""

import re

import pytest
import timm
import torchvision

import swag_models
from swag_models.spec import ModelSpec

TORCHVISION = {
    "regnety_16gf": torchvision.models.RegNet_Y_16GF_Weights,
    "regnety_32gf": torchvision.models.RegNet_Y_32GF_Weights,
    "regnety_128gf": torchvision.models.RegNet_Y_128GF_Weights,
    "vit_b16": torchvision.models.ViT_B_16_Weights,
    "vit_l16": torchvision.models.ViT_L_16_Weights,
    "vit_h14": torchvision.models.ViT_H_14_Weights,
}
TIMM = {
    "regnety_16gf": "regnety_160",
    "regnety_32gf": "regnety_320",
    "regnety_128gf": "regnety_1280",
}
SPECS = [swag_models.get_spec(name) for name in swag_models.list_models(family="swag")]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


def weights_of(spec: ModelSpec) -> torchvision.models.WeightsEnum:
    member = "IMAGENET1K_SWAG_E2E_V1" if spec.variant == "in1k" else "IMAGENET1K_SWAG_LINEAR_V1"
    return getattr(TORCHVISION[spec.arch], member)


def test_the_catalog_has_the_18_published_models_in_three_variants_of_six_architectures() -> None:
    expected = {arch + suffix for arch in TORCHVISION for suffix in ("", "_in1k", "_in1k_linear")}
    assert {spec.name for spec in SPECS} == expected
    assert all(name.isidentifier() for name in swag_models.list_models())


@every_spec
def test_the_first_source_is_torchvisions_file_with_the_hash_of_its_name(spec: ModelSpec) -> None:
    source = spec.sources[0]
    assert source.url == weights_of(spec).url
    assert source.layout == "torchvision"
    assert source.sha256 == re.search(r"-([0-9a-f]{8})\.pth$", source.url)[1]  # type: ignore[index]


@every_spec
def test_the_original_file_is_a_source_if_it_exists(spec: ModelSpec) -> None:
    original = f"https://dl.fbaipublicfiles.com/SWAG/{spec.name}.torch"
    urls = [source.url for source in spec.sources]
    if spec.variant == "in1k_linear":
        assert original not in urls
        return
    assert urls[1] == original
    assert spec.sources[1].layout == "swag"


@every_spec
def test_timms_repository_follows_for_regnets(spec: ModelSpec) -> None:
    repositories = [source for source in spec.sources if source.url.startswith("hf://timm/")]
    if spec.family == "vit":
        assert repositories == []
        return
    tag = "swag_ft_in1k" if spec.variant == "in1k" else "swag_lc_in1k"
    config = timm.get_pretrained_cfg(f"{TIMM[spec.arch]}.{tag}")
    assert config is not None
    (source,) = repositories
    assert source.url == f"hf://{config.hf_hub_id}/model.safetensors"
    assert source.layout == "timm"
    # Mirrors may follow; of the publishers' sources it is the last, as it has no published hash.
    assert spec.sources.index(source) == (1 if spec.variant == "in1k_linear" else 2)


@every_spec
def test_sizes_and_accuracy_are_those_of_torchvisions_metadata(spec: ModelSpec) -> None:
    weights = weights_of(spec)
    if spec.num_classes is None:
        assert spec.metrics is None
        head = weights.meta["num_params"] - spec.num_params  # 1000 rows of weights, and biases
        assert spec.gmacs == pytest.approx(weights.meta["_ops"] - (head - 1000) / 1e9, abs=1.1e-3)
        return
    assert spec.gmacs == weights.meta["_ops"]
    assert spec.num_params == weights.meta["num_params"]
    assert spec.num_classes == len(weights.meta["categories"])
    published = weights.meta["_metrics"]["ImageNet-1K"]
    assert spec.metrics is not None
    # The authors' and torchvision's evaluations differ a little.
    assert spec.metrics.top1 == pytest.approx(published["acc@1"], abs=0.02)
    assert spec.metrics.top5 == pytest.approx(published["acc@5"], abs=0.02)


@every_spec
def test_preprocessing_is_torchvisions(spec: ModelSpec) -> None:
    preset = weights_of(spec).transforms()
    preprocess = spec.preprocess
    assert [preprocess.image_size] == preset.crop_size == preset.resize_size
    assert (preprocess.interpolation, list(preprocess.mean), list(preprocess.std)) == (
        "bicubic",
        preset.mean,
        preset.std,
    )


@every_spec
def test_every_published_model_has_the_non_commercial_licence(spec: ModelSpec) -> None:
    assert spec.license == "cc-by-nc-4.0"


def test_a_file_name_stands_for_one_file_so_that_a_copied_file_is_recognised() -> None:
    """A mirror has the name of the file that it mirrors; then both have hashes, which agree."""
    hashes: dict[str, dict[str, str]] = {}
    for source in (source for spec in SPECS for source in spec.sources):
        hashes.setdefault(source.file_name, {})[source.url] = source.sha256 or ""
    for name, by_url in hashes.items():
        shortest = min(by_url.values(), key=len)
        agree = shortest and all(sha256.startswith(shortest) for sha256 in by_url.values())
        assert len(by_url) == 1 or agree, name
