"""SWAG: pre-trained on the hashtags of 3.6 billion images (Singh et al. 2022, arXiv 2201.08371).

Accuracy is in percent on the 50,000 validation images of ImageNet-1k, one centre crop, as published
for `_in1k` by the authors and for `_in1k_linear` by torchvision, whose metadata are also the source
of the GMACs and of the hash prefixes.
"""

from typing import Literal

from swag_models.architectures import RegNetConfig, ViTConfig
from swag_models.catalog.configs import (
    REGNETY_16GF,
    REGNETY_32GF,
    REGNETY_128GF,
    VIT_B16,
    VIT_H14,
    VIT_L16,
)
from swag_models.spec import Metrics, ModelSpec, Preprocess, Source

NC, NC_URL = "cc-by-nc-4.0", "https://github.com/facebookresearch/SWAG/blob/main/LICENSE"
BACKBONE = "pre-trained on the hashtags of 3.6 billion public images; features only"
FINE_TUNED = "pre-trained on hashtags, then fine-tuned end to end on ImageNet-1k"
LINEAR = "pre-trained on hashtags, backbone frozen, linear classifier on ImageNet-1k"


def _make_spec(
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
        pretraining="swag",
    )


# A backbone's first source is the file of its linear classifier, which contains the same weights
# and, unlike the backbone's own file, has a published hash.
SWAG = (
    _make_spec(
        "regnety_16gf",
        "backbone",
        config=REGNETY_16GF,
        image_size=224,
        num_params=80_565_140,
        gmacs=15.908,
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
    _make_spec(
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
    _make_spec(
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
    _make_spec(
        "regnety_32gf",
        "backbone",
        config=REGNETY_32GF,
        image_size=224,
        num_params=141_333_770,
        gmacs=32.276,
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
    _make_spec(
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
    _make_spec(
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
    _make_spec(
        "regnety_128gf",
        "backbone",
        config=REGNETY_128GF,
        image_size=224,
        num_params=637_419_894,
        gmacs=127.51,
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
    _make_spec(
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
    _make_spec(
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
    _make_spec(
        "vit_b16",
        "backbone",
        config=VIT_B16,
        image_size=224,
        num_params=85_798_656,
        gmacs=17.563,
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_b_16_lc_swag-4e70ced5.pth",
                "torchvision",
                "4e70ced5",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/vit_b16.torch", "swag"),
        ),
    ),
    _make_spec(
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
    _make_spec(
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
    _make_spec(
        "vit_l16",
        "backbone",
        config=VIT_L16,
        image_size=224,
        num_params=303_301_632,
        gmacs=61.554,
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_l_16_lc_swag-4d563306.pth",
                "torchvision",
                "4d563306",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/vit_l16.torch", "swag"),
        ),
    ),
    _make_spec(
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
    _make_spec(
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
    _make_spec(
        "vit_h14",
        "backbone",
        config=VIT_H14,
        image_size=224,
        num_params=630_764_800,
        gmacs=167.294,
        sources=(
            Source(
                "https://download.pytorch.org/models/vit_h_14_lc_swag-c1eb923e.pth",
                "torchvision",
                "c1eb923e",
            ),
            Source("https://dl.fbaipublicfiles.com/SWAG/vit_h14.torch", "swag"),
        ),
    ),
    _make_spec(
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
    _make_spec(
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
)
