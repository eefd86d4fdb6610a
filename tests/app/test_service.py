"""Models behind the page: downloads with progress, stop and resume; analyses of images."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_hub import Hub
from hub_support import REPO
from image_support import SCENES
from PIL import Image
from safetensors.torch import save_file
from server import Fault, Server
from tiny import VIT_SPEC, tiny

from swag_models.api import get_spec
from swag_models.app import _merge_tokens
from swag_models.app.components import render_facts
from swag_models.app.saliency import compute_saliency
from swag_models.app.service import (
    Download,
    classify_image,
    get_saliency,
    measure_time,
)
from swag_models.errors import ImageError
from swag_models.hub.fetch import find_weights
from swag_models.image_decoding import read_image
from swag_models.inference.predict import Classifier
from swag_models.spec import ModelSpec, Source

FROM_HUB = """
import sys
import time
from swag_models import get_spec
from swag_models.api import get_spec
from swag_models.app.saliency import compute_saliency
from swag_models.app.service import Download, classify_image, get_saliency
from swag_models.errors import ImageError
download = Download(get_spec(sys.argv[1]))
download.thread.join()
print(download.done, download.total, download.error)
"""


@pytest.fixture
def spec(server: Server, caches: Path, tmp_path: Path) -> ModelSpec:
    """A model whose weights are on the test server."""
    save_file(
        {str(i): x for i, x in enumerate(tiny("vit", image_size=1024).parameters())},
        tmp_path / "tiny.safetensors",
    )
    return replace(
        VIT_SPEC,
        sources=(Source(server.put("/tiny.safetensors", tmp_path / "tiny.safetensors"), "timm"),),
    )


def test_a_download_reports_progress_and_is_resumed_after_a_stop(
    spec: ModelSpec, server: Server
) -> None:
    server.faults["/tiny.safetensors"] = [Fault(hold=1 << 20)]
    size = server.files["/tiny.safetensors"].size
    assert size > 1 << 21
    download = Download(spec)
    while download.done < 1 << 20:
        assert download.thread.is_alive()
        download.thread.join(0.01)
    assert download.total == size
    download.stopping = True
    server.release.set()
    download.thread.join(30)
    assert find_weights(spec) is None
    assert download.error is None
    resumed = Download(spec)
    resumed.thread.join(30)
    assert find_weights(spec)
    assert (resumed.done, resumed.total, resumed.error) == (size, size, None)
    assert (server.list_start_bytes("/tiny.safetensors")[1] or 0) >= 1 << 20


def test_a_failed_download_keeps_the_reason(spec: ModelSpec, server: Server) -> None:
    server.faults["/tiny.safetensors"] = [Fault(status=404)]
    download = Download(spec)
    download.thread.join(30)
    assert "HTTP 404" in str(download.error)


@pytest.mark.parametrize("name", ["vit_nano_hashtags", "regnety_nano_hashtags"])
def test_an_analysis_keeps_only_what_the_model_sees(name: str, tmp_path: Path) -> None:
    spec = get_spec(name)
    path = tmp_path / "large.png"
    with Image.open(SCENES / "house.jpg") as image:
        image.resize((3000, 1200)).save(path)
    analysis = classify_image(spec, path, "large.png")
    (expected,) = Classifier(spec)(path)
    assert list(analysis.predictions) == expected
    pixels, view = analysis.get_input()
    height, width = spec.preprocess.size
    assert pixels.shape == (3, height, width)
    assert view.size == (512, 512)
    reader = Classifier(spec)
    x = reader.preprocess(read_image(path)).unsqueeze(0)  # (1, 3, H, W)
    maps = compute_saliency(reader.model, x, 1)
    assert np.array_equal(get_saliency(analysis, 1), maps)
    assert np.array_equal(get_saliency(analysis, 1), maps)  # from memory
    assert not np.array_equal(get_saliency(analysis, 0), maps)


def test_the_time_of_a_model_is_that_of_one_image() -> None:
    spec = get_spec("vit_nano_hashtags")
    analysis = classify_image(spec, SCENES / "house.jpg", "house.jpg")
    pixels, _ = analysis.get_input()
    classifier = Classifier(spec, progress=False)
    classifier(pixels)
    start = time.perf_counter()
    for _ in range(20):
        classifier(pixels)
    mean = (time.perf_counter() - start) / 20
    assert 0.02 * mean < measure_time(analysis) < 20 * mean  # in seconds


def test_an_analysis_that_was_released_says_so() -> None:
    analysis = classify_image(get_spec("vit_nano_hashtags"), SCENES / "house.jpg", "house.jpg")
    analysis.release()
    with pytest.raises(ImageError, match=r"was removed from memory .*; choose it again"):
        get_saliency(analysis, 0)


@pytest.mark.parametrize("variable", ["SWAG_MODELS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_no_request_is_sent(
    spec: ModelSpec, server: Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    download = Download(spec)
    download.thread.join(30)
    assert (
        f"{spec.name} is not on this machine, and SWAG_MODELS_OFFLINE or HF_HUB_OFFLINE turns off"
        in str(download.error)
    )
    assert server.requests == []


def test_a_download_from_the_hub_reports_progress_too(hub: Hub, folders: dict[str, Path]) -> None:
    hub.put_repo(REPO, {path.name: path.read_bytes() for path in folders["first"].iterdir()})
    process = subprocess.run(
        [sys.executable, "-c", FROM_HUB, f"hf-hub:{REPO}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    size = (folders["first"] / "model.safetensors").stat().st_size
    assert process.stdout == f"{size} {size} None\n"


def test_tokens_are_merged_as_the_spec_states() -> None:
    spec, image = get_spec("vit_nano_hashtags"), SCENES / "cup.jpg"
    merged = _merge_tokens(spec, 6)
    assert merged.merge_tokens == 6
    assert merged.gmacs < spec.gmacs
    assert "<dd>6 tokens in each block</dd>" in render_facts(merged, is_local=True)
    plain, other = (classify_image(each, image, "cup.jpg") for each in (spec, merged))
    assert plain.predictions[0].probability != other.predictions[0].probability
    maps = get_saliency(other, 3)
    assert maps.shape == get_saliency(plain, 3).shape == (3, 6, 6)
    assert len(np.unique(maps[0])) < 36  # of merged patches, equal
    assert _merge_tokens(spec, 0).merge_tokens is None
