"""The model of a training run: construction, publication with `recipe.json`."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from swag_models.api import get_spec, load_model
from swag_models.atomic import atomic_write, write_json
from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, describe_error, list_names, markdown_table
from swag_models.hub.download import hash_file
from swag_models.hub.hf_format import RECIPE_FILE, VOCABULARY_FILE, check_printable
from swag_models.models import Backbone, build
from swag_models.publish.save import choose_name
from swag_models.recipe.config import Run
from swag_models.recipe.training.asymmetric import balance_logits
from swag_models.recipe.training.checkpointer import list_checkpoints
from swag_models.recipe.training.classes import Classes
from swag_models.recipe.training.head_init import describe_head, init_head
from swag_models.recipe.training.memory import find_arch
from swag_models.recipe.training.run_dir import PACKAGES, PUBLISHED_FILE
from swag_models.runtime import find_versions
from swag_models.spec import UNKNOWN, Metrics, ModelSpec, Preprocess

logger = logging.getLogger("swag_models")


@dataclass(frozen=True)
class PublishInfo:
    """What only the user knows of a model that is published; see `publish.save`.

    Attributes:
        preset: name of the preset that the run is based on.
        name: of the model.
        description: of the model; by default made from the run.
        license: of the weights; by default that of `run.init`.
        license_url: of the licence's text.
        datasets: names of data sets on the Hugging Face Hub, for the model card.
    """

    preset: str | None = None
    name: str | None = None
    description: str | None = None
    license: str | None = None
    license_url: str | None = None
    datasets: Sequence[str] = ()

    def __post_init__(self) -> None:
        # before the training, not when its model is published
        texts = (self.name, self.description, self.license, self.license_url)
        check_printable("publish_info", *texts)
        choose_name(self.name, Path("model"))


def make_model(run: Run, classes: Classes) -> tuple[Backbone, ModelSpec]:
    """Build the model that a run trains, at the run's image size, with one logit per class.

    A head of the initial weights is kept if its class names are those of the data; otherwise a
    new one is initialised, at random or as `classes.head` says. With a sigmoid for each class, its
    biases are those of `balance_logits` where the data say how frequent each class is.

    Returns:
        The model, and its spec: that of the initial weights with classes and image size replaced.

    Raises:
        ConfigError: `run.init` has another architecture.
    """
    model: Backbone
    if run.init is None:
        spec, keep_head = find_start_spec(run), False
        model = build(
            spec.config,
            num_classes=len(classes) or None,  # a student without the teacher's classes has none
            image_size=run.image_size,
            drop_path_rate=run.drop_path_rate,
            patch_drop_rate=run.patch_drop_rate,
            merge_tokens=run.merge_tokens,
        )
    else:
        spec = _find_init(run)
        # the order of classes counts: a head for the same names in another order is useless
        keep_head = spec.classes is not None and spec.classes == classes.names
        model = _load_init(run, spec, classes, keep_head)
    if run.objective.is_multi_label and classes.shares and not keep_head:
        # With 0, every class would have probability 1/2, and most of the training would go into
        # lowering it (Lin et al. 2017, arXiv 1708.02002, section 3.3).
        with torch.no_grad():
            head = cast("nn.Linear", model.get_classifier())
            shares = torch.tensor(classes.shares, dtype=torch.float64)
            head.bias.copy_(balance_logits(shares, run.objective))
    if run.trainable == "head":
        model.freeze()
    return model, replace(
        spec,
        num_classes=len(classes) or None,
        classes=classes.names,
        synsets=classes.synsets,
        multi_label=run.objective.is_multi_label,
        merge_tokens=run.merge_tokens or None,
        preprocess=replace(spec.preprocess, image_size=run.image_size),
    )


def _find_init(run: Run) -> ModelSpec:
    """The spec of a run's initial weights; raise ConfigError for another architecture."""
    assert run.init is not None
    spec = get_spec(run.init)
    if spec.config != find_start_spec(run).config:
        raise ConfigError(
            f"init {run.init!r} has architecture {spec.arch}, but the run has arch={run.arch}; "
            "change one of them"
        )
    if spec.merge_tokens and not run.merge_tokens:
        logger.warning(
            "init %s merges %s in each block, but the run none; set merge_tokens=%d to keep it",
            *(run.init, count_noun(spec.merge_tokens, "token"), spec.merge_tokens),
        )
    return spec


def _load_init(run: Run, spec: ModelSpec, classes: Classes, keep_head: bool) -> Backbone:
    """Load a run's initial weights, with their head or a new one, at random or of its rows."""
    rows = None if keep_head or classes.head is None else classes.head.rows
    model = load_model(
        spec,
        num_classes=spec.num_classes if keep_head or rows else None,
        image_size=run.image_size,
        drop_path_rate=run.drop_path_rate,
        patch_drop_rate=run.patch_drop_rate,
        merge_tokens=run.merge_tokens,
        backend="pread",  # training writes to every page of a mapped file
    )
    if not keep_head and classes:
        old_head = model.get_classifier()
        model.reset_classifier(len(classes))
        if rows:
            init_head(
                cast("nn.Linear", model.get_classifier()),
                cast("nn.Linear", old_head),
                rows,
                keep_biases=spec.multi_label == run.objective.is_multi_label,
            )
    return model


def find_start_spec(run: Run) -> ModelSpec:
    """The spec of a run's architecture with random weights, which have no licence and no source."""
    spec = find_arch(run.arch)
    return replace(
        spec,
        name=run.arch,
        description=f"{run.arch}, trained from scratch",
        # evaluation resizes as training did
        preprocess=Preprocess(spec.image_size, run.augment.interpolation),
        num_classes=None,
        classes=None,
        synsets=None,
        metrics=None,
        license=UNKNOWN,  # nobody has stated one for these weights yet
        license_url="",
        sources=(),
        pretraining=None,
    )


