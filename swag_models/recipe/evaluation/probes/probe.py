"""Probes: classifiers on frozen features, which measure how well the features separate classes.

knn       k nearest neighbours by DINO's protocol, see `knn`; always with all training images.
logistic  Logistic regression by L-BFGS on scaled features. With all training images, C is the best
          value of `C_GRID` on a held-back fifth, and the classifier is then fitted on all images.
          With few images, which cannot spare a fifth, C is `FEW_SHOT_C`.
sgd       The published linear classifier: a head trained on augmented images with the model frozen,
          by the preset `*_linear`. Only for models of this library.

Axes: N training images, M test images, D feature width, k neighbours.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from swag_models.api import SPECS
from swag_models.errors import ConfigError, check_minimum
from swag_models.hub.progress import make_bar
from swag_models.paths import expand_path
from swag_models.recipe.config_overrides import override
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.eval_loader import log_skipped, open_eval_loader
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.data.sources import EVAL_SPLITS, find_image_folder, open_image_dataset
from swag_models.recipe.evaluation.models import EvaluatedModel, SwagModel, open_evaluated_model
from swag_models.recipe.evaluation.probes.features import (
    FeatureDtype,
    Features,
    extract_features,
)
from swag_models.recipe.evaluation.probes.few_shot import check_shots, choose_shots, hold_back
from swag_models.recipe.evaluation.probes.knn import classify_neighbours, find_neighbours
from swag_models.recipe.evaluation.probes.logistic_regression import (
    LogisticClassifier,
    fit_logistic,
    scale_features,
)
from swag_models.recipe.evaluation.results import Probe
from swag_models.recipe.presets import PRESETS, get_preset
from swag_models.recipe.training.distributed import SINGLE_PROCESS, DistContext
from swag_models.recipe.training.losses import count_hits

Method = Literal["knn", "logistic", "sgd"]
METHODS: tuple[Method, ...] = ("knn", "logistic", "sgd")
SHOTS: tuple[float | None, ...] = (1, 2, 5, 10, 0.01, 0.1, None)
NEIGHBOURS = (10, 20, 100, 200)
# Our choice: the best of 1e-3 to 1e2 for both miniature models with 1, 5 and 10 images per class,
# for the 32 classes of the scenes.
FEW_SHOT_C = 0.1
# In ascending order, because `_sweep_c` may stop early.
C_GRID = tuple(10.0**power for power in range(-6, 5))
SCALING = "length 1, less the mean, mean square 1"  # recorded in results; see `ScaledFeatures`


def probe(
    model: EvaluatedModel,
    train: Shards | ImageDataset,
    test: Shards | ImageDataset,
    *,
    methods: Sequence[Method] = ("knn", "logistic"),
    shots: Sequence[float | None] = SHOTS,
    splits: int = 5,
    cache: str | os.PathLike[str] | None = None,
    features: FeatureDtype = "float16",
    output: str | os.PathLike[str] | None = None,
    init: str | None = None,
    settings: Sequence[str] = (),
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
    dist: DistContext = SINGLE_PROCESS,
) -> list[Probe]:
    """Train classifiers on the training images and measure their top-1 accuracy on the test images.

    Args:
        model: the model; it is not changed.
        train: training data, as for `open_train_and_test`.
        test: test data with the same classes.
        methods: which of `METHODS` to use.
        shots: for "logistic", images per class; below 1, their share; None for all images. Of a
            class with fewer images, all are used; this is logged before features are computed.
        splits: number of random choices of training images for every entry of `shots` but None.
        cache: folder of the feature cache, as for `extract_features`.
        features: dtype of the cached features.
        output: for "sgd", a folder; the training run is written to its sub-folder `sgd`.
        init: for "sgd", what `load_model` takes to load the same model; by default its name.
        settings: for "sgd", "field=value" overrides of the preset.
        batch_size: images per forward pass of a rank.
        workers: number of processes per rank that read images.
        progress: show progress bars.
        dist: the ranks that share the extraction of features; by default this process alone. Rank 0
            fits the classifiers. "sgd" needs a single process.

    Returns:
        One probe per k, one per entry of `shots`, and one for "sgd", on every rank.

    Raises:
        ConfigError: an unknown method, an invalid number of shots, or data that do not fit.
    """
    _check_options(methods, splits, output, settings, dist)
    train_data, test_data = open_train_and_test(train, test)
    if "logistic" in methods and isinstance(train_data, ImageDataset):
        labels = np.array([label for row in train_data.labels for label in row], np.int64)
        dist.run_on_main(lambda: check_shots(shots, labels, train_data.class_names))
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    probes: list[Probe] = []
    if "knn" in methods or "logistic" in methods:
        extract = partial(extract_features, model, cache=cache, dtype=features, dist=dist)
        train_features = extract(train_data, **reading)
        test_features = extract(test_data, classes=train_features.class_names, **reading)
        check = not isinstance(train_data, ImageDataset)  # of shards, labels are known only now
        probes = dist.run_on_main(
            lambda: _probe_features(
                *(model.name, train_features, test_features, methods, shots, splits),
                check=check,
                progress=progress,
            )
        )
    if "sgd" in methods:
        assert output is not None
        folder = expand_path(output, "output") / "sgd"
        probes.append(_train_head(model, init, train_data, test, folder, settings, **reading))
    return probes


def _probe_features(
    model: str,
    train: Features,
    test: Features,
    methods: Sequence[Method],
    shots: Sequence[float | None],
    splits: int,
    *,
    check: bool,
    progress: bool,
) -> list[Probe]:
    """Fit the classifiers of the methods "knn" and "logistic"; `check` says to check the shots."""
    probes, counts = list[Probe](), shots if "logistic" in methods else ()
    if check:
        check_shots(counts, train.labels, train.class_names)
    subsets = [
        (count, [choose_shots(train.names, train.labels, count, i) for i in range(splits)])
        for count in counts
        if count is not None
    ]
    if "knn" in methods:
        probes += _probe_knn(model, train, test, progress)
    for count, indices in make_bar(progress and bool(subsets), subsets, desc="few shots"):
        probes.append(_probe_few_shot(model, count, indices, train, test))
    if None in counts:
        probes.append(_sweep_c(model, train, test, progress))
    skipped = train.num_skipped + test.num_skipped
    return [replace(result, skipped=skipped) for result in probes]


def open_train_and_test(
    train: Shards | ImageDataset, test: Shards | ImageDataset
) -> tuple[Shards | ImageDataset, Shards | ImageDataset]:
    """Open the data sets that are folders; test labels are then numbered by the training classes.

    Args:
        train: packed shards, a folder with a sub-folder of images for each class, a Hugging Face
            dataset on disk, or an open data set.
        test: as `train`; its classes must be among those of the training data.
    """
    if not isinstance(train, ImageDataset) and (root := find_image_folder(train)):
        train = open_image_dataset(root)
    if not isinstance(test, ImageDataset) and (root := find_image_folder(test)):
        classes = train.class_names if isinstance(train, ImageDataset) else None
        test = open_image_dataset(root, classes, EVAL_SPLITS, "the training set")
    return train, test


def _check_options(
    methods: Sequence[Method],
    splits: int,
    output: str | os.PathLike[str] | None,
    settings: Sequence[str],
    dist: DistContext,
) -> None:
    if unknown := [method for method in methods if method not in METHODS]:
        raise ConfigError(f"invalid method {unknown[0]!r}: allowed {', '.join(METHODS)}")
    check_minimum(1, splits=splits)
    if settings and "sgd" not in methods:
        raise ConfigError(
            f"setting {settings[0]!r} needs the method sgd; add it to methods, or omit settings"
        )
    if "sgd" in methods and output is None:
        raise ConfigError("the method sgd needs a folder for its training run; give output")
    if "sgd" in methods and dist.world_size > 1:
        raise ConfigError(
            f"the method sgd runs in one process, not in {dist.world_size}; start it without "
            "torchrun, or omit it"
        )


def _probe_knn(model: str, train: Features, test: Features, progress: bool) -> list[Probe]:
    """Make a probe for each of `NEIGHBOURS` up to the number of training images, at least one."""
    sizes = [k for k in NEIGHBOURS if k <= len(train.labels)] or [len(train.labels)]
    similarities, indices = find_neighbours(
        train.vectors, test.vectors, max(sizes), progress=progress
    )
    labels = train.labels[indices]  # (M, k)
    probes = []
    for k in sizes:
        # Neighbours are sorted, so the first k columns of the largest search are the nearest k.
        predicted = classify_neighbours(similarities[:, :k], labels[:, :k], train.num_classes)
        probes.append(Probe(model, "knn", None, (_measure_top1(predicted, test.labels),), {"k": k}))
    return probes


def _probe_few_shot(
    model: str,
    count: float,
    subsets: Sequence[NDArray[np.int64]],
    train: Features,
    test: Features,
) -> Probe:
    """Fit a logistic regression with few images per class, once for each subset."""
    values, converged = [], True
    for indices in subsets:
        scaled = scale_features(train.vectors, indices)
        fitted = fit_logistic(scaled, train.labels[indices], train.num_classes, FEW_SHOT_C)
        predicted = fitted.predict(scaled.scale_like(test.vectors))
        values.append(_measure_top1(predicted, test.labels))
        converged = converged and fitted.converged
    settings = {"C": FEW_SHOT_C, "scaling": SCALING, "converged": converged}
    return Probe(model, "logistic", count, tuple(values), settings)


def _sweep_c(model: str, train: Features, test: Features, progress: bool) -> Probe:
    """Fit a logistic regression with all images; choose C on a held-back fifth of them."""
    is_validation = hold_back(train.names, train.labels)
    if not is_validation.any():
        raise ConfigError(
            "no class has enough images to choose C; give 3 or more of each, or ask for few shots"
        )
    fit_indices, validation_indices = np.flatnonzero(~is_validation), np.flatnonzero(is_validation)
    scaled = scale_features(train.vectors, fit_indices)
    validation = scaled.scale_like(train.vectors, validation_indices)
    scores: dict[float, float] = {}  # validation accuracy for each C
    best: LogisticClassifier | None = None
    fitted: LogisticClassifier | None = None
    for C in make_bar(progress, C_GRID, desc="logistic"):  # noqa: N806
        # Each fit starts from the previous one, because a warm start needs fewer steps.
        fitted = fit_logistic(scaled, train.labels[fit_indices], train.num_classes, C, start=fitted)
        score = _measure_top1(fitted.predict(validation), train.labels[validation_indices])
        if score > max(scores.values(), default=-1.0):
            best = fitted
        scores[C] = score
        # Stop after two scores in a row that are below the best by more than a standard error. A
        # single lower score is not enough: with small C, all weights are nearly 0 and scores differ
        # by chance.
        top = max(scores.values())
        standard_error = math.sqrt(top * (100 - top) / len(validation_indices))
        last_two = list(scores.values())[-2:]
        if len(scores) > 2 and all(score < top - standard_error for score in last_two):
            break
    chosen_c = max(scores, key=scores.__getitem__)  # of equally good values, the smallest
    scaled = scale_features(train.vectors, np.arange(len(train.labels)))
    final = fit_logistic(scaled, train.labels, train.num_classes, chosen_c, start=best)
    value = _measure_top1(final.predict(scaled.scale_like(test.vectors)), test.labels)
    settings = {
        "C": chosen_c,
        "scaling": SCALING,
        "converged": final.converged,
        "validation": scores,
    }
    return Probe(model, "logistic", None, (value,), settings)


def _train_head(
    model: EvaluatedModel,
    init: str | None,
    train_data: Shards | ImageDataset,
    test: Shards | ImageDataset,
    folder: Path,
    settings: Sequence[str],
    *,
    batch_size: int,
    workers: int,
    progress: bool,
) -> Probe:
    """Train a head with the preset of the architecture, and measure the trained model."""
    from swag_models.recipe.training.trainer import train

    if not isinstance(model, SwagModel):
        raise ConfigError(
            f"the method sgd cannot train a head of {model.name}: allowed models of this library; "
            "use knn or logistic"
        )
    presets = {preset.run.arch: preset.name for preset in PRESETS if preset.run.trainable == "head"}
    if model.arch not in presets:
        raise ConfigError(
            f"no preset trains a head of {model.arch}: allowed {', '.join(presets)}; "
            "use knn or logistic"
        )
    # The name comes from the model's config.json, which must not decide what is loaded.
    if init is None and model.name not in SPECS:
        raise ConfigError(
            f"the method sgd needs init=, the name or folder that {model.name} was loaded from"
        )
    preset_name = presets[model.arch]
    run = override(get_preset(preset_name).run, [f"init={init or model.name}", *settings])
    data = train_data.root if isinstance(train_data, ImageDataset) else train_data
    published = train(run, data, folder, progress=progress)
    trained = open_evaluated_model(str(published), device=model.device, dtype=model.dtype)
    loader = open_eval_loader(
        test,
        trained.fit,
        batch_size=batch_size,
        rank=0,
        world_size=1,
        workers=workers,
        classes=trained.classes,
        synsets=trained.synsets,
    )
    hits = sum(count_hits(trained.classify(batch.images), batch.classes) for batch in loader)
    loader.require_images(loader.facts["name"])
    log_skipped(loader.facts["name"], loader.skipped)
    return Probe(
        model.name,
        "sgd",
        None,
        (100 * hits / loader.seen,),
        {"preset": preset_name, "run": run.to_dict()},
        skipped=loader.skipped.total(),
    )


def _measure_top1(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return the share of correct predictions in percent."""
    return 100 * float((predicted == labels).mean())
