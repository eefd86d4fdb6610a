"""The fast setting: close to float32, chosen for the hardware, compiled only if it saves time."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from image_support import (
    NANO,
    SCENES,
    encode_image,
    make_command,
    make_spec,
    predict_labels,
    render_scenes,
    write_images,
)
from PIL import Image
from tiny import deviation, images, tiny
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

import swag_models
from swag_models.api import SPECS
from swag_models.errors import ConfigError
from swag_models.inference import acceleration
from swag_models.inference.acceleration import (
    accelerate,
    compiling_pays_off,
    fold_batch_norm,
    has_compiler,
    pick_dtype,
)
from swag_models.inference.predict import Classifier, Embedder
from swag_models.models import Backbone, build

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
FAMILIES = pytest.mark.parametrize("family", ["vit", "regnet"])
HOURS = 1e6  # seconds


def drift(values: Tensor, exact: Tensor) -> float:
    """Mean absolute difference, in standard deviations of the exact values."""
    assert values.shape == exact.shape
    return float((values.float() - exact).abs().mean() / exact.std())


def build_on_meta(name: str) -> Backbone:
    spec = SPECS[name]
    with torch.device("meta"):
        return build(spec.config, num_classes=spec.num_classes, image_size=spec.image_size)


def test_bfloat16_is_picked_if_the_cpu_has_instructions_for_it() -> None:
    flags = Path("/proc/cpuinfo").read_text().split() if sys.platform == "linux" else []
    has_instructions = bool({"amx_tile", "avx512_bf16"} & set(flags))
    assert pick_dtype(CPU) == (torch.bfloat16 if has_instructions else torch.float32)
    assert Classifier(NANO, fast=True).dtype == pick_dtype(CPU)
    assert Classifier(NANO, fast=True, dtype="float16").dtype == torch.float16, (
        "a given dtype is kept"
    )
    assert pick_dtype(torch.device("meta")) == torch.float32


@torch.inference_mode()
def test_folding_batch_norms_keeps_the_outputs() -> None:
    model = tiny("regnet")
    folded = copy.deepcopy(model)
    fold_batch_norm(folded, torch.float32)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = images(4)
    assert deviation(folded(x), model(x)) <= 1e-5
    assert deviation(folded.forward_features(x), model.forward_features(x)) <= 1e-5
    fold_batch_norm(folded, torch.float32)  # folding again changes nothing
    assert deviation(folded(x), model(x)) <= 1e-5


def test_an_accelerated_model_is_for_inference_in_its_dtype() -> None:
    model = accelerate(tiny("regnet"), torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.get_submodule("s1.b1.conv2.conv").weight.is_contiguous(
        memory_format=torch.channels_last
    )
    model.train().eval()
    with torch.inference_mode():
        assert torch.isfinite(model(images(2).bfloat16())).all()


@FAMILIES
@torch.inference_mode()
def test_bfloat16_logits_of_random_weights_are_within_two_percent(family: str) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = tiny(family), images(8)
        exact = model(x)
        assert drift(accelerate(copy.deepcopy(model), torch.bfloat16)(x.bfloat16()), exact) <= 0.02
        assert drift(accelerate(copy.deepcopy(model), torch.float32)(x), exact) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vit_b16_in1k_linear", "regnety_16gf_in1k_linear", "vit_l16_in1k_linear"]
)
@torch.inference_mode()
def test_full_models_are_within_two_percent_too(name: str) -> None:
    model, x = swag_models.load_model(name, pretrained=False), images(4, 224)
    nn.init.normal_(model.get_classifier().weight, std=0.02)
    exact = model(x)
    assert drift(accelerate(model, torch.bfloat16)(x.bfloat16()), exact) <= 0.02


@pytest.mark.parametrize("dtype", [pytest.param(None, marks=pytest.mark.slow), "bfloat16"])
@pytest.mark.parametrize("name", [NANO, "regnety_nano_hashtags"])
def test_fast_predicts_what_float32_predicts_on_held_out_scenes(
    name: str, dtype: str | None
) -> None:
    scenes, things = render_scenes(960)
    options = {"fast": True, **({"dtype": dtype} if dtype else {})}
    exact, fast = (Classifier(name, **kwargs)(scenes, top_k=2) for kwargs in ({}, options))
    changed = [a for a, b in zip(exact, fast) if a[0].index != b[0].index]
    assert len(changed) <= 0.01 * len(things)
    # How many near-ties are decided otherwise depends on the kernels; nothing else may be.
    assert all(first.probability - second.probability < 0.01 for first, second in changed)
    hits = [
        sum(row[0].label == thing for row, thing in zip(rows, things)) for rows in (exact, fast)
    ]
    assert abs(hits[0] - hits[1]) <= 0.02 * len(things)


def test_batch_norms_are_folded_before_the_dtype_is_narrowed(tmp_path: Path) -> None:
    spec, weights = make_spec("regnet", tmp_path)
    files = write_images(tmp_path / "images", 4)
    model = accelerate(swag_models.load_model(spec, weights=weights), torch.bfloat16)
    with torch.inference_mode():
        embedder = Embedder(spec, weights=weights, fast=True, dtype="bfloat16")
    expected = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head")
    }
    weights_in_use = embedder.model.state_dict()
    assert set(weights_in_use) == set(expected)
    assert all(torch.equal(weights_in_use[name], tensor) for name, tensor in expected.items())
    exact = Embedder(spec, weights=weights)(files).vectors
    assert drift(embedder(files).vectors, exact) <= 0.02
    tensors = [
        pil_to_tensor(Image.open(file)) for file in files
    ]  # torch resizes tensors with and without `fast`
    vectors = [
        Embedder(spec, weights=weights, fast=fast, dtype="float32")(tensors).vectors
        for fast in (True, False)
    ]
    assert deviation(*vectors) <= 1e-5


@pytest.mark.parametrize("capability", ["default", None])
def test_fast_resizes_images_by_torch_if_it_has_vector_instructions(
    capability: str | None,
) -> None:
    code = f"""
