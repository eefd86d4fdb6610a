"""Rows and ways of `gpu.py`. On the CPU, small models take the place of the published ones."""

import atexit
import functools
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import Maker, Way

import swag_models
from swag_models.models import build
from swag_models.recipe.config import Objective, Optimizer
from swag_models.recipe.training.losses import compute_losses, make_targets
from swag_models.recipe.training.optimizer import make_optimizer

NUM_CLASSES = 1000
TORCHVISION = {
    "vit_b16": "vit_b_16",
    "vit_l16": "vit_l_16",
    "vit_h14": "vit_h_14",
    "regnety_16gf": "regnet_y_16gf",
    "regnety_32gf": "regnet_y_32gf",
    "regnety_128gf": "regnet_y_128gf",
}
# model -> images per batch, tokens merged in each block (docs/usage.md has their accuracy)
INFERENCE = {
    "vit_b16_in1k": (128, 45),
    "vit_l16_in1k": (64, 40),
    "vit_h14_in1k": (32, 40),
    "regnety_16gf_in1k": (128, 0),
    "regnety_32gf_in1k": (64, 0),
    "regnety_128gf_in1k": (32, 0),
}
TRAINING = {"vit_b16": 128, "regnety_16gf": 128}  # model -> images per step
EMBEDDING, JPEGS = "vit_b16", 1024
SMALL = {"vit_nano_hashtags": (4, 2), "regnety_nano_hashtags": (4, 0)}  # on the CPU


@dataclass(frozen=True)
class GpuRow:
    """One piece of work.

    Attributes:
        name: unique.
        group: heading of the table.
        text: the work of one call.
        ours: label of this library's way.
        prepare: returns the makers of all ways by label.
        items: images of one call.
        flops: of one image, to compute the MFU; 0 to leave it out.
    """

    name: str
    group: str
    text: str
    ours: str
    prepare: Callable[[], dict[str, Maker]]
    items: int
    flops: float = 0
    unit: str = "images"


def list_rows(device: str) -> list[GpuRow]:
    """The rows for a device: "cuda", or "cpu" for small models."""
    small = device == "cpu"
    rows = []
    for name, (batch, merged) in (SMALL if small else INFERENCE).items():
        spec = swag_models.get_spec(name)
        rows.append(
            GpuRow(
                f"GPU, {name}, batch {batch}",
                "GPU: inference in bfloat16",
                f"{batch} images of {spec.image_size} px",
                "swag_models, fast",
                functools.partial(prepare_inference, name, batch, merged, device),
                batch,
                2e9 * (spec.gmacs or 0),
            )
        )
    for name, batch in (dict.fromkeys(SMALL, 4) if small else TRAINING).items():
        spec = swag_models.get_spec(name)
        rows.append(
            GpuRow(
                f"GPU, training step, {name}, batch {batch}",
                "GPU: training in bfloat16",
                f"a step of AdamW with {batch} images of {spec.image_size} px",
                "swag_models, compiled",
                functools.partial(prepare_step, name, batch, device),
                batch,
                3 * 2e9 * (spec.gmacs or 0),  # a backward pass costs two forward passes
            )
        )
    name, count = (next(iter(SMALL)), 16) if small else (EMBEDDING, JPEGS)
    rows.append(
        GpuRow(
            f"GPU, embed, {name}",
            "GPU: images of a folder",
            f"{count} JPEGs of 500 px to features",
            "swag_models, fast",
            functools.partial(prepare_embed, name, count, device),
            count,
        )
    )
    return rows


def load_acceleration() -> Any:
    """The module of `fast=True`; its package needs Pillow, the module itself does not."""
    try:
        from swag_models.inference import acceleration
    except ImportError:
        name = "swag_models_acceleration"
        path = Path(swag_models.__file__).parent / "inference" / "acceleration.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec
        assert spec.loader
        acceleration = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(acceleration)
    return acceleration


def make_model(name: str, device: str, **options: Any) -> Any:
    """A model with random weights, in eval mode."""
    spec = swag_models.get_spec(name)
    with torch.device(device):
        model = build(spec.config, num_classes=NUM_CLASSES, image_size=spec.image_size, **options)
    return model.eval()


def make_torchvision(name: str, device: str) -> Any:
    import torchvision

    spec = swag_models.get_spec(name)
    if spec.arch not in TORCHVISION:
        raise ValueError(f"torchvision has no {spec.arch}")
    options = {"image_size": spec.image_size} if spec.arch.startswith("vit") else {}
    make = getattr(torchvision.models, TORCHVISION[spec.arch])
    with torch.device(device):
        return make(num_classes=NUM_CLASSES, **options)


