"""Platt scaling makes the mean prediction uniform, and reports when it cannot."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.recipe.evaluation.zero_shot import calibration
from swag_models.recipe.evaluation.zero_shot.calibration import fit_platt

pytestmark = pytest.mark.usefixtures("one_thread")


def make_logits(num_images: int, classes: int, spread: float = 2.0) -> Tensor:
    """Logits of hashtags, some of them far more frequent than others."""
    return torch.randn(num_images, classes) * spread + torch.linspace(-4, 4, classes)


@pytest.mark.parametrize(
    ("num_images", "classes", "spread"), [(500, 40, 2), (200, 40, 8), (40, 200, 2), (1, 7, 3)]
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_mean_probability_is_uniform(
    num_images: int, classes: int, spread: float, scale: float
) -> None:
    logits = make_logits(num_images, classes, spread)
    platt = fit_platt(logits, scale=scale)
    scaled = (scale * logits.double() + platt.bias).exp()
    mean = (scaled / scaled.sum(1, keepdim=True)).mean(0)
    assert (mean * classes - 1).abs().max() <= 1e-3
    assert (logits.softmax(1).mean(0) * classes - 1).abs().max() > 0.1, (
        "already uniform without scaling"
    )
    torch.testing.assert_close(platt.apply(logits).mean(0), mean)


def test_probabilities_equal_sinkhorn_scaling() -> None:
    logits = make_logits(60, 9)
    table = np.exp(logits.double().numpy())
    for _ in range(2000):  # rows of sum 1 and columns of sum N / K in turn
        table /= table.sum(1, keepdims=True)
        table *= 60 / 9 / table.sum(0)
    probabilities = fit_platt(logits, tolerance=1e-10).apply(logits).numpy()
    np.testing.assert_allclose(probabilities, table, rtol=1e-6)


def test_shifts_of_classes_and_images_change_nothing() -> None:
    logits = make_logits(100, 12)
    shift = torch.randn(12)
    first = fit_platt(logits, tolerance=1e-10)
    second = fit_platt(logits + shift + torch.randn(100, 1), tolerance=1e-10)
    torch.testing.assert_close(first.bias, second.bias + shift - shift.mean(), rtol=0, atol=1e-5)
    assert abs(first.bias.mean().item()) < 1e-12


def test_blocks_give_the_same_result_as_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = make_logits(101, 12)
    whole = fit_platt(logits)
    monkeypatch.setattr(calibration, "VALUES_PER_BLOCK", 12 * 7)
    assert [len(block) for block in calibration.split_blocks(logits)] == [7] * 14 + [3]
    torch.testing.assert_close(fit_platt(logits).bias, whole.bias)


def test_half_precision_logits_give_nearly_the_same_biases() -> None:
    logits = make_logits(100, 12)
    torch.testing.assert_close(
        fit_platt(logits.half()).bias, fit_platt(logits).bias, rtol=0, atol=0.01
    )


def test_fewer_images_than_hashtags_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "swag_models"):
        fit_platt(make_logits(12, 12))
        assert not caplog.records
        fit_platt(make_logits(11, 12))
    assert "11 images for 12 hashtags" in caplog.text


def test_missing_convergence_is_an_error() -> None:
    with pytest.raises(
        ConfigError,
        match=r"did not converge in 20 steps.*over 12 images still differs by .*% from 1/12",
    ):
        fit_platt(make_logits(12, 12, 200), max_steps=20)