import torch
from swag_models.inference.predict import Embedder
fast, exact = (Embedder({NANO!r}, fast=fast).preprocess.vectorised for fast in (True, False))
print(fast, exact, torch.backends.cpu.get_cpu_capability().startswith("AVX"))
"""
    variables = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    fast, exact, has_avx = process.stdout.split()
    assert (fast, exact) == (has_avx, "False")
    assert capability is None or has_avx == "False"


@pytest.mark.parametrize("name", ["vit_b16", "regnety_16gf", "regnety_128gf_in1k", NANO])
def test_compiling_pays_off_above_some_amount_of_work(name: str) -> None:
    model = build_on_meta(name)
    seconds = [0, 0.01, 1, 10, 100, 1000, 1e4, HOURS]
    decisions = [compiling_pays_off(model, CPU, amount) for amount in seconds]
    assert decisions == sorted(decisions)
    assert not any(decisions[:4])
    assert not compiling_pays_off(model, torch.device("meta"), HOURS)


def test_compiling_a_larger_model_needs_more_work_to_pay_off() -> None:
    def find_least_work(name: str) -> float:
        """Seconds of work from which compiling pays off."""
        model = build_on_meta(name)
        return next(
            (
                seconds
                for seconds in (10.0 * 1.1**step for step in range(150))
                if compiling_pays_off(model, CPU, seconds)
            ),
            HOURS,
        )

    for small, large in itertools.pairwise(("vit_b16", "vit_l16", "vit_h14")):
        assert find_least_work(small) <= find_least_work(large)
    assert find_least_work("regnety_16gf") <= find_least_work("regnety_128gf")


def test_compile_savings_are_known_for_every_family_and_hardware() -> None:
    families = {type(build_on_meta(name)).__name__ for name in SPECS}
    for savings in acceleration.COMPILE_SAVINGS.values():
        assert set(savings) == families
        assert all(0 <= share < 1 for share in savings.values())


@pytest.mark.slow
def test_few_images_do_not_cause_compilation() -> None:
    code = f"""
