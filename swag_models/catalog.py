"""The catalog of all models and the sources of their weights.

Accuracy is in percent on the 50,000 validation images of ImageNet-1k, one centre crop, as published
for `_in1k` by the authors (arXiv 2201.08371) and for `_in1k_linear` by torchvision, whose metadata
are also the source of the GMACs and of the hash prefixes. The accuracy of the two models that ship
with the library was measured on 960 generated images, 30 for each of 32 classes, with predictions
limited to the hashtags of these classes.
"""

from pathlib import Path
from typing import Literal

from swag_models.spec import Metrics, ModelSpec, Preprocess, RegNetConfig, Source, ViTConfig

VIT_B16 = ViTConfig(patch_size=16, depth=12, width=768, num_heads=12, mlp_width=3072)
VIT_L16 = ViTConfig(patch_size=16, depth=24, width=1024, num_heads=16, mlp_width=4096)
VIT_H14 = ViTConfig(patch_size=14, depth=32, width=1280, num_heads=16, mlp_width=5120)
VIT_NANO = ViTConfig(patch_size=8, depth=4, width=96, num_heads=3, mlp_width=192)
REGNETY_NANO = RegNetConfig(depth=4, w_0=48, w_a=48.0, w_m=2.0, group_width=48, stem_width=24)
REGNETY_16GF = RegNetConfig(depth=18, w_0=200, w_a=106.23, w_m=2.48, group_width=112)
REGNETY_32GF = RegNetConfig(depth=20, w_0=232, w_a=115.89, w_m=2.53, group_width=232)
REGNETY_128GF = RegNetConfig(depth=27, w_0=456, w_a=160.83, w_m=2.52, group_width=264)

NC, NC_URL = "cc-by-nc-4.0", "https://github.com/facebookresearch/SWAG/blob/main/LICENSE"
BACKBONE = "pre-trained on the hashtags of 3.6 billion public images; features only"
FINE_TUNED = "pre-trained on hashtags, then fine-tuned end to end on ImageNet-1k"
LINEAR = "pre-trained on hashtags, backbone frozen, linear classifier on ImageNet-1k"
SCENES = (
    "pre-trained on the hashtags of generated scenes by `python -m studies run`; "
    "ships with the library"
)


