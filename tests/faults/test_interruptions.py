"""Every long command is interrupted in every way, and the same command then completes the work."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import Hub
from faults import commands
from faults.commands import COMMANDS, Command, Fault, Result
from faults.counts import record, scaled
from hub_support import WRITER
from image_support import write_images
from shards_support import make_images, make_labels, write_labels

from swag_models import load_classes
from swag_models.errors import MAX_MESSAGE

pytestmark = pytest.mark.faults

KINDS = (
    *("kill", "term", "int", "no files", "file size", "stdout"),
    *("full disk", "read-only disk"),
)
EACH = 3  # of every kind: 24 interruptions of each command
# Outcomes that are defects; the others are "right".
DEFECTS = ("half-written", "refused", "wrong", "left over", "traceback", "unclear", "hang")


@dataclass(frozen=True)
class Setting:
    """The processes, the data, the Hub, and what each command writes without an interruption."""

    context: Any
    root: Path
    hub: Hub


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    root = tmp_path_factory.mktemp("interruptions")
    with Hub({WRITER: ("org",)}) as hub:
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": WRITER,
            "HF_HOME": str(root / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
        }
        context = commands.start_server(environment)
        prepare(context, root / "data")
        model = root / "data" / "model"
        hub.put_repo(commands.REPO, {path.name: path.read_bytes() for path in model.iterdir()})
        yield Setting(context, root, hub)


def prepare(context: Any, data: Path) -> None:
    """Write the inputs of all commands."""
    data.mkdir()
    names = load_classes(commands.MODEL)
    for number, name in enumerate(("apple", "car", "house")):
        assert name in names
        write_images(data / "classes" / name, 4 + number)
    rows = [
        f"{path.relative_to(data)},{'ab'[number % 2]}"
        for number, path in enumerate(sorted((data / "classes").rglob("*.*")))
    ]
    (data / "groups.csv").write_text("path,group\n" + "\n".join(rows) + "\n")
    labels = make_labels(12)
    write_labels(data / "labels.parquet", labels)
    make_images(data / "images", list(labels))
    posts = [{"id": f"p{n}", "hashtags": ["apple", "car", "house"][n % 3 :]} for n in range(300)]
    (data / "posts.jsonl").write_text("".join(json.dumps(post) + "\n" for post in posts))
    pq.write_table(
        pa.Table.from_pylist([{**post, "id": f"q{post['id']}"} for post in posts]),
        data / "posts.parquet",
    )
    work = data.parent / "prepare"
    embed = f"embed ../data/classes --model {commands.MODEL} --quiet --batch-size 2"
    ranks = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    for arguments, environment in (
        (["save", commands.MODEL, str(data / "model")], {}),
        *(([*embed.split(), "-o", "../data/part.npy"], rank) for rank in ranks),
    ):
        work.mkdir(exist_ok=True)
        result = commands.run(context, arguments, work, environment=environment)
        assert result.code == 0, result.output


def choose_fault(kind: str, draw: random.Random, whole: Result, largest: int) -> Fault:
    """A fault of this kind at a random moment of the work."""
    event = draw.randint(1, max(whole.events, 1))
    if kind in commands.SIGNALS:
        seconds = draw.random() * whole.seconds if draw.random() < 0.5 else None
        return Fault(kind, event, seconds)
    if kind == "no files":
        return Fault(kind, event, limit=draw.choice((0, 0, 1, 2, 4)))
    if kind == "file size":
        return Fault(kind, 0, limit=draw.choice((0, draw.randint(0, largest), 512)))
    return Fault(kind if kind == "stdout" else "none", event)


def fill(arguments: tuple[str, ...], case: str) -> list[str]:
    """The arguments, with a repository of its own for each case."""
    return [argument.format(repo=f"org/{case}") for argument in arguments]


def judge_output(result: Result) -> str | None:
    """What is wrong with the end of a process, besides that it was interrupted."""
    if result.code is None:
        return "hang"
    if "Traceback (most recent call last)" in result.output:
        return "traceback"
    for line in result.output.splitlines():
        if "error:" in line and not (line.isprintable() and len(line) <= MAX_MESSAGE + 30):
            return "unclear"
    if result.code not in (0, 75) and result.code > 0 and "error:" not in result.output:
        return "unclear"
    return None


def find_defect(command: Command, folder: Path, expected: dict[str, bytes], rerun: Result) -> str:
    """The outcome of a rerun: "right", or the name of a defect."""
    if defect := judge_output(rerun):
        return defect
    if rerun.code != 0:
        return "refused"
    outputs = commands.list_outputs(folder, command)
    # the number of partial files of torch and TensorBoard differs
    names = {name for name in outputs if "checkpoints" not in name and "tensorboard" not in name}
    if names != {n for n in expected if "checkpoints" not in n and "tensorboard" not in n}:
        print(f"names differ: {sorted(names ^ expected.keys())}")
        return "wrong"
    for name in names:
        if not commands.is_complete(outputs[name]):
            return "wrong"
        same = outputs[name].suffix in command.same and outputs[name].name != "log.jsonl"
        if same and outputs[name].read_bytes() != expected[name]:
            return "wrong"
    return "left over" if commands.list_leftovers(folder) else "right"


def check_case(
    setting: Setting, name: str, kind: str, number: int, whole: Result, expected: dict[str, bytes]
) -> str:
    """Interrupt a command, run it again, and name the outcome."""
    command, root = COMMANDS[name], setting.root
    draw = random.Random(f"{name} {kind} {number}")
    fault = choose_fault(kind, draw, whole, max(map(len, expected.values()), default=1000))
    case = f"{name}-{kind}-{number}".replace(" ", "-")
    folder = root / case
    arguments = fill(command.arguments, case)
    on_disk = kind in ("full disk", "read-only disk")
    total = sum(map(len, expected.values())) // 1024 + 64
    if on_disk and not commands.mount(
        folder, draw.randint(4, total) if kind == "full disk" else 2**18
    ):
        pytest.skip("mounting a disk is not permitted here")
    folder.mkdir(exist_ok=True)
    try:
        if kind == "read-only disk":  # after an earlier run was killed
            killed = choose_fault("kill", draw, whole, 0)
            commands.run(setting.context, arguments, folder, killed)
            (folder / "tmp").mkdir(exist_ok=True)
            commands.remount(folder, "ro")
        result = commands.run(setting.context, arguments, folder, fault)
        if defect := judge_output(result):
            print(f"{case}: {fault}: {result.output[-2000:]}")
            return defect
        half_written = [
            path
            for path in commands.list_outputs(folder, command).values()
            if not commands.is_complete(path)
        ]
        if half_written:
            print(f"{case}: {fault}: half-written {half_written}")
            return "half-written"
        if on_disk:
            commands.remount(folder, "rw" if kind == "read-only disk" else f"size={2**18}k")
        rerun = commands.run(setting.context, arguments, folder)
        outcome = find_defect(command, folder, expected, rerun)
        if outcome != "right":
            print(
                f"{case}: {fault}: {outcome}\n{result.output[-1000:]}\n-- {rerun.code}\n"
                f"{rerun.output[-1000:]}\n{commands.list_leftovers(folder)}"
            )
        return outcome
    finally:
        if on_disk:
            commands.unmount(folder)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_is_completed_by_the_next_run(name: str, setting: Setting) -> None:
    folder = setting.root / f"{name}-whole"
    folder.mkdir()
    arguments = fill(COMMANDS[name].arguments, folder.name)
    whole = commands.run(setting.context, arguments, folder)
    assert whole.code == 0, whole.output
    outputs = commands.list_outputs(folder, COMMANDS[name])
    expected = {output: path.read_bytes() for output, path in outputs.items()}
    assert expected or not COMMANDS[name].outputs
    assert all(map(commands.is_complete, outputs.values()))
    again = commands.run(setting.context, arguments, folder)
    assert find_defect(COMMANDS[name], folder, expected, again) == "right", again.output
    counts = Counter[str]()
    for kind in KINDS:
        of_kind = Counter(
            check_case(setting, name, kind, number, whole, expected)
            for number in range(scaled(EACH))
        )
        counts += of_kind
        record("interruptions by kind", of_kind, row=kind)
    record("interruptions", counts, row=name)
    assert not {outcome: counts[outcome] for outcome in DEFECTS if counts[outcome]}
