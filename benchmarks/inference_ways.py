"""Ways to run a model, to load it, and to make its input, of this library and its peers."""

import copy
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import Cost, Maker, Way
from row import Context

FOLDER = Path(__file__).parent
OURS = "swag_models"
MERGED = 40  # tokens; docs/usage.md has the published accuracy


def prepare_eager(context: Context, batch: int, *, arch: str) -> dict[str, Maker]:
    """Eager float32 with equal weights; transformers has random ones."""
    import torch
    from throughput import make_models

    models = make_models(arch, "cpu")
    images = torch.randn(batch, 3, 224, 224)
    count = sum(weight.numel() for weight in models[OURS].parameters())
    makers = {label: functools.partial(run_model, model, images) for label, model in models.items()}
    if arch.startswith("regnet"):
        makers["timm, channels last"] = lambda: run_channels_last(models["timm"], images)
    makers["transformers"] = lambda: run_model(make_transformers_model(arch, count), images)
    return makers


def run_model(model: Any, images: Any) -> Way:
    import torch

    return torch.inference_mode()(lambda: model(images))


def run_channels_last(model: Any, images: Any) -> Way:
    import torch

    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return run_model(channels_last, images.contiguous(memory_format=torch.channels_last))


def make_transformers_model(arch: str, count: int) -> Any:
    """The same architecture of transformers, with random weights.

    Args:
        arch: name of the architecture.
        count: number of parameters, which is checked.
    """
    import transformers

    import swag_models

    config = swag_models.get_spec(arch).config
    if arch.startswith("vit"):
        model = transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.num_heads,
                intermediate_size=config.mlp_width,
                patch_size=config.patch_size,
                image_size=224,
                num_labels=1000,
                layer_norm_eps=1e-6,
            )
        )
    else:
        model = transformers.RegNetForImageClassification(
            transformers.RegNetConfig(
                layer_type="y",
                embedding_size=config.stem_width,
                hidden_sizes=[width for width, _ in config.stages],
                depths=[depth for _, depth in config.stages],
                groups_width=config.group_width,
                num_labels=1000,
            )
        )
    found = sum(weight.numel() for weight in model.parameters())
    if found != count:
        raise ValueError(f"transformers' model has {found:,} parameters instead of {count:,}")
    return model.eval()


def prepare_fast(context: Context, batch: int, *, arch: str) -> dict[str, Maker]:
    """`fast=True` and peers in their best setting: the dtype that `fast` picks, compiled."""
    import torch
    import torch._inductor.config
    from fast import make_runners

    import swag_models
    from swag_models.inference.acceleration import compiling_pays_off

    torch._inductor.config.freezing = True  # weights become constants, for the peers too
    images = torch.randn(batch, 3, 224, 224)
    runners = make_runners(arch, images, "cpu")
    # as Classifier decides for a large number of images
    model = swag_models.load_model(arch, pretrained=False)
    compiles = compiling_pays_off(model, torch.device("cpu"), seconds=3600)
    ours = runners["fast" if compiles else "fast, not compiled"]
    makers = {"swag_models, fast": functools.partial(in_inference_mode, ours)}
    for label, run in runners.items():
        if "fast" not in label and "eager" not in label:
            makers[label] = functools.partial(in_inference_mode, run)
    if not any("OpenVINO" in label for label in makers):
        makers["OpenVINO"] = lambda: __import__("openvino")
    makers["timm in onnxruntime"] = lambda: run_timm_onnx(arch, images, context.folder)
    return makers


def in_inference_mode(run: Callable[[], object]) -> Way:
    import torch

    return torch.inference_mode()(run)


