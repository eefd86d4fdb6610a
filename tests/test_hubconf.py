"""torch.hub on a clone. Tests use subprocesses, because torch.hub changes the import path."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import swag_models

ROOT = Path(__file__).parents[1]
REPOSITORY = "owner/swag_models:main"


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What torch.hub lists, loads and shows from its cache, which has this clone as if downloaded.

    One process does all of it, because importing torch takes seconds.
    """
    folder = tmp_path_factory.mktemp("torch_home")
    (folder / "hub").mkdir()
    (folder / "hub" / "owner_swag_models_main").symlink_to(ROOT)
    code = (
        "import json, torch\n"
        f"hub, name, options = torch.hub, {REPOSITORY!r}, {{'trust_repo': True}}\n"
        "quiet = {**options, 'verbose': False}\n"
        "used = {'listed': sorted(hub.list(name, **quiet))}\n"
        "used['help'] = hub.help(name, 'vit_b16_in1k', **options)\n"
        "model = hub.load(name, 'vit_nano_hashtags', **quiet)\n"
        "used['shape'] = list(model(torch.zeros(1, 3, 48, 48)).shape)\n"
        "used['training'] = model.training\n"
        "json.dump(used, open('used.json', 'w'))"
    )
    run(code, folder)
    return json.loads((folder / "used.json").read_text())


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


def test_hub_lists_only_the_models(used: dict[str, Any]) -> None:
    assert used["listed"] == sorted(swag_models.list_models())


def test_hub_loads_a_model_from_its_repository(used: dict[str, Any]) -> None:
    assert (used["shape"], used["training"]) == ([1, 65], False)


def test_hub_help_describes_a_model(used: dict[str, Any]) -> None:
    assert "fine-tuned end to end on ImageNet-1k" in used["help"]


def test_hub_loads_a_model_from_a_folder_beside_a_users_module_called_models(
    tmp_path: Path,
) -> None:
    (tmp_path / "models.py").write_text("mine = True")
    code = (
        "import models, torch\n"
        "options = {'source': 'local', 'pretrained': False}\n"
        f"model = torch.hub.load({str(ROOT)!r}, 'vit_nano_hashtags', **options)\n"
        "import models as again\n"
        "assert again.mine and again is models\n"
        "print(tuple(model(torch.zeros(1, 3, 48, 48)).shape))"
    )
    assert run(code, tmp_path) == "(1, 65)"
