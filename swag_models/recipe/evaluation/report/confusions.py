"""What models take for what: a model's most frequent confusions, and the pictures that no model gets right."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from swag_models.recipe.evaluation.results import Evaluation, ImageResult


class Confusion(NamedTuple):
    """Pictures of one class taken for another: what share of the class they are, in percent, the most confident first."""

    truth: str
    answer: str
    share: float
    records: tuple[ImageResult, ...]


class Miss(NamedTuple):
    """A picture that every model gets wrong, and what each says: (model, class, probability), in the order of the models."""

    record: ImageResult
    truth: str
    answers: tuple[tuple[str, str, float], ...]


def is_wrong(record: ImageResult) -> bool:
    """Whether the best class is none of the true ones."""
    return record.top[0] not in record.labels


def find_confusions(evaluation: Evaluation, count: int) -> list[Confusion]:
    """The most frequent, at most so many; of equally frequent ones the most confident first.

    A picture with several labels counts under its first.
    """
    totals = Counter(record.labels[0] for record in evaluation.records)
    found: defaultdict[tuple[int, int], list[ImageResult]] = defaultdict(list)
    for record in sorted(
        filter(is_wrong, evaluation.records), key=lambda record: (-record.probability, record.name)
    ):
        found[record.labels[0], record.top[0]].append(record)
    pairs = sorted(found, key=lambda pair: (-len(found[pair]), -found[pair][0].probability, pair))
    return [
        Confusion(
            evaluation.classes[truth],
            evaluation.classes[answer],
            100 * len(found[truth, answer]) / totals[truth],
            tuple(found[truth, answer]),
        )
        for truth, answer in pairs[:count]
    ]


def find_misses(evaluations: Sequence[Evaluation]) -> list[Miss]:
    """Pictures of one benchmark that are wrong for every model, those first of which the models are most certain on the mean."""
    each = [
        {record.name: record for record in filter(is_wrong, evaluation.records)}
        for evaluation in evaluations
    ]
    misses = []
    for name, first in each[0].items():
        if all(name in wrong for wrong in each):
            answers = tuple(
                (evaluation.model, evaluation.classes[wrong[name].top[0]], wrong[name].probability)
                for evaluation, wrong in zip(evaluations, each)
            )
            misses.append(Miss(first, evaluations[0].classes[first.labels[0]], answers))
    return sorted(
        misses,
        key=lambda miss: (-statistics.mean(answer[2] for answer in miss.answers), miss.record.name),
    )


def pick_misses(misses: Sequence[Miss], count: int) -> list[tuple[Miss, int]]:
    """The first of each class, of so many classes at most, and how many the class has."""
    totals = Counter(miss.truth for miss in misses)
    firsts: dict[str, Miss] = {}
    for miss in misses:
        firsts.setdefault(miss.truth, miss)
    return [(miss, totals[truth]) for truth, miss in list(firsts.items())[:count]]