def prepare_merged(context: Context, batch: int, *, dtype: str, compiled: bool) -> dict[str, Maker]:
    """vit_l16 at 512 px with and without token merging, and timm's model."""
    import timm
    import torch

    import swag_models
    from swag_models.inference.acceleration import accelerate

    size = 128 if context.quick else 512
    images = torch.randn(batch, 3, size, size, dtype=getattr(torch, dtype))

    def run(model: torch.nn.Module) -> Way:
        return run_model(torch.compile(model) if compiled else model, images)

    def make_ours(count: int) -> Way:
        model = swag_models.load_model(
            "vit_l16_in1k", pretrained=False, image_size=size, merge_tokens=count
        )
        return run(accelerate(model, images.dtype))

    def make_timm() -> Way:
        model = timm.create_model("vit_large_patch16_384", img_size=size, num_classes=1000)
        return run(model.eval().to(images.dtype))

    return {
        f"swag_models, merge_tokens={MERGED}": lambda: make_ours(MERGED),
        OURS: lambda: make_ours(0),
        "timm": make_timm,
    }


def run_timm_onnx(arch: str, images: Any, folder: Path) -> Way:
    """timm's model, exported by torch.onnx."""
    import timm
    import torch
    from throughput import PEERS

    model = timm.create_model(PEERS[arch][1], num_classes=1000).eval()
    path = folder / "timm.onnx"
    torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
    return run_onnx(path, images)


def run_onnx(path: Path, images: Any) -> Way:
    """An ONNX file in onnxruntime, with as many threads as torch has."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, inputs)


def prepare_onnx(context: Context, batch: int, *, arch: str) -> dict[str, Maker]:
    """Exported float32 ONNX in onnxruntime, beside timm's and the eager models."""
    import torch
    from throughput import make_models

    import swag_models
    from swag_models import export

    images = torch.randn(batch, 3, 224, 224)
    path = context.folder / "ours.onnx"

    def make_ours() -> Way:
        name = f"{arch}_in1k_linear"
        model = swag_models.load_model(name, pretrained=False)
        export.export_model(model, path, spec=swag_models.get_spec(name))
        return run_onnx(path, images)

    return {
        "swag_models, ONNX": make_ours,
        "timm in onnxruntime": lambda: run_timm_onnx(arch, images, context.folder),
        "timm, eager": lambda: run_model(make_models(arch, "cpu")["timm"], images),
    }


def prepare_load(context: Context, _: int, *, key: str) -> dict[str, Maker]:
    """From a file to a model (key "seconds"), or to its first output ("first")."""
    from load import USUAL, WAYS, write_files

    arch = "vit_b16" if context.quick else "vit_l16"
    write_files(arch, context.folder)
    labels = ["swag_models, swag layout", USUAL, "torchvision", "timm"]

    def load(label: str) -> Cost:
        path = context.folder / WAYS[label]
        command = [sys.executable, str(FOLDER / "load.py"), "--one", label, arch, str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures = json.loads(done.stdout)
        return Cost(figures[key], figures[f"{key}_cpu"])

    return {label: lambda label=label: functools.partial(load, label) for label in labels}


def prepare_startup(context: Context, _: int) -> dict[str, Maker]:
    from startup import COMMANDS

    labels = {
        "swag_models": "import swag_models; list_models()",
        "timm": "import timm; timm.list_models()",
    }
    run = functools.partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)

    def start(name: str) -> Cost:
        wall, before = time.perf_counter(), os.times()
        run(COMMANDS[name])
        after = os.times()
        cpu = after.children_user + after.children_system
        return Cost(time.perf_counter() - wall, cpu - before.children_user - before.children_system)

    return {
        label: lambda name=name: functools.partial(start, name) for label, name in labels.items()
    }


def prepare_decode(context: Context, _: int, *, size: tuple[int, int]) -> dict[str, Maker]:
    """One thread, from the bytes of a JPEG to the model's input."""
    import torch
    from decode import REFERENCE, list_ways
    from embed import make_images

    from swag_models.spec import Preprocess

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        content = make_images(Path(folder), 1, *size)[0].read_bytes()
    ways = list_ways(Preprocess(image_size=224))
    labels = {
        "swag_models, fast": "scaled, torch (fast)",
        "Pillow": REFERENCE,
        "torchvision decode_jpeg": "torchvision decode_jpeg",
    }
    return {
        label: lambda way=way: functools.partial(ways[way], content)
        for label, way in labels.items()
    }
