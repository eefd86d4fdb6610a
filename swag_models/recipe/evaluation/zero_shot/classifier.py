"""Images told apart without training or text: a model's hashtags speak for targets, by WordNet.

Logits become probabilities of hashtags, by a softmax with the biases of `platt`; these become scores of targets, by the weights
of `mapping`; the greatest score wins, of equal ones the first target's.

Axes: N pictures, K hashtags, T targets, P pairs of both.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from swag_models.atomic import write_texts
from swag_models.errors import ConfigError
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
from swag_models.recipe.evaluation.zero_shot.targets import Target, format_target
from swag_models.recipe.evaluation.zero_shot.wordnet_mapping import MAPPINGS, HashtagMapping
from swag_models.recipe.wordnet import WordNet

Aggregation = Literal["sum", "max"]
AGGREGATIONS: tuple[Aggregation, ...] = ("sum", "max")
TOP = 5


class ZeroShotPrediction(NamedTuple):
    """A picture, its true target if it is known, and the best five targets with their share of all scores, in order.

    They are fewer if no hashtag speaks for more.
    """

    name: str
    label: int | None
    top: tuple[int, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class ZeroShotConfig:
    """One way to tell targets apart.

    platt: whether hashtags are made equally frequent first. aggregation: a target's score is the sum over hashtags of
    probability times weight, or the greatest of these products.
    """

    platt: bool = True
    mapping: HashtagMapping = field(default_factory=HashtagMapping)
    aggregation: Aggregation = "sum"

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise ConfigError(
                f"aggregation {self.aggregation!r} is not known; it is one of: {', '.join(AGGREGATIONS)}"
            )


@dataclass(frozen=True)
class ZeroShotResult:
    """A model on pictures, in one way.

    targets: their names. titles: what to print of them. unreached: those that no hashtag speaks for, so that they cannot be
    predicted. facts, skipped: of the data. unlabelled: facts of what Platt scaling was fitted on, None without it.
    """

    model: str
    way: ZeroShotConfig
    targets: tuple[str, ...]
    titles: tuple[str, ...]
    unreached: tuple[str, ...]
    facts: dict[str, Any]
    skipped: dict[str, int]
    unlabelled: dict[str, Any] | None
    predictions: tuple[ZeroShotPrediction, ...] = field(repr=False)

    @property
    def labelled(self) -> bool:
        """Whether there are labels, without which there is no accuracy."""
        return self.predictions[0].label is not None

    @property
    def top1(self) -> float:
        """Percent of pictures whose label is the best target."""
        return self._rate(1)

    @property
    def top5(self) -> float:
        """Percent of pictures whose label is among the best five."""
        return self._rate(TOP)

    @property
    def mean_per_class(self) -> float:
        """The mean over labels that have pictures of the percentage that is right."""
        assert self.labelled
        hits = defaultdict[int | None, list[bool]](list)
        for each in self.predictions:
            hits[each.label].append(each.label in each.top[:1])
        return 100 * statistics.mean(map(statistics.mean, hits.values()))

    @property
    def confusions(self) -> Counter[tuple[int | None, int | None]]:
        """How many pictures have this label and this best target, None if there is none."""
        return Counter((each.label, each.top[0] if each.top else None) for each in self.predictions)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the predictions."""
        values = {name: value for name, value in vars(self).items() if name != "predictions"}
        found = {
            name: getattr(self, name) if self.labelled else None
            for name in ("mean_per_class", "top1", "top5")
        }
        return {**values, "way": asdict(self.way), "pictures": len(self.predictions), **found}

    def _rate(self, count: int) -> float:
        assert self.labelled
        return 100 * statistics.mean(each.label in each.top[:count] for each in self.predictions)


def evaluate_zero_shot(
    candidate: EvaluatedModel,
    data: DataSource,
    targets: Sequence[Target],
    wordnet: WordNet,
    way: ZeroShotConfig | None = None,
    **options: Any,
) -> ZeroShotResult:
    """Tell targets apart in one way, by default that of `ZeroShotConfig()`; the rest as for `run_ablation`."""
    return run_ablation(candidate, data, targets, wordnet, [way or ZeroShotConfig()], **options)[0]


