"""External models give the results of their libraries, and the content hash shows any change."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from benchmarks_support import WNIDS, save_tiny, write_image
from fake_hub import Hub
from image_support import make_pixels, run_command
from PIL import Image
from safetensors.torch import save
from tiny import randomise

from swag_models import load_model, publish
from swag_models.errors import ConfigError, FetchError, UnknownModelError
from swag_models.recipe.evaluation.models import ExternalModel, open_evaluated_model

pytestmark = pytest.mark.usefixtures("one_thread")

TIMM_NAME = "test_resnet.r160_in1k"
TORCHVISION_WEIGHTS = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1


def make_images(count: int = 3) -> list[Image.Image]:
    return [Image.fromarray(make_pixels(seed, 40, 50)) for seed in range(count)]


def stack_images(fit: Any) -> torch.Tensor:
    return torch.stack([fit(image) for image in make_images()])


@pytest.fixture
def shufflenet(caches: Path) -> torch.nn.Module:
    """A network of torchvision whose weights torch.hub finds in its cache."""
    network = randomise(torchvision.models.shufflenet_v2_x0_5()).eval()
    checkpoints = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    file_name = TORCHVISION_WEIGHTS.url.rsplit("/", 1)[1]
    torch.save(network.state_dict(), checkpoints / file_name)
    return network


def test_torchvision_logits_and_classes_are_its_own(shufflenet: torch.nn.Module) -> None:
    model = open_evaluated_model("torchvision:shufflenet_v2_x0_5@IMAGENET1K_V1")
    logits = model.classify(stack_images(model.fit))
    with torch.inference_mode():
        assert torch.equal(logits, shufflenet(stack_images(TORCHVISION_WEIGHTS.transforms())))
    assert (model.num_classes, model.synsets) == (1000, tuple(WNIDS))
    assert model.classes == tuple(TORCHVISION_WEIGHTS.meta["categories"])


def test_torchvision_features_are_the_input_of_the_last_layer() -> None:
    network = randomise(torchvision.models.resnet18(num_classes=7)).eval()
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    model = ExternalModel(
        "torchvision:resnet18", network, transform, None, torch.device("cpu"), torch.float32
    )
    inputs = stack_images(model.fit)
    pooled: list[torch.Tensor] = []
    network.avgpool.register_forward_hook(lambda *args: pooled.append(args[2].flatten(1)))
    features = model.embed(inputs)
    with torch.inference_mode():
        network(inputs)
        assert torch.equal(features, pooled[-1])
        assert torch.equal(model.classify(inputs), network(inputs))
    assert (features.shape, model.num_classes, model.synsets) == ((3, 512), 7, None)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_timm_features_are_those_before_its_head(name: str) -> None:
    network = randomise(timm.create_model(name)).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    model = ExternalModel(
        f"timm:{name}", network, transform, None, torch.device("cpu"), torch.float32
    )
    inputs = stack_images(model.fit)
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(inputs), pre_logits=True)
        assert torch.equal(model.embed(inputs), expected.flatten(1))
        assert torch.equal(model.classify(inputs), network(inputs))


@pytest.mark.parametrize("name", ["regnety_nano_hashtags", "vit_nano_hashtags"])
def test_swag_features_are_those_before_the_head(name: str) -> None:
    model = open_evaluated_model(name)
    inputs = stack_images(model.fit)
    head = [module for module in model.network.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.inference_mode():
        torch.testing.assert_close(head(model.embed(inputs)), model.classify(inputs))


def test_content_hash_depends_on_weights_dtype_and_preprocessing(tmp_path: Path) -> None:
    name = str(save_tiny(tmp_path / "model"))
    model = open_evaluated_model(name)
    assert open_evaluated_model(name).hash_content() == model.hash_content()
    hashes = {
        model.hash_content(),
        open_evaluated_model(name, dtype="bfloat16").hash_content(),
        open_evaluated_model(name, image_size=64).hash_content(),
    }
    for parameter in model.network.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        hashes.add(model.hash_content())
    assert len(hashes) == 3 + len(list(model.network.parameters()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_resnt", "did you mean"),
        ("torchvision:resnet19", "unknown torchvision model"),
    ],
)
def test_unknown_names_are_rejected_with_suggestions(name: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        open_evaluated_model(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "torchvision:resnet18@V7"},
            "invalid weights 'V7' for resnet18: allowed IMAGENET1K_V1",
        ),
        (
            {"name": "timm:test_resnet", "image_size": 64},
            "invalid image_size 64 for timm:test_resnet: allowed only for models of this library",
        ),
        ({"name": "timm:test_resnet", "device": "nowhere"}, "device 'nowhere' cannot be used here"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_evaluated_model(**options)


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", f"timm:{TIMM_NAME}"])
def test_failed_downloads_are_reported_in_one_line(
    name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # a port that no server listens on
    # Without this the client retries for a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = f"weights of {name} cannot be fetched: .*; check the network connection"
    with pytest.raises(FetchError, match=message) as caught:
        open_evaluated_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_timm_model_is_evaluated_as_without_this_library(hub: Hub, tmp_path: Path) -> None:
    network = randomise(timm.create_model("test_resnet")).eval()
    config = {
        "architecture": "test_resnet",
        "num_classes": 1000,
        "pretrained_cfg": dict(network.pretrained_cfg),
    }
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(network.state_dict()),
    }
    hub.put_repo(f"timm/{TIMM_NAME}", files)
    data = tmp_path / "data"
    paths = [write_image(data / WNIDS[index] / "0.png", index) for index in range(0, 1000, 100)]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    with torch.inference_mode():
        inputs = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
        logits = network(inputs)
    # on the CPU, as the model above: a GPU rounds differently
    options = ["--data", data, "-o", tmp_path, "--quiet", "--json", "--device", "cpu"]
    finished = run_command("recipe", "evaluate", f"timm:{TIMM_NAME}", *options)
    assert finished.returncode == 0, finished.stderr
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(tmp_path / f"timm-{TIMM_NAME}-folder.parquet").to_pylist()
    assert [row["predicted"] for row in rows] == logits.argmax(dim=1).tolist()
    probabilities = logits.softmax(dim=1).amax(dim=1).tolist()
    assert [row["probability"] for row in rows] == pytest.approx(probabilities, rel=1e-5)
    hits = sum(row["predicted"] in row["labels"] for row in rows)
    assert json.loads(finished.stdout)["top1"]["value"] == 100 * hits / 10


def test_the_content_hash_knows_token_merging(tmp_path: Path) -> None:
    """Cached features of a model are not those of its copy with merging."""
    name = "vit_nano_hashtags"
    hashes = {open_evaluated_model(name).hash_content()}
    for count in (0, 3, 6):
        folder = publish.save(load_model(name, merge_tokens=count), tmp_path / str(count))
        hashes.add(open_evaluated_model(folder).hash_content())
    assert len(hashes) == 3