import sys
from swag_models.inference.predict import Classifier
predictions = Classifier("{NANO}", fast=True, batch_size=2)({str(SCENES)!r}, top_k=1)
print(*[row[0].label for row in predictions], "torch._inductor.compile_fx" in sys.modules)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == [*predict_labels(*sorted(SCENES.iterdir())), "False"]


@pytest.mark.slow
def test_a_compiled_model_equals_the_eager_one_for_all_batch_contents(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(encode_image(0)[:300])
    files: list[Any] = sorted(SCENES.iterdir())
    files[2:2] = [tmp_path / "missing.png"]  # within a batch
    files[4:4] = [tmp_path / "broken.png"] * 4  # a whole batch
    assert len(files) % 4 == 3  # the last batch is not full
    eager, compiled = (Embedder(NANO, batch_size=4, compile=choice) for choice in (False, True))
    expected, embeddings = eager(files), compiled(files)
    assert embeddings.names == expected.names
    assert embeddings.skipped == expected.skipped
    assert deviation(embeddings.vectors, expected.vectors) <= 1e-4
    for some in (files[:1], files[:7], files[2:8]):
        assert deviation(compiled(some).vectors, eager(some).vectors) <= 1e-4


@pytest.mark.slow
@pytest.mark.skipif(
    pick_dtype(CPU) == torch.float32,
    reason="without bfloat16 instructions, compiling never pays off",
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_is_compiled_during_the_run_gives_the_same_results(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "COMPILE_SECONDS_PER_BLOCK", 0)  # compiling always pays off
    spec, weights = make_spec("regnet", tmp_path)
    files = write_images(tmp_path / "images", 19)
    expected = Embedder(spec, weights=weights, fast=True, compile=False, dtype=dtype)(files)
    embedder = Embedder(spec, weights=weights, fast=True, dtype=dtype, batch_size=4)
    embeddings = embedder(files)
    assert embeddings.names == expected.names
    assert drift(embeddings.vectors, expected.vectors) <= (1e-5 if dtype == "float32" else 0.02)
    assert "torch._inductor.compile_fx" in sys.modules


def test_compile_without_a_compiler_is_an_error_of_one_line(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CXX"} | {
        "PATH": str(tmp_path)
    }
    command = make_command("classify", SCENES, "--model", NANO, "--compile", "--device", "cpu")
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert process.stderr.startswith(
        "swag-models: error: --compile is not possible on cpu, since torch.compile lacks a "
        "requirement; install g++ and"
    )


def test_a_batch_is_padded_for_compiled_code_only_if_more_than_half_full(tmp_path: Path) -> None:
    spec, weights = make_spec("vit", tmp_path)
    files = write_images(tmp_path / "images", 5)
    embedder = Embedder(spec, weights=weights, batch_size=8)
    batch_sizes: list[int] = []

    def run_compiled(x: Tensor) -> Tensor:
        batch_sizes.append(len(x))
        return embedder.forward(x)

    embedder._compiled = run_compiled
    assert (len(embedder(files[:4]).names), batch_sizes) == (4, [])
    assert (len(embedder(files).names), batch_sizes) == (5, [8])


def test_the_environment_chooses_the_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_compiler(CPU)
    assert not compiling_pays_off(build_on_meta("regnety_16gf"), CPU, HOURS)
    with pytest.raises(ConfigError, match=r"since torch\.compile lacks a requirement"):
        Classifier(NANO, compile=True)
    assert (
        Classifier(NANO, fast=True)(SCENES / "cup.jpg", top_k=1)[0][0].label
        == predict_labels(SCENES / "cup.jpg")[0]
    )
    (tmp_path / "my-c++").write_text("")
    (tmp_path / "my-c++").chmod(0o755)
    monkeypatch.setenv("CXX", "my-c++ -v")
    assert has_compiler(CPU)
