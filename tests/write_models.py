"""Write docs/models.md: python tests/write_models.py"""

from __future__ import annotations

from pathlib import Path

import swag_models
from swag_models.atomic import atomic_write
from swag_models.formatting import markdown_table
from swag_models.spec import ModelSpec

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
TITLES = {
    "swag": "SWAG, 2022: softmax over the hashtags of 3.6 billion images "
    "([arXiv 2201.08371](https://arxiv.org/abs/2201.08371))",
    "wsl": "WSL, 2018: softmax over 1,500 hashtags of 940 million images "
    "([arXiv 1805.00932](https://arxiv.org/abs/1805.00932))",
    "swsl": "SWSL, 2019: labels that a model of hashtags gave to the same images "
    "([arXiv 1905.00546](https://arxiv.org/abs/1905.00546))",
    "maws": "MAWS, 2023: masked autoencoding of 3 billion images, then softmax over their hashtags "
    "([arXiv 2303.13496](https://arxiv.org/abs/2303.13496))",
    "drawings": "Included: keywords of clip art and emoji ([drawings.md](drawings.md))",
    "scenes": "Included: hashtags of generated images, to try the library without a download",
}
ACCURACY = {
    "swag": "published by the authors, for linear classifiers by torchvision",
    "wsl": "measured by timm",
    "swsl": "measured by timm",
    "maws": "published by the authors",
    "drawings": "-",
    "scenes": "-",
}
HEADER = ("name", "parameters", "size", "GMACs", "top-1", "top-5", "licence", "sources")
INTRODUCTION = """\
# Models

<!-- Written by tests/write_models.py from the catalog. -->

Every backbone that was pre-trained on hashtags and published, by the work that it comes from.
Accuracy is in percent on the 50,000 validation images of ImageNet-1k, one crop; a model without one
gives features. GMACs are 10^9 multiply-adds for one image of the given size in pixels. On the
command line, `swag-models list` prints, filters and sorts this table:

```sh
swag-models list --sort top1 --max-params 100M
swag-models list --family swsl --sort params
swag-models list --license apache-2.0
```
"""
CHOICE = """\
## Which one

- **Smallest:** `resnet18_swsl_in1k` (12 million parameters), `resnet50_swsl_in1k` (26 million).
- **Most accurate below 100 million parameters:** `vit_b16_maws_in1k` (86.8), or `regnety_16gf_in1k`
  (86.0) for a convolutional network with less than half the operations.
- **Most accurate:** `vit_6_5b14_maws_in1k` (90.1), of 26 GB; `vit_h14_maws_in1k` (89.5) needs a
  tenth of its memory.
- **Features for a linear classifier:** the backbones of MAWS. Their published linear classifiers on
  ImageNet-1k at 224 pixels reach 83.3 (B/16), 86.1 (L/16), 87.5 (H/14), 88.1 (2B) and 88.6 (6.5B),
  those of SWAG 81.9, 85.1 and 85.7 (B, L, H).

## When not to use these weights

- **For anything commercial.** All weights but the three included models are CC-BY-NC-4.0, from
  whichever host they are downloaded; a model that is fine-tuned from them, or distilled, derives
  from them. Choose weights under a permissive licence, or train your own with `swag-models recipe`.
- **For dense tasks** (segmentation, depth, correspondence). Hashtags describe whole images, and
  nothing in the pre-training asks for features of each place. Self-supervised models such as DINOv2
  and DINOv3 are made for it. Detection with a feature pyramid and fine-tuning works
  (`examples/detection.py`).
- **For text.** There is no text encoder: zero-shot classification is by hashtags only
  ([zeroshot.md](zeroshot.md)). Use a CLIP, SigLIP or PE model. MAWS has one, MAWS CLIP, whose text
  tower is an XLM-R: load it with the original repository (`torch.hub.load("facebookresearch/maws",
  model="vit_b16_xlmr_b_maws_clip")`), which needs torchtext.
- **To judge people.** The models have learned what people post, with the prejudices of one platform
  ([associations.md](associations.md)).

## Beside other pre-training

ImageNet-1k top-1 in percent, published by others; [comparison.md](comparison.md) has further
figures. Protocols of linear classifiers differ by about a point.

| pre-training | ViT-B/16, fine-tuned | ViT-L, fine-tuned | ViT-H, fine-tuned | ViT-L, linear |
|---|---|---|---|---|
| SWAG | 85.3 (384 px) | 88.1 (512) | 88.6 (518) | 85.1 |
| MAWS | 86.8 (512) | 88.8 (512) | 89.5 (518) | 86.1 |
| CatLIP, captions | 86.1 (512) | 88.6 (512) | 88.8 (512) | 85.2 |
| SuperClass, captions | - | 87.8 | - | 85.0 |
| OpenAI CLIP | 85.3 | - | - | 82.7 |
| OpenCLIP, LAION-2B | 85.5 | 87.3 | 87.6 | - |
| DINOv2 | - | - | - | 84.5 |

Sources: CatLIP (arXiv 2404.15653, tables 1 and 2, figure 5), SuperClass (arXiv 2411.03313), which
also states the figures of CLIP, OpenCLIP and DINOv2; SWAG and MAWS as above. For DINOv3 no figure
under these protocols is known to us.
"""


def make_document() -> str:
    """Return the text of docs/models.md."""
    parts = [INTRODUCTION.rstrip()]
    for family, title in TITLES.items():
        specs = map(swag_models.get_spec, swag_models.list_models(family=family))
        table = markdown_table(HEADER, [make_row(spec) for spec in specs])
        parts.append(f"## {title}\n\nAccuracy: {ACCURACY[family]}.\n\n{table}")
    return "\n\n".join([*parts, CHOICE.rstrip()]).replace("Accuracy: -.\n\n", "") + "\n"


def make_row(spec: ModelSpec) -> tuple[str, ...]:
    """Return the cells of a model."""
    metrics = spec.metrics if spec.metrics and spec.metrics.dataset == "imagenet-1k" else None
    top5 = metrics.top5 if metrics else None
    return (
        f"`{spec.name}`",
        f"{spec.num_params / 1e6:,.1f}M",
        str(spec.image_size),
        f"{spec.gmacs:,.2f}",
        f"{metrics.top1:.2f}" if metrics else "-",
        "-" if top5 is None else f"{top5:.2f}",
        spec.license,
        ", ".join(map(describe_source, (source.url for source in spec.sources))),
    )


def describe_source(url: str) -> str:
    """Return a link to a source, named by its host."""
    if url.startswith("package://"):
        return "included"
    if url.startswith("hf://"):
        repo = "/".join(url.removeprefix("hf://").split("/")[:2])
        return f"[Hub](https://huggingface.co/{repo})"
    return f"[{url.split('/')[2]}]({url})"


if __name__ == "__main__":
    with atomic_write(DOCUMENT) as temporary:
        temporary.write_text(make_document(), "utf-8")
    print(DOCUMENT)