def run_ablation(
    candidate: EvaluatedModel,
    data: DataSource,
    targets: Sequence[Target],
    wordnet: WordNet,
    ways: Sequence[ZeroShotConfig],
    *,
    unlabelled: DataSource | None = None,
    **options: Any,
) -> list[ZeroShotResult]:
    """Tell targets apart in several ways, on one pass over the pictures.

    data: labelled pictures as `open_eval_loader` takes them, whose classes have the targets' names (shards: their order); or pictures
    as `find_images` does, which are predicted only. unlabelled: pictures to fit Platt scaling on, by default those of `data`,
    whose labels it does not see. options: of `read_logits`. ConfigError if the model has no hashtags with WordNet ids, or this
    WordNet lacks one.
    """
    fits = any(way.platt for way in ways)
    if unlabelled is not None and not fits:
        raise ConfigError(
            "unlabelled pictures are for Platt scaling, which is off; leave them out, or switch it on"
        )
    synsets, names = _find_hashtags(candidate, wordnet), tuple(target.name for target in targets)
    others = (
        None if unlabelled is None else open_unlabelled(unlabelled)
    )  # better known before the work
    read = seen = read_logits(candidate, data, names, **options)
    plain = fitted = PlattScaling(1.0, torch.zeros(len(synsets), dtype=torch.float64))
    if fits:
        if others is not None:
            seen = read_logits(candidate, others, None, **options)
        fitted = fit_platt(seen.values)
    tables = {
        mapping: mapping.weigh(wordnet, synsets, targets)
        for mapping in {way.mapping for way in ways}
    }
    results = []
    for way in ways:
        weights = tables[way.mapping]
        reached = set(weights.indices()[1].tolist())
        results.append(
            ZeroShotResult(
                model=candidate.name,
                way=way,
                targets=names,
                titles=tuple(format_target(target, wordnet) for target in targets),
                unreached=tuple(name for place, name in enumerate(names) if place not in reached),
                facts=dict(read.facts),
                skipped=dict(read.skipped),
                unlabelled=dict(seen.facts) if way.platt else None,
                predictions=tuple(
                    _predict(read, fitted if way.platt else plain, weights, way.aggregation)
                ),
            )
        )
    return results


def list_zero_shot_configs(mapping: HashtagMapping | None = None) -> list[ZeroShotConfig]:
    """All there are: with Platt scaling and without, each kind of mapping, sum and max.

    mapping: its decay, threshold and best are taken.
    """
    kinds = [replace(mapping or HashtagMapping(), kind=kind) for kind in MAPPINGS]
    return [
        ZeroShotConfig(platt, kind, aggregation)
        for platt in (True, False)
        for kind in kinds
        for aggregation in AGGREGATIONS
    ]


def score_targets(
    probabilities: Tensor, weights: Tensor, aggregation: Aggregation = "sum"
) -> Tensor:
    """Probabilities of hashtags (N, K) and weights (K, T), sparse or not -> scores of targets (N, T)."""
    pairs = weights.to_sparse().coalesce()
    hashtags, targets = pairs.indices()
    spoken = probabilities[:, hashtags] * pairs.values().to(probabilities.dtype)  # (N, P)
    scores = probabilities.new_zeros(len(probabilities), weights.shape[1])
    if aggregation == "sum":
        return scores.index_add_(1, targets, spoken)
    return scores.scatter_reduce_(1, targets.expand_as(spoken), spoken, "amax")


