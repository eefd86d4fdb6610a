"""Exported files return what the model returns, for any batch size, and hold their metadata."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from image_support import predict_labels
from PIL import Image
from tiny import REGNET_SPEC, SMALL_REGNET, TINY_SPECS, VIT_SPEC, deviation, images, randomise, tiny
from torch import Tensor

import swag_models
from swag_models.errors import ConfigError, ExportError
from swag_models.export import OPSETS, export_model, read_metadata
from swag_models.models import RegNet, ViT, build, layers
from swag_models.spec import ImageSize

ROOT = Path(__file__).parents[2]
SCENES = sorted((ROOT / "examples" / "scenes").iterdir())
SUFFIXES = [".onnx", ".pt2"]
pytestmark = pytest.mark.usefixtures("one_thread")


def small(
    family: str, num_classes: int | None = 10, image_size: ImageSize = 64, **options: Any
) -> ViT | RegNet:
    """As `tiny`, but a RegNet of three blocks, because exporting takes a second per block."""
    if family == "vit":
        return tiny(family, num_classes, image_size, **options)
    return randomise(
        build(SMALL_REGNET, num_classes=num_classes, image_size=image_size, **options)
    ).eval()


def run(path: Path, batch: Tensor) -> Tensor:
    """Run an exported file as users do."""
    if path.suffix == ".pt2":
        loaded: Tensor = torch.export.load(path).module()(batch)
        return loaded
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": batch.numpy()})
    return torch.from_numpy(output)


@pytest.mark.parametrize(
    ("family", "suffix", "num_classes", "image_size"),
    [
        ("vit", ".onnx", 10, 64),
        pytest.param("vit", ".onnx", None, (64, 96), marks=pytest.mark.slow),
        ("vit", ".pt2", None, (96, 64)),
        ("regnet", ".onnx", 10, (33, 47)),
        pytest.param("regnet", ".onnx", None, 64, marks=pytest.mark.slow),
        pytest.param("regnet", ".pt2", 10, (64, 96), marks=pytest.mark.slow),
    ],
)
def test_a_file_returns_what_the_model_returns(
    family: str, suffix: str, num_classes: int | None, image_size: ImageSize, tmp_path: Path
) -> None:
    model = small(family, num_classes, image_size)
    path = tmp_path / f"model{suffix}"
    report = export_model(model, path, spec=TINY_SPECS[family])
    assert report.path == path
    assert report.size == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]
    batches = [images(count, image_size) for count in (1, 2, 5)]
    batches += [batches[0] * 0, batches[0] * 0 + 1, batches[1] * 1e4]
    with torch.inference_mode():
        for batch in batches:
            assert deviation(run(path, batch), model(batch)) < 1e-4
    metadata = read_metadata(path)
    assert (metadata.name, metadata.dtype) == (f"tiny_{family}", "float32")
    assert metadata.license == "cc-by-nc-4.0"
    assert metadata.preprocess.size == model.image_size
    assert metadata.input == "images"
    assert metadata.output == ("features" if num_classes is None else "logits")


@pytest.mark.parametrize(
    ("family", "suffix", "dtype", "tolerance"),
    [
        ("vit", ".pt2", "float16", 0.02),
        pytest.param("regnet", ".onnx", "float16", 0.02, marks=pytest.mark.slow),
        ("regnet", ".pt2", torch.bfloat16, 0.1),
    ],
)
def test_reduced_precision_takes_and_returns_float32(
    family: str, suffix: str, dtype: str | torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    model, path = small(family), tmp_path / f"model{suffix}"
    report = export_model(model, path, spec=TINY_SPECS[family], dtype=dtype)
    batch = images(3)
    output = run(path, batch)
    assert output.dtype == torch.float32
    assert 1e-4 < deviation(output, model(batch)) < tolerance
    assert report.mean_deviation < report.max_deviation < tolerance
    assert read_metadata(path).dtype == str(dtype).removeprefix("torch.")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packaged ViT in both formats, by suffix."""
    folder = tmp_path_factory.mktemp("shipped")
    return {
        suffix: export_model("vit_nano_hashtags", folder / f"nano{suffix}").path
        for suffix in SUFFIXES
    }


def test_each_runtime_reads_the_metadata(shipped: dict[str, Path]) -> None:
    strings = read_metadata(shipped[".onnx"]).to_strings()
    session = onnxruntime.InferenceSession(shipped[".onnx"])
    assert session.get_modelmeta().custom_metadata_map == strings
    assert not any(node.metadata_props for node in onnx.load(shipped[".onnx"]).graph.node), (
        "no metadata of the exporter"
    )
    assert [tensor.shape for tensor in session.get_inputs()] == [["batch", 3, 48, 48]]
    assert [(tensor.name, tensor.shape) for tensor in session.get_outputs()] == [
        ("logits", ["batch", 65])
    ]
    extra = dict.fromkeys(strings, "")
    torch.export.load(shipped[".pt2"], extra_files=extra)
    assert extra == strings
    metadata, spec = read_metadata(shipped[".pt2"]), swag_models.get_spec("vit_nano_hashtags")
    assert metadata.classes == spec.classes
    assert metadata.preprocess == replace(spec.preprocess, image_size=(48, 48))
    assert (metadata.license, metadata.license_url) == (spec.license, spec.license_url)
    assert metadata.library == f"swag_models {swag_models.__version__}"


