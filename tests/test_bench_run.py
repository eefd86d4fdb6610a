"""The commands of `make bench` and `make gpu`: rows are measured, stored at once and resumed."""

import subprocess
import sys
from pathlib import Path

import bench_support  # noqa: F401, extends sys.path
import gpu
import gpu_ways
import pytest
import results
import run
import torch
from row import Context
from rows import ROWS

from swag_models.runtime import count_cpus

ROOT = Path(__file__).parents[1]


def list_times(folder: Path) -> dict[str, dict[str, list[float]]]:
    (path,) = folder.glob("*.json")
    return {name: row.wall for name, row in results.read_results(path)[1].items()}


def test_a_quick_row_is_measured_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    row = "nearest neighbours, k = 20"
    arguments = ["--quick", "--output", str(tmp_path), "--only", row]
    assert run.main(arguments) == 0
    printed = capsys.readouterr()
    assert f"{row}: measured" in printed.err
    assert printed.out.strip() == str(tmp_path / "RESULTS.md")
    times = list_times(tmp_path)[row]
    assert {len(rounds) for rounds in times.values()} == {3}
    assert (
        {"swag_models", "scikit-learn"} <= times.keys() <= {"swag_models", "scikit-learn", "faiss"}
    )
    assert "| faiss |" in (tmp_path / "RESULTS.md").read_text()  # measured, or why not
    before = list_times(tmp_path)
    assert run.main(arguments) == 0
    assert "kept, measured before" in capsys.readouterr().err
    assert list_times(tmp_path) == before


def test_an_interrupted_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def run_row(row, rounds, options):
        if row.name == "load" and measured == ["list models", "loss"]:
            raise KeyboardInterrupt
        measured.append(row.name)
        failed = "no memory" if row.name == "loss" and measured.count("loss") == 1 else ""
        wall = {row.ours: [1.0] * rounds, "peer": [2.0] * rounds}
        return results.Result(row.text, row.group, row.ours, wall=wall, failed=failed)

    monkeypatch.setattr(run, "run_row", run_row)
    rows = [ROWS[name] for name in ("list models", "loss", "load")]
    options = run.make_parser().parse_args(["--rounds", "11"])
    machine = results.describe_machine()
    with pytest.raises(KeyboardInterrupt):
        run.run_rows(rows, results.ResultFile(tmp_path / "m.json", machine), options)
    assert list(list_times(tmp_path)) == ["list models", "loss"]
    assert run.run_rows(rows, results.ResultFile(tmp_path / "m.json", machine), options) == []
    # what had failed is measured again; slow rows have fewer rounds
    assert measured == ["list models", "loss", "loss", "load"]
    assert {name: len(row["peer"]) for name, row in list_times(tmp_path).items()} == {
        "list models": 11,
        "loss": 11,
        "load": 9,
    }


def test_a_process_that_ends_without_a_result_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.sys, "executable", "/bin/false")
    row = ROWS["loss"]
    result = run.run_row(row, 1, run.make_parser().parse_args([]))
    assert result.failed == "exit status 1"


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_a_row_in_this_process_has_both_clocks(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        result = run.measure_row(ROWS["decode 500 x 375"], Context(tmp_path, quick=True), 2)
    finally:
        torch.set_num_threads(threads)
    assert not result.failed
    assert result.wall.keys() == {"swag_models, fast", "Pillow", "torchvision decode_jpeg"}
    assert result.cpu.keys() == result.wall.keys()
    assert result.items == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "no such row"], "no row matches --only no such row"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_wrong_options_are_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(arguments)
    assert message in capsys.readouterr().err


def test_cpu_time_is_that_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    # several threads wait for each other on a busy machine, and waiting is CPU time
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run.count_threads("cpu") == 1
    assert run.count_threads("wall") == count_cpus()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run.count_threads("cpu") == run.count_threads("wall") == 3


