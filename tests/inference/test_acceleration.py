"""The fast setting: as good as float32, chosen for the hardware, compiled only where that repays."""

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


def drift(found: Tensor, exact: Tensor) -> float:
    """Mean difference in units of the exact values' spread."""
    assert found.shape == exact.shape
    return float((found.float() - exact).abs().mean() / exact.std())


def build_on_meta(name: str) -> Backbone:
    spec = SPECS[name]
    with torch.device("meta"):
        return build(spec.config, num_classes=spec.num_classes, image_size=spec.image_size)


def test_bfloat16_is_picked_where_the_processor_multiplies_it() -> None:
    flags = Path("/proc/cpuinfo").read_text().split() if sys.platform == "linux" else []
    multiplies = {"amx_tile", "avx512_bf16"} & set(flags)
    assert pick_dtype(CPU) == (torch.bfloat16 if multiplies else torch.float32)
    assert Classifier(NANO, fast=True).dtype == pick_dtype(CPU)
    assert Classifier(NANO, fast=True, dtype="float16").dtype == torch.float16, (
        "a dtype of one's own is kept"
    )
    assert pick_dtype(torch.device("meta")) == torch.float32


@torch.inference_mode()
def test_folded_batch_norms_change_no_output() -> None:
    model = tiny("regnet")
    folded = copy.deepcopy(model)
    fold_batch_norm(folded, torch.float32)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = images(4)
    assert deviation(folded(x), model(x)) <= 1e-5
    assert deviation(folded.forward_features(x), model.forward_features(x)) <= 1e-5
    fold_batch_norm(folded, torch.float32)  # nothing is left to fold
    assert deviation(folded(x), model(x)) <= 1e-5


def test_a_prepared_model_is_for_inference_in_its_dtype() -> None:
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


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("name", [NANO, "regnety_nano_hashtags"])
def test_fast_predicts_what_float32_predicts_on_held_out_scenes(
    name: str, dtype: str | None
) -> None:
    pictures, things = render_scenes(320)
    options = {"fast": True, **({"dtype": dtype} if dtype else {})}
    exact, quick = (Classifier(name, **each)(pictures, top_k=1) for each in ({}, options))
    agreement = sum(a[0].index == b[0].index for a, b in zip(exact, quick)) / len(things)
    assert agreement >= 0.99
    right = [
        sum(row[0].label == thing for row, thing in zip(rows, things)) for rows in (exact, quick)
    ]
    assert abs(right[0] - right[1]) <= 0.02 * len(things)


def test_batch_norms_are_folded_before_the_dtype_is_narrowed(tmp_path: Path) -> None:
    spec, weights = make_spec("regnet", tmp_path)
    files = write_images(tmp_path / "pictures", 4)
    model = accelerate(swag_models.load_model(spec, weights=weights), torch.bfloat16)
    with torch.inference_mode():
        embedder = Embedder(spec, weights=weights, fast=True, dtype="bfloat16")
    expected = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head")
    }
    found = embedder.model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    exact = Embedder(spec, weights=weights)(files).vectors
    assert drift(embedder(files).vectors, exact) <= 0.02
    tensors = [pil_to_tensor(Image.open(file)) for file in files]  # which are resized alike
    both = [
        Embedder(spec, weights=weights, fast=fast, dtype="float32")(tensors).vectors
        for fast in (True, False)
    ]
    assert deviation(*both) <= 1e-5


@pytest.mark.parametrize("capability", ["default", None])
def test_pictures_are_resized_by_torch_where_it_has_vector_instructions_and_only_if_fast(
    capability: str | None,
) -> None:
    code = f"""
import torch
from swag_models.inference.predict import Embedder
quick, exact = (Embedder({NANO!r}, fast=fast).preprocess.vectorised for fast in (True, False))
print(quick, exact, torch.backends.cpu.get_cpu_capability().startswith("AVX"))
"""
    limit = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | limit,
        capture_output=True,
        text=True,
        check=True,
    )
    quick, exact, vectors = run.stdout.split()
    assert (quick, exact) == (vectors, "False")
    assert capability is None or vectors == "False"


@pytest.mark.parametrize("name", ["vit_b16", "regnety_16gf", "regnety_128gf_in1k", NANO])
def test_compiling_repays_from_some_amount_of_work_on_and_never_for_little(name: str) -> None:
    model = build_on_meta(name)
    seconds = [0, 0.01, 1, 10, 100, 1000, 1e4, HOURS]
    decisions = [compiling_pays_off(model, CPU, each) for each in seconds]
    assert decisions == sorted(decisions)
    assert not any(decisions[:4])
    assert not compiling_pays_off(model, torch.device("meta"), HOURS)


