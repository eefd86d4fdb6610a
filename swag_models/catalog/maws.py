"""MAWS: ViTs pre-trained as masked autoencoders, then on hashtags (Singh et al. 2023).

The paper is arXiv 2303.13496. `_mae` are masked autoencoders of 3 billion images, `_maws` these
after pre-training on the hashtags of the same images, and `_maws_in1k` those after fine-tuning on
ImageNet-1k. Files are in timm's layout; no hash of them is published. Not listed are the masked
autoencoders of ImageNet only, and the towers of MAWS CLIP (docs/models.md).

Accuracy is top-1 in percent on the 50,000 validation images of ImageNet-1k, as published by the
authors. GMACs are counted as by torch's FlopCounterMode. The class token is the output, which is
our reading: timm's default, as in SWAG.
"""

from typing import Literal

from swag_models.architectures import ViTConfig
from swag_models.catalog.configs import VIT_2B14, VIT_6_5B14, VIT_B16, VIT_H14, VIT_L16
from swag_models.spec import Metrics, ModelSpec, Preprocess, Source

DESCRIPTIONS = {
    "mae": "pre-trained as a masked autoencoder of 3 billion images; features only",
    "maws": "pre-trained as a masked autoencoder, then on hashtags of 3 billion images; "
    "features only",
    "maws_in1k": "pre-trained as a masked autoencoder, then on hashtags; fine-tuned on ImageNet-1k",
}


def _make_spec(
    name: str,
    variant: Literal["mae", "maws", "maws_in1k"],
    url: str,
    *,
    config: ViTConfig,
    image_size: int = 224,
    num_params: int,
    gmacs: float,
    metrics: Metrics | None = None,
) -> ModelSpec:
    """Return the spec of a published model, with the fields that its variant determines."""
    has_head = variant == "maws_in1k"
    return ModelSpec(
        name=name,
        arch=name.removesuffix(f"_{variant}"),
        variant="in1k" if has_head else variant,
        description=DESCRIPTIONS[variant],
        config=config,
        # The authors resize both sides, without a crop, to evaluate fine-tuned models.
        preprocess=Preprocess(image_size, crop_mode="squash" if has_head else "center"),
        num_classes=1000 if has_head else None,
        classes="imagenet-1k" if has_head else None,
        num_params=num_params,
        gmacs=gmacs,
        metrics=metrics,
        license="cc-by-nc-4.0",
        license_url="https://creativecommons.org/licenses/by-nc/4.0/legalcode",
        sources=(Source(url, "timm"),),
        pretraining="maws",
    )


MAWS = (
    _make_spec(
        "vit_b16_mae",
        "mae",
        "https://dl.fbaipublicfiles.com/maws/pretrain/mae/vit_b16.pt",
        config=VIT_B16,
        num_params=85_798_656,
        gmacs=17.563,
    ),
    _make_spec(
        "vit_b16_maws",
        "maws",
        "https://dl.fbaipublicfiles.com/maws/pretrain/maws/vit_b16.pt",
        config=VIT_B16,
        num_params=85_798_656,
        gmacs=17.563,
    ),
    _make_spec(
        "vit_b16_maws_in1k",
        "maws_in1k",
        "https://dl.fbaipublicfiles.com/maws/finetune/in1k/maws/vit_b16_512.pt",
        config=VIT_B16,
        image_size=512,
        num_params=87_203_560,
        gmacs=107.028,
        metrics=Metrics("imagenet-1k", top1=86.832),
    ),
    _make_spec(
        "vit_l16_mae",
        "mae",
        "https://dl.fbaipublicfiles.com/maws/pretrain/mae/vit_l16.pt",
        config=VIT_L16,
        num_params=303_301_632,
        gmacs=61.554,
    ),
    _make_spec(
        "vit_l16_maws",
        "maws",
        "https://dl.fbaipublicfiles.com/maws/pretrain/maws/vit_l16.pt",
        config=VIT_L16,
        num_params=303_301_632,
        gmacs=61.554,
    ),
    _make_spec(
        "vit_l16_maws_in1k",
        "maws_in1k",
        "https://dl.fbaipublicfiles.com/maws/finetune/in1k/maws/vit_l16_512.pt",
        config=VIT_L16,
        image_size=512,
        num_params=305_174_504,
        gmacs=361.986,
        metrics=Metrics("imagenet-1k", top1=88.796),
    ),
    _make_spec(
        "vit_h14_mae",
        "mae",
        "https://dl.fbaipublicfiles.com/maws/pretrain/mae/vit_h14.pt",
        config=VIT_H14,
        num_params=630_764_800,
        gmacs=167.294,
    ),
    _make_spec(
        "vit_h14_maws",
        "maws",
        "https://dl.fbaipublicfiles.com/maws/pretrain/maws/vit_h14.pt",
        config=VIT_H14,
        num_params=630_764_800,
        gmacs=167.294,
    ),
    _make_spec(
        "vit_h14_maws_in1k",
        "maws_in1k",
        "https://dl.fbaipublicfiles.com/maws/finetune/in1k/maws/vit_h14_518.pt",
        config=VIT_H14,
        image_size=518,
        num_params=633_470_440,
        gmacs=1016.717,
        metrics=Metrics("imagenet-1k", top1=89.502),
    ),
    _make_spec(
        "vit_2b14_mae",
        "mae",
        "https://dl.fbaipublicfiles.com/maws/pretrain/mae/vit_2b14.pt",
        config=VIT_2B14,
        num_params=1_890_408_960,
        gmacs=493.573,
    ),
    _make_spec(
        "vit_2b14_maws",
        "maws",
        "https://dl.fbaipublicfiles.com/maws/pretrain/maws/vit_2b14.pt",
        config=VIT_2B14,
        num_params=1_890_408_960,
        gmacs=493.573,
    ),
    _make_spec(
        "vit_2b14_maws_in1k",
        "maws_in1k",
        "https://dl.fbaipublicfiles.com/maws/finetune/in1k/maws/vit_2b14_518.pt",
        config=VIT_2B14,
        image_size=518,
        num_params=1_895_819_240,
        gmacs=2818.485,
        metrics=Metrics("imagenet-1k", top1=89.752),
    ),
    _make_spec(
        "vit_6_5b14_mae",
        "mae",
        "https://dl.fbaipublicfiles.com/maws/pretrain/mae/vit_6.5b14.pt",
        config=VIT_6_5B14,
        num_params=6_447_632_384,
        gmacs=1673.641,
    ),
    _make_spec(
        "vit_6_5b14_maws",
        "maws",
        "https://dl.fbaipublicfiles.com/maws/pretrain/maws/vit_6.5b14.pt",
        config=VIT_6_5B14,
        num_params=6_447_632_384,
        gmacs=1673.641,
    ),
    _make_spec(
        "vit_6_5b14_maws_in1k",
        "maws_in1k",
        "https://dl.fbaipublicfiles.com/maws/finetune/in1k/maws/vit_6.5b14_518.pt",
        config=VIT_6_5B14,
        image_size=518,
        num_params=6_456_288_232,
        gmacs=9321.477,
        metrics=Metrics("imagenet-1k", top1=90.064),
    ),
)
