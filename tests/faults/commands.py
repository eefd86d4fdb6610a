"""Every long command on small data, in forked processes that are interrupted.

The processes are forked from a server process that has imported everything, so that the moments of
interruption are spread over the work itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIPE_SIZE = 1 << 20  # bytes; the output of a command is shorter
LIMIT_S = 120  # after which a process counts as hanging
MODEL = "vit_nano_hashtags"
REPO = "org/tiny"
SCENES = Path(__file__).parents[2] / "studies" / "scenes"
PRELOADED = (
    "swag_models.cli",
    "swag_models.inference",
    "swag_models.inference.embed",
    "swag_models.publish.push",
    "swag_models.recipe.curation.curate",
    "swag_models.recipe.data.pack",
    "swag_models.recipe.training.trainer",
    "swag_models.recipe.evaluation.evaluation_files",
    "swag_models.recipe.evaluation.probes.probe",
    "swag_models.recipe.evaluation.zero_shot.classifier",
    "swag_models.recipe.evaluation.zero_shot.report",
    "swag_models.recipe.evaluation.bias.report",
    "swag_models.recipe.evaluation.report.collect",
    "swag_models.export.formats",
    "duckdb",
    "ibis",
    "ibis.backends.duckdb",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "huggingface_hub.hf_api",
    "matplotlib.backends.backend_agg",
    "torch._dynamo",
    "torch.onnx",
    "torch.onnx._internal.exporter._core",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.state_dict",
    "tensorboard.compat.proto.event_pb2",
    "torchvision.transforms.v2",
    "safetensors.torch",
    "sklearn.linear_model",
)
# Audit events of the operations that change files; a process is interrupted at one of them.
FILE_EVENTS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.listdir",
}


@dataclass(frozen=True)
class Command:
    """A long command, in a folder of its own.

    Attributes:
        arguments: of `swag-models`; relative paths are in the folder.
        outputs: what it writes, with names relative to the folder.
        same: suffixes of outputs whose bytes must be equal in every run; of the others only their
            format is checked.
    """

    arguments: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    same: frozenset[str] = frozenset({".safetensors", ".npy", ".tar", ".parquet", ".jsonl"})


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRAIN = (
    "recipe train vit_nano_hashtags --data ../data/classes -o out --quiet "
    "--set image_size=16 --set batch_size=6 --set epochs=none --set steps=4 "
    "--set checkpoint.every=2 --set log_every=1 --set engine.workers=0"
)
COMMANDS = {
    "fetch": Command(
        _split(f"fetch hf-hub:{REPO} --quiet"), outputs=("cache/hub/models--org--tiny/snapshots",)
    ),
    "convert": Command(
        _split("convert ../data/model/model.safetensors out.safetensors --to torchvision"),
        outputs=("out.safetensors",),
    ),
    "embed": Command(
        _split(f"embed ../data/classes --model {MODEL} -o out.npy --batch-size 2 --quiet"),
        outputs=("out.npy", "out.json"),
    ),
    "merge": Command(
        _split("merge ../data/part-00000-of-00002.npy ../data/part-00001-of-00002.npy -o out.npy"),
        outputs=("out.npy", "out.json"),
    ),
    "export": Command(_split("export ../data/model out.onnx"), outputs=("out.onnx",)),
    "export beside": Command(
        _split("export ../data/model out.onnx --external-data"),
        outputs=("out.onnx", "out.onnx.data"),
        same=frozenset({".data"}),
    ),
    "save": Command(_split("save ../data/model out"), outputs=("out",)),
    "push": Command(_split("push ../data/model {repo}")),
    "curate": Command(
        (
            *_split("recipe curate ../data/posts.jsonl ../data/posts.parquet -o out --quiet"),
            *("--wordnet", str(SCENES / "wordnet"), "--threads", "1"),
        ),
        outputs=("out",),
    ),
    "pack": Command(
        _split(
            "recipe pack --labels ../data/labels.parquet --images ../data/images -o out "
            "--shard-size 4 --processes 1 --quiet"
        ),
        outputs=("out",),
    ),
    # torch names its checkpoints' shards and TensorBoard its events by time and process.
    "train": Command(_split(TRAIN), outputs=("out",), same=frozenset({".safetensors"})),
    "evaluate": Command(
        _split(f"recipe evaluate {MODEL} --data ../data/classes -o out --device cpu"),
        outputs=("out",),
    ),
    "probe": Command(
        _split(f"recipe probe {MODEL} --train ../data/classes --test ../data/classes --shots 1,all")
        + _split("--splits 2 --cache cached -o out --device cpu"),
        outputs=("out",),
    ),
    "zeroshot": Command(
        (
            *_split(f"recipe zeroshot {MODEL} --data ../data/classes -o out --device cpu"),
            *("--wordnet", str(SCENES / "wordnet")),
        ),
        outputs=("out",),
    ),
    "associations": Command(
        _split(f"recipe associations {MODEL} --groups ../data/groups.csv --group-column group")
        + _split("--min-group 2 --permutations 100 --neighbours 1 -o out --device cpu"),
        outputs=("out",),
    ),
    "report": Command(
        _split(f"recipe report {MODEL} --benchmarks folder=../data/classes -o out --device cpu"),
        outputs=("out",),
    ),
}


@dataclass(frozen=True)
class Fault:
    """What happens to a process.

    Attributes:
        kind: "kill", "term", "int", "no files", "file size", "stdout" or "none".
        event: number of the file operation at which it happens; 0 for the start.
        seconds: moment at which it happens instead, after the start.
        limit: bytes of a file, or further file descriptors.
    """

    kind: str = "none"
    event: int = 0
    seconds: float | None = None
    limit: int = 0


@dataclass(frozen=True)
class Result:
    """How a process ended: exit code (negative for a signal, None for a hang) and its output."""

    code: int | None
    output: str
    events: int
    seconds: float


def start_server(environment: Mapping[str, str]) -> Any:
    """Return the context of processes that have everything imported."""
    os.environ.update(environment)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *PRELOADED])
    return context


def run(
    context: Any,
    arguments: Sequence[str],
    folder: Path,
    fault: Fault = Fault(),
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Run `swag-models` in a folder, and interrupt it."""
    report = folder.parent / "report.json"
    report.unlink(missing_ok=True)
    # A pipe, because limits of a full disk and of the size of files must not hide messages.
    reader, writer = context.Pipe(duplex=False)
    fcntl.fcntl(writer.fileno(), fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    process = context.Process(
        target=_begin, args=(list(arguments), str(folder), fault, dict(environment or {}), writer)
    )
    start = time.monotonic()
    process.start()
    writer.close()
    process.join(LIMIT_S)
    if (code := process.exitcode) is None:
        process.kill()
        process.join()
    seconds = time.monotonic() - start
    os.set_blocking(reader.fileno(), False)
    try:
        output = os.read(reader.fileno(), PIPE_SIZE).decode(errors="replace")
    except BlockingIOError:  # a process of the command still runs, and nothing was written
        output = ""
    reader.close()
    events, inner = json.loads(report.read_text()) if report.exists() else (0, seconds)
    return Result(code, output, events, inner)


def _begin(
    arguments: list[str], folder: str, fault: Fault, environment: dict[str, str], writer: Any
) -> None:
    import huggingface_hub.constants
    import torch

    from swag_models.cli import main

    torch.set_num_threads(1)
    os.setpgid(0, 0)
    os.chdir(folder)
    parent = Path(folder).parent
    os.environ |= {"SWAG_MODELS_CACHE": f"{folder}/cache", "TMPDIR": f"{folder}/tmp"}
    os.environ |= environment
    with contextlib.suppress(OSError):  # a read-only disk
        os.makedirs("tmp", exist_ok=True)
    huggingface_hub.constants.HF_HUB_CACHE = f"{folder}/cache/hub"  # read when it was imported
    log = writer.fileno()
    os.dup2(log, 2)
    os.dup2(_open_stdout(fault, log), 1)
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    counter, start = _Interruption(fault), time.monotonic()
    if fault.kind != "none":
        counter.arm()
    sys.addaudithook(counter.audit)
    try:
        code = main(arguments)
        sys.stdout.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        code = 0
    except BaseException:
        import traceback

        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        traceback.print_exc()
        code = 1
    counter.fault = Fault()
    if fault.kind == "none":
        (parent / "report.json").write_text(json.dumps([counter.count, time.monotonic() - start]))
    os._exit(code)


def _open_stdout(fault: Fault, log: int) -> int:
    if fault.kind != "stdout":
        return log
    if fault.event % 2:
        return os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    return writer


class _Interruption:
    """Counts file operations, and causes the fault at one of them."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.count = fault, 0

    def arm(self) -> None:
        """Cause a fault that does not depend on a file operation."""
        if self.fault.seconds is not None:
            signal.signal(signal.SIGALRM, lambda *_: self.cause())
            signal.setitimer(signal.ITIMER_REAL, max(self.fault.seconds, 1e-6))
        elif self.fault.event == 0:
            self.cause()

    def audit(self, event: str, _: Any) -> None:
        if event in FILE_EVENTS:
            self.count += 1
            if self.fault.seconds is None and self.count == self.fault.event:
                self.cause()

    def cause(self) -> None:
        kind = self.fault.kind
        if number := SIGNALS.get(kind):
            os.kill(os.getpid(), number)
        elif kind == "no files":
            used = max(map(int, os.listdir("/proc/self/fd")))
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + self.fault.limit, hard))
        elif kind == "file size":
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.fault.limit, hard))


SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


def list_outputs(folder: Path, command: Command) -> dict[str, Path]:
    """The files that a command writes under their final names, without work folders."""
    files = {}
    for output in command.outputs:
        path = folder / output
        for file in [path] if path.is_file() else path.rglob("*"):
            name = file.relative_to(folder)
            hidden = any(part.startswith(".") or part.endswith(".work") for part in name.parts)
            if file.is_file() and not hidden:
                files[str(name)] = file
    return files


def list_leftovers(folder: Path) -> list[str]:
    """Temporary files that no later run would remove."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return [
        name
        for name in names
        if (".tmp" in name or name.endswith(".work") or name.startswith("tmp/"))
        and not name.startswith("cache/hub/")  # of the client of the Hub
    ]