def test_the_larger_model_needs_more_work_before_compiling_repays() -> None:
    def least(name: str) -> float:
        model = build_on_meta(name)
        return next(
            (
                each
                for each in (10.0 * 1.1**step for step in range(150))
                if compiling_pays_off(model, CPU, each)
            ),
            HOURS,
        )

    for small, large in itertools.pairwise(("vit_b16", "vit_l16", "vit_h14")):
        assert least(small) <= least(large)
    assert least("regnety_16gf") <= least("regnety_128gf")


def test_what_compiling_saves_is_known_for_every_family_and_hardware() -> None:
    families = {type(build_on_meta(name)).__name__ for name in SPECS}
    for saved in acceleration.COMPILE_SAVINGS.values():
        assert set(saved) == families
        assert all(0 <= share < 1 for share in saved.values())


def test_few_pictures_are_not_compiled_for() -> None:
    code = f"""
import sys
from swag_models.inference.predict import Classifier
found = Classifier("{NANO}", fast=True, batch_size=2)({str(SCENES)!r}, top_k=1)
print(*[each[0].label for each in found], "torch._inductor.compile_fx" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*predict_labels(*sorted(SCENES.iterdir())), "False"]


@pytest.mark.slow
def test_a_compiled_model_equals_the_eager_one_whatever_the_batches_hold(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(encode_image(0)[:300])
    pictures: list[Any] = sorted(SCENES.iterdir())
    pictures[2:2] = [tmp_path / "missing.png"]  # within a batch
    pictures[4:4] = [tmp_path / "broken.png"] * 4  # all of a batch
    assert len(pictures) % 4 == 3  # the last batch is not full
    eager, compiled = (Embedder(NANO, batch_size=4, compile=choice) for choice in (False, True))
    expected, found = eager(pictures), compiled(pictures)
    assert found.names == expected.names
    assert found.skipped == expected.skipped
    assert deviation(found.vectors, expected.vectors) <= 1e-4
    for few in (pictures[:1], pictures[:7], pictures[2:8]):
        assert deviation(compiled(few).vectors, eager(few).vectors) <= 1e-4


@pytest.mark.slow
@pytest.mark.skipif(
    pick_dtype(CPU) == torch.float32,
    reason="compiling is only known to repay with bfloat16 instructions",
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_compiles_itself_half_way_goes_on_as_before(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        acceleration, "COMPILE_SECONDS_PER_BLOCK", 0
    )  # as if there were hours of work
    spec, weights = make_spec("regnet", tmp_path)
    files = write_images(tmp_path / "pictures", 19)
    expected = Embedder(spec, weights=weights, fast=True, compile=False, dtype=dtype)(files)
    embedder = Embedder(spec, weights=weights, fast=True, dtype=dtype, batch_size=4)
    found = embedder(files)
    assert found.names == expected.names
    assert drift(found.vectors, expected.vectors) <= (1e-5 if dtype == "float32" else 0.02)
    assert "torch._inductor.compile_fx" in sys.modules


def test_compile_without_a_compiler_is_one_line(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CXX"} | {
        "PATH": str(tmp_path)
    }
    command = make_command("classify", SCENES, "--model", NANO, "--compile")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    message = "swag-models: error: compile=True: torch.compile lacks what it needs for cpu; install g++ and"
    assert done.stderr.startswith(message)


def test_a_few_pictures_do_not_fill_up_a_compiled_batch(tmp_path: Path) -> None:
    spec, weights = make_spec("vit", tmp_path)
    files = write_images(tmp_path / "pictures", 5)
    embedder = Embedder(spec, weights=weights, batch_size=8)
    given: list[int] = []
    embedder._compiled = lambda x: (given.append(len(x)), embedder.forward(x))[1]  # type: ignore[func-returns-value]
    assert (len(embedder(files[:4]).names), given) == (4, [])
    assert (len(embedder(files).names), given) == (5, [8])


def test_the_compiler_is_the_one_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_compiler(CPU)
    assert not compiling_pays_off(build_on_meta("regnety_16gf"), CPU, HOURS)
    with pytest.raises(ConfigError, match=r"compile=True: torch\.compile lacks"):
        Classifier(NANO, compile=True)
    assert (
        Classifier(NANO, fast=True)(SCENES / "cup.jpg", top_k=1)[0][0].label
        == predict_labels(SCENES / "cup.jpg")[0]
    )
    (tmp_path / "my-c++").write_text("")
    (tmp_path / "my-c++").chmod(0o755)
    monkeypatch.setenv("CXX", "my-c++ -v")
    assert has_compiler(CPU)
