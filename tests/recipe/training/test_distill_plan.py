"""The plan of a distillation counts what its teacher costs, and what the student really has."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from distill_support import TEACHER
from runs import make_digits
from torch.utils.flop_counter import FlopCounterMode

from swag_models import load_model
from swag_models.cli import main
from swag_models.errors import SwagModelsError
from swag_models.inference import Embedder
from swag_models.inference.embed import write_embeddings
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import override
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.distributed import init_distributed
from swag_models.recipe.training.estimate import Plan, plan
from swag_models.recipe.training.memory import estimate_activations
from swag_models.recipe.training.setup import set_up

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
NANO = get_preset("vit_nano_distill").run
LOGITS = ("distill.logit_weight=1", "distill.feature_weight=0")


def estimate(run: Run, **options: float) -> Plan:
    return plan(run, 100, num_classes=7, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [(), LOGITS, ("distill.logit_weight=1",)])
@pytest.mark.parametrize("teacher", [TEACHER, "vit_nano_hashtags"])
def test_a_plan_counts_what_a_run_has(
    teacher: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    run = override(NANO, [f"distill.teacher={teacher}", "batch_size=4", *settings])
    made = estimate(run)
    make_digits(tmp_path / "images", 8)
    with init_distributed(torch.device("cpu")) as dist:
        state = set_up(run, tmp_path / "images", None, tmp_path, dist).state
        parameters = sum(weight.numel() for weight in state.model.parameters())
        flops = state.count_flops()
    assert (made.parameters, made.trained) == (parameters, parameters)
    # the plan leaves out the projection
    assert made.flops == pytest.approx(flops, rel=0.02)
    options = {} if "distill.logit_weight=1" in settings else {"num_classes": None}
    model = load_model(teacher, **options).to("meta")  # whose attention the counter knows
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 48, 48, device="meta"))
    alone = estimate(override(run, ["distill.teacher=none"]))
    assert made.flops - alone.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert made.memory.teacher == 4 * sum(weight.numel() for weight in model.parameters())
    assert made.memory.total - made.memory.teacher >= alone.memory.total
    assert alone.memory.teacher == 0


def test_activations_are_those_of_the_larger_network() -> None:
    small = override(NANO, ["distill.teacher=none"])
    assert estimate(small).memory.sample == estimate_activations(small)
    # the largest block of 10 of a ViT-H at 518 pixels needs more than the whole nano model
    large = override(NANO, ["distill.teacher=vit_h14_in1k"])
    tokens, width, mlp = (518 // 14) ** 2 + 1, 1280, 5120
    bytes_per_number = 4 if large.engine.precision == "fp32" else 2
    block = 4 * tokens * 2 * width + bytes_per_number * tokens * (6 * width + 2 * mlp)
    memory = estimate(large).memory
    assert memory.sample == block > estimate_activations(large)
    assert memory.activations == large.batch_size * block
    student = override(get_preset("vit_l16_distill").run, [f"distill.teacher={TEACHER}"])
    assert estimate(student, gpus=8).memory.sample == estimate_activations(student)


def test_a_teacher_is_not_sharded_and_can_be_what_does_not_fit() -> None:
    base = override(get_preset("vit_b16_distill").run, ["distill.teacher=vit_h14"])
    fsdp = override(base, ["engine.parallel=fsdp"])
    assert estimate(base, gpus=8).memory.teacher == estimate(fsdp, gpus=8).memory.teacher
    alone = override(base, ["distill.teacher=none"])
    limit = estimate(alone, gpus=8).memory.total + 10**9  # less than the teacher
    assert estimate(alone, gpus=8, gpu_memory=limit).fits
    full = estimate(base, gpus=8, gpu_memory=limit)
    assert not full.fits
    for settings in full.alternatives:
        assert estimate(override(base, settings), gpus=8, gpu_memory=limit).fits


def test_stored_embeddings_cost_nothing_but_the_projection(tmp_path: Path) -> None:
    make_digits(tmp_path / "images", 4)
    write_embeddings(Embedder(TEACHER), tmp_path / "images", tmp_path / "e.npy", progress=False)
    stored = estimate(override(NANO, [f"distill.teacher={tmp_path / 'e.npy'}"]))
    model = estimate(override(NANO, [f"distill.teacher={TEACHER}"]))
    alone = estimate(override(NANO, ["distill.teacher=none"]))
    assert (stored.flops, stored.memory.teacher) == (alone.flops, 0)
    assert stored.parameters == model.parameters > alone.parameters


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("distill.teacher=vit_h15", "did you mean: vit_h14"),
        ("distill.teacher=missing.npy", "missing"),
        ("augment.sizes=32,48", "augment.sizes is .* allowed in distillation: none"),
        ("head_init=hashtags", "head_init is hashtags; allowed in distillation: random"),
        ("trainable=head", "trainable is head; allowed in distillation: all"),
    ],
)
def test_what_does_not_fit_is_one_line(setting: str, message: str) -> None:
    with pytest.raises(SwagModelsError, match=message) as caught:
        estimate(override(NANO, [setting]))
    assert "\n" not in str(caught.value)


def test_the_command_names_the_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recipe", "plan", "vit_nano_distill", "--decode-rate", "300"]
    assert main(arguments) == 0
    assert "not counted: add --set distill.teacher=MODEL" in capsys.readouterr().out
    arguments += ["--set", f"distill.teacher={TEACHER}"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert f"teacher        {TEACHER}, " in text
    assert "and the teacher)" in text
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    made = plan(override(NANO, [f"distill.teacher={TEACHER}"]), 24_000, num_classes=61, gpus=8)
    assert document["flops"] == made.flops
    assert document["memory"]["teacher"] == asdict(made.memory)["teacher"] > 0


def test_a_script_has_an_absolute_teacher(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swag_models.publish import save

    monkeypatch.chdir(tmp_path)
    make_digits(tmp_path / "images", 4)
    save(load_model(TEACHER), "teacher")
    arguments = ["recipe", "plan", "vit_nano_distill", "--slurm", "--data", "images", "-o", "out"]
    arguments += ["--decode-rate", "300"]
    assert main(arguments) == 2
    assert "add --set distill.teacher=MODEL" in capsys.readouterr().err
    assert main([*arguments, "--set", "distill.teacher=teacher"]) == 0
    assert f"distill.teacher={tmp_path / 'teacher'}" in capsys.readouterr().out
