"""`swag-models finetune`: from a folder of images to a published classifier, without extras."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from fetch_support import wait_until
from image_support import ROOT, write_images
from PIL import Image
from runs import make_digits

from swag_models.api import get_spec, load_classes, load_model
from swag_models.cli import main
from swag_models.finetuning import finetune
from swag_models.finetuning.defaults import choose_epochs, choose_run
from swag_models.finetuning.job import complete_job, describe_finetuning
from swag_models.inference import Classifier
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import iterate_fields
from swag_models.recipe.training.model import PublishInfo
from swag_models.resumable import write_result

pytestmark = pytest.mark.usefixtures("one_thread")

Capture = pytest.CaptureFixture[str]
NANO = "vit_nano_hashtags"
OPTIONS = ("--model", NANO, "--quiet", "--image-size", "24", "--device", "cpu")
SHORT = (*OPTIONS, "--set", "epochs=none", "--set", "steps=6")
# Everything of [recipe] but matplotlib, and of other extras
BLOCKED = "tensorboard pyarrow duckdb ibis braceexpand fsspec datasets timm transformers gradio"
RUN = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED.split()!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
import torch
torch.set_num_threads(1)
from swag_models.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start `swag-models finetune` where no extra but matplotlib is installed."""
    command = [sys.executable, "-c", RUN, "finetune", *map(str, arguments)]
    environment = {**os.environ, "SWAG_MODELS_OFFLINE": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; its exit code and what it printed on stderr."""
    with process:
        _, errors = process.communicate(timeout=120)
        return process.returncode, errors


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in a folder per digit, one of them unreadable, and one class of a single image."""
    root = make_digits(tmp_path_factory.mktemp("digits") / "photos", 60)
    write_images(root / "single", 1)
    for name in ("broken.png", "broken too.png"):
        (root / "digit 3" / name).write_bytes(b"no image " + name.encode())
    (root / "digit 4" / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def finished(images: Path, one_thread: None) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A fine-tuned model, and what the command printed."""
    output, printed, errors = images.parent / "digits-vit", io.StringIO(), io.StringIO()
    handler, logger = logging.StreamHandler(errors), logging.getLogger("swag_models")
    logger.addHandler(handler)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = main(["finetune", str(images), *SHORT, "-o", str(output)])
    logger.removeHandler(handler)
    assert code == 0, errors.getvalue()
    return output, subprocess.CompletedProcess((), 0, printed.getvalue(), errors.getvalue())


def read_predictions(output: Path) -> list[dict[str, str]]:
    with open(output / "held_out.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_result_is_a_published_folder_that_classifies(
    finished: tuple[Path, subprocess.CompletedProcess[str]], images: Path
) -> None:
    output, printed = finished
    assert printed.stdout == f"{output}\n"
    assert sorted(path.name for path in output.iterdir()) == [
        *("README.md", "config.json", "confusion.png", "curves.png", "finetune.json"),
        *("held_out.csv", "log.jsonl", "model.safetensors", "recipe.json"),
    ]
    assert not output.with_name("digits-vit.work").exists()
    assert output.stat().st_mode & 0o777 == images.stat().st_mode & 0o777
    classes = [f"digit {digit}" for digit in range(10)] + ["single"]
    assert list(load_classes(output)) == classes
    rows = read_predictions(output)
    paths = [images / row["image"] for row in rows]
    predicted = [classes[0].label for classes in Classifier(output)(paths, top_k=1)]
    assert [row["predicted"] for row in rows] == predicted
    assert [row["class"] for row in rows] == [path.parent.name for path in paths]
    assert {row["class"] for row in rows} == set(classes) - {"single"}
    hits = sum(row["class"] == row["predicted"] for row in rows)
    top1 = 100 * hits / len(rows)
    assert f"{len(rows)} held-out images: top-1 {top1:.1f}% (" in printed.stderr
    card = (output / "README.md").read_text()
    assert f"Top-1 {round(top1, 2)}% on {len(rows)} held-out images of photos." in card
    assert "![Training](curves.png)" in card
    assert get_spec(output).license == "apache-2.0"
    for name in ("curves.png", "confusion.png"):
        with Image.open(output / name) as figure:
            assert len(figure.convert("RGB").getcolors(2**24) or ()) > 20


def test_what_is_left_out_is_counted_and_said(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, printed = finished
    lines = printed.stderr.splitlines()
    assert any("left out beside the images: 1 .txt" in line for line in lines)
    assert any("1 of 11 classes with one image" in line for line in lines)
    assert any("images of 11 classes to train on" in line for line in lines)
    broken = [line for line in lines if "broken" in line and "could not be read" in line]
    assert broken, lines
    assert "Traceback" not in printed.stderr
    assert all(len(line) < 500 for line in lines)


def test_a_rerun_does_nothing_and_other_work_is_not_overwritten(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    images: Path,
    tmp_path: Path,
    capsys: Capture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output, printed = finished
    arguments = ["finetune", str(images), *SHORT, "-o", str(output)]
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert main(arguments) == 0
    assert "digits-vit is already done" in caplog.text
    assert capsys.readouterr().out == printed.stdout
    for other in (("--seed", "1"), ("--name", "other"), ("--license", "mit")):
        assert main([*arguments, *other]) == 2
        assert "exists, and is not what this command has written" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in output.iterdir()}
    shutil.copytree(output, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("mine")
    assert main([*arguments[:-1], str(tmp_path / "copy")]) == 2
    assert (tmp_path / "copy" / "README.md").read_text() == "mine"


@pytest.mark.slow
def test_no_extra_but_matplotlib_is_needed(
    finished: tuple[Path, subprocess.CompletedProcess[str]], images: Path, tmp_path: Path
) -> None:
    code, errors = finish(start(images, *SHORT, "-o", tmp_path / "model"))
    assert code == 0, errors
    for name in ("model.safetensors", "held_out.csv"):
        assert (tmp_path / "model" / name).read_bytes() == (finished[0] / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_resumes_to_the_same_weights(
    number: int, images: Path, tmp_path: Path
) -> None:
    steps = (*OPTIONS, "--set", "epochs=none", "--set", "steps=60", "--set", "checkpoint.every=5")
    whole, output = tmp_path / "whole", tmp_path / "model"
    assert finish(start(images, *steps, "-o", whole))[0] == 0
    checkpoints = tmp_path / "model.work" / "run" / "checkpoints"
    process = start(images, *steps, "-o", output)
    wait_until(lambda: checkpoints.is_dir() and any(checkpoints.glob("step-*")), 60)
    process.send_signal(number)
    code, errors = finish(process)
    expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75, signal.SIGINT: 130}
    assert code == expected[signal.Signals(number)], errors
    assert "Traceback" not in errors
    assert not output.exists()
    code, errors = finish(start(images, *steps, "--seed", "1", "-o", output))
    assert code == 2
    assert "holds other work, with held-out images" in errors
    assert finish(start(images, *steps, "-o", output))[0] == 0
    for name in ("model.safetensors", "held_out.csv"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
    assert not (tmp_path / "model.work").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "linear", "top1"),
    [
        (NANO, False, 25),
        (NANO, True, 15),
        ("regnety_nano_hashtags", False, 70),
        ("regnety_nano_hashtags", True, 40),
    ],
)
def test_a_model_learns_from_few_images(
    name: str, linear: bool, top1: float, tmp_path: Path
) -> None:
    make_digits(tmp_path / "digits", 300)
    result = finetune(
        tmp_path / "digits",
        tmp_path / "model",
        model=name,
        linear=linear,
        progress=False,
        epochs=20,
        settings=["augment.flip=0"],
    )
    assert result.metrics["top1"][0] > top1, "of guessing 10"
    assert (result.train_images, result.held_out_images) == (240, 60)
    before, after = load_model(name).state_dict(), load_model(result.folder).state_dict()
    frozen = [key for key in before if not key.startswith("head")]
    assert all(torch.equal(before[key], after[key]) for key in frozen) == linear


@pytest.mark.slow
def test_timm_and_transformers_load_the_result(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    import timm
    from transformers import pipeline

    import swag_models.timm  # noqa: F401

    output, _ = finished
    image = next((output.parent / "photos" / "digit 5").iterdir())
    (best,) = Classifier(output)(image, top_k=1)[0]
    model = timm.create_model(f"local-dir:{output}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with Image.open(image) as opened, torch.inference_mode():
        logits = model(transform(opened.convert("RGB")).unsqueeze(0))
    assert int(logits.argmax()) == best.index
    answers = pipeline("image-classification", str(output))(str(image))
    assert answers[0]["label"] == best.label
    assert answers[0]["score"] == pytest.approx(best.probability, abs=1e-3)


def make_classes(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        write_images(root / name, count)
    return root


def make_nested(root: Path) -> Path:
    return make_classes(root / "data", cat=1, dog=1).parent


def make_empty_class(root: Path) -> Path:
    make_classes(root, cat=2)
    (root / "dog").mkdir()
    (root / "cow" / "deep").mkdir(parents=True)
    (root / "cow" / "deep" / "x.heic").touch()
    return root


def make_broken(root: Path) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            (root / name / f"{number}.jpg").write_bytes(b"no image %d" % number)
    return root


def make_line_break(root: Path) -> Path:
    return make_classes(root, **{"cat\nand": 2, "dog": 2})


def make_flat(root: Path) -> Path:
    write_images(root, 3)
    return root


def make_file(root: Path) -> Path:
    root.write_bytes(b"PK\3\4")
    return root


def make_shards(root: Path) -> Path:
    root.mkdir()
    (root / "manifest.json").write_text("{}")
    return root


def make_part_with_other_classes(root: Path) -> Path:
    make_classes(root / "train", cat=2, dog=2)
    make_classes(root / "val", cat=2, cow=2)
    return root


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda root: root, "folder .* does not exist; give a folder with a sub-folder of images"),
        (make_file, "folder .* is a file; give a folder with a sub-folder of images"),
        (make_shards, "has packed shards; .*swag-models recipe train"),
        (make_flat, "has 0000.png, 0001.png, 0002.png; allowed: .*a sub-folder of images"),
        (lambda root: make_classes(root, cat=3), "has one class, cat, .*add a sub-folder"),
        (make_nested, "has one class, data, .*if cat, dog are the classes, give .*data"),
        (make_empty_class, r"without images: cow \(1 \.heic\), dog; add images .* or remove"),
        (make_broken, "none of the 2 held-out images can be read: .*jpg"),
        (make_line_break, "control characters"),
        (make_part_with_other_classes, "val has classes that .*train does not have: cow"),
    ],
)
def test_a_folder_of_another_kind_is_one_line(
    make: Callable[[Path], Path], reason: str, tmp_path: Path, capsys: Capture
) -> None:
    arguments = [str(make(tmp_path / "photos")), *SHORT, "-o", str(tmp_path / "model")]
    assert main(["finetune", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert len(error) < 500
    assert re.search(reason, error), error
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "model.work").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--epochs 0", "epochs is 0.0; allowed: a positive number"),
        ("--epochs nan", "epochs"),
        ("--lr -1", "lr is -1.0; allowed: a positive number"),
        ("--batch-size 0", "batch_size is 0; allowed: 1 or more"),
        ("--image-size 0", "image_size is 0; allowed: a number of pixels"),
        ("--holdout 2", "holdout is 2.0; allowed: from 0 to below 1"),
        ("--device tpu", "device 'tpu' cannot be used here"),
        ("--device meta", "invalid device meta: allowed for training: auto, cpu, cuda"),
        ("--set augment.flop=1", "augment has no field 'flop'"),
        ("--name a/b", "invalid name 'a/b'"),
        ("--model vit_b17", "vit_b16"),
        ("--val {photos}", "6 of the held-out images are training images too"),
        ("--val {photos}/cat", "cat has 0000.png"),
        ("--val missing", "val missing does not exist"),
        ("-o {photos}/model", "inside of the images"),
        ("-o {photos}", "inside of the images"),
        ("-o {photos}/..", "or contains them"),
    ],
)
def test_an_invalid_option_is_one_line(
    options: str, reason: str, tmp_path: Path, capsys: Capture
) -> None:
    photos = make_classes(tmp_path / "photos", cat=3, dog=3)
    arguments = [str(photos), *OPTIONS, "-o", str(tmp_path / "model")]
    assert main(["finetune", *arguments, *options.format(photos=photos).split()]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert reason in error
    assert len(error) < 500
    assert not list(tmp_path.glob("*.work"))


def test_the_settings_suit_few_and_many_images() -> None:
    assert [choose_epochs(images) for images in (1, 50, 500, 5000, 50_000, 10**6)] == [
        *(100, 99, 31, 9.9, 3.1, 3)
    ]
    cpu = torch.device("cpu")
    for name in (NANO, "vit_b16", "vit_h14_in1k", "regnety_16gf"):
        spec = get_spec(name)
        for images in (2, 50, 50_000):
            run = choose_run(spec, name, images, cpu)
            steps = run.epochs * images / run.batch_size if run.epochs else 0
            assert 1 <= run.checkpoint.every <= max(1, steps)
            assert run.image_size == spec.image_size
            assert run.optimizer.layer_decay == 0.75
            rate = choose_run(spec, name, images, cpu, linear=True).lr
            assert run.lr < rate < 0.02
    assert choose_run(get_spec("vit_h14"), "vit_h14", 50, cpu).lr < 1e-4
    chosen = choose_run(get_spec(NANO), NANO, 50, cpu, settings=["checkpoint.every=7"], epochs=2)
    assert (chosen.checkpoint.every, chosen.epochs) == (7, 2)


def test_a_head_of_hashtags_is_trained_at_a_tenth_of_the_rate() -> None:
    def choose(**options: Any) -> Run:
        return choose_run(get_spec(NANO), NANO, 50, torch.device("cpu"), **options)

    usual = choose().lr
    assert choose(head_init="hashtags").lr == pytest.approx(usual / 10)
    chosen = choose(settings=["head_init=hashtags"])
    assert (chosen.head_init, chosen.lr) == ("hashtags", pytest.approx(usual / 10))
    assert choose(head_init="hashtags", lr=0.5).lr == 0.5
    assert choose(head_init="hashtags", settings=["optimizer.lr=0.5"]).lr == 0.5


def test_a_job_of_a_version_without_a_setting_is_the_same_job() -> None:
    run = choose_run(get_spec(NANO), NANO, 50, torch.device("cpu"))
    job = json.loads(json.dumps({"model": NANO, **dict(iterate_fields(run))}))
    earlier = {name: value for name, value in job.items() if name != "head_init"}
    assert complete_job(earlier) == complete_job(job)
    assert complete_job(earlier) != complete_job({**job, "head_init": "hashtags"})


def test_an_output_of_a_version_without_some_settings_is_done(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs = list[dict[str, Any]]()

    def describe(*arguments: Any) -> dict[str, Any]:
        jobs.append(describe_finetuning(*arguments))
        return jobs[-1]

    module = sys.modules[finetune.__module__]  # the function hides it
    monkeypatch.setattr(module, "describe_finetuning", describe)
    output = shutil.copytree(finished[0], tmp_path / finished[0].name)
    arguments = ["finetune", str(images), *SHORT, "-o", str(output)]
    assert main(arguments) == 0
    # as a version wrote it that lacks these settings
    recipe = json.loads((output / "recipe.json").read_text())
    for part, name in (("", "patch_drop_rate"), ("augment", "auto"), ("augment", "sizes")):
        del (recipe["run"][part] if part else recipe["run"])[name]
    (output / "recipe.json").write_text(json.dumps(recipe))
    lacking = {"patch_drop_rate", "augment.auto", "augment.sizes"}
    job = {name: value for name, value in jobs[0].items() if name not in lacking}
    assert len(job) == len(jobs[0]) - 3
    record = output / "finetune.json"
    files = sorted(set(output.iterdir()) - {record})
    info = asdict(PublishInfo(name=output.name))
    write_result(record, [job, info], files, json.loads(record.read_text())["result"])
    caplog.clear()
    assert main(arguments) == 0
    assert "is already done" in caplog.text
    for setting in ("patch_drop_rate=0.5", "augment.auto=rand", "augment.sizes=16,24"):
        assert main([*arguments, "--set", setting]) == 2


@pytest.mark.slow
def test_the_documented_commands_run(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "photos")
    shutil.copy(next((images / "digit 5").iterdir()), tmp_path / "photo.jpg")
    text = (ROOT / "docs" / "finetune.md").read_text().replace('"vit_b16"', f'"{NANO}"')
    (commands,) = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    short = "--model vit_nano_hashtags --set epochs=none --set steps=3"
    lines = commands.replace("--model vit_b16", short).splitlines()[1:]
    lines.append("python -c " + shlex.quote(snippet.replace("linear", "epochs=1, linear")))
    lines[-1] = lines[-1].replace("photo-classifier", "in-python")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", "\n".join(lines)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "photo.jpg" in done.stdout
    assert "confusion.png" in done.stdout
    assert "'digit 0'" in done.stdout


def test_odd_data_and_outputs_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Capture
) -> None:
    """Without held-out images, with a named pipe, into an empty folder or one that is missing."""
    photos = make_classes(tmp_path / "photos", cat=1, dog=1)
    (photos / "dog" / "0000.png").write_bytes((photos / "cat" / "0000.png").read_bytes() + b"1")
    os.mkfifo(photos / "cat" / "pipe.png")
    (photos / ".hidden").mkdir()
    (tmp_path / "empty").mkdir()
    for output in ("empty", "new/folder/model"):
        arguments = [str(photos), *SHORT[:-1], "steps=1", "--holdout", "0"]
        assert main(["finetune", *arguments, "-o", str(tmp_path / output)]) == 0
        assert "no images are held out, so no accuracy is measured" in caplog.text
        assert "pipe.png cannot be read: it is a named pipe" in caplog.text
        assert capsys.readouterr().out == f"{tmp_path / output}\n"
        assert list(load_classes(tmp_path / output)) == ["cat", "dog"]
        assert "Unknown for these weights." in (tmp_path / output / "README.md").read_text()
        assert not (tmp_path / output / "held_out.csv").exists()
    (tmp_path / "file").write_text("mine")
    assert main(["finetune", str(photos), *SHORT, "-o", str(tmp_path / "file")]) == 2
    assert (tmp_path / "file").read_text() == "mine"