def order_channels(name: str, tensor: Any) -> Any:
    """Channels last for images and weights of a RegNet."""
    if swag_models.get_spec(name).arch.startswith("regnet"):
        return tensor.to(memory_format=torch.channels_last)
    return tensor


def prepare_inference(name: str, batch: int, merged: int, device: str) -> dict[str, Maker]:
    acceleration = load_acceleration()
    size, dtype = swag_models.get_spec(name).image_size, torch.bfloat16
    images = order_channels(name, torch.randn(batch, 3, size, size, device=device, dtype=dtype))

    def make_fast(**options: Any) -> Way:
        model = acceleration.accelerate(make_model(name, device, **options), dtype)
        return functools.partial(acceleration.compile_forward(model.forward), images)

    def make_eager() -> Way:
        model = order_channels(name, make_model(name, device).to(dtype))
        return torch.inference_mode()(lambda: model(images))

    def make_peer() -> Way:
        model = order_channels(name, make_torchvision(name, device).to(dtype).eval())
        compiled = torch.compile(model, dynamic=False)
        return torch.no_grad()(lambda: compiled(images))

    makers = {"swag_models, fast": make_fast, "swag_models, eager": make_eager}
    if merged:
        label = f"swag_models, fast, merge_tokens={merged}"
        makers[label] = lambda: make_fast(merge_tokens=merged)
    makers["torchvision, compiled"] = make_peer
    return makers


def prepare_step(name: str, batch: int, device: str) -> dict[str, Maker]:
    size = swag_models.get_spec(name).image_size
    images = order_channels(name, torch.randn(batch, 3, size, size, device=device))
    labels = torch.randint(NUM_CLASSES, (batch,), device=device)
    classes = [[label] for label in labels.tolist()]
    targets = make_targets(classes, "softmax", NUM_CLASSES).to(device)

    def make_ours(compiles: bool) -> Way:
        model = order_channels(name, make_model(name, device)).train()
        optimizer = make_optimizer(model, Optimizer("adamw", lr=1e-4, weight_decay=0.05), 1e-4)
        forward = torch.compile(model) if compiles else model

        def compute(images: Any) -> Any:
            return compute_losses(Objective("softmax"), forward(images), targets).mean()

        return make_step(compute, optimizer, images, device)

    def make_peer() -> Way:
        model = order_channels(name, make_torchvision(name, device)).train()
        fused = device != "cpu" or None
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=fused)
        forward = torch.compile(model)

        def compute(images: Any) -> Any:
            return torch.nn.functional.cross_entropy(forward(images), labels)

        return make_step(compute, optimizer, images, device)

    return {
        "swag_models, compiled": lambda: make_ours(True),
        "swag_models, eager": lambda: make_ours(False),
        "torchvision, compiled": make_peer,
    }


def make_step(compute: Callable[[Any], Any], optimizer: Any, images: Any, device: str) -> Way:
    """A step with autocast to bfloat16; weights are float32."""

    def step() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = compute(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def prepare_embed(name: str, count: int, device: str) -> dict[str, Maker]:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    @functools.cache
    def list_paths() -> list[Path]:
        from embed import make_images

        return make_images(folder, count)

    @functools.cache
    def make_embedder() -> Any:
        from swag_models.inference import Embedder

        model = swag_models.load_model(name, pretrained=False, num_classes=None)
        return Embedder(model, fast=True, device=device)

    def make_ours() -> Way:
        embedder, paths = make_embedder(), list_paths()
        return lambda: embedder(paths)

    def make_gpu_decoding() -> Way:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        embedder, paths = make_embedder(), list_paths()
        dtype = next(embedder.model.parameters()).dtype

        def embed() -> Any:
            features = []
            for start in range(0, count, embedder.batch_size):
                files = [
                    read_file(str(path)) for path in paths[start : start + embedder.batch_size]
                ]
                decoded = decode_jpeg(files, ImageReadMode.RGB, device=device)
                fitted = [embedder.preprocess.fit(image) for image in decoded]
                inputs = embedder.preprocess.normalise(torch.stack(fitted)).to(dtype)
                features.append(embedder.model(order_channels(name, inputs)).float().cpu())
            return torch.cat(features)

        return torch.inference_mode()(embed)

    return {"swag_models, fast": make_ours, "swag_models, decoded by nvJPEG": make_gpu_decoding}
