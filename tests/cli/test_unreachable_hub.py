"""A Hub that cannot be reached is one error, before torch is imported, which takes seconds."""

import os
import subprocess
import sys
from pathlib import Path

IMAGE = Path("examples/scenes/cup.jpg").absolute()
COMMANDS = f"""
info hf-hub:me/model
classify {IMAGE} --model hf-hub:me/model
embed {IMAGE} --model hf-hub:me/model -o x.npy
nearest x.npy {IMAGE} --model hf-hub:me/model
save hf-hub:me/model folder
export hf-hub:me/model x.onnx
"""
SCRIPT = """
import sys
import swag_models
from swag_models.cli import main
try:
    swag_models.load_model("hf-hub:me/model")
except swag_models.SwagModelsError as error:
    assert "the Hub cannot be reached (" in str(error)
assert "torch" not in sys.modules
for line in sys.argv[1].strip().splitlines():
    assert main(line.split()) == 1, line
    assert "torch" not in sys.modules, line
"""


def test_the_hub_is_asked_before_torch_is_imported(tmp_path: Path) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:1",  # refuses connections
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.getcwd(),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, COMMANDS],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = process.stderr.splitlines()
    assert process.returncode == 0, process.stderr
    assert len(lines) == 6
    assert all("error: the Hub cannot be reached (" in line for line in lines)
