"""Linear layers of a ViT in int8, by torch's oneDNN operator, beside bfloat16.

    python benchmarks/int8.py [--model vit_b16] [--batch 2] [--rounds 7]

A sketch, which is not part of the library: weights have a scale for each output channel, inputs one
for each batch, computed at run time. Both are uncompiled, have random weights, alternate on the
same batch, and use one thread; CPU time. Then the top-1 agreement with float32 of an included
model on generated scenes.
"""

import argparse
import copy
import io
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn

import swag_models
from studies.scenes.posts import split_held_out
from studies.scenes.scene import encode as encode_scene
from swag_models.inference.acceleration import accelerate
from swag_models.models.vit_block import ViTBlock

INCLUDED = "vit_nano_hashtags"
MAX_INT8, ZERO_POINT = 127, 128


class Int8Linear(nn.Module):
    """A linear layer that multiplies in int8 and returns the dtype of its input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scales = weight.abs().amax(1) / MAX_INT8
        quantised = (weight / self.scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(quantised, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = linear.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:  # (N, S, D) -> (N, S, E)
        scale = x.abs().amax().float() / MAX_INT8
        rounded = (x * (1 / scale).to(x.dtype)).round_().add_(ZERO_POINT).to(torch.uint8)
        inputs = (rounded.flatten(0, 1), float(scale), ZERO_POINT)
        weights = (self.packed, self.scales, self.zeros, self.bias)
        output = (1.0, 0, x.dtype, "none", [], "")
        product: Tensor = torch.ops.onednn.qlinear_pointwise(*inputs, *weights, *output)
        return product.unflatten(0, x.shape[:2])


def quantise(model: nn.Module) -> nn.Module:
    """Replace the linear layers of all blocks of a ViT."""
    for block in [module for module in model.modules() if isinstance(module, ViTBlock)]:
        for parent in block.children():
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Int8Linear(child))
    return model


def measure_cpu(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


@torch.inference_mode()
def measure(name: str, batch: int, rounds: int) -> None:
    exact = accelerate(swag_models.load_model(name, pretrained=False).eval(), torch.bfloat16)
    int8 = quantise(copy.deepcopy(exact))
    x = torch.randn(batch, 3, *exact.image_size).bfloat16()
    runs = {"bfloat16": lambda: exact(x), "int8": lambda: int8(x)}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(rounds):
        for way, run in runs.items():
            times[way].append(measure_cpu(run))
    medians, fastest = ([f(times[way]) for way in runs] for f in (statistics.median, min))
    print(f"{name}, batch {batch}, CPU s (fastest):", end=" ")
    print(", ".join(f"{w} {m:.3f} ({f:.3f})" for w, m, f in zip(runs, medians, fastest)), end="; ")
    print(f"{medians[0] / medians[1]:.2f} times as fast ({fastest[0] / fastest[1]:.2f})")


@torch.inference_mode()
def compare() -> None:
    preprocess = swag_models.load_preprocess(INCLUDED)
    _, posts = split_held_out(30, 30)
    images = [Image.open(io.BytesIO(encode_scene(post.scene, 64))) for post in posts[:960]]
    x = torch.stack([preprocess(image.convert("RGB")) for image in images])
    exact = swag_models.load_model(INCLUDED).eval()
    quantised = quantise(accelerate(copy.deepcopy(exact), torch.bfloat16))
    equal = exact(x).argmax(1) == quantised(x.bfloat16()).argmax(1)
    print(f"{INCLUDED}: {equal.float().mean():.2%} of {len(x)} images have the same top-1 class")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_b16")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    compare()
    measure(options.model, options.batch, options.rounds)


if __name__ == "__main__":
    main()
