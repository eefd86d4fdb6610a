"""Verify that the files of a folder are exactly those that a key signed. Imports no torch.

All files are signed but model.sig itself and, unless the signature lists them, the files of git:
`.git`, `.gitattributes`, `.github` and `.gitignore` at the top of the folder.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swag_models.errors import SignatureError
from swag_models.formatting import describe_error, list_names
from swag_models.hub.hf_format import SIGNATURE_FILE
from swag_models.hub.signature import parse_signature
from swag_models.paths import open_regular, read_regular
from swag_models.runtime import count_cpus

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

UNSIGNED_NAMES = (SIGNATURE_FILE, ".git", ".gitattributes", ".github", ".gitignore")
MAX_SIGNATURE_SIZE = 1 << 24  # bytes; lists about 100,000 files
HASH_BUFFER_SIZE = 1 << 18  # bytes; fits into the cache of a CPU core


@dataclass(frozen=True)
class HashedFile:
    """A file, and its state when it was hashed.

    Attributes:
        path: path of the file.
        sha256: SHA-256 of its content, in hex.
        state: device, number, size and times of the file. Unlike the modification time, the time
            of the last change of status cannot be set by a program.
    """

    path: Path
    sha256: str
    state: tuple[int, ...]

    def is_unchanged(self) -> bool:
        """Whether the path is still the same file, and nothing was written to it since."""
        try:
            return _read_state(os.stat(self.path)) == self.state
        except OSError:
            return False


@dataclass(frozen=True)
class VerifiedFolder:
    """A folder whose files were all found to be those that a key signed.

    Attributes:
        path: the folder.
        url: URL of the folder, without a final slash, for `Source.url`.
        files: the signed files by their path in the folder, with `/`.
    """

    path: Path
    url: str
    files: Mapping[str, HashedFile]

    def read(self, name: str) -> bytes:
        """Return the content of a signed file, which is hashed again after reading.

        Raises:
            SignatureError: the file is not signed, or was changed after signing.
        """
        if name not in self.files:
            raise SignatureError(f"{self.path} has no signed file {name}")
        content = read_file(self.files[name].path)
        if hashlib.sha256(content).hexdigest() != self.files[name].sha256:
            raise SignatureError(f"{self.path / name} was changed after it was verified")
        return content

    def check_unchanged(self) -> None:
        """Raise SignatureError if a file was replaced or written to since it was verified."""
        for name, file in self.files.items():
            if not file.is_unchanged():
                raise SignatureError(
                    f"{self.path / name} was changed while it was loaded, after it was verified"
                )


def verify_folder(
    folder: Path,
    key: "EllipticCurvePublicKey",
    *,
    url: str | None = None,
    store: Path | None = None,
) -> VerifiedFolder:
    """Verify the files of a folder: first its signature, then their names, then their content.

    Only model.sig is parsed.

    Args:
        folder: the folder, with its signature in model.sig.
        key: the key that it has to be signed with, from `signature.load_public_key`.
        url: URL of the folder; by default its file:// URL.
        store: the folder that links in `folder` may lead to, as in the cache of the Hub's client;
            by default a link is an error.

    Raises:
        SignatureError: the folder is not signed with this key; or a file is missing, not signed,
            changed, a link or not a regular file. The message names the file.
    """
    folder = folder.absolute()
    digests = verify_signature(folder, key)
    files = compare_files(folder, digests, store)
    return VerifiedFolder(folder, folder.as_uri() if url is None else url, files)


def verify_signature(folder: Path, key: "EllipticCurvePublicKey") -> dict[str, str]:
    """Verify model.sig alone, and return the SHA-256 of each file that it lists, by name.

    Raises:
        SignatureError: the folder is not signed, or not with this key.
    """
    path = folder / SIGNATURE_FILE
    if not os.path.lexists(path):
        raise SignatureError(f"{folder} is not signed: it has no {SIGNATURE_FILE}")
    signature = parse_signature(read_file(path, MAX_SIGNATURE_SIZE), str(path))
    signature.verify(key)
    return signature.read_digests()


def compare_files(
    folder: Path, digests: Mapping[str, str], store: Path | None = None
) -> dict[str, HashedFile]:
    """Hash the files of a folder, and compare names and hashes with a list.

    Args:
        folder: the folder.
        digests: SHA-256 of each file, by its path in the folder.
        store: as for `verify_folder`.

    Returns:
        The files, by their path in the folder.

    Raises:
        SignatureError: a file is missing, not listed or different.
    """
    paths = list_files(folder, find_unsigned(digests), store)
    check_names(str(folder), paths, digests)
    files = hash_folder_files(paths)
    for name, digest in digests.items():
        if files[name].sha256 != digest:
            raise SignatureError(
                f"{folder / name} is not the signed file: its SHA-256 is {files[name].sha256}, "
                f"not {digest}"
            )
    return files


def check_names(place: str, names: Iterable[str], signed: Iterable[str]) -> None:
    """Raise SignatureError if names are not those of the signed files.

    Args:
        place: folder or repository, for the message.
        names: names of the files in it.
        signed: the signed files by name.
    """
    present, signed = set(names), set(signed)
    problems = {"not signed": sorted(present - signed), "missing": sorted(signed - present)}
    # Unicode has several forms of a letter with an accent, which look the same.
    forms = Counter(unicodedata.normalize("NFC", name) for name in present ^ signed)
    for label, files in problems.items():
        problems[label] = [
            ascii(name) if forms[unicodedata.normalize("NFC", name)] > 1 else name for name in files
        ]
    text = "; ".join(f"{label}: {list_names(files)}" for label, files in problems.items() if files)
    if text:
        raise SignatureError(f"{place} does not have the files that were signed: {text}")


def find_unsigned(signed: Iterable[str]) -> set[str]:
    """Return the names at the top of a folder that need no signature, if these files are signed."""
    return set(UNSIGNED_NAMES) - {name.split("/")[0] for name in signed} | {SIGNATURE_FILE}


def list_files(
    folder: Path, skip: Collection[str] = UNSIGNED_NAMES, store: Path | None = None
) -> dict[str, Path]:
    """List the files of a folder that a signature has to cover.

    Args:
        folder: the folder.
        skip: names of files and folders at the top of it to leave out.
        store: as for `verify_folder`.

    Returns:
        Path of each file, by its path in the folder with `/`; sorted by the parts of the path.

    Raises:
        SignatureError: the folder contains a link or another special file, or cannot be read.
    """
    files: dict[str, Path] = {}
    pending = [""]
    try:
        while pending:
            prefix = pending.pop()
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if name in skip:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{name}/")
                        continue
                    _check_entry(folder, name, entry, store)
                    files[name] = folder / name
    except OSError as error:
        raise SignatureError(f"cannot read {folder}: {describe_error(error)}") from None
    return dict(sorted(files.items(), key=lambda item: item[0].split("/")))


def _check_entry(folder: Path, name: str, entry: "os.DirEntry[str]", store: Path | None) -> None:
    """Raise SignatureError unless an entry is a file, or a link to a file in `store`."""
    if entry.is_symlink():
        target = Path(os.path.realpath(entry.path))
        if store is None or not target.is_relative_to(os.path.realpath(store)):
            raise SignatureError(
                f"{folder / name} is a link; a signed folder contains the files themselves"
            )
    if not entry.is_file():
        raise SignatureError(f"{folder / name} is not a regular file")


def hash_folder_files(paths: Mapping[str, Path]) -> dict[str, HashedFile]:
    """Hash files, with one thread per CPU.

    Args:
        paths: path of each file, by name.

    Raises:
        SignatureError: a file cannot be read, or changes while it is read.
    """
    with ThreadPoolExecutor(count_cpus()) as pool:
        return dict(zip(paths, pool.map(_hash_file, paths.values())))


def _hash_file(path: Path) -> HashedFile:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(HASH_BUFFER_SIZE))
    try:
        with open_regular(path) as file:
            state = _read_state(os.fstat(file.fileno()))
            while count := file.readinto(buffer):  # type: ignore[attr-defined]
                digest.update(buffer[:count])
            after = _read_state(os.fstat(file.fileno()))
    except OSError as error:
        raise SignatureError(f"cannot read {path}: {describe_error(error)}") from None
    if after != state:
        raise SignatureError(f"{path} was changed while it was read; try again")
    return HashedFile(path, digest.hexdigest(), state)


def read_file(path: Path, limit: int | None = None) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        limit: largest size in bytes; None for no limit.

    Raises:
        SignatureError: it cannot be read, or is larger.
    """
    try:
        content = read_regular(path, -1 if limit is None else limit + 1)
    except OSError as error:
        raise SignatureError(f"cannot read {path}: {describe_error(error)}") from None
    if limit is not None and len(content) > limit:
        raise SignatureError(f"{path} is larger than {limit} bytes")
    return content


def _read_state(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
