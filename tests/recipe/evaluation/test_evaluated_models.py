"""Peers give what they give by themselves, and the hash of a model's content tells any change."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from benchmarks_support import IDS, save_tiny, write_picture
from fake_hub import Hub
from image_support import make_pixels, run_command
from PIL import Image
from safetensors.torch import save
from tiny import randomise

from swag_models.errors import ConfigError, FetchError, UnknownModelError
from swag_models.recipe.evaluation.models import ExternalModel, open_evaluated_model

pytestmark = pytest.mark.usefixtures("one_thread")

TIMM = "test_resnet.r160_in1k"
WEIGHTS = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1


def make_images(count: int = 3) -> list[Image.Image]:
    return [Image.fromarray(make_pixels(seed, 40, 50)) for seed in range(count)]


@pytest.fixture
def cached(caches: Path) -> torch.nn.Module:
    """A network of torchvision, whose weights torch.hub finds on disk."""
    network = randomise(torchvision.models.shufflenet_v2_x0_5()).eval()
    checkpoints = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(network.state_dict(), checkpoints / WEIGHTS.url.rsplit("/", 1)[1])
    return network


def test_torchvisions_logits_and_classes_are_its_own(cached: torch.nn.Module) -> None:
    candidate = open_evaluated_model("torchvision:shufflenet_v2_x0_5@IMAGENET1K_V1")
    inputs = torch.stack([WEIGHTS.transforms()(image) for image in make_images()])
    ours = candidate.classify(torch.stack([candidate.fit(image) for image in make_images()]))
    with torch.inference_mode():
        assert torch.equal(ours, cached(inputs))
    assert (candidate.num_classes, candidate.synsets) == (1000, tuple(IDS))
    assert candidate.classes == tuple(WEIGHTS.meta["categories"])


def test_torchvisions_features_are_what_its_last_layer_gets() -> None:
    network = randomise(torchvision.models.resnet18(num_classes=7)).eval()
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    candidate = ExternalModel(
        "torchvision:resnet18", network, transform, None, torch.device("cpu"), torch.float32
    )
    inputs = torch.stack([candidate.fit(image) for image in make_images()])
    pooled: list[torch.Tensor] = []
    network.avgpool.register_forward_hook(lambda *given: pooled.append(given[2].flatten(1)))
    features = candidate.embed(inputs)
    with torch.inference_mode():
        network(inputs)
        assert torch.equal(features, pooled[-1])
        assert torch.equal(candidate.classify(inputs), network(inputs))
    assert (features.shape, candidate.num_classes, candidate.synsets) == ((3, 512), 7, None)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_timms_features_are_those_before_its_head(name: str) -> None:
    network = randomise(timm.create_model(name)).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    candidate = ExternalModel(
        f"timm:{name}", network, transform, None, torch.device("cpu"), torch.float32
    )
    inputs = torch.stack([candidate.fit(image) for image in make_images()])
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(inputs), pre_logits=True)
        assert torch.equal(candidate.embed(inputs), expected.flatten(1))
        assert torch.equal(candidate.classify(inputs), network(inputs))


@pytest.mark.parametrize("name", ["regnety_nano_hashtags", "vit_nano_hashtags"])
def test_our_features_are_those_before_the_head(name: str) -> None:
    candidate = open_evaluated_model(name)
    inputs = torch.stack([candidate.fit(image) for image in make_images()])
    head = [
        module for module in candidate.network.modules() if isinstance(module, torch.nn.Linear)
    ][-1]
    with torch.inference_mode():
        torch.testing.assert_close(head(candidate.embed(inputs)), candidate.classify(inputs))


def test_a_models_hash_tells_any_weight_kind_and_preprocessing(tmp_path: Path) -> None:
    model = str(save_tiny(tmp_path / "model"))
    first = open_evaluated_model(model)
    before = first.hash_content()
    assert open_evaluated_model(model).hash_content() == before
    others = {
        before,
        open_evaluated_model(model, dtype="bfloat16").hash_content(),
        open_evaluated_model(model, image_size=64).hash_content(),
    }
    for parameter in first.network.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        others.add(first.hash_content())
    assert len(others) == 3 + len(list(first.network.parameters()))


def test_what_cannot_be_opened_is_said() -> None:
    for name, message in (
        ("timm:test_resnt", "did you mean"),
        ("torchvision:resnet19", "unknown torchvision model"),
    ):
        with pytest.raises(UnknownModelError, match=message):
            open_evaluated_model(name)
    for options, message in (
        ({"name": "torchvision:resnet18@V7"}, "has no weights 'V7'; allowed: IMAGENET1K_V1"),
        ({"name": "timm:test_resnet", "image_size": 64}, "image_size goes with our own models"),
        ({"name": "timm:test_resnet", "device": "nowhere"}, "device 'nowhere' cannot be used here"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_evaluated_model(**options)


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", f"timm:{TIMM}"])
def test_weights_that_do_not_come_are_told_in_one_line(
    name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # without it the client tries for a minute
    with pytest.raises(
        FetchError, match=f"weights of {name} cannot be fetched: .*; try again with a network"
    ) as caught:
        open_evaluated_model(name)
    assert "\n" not in str(caught.value)


def test_timm_is_evaluated_as_by_hand(hub: Hub, tmp_path: Path) -> None:
    network = randomise(timm.create_model("test_resnet")).eval()
    config = {
        "architecture": "test_resnet",
        "num_classes": 1000,
        "pretrained_cfg": dict(network.pretrained_cfg),
    }
    hub.put_repo(
        f"timm/{TIMM}",
        {
            "config.json": json.dumps(config).encode(),
            "model.safetensors": save(network.state_dict()),
        },
    )
    paths = [
        write_picture(tmp_path / "data" / IDS[index] / "0.png", index)
        for index in range(0, 1000, 100)
    ]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    with torch.inference_mode():
        logits = network(
            torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
        )
    ran = run_command(
        "recipe",
        "evaluate",
        f"timm:{TIMM}",
        "--data",
        tmp_path / "data",
        "-o",
        tmp_path,
        "--quiet",
        "--json",
    )
    assert ran.returncode == 0, ran.stderr
    rows = (
        pytest.importorskip("pyarrow.parquet")
        .read_table(tmp_path / f"timm-{TIMM}-folder.parquet")
        .to_pylist()
    )
    assert [row["predicted"] for row in rows] == logits.argmax(dim=1).tolist()
    assert [row["probability"] for row in rows] == pytest.approx(
        logits.softmax(dim=1).amax(dim=1).tolist(), rel=1e-5
    )
    assert (
        json.loads(ran.stdout)["top1"]["value"]
        == 100 * sum(row["predicted"] in row["labels"] for row in rows) / 10
    )
