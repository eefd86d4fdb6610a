"""Zero-shot classification: hashtag probabilities become scores of targets, by means of WordNet.

A softmax, with the biases of `calibration`, turns logits into probabilities of hashtags; for a
multi-label model, the sigmoid of each logit is the probability. The weights of `wordnet_mapping`
turn these into scores of targets. The target with the largest score is predicted; if scores are
equal, the first.

Axes: N images, K hashtags, T targets, P pairs of a hashtag and a target with a weight.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

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
from swag_models.recipe.evaluation.zero_shot.results import (
    AGGREGATIONS,
    MAX_PREDICTIONS,
    Aggregation,
    ZeroShotConfig,
    ZeroShotPrediction,
    ZeroShotResult,
)
from swag_models.recipe.training.distributed import SINGLE_PROCESS, DistContext
from swag_models.recipe.wordnet import WordNet


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
    dist: DistContext = SINGLE_PROCESS,
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
        dist: the ranks that share the pass of the model; by default this process alone.
        **options: further options of `read_logits`.

    Returns:
        A result for each configuration on rank 0, and none on other ranks.

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
    _check_hashtags(model, wordnet)
    names, synsets = [tuple(column) for column in zip(*targets, strict=True)]
    classes = NamedClasses("the list of targets", names, synsets, load_wordnet=lambda: wordnet)
    # opened before the model runs, so that a wrong path fails early
    platt_data = None if unlabelled is None else open_unlabelled(unlabelled)
    reading: dict[str, Any] = {"dist": dist, **options}
    logits = platt_logits = read_logits(
        model, data, classes, skip_unmatched=skip_unmatched, **reading
    )
    if platt_data is not None:
        platt_logits = read_logits(model, platt_data, None, **reading)
    results = list[ZeroShotResult]()

    def classify() -> None:
        if platt_data is not None:
            log_skipped(platt_logits.facts["name"], platt_logits.skipped)
        # fitted without labels, even if the images have them
        platt = fit_platt(platt_logits.values) if needs_platt else None
        results.extend(
            _classify(model, logits, targets, wordnet, configs, platt, platt_logits.facts)
        )

    dist.run_on_main(classify)
    return results


def _classify(
    model: EvaluatedModel,
    logits: Logits,
    targets: Sequence[Target],
    wordnet: WordNet,
    configs: Sequence[ZeroShotConfig],
    platt: PlattScaling | None,
    unlabelled: Mapping[str, Any],
) -> Iterator[ZeroShotResult]:
    """Yield the result of each configuration; `unlabelled` describes the images of `platt`."""
    hashtags = model.synsets
    assert hashtags
    identity = PlattScaling(1.0, torch.zeros(len(hashtags), dtype=torch.float64))
    uncalibrated = torch.sigmoid if model.multi_label else identity.apply
    # several configurations can share a mapping
    weights_of = {
        mapping: mapping.weigh(wordnet, hashtags, targets)
        for mapping in {config.mapping for config in configs}
    }
    names = tuple(name for name, _ in targets)
    for config in configs:
        weights = weights_of[config.mapping]  # (K, T)
        # targets with at least one weight
        reached = set(weights.indices()[1].tolist())
        compute = platt.apply if platt and config.platt else uncalibrated
        yield ZeroShotResult(
            model=model.name,
            config=config,
            targets=names,
            titles=tuple(format_target(target, wordnet) for target in targets),
            unreached=tuple(name for index, name in enumerate(names) if index not in reached),
            facts=dict(logits.facts),
            skipped=dict(logits.skipped),
            unlabelled=dict(unlabelled) if config.platt else None,
            predictions=tuple(_predict(logits, compute, weights, config.aggregation)),
        )


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


def _check_hashtags(model: EvaluatedModel, wordnet: WordNet) -> None:
    """Raise ConfigError unless the classes of the model have synsets, all in this WordNet."""
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
