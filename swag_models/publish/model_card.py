"""A published model's card: README.md with the metadata the Hugging Face Hub reads, made from the spec. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from swag_models.hub.hf_format import is_known_to_timm
from swag_models.hub.huggingface import PREFIX
from swag_models.spec import UNKNOWN, ModelSpec

LICENSES = {  # with a name of their own on the Hub, see huggingface.co/docs/hub/repositories-licenses; others are its "other"
    *(
        "apache-2.0",
        "mit",
        "openrail",
        "bigscience-openrail-m",
        "creativeml-openrail-m",
        "bigscience-bloom-rail-1.0",
    ),
    *(
        "bigcode-openrail-m",
        "openrail++",
        "afl-3.0",
        "artistic-2.0",
        "bsl-1.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
    ),
    *(
        "bsd-3-clause-clear",
        "c-uda",
        "cc",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
    ),
    *(
        "cc-by-sa-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
    ),
    *(
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cdla-sharing-1.0",
        "cdla-permissive-1.0",
    ),
    *(
        "cdla-permissive-2.0",
        "wtfpl",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "agpl-3.0",
        "gfdl",
        "gpl",
    ),
    *(
        "gpl-2.0",
        "gpl-3.0",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "isc",
        "lppl-1.3c",
        "ms-pl",
        "mpl-2.0",
        "odc-by",
        "odbl",
    ),
    *("osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", UNKNOWN),
}
LISTED = 100  # class names written out

BODY = """# {name}

{description}.

| | |
|---|---|
| architecture | {arch}, `{config}` |
| parameters | {parameters:.1f}M, {dtype} |
| input | {in_chans} x {height} x {width} |
| output | {output} |
| compute | {gmacs:.2f} GMACs per image |

## Use

```python
import swag_models
from PIL import Image

model = swag_models.load_model("{place}")
preprocess = swag_models.load_preprocess("{place}")
output = model(preprocess(Image.open("photo.jpg")).unsqueeze(0))
```
{timm}
## Preprocessing

An RGB picture is resized ({interpolation}, in proportion) to just cover {height} x {width} pixels (height x width), its centre
cropped, scaled to [0, 1] and normalised with mean {mean} and standard deviation {std}.{channels}

## Classes

{classes}

## Accuracy

{accuracy}

## Training

{training}

## Licence and limits of use

{license}

{limits}
"""
TIMM = """
It loads with timm too:

