"""Values of several seeds in tables: means, standard deviations, and which claims they confirm."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

CLAIMS_NOTE = """Confirmed: with every seed. Unclear: on average, but not with every seed."""


def format_mean(values: Sequence[float]) -> str:
    """Write the mean and the standard deviation: "12.3 ± 0.4"."""
    return f"{statistics.mean(values):.1f} ± {measure_deviation(values):.1f}"


def measure_deviation(values: Sequence[float]) -> float:
    """The standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def judge(values: Sequence[float], baseline: Sequence[float]) -> str:
    """State whether the values exceed the baseline with every seed, on average, or neither.

    Args:
        values: one for each seed.
        baseline: for the same seeds.
    """
    gains = [value - base for value, base in zip(values, baseline, strict=True)]
    if min(gains) > 0:
        verdict = "confirmed"
    else:
        verdict = "unclear" if statistics.mean(gains) > 0 else "not confirmed"
    return f"**{verdict}**: {format_mean(values)} against {format_mean(baseline)}"
