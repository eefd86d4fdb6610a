"""WSL and SWSL: ResNets and ResNeXts pre-trained on hashtags, fine-tuned on ImageNet-1k.

WSL is pre-trained on 940 million images with 1,500 hashtags (Mahajan et al. 2018, arXiv
1805.00932). For SWSL, such a model labels these images for a smaller one, which is pre-trained on
them (Yalniz et al. 2019, arXiv 1905.00546).

Accuracy is in percent on the 50,000 validation images of ImageNet-1k, one centre crop, as measured
by timm (results/results-imagenet.csv of August 2026; for resnext101_32x48d of May 2023, in timm
0.9.2). GMACs are counted by torch's FlopCounterMode.
"""

from typing import Literal

from swag_models.architectures import ResNetConfig
from swag_models.catalog.configs import (
    RESNET18,
    RESNET50,
    RESNEXT50_32X4D,
    RESNEXT101_32X4D,
    RESNEXT101_32X8D,
    RESNEXT101_32X16D,
    RESNEXT101_32X32D,
    RESNEXT101_32X48D,
)
from swag_models.spec import Metrics, ModelSpec, Preprocess, Source

DESCRIPTIONS = {
    "wsl": "pre-trained on the hashtags of 940 million images, then fine-tuned on ImageNet-1k",
    "swsl": "pre-trained on labels by a model of hashtags, then fine-tuned on ImageNet-1k",
}


def _make_spec(
    name: str,
    pretraining: Literal["wsl", "swsl"],
    *,
    config: ResNetConfig,
    num_params: int,
    gmacs: float,
    metrics: Metrics,
    sources: tuple[Source, ...],
) -> ModelSpec:
    """Return the spec of a published model, with the fields that all of them share."""
    return ModelSpec(
        name=name,
        arch=name.removesuffix(f"_{pretraining}_in1k"),
        variant="in1k",
        description=DESCRIPTIONS[pretraining],
        config=config,
        preprocess=Preprocess(224, "bilinear", crop_pct=0.875),
        num_classes=1000,
        classes="imagenet-1k",
        num_params=num_params,
        gmacs=gmacs,
        metrics=metrics,
        license="cc-by-nc-4.0",
        license_url="https://creativecommons.org/licenses/by-nc/4.0/legalcode",
        sources=sources,
        pretraining=pretraining,
    )


WSL = (
    _make_spec(
        "resnext101_32x8d_wsl_in1k",
        "wsl",
        config=RESNEXT101_32X8D,
        num_params=88_791_336,
        gmacs=16.414,
        metrics=Metrics("imagenet-1k", top1=82.72, top5=96.624),
        sources=(
            Source(
                "https://download.pytorch.org/models/ig_resnext101_32x8-c38310e5.pth",
                "torchvision",
                "c38310e5",
            ),
            Source("hf://timm/resnext101_32x8d.fb_wsl_ig1b_ft_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_spec(
        "resnext101_32x16d_wsl_in1k",
        "wsl",
        config=RESNEXT101_32X16D,
        num_params=194_026_792,
        gmacs=36.163,
        metrics=Metrics("imagenet-1k", top1=84.166, top5=97.192),
        sources=(
            Source(
                "https://download.pytorch.org/models/ig_resnext101_32x16-c6f796b0.pth",
                "torchvision",
                "c6f796b0",
            ),
            Source("hf://timm/resnext101_32x16d.fb_wsl_ig1b_ft_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_spec(
        "resnext101_32x32d_wsl_in1k",
        "wsl",
        config=RESNEXT101_32X32D,
        num_params=468_530_472,
        gmacs=87.107,
        metrics=Metrics("imagenet-1k", top1=85.09, top5=97.442),
        sources=(
            Source(
                "https://download.pytorch.org/models/ig_resnext101_32x32-e4b90b00.pth",
                "torchvision",
                "e4b90b00",
            ),
            Source("hf://timm/resnext101_32x32d.fb_wsl_ig1b_ft_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_spec(
        "resnext101_32x48d_wsl_in1k",
        "wsl",
        config=RESNEXT101_32X48D,
        num_params=828_411_176,
        gmacs=153.31,
        metrics=Metrics("imagenet-1k", top1=85.428, top5=97.572),
        sources=(
            Source(
                "https://download.pytorch.org/models/ig_resnext101_32x48-3e41cc8a.pth",
                "torchvision",
                "3e41cc8a",
            ),
        ),
    ),
)
SWSL = (
    _make_spec(
        "resnet18_swsl_in1k",
        "swsl",
        config=RESNET18,
        num_params=11_689_512,
        gmacs=1.814,
        metrics=Metrics("imagenet-1k", top1=73.286, top5=91.754),
        sources=(
            Source(
                "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/semi_weakly_supervised_resnet18-118f1556.pth",
                "torchvision",
                "118f1556",
            ),
            Source("hf://timm/resnet18.fb_swsl_ig1b_ft_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_spec(
        "resnet50_swsl_in1k",
        "swsl",
        config=RESNET50,
        num_params=25_557_032,
        gmacs=4.089,
        metrics=Metrics("imagenet-1k", top1=81.146, top5=95.98),
        sources=(
            Source(
                "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/semi_weakly_supervised_resnet50-16a12f1b.pth",
                "torchvision",
                "16a12f1b",
            ),
            Source("hf://timm/resnet50.fb_swsl_ig1b_ft_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_spec(
        "resnext50_32x4d_swsl_in1k",
        "swsl",
        config=RESNEXT50_32X4D,
        num_params=25_028_904,
        gmacs=4.23,
        metrics=Metrics("imagenet-1k", top1=82.162, top5=96.224),
        sources=(
            Source(
                "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/semi_weakly_supervised_resnext50_32x4-72679e44.pth",
                "torchvision",
                "72679e44",
            ),
            Source("hf://timm/resnext50_32x4d.fb_swsl_ig1b_ft_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_spec(
        "resnext101_32x4d_swsl_in1k",
        "swsl",
        config=RESNEXT101_32X4D,
        num_params=44_177_704,
        gmacs=7.97,
        metrics=Metrics("imagenet-1k", top1=83.268, top5=96.76),
        sources=(
            Source(
                "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/semi_weakly_supervised_resnext101_32x4-3f87e46b.pth",
                "torchvision",
                "3f87e46b",
            ),
            Source("hf://timm/resnext101_32x4d.fb_swsl_ig1b_ft_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_spec(
        "resnext101_32x8d_swsl_in1k",
        "swsl",
        config=RESNEXT101_32X8D,
        num_params=88_791_336,
        gmacs=16.414,
        metrics=Metrics("imagenet-1k", top1=84.276, top5=97.188),
        sources=(
            Source(
                "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/semi_weakly_supervised_resnext101_32x8-b4712904.pth",
                "torchvision",
                "b4712904",
            ),
            Source("hf://timm/resnext101_32x8d.fb_swsl_ig1b_ft_in1k/model.safetensors", "timm"),
        ),
    ),
    _make_spec(
        "resnext101_32x16d_swsl_in1k",
        "swsl",
        config=RESNEXT101_32X16D,
        num_params=194_026_792,
        gmacs=36.163,
        metrics=Metrics("imagenet-1k", top1=83.34, top5=96.844),
        sources=(
            Source(
                "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/semi_weakly_supervised_resnext101_32x16-f3559a9c.pth",
                "torchvision",
                "f3559a9c",
            ),
            Source("hf://timm/resnext101_32x16d.fb_swsl_ig1b_ft_in1k/model.safetensors", "timm"),
        ),
    ),
)