def is_complete(path: Path) -> bool:
    """Whether a file can be read to its end, by its suffix."""
    check = CHECKS.get(path.suffix)
    try:
        if check:
            check(path)
    except Exception:
        return False
    return True


def _check_npy(path: Path) -> None:
    import numpy as np

    np.load(path)


def _check_parquet(path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.read_table(path)


def _check_image(path: Path) -> None:
    from PIL import Image

    Image.open(path).load()


def _check_tar(path: Path) -> None:
    from swag_models.recipe.data.shards import read_shard

    list(read_shard(str(path)))


def _check_safetensors(path: Path) -> None:
    from safetensors.numpy import load_file

    load_file(path)


def _check_onnx(path: Path) -> None:
    import onnx

    onnx.checker.check_model(str(path))


def _check_lines(path: Path) -> None:
    # log.jsonl of a run grows; its last line may be partial, which its reader allows
    *lines, last = path.read_text().split("\n")
    for line in lines:
        json.loads(line)
    assert not last or path.name == "log.jsonl"


CHECKS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": _check_lines,
    ".npy": _check_npy,
    ".parquet": _check_parquet,
    ".png": _check_image,
    ".tar": _check_tar,
    ".safetensors": _check_safetensors,
    ".onnx": _check_onnx,
    ".md": lambda path: path.read_text().rindex("\n"),
    ".html": lambda path: path.read_text().rindex("</html>"),
}


def copy_folder(source: Path, target: Path) -> None:
    """Make `target` a copy of `source`."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def mount(folder: Path, kilobytes: int) -> bool:
    """Mount a disk of this size at `folder`; False if mounting is not permitted."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def remount(folder: Path, option: str) -> None:
    """Remount a disk with another option: "ro", "rw" or a size."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def unmount(folder: Path) -> None:
    """Unmount a disk."""
    subprocess.run(["umount", "-l", str(folder)], check=True)
