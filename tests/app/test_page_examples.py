"""The example images of the page: part of the wheel, and known to the included models."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from image_support import predict_labels
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "swag_models" / "app" / "examples").glob("*.jpg"))
BUILD = "import setuptools.build_meta, sys; setuptools.build_meta.build_wheel(sys.argv[1])"


def test_the_default_model_names_the_examples() -> None:
    assert len(EXAMPLES) == 10
    labels = predict_labels(*EXAMPLES, name="regnety_200mf_hashtags")
    assert sum(label == path.stem for label, path in zip(labels, EXAMPLES)) >= 9


@pytest.mark.slow  # tests/test_package_data.py compares the list of files, without building
def test_a_wheel_contains_the_page_with_its_examples(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "swag_models", source / "swag_models", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-c", BUILD, str(tmp_path)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        page = [name for name in names if name.startswith("swag_models/app/")]
        examples = [name for name in page if name.endswith(".jpg")]
        assert examples == [f"swag_models/app/examples/{path.name}" for path in EXAMPLES]
        assert sum(archive.getinfo(name).compress_size for name in examples) < 100_000
        for name in examples:
            with archive.open(name) as file, Image.open(file) as image:
                image.load()
                assert image.size == (160, 160)
    assert {"swag_models/app/style.css", "swag_models/app/components.html.jinja"} <= set(page)