```python
import timm

model = timm.create_model("local-dir:{place}", pretrained=True).eval()
```
"""
HASHTAGS = """The weights derive from the SWAG models, which were pre-trained on 3.6 billion public Instagram images to predict
the hashtags that people had given them (Singh et al., *Revisiting Weakly Supervised Pre-Training of Visual Perception Models*,
CVPR 2022, [arXiv 2201.08371](https://arxiv.org/abs/2201.08371))."""
HASHTAG_LIMITS = """Hashtags tell what people chose to post and say, not what a picture shows. The model has learned the habits
and prejudices of one platform, its time and its languages: expect it to know some places, skin colours, ages and ways of life
better than others, and to connect people with words that are unjust to them.

"""
LIMITS = """Do not use it to identify people, to judge or rank them, or to infer anything about them that they did not say, nor
where a wrong answer does harm that nobody catches. Measure it on pictures like your own before you rely on it."""
CITATION = """
## Citation

```bibtex
@inproceedings{singh2022revisiting,
  title = {Revisiting Weakly Supervised Pre-Training of Visual Perception Models},
  author = {Singh, Mannat and Gustafson, Laura and Adcock, Aaron and de Freitas Reis, Vinicius and Gedik, Bugra and
            Kosaraju, Raj Prateek and Mahajan, Dhruv and Girshick, Ross and Doll{\\'a}r, Piotr and van der Maaten, Laurens},
  booktitle = {CVPR},
  year = {2022}
}
```
"""


@dataclass(frozen=True)
class Facts:
    """What a card tells besides the spec.

    `from_hashtags`: the weights derive from SWAG's; `base_model`: a Hub repository; `training`: Markdown.
    """

    dtype: str
    sharded: bool
    from_hashtags: bool
    datasets: Sequence[str] = ()
    base_model: str | None = None
    tags: Sequence[str] = ()
    training: str | None = None


def make_card(spec: ModelSpec, facts: Facts) -> str:
    """The text of README.md; its examples load the model from a placeholder that `address_card` replaces."""
    for_timm = is_known_to_timm(spec) and not facts.sharded
    place = f"path/to/{spec.name}"
    height, width = spec.preprocess.size
    body = BODY.format(
        name=spec.name,
        description=f"{spec.description[:1].upper()}{spec.description[1:]}".rstrip("."),
        arch=spec.arch,
        config=spec.config,
        parameters=spec.num_params / 1e6,
        dtype=facts.dtype,
        in_chans=spec.in_chans,
        height=height,
        width=width,
        output="features" if spec.num_classes is None else f"{spec.num_classes} classes",
        gmacs=spec.gmacs,
        place=place,
        timm=TIMM.format(place=place) if for_timm else "",
        interpolation=spec.preprocess.interpolation,
        mean=spec.preprocess.mean,
        std=spec.preprocess.std,
        channels="" if spec.in_chans == 3 else f" The model itself takes {spec.in_chans} channels.",
        classes=_describe_classes(spec),
        accuracy=_describe_accuracy(spec),
        training="\n\n".join(
            [*([HASHTAGS] if facts.from_hashtags else []), *_describe_training(facts)]
        ),
        license=_describe_license(spec),
        limits=HASHTAG_LIMITS + LIMITS if facts.from_hashtags or spec.synsets else LIMITS,
    )
    return f"---\n{_make_metadata(spec, facts, for_timm)}\n---\n\n{body}{CITATION if facts.from_hashtags else ''}"


def address_card(text: str, name: str, address: str) -> str:
    """The card with examples that load the model from the Hub: `address` is org/repo or org/repo@revision."""
    for place in (f'"local-dir:path/to/{name}"', f'"path/to/{name}"'):
        text = text.replace(place, f'"{PREFIX}{address}"')
    return text


def _make_metadata(spec: ModelSpec, facts: Facts, for_timm: bool) -> str:
    """The YAML at the card's beginning."""
    from huggingface_hub import EvalResult, ModelCardData

    task = "image-feature-extraction" if spec.num_classes is None else "image-classification"
    results = []
    if spec.metrics:
        dataset = re.sub(r"[^\w.-]+", "-", spec.metrics.dataset).strip("-").lower()
        results = [
            EvalResult(task, dataset, spec.metrics.dataset, "accuracy", value, metric_name=name)
            for name, value in {
                "Top-1 accuracy": spec.metrics.top1,
                "Top-5 accuracy": spec.metrics.top5,
            }.items()
            if value is not None
        ]
    named = spec.license in LICENSES
    data = ModelCardData(
        license=spec.license if named else "other",
        license_name=None if named else spec.license,
        license_link=None if named else spec.license_url or None,
        library_name="swag_models",
        pipeline_tag=task,
        tags=[task, "swag_models", spec.family, *(["timm"] if for_timm else []), *facts.tags],
        datasets=list(facts.datasets) or None,
        base_model=facts.base_model,
        metrics=["accuracy"] if results else None,
        model_name=spec.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _describe_classes(spec: ModelSpec) -> str:
    match spec.classes:
        case None if spec.num_classes is None:
            return "None: the model gives features."
        case None:
            return f"{spec.num_classes}, without names."
        case str(label_set):
            return f"The {spec.num_classes} of {label_set}, in torchvision's order."
        case names:
            more = (
                f" and {len(names) - LISTED} more, in `config.json`" if len(names) > LISTED else ""
            )
            return f"{len(names)}: {', '.join(names[:LISTED])}{more}."


def _describe_accuracy(spec: ModelSpec) -> str:
    if spec.metrics is None:
        return "None is known of these weights."
    top5 = "" if spec.metrics.top5 is None else f", top-5 {spec.metrics.top5}%"
    return f"Top-1 {spec.metrics.top1}%{top5} on {spec.metrics.dataset}."


def _describe_training(facts: Facts) -> list[str]:
    """Paragraphs."""
    told = (
        [f"Trained on {', '.join(facts.datasets)}."]
        if facts.datasets and not facts.from_hashtags
        else []
    )
    if facts.training:
        told.append(facts.training.strip())
    return (
        told if told or facts.from_hashtags else ["Nothing is told beyond the description above."]
    )


def _describe_license(spec: ModelSpec) -> str:
    if spec.license == UNKNOWN:
        return "**No licence is stated.** Ask who published it before you use it."
    link = f"[{spec.license}]({spec.license_url})" if spec.license_url else spec.license
    if "-nc" in spec.license:
        return f"The weights are licensed **{link}: no commercial use**, in whatever form they are passed on."
    return f"The weights are licensed {link}."
