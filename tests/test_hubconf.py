"""torch.hub on a clone. Tests use subprocesses, because torch.hub changes the import path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import swag_models

ROOT = Path(__file__).parents[1]
REPOSITORY = "owner/swag_models:main"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, with a torch.hub cache that contains this clone as if downloaded."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "owner_swag_models_main").symlink_to(ROOT)
    return tmp_path


def run(code: str, folder: Path) -> str:
    """Run a script in `folder`; return what it prints."""
    (folder / "script.py").write_text(code)
    environment = {**os.environ, "TORCH_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_hub_lists_only_the_models(folder: Path) -> None:
    listed = run(
        "import torch\n"
        f"print(*sorted(torch.hub.list({REPOSITORY!r}, trust_repo=True, verbose=False)))",
        folder,
    )
    assert listed.split() == sorted(swag_models.list_models())


def test_hub_loads_a_model_from_its_repository(folder: Path) -> None:
    code = (
        "import torch\n"
        "options = {'trust_repo': True, 'verbose': False}\n"
        f"model = torch.hub.load({REPOSITORY!r}, 'vit_nano_hashtags', **options)\n"
        "print(tuple(model(torch.zeros(1, 3, 48, 48)).shape), model.training)"
    )
    assert run(code, folder) == "(1, 65) False"


def test_hub_loads_a_model_from_a_folder_beside_a_users_module_called_models(folder: Path) -> None:
    (folder / "models.py").write_text("mine = True")
    code = (
        "import models, torch\n"
        "options = {'source': 'local', 'pretrained': False}\n"
        f"model = torch.hub.load({str(ROOT)!r}, 'vit_nano_hashtags', **options)\n"
        "import models as again\n"
        "assert again.mine and again is models\n"
        "print(tuple(model(torch.zeros(1, 3, 48, 48)).shape))"
    )
    assert run(code, folder) == "(1, 65)"


def test_hub_help_describes_a_model(folder: Path) -> None:
    shown = run(
        f"import torch; print(torch.hub.help({REPOSITORY!r}, 'vit_b16_in1k', trust_repo=True))",
        folder,
    )
    assert "fine-tuned end to end on ImageNet-1k" in shown
