"""Download the packages of the drawings by name, with npm and apt-get, into a cache folder."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.drawings.sources import CLIP_ART_FOLDER, CLIP_ART_PACKAGE, NpmPackage
from swag_models.atomic import disk_errors, temporary_folder
from swag_models.errors import ConfigError, FetchError
from swag_models.hub.download import hash_file

ROOT = Path("/")
TIME_LIMIT = 600  # seconds for one download


def fetch_npm(package: NpmPackage, cache: Path) -> Path:
    """Return the file of a package; it is downloaded unless the cache has it.

    Args:
        package: name, version and hash.
        cache: folder of downloaded files; created if missing.

    Raises:
        ConfigError: npm is not installed.
        FetchError: the download failed, or the file is not the expected one.
    """
    path, spec = cache / package.file_name, f"{package.name}@{package.version}"
    if path.is_file() and hash_file(path) == package.sha256:
        return path
    with disk_errors(cache, resumable=True):
        cache.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path) as folder:
            _run(["npm", "pack", "--loglevel=error", spec], folder, spec, cache)
            downloaded = folder / package.file_name
            if not downloaded.is_file():
                raise FetchError(f"npm pack {spec} wrote no file {package.file_name}; try again")
            if (sha256 := hash_file(downloaded)) != package.sha256:
                raise FetchError(
                    f"{spec} has SHA-256 {sha256}, not {package.sha256}; the registry has another "
                    "file: use the official one"
                )
            downloaded.replace(path)
    return path


def fetch_clip_art(cache: Path, root: Path = ROOT) -> Path:
    """Return the folder of the clip art: of the installed package, or downloaded and unpacked.

    A file of the package in the cache is used instead of a download.

    Args:
        cache: folder of downloaded files; created if missing.
        root: where packages are installed.

    Raises:
        ConfigError: apt-get or dpkg-deb is not installed.
        FetchError: the download failed.
    """
    for folder in (root / CLIP_ART_FOLDER, cache / CLIP_ART_PACKAGE / CLIP_ART_FOLDER):
        if folder.is_dir():
            return folder
    target = cache / CLIP_ART_PACKAGE
    with disk_errors(cache, resumable=True):
        cache.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target) as temporary:
            files = _find_debs(cache)
            if not files:
                _run(["apt-get", "download", CLIP_ART_PACKAGE], temporary, CLIP_ART_PACKAGE, cache)
                files = _find_debs(temporary)
            if not files:
                raise FetchError(f"apt-get download {CLIP_ART_PACKAGE} wrote no .deb; try again")
            unpacked, deb = temporary / "unpacked", files[0].absolute()
            _run(["dpkg-deb", "--extract", str(deb), "unpacked"], temporary, deb.name, cache)
            if not (unpacked / CLIP_ART_FOLDER).is_dir():
                raise FetchError(f"{deb} has no folder {CLIP_ART_FOLDER}; delete it")
            unpacked.replace(target)
    return target / CLIP_ART_FOLDER


def _find_debs(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{CLIP_ART_PACKAGE}_*.deb"))


def read_json(package: Path, name: str) -> Any:
    """Read a JSON file of a package of npm, whose hash was checked by `fetch_npm`.

    Args:
        package: the file of the package.
        name: path inside the package.
    """
    with tarfile.open(package) as archive:
        member = archive.extractfile(f"package/{name}")
        assert member is not None
        return json.load(io.TextIOWrapper(member, "utf-8"))


def _run(command: Sequence[str], folder: Path, what: str, cache: Path) -> None:
    """Run a program in a folder; one clear line if it is missing or fails."""
    program = shutil.which(command[0])
    if program is None:
        raise ConfigError(
            f"{command[0]} is not installed; install it to get {what}"
            + ("" if command[0] == "dpkg-deb" else f", or put the file of the package into {cache}")
        )
    try:
        subprocess.run(  # nosec B603
            [program, *command[1:]],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(
            f"{command[0]} did not finish {what} in {TIME_LIMIT} seconds; rerun to try again"
        ) from None
    except subprocess.CalledProcessError as error:
        output = (error.stderr or error.stdout).splitlines()
        lines = [line for line in output if line.strip() and "complete log" not in line]
        reason = lines[-1].strip() if lines else f"exit code {error.returncode}"
        raise FetchError(f"{command[0]} failed with {what}: {reason}; rerun to try again") from None
