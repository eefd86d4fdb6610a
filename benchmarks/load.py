"""Time and memory from a local file to a ready model, compared with the usual ways.

    python benchmarks/load.py [--arch vit_l16 vit_h14] [--rounds 5] [--readers]

Each way runs in its own process, alternating, on files with the published keys and shapes that are
in the page cache. Time runs from the end of the imports to a model in eval mode, and then to the
output for one 224-pixel image, when every weight has been read; memory is the process's peak. The
imports are torch and what the way itself needs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TORCHVISION = {"vit_b16": "vit_b_16", "vit_l16": "vit_l_16", "vit_h14": "vit_h_14"}
TIMM = {
    "vit_b16": "vit_base_patch16_224",
    "vit_l16": "vit_large_patch16_224",
    "vit_h14": "vit_huge_patch14_224",
}
USUAL = "usual: construct, torch.load, load_state_dict"
WAYS = {  # way -> the file it reads
    "swag_models, swag layout": "swag.torch",
    "swag_models, torchvision layout": "torchvision.pth",
    "swag_models, safetensors": "timm.safetensors",
    USUAL: "swag.torch",
    "torchvision": "torchvision.pth",
    "timm": "timm.safetensors",
}


READERS = {  # reading alone, without a model; every value is summed, so that mapped pages are read
    "read_state_dict": "swag.torch",
    "read_state_dict, pread": "swag.torch",
    "torch.load, weights_only, mmap": "swag.torch",
    "torch.load, weights_only": "swag.torch",
}


def write_files(arch: str, folder: Path) -> None:
    """The linear classifier of an architecture, random weights, in the three layouts."""
    import swag_models
    from swag_models.checkpoint import write_state_dict
    from swag_models.layouts import translate_layout

    state = swag_models.load_model(f"{arch}_in1k_linear", pretrained=False).state_dict()
    for name in set(WAYS.values()):
        write_state_dict(translate_layout(state, name.split(".")[0]), folder / name)


def run_reader(way: str, path: str) -> dict[str, float]:
    """Read once, in this process; seconds of its CPU time and MiB."""
    import torch

    from swag_models.checkpoint import read_state_dict

    torch.set_num_threads(1)
    imported, start = peak_mib(), time.process_time()
    if way.startswith("read_state_dict"):
        state = read_state_dict(path, backend="pread" if "pread" in way else "mmap")
    else:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap="mmap" in way)
    seconds = time.process_time() - start
    sum(float(tensor.sum()) for tensor in state.values())
    first = time.process_time() - start
    return {"seconds": seconds, "first": first, "imported": imported, "peak": peak_mib()}


def run_way(way: str, arch: str, path: str) -> dict[str, float]:
    """Load once, in this process; seconds and MiB."""
    import torch

    import swag_models
    from swag_models.models import build

    if way == "torchvision":
        import torchvision
    if way == "timm":
        import timm
    spec = swag_models.get_spec(f"{arch}_in1k_linear")
    imported = peak_mib()
    start, cpu = time.perf_counter(), time.process_time()
    if way.startswith("swag_models"):
        model = swag_models.load_model(spec.name, weights=path)
    elif way == "torchvision":
        model = getattr(torchvision.models, TORCHVISION[arch])()
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    elif way == "timm":
        model = timm.create_model(TIMM[arch], num_classes=1000, checkpoint_path=path)
    else:
        model = build(spec.config, num_classes=1000, image_size=224)
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model.eval()
    seconds, seconds_cpu = time.perf_counter() - start, time.process_time() - cpu
    with torch.inference_mode():
        model(torch.zeros(1, 3, 224, 224))
    return {
        "seconds": seconds,
        "seconds_cpu": seconds_cpu,
        "first": time.perf_counter() - start,
        "first_cpu": time.process_time() - cpu,
        "imported": imported,
        "peak": peak_mib(),
    }


def peak_mib() -> float:
    """The most memory this process has had resident, mapped files included, in MiB."""
    status = Path("/proc/self/status").read_text()
    return (
        int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
        / 1024
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=["vit_l16", "vit_h14"], choices=list(TIMM))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--readers", action="store_true", help="compare reading alone, by CPU time, with torch.load"
    )
    parser.add_argument("--one", nargs=3, metavar=("WAY", "ARCH", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, arch, path = options.one
        print(json.dumps(run_reader(way, path) if way in READERS else run_way(way, arch, path)))
        return
    ways = READERS if options.readers else WAYS
    for arch in options.arch:
        with tempfile.TemporaryDirectory() as folder:
            write_files(arch, Path(folder))
            results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for turn in range(
                options.rounds + 1
            ):  # the first warms the page cache and is not counted
                for way, name in ways.items():
                    command = [sys.executable, __file__, "--one", way, arch, f"{folder}/{name}"]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    if turn:
                        results[way].append(json.loads(done.stdout))
            size = (Path(folder) / "swag.torch").stat().st_size / 2**20
        usual = "torch.load, weights_only" if options.readers else USUAL
        report(arch, size, results, usual)


def report(
    arch: str, size: float, results: dict[str, list[dict[str, float]]], usual_way: str
) -> None:
    middle = {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for way, runs in results.items()
    }
    usual = middle[usual_way]["seconds"]
    print(f"\n### {arch}, file of {size:.0f} MiB\n")
    print(
        "| way | seconds, median (min to max) | usual / this | to a first output | peak MiB, imports | above / file |"
    )
    print("|---|---|---|---|---|---|")
    for way, runs in results.items():
        figures = middle[way]
        times = sorted(run["seconds"] for run in runs)
        above = figures["peak"] - figures["imported"]
        print(
            f"| {way} | {figures['seconds']:.3f} ({times[0]:.3f} to {times[-1]:.3f}) | {usual / figures['seconds']:.1f} "
            f"| {figures['first']:.2f} | {figures['peak']:.0f}, {figures['imported']:.0f} | {above / size:.2f} |"
        )


if __name__ == "__main__":
    main()
