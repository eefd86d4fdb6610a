"""Repeat factors and copies equal the formulas."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.curation.sampling import (
    CERTAIN,
    FACTOR_STEPS,
    LOG_STEPS,
    Sampling,
    choose_threshold,
    count_steps_metaclip,
    repeat_factors,
    scale_metaclip,
    weigh_classes_metaclip,
)
from swag_models.recipe.data.stream import count_copies

COUNTS = [10_000, 6_000, 900, 50, 3]
RAREST = [7_000, 5_000, 800, 50, 3]  # images whose rarest class each is


def expected_length(factors: list[float]) -> float:
    return sum(factor * number for factor, number in zip(factors, RAREST, strict=True))


@pytest.mark.parametrize(("kind", "exponent"), [("natural", 0), ("sqrt", 0.5), ("uniform", 1)])
def test_factors_fall_with_frequency_and_fill_the_epoch(kind: str, exponent: float) -> None:
    factors = repeat_factors(COUNTS, RAREST, Sampling(kind, epoch_ratio=2))
    assert expected_length(factors) == pytest.approx(2 * sum(RAREST), rel=1e-4)
    for count, factor in zip(COUNTS, factors, strict=True):
        assert factor / factors[0] == pytest.approx((COUNTS[0] / count) ** exponent, rel=1e-4)


def test_the_default_epoch_is_that_of_the_paper() -> None:
    assert expected_length(repeat_factors(COUNTS, RAREST, Sampling())) == pytest.approx(
        sum(RAREST) * 5 / 3.6, rel=1e-4
    )


def test_a_threshold_scales_no_factor_and_drops_no_image() -> None:
    factors = repeat_factors(COUNTS, RAREST, Sampling(threshold=3600))
    assert factors == pytest.approx([1, 1, 2, math.sqrt(72), math.sqrt(1200)], abs=1 / FACTOR_STEPS)


def test_the_tail_gets_its_share() -> None:
    factors = repeat_factors(COUNTS, RAREST, Sampling(tail_share=0.3, tail_below=1000))
    tail = sum(factor * number for factor, number in zip(factors[2:], RAREST[2:], strict=True))
    assert tail / expected_length(factors) == pytest.approx(0.3, rel=1e-4)
    assert factors[3] / factors[2] == pytest.approx(math.sqrt(900 / 50), rel=1e-4)


def test_a_share_that_no_image_can_fill_is_rejected() -> None:
    with pytest.raises(ConfigError, match="no image's rarest hashtag has fewer than 3 images"):
        repeat_factors(COUNTS, RAREST, Sampling(tail_share=0.3, tail_below=3))


def test_factors_add_up_exactly_in_any_order() -> None:
    random.seed(0)
    counts = sorted((random.randrange(1, 10**6) for _ in range(2000)), reverse=True)
    factors = repeat_factors(counts, counts, Sampling())
    assert all(factor * FACTOR_STEPS == round(factor * FACTOR_STEPS) > 0 for factor in factors)
    assert sum(factors) == sum(reversed(factors)) == math.fsum(factors)


def test_no_classes_have_no_factors_and_classes_without_images_the_factor_0() -> None:
    assert repeat_factors([], [], Sampling()) == []
    assert repeat_factors([3, 2], [0, 0], Sampling()) == [0, 0]


def test_the_tail_is_below_5000_images_and_a_share_can_be_all_or_nothing() -> None:
    for share in (0.0, 0.25, 1.0):
        head, tail = repeat_factors([5000, 4999], [10, 10], Sampling(tail_share=share))
        factors = 2 * 5 / 3.6 * (1 - share), 2 * 5 / 3.6 * share
        assert (head, tail) == pytest.approx(factors, abs=1 / 65536)


def test_factors_are_multiples_of_one_65536th_and_never_0() -> None:
    (large, small) = repeat_factors([10**9, 1], [1, 10**9], Sampling("uniform", epoch_ratio=1))
    assert (large, small) == (1 / 65536, 1)
    (factor,) = repeat_factors([7], [7], Sampling("natural", epoch_ratio=1 + 1 / 65536))
    assert factor == 1 + 1 / 65536


def test_counts_of_unequal_length_are_an_error() -> None:
    for sampling in (Sampling(), Sampling(tail_share=0.5)):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            repeat_factors([9, 3], [9], sampling)


def test_sampling_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().kind = "natural"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "log"}, "invalid sampling 'log': allowed: natural, sqrt, uniform, metaclip"),
        ({"epoch_ratio": 0}, "invalid epoch_ratio 0: allowed: a positive number"),
        ({"epoch_ratio": math.inf}, "invalid epoch_ratio inf: allowed: a positive number"),
        ({"threshold": math.inf}, "invalid threshold inf: allowed: a positive number"),
        ({"threshold": 0}, "invalid threshold 0: allowed: a positive number"),
        ({"tail_share": 1.5}, "invalid tail_share 1.5: allowed: 0 to 1"),
        ({"tail_share": -0.1}, "invalid tail_share -0.1: allowed: 0 to 1"),
        (
            {"kind": "natural", "threshold": 5},
            "threshold is allowed with sampling 'sqrt' and 'metaclip' only, not 'natural'",
        ),
        (
            {"kind": "uniform", "threshold": 5},
            "threshold is allowed with sampling 'sqrt' and 'metaclip' only, not 'uniform'",
        ),
        ({"threshold": 5, "tail_share": 0.5}, "cannot be combined"),
        (
            {"kind": "metaclip", "tail_share": 0.5},
            "tail_share cannot be combined with sampling 'metaclip'",
        ),
        ({"kind": "metaclip", "threshold": 0}, "invalid threshold 0: allowed: a positive number"),
        ({"kind": "metaclip", "epoch_ratio": 0}, "invalid epoch_ratio 0: allowed: a positive"),
    ],
)
def test_invalid_values_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [1, 50, 700.5, 10_000, 10**6])
def test_metaclip_keeps_an_image_if_one_of_its_classes_keeps_it(threshold: float) -> None:
    draw = random.Random(0)
    counts = [draw.randrange(1, 100_000) for _ in range(50)]
    weights = weigh_classes_metaclip(counts, threshold)
    for _ in range(300):
        classes = draw.sample(range(50), draw.randint(1, 12))
        lost = math.prod(1 - min(1, threshold / counts[index]) for index in classes)
        steps = count_steps_metaclip(sum(weights[index] for index in classes))
        expected = max(1 / FACTOR_STEPS, 1 - lost)
        assert steps / FACTOR_STEPS == pytest.approx(expected, abs=1 / FACTOR_STEPS)


def test_no_probability_is_so_near_a_tie_that_engines_could_round_it_differently() -> None:
    """Their exp() differs in the last digit, which is 1.5e-11 of a step."""
    totals = np.arange(CERTAIN * LOG_STEPS + 1)
    steps = FACTOR_STEPS * (1 - np.exp(totals / -LOG_STEPS))
    assert np.abs(steps % 1 - 0.5).min() > 1e-9
    assert count_steps_metaclip(CERTAIN * LOG_STEPS) == FACTOR_STEPS, "and so are all above"


def test_the_default_threshold_leaves_6_percent_of_the_labels_in_the_tail() -> None:
    draw = random.Random(0)
    counts = [int(20_000 / rank) + draw.randrange(3) for rank in range(1, 2000)]
    chosen = choose_threshold(counts)

    def share(threshold: int) -> float:
        return sum(count for count in counts if count < threshold) / sum(counts)

    assert share(chosen) <= 0.06 < share(min(count for count in counts if count > chosen))
    assert choose_threshold([7, 7, 7]) == 7
    assert choose_threshold([94, 6]) == 94
    assert choose_threshold([93, 7]) == 7
    assert choose_threshold([]) == 1


def test_an_epoch_of_metaclip_is_what_it_keeps_unless_a_length_is_given() -> None:
    images = {FACTOR_STEPS: 30, FACTOR_STEPS // 4: 80}
    assert Sampling("metaclip").epoch_ratio is None
    assert scale_metaclip(images, Sampling("metaclip")) == 1
    assert scale_metaclip(images, Sampling("metaclip", epoch_ratio=2)) == 2 * 110 / 50
    assert Sampling().epoch_ratio == 5 / 3.6


def test_copies_average_to_the_factor_and_depend_on_id_epoch_and_seed() -> None:
    counts = [count_copies(f"image {number}", 2.3, epoch=1, seed=0) for number in range(20_000)]
    assert set(counts) == {2, 3}
    error = math.sqrt(0.3 * 0.7 / 20_000)
    assert abs(sum(counts) / 20_000 - 2.3) < 3 * error
    for changed in ({"epoch": 2, "seed": 0}, {"epoch": 1, "seed": 1}):
        other = [count_copies(f"image {number}", 2.3, **changed) for number in range(20_000)]
        assert other != counts
        both = sum(a == b == 3 for a, b in zip(counts, other, strict=True)) / 20_000
        assert abs(both - 0.09) < 3 * math.sqrt(0.09 * 0.91 / 20_000), (
            "epochs and seeds are independent"
        )


def test_copies_equal_the_golden_values() -> None:
    """A machine or version with other values would read another epoch."""
    assert [count_copies(str(number), 1.5, epoch=3, seed=7) for number in range(12)] == GOLDEN
    assert [count_copies("a", factor, 0, 0) for factor in (0.0, 1.0, 2.0)] == [0, 1, 2]


GOLDEN = [2, 2, 2, 1, 2, 2, 2, 2, 1, 2, 2, 1]
