"""Eager float32 images per second of all six architectures, compared with torchvision and timm.

    python benchmarks/throughput.py [--arch vit_b16 ...] [--rounds 7] [--device cpu]

The three implementations have the same weights and alternate on the same batch, in their default
memory format and, for RegNets, also with channels-last weights and input. The ratio is that of the
medians, with the smallest and the largest of any round.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
import torchvision

import swag_models
from swag_models.layouts import translate_layout

PEERS = {  # architecture -> (torchvision name, timm name, images per batch)
    "vit_b16": ("vit_b_16", "vit_base_patch16_224", 8),
    "vit_l16": ("vit_l_16", "vit_large_patch16_224", 4),
    "vit_h14": ("vit_h_14", "vit_huge_patch14_224", 2),
    "regnety_16gf": ("regnet_y_16gf", "regnety_160", 8),
    "regnety_32gf": ("regnet_y_32gf", "regnety_320", 4),
    "regnety_128gf": ("regnet_y_128gf", "regnety_1280", 2),
}
LAYOUTS = {  # how each implementation is run -> memory format of its weights and input
    "default": torch.contiguous_format,
    "channels last": torch.channels_last,
}


def make_models(arch: str, device: str) -> dict[str, torch.nn.Module]:
    """The three implementations with one set of weights."""
    ours = swag_models.load_model(f"{arch}_in1k_linear", pretrained=False)
    tv_name, timm_name, _ = PEERS[arch]
    models = {
        "torchvision": getattr(torchvision.models, tv_name)(),
        "timm": timm.create_model(timm_name, num_classes=1000),
    }
    for layout, model in models.items():
        model.load_state_dict(translate_layout(ours.state_dict(), layout))
    return {
        name: model.to(device).eval() for name, model in {"swag_models": ours, **models}.items()
    }


def seconds(run: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(arch: str, rounds: int, device: str) -> None:
    models = make_models(arch, device)
    batch = PEERS[arch][2] * (1 if device == "cpu" else 16)
    images = torch.randn(batch, 3, 224, 224, device=device)
    for name in ("torchvision", "timm"):
        torch.testing.assert_close(
            models[name](images), models["swag_models"](images), rtol=1e-3, atol=1e-3
        )
    layouts = (
        list(LAYOUTS) if arch.startswith("regnet") else ["default"]
    )  # a ViT has one convolution only
    times: dict[tuple[str, str], list[float]] = {
        (layout, name): [] for layout in layouts for name in models
    }
    for turn in range(rounds + 1):  # the first is not counted
        for (layout, name), spent in times.items():
            model = models[name].to(memory_format=LAYOUTS[layout])
            given = images.contiguous(memory_format=LAYOUTS[layout])
            passed = seconds(lambda: model(given), device)  # noqa: B023, called at once
            if turn:
                spent.append(passed)
    for layout in layouts:
        rates = {name: batch / statistics.median(times[layout, name]) for name in models}
        best = max(("torchvision", "timm"), key=lambda name: rates[name])
        ratios = sorted(
            theirs / ours for ours, theirs in zip(times[layout, "swag_models"], times[layout, best])
        )
        cells = " | ".join(f"{rate:.2f}" for rate in rates.values())
        ratio = f"{rates['swag_models'] / rates[best]:.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {arch} | {batch} | {layout} | {cells} | {ratio} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print("| architecture | batch | layout | swag_models | torchvision | timm | ours / best peer |")
    print("|---|---|---|---|---|---|---|")
    for arch in options.arch:
        measure(arch, options.rounds, options.device)


if __name__ == "__main__":
    main()