def test_rows_are_listed(capsys: pytest.CaptureFixture) -> None:
    assert run.main(["--list", "--only", "vit_b16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "vit_b16, batch 8, fast: 8 images of 224 px" in lines
    assert all("vit_b16" in line for line in lines)


class TestGpu:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    def test_without_a_gpu_one_line_says_so(self, capsys: pytest.CaptureFixture) -> None:
        assert gpu.main([]) == 1
        assert capsys.readouterr().err == (
            "error: benchmarks/gpu.py needs CUDA, and torch finds no GPU\n"
        )

    def test_all_architectures_and_both_training_steps_are_rows(self) -> None:
        names = [row.name for row in gpu_ways.list_rows("cuda")]
        assert {name.split(", ")[1].removesuffix("_in1k") for name in names[:6]} == set(
            gpu_ways.TORCHVISION
        )
        assert names[6:8] == [
            "GPU, training step, vit_b16, batch 128",
            "GPU, training step, regnety_16gf, batch 128",
        ]
        assert all(row.flops > 0 for row in gpu_ways.list_rows("cuda")[:8])

    @pytest.mark.parametrize("kind", ["inference", "training"])
    def test_ways_compute_the_same_without_compiling(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "compile", lambda model, **_: model)
        group = f"GPU: {kind} in bfloat16"
        rows = [row for row in gpu_ways.list_rows("cpu") if row.group == group]
        for row in rows:
            result = gpu.measure_row(
                row, "cpu", start=lambda: float("inf"), rounds=2, min_seconds=0.001
            )
            assert not result.failed
            own = {label for label in row.prepare() if results.is_own(label)}
            assert result.wall.keys() == own
            # torchvision has no such small model
            assert list(result.missing) == ["torchvision, compiled"]
            assert all("TFLOP/s" in note for note in result.notes.values())
            assert "MFU" not in "".join(result.notes.values())  # the peak of a CPU is not known

    @pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
    def test_a_folder_becomes_the_same_features(self) -> None:
        (row,) = (row for row in gpu_ways.list_rows("cpu") if "embed" in row.name)
        ours, decoded = (make()() for make in row.prepare().values())
        assert ours.vectors.shape == decoded.shape
        # one is decoded at a fraction of its size
        similarity = torch.nn.functional.cosine_similarity(ours.vectors, decoded)
        assert similarity.min() > 0.98

    def test_processes_that_fail_or_take_too_long_are_stated(self, tmp_path: Path) -> None:
        row = gpu_ways.GpuRow("no such row", "Group", "work", "swag_models", dict, 1)
        child = gpu.Child(row, tmp_path / "fails", "cpu", 1)
        assert not child.wait_until_ready()
        child.process.wait()
        assert child.fail().failed == "StopIteration"
        child.close()
        child = gpu.Child(row, tmp_path / "slow", "cpu", 1)
        child.kill()
        assert not child.wait_until_ready()
        child.process.wait()
        assert child.fail().failed == gpu.LATE
        child.close()

    def test_missing_pytest_is_stated(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
        options = gpu.make_parser().parse_args(["--output", str(tmp_path)])
        assert gpu.measure_all([], "cpu", gpu.time.monotonic() + 10, options) == 1
        assert "GPU tests: failed: pytest is not installed" in capsys.readouterr().err
        assert list(list_times(tmp_path)) == ["GPU tests"]

    @pytest.mark.slow  # imports torch in another process
    def test_torch_alone_suffices_to_make_a_row(self) -> None:
        code = (
            "import sys\n"
            "for name in ('PIL', 'torchvision', 'numpy', 'safetensors', 'requests', 'jinja2', "
            "'huggingface_hub', 'filelock', 'tqdm', 'timm'):\n"
            "    sys.modules[name] = None\n"
            "sys.path[:0] = ['benchmarks']\n"
            "import gpu\n"
            "row = gpu.list_rows('cpu')[0]\n"
            "gpu.torch.compile = lambda model, **_: model\n"
            "result = gpu.measure_row(row, 'cpu', start=lambda: 1e9, rounds=1, min_seconds=1e-3)\n"
            "print(len(result.wall), *result.missing.values())"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == "3 torchvision is not installed", done.stderr
