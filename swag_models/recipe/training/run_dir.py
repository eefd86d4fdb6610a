"""What a run begins and ends with: its folder, the model it trains, the classes it learns, and the model it publishes."""

from __future__ import annotations

import json
import math
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from swag_models import __version__
from swag_models.api import get_spec, load_model
from swag_models.atomic import atomic_write, disk_errors
from swag_models.errors import ConfigError
from swag_models.hub.hf_format import RECIPE_FILE, VOCABULARY_FILE
from swag_models.models import Backbone, build
from swag_models.publish import save
from swag_models.recipe.config import Run
from swag_models.recipe.data.shards import Shards, find_vocabulary, read_vocabulary
from swag_models.recipe.data.train_loader import TrainLoader
from swag_models.recipe.training.distributed import DistContext
from swag_models.recipe.training.estimate import find_arch
from swag_models.spec import UNKNOWN, Metrics, ModelSpec

RUN = "run.json"

FREE = {
    "engine",
    "checkpoint",
    "log_every",
    "eval_every",
    "on_nonfinite_loss",
    "loss_spike_factor",
}  # may change on resume


@dataclass(frozen=True)
class PublishInfo:
    """What a card tells of a model that nobody can know but who trains it: see `publish.save`; `preset` is the run's name."""

    preset: str | None = None
    name: str | None = None
    description: str | None = None
    license: str | None = None
    license_url: str | None = None
    datasets: Sequence[str] = ()


@dataclass(frozen=True)
class Classes:
    """What is learnt. names: None if there are none; synsets: of hashtags; vocabulary: the file they are from."""

    count: int
    names: tuple[str, ...] | None = None
    synsets: tuple[str, ...] | None = None
    vocabulary: Path | None = None

    def __len__(self) -> int:
        return self.count


def read_classes(feed: TrainLoader, data: Shards) -> Classes:
    """The classes of the data: of shards with a vocabulary beside them, its hashtags."""
    if path := find_vocabulary(data):
        rows = read_vocabulary(path)
        return Classes(
            len(rows),
            tuple(row["hashtag"] for row in rows),
            tuple(row["synset"] for row in rows),
            path,
        )
    if feed.num_classes is None:
        raise ConfigError(
            f"{data} does not say how many classes it has; give a packed folder, with its manifest.json"
        )
    return Classes(feed.num_classes, feed.class_names)


def make_model(run: Run, classes: Classes) -> tuple[Backbone, ModelSpec]:
    """The model to train, and the spec of what it is made from, for the run's image size and so many classes.

    A head for the same class names is kept, any other is made anew. ConfigError if `init` is of another architecture.
    """
    if run.init is None:
        spec = find_spec(run)
        model = build(
            spec.config,
            num_classes=len(classes),
            image_size=run.image_size,
            drop_path_rate=run.drop_path_rate,
        )
    else:
        spec = get_spec(run.init)
        if spec.config != find_spec(run).config:
            raise ConfigError(
                f"init {run.init!r} is a {spec.arch}, and the run's arch {run.arch}; set one to fit the other"
            )
        keep = spec.classes is not None and spec.classes == classes.names
        model = load_model(
            spec,
            num_classes=len(classes) if keep else None,
            image_size=run.image_size,
            drop_path_rate=run.drop_path_rate,
            backend="pread",
        )
        if not keep:
            model.reset_classifier(len(classes))
    if run.trainable == "head":
        model.freeze()
    return model, replace(
        spec,
        num_classes=len(classes),
        classes=classes.names,
        synsets=classes.synsets,
        preprocess=replace(spec.preprocess, image_size=run.image_size),
    )


def find_spec(run: Run) -> ModelSpec:
    """The spec of a run's architecture with fresh weights: nobody's, and without classes."""
    spec = find_arch(run.arch)
    return replace(
        spec,
        name=run.arch,
        description=f"{run.arch}, trained from scratch",
        preprocess=replace(spec.preprocess, interpolation=run.augment.interpolation),
        num_classes=None,
        classes=None,
        synsets=None,
        metrics=None,
        license=UNKNOWN,
        license_url="",
        sources=(),
    )


@contextmanager
def claim_folder(
    output: Path, ranks: DistContext
) -> Iterator[Callable[[Run, Mapping[str, Any]], None]]:
    """Have the folder of a run to oneself; what is given claims it for one run.

    ConfigError if another process has it, if it is another run's, or if a rank does not see it; OutputError if it cannot be
    written.
    """

    def claim(run: Run, data: Mapping[str, Any]) -> None:
        ranks.run_on_main(lambda: _claim(output / RUN, run, data))

    lock = FileLock(output / ".lock")
    ranks.run_on_main(lambda: _lock(lock, output))
    try:
        _meet(output, ranks)
        yield claim
    finally:
        lock.release()


def _lock(lock: FileLock, output: Path) -> None:
    with disk_errors(output):
        try:
            output.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another process is training in {output}; wait for it, or choose another folder"
            ) from None


