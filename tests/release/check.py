"""Build the distributions and use the wheel in fresh environments; `make release-check`.

Each environment is made outside of the clone, used and deleted, because PyTorch takes up to 5.5 GB.
Which package index PyTorch comes from is pip's setting, or --torch-index for builds without CUDA.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LOWEST = "3.10"  # with the versions in tests/floor.txt, which have no wheels for newer ones
MAX_WHEEL = 20_000_000  # bytes
SMOKE = Path(__file__).with_name("smoke.py")


def main() -> int:
    """Run all checks; return 1 if one fails or no interpreter is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", nargs="*", default=PYTHONS, help="versions (default: all)")
    parser.add_argument("--torch-index", help="package index of torch and torchvision")
    parser.add_argument("--dist", type=Path, default=ROOT / "build" / "release")
    options = parser.parse_args()
    wheel = build(options.dist)
    rows = []
    for version in options.python:
        if (python := find_python(version)) is None:
            rows.append((version, "newest", "skipped: no such interpreter"))
            continue
        rows.append((version, "newest", try_wheel(python, wheel, options.torch_index, None)))
        if version == LOWEST:
            floor = ROOT / "tests" / "floor.txt"
            rows.append((version, "lowest", try_wheel(python, wheel, options.torch_index, floor)))
    print("\npython  dependencies  result")
    for version, dependencies, result in rows:
        print(f"{version:<7} {dependencies:<13} {result}")
    results = [result for *_, result in rows]
    failed = any(result.startswith("failed") for result in results)
    return int(failed or all(result.startswith("skipped") for result in results))


def build(folder: Path) -> Path:
    """Build the source distribution, and the wheel from it; check names, sizes and metadata."""
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    files = sorted(folder.iterdir())
    version = read_version()
    names = [f"swag_models-{version}-py3-none-any.whl", f"swag_models-{version}.tar.gz"]
    assert [file.name for file in files] == names, files
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, files))
    for file in files:
        print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB", flush=True)
    wheel = files[0]
    assert wheel.stat().st_size <= MAX_WHEEL, f"{wheel.name} is larger than {MAX_WHEEL / 1e6:g} MB"
    return wheel


def read_version() -> str:
    """Return the only statement of the version, `swag_models.__version__`."""
    text = (ROOT / "swag_models" / "__init__.py").read_text("utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(version)


def find_python(version: str) -> str | None:
    """Return the interpreter of a version: on PATH, or installed by pyenv or uv."""
    if "{}.{}".format(*sys.version_info) == version:
        return sys.executable
    folders = [
        *sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin"), reverse=True),
        *sorted((Path.home() / ".local/share/uv/python").glob(f"cpython-{version}.*/bin")),
    ]
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), *map(str, folders)]:
        python = shutil.which(f"python{version}", path=folder)
        if python is None:
            continue
        # pyenv's launchers are on PATH for versions that are not selected, too, and fail
        if subprocess.run([python, "-c", "import venv"], capture_output=True).returncode == 0:
            return python
    return None


def try_wheel(python: str, wheel: Path, torch_index: str | None, floor: Path | None) -> str:
    """Install the wheel into a fresh environment and use it there; return the result in words."""
    print(f"\n{wheel.name}, {python}, {'lowest' if floor else 'newest'} dependencies", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="release-check-") as folder:
        try:
            run(python, "-m", "venv", f"{folder}/venv")
            own_python = next(
                path
                for name in ("bin/python", "Scripts/python.exe")
                if (path := Path(folder, "venv", name)).exists()
            )
            install = [str(own_python), "-m", "pip", "install", "--quiet"]
            if floor:
                install += ["--constraint", str(floor)]
            if torch_index:
                run(*install, "torch", "torchvision", "--index-url", torch_index)
            run(*install, str(wheel))
            code = "from importlib.metadata import version; print('torch', version('torch'))"
            torch = run(str(own_python), "-c", code, capture=True).strip()
            work = Path(folder, "work")
            work.mkdir()
            run(str(own_python), "-I", str(SMOKE), cwd=work)
        except subprocess.CalledProcessError as error:
            return f"failed: {' '.join(map(str, error.cmd))[-200:]}"
    return f"ok with {torch}, {time.monotonic() - start:.0f} s"


def run(*command: str, cwd: Path | None = None, capture: bool = False) -> str:
    """Run a command without the settings of this clone; return its output if `capture`."""
    own = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "SWAG_MODELS_CACHE", "SWAG_MODELS_MIRROR")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"SWAG_MODELS_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, check=True, text=True, capture_output=capture
    )
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main())
