"""Use the installed package, and nothing but it, outside of the clone; run by check.py.

Standard library only. Runs in an empty folder, which it fills.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

import swag_models
from swag_models import inference, publish

PACKAGE = Path(swag_models.__file__).parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
NAMES = ("vit_nano_hashtags", "regnety_nano_hashtags")
IMAGES = sorted(str(path) for path in (PACKAGE / "app" / "examples").glob("*.jpg"))


def run(*arguments: str, code: int = 0) -> str:
    """Run the installed command; return what it printed, errors included."""
    command = [str(SCRIPTS / "swag-models"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == code, f"{command} ended with {done.returncode}: {text}"
    assert "Traceback" not in text, text
    return text


def check_installation() -> None:
    """The package is that of the wheel, complete and with all that it requires."""
    site = Path(sysconfig.get_path("purelib"))
    assert PACKAGE.is_relative_to(site), f"{PACKAGE} is not in {site}"
    installed = metadata.distribution("swag-models")
    assert installed.version == swag_models.__version__
    assert run("--version") == f"swag-models {installed.version}\n"
    licenses = {Path(str(file)).name for file in installed.files or () if "licenses" in file.parts}
    assert {"LICENSE", "NOTICE"} <= licenses, licenses
    assert not any(file.parts[0] in ("tests", "studies", "docs") for file in installed.files or ())
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True, stdout=subprocess.DEVNULL)


def check_commands() -> None:
    """The commands work on what the package brings, without a network."""
    assert len(run("list").splitlines()) == len(swag_models.list_models()) + 1
    assert json.loads(run("info", "vit_b16_in1k", "--json"))["license"] == "cc-by-nc-4.0"
    assert run("verify", *NAMES).count("ok\t") == len(NAMES)
    assert len(IMAGES) == 10
    lines = run("classify", *IMAGES, "--model", NAMES[0], "--json").splitlines()
    assert [json.loads(line)["image"] for line in lines] == IMAGES
    run("embed", *IMAGES, "--model", NAMES[1], "-o", "features.npy", "--quiet")
    run("convert", str(PACKAGE / "weights" / f"{NAMES[0]}.safetensors"), "x.pth", "--to", "timm")
    run("save", NAMES[0], "folder")
    assert "a bundle has no files for these models" in run("bundle", "*nano*", "-o", "x", code=2)
    assert (PACKAGE / "hub" / "licenses" / "cc-by-nc-4.0.txt").is_file()


def check_missing_extras() -> None:
    """What needs an extra says in one line how to install it."""
    for extra, arguments in {
        "app": ["app"],
        "export": ["export", NAMES[0], "model.onnx"],
        "embed": ["embed", IMAGES[0], "--model", NAMES[0], "-o", "x.parquet"],
    }.items():
        text = run(*arguments, code=2)
        assert f"pip install 'swag-models[{extra}]'" in text, text
        assert text.count("\n") == 1, text


def check_python() -> None:
    """Models are built, loaded, used, saved and loaded again."""
    torch.manual_seed(0)
    for name in NAMES:
        model = swag_models.load_model(name)
        images = torch.rand(2, 3, *swag_models.get_spec(name).preprocess.size)
        with torch.inference_mode():
            expected = model(images)
            folder = publish.save(model, Path("saved") / name)
            assert torch.equal(swag_models.load_model(str(folder))(images), expected)
        assert len(inference.Classifier(name)(IMAGES)) == len(IMAGES)
        assert len(inference.Embedder(name)(IMAGES).vectors) == len(IMAGES)
    large = swag_models.load_model("vit_b16_in1k", pretrained=False, device="meta")
    assert sum(parameter.numel() for parameter in large.parameters()) > 86e6


CHECKS: tuple[Callable[[], None], ...] = (
    check_installation,
    check_commands,
    check_missing_extras,
    check_python,
)

if __name__ == "__main__":
    for check in CHECKS:
        check()
        print(f"  ok  {(check.__doc__ or '').splitlines()[0]}", flush=True)
