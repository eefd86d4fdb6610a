"""The plan of a run at full scale: formulas, and a document that is current."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from studies.scale.__main__ import PAGE, RESULTS, main, write_page
from studies.scale.document import write_document
from studies.scale.formulas import (
    ARCHS,
    ASSUMPTIONS,
    choose_interval,
    describe_model,
    plan_failures,
    plan_storage,
    plan_training,
)
from swag_models.models import build
from swag_models.registry import get_spec


def test_the_document_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text("utf-8")
    assert write_document(text, json.loads(RESULTS.read_text("utf-8"))) == text, (
        "run python -m studies.scale --write"
    )
    for assumption in ASSUMPTIONS.values():
        assert f"| {assumption.text} | {assumption.what} | {assumption.source} |" in text


def test_tables_are_written_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    text = PAGE.read_text("utf-8")
    page.write_text(text.replace("| vit_h14,", "| vit_h15,"))
    assert write_page(page)
    assert page.read_text("utf-8") == text
    assert not write_page(page)
    page.write_text(text.replace("<!-- /training -->", ""))
    with pytest.raises(ValueError, match="has 0 tables 'training'; give it one pair of marks"):
        write_page(page)
    with pytest.raises(SystemExit) as caught:
        main(["--unknown"])
    assert caught.value.code == 2


@pytest.mark.parametrize("arch", ARCHS)
def test_models_have_the_parameters_of_the_library(arch: str) -> None:
    with torch.device("meta"):
        model = build(get_spec(arch).config, num_classes=27_000, image_size=224)
    described = describe_model(arch)
    assert described.parameters == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(("write", "between"), [(5.0, 1e5), (60.0, 3600.0), (300.0, 4000.0)])
def test_the_checkpoint_interval_is_the_best_of_simulated_runs(
    write: float, between: float
) -> None:
    """Daly's interval against runs with failures at random times, for the same failures."""
    best = choose_interval(write, between)
    assert best == pytest.approx(math.sqrt(2 * write * between), rel=0.3), "Young's is close"

    def run(interval: float) -> float:
        draw, work, time = random.Random(0), 0.0, 0.0
        failure = draw.expovariate(1 / between)
        while work < 500 * between:
            time += interval + write
            if time < failure:
                work += interval
            else:
                time = failure
                failure += draw.expovariate(1 / between)
        return time / work

    lost = {factor: run(best * factor) for factor in (0.4, 1.0, 2.5)}
    assert lost[1.0] == min(lost.values())


def test_failures_and_cost_of_known_runs() -> None:
    model = describe_model("vit_h14")
    # The run that the rate comes from: 54 days on 16,384 GPUs.
    plan = plan_failures(model, 16_384, 54)
    assert plan.expected == pytest.approx(419)
    assert plan.between / 3600 == pytest.approx(54 * 24 / 419)
    assert plan_failures(model, 128, 1).between == pytest.approx(128 * plan.between)
    training = plan_training(model, 128)
    assert training.step == training.compute > training.reduce
    # 6 operations for each of 167.3 billion multiply-adds and 10 billion samples, at 40% of 989e12
    hours = 10e9 * 6 * 167.3e9 / (0.4 * 989e12) / 3600
    assert training.gpu_hours == pytest.approx(hours, rel=1e-3)
    assert training.cost == pytest.approx((2 * hours, 4 * hours), rel=1e-3)
    assert plan_training(model, 1024).step == plan_training(model, 1024).reduce
    assert plan_storage()["shards"] == 360_000
