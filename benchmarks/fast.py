"""Images per second of `fast=True`, compared with eager float32 and peers in their best setting.

    python benchmarks/fast.py [--arch vit_b16 regnety_16gf] [--batch 8] [--rounds 7] [--device cpu]
    [--few]

All have the same random weights and alternate on the same batch at 224 px. Peers: torchvision and
timm in the same dtype (bfloat16 where `fast` picks it), channels last for RegNets, compiled with
Inductor's freezing; OpenVINO with that precision as its hint, if it is installed. The peak is that
of a large matrix product of that dtype in the same run. `--few` times whole calls instead, from a
name to results, for a few images, where compiling could cost more than it saves.
"""

import argparse
import importlib.util
import statistics
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import torch._inductor.config
import torchvision
from PIL import Image
from throughput import PEERS, seconds
from torch import Tensor

import swag_models
from swag_models.checkpoint import write_state_dict
from swag_models.inference.acceleration import accelerate, compile_forward, pick_dtype
from swag_models.inference.predict import Classifier
from swag_models.layouts import translate_layout

FEW = (1, 8, 64)  # numbers of images


def make_runners(arch: str, x: Tensor, device: str) -> dict[str, Callable[[], Tensor]]:
    """What takes turns; each gives logits for the batch."""
    torch.manual_seed(0)
    name = f"{arch}_in1k_linear"
    ours = swag_models.load_model(name, pretrained=False, device=device)
    torch.nn.init.normal_(ours.get_classifier().weight, std=0.02)
    state = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    layout = torch.channels_last if arch.startswith("regnet") else torch.contiguous_format
    dtype = pick_dtype(torch.device(device))
    short = {torch.bfloat16: "bf16", torch.float32: "f32"}[dtype]
    half = x.to(dtype).contiguous(memory_format=layout)

    def make_ours() -> torch.nn.Module:
        model = swag_models.load_model(name, pretrained=False, device=device)
        model.load_state_dict(state)
        return accelerate(model, dtype)

    eager, compiled = make_ours(), make_ours()
    run = compile_forward(compiled.forward)
    runners: dict[str, Callable[[], Tensor]] = {
        "eager float32": lambda: ours(x),
        "fast, not compiled": lambda: eager(half),
        "fast": lambda: run(half),
    }
    tv_name, timm_name, _ = PEERS[arch]
    made = {
        "torchvision": getattr(torchvision.models, tv_name)(),
        "timm": timm.create_model(timm_name, num_classes=1000),
    }
    if importlib.util.find_spec("openvino") and device == "cpu":
        made["timm"].load_state_dict(translate_layout(state, "timm"))
        runners[f"OpenVINO {short}"] = make_openvino(made["timm"].eval(), x, short)
    for peer, model in made.items():
        model.load_state_dict(translate_layout(state, peer))
        peer_compiled = torch.compile(model.to(device, dtype, memory_format=layout).eval())
        runners[f"{peer} {short} compiled"] = partial(peer_compiled, half)
    return runners


def make_openvino(model: torch.nn.Module, x: Tensor, precision: str) -> Callable[[], Tensor]:
    import openvino

    with warnings.catch_warnings(action="ignore"):
        converted = openvino.convert_model(model, example_input=x)
    converted.reshape(x.shape)
    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    executable = openvino.Core().compile_model(converted, "CPU", hints)
    pixels = x.numpy()
    return lambda: torch.from_numpy(executable(pixels)[0])


def measure_peak(device: str) -> float:
    """TFLOP/s of a 4096-sided matrix product in the fast dtype; the best of ten."""
    a = torch.randn(4096, 4096, device=device).to(pick_dtype(torch.device(device)))
    times = [seconds(lambda: a @ a, device) for _ in range(10)]
    return 2 * 4096**3 / min(times) / 1e12


@torch.inference_mode()
def measure(arch: str, batch: int, rounds: int, device: str) -> None:
    x = torch.randn(batch, 3, 224, 224, device=device)
    peak = measure_peak(device)
    runners = make_runners(arch, x, device)
    reference = runners["eager float32"]()
    with torch._inductor.config.patch(freezing=device == "cpu"):
        first = {name: seconds(run, device) for name, run in runners.items()}
        times: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, run in runners.items():
                times[name].append(seconds(run, device))
        outputs = {name: run().float().to(reference) for name, run in runners.items()}
    gflops = 2 * swag_models.get_spec(f"{arch}_in1k_linear").gmacs
    base = statistics.median(times["eager float32"])
    print(f"\n### {arch}, batch {batch}, {device}; peak of a matrix product {peak:.2f} TFLOP/s\n")
    print(
        "| setting | images/s, median (min to max) | / eager float32 | share of peak | first call, s | deviation |"
    )
    print("|---|---|---|---|---|---|")
    for name, spent in times.items():
        rate = batch / statistics.median(spent)
        deviation = (outputs[name] - reference).abs().mean() / reference.std()
        span = f"{rate:.1f} ({batch / max(spent):.1f} to {batch / min(spent):.1f})"
        share = rate * gflops / 1e3 / peak
        print(
            f"| {name} | {span} | {base * rate / batch:.2f} | {share:.0%} | {first[name]:.1f} | {deviation:.2%} |",
            flush=True,
        )
    best = min(
        (name for name in times if "fast" not in name and "eager" not in name),
        key=lambda n: statistics.median(times[n]),
    )
    print(
        f"\nfast / best peer ({best}): {statistics.median(times[best]) / statistics.median(times['fast']):.2f}",
        flush=True,
    )


def measure_few(arch: str, rounds: int, device: str) -> None:
    print(
        "\n| architecture | images | eager float32, s | fast, s | eager / fast |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        model = swag_models.load_model(f"{arch}_in1k_linear", pretrained=False)
        write_state_dict(model.state_dict(), weights)
        pixels = np.random.default_rng(0).integers(0, 256, (max(FEW), 256, 256, 3), dtype=np.uint8)
        images = [Image.fromarray(array) for array in pixels]
        for count in FEW:
            times: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(rounds + 1):
                for fast, spent in times.items():

                    def call(fast: bool = fast, count: int = count) -> object:
                        classifier = Classifier(
                            f"{arch}_in1k_linear", weights=weights, fast=fast, device=device
                        )
                        return classifier(images[:count])

                    passed = seconds(call, device)
                    if turn:
                        spent.append(passed)
            eager, quick = statistics.median(times[False]), statistics.median(times[True])
            print(
                f"| {arch} | {count} | {eager:.2f} | {quick:.2f} | {eager / quick:.2f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", nargs="+", default=["vit_b16", "regnety_16gf"], choices=list(PEERS)
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--few", action="store_true")
    options = parser.parse_args()
    for arch in options.arch:
        if options.few:
            measure_few(arch, options.rounds, options.device)
        else:
            measure(arch, options.batch, options.rounds, options.device)


if __name__ == "__main__":
    main()
