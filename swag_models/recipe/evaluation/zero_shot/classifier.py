"""Zero-shot classification: hashtag probabilities become scores of targets, by means of WordNet.

A softmax, with the biases of `calibration`, turns logits into probabilities of hashtags; for a
multi-label model, the sigmoid of each logit is the probability. The weights of `wordnet_mapping`
turn these into scores of targets. The target with the largest score is predicted; if scores are
equal, the first.

Axes: N images, K hashtags, T targets, P pairs of a hashtag and a target with a weight.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.recipe.classes.class_matching import NamedClasses
from swag_models.recipe.classes.mapping_kinds import MAPPINGS
from swag_models.recipe.classes.wordnet_mapping import (
    HashtagMapping,
    Target,
    format_target,
)
from swag_models.recipe.curation.own_classes import is_own
from swag_models.recipe.data.eval_loader import log_skipped
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.evaluation.zero_shot.calibration import (
    PlattScaling,
    fit_platt,
    split_blocks,
)
from swag_models.recipe.evaluation.zero_shot.logits import (
    DataSource,
    Logits,
    open_unlabelled,
    read_logits,
)
from swag_models.recipe.wordnet import WordNet

Aggregation = Literal["sum", "max"]
AGGREGATIONS: tuple[Aggregation, ...] = ("sum", "max")
MAX_PREDICTIONS = 5


class ZeroShotPrediction(NamedTuple):
    """The prediction for one image.

    Attributes:
        name: name of the image.
        label: the true target; None if unknown.
        top: up to five targets with a score above 0, best first.
        shares: share of each of these targets in the sum of all scores.
    """

    name: str
    label: int | None
    top: tuple[int, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class ZeroShotConfig:
    """How targets are scored from hashtags.

    Attributes:
        platt: whether Platt scaling first makes hashtags equally frequent.
        mapping: the weights from hashtags to targets.
        aggregation: a target's score is the sum over hashtags of probability times weight, or the
            largest of these products ("max").

    Raises:
        ConfigError: the aggregation is unknown.
    """

    platt: bool = True
    mapping: HashtagMapping = field(default_factory=HashtagMapping)
    aggregation: Aggregation = "sum"

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise ConfigError(
                f"invalid aggregation {self.aggregation!r}: allowed: {', '.join(AGGREGATIONS)}"
            )


@dataclass(frozen=True)
class ZeroShotResult:
    """The predictions of one model with one configuration, and their accuracy.

    Attributes:
        model: name of the model.
        config: the configuration.
        targets: names of the targets.
        titles: names of the targets for readers.
        unreached: targets without any hashtag, which cannot be predicted.
        facts: description of the data, as `EvalLoader.facts`.
        skipped: number of images that could not be read, by error message.
        unlabelled: facts of the images that Platt scaling was fitted on; None without it.
        predictions: predictions for all images, in order.
    """

    model: str
    config: ZeroShotConfig
    targets: tuple[str, ...]
    titles: tuple[str, ...]
    unreached: tuple[str, ...]
    facts: dict[str, Any]
    skipped: dict[str, int]
    unlabelled: dict[str, Any] | None
    predictions: tuple[ZeroShotPrediction, ...] = field(repr=False)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels; otherwise accuracy is undefined."""
        return self.predictions[0].label is not None

    @property
    def top1(self) -> float:
        """Percentage of images whose label is the best target."""
        return self._measure_accuracy(1)

    @property
    def top5(self) -> float:
        """Percentage of images whose label is among the best five targets."""
        return self._measure_accuracy(MAX_PREDICTIONS)

    @property
    def mean_per_class(self) -> float:
        """Mean over the labels of the percentage of their images that are correct."""
        assert self.labelled
        hits = defaultdict[int | None, list[bool]](list)
        for prediction in self.predictions:
            hits[prediction.label].append(prediction.label in prediction.top[:1])
        return 100 * statistics.mean(map(statistics.mean, hits.values()))

    @property
    def confusions(self) -> Counter[tuple[int | None, int | None]]:
        """Number of images for each pair of label and best target (None without a target)."""
        return Counter(
            (prediction.label, prediction.top[0] if prediction.top else None)
            for prediction in self.predictions
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the predictions."""
        values = {name: value for name, value in vars(self).items() if name != "predictions"}
        accuracy = {
            name: getattr(self, name) if self.labelled else None
            for name in ("mean_per_class", "top1", "top5")
        }
        return {
            **values,
            "config": asdict(self.config),
            "images": len(self.predictions),
            **accuracy,
        }

    def _measure_accuracy(self, count: int) -> float:
        assert self.labelled
        return 100 * statistics.mean(
            prediction.label in prediction.top[:count] for prediction in self.predictions
        )


def evaluate_zero_shot(
    model: EvaluatedModel,
    data: DataSource,
    targets: Sequence[Target],
    wordnet: WordNet,
    config: ZeroShotConfig | None = None,
    **options: Any,
) -> ZeroShotResult:
    """Classify images with one configuration.

    Args:
        model: a model whose classes are hashtags with WordNet ids.
        data: images, labelled or not, as for `run_ablation`.
        targets: the classes to predict.
        wordnet: contains the synsets of hashtags and targets.
        config: the configuration; by default `ZeroShotConfig()`.
        **options: further options of `run_ablation`.
    """
    return run_ablation(model, data, targets, wordnet, [config or ZeroShotConfig()], **options)[0]


def run_ablation(
    model: EvaluatedModel,
    data: DataSource,
    targets: Sequence[Target],
    wordnet: WordNet,
    configs: Sequence[ZeroShotConfig],
    *,
    unlabelled: DataSource | None = None,
    skip_unmatched: bool = False,
    **options: Any,
) -> list[ZeroShotResult]:
    """Classify images with several configurations, in one pass of the model.

    Args:
        model: a model whose classes are hashtags with WordNet ids.
        data: labelled images as for `open_eval_loader`, whose classes are the
            targets in any spelling (in shards: in their order); or images as for `find_images`.
        targets: the classes to predict.
        wordnet: contains the synsets of hashtags and targets.
        configs: the configurations.
        unlabelled: images to fit Platt scaling on; by default those of `data`, without labels.
        skip_unmatched: leave out images of classes that are no target.
        **options: options of `read_logits`.

    Returns:
        A result for each configuration.

    Raises:
        ConfigError: the model has no hashtags with WordNet ids, this WordNet lacks one of them,
            Platt scaling does not suit the model, or the data cannot be read.
    """
    needs_platt = any(config.platt for config in configs)
    if needs_platt and model.multi_label:
        raise ConfigError(
            f"{model.name} is multi-label: its probabilities are sigmoids, and Platt scaling is "
            "for a softmax; switch it off with --no-platt or ZeroShotConfig(platt=False)"
        )
    if unlabelled is not None and not needs_platt:
        raise ConfigError(
            "unlabelled images are for Platt scaling, which is off; omit them, or switch it on"
        )
    hashtags = _get_hashtag_synsets(model, wordnet)
    names, synsets = [tuple(column) for column in zip(*targets, strict=True)]
    classes = NamedClasses("the list of targets", names, synsets, load_wordnet=lambda: wordnet)
    # opened before the model runs, so that a wrong path fails early
    platt_data = None if unlabelled is None else open_unlabelled(unlabelled)
    logits = platt_logits = read_logits(
        model, data, classes, skip_unmatched=skip_unmatched, **options
    )
    platt = PlattScaling(1.0, torch.zeros(len(hashtags), dtype=torch.float64))
    uncalibrated = torch.sigmoid if model.multi_label else platt.apply
    if needs_platt:  # fitted without labels, even if the images have them
        if platt_data is not None:
            platt_logits = read_logits(model, platt_data, None, **options)
            log_skipped(platt_logits.facts["name"], platt_logits.skipped)
        platt = fit_platt(platt_logits.values)
    # several configurations can share a mapping
    weights_of = {
        mapping: mapping.weigh(wordnet, hashtags, targets)
        for mapping in {config.mapping for config in configs}
    }
    results = []
    for config in configs:
        weights = weights_of[config.mapping]  # (K, T)
        # targets with at least one weight
        reached = set(weights.indices()[1].tolist())
        predictions = _predict(
            logits, platt.apply if config.platt else uncalibrated, weights, config.aggregation
        )
        results.append(
            ZeroShotResult(
                model=model.name,
                config=config,
                targets=names,
                titles=tuple(format_target(target, wordnet) for target in targets),
                unreached=tuple(name for index, name in enumerate(names) if index not in reached),
                facts=dict(logits.facts),
                skipped=dict(logits.skipped),
                unlabelled=dict(platt_logits.facts) if config.platt else None,
                predictions=tuple(predictions),
            )
        )
    return results


def list_zero_shot_configs(mapping: HashtagMapping | None = None) -> list[ZeroShotConfig]:
    """All configurations: with and without Platt scaling, each kind of mapping, sum and max.

    Args:
        mapping: provides decay, threshold and best.
    """
    mappings = [replace(mapping or HashtagMapping(), kind=kind) for kind in MAPPINGS]
    return [
        ZeroShotConfig(platt, mapping, aggregation)
        for platt in (True, False)
        for mapping in mappings
        for aggregation in AGGREGATIONS
    ]


def score_targets(
    probabilities: Tensor, weights: Tensor, aggregation: Aggregation = "sum"
) -> Tensor:
    """Compute the scores of targets.

    Args:
        probabilities: (N, K), probabilities of hashtags.
        weights: (K, T), sparse or dense.
        aggregation: "sum" or "max", see `ZeroShotConfig`.

    Returns:
        (N, T).
    """
    # only over pairs, because few of thousands of hashtags have a weight for a target
    pairs = weights.to_sparse().coalesce()
    hashtags, targets = pairs.indices()
    products = probabilities[:, hashtags] * pairs.values().to(probabilities.dtype)  # (N, P)
    scores = probabilities.new_zeros(len(probabilities), weights.shape[1])
    if aggregation == "sum":
        return scores.index_add_(1, targets, products)
    return scores.scatter_reduce_(1, targets.expand_as(products), products, "amax")


def _predict(
    logits: Logits,
    compute_probabilities: Callable[[Tensor], Tensor],
    weights: Tensor,
    aggregation: Aggregation,
) -> Iterable[ZeroShotPrediction]:
    names, labels = iter(logits.names), iter(logits.labels or ())
    width = max(*weights.shape, weights.values().numel())  # width of the widest intermediate value
    for block in split_blocks(logits.values, width):
        scores = score_targets(compute_probabilities(block.double()), weights, aggregation)
        shares = scores / scores.sum(1, keepdim=True).clamp(min=1e-300)  # all can be 0
        # stable, so that the first of equal scores wins on every platform
        ordered = shares.sort(dim=1, descending=True, stable=True)
        for top_shares, top in zip(
            ordered.values[:, :MAX_PREDICTIONS].tolist(),
            ordered.indices[:, :MAX_PREDICTIONS].tolist(),
        ):
            count = sum(share > 0 for share in top_shares)
            yield ZeroShotPrediction(
                next(names), next(labels, None), tuple(top[:count]), tuple(top_shares[:count])
            )


def _get_hashtag_synsets(model: EvaluatedModel, wordnet: WordNet) -> tuple[str, ...]:
    """The synset of each class of the model."""
    if model.synsets is None:
        raise ConfigError(
            f"{model.name} has no hashtags with WordNet ids; choose a model with them, such as "
            "vit_nano_hashtags"
        )
    if missing := [x for x in model.synsets if not is_own(x) and x not in wordnet.synsets]:
        raise ConfigError(
            f"this WordNet lacks {len(missing):,} of the "
            f"{count_noun(len(model.synsets), 'synset')} of {model.name}, such as {missing[0]}; "
            "use the complete WordNet 3.0 (wordnet=)"
        )
    return model.synsets