def _read_vocabulary(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the classes of models that ship with the library, in the order of their logits.

    Returns:
        The hashtags, most frequent first, and the WordNet 3.0 ids of their meanings.
    """
    path = Path(__file__).parent / "weights" / f"{name}.tsv"
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    return tuple(hashtag for hashtag, _ in rows), tuple(synset for _, synset in rows)


SCENE_CLASSES, SCENE_SYNSETS = _read_vocabulary("scenes")


def _make_swag_spec(
    name: str,
    variant: Literal["backbone", "in1k", "in1k_linear"],
    *,
    config: ViTConfig | RegNetConfig,
    image_size: int,
    num_params: int,
    gmacs: float,
    metrics: Metrics | None = None,
    sources: tuple[Source, ...],
) -> ModelSpec:
    """Return the spec of a published model, with the fields that its variant determines."""
    has_head = variant != "backbone"
    return ModelSpec(
        name=name,
        arch=name.removesuffix(f"_{variant}"),
        variant=variant,
        description={"backbone": BACKBONE, "in1k": FINE_TUNED, "in1k_linear": LINEAR}[variant],
        config=config,
        preprocess=Preprocess(image_size),
        num_classes=1000 if has_head else None,
        classes="imagenet-1k" if has_head else None,
        num_params=num_params,
        gmacs=gmacs,
        metrics=metrics,
        license=NC,
        license_url=NC_URL,
        sources=sources,
    )


# A backbone's first source is the file of its linear classifier, which contains the same weights
# and, unlike the backbone's own file, has a published hash.
MODELS = (
    _make_swag_spec(
        "regnety_16gf",
        "backbone",
        config=REGNETY_16GF,
        image_size=224,
        num_params=80_565_140,
        gmacs=15.912,
        sources=(
            Source(
                "https://download.pytorch.org/models/regnet_y_16gf_lc_swag-f3ec0043.pth",
                "torchvision",
                "f3ec0043",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/regnety_16gf.torch", "swag"),
            Source("hf://timm/regnety_160.swag_lc_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_swag_spec(
        "regnety_16gf_in1k",
        "in1k",
        config=REGNETY_16GF,
        image_size=384,
        num_params=83_590_140,
        gmacs=46.735,
        metrics=Metrics("imagenet-1k", top1=86.02, top5=98.05),
        sources=(
            Source(
                "https://download.pytorch.org/models/regnet_y_16gf_swag-43afe44d.pth",
                "torchvision",
                "43afe44d",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/regnety_16gf_in1k.torch", "swag"),
            Source("hf://timm/regnety_160.swag_ft_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_swag_spec(
        "regnety_16gf_in1k_linear",
        "in1k_linear",
        config=REGNETY_16GF,
        image_size=224,
        num_params=83_590_140,
        gmacs=15.912,
        metrics=Metrics("imagenet-1k", top1=83.976, top5=97.244),
        sources=(
            Source(
                "https://download.pytorch.org/models/regnet_y_16gf_lc_swag-f3ec0043.pth",
                "torchvision",
                "f3ec0043",
            ),
            Source("hf://timm/regnety_160.swag_lc_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_swag_spec(
        "regnety_32gf",
        "backbone",
        config=REGNETY_32GF,
        image_size=224,
        num_params=141_333_770,
        gmacs=32.28,
        sources=(
            Source(
                "https://download.pytorch.org/models/regnet_y_32gf_lc_swag-e1583746.pth",
                "torchvision",
                "e1583746",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/regnety_32gf.torch", "swag"),
            Source("hf://timm/regnety_320.swag_lc_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_swag_spec(
        "regnety_32gf_in1k",
        "in1k",
        config=REGNETY_32GF,
        image_size=384,
        num_params=145_046_770,
        gmacs=94.826,
        metrics=Metrics("imagenet-1k", top1=86.83, top5=98.36),
        sources=(
            Source(
                "https://download.pytorch.org/models/regnet_y_32gf_swag-04fdfa75.pth",
                "torchvision",
                "04fdfa75",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/regnety_32gf_in1k.torch", "swag"),
            Source("hf://timm/regnety_320.swag_ft_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_swag_spec(
        "regnety_32gf_in1k_linear",
        "in1k_linear",
        config=REGNETY_32GF,
        image_size=224,
        num_params=145_046_770,
        gmacs=32.28,
        metrics=Metrics("imagenet-1k", top1=84.622, top5=97.48),
        sources=(
            Source(
                "https://download.pytorch.org/models/regnet_y_32gf_lc_swag-e1583746.pth",
                "torchvision",
                "e1583746",
            ),
            Source("hf://timm/regnety_320.swag_lc_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_swag_spec(
        "regnety_128gf",
        "backbone",
        config=REGNETY_128GF,
        image_size=224,
        num_params=637_419_894,
        gmacs=127.518,
        sources=(
            Source(
                "https://download.pytorch.org/models/regnet_y_128gf_lc_swag-cbe8ce12.pth",
                "torchvision",
                "cbe8ce12",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/regnety_128gf.torch", "swag"),
            Source("hf://timm/regnety_1280.swag_lc_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_swag_spec(
        "regnety_128gf_in1k",
        "in1k",
        config=REGNETY_128GF,
        image_size=384,
        num_params=644_812_894,
        gmacs=374.57,
        metrics=Metrics("imagenet-1k", top1=88.23, top5=98.69),
        sources=(
            Source(
                "https://download.pytorch.org/models/regnet_y_128gf_swag-c8ce3e52.pth",
                "torchvision",
                "c8ce3e52",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/regnety_128gf_in1k.torch", "swag"),
            Source("hf://timm/regnety_1280.swag_ft_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_swag_spec(
        "regnety_128gf_in1k_linear",
        "in1k_linear",
        config=REGNETY_128GF,
        image_size=224,
        num_params=644_812_894,
        gmacs=127.518,
        metrics=Metrics("imagenet-1k", top1=86.068, top5=97.844),
        sources=(
            Source(
                "https://download.pytorch.org/models/regnet_y_128gf_lc_swag-cbe8ce12.pth",
                "torchvision",
                "cbe8ce12",
            ),
            Source("hf://timm/regnety_1280.swag_lc_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_swag_spec(
        "vit_b16",
        "backbone",
        config=VIT_B16,
        image_size=224,
        num_params=85_798_656,
        gmacs=17.564,
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_b_16_lc_swag-4e70ced5.pth",
                "torchvision",
                "4e70ced5",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/vit_b16.torch", "swag"),
        ),
    ),
    _make_swag_spec(
        "vit_b16_in1k",
        "in1k",
        config=VIT_B16,
        image_size=384,
        num_params=86_859_496,
        gmacs=55.484,
        metrics=Metrics("imagenet-1k", top1=85.29, top5=97.65),
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_b_16_swag-9ac1b537.pth",
                "torchvision",
                "9ac1b537",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/vit_b16_in1k.torch", "swag"),
        ),
    ),
    _make_swag_spec(
        "vit_b16_in1k_linear",
        "in1k_linear",
        config=VIT_B16,
        image_size=224,
        num_params=86_567_656,
        gmacs=17.564,
        metrics=Metrics("imagenet-1k", top1=81.886, top5=96.18),
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_b_16_lc_swag-4e70ced5.pth",
                "torchvision",
                "4e70ced5",
            ),
        ),
    ),
    _make_swag_spec(
        "vit_l16",
        "backbone",
        config=VIT_L16,
        image_size=224,
        num_params=303_301_632,
        gmacs=61.555,
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_l_16_lc_swag-4d563306.pth",
                "torchvision",
                "4d563306",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/vit_l16.torch", "swag"),
        ),
    ),
    _make_swag_spec(
        "vit_l16_in1k",
        "in1k",
        config=VIT_L16,
        image_size=512,
        num_params=305_174_504,
        gmacs=361.986,
        metrics=Metrics("imagenet-1k", top1=88.07, top5=98.51),
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_l_16_swag-4f3808c9.pth",
                "torchvision",
                "4f3808c9",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/vit_l16_in1k.torch", "swag"),
        ),
    ),
    _make_swag_spec(
        "vit_l16_in1k_linear",
        "in1k_linear",
        config=VIT_L16,
        image_size=224,
        num_params=304_326_632,
        gmacs=61.555,
        metrics=Metrics("imagenet-1k", top1=85.146, top5=97.422),
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_l_16_lc_swag-4d563306.pth",
                "torchvision",
                "4d563306",
            ),
        ),
    ),
    _make_swag_spec(
        "vit_h14",
        "backbone",
        config=VIT_H14,
        image_size=224,
        num_params=630_764_800,
        gmacs=167.295,
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_h_14_lc_swag-c1eb923e.pth",
                "torchvision",
                "c1eb923e",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/vit_h14.torch", "swag"),
        ),
    ),
    _make_swag_spec(
        "vit_h14_in1k",
        "in1k",
        config=VIT_H14,
        image_size=518,
        num_params=633_470_440,
        gmacs=1016.717,
        metrics=Metrics("imagenet-1k", top1=88.55, top5=98.69),
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_h_14_swag-80465313.pth",
                "torchvision",
                "80465313",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/vit_h14_in1k.torch", "swag"),
        ),
    ),
    _make_swag_spec(
        "vit_h14_in1k_linear",
        "in1k_linear",
        config=VIT_H14,
        image_size=224,
        num_params=632_045_800,
        gmacs=167.295,
        metrics=Metrics("imagenet-1k", top1=85.708, top5=97.73),
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_h_14_lc_swag-c1eb923e.pth",
                "torchvision",
                "c1eb923e",
            ),
        ),
    ),
    ModelSpec(
        name="vit_nano_hashtags",
        arch="vit_nano",
        variant="hashtags",
        description=SCENES,
        config=VIT_NANO,
        preprocess=Preprocess(48),
        num_classes=65,
        classes=SCENE_CLASSES,
        synsets=SCENE_SYNSETS,
        num_params=327_809,
        gmacs=0.013,
        metrics=Metrics("960 held-out scenes", top1=24.06),
        license="apache-2.0",
        license_url="https://www.apache.org/licenses/LICENSE-2.0",
        sources=(
            Source(
                "package://vit_nano_hashtags.safetensors",
                "timm",
                "7af0243e43e287e677240fb557066e056a40cd93ec232364050a66c9efa9a57d",
            ),
        ),
    ),
    ModelSpec(
        name="regnety_nano_hashtags",
        arch="regnety_nano",
        variant="hashtags",
        description=SCENES,
        config=REGNETY_NANO,
        preprocess=Preprocess(48),
        num_classes=65,
        classes=SCENE_CLASSES,
        synsets=SCENE_SYNSETS,
        num_params=446_819,
        gmacs=0.011,
        metrics=Metrics("960 held-out scenes", top1=32.6),
        license="apache-2.0",
        license_url="https://www.apache.org/licenses/LICENSE-2.0",
        sources=(
            Source(
                "package://regnety_nano_hashtags.safetensors",
                "timm",
                "82db9f24c1011ec263c26cc0afa560a60fa6068355ff8d38a2579b4d56fde6b4",
            ),
        ),
    ),
)
