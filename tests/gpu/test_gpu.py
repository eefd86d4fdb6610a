"""Inference, training and export on a CUDA device, skipped without one; run by `make gpu`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fetch_support import wait_until
from image_support import write_images
from runs import (
    REGNET,
    STATEFUL,
    compare,
    killed_at_exit,
    list_steps,
    make_arguments,
    make_digits,
    read_lines,
    run,
    start,
)
from tiny import deviation, images, load_tiny, tiny

import swag_models
from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.inference import Classifier, Embedder
from swag_models.models import FeaturePyramid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
FAMILIES = pytest.mark.parametrize("family", ["vit", "regnet"])
SHIPPED = pytest.mark.parametrize("name", ["vit_nano_hashtags", "regnety_nano_hashtags"])
SCENES = Path(__file__).parents[2] / "examples" / "scenes"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "train", 60)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "val", 25, first=60)


class TestModels:
    @FAMILIES
    def test_logits_and_gradients_equal_those_of_the_cpu(self, family: str) -> None:
        model, batch = tiny(family).double(), images().double()
        on_gpu = tiny(family).double().cuda()
        on_gpu.load_state_dict(model.state_dict())
        for module, x in ((model, batch), (on_gpu, batch.cuda())):
            module(x).square().sum().backward()
        assert deviation(on_gpu(batch.cuda()).cpu(), model(batch)) < 1e-8
        for name, parameter in model.named_parameters():
            gradient = on_gpu.get_parameter(name).grad
            assert gradient is not None
            assert parameter.grad is not None
            assert deviation(gradient.cpu(), parameter.grad) < 1e-6, name

    @SHIPPED
    def test_weights_are_loaded_to_the_device(self, name: str) -> None:
        model = swag_models.load_model(name, device="cuda")
        assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
        size = model.image_size
        batch = images(4, size)
        with torch.inference_mode():
            expected = swag_models.load_model(name)(batch)
            assert deviation(model(batch.cuda()).cpu(), expected) < 1e-2  # convolutions use TF32

    @FAMILIES
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_close_to_float32(self, family: str, dtype: torch.dtype) -> None:
        model, batch = load_tiny(family).cuda(), images(8).cuda()
        with torch.inference_mode():
            expected = model(batch)
            assert deviation(model.to(dtype)(batch.to(dtype)).float(), expected) < 0.2

    @FAMILIES
    def test_compiled_and_checkpointed_models_equal_eager(self, family: str) -> None:
        model, batch = tiny(family).double().cuda(), images().double().cuda()
        with torch.no_grad():
            assert deviation(torch.compile(model)(batch), model(batch)) < 1e-6
        expected = torch.autograd.grad(model(batch).sum(), list(model.parameters()))
        model.set_grad_checkpointing()
        gradients = torch.autograd.grad(model(batch).sum(), list(model.parameters()))
        for gradient, reference in zip(gradients, expected):
            torch.testing.assert_close(gradient, reference)

    @FAMILIES
    def test_a_pyramid_and_attention_work_on_the_device(self, family: str) -> None:
        model, batch = tiny(family).cuda(), images().cuda()
        levels = FeaturePyramid(model, 16).cuda()(batch)
        assert all(level.is_cuda for level in levels.values())
        assert all(feature.is_cuda for feature in model.forward_intermediates(batch)[1])

    @FAMILIES
    def test_a_model_on_the_device_is_exported(self, family: str, tmp_path: Path) -> None:
        from swag_models.export import export_model

        model = load_tiny(family).cuda()
        export_model(model, tmp_path / "model.pt2")
        assert (tmp_path / "model.pt2").exists()
        assert next(model.parameters()).is_cuda


class TestInference:
    @SHIPPED
    @pytest.mark.parametrize("fast", [False, True])
    def test_predictions_equal_those_of_the_cpu(self, name: str, fast: bool) -> None:
        paths = sorted(SCENES.glob("*.jpg"))
        expected = Classifier(name, device="cpu")(paths, top_k=1)
        predictions = Classifier(name, device="cuda", fast=fast)(paths, top_k=1)
        for row, reference in zip(predictions, expected):
            top, top_reference = row[0], reference[0]
            assert top.probability == pytest.approx(top_reference.probability, abs=0.05)
            # in bfloat16, two classes of nearly the same probability may change places
            assert top.label == top_reference.label or (fast and top.probability < 0.5)

    @SHIPPED
    def test_embeddings_equal_those_of_the_cpu(self, name: str, tmp_path: Path) -> None:
        files = write_images(tmp_path, 40)
        expected = Embedder(name, device="cpu")(files).vectors
        for fast, limit in ((False, 1e-4), (True, 1e-2)):
            vectors = Embedder(name, device="cuda", fast=fast)(files).vectors
            assert vectors.dtype == torch.float32
            assert torch.cosine_similarity(vectors, expected).min() > 1 - limit

    @SHIPPED
    def test_auto_is_the_gpu_and_a_model_in_memory_stays_where_it_is(self, name: str) -> None:
        path = SCENES / "house.jpg"
        assert Classifier(name).device == Embedder(name, device="auto").device
        assert Classifier(name).device.type == "cuda"
        model = swag_models.load_model(name)
        expected = Embedder(model)(path).vectors
        assert Embedder(model).device.type == "cpu"
        moved = Embedder(model, device="cuda")
        assert torch.cosine_similarity(moved(path).vectors, expected).min() > 1 - 1e-4
        assert not next(model.parameters()).is_cuda

    @SHIPPED
    def test_the_page_shows_saliency_of_a_model_on_the_gpu(self, name: str) -> None:
        from swag_models.app.service import classify_image, get_saliency

        path = SCENES / "house.jpg"
        analysis = classify_image(swag_models.get_spec(name), str(path), path.name)
        assert get_saliency(analysis, 0).max() > 0

    def test_the_embed_command_runs_on_the_device(self, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        write_images(folder, 12)
        output = tmp_path / "vectors.npy"
        arguments = ["embed", str(folder), "--model", "vit_nano_hashtags", "-o", str(output)]
        assert main([*arguments, "--device", "cuda", "--fast", "--quiet"]) == 0
        assert np.load(output).shape == (12, 96)

    def test_a_device_that_does_not_exist_is_one_error(self) -> None:
        with pytest.raises(ConfigError, match="device 'cuda:99' cannot be used"):
            swag_models.load_model("vit_nano_hashtags", device="cuda:99")


class TestTraining:
    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("arch", [(), REGNET], ids=["vit", "regnet"])
    def test_a_model_learns(
        self, precision: str, arch: tuple[str, ...], digits: Path, held_out: Path, tmp_path: Path
    ) -> None:
        settings = (*arch, f"engine.precision={precision}", "steps=150", "checkpoint.every=150")
        run(make_arguments(digits, tmp_path / "run", *settings, options=["--val", held_out]))
        losses = [line["loss"] for line in read_lines(tmp_path / "run")]
        assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])

    @pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
    def test_a_run_that_is_resumed_ends_in_the_same_weights(
        self, parallel: str, digits: Path, tmp_path: Path
    ) -> None:
        settings = (*STATEFUL, f"engine.parallel={parallel}")
        run(make_arguments(digits, tmp_path / "whole", *settings))
        arguments = make_arguments(digits, tmp_path / "parts", *settings)
        processes = start(arguments)
        with killed_at_exit(processes):
            wait_until(lambda: bool(list_steps(tmp_path / "parts")), 120)
        run(arguments)
        compare(tmp_path / "parts", tmp_path / "whole")

    def test_a_model_trained_on_the_gpu_is_evaluated_on_the_cpu(
        self, digits: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(make_arguments(digits, tmp_path / "run", options=["--val", held_out]))
        folder = next((tmp_path / "run").rglob("model.safetensors")).parent
        results = {}
        for device in ("cpu", "cuda"):
            options = ["--data", str(held_out), "-o", str(tmp_path / device), "--json", "--quiet"]
            assert main(["recipe", "evaluate", str(folder), *options, "--device", device]) == 0
            results[device] = json.loads(capsys.readouterr().out)
        assert results["cpu"].keys() == results["cuda"].keys()
