"""How well classes are told apart by the features of a frozen model: nearest neighbours and linear classifiers.

knn       DINO's protocol (see `knn`), with all training pictures
logistic  L-BFGS on scaled features. With all training pictures, C is the best of a grid on a fifth of them, then all are
          fitted; with few there is none to spare, and C is FEW_SHOT_C, our choice: the best of 1e-3 to 1e2 for both miniature
          models with 1, 5 and 10 labels of each of 32 things
sgd       the published recipe: augmented pictures through the frozen trunk, trained as the linear preset says; our models only

Axes: N training pictures, M test pictures, D width, k neighbours.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from swag_models.atomic import write_texts
from swag_models.errors import ConfigError
from swag_models.recipe.config import change
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.data.hf_dataset import EVAL_SPLITS
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.data.sources import find_image_folder, open_image_dataset
from swag_models.recipe.evaluation.models import EvaluatedModel, SwagModel, open_evaluated_model
from swag_models.recipe.evaluation.probes.features import Features, Kind, extract_features
from swag_models.recipe.evaluation.probes.few_shot import choose_shots, hold_back
from swag_models.recipe.evaluation.probes.knn import classify_neighbours, find_neighbours
from swag_models.recipe.evaluation.probes.logistic_regression import Logistic, fit_logistic
from swag_models.recipe.evaluation.probes.scaling import Scaled, scale, scale_like
from swag_models.recipe.evaluation.results import Probe
from swag_models.recipe.presets import PRESETS, get_preset
from swag_models.recipe.training.losses import count_hits

Method = Literal["knn", "logistic", "sgd"]
METHODS: tuple[Method, ...] = ("knn", "logistic", "sgd")
SHOTS: tuple[float | None, ...] = (1, 2, 5, 10, 0.01, 0.1, None)
NEIGHBOURS = (10, 20, 100, 200)
FEW_SHOT_C = 0.1
GRID = tuple(
    10.0**power for power in range(-6, 5)
)  # of C; left when two in a row were worse than the best by more than chance
SCALING = "length 1, less the mean, mean square 1"


def probe(
    candidate: EvaluatedModel,
    train: Shards | ImageDataset,
    test: Shards | ImageDataset,
    *,
    methods: Sequence[Method] = ("knn", "logistic"),
    shots: Sequence[float | None] = SHOTS,
    splits: int = 5,
    cache: str | os.PathLike[str] | None = None,
    features: Kind = "float16",
    output: str | os.PathLike[str] | None = None,
    init: str | None = None,
    settings: Sequence[str] = (),
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> list[Probe]:
    """Top-1 on the test pictures of classifiers made with the training pictures.

    shots: for "logistic", labels of each class, shares below 1, None for all; each but all in so many splits, which are fixed.
    cache, features: see `extract_features`. For "sgd": output, a folder for its run; init, what `load_model` takes of the same
    model (default: its name); settings, "field=value" in place of the preset's.
    ConfigError names a method or a number of shots that cannot be.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise ConfigError(f"no method {unknown[0]!r}; allowed: {', '.join(METHODS)}")
    if splits < 1:
        raise ConfigError(f"splits is {splits}; allowed: 1 or more")
    if settings and "sgd" not in methods:
        raise ConfigError(
            f"settings has {settings[0]!r}, and only sgd has any; add it to the methods, or leave them out"
        )
    if "sgd" in methods and output is None:
        raise ConfigError("sgd trains a head in a folder of its own; give output")
    learnt, tested = open_labelled(train, test)
    probes: list[Probe] = []
    if "knn" in methods or "logistic" in methods:
        options: dict[str, Any] = {
            "dtype": features,
            "batch_size": batch_size,
            "workers": workers,
            "progress": progress,
        }
        known = extract_features(candidate, learnt, cache, **options)
        asked = extract_features(candidate, tested, cache, classes=known.class_names, **options)
        chosen = [  # before anything that takes long
            (
                count,
                [
                    choose_shots(known.names, known.labels, count, split, known.class_names)
                    for split in range(splits)
                ],
            )
            for count in shots
            if count is not None and "logistic" in methods
        ]
        if "knn" in methods:
            probes += _ask_neighbours(candidate.name, known, asked, progress)
        for count, parts in tqdm(chosen, "few shots", disable=not progress or not chosen):
            found = [_fit(known, asked, places) for places in parts]
            told = {
                "C": FEW_SHOT_C,
                "scaling": SCALING,
                "converged": all(done for _, done in found),
            }
            probes.append(
                Probe(candidate.name, "logistic", count, tuple(value for value, _ in found), told)
            )
        if "logistic" in methods and None in shots:
            probes.append(_sweep(candidate.name, known, asked, progress))
    if "sgd" in methods:
        assert output is not None
        folder = Path(output) / "sgd"
        probes.append(
            _train_head(
                candidate, init, learnt, test, folder, settings, batch_size, workers, progress
            )
        )
    return probes


def open_labelled(
    train: Shards | ImageDataset, test: Shards | ImageDataset
) -> tuple[Shards | ImageDataset, Shards | ImageDataset]:
    """Both, opened where they are folders; the classes to test on are then those learnt."""
    if not isinstance(train, ImageDataset) and (root := find_image_folder(train)):
        train = open_image_dataset(root)
    if not isinstance(test, ImageDataset) and (root := find_image_folder(test)):
        test = open_image_dataset(
            root,
            train.class_names if isinstance(train, ImageDataset) else None,
            EVAL_SPLITS,
            "the training set",
        )
    return train, test


