"""Push a model, or a folder that `save` wrote, to the Hugging Face Hub."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swag_models.atomic import disk_errors, temporary_folder
from swag_models.errors import ConfigError, FetchError, PublishError, check_types, plain_arguments
from swag_models.formatting import describe, describe_error, list_names
from swag_models.hub.download import MAX_DURATION
from swag_models.hub.fetch import fetch_weights
from swag_models.hub.hf_format import (
    CARD_FILE,
    CONFIG_FILE,
    CONFUSION_FILE,
    CURVES_FILE,
    INDEX_FILE,
    RECIPE_FILE,
    REMOVABLE_FILE,
    SIGNATURE_FILE,
    VOCABULARY_FILE,
    read_folder,
    read_index,
)
from swag_models.hub.hub_client import call_client, client_session
from swag_models.hub.hub_errors import LOGIN_HINT
from swag_models.hub.hub_names import PREFIX, REPO_RULES, is_repo
from swag_models.hub.signature import parse_signature
from swag_models.hub.signed_folder import (
    UNSIGNED_NAMES,
    compare_files,
    hash_folder_files,
    read_file,
)
from swag_models.paths import expand_path
from swag_models.publish.model_card import set_card_address
from swag_models.publish.save import save
from swag_models.publish.signing import load_private_key, make_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from torch import nn

CREATE_SECONDS = 15  # for the Hub to create a repository and a branch


@dataclass(frozen=True)
class Upload:
    """What was sent to the Hub, or would be sent in a dry run.

    Attributes:
        address: name for `load_model`, hf-hub:org/repo[@branch].
        files: (name, size in bytes) of each file.
        card: text of the model card.
        commit: id of the commit, None in a dry run.
        url: page of the commit, None in a dry run.
    """

    address: str
    files: tuple[tuple[str, int], ...]
    card: str
    commit: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class _Target:
    """Where to push: the arguments of `push` with the same names."""

    repo: str
    branch: str | None
    private: bool
    message: str | None
    token: str | None
    key: "EllipticCurvePrivateKey | None"

    @property
    def address(self) -> str:
        return f"{self.repo}@{self.branch}" if self.branch else self.repo


@plain_arguments
def push(
    model: "nn.Module | str | os.PathLike[str]",
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
    sign: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Upload:
    """Push a model, or a folder that `save` wrote, to the Hugging Face Hub in one commit.

    Only the files of a published model are sent. Weights, a recipe and a signature that an earlier
    version left in the repository are deleted in the same commit. The card is changed to name the
    repository, except in a signed folder, which is pushed with its signature as it is.

    Args:
        model: a model that `load_model` returned, or a folder.
        repo: org/repo; created if missing.
        revision: branch; created if missing, by default `main`.
        private: create the repository as private; an existing one must be private.
        message: message of the commit.
        dry_run: send nothing.
        token: access token for the Hub; by default HF_TOKEN, or the token of `hf auth login`.
        sign: PEM file of the private key to sign the pushed files with, instead of a signature in
            the folder; see `signing.sign_folder`.
        options: for a model, the options of `save`.

    Returns:
        What was sent, or would be sent in a dry run.

    Raises:
        ConfigError: the folder or the repository's name is invalid.
        FetchError: the folder's weights are not those that its config.json states.
        SignatureError: the folder's files are not those that its signature lists.
        PublishError: the Hub rejected the upload; the message gives the reason.
    """
    check_types(str, repo=repo)
    check_types(str | None, revision=revision, message=message, token=token)
    check_types(bool, private=private, dry_run=dry_run)
    if not is_repo(repo):
        raise ConfigError(
            f"invalid repository {repo!r}: write org/repo, and the branch as revision=; "
            f"allowed: {REPO_RULES}"
        )
    if revision is not None and not (revision and revision.isprintable()):
        raise ConfigError(f"invalid revision {describe(revision)}: allowed: the name of a branch")
    key = None if sign is None else load_private_key(sign)
    target = _Target(repo, revision, private, message, token, key)
    if isinstance(model, (str, os.PathLike)):
        if options:
            raise ConfigError(
                f"invalid options {', '.join(options)} for a folder, which is pushed unchanged; "
                "pass them to save"
            )
        return _push_folder(expand_path(model, "model"), target, dry_run)
    # Saved first: config.json and the card state the hash and the layout of the weight files.
    scratch = Path(tempfile.gettempdir(), "swag_models-push")
    with ExitStack() as stack:
        with disk_errors(scratch):
            folder = stack.enter_context(temporary_folder(scratch))
        save(model, folder, **{"name": repo.split("/")[1], **options})
        return _push_folder(folder, target, dry_run)


def _push_folder(folder: Path, target: _Target, dry_run: bool) -> Upload:
    """Verify a folder and push its files."""
    spec = read_folder(folder)
    weights = fetch_weights(spec)  # checks the SHA-256 of each file before anything is sent
    shards = read_index(weights).shards if weights.name == INDEX_FILE else ()
    # Only models of the recipe have these files.
    optional = [name for name in (RECIPE_FILE, VOCABULARY_FILE) if (folder / name).is_file()]
    card = _read_card(folder / CARD_FILE)
    optional += [
        name
        for name in (CURVES_FILE, CONFUSION_FILE)
        if f"]({name})" in card and (folder / name).is_file()
    ]
    contents: dict[str, bytes | Path] = {}
    # Selected by name; listing the folder could upload private files.
    names = (CARD_FILE, CONFIG_FILE, weights.name, *shards, *optional)
    contents |= {name: folder / name for name in names}
    is_signed = target.key is None and (folder / SIGNATURE_FILE).is_file()
    if is_signed:
        _check_signed(folder, contents)
        contents[SIGNATURE_FILE] = folder / SIGNATURE_FILE
    else:
        card = set_card_address(card, spec.name, target.address)
        contents[CARD_FILE] = card.encode()
    if target.key is not None:
        contents[SIGNATURE_FILE] = _sign(contents, spec.name, target.key)
    sizes = {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in contents.items()
    }
    upload = Upload(f"{PREFIX}{target.address}", tuple(sizes.items()), card)
    return upload if dry_run else _send(upload, contents, target)


def _read_card(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise PublishError(
            f"cannot read {path}: {describe_error(error)}; save the model again"
        ) from None


def _check_signed(folder: Path, contents: Mapping[str, object]) -> None:
    """Check that the files to push are those that the folder's signature lists.

    The signature itself is not verified, as the public key is not known.
    """
    path = folder / SIGNATURE_FILE
    digests = parse_signature(read_file(path), str(path)).read_digests()
    compare_files(folder, digests)
    if others := sorted(digests.keys() - contents.keys()):
        raise PublishError(
            f"{folder} is signed with {list_names(others)}, which a published model does not have; "
            "move such files away and sign it again, or pass sign="
        )


def _sign(contents: Mapping[str, bytes | Path], name: str, key: "EllipticCurvePrivateKey") -> bytes:
    """The signature of the files to push."""
    paths = {name: content for name, content in contents.items() if isinstance(content, Path)}
    digests = {name: file.sha256 for name, file in hash_folder_files(paths).items()}
    digests |= {
        name: hashlib.sha256(content).hexdigest()
        for name, content in contents.items()
        if isinstance(content, bytes)
    }
    return make_signature(digests, name, key)


def _send(upload: Upload, contents: dict[str, bytes | Path], target: _Target) -> Upload:
    """Commit the contents, and delete files of an earlier version.

    The client's `upload_folder` is not used: it may split the files over several commits, and
    would send unrelated files of the folder.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    repo, branch = target.repo, target.branch
    if not (target.token or get_token()):  # before the first request
        raise PublishError(f"no token with write access to {repo}; {LOGIN_HINT}")
    api = HfApi(token=target.token)

    def create() -> None:
        api.create_repo(repo, private=target.private, exist_ok=True)
        # For an existing repository `create_repo` ignores `private`.
        if target.private and not api.model_info(repo).private:
            raise PublishError(
                f"{repo} exists and is public; make it private on its page, or push without private"
            )
        if branch:
            api.create_branch(repo, branch=branch, exist_ok=True)

    def commit() -> Any:
        added = [CommitOperationAdd(name, content) for name, content in contents.items()]
        others = set(api.list_repo_files(repo, revision=branch)) - contents.keys()
        removable = sorted(filter(REMOVABLE_FILE.fullmatch, others))
        deleted = [CommitOperationDelete(name) for name in removable]
        if SIGNATURE_FILE in contents and (
            unsigned := sorted(others.difference(removable, UNSIGNED_NAMES))
        ):
            raise PublishError(
                f"{repo} has files that the signature does not cover, with which it would not "
                f"be loaded: {list_names(unsigned)}; delete them"
            )
        # One commit, so that no revision has the weights of one version and the config of another.
        return api.create_commit(
            repo,
            [*added, *deleted],
            commit_message=target.message or "Publish with swag_models",
            revision=branch,
        )

    try:
        with client_session(repo):
            call_client(create, CREATE_SECONDS)
            sent = call_client(commit, MAX_DURATION)
    except FetchError as error:
        raise PublishError(f"nothing was published: {error}") from None
    return replace(upload, commit=sent.oid, url=sent.commit_url)