def write_zero_shot(results: Sequence[ZeroShotResult], folder: Path) -> None:
    """zeroshot.json with all values, zeroshot.md, and for one way predictions.jsonl, a line for each picture."""
    files = {"zeroshot.json": json.dumps([each.to_dict() for each in results], indent=1)}
    if results[0].labelled:
        files["zeroshot.md"] = format_zero_shot(results)
    if len(results) == 1:
        files["predictions.jsonl"] = format_predictions_jsonl(results[0])
    write_texts(folder, {name: text + "\n" for name, text in files.items()})


def format_predictions_jsonl(result: ZeroShotResult) -> str:
    """A line of JSON for each picture: its name, its label if it has one, and the best targets with their shares."""
    names = result.targets
    return "\n".join(
        json.dumps(
            {
                "name": each.name,
                "label": None if each.label is None else names[each.label],
                "top": {names[place]: share for place, share in zip(each.top, each.shares)},
            }
        )
        for each in result.predictions
    )


def format_zero_shot(results: Sequence[ZeroShotResult]) -> str:
    """Markdown: a row for each way, and what cannot be predicted."""
    first = results[0]
    counts = f"{len(first.predictions):,} pictures, {len(first.targets):,} targets"
    guess = 100 / len(first.targets)
    lines = [
        f"{first.model} on {first.facts['name']}: {counts}, no label learnt from. In percent; guessing gives {guess:.1f}.",
        "",
        "| Platt scaling | mapping | aggregation | mean per class | top-1 | top-5 |",
        "|---|---|---|---|---|---|",
    ]
    for each in results:
        cells = ["yes" if each.way.platt else "no", each.way.mapping.kind, each.way.aggregation]
        cells += [f"{value:.2f}" for value in (each.mean_per_class, each.top1, each.top5)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_tell_unreached(results)])


def format_predictions(result: ZeroShotResult) -> str:
    """A line for each picture: its name, and the best targets with their shares; then what cannot be predicted."""
    lines = []
    for each in result.predictions:
        best = ", ".join(
            f"{result.titles[place]} {share:.1%}" for place, share in zip(each.top, each.shares)
        )
        lines.append(f"{each.name}: {best or 'no hashtag speaks for a target'}")
    return "\n".join([*lines, *_tell_unreached([result])])


def _tell_unreached(results: Sequence[ZeroShotResult]) -> Iterable[str]:
    titles = dict(zip(results[0].targets, results[0].titles))
    for kind, unreached in {each.way.mapping.kind: each.unreached for each in results}.items():
        if unreached:
            named = ", ".join(titles[name] for name in unreached)
            yield f"\nMapping {kind}: no hashtag reaches these, so they are never predicted: {named}"


def _predict(
    read: Logits, platt: PlattScaling, weights: Tensor, aggregation: Aggregation
) -> Iterable[ZeroShotPrediction]:
    names, labels = iter(read.names), iter(read.labels or ())
    width = max(*weights.shape, weights.values().numel())
    for block in split_blocks(read.values, width):
        scores = score_targets(platt.apply(block), weights, aggregation)
        shares = scores / scores.sum(1, keepdim=True).clamp(min=1e-300)
        ordered = shares.sort(dim=1, descending=True, stable=True)
        for best, places in zip(
            ordered.values[:, :TOP].tolist(), ordered.indices[:, :TOP].tolist()
        ):
            count = sum(share > 0 for share in best)
            yield ZeroShotPrediction(
                next(names), next(labels, None), tuple(places[:count]), tuple(best[:count])
            )


def _find_hashtags(candidate: EvaluatedModel, wordnet: WordNet) -> tuple[str, ...]:
    """The synset of each class."""
    if candidate.synsets is None:
        raise ConfigError(
            f"{candidate.name} has no hashtags with WordNet ids; take one that has, such as vit_nano_hashtags"
        )
    if lacking := [synset for synset in candidate.synsets if synset not in wordnet.synsets]:
        raise ConfigError(
            f"this WordNet lacks {len(lacking):,} of the {len(candidate.synsets):,} synsets of {candidate.name}, such as "
            f"{lacking[0]}; give all of WordNet 3.0 (--wordnet)"
        )
    return candidate.synsets