def serve(model: Path, *images: Path) -> subprocess.CompletedProcess[str]:
    """Run the serving example where neither torch nor this library can be imported."""
    code = (
        "import runpy, sys; sys.modules |= dict.fromkeys(['torch', 'torchvision', 'swag_models']);"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(ROOT / "examples" / "serve_onnx.py"),
        str(model),
        *map(str, images),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_onnxruntime_pillow_and_numpy_are_enough_to_serve(shipped: dict[str, Path]) -> None:
    result = serve(shipped[".onnx"], *SCENES)
    assert (result.returncode, result.stderr) == (0, "")
    names = [line.split("\t")[1] for line in result.stdout.splitlines()]
    assert names == predict_labels(*SCENES)


@pytest.mark.parametrize("size", [(61, 47), (20, 90), (32, 32)])
def test_the_serving_example_preprocesses_as_the_library_does(
    shipped: dict[str, Path], size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8))
    image.save(tmp_path / "noise.png")
    monkeypatch.setattr(
        sys, "argv", ["serve_onnx.py", str(shipped[".onnx"]), str(tmp_path / "noise.png")]
    )
    prepared = runpy.run_path(str(ROOT / "examples" / "serve_onnx.py"))["images"]
    torch.testing.assert_close(
        torch.from_numpy(prepared)[0], swag_models.load_preprocess("vit_nano_hashtags")(image)
    )


@pytest.mark.slow
def test_onnxruntime_does_not_report_its_use(tmp_path: Path) -> None:
    code = "import swag_models.export, onnxruntime"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not list(tmp_path.rglob("*")), "an identifier of this machine, to report"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_path_of_this_machine_is_in_a_file(shipped: dict[str, Path], suffix: str) -> None:
    content = shipped[suffix].read_bytes()
    for folder in (ROOT, Path(torch.__file__).parent, Path.home(), shipped[suffix].parent):
        assert os.fsencode(folder) + b"/" not in content


@pytest.mark.parametrize(("family", "dtype"), [("vit", "bfloat16"), ("regnet", "float32")])
def test_a_pt2_can_be_moved_to_any_device(family: str, dtype: str, tmp_path: Path) -> None:
    export_model(small(family), tmp_path / "model.pt2", spec=TINY_SPECS[family], dtype=dtype)
    program = torch.export.load(tmp_path / "model.pt2")
    assert not [node for node in program.graph.nodes if "device" in node.kwargs]
    output = program.module().to("meta")(images(3).to("meta"))
    assert (output.device.type, output.shape) == ("meta", (3, 10))


def test_the_graph_has_plain_linear_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MIN_PRODUCTS", 0)
    with torch.inference_mode():
        export_model(tiny("vit"), tmp_path / "model.pt2", spec=VIT_SPEC)
    graph = torch.export.load(tmp_path / "model.pt2").graph
    operators = [str(node.target) for node in graph.nodes]
    assert operators.count("aten.conv2d.default") == 1
    assert operators.count("aten.linear.default") == 9
    assert operators.count("aten.scaled_dot_product_attention.default") == 2


@pytest.mark.slow
def test_onnx_is_written_for_the_newest_allowed_opset(tmp_path: Path) -> None:
    model, path = tiny("vit"), tmp_path / "model.onnx"
    export_model(model, path, spec=VIT_SPEC, opset=OPSETS[-1])
    assert [opset.version for opset in onnx.load(path).opset_import] == [OPSETS[-1]]
    batch = images(3)
    assert deviation(run(path, batch), model(batch)) < 1e-4


def test_a_loaded_model_is_not_changed(tmp_path: Path) -> None:
    model = small("regnet", drop_rate=0.5).to(torch.bfloat16).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_model(model, tmp_path / "model.pt2", spec=REGNET_SPEC)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    batch = images(2)
    output = run(tmp_path / "model.pt2", batch)
    assert not output.requires_grad
    assert deviation(output, model.float().eval()(batch)) < 1e-4


@pytest.mark.slow
def test_other_heads_and_channels_are_exported(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = tiny("vit", num_classes=1, in_chans=1, global_pool="avg")
    export_model(model, path, spec=VIT_SPEC)
    batch = images(5, in_chans=1)
    assert deviation(run(path, batch), model(batch)) < 1e-4
    assert read_metadata(path).classes is None
    report = export_model("vit_nano_hashtags", path, num_classes=7, image_size=(24, 40))
    assert report.max_deviation == 0  # a new head outputs only zeros
    assert read_metadata(path).classes is None
    assert run(path, images(2, (24, 40))).shape == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b16_in1k_linear", "regnety_16gf_in1k_linear"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_full_size_returns_what_the_model_returns(
    name: str, suffix: str, tmp_path: Path
) -> None:
    model = randomise(swag_models.load_model(name, pretrained=False))
    export_model(model, tmp_path / f"model{suffix}", spec=swag_models.get_spec(name))
    batch = images(4, 224)
    with torch.inference_mode():
        assert deviation(run(tmp_path / f"model{suffix}", batch), model(batch)) < 1e-4


def test_other_files_have_no_metadata(tmp_path: Path, shipped: dict[str, Path]) -> None:
    torch.save({}, tmp_path / "weights.pt2")
    other = onnx.load(shipped[".onnx"])
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    for name in ("weights.pt2", "other.onnx"):
        with pytest.raises(
            ExportError,
            match=f"{name} is damaged, or not from swag-models export: it lacks name, ",
        ):
            read_metadata(tmp_path / name)
    for suffix in SUFFIXES:
        (tmp_path / f"page{suffix}").write_text("<html>not found</html>")
        with pytest.raises(
            ExportError, match=f"page{suffix} is damaged, or not from swag-models export: "
        ):
            read_metadata(tmp_path / f"page{suffix}")
        with pytest.raises(ExportError, match=f"cannot read .*missing{suffix}: .*No such file"):
            read_metadata(tmp_path / f"missing{suffix}")
    with pytest.raises(ConfigError, match=r"invalid suffix '\.pth' of .*: allowed: \.onnx, \.pt2"):
        read_metadata(tmp_path / "model.pth")