def write_probes(probes: Sequence[Probe], folder: str | os.PathLike[str]) -> None:
    """probes.json and probes.md; OutputError if they cannot be written."""
    files = {
        "probes.json": json.dumps([each.to_dict() for each in probes], indent=2) + "\n",
        "probes.md": format_probes(probes) + "\n",
    }
    write_texts(Path(folder), files)


def format_probes(probes: Sequence[Probe]) -> str:
    """A Markdown table: top-1 in percent, the mean and standard deviation over splits."""
    lines = ["| model | method | labels of each class | top-1 | chosen |", "|---|---|---|---|---|"]
    for each in probes:
        shots = (
            "all"
            if each.shots is None
            else f"{100 * each.shots:g}%"
            if each.shots < 1
            else f"{each.shots:g}"
        )
        spread = f" ± {each.spread:.2f}" if len(each.values) > 1 else ""
        chosen = ", ".join(
            f"{name} {each.settings[name]:g}" for name in ("k", "C") if name in each.settings
        )
        lines.append(
            f"| {each.model} | {each.method} | {shots} | {each.mean:.2f}{spread} | {chosen} |"
        )
    return "\n".join(lines)


def _ask_neighbours(model: str, known: Features, asked: Features, progress: bool) -> list[Probe]:
    """One for each k that there are pictures for; all of them if there are fewer."""
    sizes = [k for k in NEIGHBOURS if k <= len(known.labels)] or [len(known.labels)]
    similarities, places = find_neighbours(
        known.vectors, asked.vectors, max(sizes), progress=progress
    )
    labels = known.labels[places]  # (M, k)
    return [
        Probe(
            model,
            "knn",
            None,
            (
                _score(
                    classify_neighbours(similarities[:, :k], labels[:, :k], known.num_classes),
                    asked.labels,
                ),
            ),
            {"k": k},
        )
        for k in sizes
    ]


def _fit(known: Features, asked: Features, places: NDArray[np.int64]) -> tuple[float, bool]:
    """The accuracy of a classifier of a few pictures, and whether it converged."""
    rows = scale(known.vectors, places)
    fitted = fit_logistic(rows, known.labels[places], known.num_classes, FEW_SHOT_C)
    return _score(fitted.predict(scale_like(rows, asked.vectors)), asked.labels), fitted.converged


def _sweep(model: str, known: Features, asked: Features, progress: bool) -> Probe:
    held = hold_back(known.names, known.labels)
    if not held.any():
        raise ConfigError(
            "no class has pictures to choose C with; give 3 or more of each, or ask for few shots"
        )
    fitting, judging = np.flatnonzero(~held), np.flatnonzero(held)
    rows = scale(known.vectors, fitting)
    judged = Scaled(known.vectors, judging, rows.mean, rows.scale)
    scores: dict[float, float] = {}
    best: Logistic | None = None
    fitted: Logistic | None = None
    for C in tqdm(GRID, "logistic", disable=not progress):  # noqa: N806
        fitted = fit_logistic(rows, known.labels[fitting], known.num_classes, C, start=fitted)
        score = _score(fitted.predict(judged), known.labels[judging])
        if score > max(scores.values(), default=-1.0):
            best = fitted
        scores[C] = score
        top = max(scores.values())
        chance = math.sqrt(
            top * (100 - top) / len(judging)
        )  # a standard error: with small weights all C are nearly alike
        if len(scores) > 2 and all(each < top - chance for each in list(scores.values())[-2:]):
            break
    chosen = max(
        scores, key=lambda each: scores[each]
    )  # the first of equals, with the smallest weights
    rows = scale(known.vectors, np.arange(len(known.labels)))
    final = fit_logistic(rows, known.labels, known.num_classes, chosen, start=best)
    value = _score(final.predict(scale_like(rows, asked.vectors)), asked.labels)
    told = {"C": chosen, "scaling": SCALING, "converged": final.converged, "validation": scores}
    return Probe(model, "logistic", None, (value,), told)


def _train_head(
    candidate: EvaluatedModel,
    init: str | None,
    train_on: Shards | ImageDataset,
    test: Shards | ImageDataset,
    folder: Path,
    settings: Sequence[str],
    batch_size: int,
    workers: int,
    progress: bool,
) -> Probe:
    from swag_models.recipe.training.trainer import train

    if not isinstance(candidate, SwagModel):
        raise ConfigError(
            f"sgd trains heads of our own models; measure {candidate.name} with knn and logistic"
        )
    presets = {preset.run.arch: preset.name for preset in PRESETS if preset.run.trainable == "head"}
    if candidate.arch not in presets:
        raise ConfigError(
            f"no preset trains a head of {candidate.arch}; there are those of {', '.join(presets)}"
        )
    name = presets[candidate.arch]
    run = change(get_preset(name).run, [f"init={init or candidate.name}", *settings])
    data = train_on.root if isinstance(train_on, ImageDataset) else train_on
    model = train(run, data, folder, progress=progress)
    tuned = open_evaluated_model(str(model), device=candidate.device, dtype=candidate.dtype)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "workers": workers,
        "classes": tuned.classes,
        "synsets": tuned.synsets,
    }
    check = open_eval_loader(test, tuned.fit, rank=0, world_size=1, **options)
    hits = sum(count_hits(tuned.classify(batch.images), batch.classes) for batch in check)
    return Probe(
        candidate.name,
        "sgd",
        None,
        (100 * hits / check.seen,),
        {"preset": name, "run": run.to_dict()},
    )


def _score(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Top-1 in percent."""
    return 100 * float((predicted == labels).mean())
