"""Signed models in folders and Hub repositories: verify the signature, then read the spec.

Imports no torch.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swag_models.catalog import MODELS
from swag_models.errors import ConfigError, FetchError, SignatureError, UnknownModelError
from swag_models.hub.fetch import is_offline, log_license
from swag_models.hub.hf_format import CONFIG_FILE, SIGNATURE_FILE, read_config
from swag_models.hub.hub_errors import UnreachableError
from swag_models.hub.hub_names import PREFIX, make_url, parse_name
from swag_models.hub.hub_rules import COMMIT
from swag_models.hub.huggingface import download_file, find_cached, list_repo
from swag_models.hub.signature import load_public_key
from swag_models.hub.signed_folder import (
    VerifiedFolder,
    check_names,
    find_unsigned,
    verify_folder,
    verify_signature,
)
from swag_models.paths import expand_path
from swag_models.spec import ModelSpec, Progress

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

logger = logging.getLogger("swag_models")


@dataclass(frozen=True)
class SignedModel:
    """A model whose files were all verified.

    Attributes:
        folder: the verified folder.
        spec: spec of the model, read from the verified config.json.
        weights: path of the weights, or of the index of a sharded model.
    """

    folder: VerifiedFolder
    spec: ModelSpec
    weights: Path


def open_signed(
    name: object, trusted_key: str | os.PathLike[str], *, progress: Progress = True
) -> SignedModel:
    """Verify a signed model, and read its spec.

    Args:
        name: a folder, or hf-hub:org/repo[@revision].
        trusted_key: path of the public key, PEM.
        progress: as for `fetch_weights`.

    Raises:
        SignatureError: the model is not signed with this key, or a file differs.
        UnknownModelError: the folder does not exist.
        ConfigError: the key cannot be used, or the model cannot be signed, or is not a model of
            this library.
        FetchError: the Hub cannot be reached.
    """
    folder, downloaded = _verify(name, trusted_key, progress)
    spec = read_config(folder.path / CONFIG_FILE, folder.url, folder.read(CONFIG_FILE))
    names = {source.url.rsplit("/", 1)[1]: source.sha256 for source in spec.sources}
    # Of the files that timm or transformers may have saved, the first one is used.
    file = next((name for name in names if name in folder.files), next(iter(names)))
    weights = folder.files.get(file)
    if weights is None or names[file] not in (None, weights.sha256):
        raise SignatureError(
            f"{folder.path / file} is not the file that {CONFIG_FILE} states, though both are "
            "signed; save and sign the model again"
        )
    if file in downloaded:
        log_license(spec)
    return SignedModel(folder, spec, weights.path)


def verify_model(
    name: object, trusted_key: str | os.PathLike[str], *, progress: Progress = True
) -> VerifiedFolder:
    """Verify a signed folder or Hub repository, of any kind of model; see `open_signed`."""
    return _verify(name, trusted_key, progress)[0]


def _verify(
    name: object, trusted_key: str | os.PathLike[str], progress: Progress
) -> tuple[VerifiedFolder, list[str]]:
    """The verified folder, and the names of the files that were downloaded for it."""
    if isinstance(name, ModelSpec) or name in [spec.name for spec in MODELS]:
        label = name.name if isinstance(name, ModelSpec) else name
        raise ConfigError(
            f"{label} has hashes and no signature; a trusted key is for a folder or "
            f"{PREFIX}org/repo"
        )
    if not isinstance(name, (str, os.PathLike)):
        raise ConfigError(
            f"invalid model of type {type(name).__name__}; with a trusted key, allowed: a folder "
            f"or {PREFIX}org/repo"
        )
    key = load_public_key(trusted_key)
    if str(name).startswith(PREFIX):
        return _fetch_verified(*parse_name(str(name)), key, progress)
    path = expand_path(name, "model")
    if not path.is_dir():
        raise UnknownModelError(
            f"folder {str(path)!r} does not exist; a repository of the Hub is written "
            f"{PREFIX}org/repo"
        )
    return verify_folder(path, key), []


def _fetch_verified(
    repo: str, revision: str, key: "EllipticCurvePublicKey", progress: Progress
) -> tuple[VerifiedFolder, list[str]]:
    """Download the signed files of a repository that are not on this machine, and verify all."""
    signature, names = _fetch_signature(repo, revision)
    commit = signature.parent.name
    place = f"{PREFIX}{repo}@{commit}"
    digests = verify_signature(signature.parent, key)  # before anything else is downloaded
    if names is not None:
        unsigned = find_unsigned(digests)
        check_names(place, [n for n in names if n.split("/")[0] not in unsigned], digests)
    missing = [file for file in digests if find_cached(repo, commit, file) is None]
    if missing and is_offline():
        check_names(f"{place} on this machine", digests.keys() - missing, digests)
    for file in missing:
        download_file(repo, commit, file, progress)
    # In the client's cache, this folder may contain links to files that are named after their hash.
    url, store = make_url(repo, commit, "").rstrip("/"), signature.parents[2]
    return verify_folder(signature.parent, key, url=url, store=store), missing


def _fetch_signature(repo: str, revision: str) -> tuple[Path, set[str] | None]:
    """The signature of a repository, in a folder named after the commit, and all names of files.

    Sends no request for a commit whose signature is on this machine. If the Hub cannot be reached,
    uses the commit in the client's cache. If the Hub does not answer, the names are None, and
    the files on this machine are verified.

    Raises:
        SignatureError: the repository has no signature.
        FetchError: the Hub cannot be reached, and the signature is not on this machine.
    """
    cached = find_cached(repo, revision, SIGNATURE_FILE)
    if cached and (COMMIT.fullmatch(revision) or is_offline()):
        return cached, None
    if is_offline():
        raise FetchError(
            f"the signature of {PREFIX}{repo}@{revision} is not on this machine, and offline mode "
            "is set; unset SWAG_MODELS_OFFLINE and HF_HUB_OFFLINE to download it"
        )
    try:
        commit, names = list_repo(repo, revision)
        if SIGNATURE_FILE not in names:
            raise SignatureError(f"{PREFIX}{repo} is not signed: it has no {SIGNATURE_FILE}")
        # By the name of the branch, so that the client's cache knows its commit offline.
        signature = download_file(repo, revision, SIGNATURE_FILE, progress=False)
    except UnreachableError as error:
        if cached is None:
            raise
        commit = cached.parent.name
        logger.warning("%s: using the cached %s%s, commit %s", error, PREFIX, repo, commit)
        return cached, None
    if signature.parent.name != commit:
        raise FetchError(f"{PREFIX}{repo}@{revision} was changed while it was read; try again")
    return signature, names