def is_published(output: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a run's folder has the complete model, published with these settings.

    Args:
        output: folder of the run.
        settings: JSON values that the model and its card depend on, besides what run.json fixes.

    Raises:
        ConfigError: a file was changed, and is not replaced, because the change may be wanted; or
            the model is incomplete, and no checkpoint is left to publish it from.
    """
    folder, record = output / "model", output / PUBLISHED_FILE
    try:
        published = parse_json(record.read_bytes())
        digests = dict(published["files"])
        missing = [name for name in digests if not (folder / name).is_file()]
        changed = [
            name
            for name, digest in digests.items()
            if name not in missing and hash_file(folder / name) != digest
        ]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{record} is damaged: {describe_error(error)}; delete it to publish the model again"
        ) from None
    if changed:
        raise ConfigError(
            f"{folder} was changed after training: {list_names(changed)}; delete {record} to "
            "publish the model again, or choose another output"
        )
    if not missing and published["settings"] == json.loads(json.dumps(settings)):
        return True
    problem = f"lacks {list_names(missing)}" if missing else "was published with other settings"
    if not list_checkpoints(output / "checkpoints"):
        raise ConfigError(
            f"{folder} {problem}, and no checkpoint is left to publish it again from; choose "
            "another output to train it again"
        )
    logger.warning("%s %s; it is published again", folder, problem)
    return False


def publish_model(
    output: Path,
    run: Run,
    write: Callable[..., None],
    classes: Classes,
    weights: Mapping[str, Any],
    data: Mapping[str, Any],
    scores: Mapping[str, float],
    info: PublishInfo,
    settings: Mapping[str, Any],
) -> None:
    """Write the folder `output`/model.

    Args:
        output: folder of the run.
        run: the run.
        write: writes the folder, see `TrainState.publish`.
        classes: that it has learnt.
        weights: a state dict in timm's layout, on the CPU.
        data: description of the training data: name, kind, samples, classes, sha256.
        scores: of the last evaluation; "top1" or "mAP" in percent.
        info: what only the user knows.
        settings: as for `is_published`.
    """
    recipe = {
        "preset": info.preset,
        "run": run.to_dict(),
        "data": data,
        "metrics": scores,
        "versions": find_versions(*PACKAGES),
        **({"head_init": classes.head.facts} if classes.head else {}),
    }
    subject = f"trained on {data['name']}"
    if classes.synsets:
        subject = f"pre-trained on the hashtags of {data['name']}"
    if run.distill:
        subject = f"distilled from {data['teacher']['model']} on {data['name']}"
    init = f", from {run.init}" if run.init else ""
    top1 = scores.get("top1", math.nan)
    has_top1 = math.isfinite(top1)
    folder = output / "model"
    write(
        folder,
        weights,
        name=info.name,
        description=info.description or f"{run.arch}, {subject}{init}",
        classes=classes.names,
        synsets=classes.synsets,
        metrics=Metrics(f"the validation set of {data['name']}", round(top1, 2))
        if has_top1
        else None,
        license=info.license,
        license_url=info.license_url,
        datasets=info.datasets,
        training=describe_training(recipe),
    )
    if classes.vocabulary:
        with atomic_write(folder / VOCABULARY_FILE) as temporary:
            shutil.copyfile(classes.vocabulary, temporary)
    write_json(folder / RECIPE_FILE, recipe)
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    digests = {path.name: hash_file(path) for path in files if path.is_file()}
    # last: see `is_published`
    write_json(output / PUBLISHED_FILE, {"settings": settings, "files": digests})


def describe_training(recipe: Mapping[str, Any]) -> str:
    """The section of a model card on how the model was trained, in Markdown.

    Args:
        recipe: the content of recipe.json.
    """
    run, data = recipe["run"], recipe["data"]
    length = (
        count_noun(run["epochs"], "epoch") if run["epochs"] else count_noun(run["steps"], "step")
    )
    batch = count_noun(run["batch_size"], "image")
    names = {"sgd": "SGD with Nesterov momentum", "adamw": "AdamW", "muon": "Muon and AdamW"}
    optimizer = names[run["optimizer"]["kind"]]
    sizes = Run.from_dict(run).train_sizes
    pixels = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    facts = {
        "preset": recipe["preset"],
        "initial weights": run["init"] or "random",
        "initial head": describe_head(recipe.get("head_init")),
        "trained": "all parameters" if run["trainable"] == "all" else "only the linear head",
        "data": f"{data['name']}: {count_noun(data['samples'], 'sample')} per epoch, "
        f"{count_noun(data['classes'], 'class')}, SHA-256 `{data['sha256']}`",
        "length": f"{length}, {batch} of {pixels} px per step",
        "optimizer": f"{optimizer}, peak learning rate {Run.from_dict(run).lr:g}",
        "objective": "distillation" if run["distill"] else Run.from_dict(run).objective.describe(),
        **{
            name: f"{data[name]['model']}, SHA-256 of its weights `{data[name]['weights_sha256']}`"
            for name in ("teacher", "embeddings")
            if name in data
        },
        "validation": f"mAP {recipe['metrics']['mAP']:.2f}%" if "mAP" in recipe["metrics"] else "",
        "versions": ", ".join(f"{name} {version}" for name, version in recipe["versions"].items()),
    }
    # preset is None for a run that was made in Python, and most heads are new
    table = markdown_table(("", ""), [fact for fact in facts.items() if fact[1]])
    return f"`recipe.json` has every setting.\n\n{table}"
