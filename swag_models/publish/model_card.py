"""The model card: README.md of a published model, with the metadata that the Hub reads.

Imports no torch. The text is in the template `model_card.md.jinja`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from swag_models.formatting import count_noun, markdown_table
from swag_models.hub.hub_names import PREFIX
from swag_models.hub.timm_format import is_known_to_timm
from swag_models.publish.pretraining import Work
from swag_models.spec import UNKNOWN, ModelSpec

# Licences with an id on the Hub (huggingface.co/docs/hub/repositories-licenses); others are
# listed as "other", with name and link.
HUB_LICENSES = {
    "apache-2.0",
    "mit",
    "openrail",
    "bigscience-openrail-m",
    "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m",
    "openrail++",
    "afl-3.0",
    "artistic-2.0",
    "bsl-1.0",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "c-uda",
    "cc",
    "cc0-1.0",
    "cc-by-2.0",
    "cc-by-2.5",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-2.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0",
    "cdla-permissive-1.0",
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
    "osl-3.0",
    "postgresql",
    "ofl-1.1",
    "ncsa",
    "unlicense",
    "zlib",
    "pddl",
    "lgpl-lr",
    UNKNOWN,
}
GENERATED = "generated scenes"  # in the descriptions of models of such images
MAX_LISTED_CLASSES = 100  # class names in the card; all of them are in config.json

# No autoescape: the output is Markdown, in which HTML entities would mangle code and names.
TEMPLATES = Environment(  # nosec B701 # Markdown
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=False,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.globals["count_noun"] = count_noun


@dataclass(frozen=True)
class CardDetails:
    """What a card states besides the spec.

    Attributes:
        dtype: dtype of the weights, for example "float32".
        sharded: whether the weights are in several files.
        pretraining: the work that the weights derive from; None for none of WORKS.
        datasets: ids on the Hub.
        base_model: repository on the Hub.
        tags: additional tags.
        training: how the model was trained, as Markdown.
    """

    dtype: str
    sharded: bool
    pretraining: Work | None
    datasets: Sequence[str] = ()
    base_model: str | None = None
    tags: Sequence[str] = ()
    training: str | None = None


def make_card(spec: ModelSpec, details: CardDetails) -> str:
    """The text of README.md.

    Its examples load the model from a placeholder path, which `set_card_address` replaces.
    """
    for_timm = is_known_to_timm(spec)
    height, width = spec.preprocess.size
    overview = [
        ("architecture", f"{spec.arch}, `{spec.config}`"),
        ("parameters", f"{spec.num_params / 1e6:.1f}M, {details.dtype}"),
        ("input", f"{spec.in_chans} x {height} x {width}"),
        ("output", count_noun(spec.num_classes, "class") if spec.num_classes else "features"),
        ("compute", f"{spec.gmacs:.2f} GMACs per image"),
    ]
    if spec.merge_tokens:
        merged = count_noun(spec.merge_tokens, "token")
        overview.append(("token merging", f"each block merges {merged} (arXiv 2210.09461)"))
    return TEMPLATES.get_template("model_card.md.jinja").render(
        spec=spec,
        details=details,
        pretraining=details.pretraining,
        metadata=_make_metadata(spec, details, for_timm),
        kind=_describe_kind(spec),
        description=_capitalise(spec.description).rstrip("."),
        # Hashtags of generated images say nothing about people.
        from_posts=details.pretraining is not None
        or (spec.synsets is not None and GENERATED not in spec.description),
        overview=markdown_table(("", ""), overview),
        path=f"path/to/{spec.name}",
        for_timm=for_timm,
        loads_in_timm=not details.sharded,  # timm reads a single weight file, not an index
        height=height,
        width=width,
        resized=spec.preprocess.resized,
        max_classes=MAX_LISTED_CLASSES,
        unknown_license=UNKNOWN,
    )


def make_timm_card(spec: ModelSpec, *, training: str, datasets: Sequence[str] = ()) -> str:
    """The text of README.md of a model that only timm loads.

    Args:
        spec: of the model; `arch` is a name of timm's.
        training: how it was trained, as Markdown.
        datasets: ids on the Hub.
    """
    return TEMPLATES.get_template("timm_card.md.jinja").render(
        spec=spec,
        metadata=_format_metadata(spec, "timm", ["timm"], datasets=list(datasets) or None),
        kind=_describe_kind(spec),
        description=_capitalise(spec.description).rstrip("."),
        training=training,
        datasets=datasets,
        unknown_license=UNKNOWN,
    )


def set_card_address(text: str, name: str, address: str) -> str:
    """Make the examples of a card load the model from the Hub.

    Args:
        text: text of the card.
        name: name of the model; as the title, and as that of its accuracy on the Hub, it is
            replaced by that of the repository.
        address: org/repo or org/repo@revision.
    """
    repo, _, revision = address.partition("@")
    title = repo.split("/")[1]
    text = text.replace(f"\n# {name}\n", f"\n# {title}\n", 1)
    # YAML quotes names such as 007, which would be numbers.
    index = rf"(\nmodel-index:\n- name: )(['\"]?){re.escape(name)}\2\n"
    text = re.sub(index, rf'\g<1>"{title}"\n', text, count=1)
    # transformers has no prefix for names on the Hub.
    name_there = f'"{repo}", revision="{revision}"' if revision else f'"{repo}"'
    text = text.replace(f'"./path/to/{name}"', name_there)
    for path in (f'"local-dir:path/to/{name}"', f'"path/to/{name}"'):
        text = text.replace(path, f'"{PREFIX}{address}"')
    return text


def _describe_kind(spec: ModelSpec) -> str:
    if spec.num_classes is None:
        return "An image encoder without a classifier"
    kind = f"An image classifier of {count_noun(spec.num_classes, 'class')}"
    return f"{kind}, any number of which an image can have" if spec.multi_label else kind


def _capitalise(text: str) -> str:
    """Make the first letter a capital, unless the first word is an identifier."""
    return text if re.match(r"\w*[_\d]", text) else f"{text[:1].upper()}{text[1:]}"


def _make_metadata(spec: ModelSpec, details: CardDetails, for_timm: bool) -> str:
    """The YAML header, in the fields of huggingface.co/docs/hub/model-cards."""
    from huggingface_hub import EvalResult

    task = _name_task(spec)
    results = []
    if spec.metrics:
        dataset_id = re.sub(r"[^\w.-]+", "-", spec.metrics.dataset).strip("-").lower()
        accuracies = {"Top-1 accuracy": spec.metrics.top1, "Top-5 accuracy": spec.metrics.top5}
        results = [
            EvalResult(task, dataset_id, spec.metrics.dataset, "accuracy", value, metric_name=name)
            for name, value in accuracies.items()
            if value is not None
        ]
    return _format_metadata(
        spec,
        "swag_models",
        ["swag_models", spec.family, *(["timm"] if for_timm else []), *details.tags],
        datasets=list(details.datasets) or None,
        base_model=details.base_model,
        metrics=["accuracy"] if results else None,
        model_name=spec.name if results else None,
        eval_results=results or None,
    )


def _format_metadata(spec: ModelSpec, library: str, tags: Sequence[str], **fields: Any) -> str:
    """The YAML header of a model that `library` loads, with further fields of ModelCardData."""
    from huggingface_hub import ModelCardData

    task = _name_task(spec)
    # The Hub rejects unknown ids in `license`, and takes a name, an id as well, and a link for
    # "other".
    on_hub = spec.license in HUB_LICENSES
    data = ModelCardData(
        license=spec.license if on_hub else "other",
        license_name=None if on_hub else spec.license.replace(" ", "-"),
        license_link=None if on_hub else spec.license_url or None,
        library_name=library,
        pipeline_tag=task,
        tags=[task, *tags],
        **fields,
    )
    return data.to_yaml()


def _name_task(spec: ModelSpec) -> str:
    """The task of a model in the Hub's terms."""
    return "image-feature-extraction" if spec.num_classes is None else "image-classification"