def _meet(output: Path, ranks: DistContext) -> None:
    """ConfigError on every rank unless all see what the first writes; checkpoints would else lack the parts of others."""
    name = ranks.run_on_main(
        lambda: f".{uuid.uuid4().hex}.tmp"
    )  # a new one, of which no network disk remembers that it is missing
    ranks.run_on_main((output / name).touch)
    seen = ranks.gather((output / name).exists())
    ranks.run_on_main((output / name).unlink)
    if not all(seen):
        raise ConfigError(
            f"rank {seen.index(False)} does not see {output}; give a folder that all nodes share"
        )


def _claim(path: Path, run: Run, data: Mapping[str, Any]) -> None:
    """Write run.json, or compare: how the work is laid out, and what is kept of it, may change; the rest may not."""
    facts = json.loads(
        json.dumps({"run": run.to_dict(), "data": data, "versions": find_versions()})
    )
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        for part, free in (("run", FREE), ("data", {"name"})):
            for name in sorted((before[part].keys() | facts[part].keys()) - free):
                if before[part].get(name) != facts[part].get(name):
                    raise ConfigError(
                        f"{path.parent} holds a run with {name} {before[part].get(name)}, not {facts[part].get(name)}; "
                        "delete it or choose another folder"
                    )
    with atomic_write(path) as to:
        to.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")


def find_versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {
        "swag_models": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_bad_loss(
    output: Path, run: Run, ranks: DistContext, ids: Sequence[str], **numbers: float
) -> str:
    """Keep what is known of a loss that stops a run, its step, loss, lr and grad_norm among it; what to say of it."""
    path = output / "bad_loss.json"
    facts = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}

    def write() -> None:
        with atomic_write(path) as to:
            to.write_text(
                json.dumps({**facts, "ids": list(ids)}, indent=1, ensure_ascii=False) + "\n",
                "utf-8",
            )

    ranks.run_on_main(write)
    what = f"step {facts['step']} has loss {numbers['loss']:g} and gradients of norm {numbers['grad_norm']:g}"
    skip = (
        "set on_nonfinite_loss=skip and run again to go on from the last checkpoint; or "
        if run.on_nonfinite_loss == "stop"
        else ""
    )
    return (
        f"{what}, with learning rate {numbers['lr']:.3g}; its samples are in {path}; {skip}lower optimizer.lr or set "
        "optimizer.clip_norm, in a new folder"
    )


def is_published(output: Path) -> bool:
    """Whether the model of a run is whole; what makes it one is written last."""
    return (output / "model" / RECIPE_FILE).is_file()


def publish_model(
    output: Path,
    run: Run,
    spec: ModelSpec,
    classes: Classes,
    weights: Mapping[str, Any],
    data: Mapping[str, Any],
    scores: Mapping[str, float],
    about: PublishInfo,
) -> None:
    """Write output/model from the weights of a run."""
    with torch.device("meta"):
        model = build(
            spec.config,
            num_classes=len(classes),
            image_size=run.image_size,
            global_pool=spec.global_pool,
        )
    model.load_state_dict(weights, assign=True)
    model.spec = spec
    top1 = scores.get("top1", math.nan)
    folder = output / "model"
    recipe = {
        "preset": about.preset,
        "run": run.to_dict(),
        "data": data,
        "metrics": scores,
        "versions": find_versions(),
    }
    hashtags = f"the hashtags of {data['name']}" if classes.synsets else f"{data['name']}"
    save(
        model,
        folder,
        name=about.name,
        description=about.description
        or f"{run.arch}, trained on {hashtags}" + (f", from {run.init}" if run.init else ""),
        classes=classes.names,
        synsets=classes.synsets,
        metrics=Metrics(f"the validation set of {data['name']}", round(top1, 2))
        if math.isfinite(top1)
        else None,
        license=about.license,
        license_url=about.license_url,
        datasets=about.datasets,
        training=describe_training(recipe),
    )
    if classes.vocabulary:
        with atomic_write(folder / VOCABULARY_FILE) as to:
            shutil.copyfile(classes.vocabulary, to)
    with atomic_write(folder / RECIPE_FILE) as to:
        to.write_text(json.dumps(recipe, indent=2, ensure_ascii=False) + "\n", "utf-8")


def describe_training(recipe: Mapping[str, Any]) -> str:
    """The card's paragraph on a run."""
    run, data = recipe["run"], recipe["data"]
    length = f"{run['epochs']:g} epochs" if run["epochs"] else f"{run['steps']} steps"
    optimizer = {"sgd": "SGD with Nesterov momentum", "adamw": "AdamW"}[run["optimizer"]["kind"]]
    facts = {
        "preset": recipe["preset"],
        "began with": run["init"] or "random weights",
        "trained": "everything" if run["trainable"] == "all" else "the linear head alone",
        "data": f"{data['name']}: {data['samples']} samples an epoch, {data['classes']} classes, SHA-256 `{data['sha256']}`",
        "length": f"{length}, {run['batch_size']} images of {run['image_size']} px a step",
        "optimizer": f"{optimizer}, peak learning rate {Run.from_dict(run).lr:g}",
        "objective": run["objective"]["kind"],
        "versions": ", ".join(f"{name} {version}" for name, version in recipe["versions"].items()),
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value]
    return "\n".join(["All of it is in `recipe.json`.", "", "| | |", "|---|---|", *rows])
