"""Errors for the report: frequent confusions of a model, and images that all models miss."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from swag_models.recipe.evaluation.results import Evaluation, ImageResult


class Confusion(NamedTuple):
    """Images of one class that a model predicts as another.

    Attributes:
        truth: name of the true class.
        predicted: name of the predicted class.
        share: percentage of the true class's images.
        records: the images, the most confident prediction first.
    """

    truth: str
    predicted: str
    share: float
    records: tuple[ImageResult, ...]


class Miss(NamedTuple):
    """An image that every model classifies incorrectly.

    Attributes:
        record: the first model's prediction.
        truth: name of the true class.
        predictions: (model, predicted class, its probability) of each model, in order.
    """

    record: ImageResult
    truth: str
    predictions: tuple[tuple[str, str, float], ...]


def is_wrong(record: ImageResult) -> bool:
    """Whether the most probable class is not a true class.

    Args:
        record: the prediction for an image.
    """
    return record.top[0] not in record.labels


def find_confusions(evaluation: Evaluation, max_count: int) -> list[Confusion]:
    """The most frequent confusions; equally frequent ones by descending confidence.

    An image with several labels counts for the first of them.

    Args:
        evaluation: evaluation of one model.
        max_count: maximum number of confusions.
    """
    totals = Counter(record.labels[0] for record in evaluation.records)
    wrong = sorted(
        filter(is_wrong, evaluation.records), key=lambda record: (-record.probability, record.name)
    )
    by_pair: defaultdict[tuple[int, int], list[ImageResult]] = defaultdict(list)
    for record in wrong:
        by_pair[record.labels[0], record.top[0]].append(record)
    # the pair comes last, so that the order never depends on the order of the images
    pairs = sorted(
        by_pair, key=lambda pair: (-len(by_pair[pair]), -by_pair[pair][0].probability, pair)
    )
    return [
        Confusion(
            evaluation.classes[truth],
            evaluation.classes[predicted],
            100 * len(by_pair[truth, predicted]) / totals[truth],
            tuple(by_pair[truth, predicted]),
        )
        for truth, predicted in pairs[:max_count]
    ]


def find_misses(evaluations: Sequence[Evaluation]) -> list[Miss]:
    """The images that all models classify incorrectly, by descending mean probability.

    Args:
        evaluations: evaluations of several models on one benchmark.
    """
    wrong_by_model = [
        {record.name: record for record in filter(is_wrong, evaluation.records)}
        for evaluation in evaluations
    ]
    misses = []
    # errors of all models are among the first model's errors
    for name, first in wrong_by_model[0].items():
        if all(name in wrong for wrong in wrong_by_model):
            predictions = tuple(
                (evaluation.model, evaluation.classes[wrong[name].top[0]], wrong[name].probability)
                for evaluation, wrong in zip(evaluations, wrong_by_model)
            )
            misses.append(Miss(first, evaluations[0].classes[first.labels[0]], predictions))

    def get_order(miss: Miss) -> tuple[float, str]:
        mean = statistics.mean(probability for _, _, probability in miss.predictions)
        return -mean, miss.record.name

    return sorted(misses, key=get_order)


def pick_misses(misses: Sequence[Miss], max_classes: int) -> list[tuple[Miss, int]]:
    """The first image of each class, and the number of the class's images among the misses.

    Args:
        misses: the result of `find_misses`.
        max_classes: maximum number of classes.
    """
    totals = Counter(miss.truth for miss in misses)
    first_by_class: dict[str, Miss] = {}
    # sorted by confidence, so the first image of a class is the most confident one
    for miss in misses:
        first_by_class.setdefault(miss.truth, miss)
    return [(miss, totals[truth]) for truth, miss in list(first_by_class.items())[:max_classes]]
