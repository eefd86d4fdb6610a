"""`swag-models recipe show` and `plan`: output on stdout, errors on stderr, and exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from swag_models.cli import main
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import iterate_fields, override
from swag_models.recipe.presets import PRESETS, find_value_source, get_preset
from swag_models.recipe.training.estimate import plan

Capture = pytest.CaptureFixture[str]
SHOW, PLAN = ["recipe", "show"], ["recipe", "plan"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a new process."""
    command = [str(Path(sys.executable).parent / "swag-models"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_show_lists_the_presets(capsys: Capture) -> None:
    assert main(SHOW) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [preset.name for preset in PRESETS]
    assert all(line.endswith(preset.summary) for line, preset in zip(lines, PRESETS, strict=True))
    assert main([*SHOW, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        preset.name: preset.summary for preset in PRESETS
    }


@pytest.mark.parametrize("name", ["regnety_128gf_in1k", "vit_b16_hashtags", "vit_nano_linear"])
def test_show_prints_every_value_and_its_source_in_columns(name: str, capsys: Capture) -> None:
    assert main([*SHOW, name]) == 0
    lines = capsys.readouterr().out.splitlines()
    preset = get_preset(name)
    fields = [field for field, _ in iterate_fields(preset.run)]
    assert [line.split()[0] for line in lines] == [*fields, "samples_per_epoch", "num_classes"]
    source_columns = set()
    for line, field in zip(lines, [*fields, "samples_per_epoch", "num_classes"], strict=True):
        source = find_value_source(preset, field)
        assert line.endswith(f"  {source}")
        source_columns.add(line.index(f"  {source.mark}  ".rstrip(), len(field)))
    assert len(source_columns) == 1


def test_values_are_printed_in_the_form_that_set_accepts(capsys: Capture) -> None:
    preset = get_preset("vit_h14_in1k")
    assert main([*SHOW, preset.name]) == 0
    settings = []
    for line in capsys.readouterr().out.splitlines():
        name, value, *_ = (cell.strip() for cell in line.split("  ") if cell.strip())
        if name not in (
            "samples_per_epoch",
            "num_classes",
            "augment.ratio",
        ):  # its thirds are rounded
            settings.append(f"{name}={value}")
    assert override(get_preset("vit_nano_hashtags").run, settings) == preset.run


def test_changed_values_are_marked_as_set_here(capsys: Capture) -> None:
    settings = ["optimizer.lr=0.5", "optimizer.kind=sgd", "ema.decay=0.9", "seed=0"]
    options = [option for setting in settings for option in ("--set", setting)]
    assert main([*SHOW, "vit_b16_hashtags", *options]) == 0
    changed = {
        line.split()[0]
        for line in capsys.readouterr().out.splitlines()
        if line.endswith("set here")
    }
    assert changed == {"optimizer.lr", "optimizer.kind", "ema.decay", "ema.warmup_ratio"}
    assert main([*SHOW, "vit_b16_hashtags", *options, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert Run.from_dict(output["run"]) == override(get_preset("vit_b16_hashtags").run, settings)
    assert output["samples_per_epoch"] == 5_000_000_000
    assert output["sources"]["optimizer.lr"] == {"mark": "set here", "text": ""}
    assert output["sources"]["objective.kind"]["mark"] == "confirmed"
    assert output["sources"].keys() == {
        *dict(iterate_fields(Run.from_dict(output["run"]))),
        "samples_per_epoch",
        "num_classes",
    }


def test_show_does_not_import_torch() -> None:
    code = """
import sys
from swag_models.cli import main
main(["recipe", "show", "vit_b16_in1k"])
print("torch" in sys.modules)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.splitlines()[-1] == "False"


@pytest.mark.slow
def test_the_installed_command_plans() -> None:
    options = [
        "--gpus",
        "2",
        "--throughput",
        "50",
        "--samples-per-epoch",
        "6400",
        "--classes",
        "7",
        "--set",
        "epochs=3",
    ]
    process = run(*PLAN, "vit_nano_hashtags", *options, "--json")
    assert (process.returncode, process.stderr) == (0, "")
    output = json.loads(process.stdout)
    preset = get_preset("vit_nano_hashtags")
    estimate = plan(override(preset.run, ["epochs=3"]), 6400, num_classes=7, gpus=2, throughput=50)
    assert output["fits"]
    assert (output["steps"], output["days"], output["flops"]) == (
        estimate.steps,
        estimate.days,
        estimate.flops,
    )
    assert output["memory"]["total"] == estimate.memory.total


def test_plan_prints_a_table(capsys: Capture) -> None:
    assert (
        main(
            [*PLAN, "vit_nano_linear", "--gpus", "1", "--set", "steps=1000", "--set", "epochs=none"]
        )
        == 0
    )
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = dict(line.strip().split("  ", 1) for line in captured.out.splitlines())
    assert rows["steps"].strip() == "1,000"
    assert rows["samples"].strip() == f"{1000 * get_preset('vit_nano_linear').run.batch_size:,}"
    assert rows["parameters"].endswith("of them trained; the rest is frozen")
    assert "per sample (1x the forward pass)" in rows["operations"]
    assert "assumed: 40% of 67 TFLOP/s (H100 in fp32)" in rows["throughput"]
    assert rows["time"].strip() == "less than a minute on 1 GPU"
    assert rows["memory"].endswith("per GPU, estimated by formula: fits on H100 80 GB")
    assert {
        "weights",
        "gradients",
        "optimizer",
        "ema",
        "casts",
        "activations",
    } < rows.keys()


def read_rows(arguments: list[str], capsys: Capture) -> dict[str, str]:
    """The rows of the table that a plan prints."""
    assert main([*PLAN, *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {
        name: text.strip()
        for name, text in (re.split(" {2,}", x.strip(), maxsplit=1) for x in lines)
    }


def test_plan_says_what_the_data_must_deliver(tmp_path: Path, capsys: Capture) -> None:
    options = ["vit_nano_hashtags", "--throughput", "1100"]
    rows = read_rows([*options, "--decode-rate", "300"], capsys)
    assert rows["data"] == "8,800 images/s must be read, 1,100.0 by each rank"
    assert rows["images"] == (
        "300 images/s per CPU core, given; cores needed: 4 per rank, 32 in all"
    )
    for number in range(3):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((640, 480), 30).convert("RGB").save(folder / f"{number}.jpg")
    measured = read_rows(options, capsys)
    data = read_rows([*options, "--data", str(tmp_path / "photos")], capsys)
    pattern = (
        r"([\d,]+) images/s per CPU core, measured on this machine; cores needed: ([\d,]+) per"
    )
    rates = {}
    for name, row in (*measured.items(), *data.items()):
        if match := re.match(pattern, row):
            rates[name], cores = (int(text.replace(",", "")) for text in match.groups())
            assert cores == pytest.approx(1100 / rates[name], abs=1.1)
    assert rates.keys() == {"341 x 256", "1024 x 768", "photos"}
    assert rates["341 x 256"] > rates["1024 x 768"]
    assert data["steps"] == "1"  # of 3 images


def test_plan_names_settings_that_fit(capsys: Capture) -> None:
    options = ["vit_b16_hashtags", "--gpu-memory", "40", "--decode-rate", "300"]
    memory = read_rows(options, capsys)["memory"]
    excess = "per GPU, estimated by formula: does not fit on a GPU of 40 GB: use "
    settings = memory.partition(excess)[2].split(", or ")
    assert [re.sub(r"\d+", "N", setting) for setting in settings] == [
        "engine.micro_batch=N",
        "engine.grad_checkpointing=true",
    ]
    fitting = read_rows([*options, "--set", settings[0]], capsys)["memory"]
    assert fitting.endswith(": fits on a GPU of 40 GB")


def test_plan_says_if_no_setting_fits(capsys: Capture) -> None:
    options = ["vit_nano_hashtags", "--gpu-memory", "0.0005", "--decode-rate", "300"]
    assert (
        "does not fit on a GPU of 0.0005 GB with any setting"
        in read_rows(options, capsys)["memory"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SHOW, "vit_b16"], "unknown preset 'vit_b16'; did you mean: vit_b16_in1k"),
        ([*SHOW, "vit_b16_in1k", "--set", "lr=1"], "lr: a run has no field 'lr'; fields: arch, "),
        (
            [*PLAN, "vit_nano_linear", "--set", "optimizer.lr=-1"],
            "optimizer.lr is -1.0; allowed: a positive number",
        ),
        (
            [*PLAN, "vit_nano_linear", "--samples-per-epoch", "0"],
            "samples_per_epoch is 0; give a positive number",
        ),
        (
            [*PLAN, "vit_nano_linear", "--classes", "0"],
            "num_classes is 0; give a whole number from 1",
        ),
        ([*PLAN, "vit_nano_linear", "--gpus", "0"], "gpus is 0; give a positive number"),
        (
            [*PLAN, "vit_nano_linear", "-o", "run", "--gpus-per-node", "2"],
            "--output, --gpus-per-node is for the script that --slurm prints; add --slurm",
        ),
        ([*PLAN, "vit_nano_linear", "--val", ""], "--val is for the script that --slurm prints"),
        ([*PLAN, "vit_nano_linear", "--gpu", "V100"], "unknown GPU 'V100'; known: GB200, B200"),
    ],
)
def test_wrong_usage_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], message: str, capsys: Capture
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"swag-models: error: {message}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("command", ["show", "plan"])
def test_help_shows_an_example_that_works(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["recipe", command, "--help"])
    assert stopped.value.code == 0
    assert f"example: swag-models recipe {command} vit_" in " ".join(
        capsys.readouterr().out.split()
    )
