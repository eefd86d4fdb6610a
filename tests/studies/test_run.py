"""The miniature study: its tasks, its report, and (slow) a complete study of few steps."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import swag_models
from studies.__main__ import main
from studies.labels import draw
from studies.report import write_study_report
from studies.run import ARCHS, SAMPLINGS, Study, list_tasks, open_study_folder, run_study
from swag_models.errors import ConfigError
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.model import PublishInfo
from swag_models.recipe.training.trainer import train

ROOT = Path(__file__).parents[2]
FACTS = {"posts": 1000, "things": 32, "test": 30, "seeds": 3}


def make_rows(seeds: int = 3, lead: float = 10.0) -> list[dict[str, Any]]:
    """Invented results; pre-training and square-root sampling are `lead` points ahead."""
    make, rows = random.Random(0), []
    for task in list_tasks(Study(seeds=seeds)):
        measures = [("hashtags", 0)] if task.sampling else []
        measures += [
            (kind, shots) for shots in (5, 25) for kind in task.choose_transfers(shots == 25)
        ]
        for measure, shots in measures:
            value = (
                20
                + shots / 5
                + make.random()
                + (lead if task.sampling == "sqrt" and task.main else 0)
            )
            rows.append(
                {
                    **task._asdict(),
                    "measure": measure,
                    "shots": shots,
                    "all": value,
                    "tail": value - 5,
                }
            )
    return rows


def test_every_question_is_asked_with_every_seed() -> None:
    tasks = list_tasks(Study(seeds=2))
    assert len(tasks) == len(set(tasks)) == 2 * len(ARCHS) * (len(SAMPLINGS) + 2)
    assert len({task.name for task in tasks}) == len(tasks)
    for arch in ARCHS:
        for seed in range(2):
            both = [task for task in tasks if task.arch == arch and task.seed == seed and task.main]
            assert {task.sampling for task in both} == {"sqrt", None}
            assert all(
                "finetune" in task.choose_transfers(most) for task in both for most in (True, False)
            )


def test_shots_that_the_pool_cannot_give_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shots are \(5, 50\); allowed: numbers from 1 to 30"):
        Study(shots=(5, 50))


def test_what_no_study_can_do_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value, message in (
        ("posts", "0", "posts is 0; allowed: 1 or more"),
        ("seeds", "0", "seeds is 0; allowed: 1 or more"),
        ("length", "0", "length is 0.0; allowed: a number above 0"),
        ("processes", "-1", "processes is -1; allowed: 1 or more"),
    ):
        assert main(["run", str(tmp_path / "study"), f"--{name}={value}"]) == 2
        assert capsys.readouterr().err == f"swag-models: error: {message}\n"
    assert not (tmp_path / "study").exists()


def test_a_folder_is_of_one_study_which_may_get_more_seeds(tmp_path: Path) -> None:
    study = Study(length=0.005, seeds=1)
    for seeds in (1, 1, 2):
        with open_study_folder(tmp_path, replace(study, seeds=seeds)):
            pass
    for other, message in (
        ({"length": 1.0}, "length 0.005, not 1.0"),
        ({"shots": (5,)}, r"shots \[5, 25\], not \[5\]"),
    ):
        with pytest.raises(
            ConfigError,
            match=rf"holds other work, with {message}; delete .* or choose another output",
        ):
            run_study(tmp_path, replace(study, **other))  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"study.json", ".lock"}


def test_every_seed_draws_other_images_and_fewer_are_among_the_more() -> None:
    pool = [Path(f"{number}.jpg") for number in range(30)]
    draws = [draw(pool, seed, 25) for seed in range(30)]
    assert len({frozenset(each) for each in draws}) == 30
    assert all(len(set(each)) == 25 for each in draws)
    assert all(draw(pool, seed, 5) == draws[seed][:5] for seed in range(30))
    for seed in range(3):  # the seeds of docs/study.md
        assert draws[seed] == [pool[(10 * seed + place) % 30] for place in range(25)]


def test_claims_are_judged_by_the_numbers(tmp_path: Path) -> None:
    def judge(lead: float) -> list[str]:
        write_study_report(tmp_path, make_rows(lead=lead), FACTS)
        text = (tmp_path / "study.md").read_text()
        table = text[text.index("| claim | measured |") :]
        return re.findall(r"\*\*(.*?)\*\*: [\d.]+ ± [\d.]+ against [\d.]+ ± [\d.]+ \|", table)

    ahead, behind, equal = judge(10), judge(-10), judge(0)
    assert len(equal) == 16
    assert ahead == ["confirmed"] * 16
    assert behind == ["not confirmed"] * 16
    assert len(set(equal)) > 1


def test_the_table_has_means_and_standard_deviations(tmp_path: Path) -> None:
    rows = make_rows()
    for row in rows:
        if (row["arch"], row["sampling"], row["objective"], row["measure"]) == (
            ARCHS[0],
            "natural",
            "softmax",
            "hashtags",
        ):
            row["all"] = [10.0, 20.0, 30.0][row["seed"]]
    write_study_report(tmp_path, rows, FACTS)
    assert (
        f"| {ARCHS[0]} | natural | softmax | 20.0 ± 10.0 |" in (tmp_path / "study.md").read_text()
    )
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    write_study_report(tmp_path, make_rows(seeds=1), {**FACTS, "seeds": 1})
    assert "± 0.0" in (tmp_path / "study.md").read_text()


@pytest.mark.slow
def test_the_study_goes_from_nothing_to_a_report_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "studies", "run", str(tmp_path / "study"), "--quiet"]
    command += ["--posts", "3000", "--seeds", "1", "--length", "0.02"]
    process = subprocess.Popen(command)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(30)
    process.kill()
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = tmp_path / "study" / "report"
    assert done.stdout.strip() == str(report / "study.md")
    for arch in ARCHS:
        spec = swag_models.get_spec(report / f"{arch}_hashtags")
        assert spec.arch == arch
        assert spec.synsets
        assert swag_models.load_model(report / f"{arch}_hashtags").num_classes == len(spec.synsets)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "results").iterdir()}
    subprocess.run(command, capture_output=True, check=True)
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "results").iterdir()
    }


@pytest.mark.slow
def test_a_packed_vocabulary_names_the_classes_of_what_is_trained(tmp_path: Path) -> None:
    steps = [
        ["scenes", "scenes", "--posts", "60", "--held-out", "0", "--quiet"],
        ["curate", "scenes/posts.jsonl", "-o", "curated", "--wordnet", "scenes/wordnet", "--quiet"],
        [
            "pack",
            "--labels",
            "curated/labels.parquet",
            "--images",
            "scenes/posts.jsonl",
            "-o",
            "shards",
            "--quiet",
        ],
    ]
    for step in steps:
        module = ["studies"] if step[0] == "scenes" else ["swag_models", "recipe"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(
            [sys.executable, "-m", *module, *step],
            env=environment,
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
    vocabulary = (tmp_path / "curated" / "vocabulary.parquet").read_bytes()
    assert (tmp_path / "shards" / "vocabulary.parquet").read_bytes() == vocabulary
    run = replace(get_preset("vit_nano_hashtags").run, epochs=None, steps=1, batch_size=8)
    model = train(
        run,
        tmp_path / "shards",
        tmp_path / "run",
        progress=False,
        publish_info=PublishInfo(license="apache-2.0"),
    )
    spec = swag_models.get_spec(model)
    assert spec.synsets is not None
    assert "flower" in spec.classes
    assert spec.synsets[spec.classes.index("flower")] == "n11669921"
    card = (model / "README.md").read_text()
    assert "| objective | softmax |" in card
    assert "Hashtags express what people chose to post" in card
    assert (model / "vocabulary.parquet").read_bytes() == vocabulary
