"""A model published: as a folder, and as a repository of the Hugging Face Hub, either of which `load_model` takes by name.

Sending a folder imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swag_models.atomic import atomic_write
from swag_models.catalog import NC_URL
from swag_models.errors import CheckpointError, ConfigError, FetchError, PublishError
from swag_models.hub.download import hash_file
from swag_models.hub.fetch import fetch_weights
from swag_models.hub.hf_format import (
    CARD_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    RECIPE_FILE,
    REMOVABLE_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    make_config,
    read_folder,
    read_index,
)
from swag_models.hub.huggingface import IN_REPO, LOG_IN, PREFIX, is_repo, parse_url, readable_errors
from swag_models.publish.model_card import Facts, address_card, make_card
from swag_models.spec import Metrics, Source

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_SHARD_SIZE = 5_000_000_000  # bytes in one file, as the Hub's own libraries have it


@dataclass(frozen=True)
class Upload:
    """What went to the Hub, or would have: `files` with their sizes in bytes, the card, and the commit, None in a dry run.

    `address` is what `load_model` takes.
    """

    address: str
    files: tuple[tuple[str, int], ...]
    card: str
    commit: str | None = None
    url: str | None = None


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    description: str | None = None,
    classes: str | Sequence[str] | None = None,
    synsets: Sequence[str] | None = None,
    metrics: Metrics | None = None,
    license: str | None = None,
    license_url: str | None = None,
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    tags: Sequence[str] = (),
    training: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> Path:
    """Write a model as a folder that `load_model` takes: weights, config.json and a model card. The folder.

    The weights keep their dtype; `load_model` gives float32 unless asked otherwise. What was there under the same names is
    replaced, each file whole, config.json last: an interrupted save never loads as something else. The recipe and vocabulary of
    a run that was there go first. The folder may be the one that the model was loaded from.

    name: default the folder's.
    description: of these weights, for the card; default what they derive from.
    classes: the names in the order of the logits, or "imagenet-1k"; default those of the model it was made from, if the head
        has still as many.
    synsets: the WordNet 3.0 ids of classes that are hashtags; default as for the classes.
    metrics: measured with these weights; never taken over from the model it was made from.
    license, license_url: default those of the weights that the model was loaded with; unknown if it was loaded with none.
    datasets, base_model, tags: for the card, as the Hub writes them; base_model defaults to the repository it was loaded from.
    training: what the card tells of it, as Markdown.
    max_shard_size: bytes; weights beyond it are spread over several files.

    ConfigError if the model is none of ours or was changed beyond what config.json can tell, PublishError if the folder cannot
    be written.
    """
    from swag_models.publish.model_info import collect_state, describe_model

    folder = Path(folder)
    name = re.sub(r"[^\w.-]+", "-", folder.absolute().name).strip("-") if name is None else name
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"name is {name!r}; use letters, digits and . _ -")
    spec, origin = describe_model(
        model, name, description, classes, synsets, metrics, license, license_url
    )
    state = collect_state(model, spec)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PublishError(f"cannot make the folder {folder}: {error.strerror}") from None
    for file in (RECIPE_FILE, VOCABULARY_FILE):  # before the weights they are not of are there
        try:
            (folder / file).unlink(missing_ok=True)
        except OSError as error:
            raise PublishError(f"cannot remove {folder / file}: {error.strerror}") from None
    written = _write_weights(state, folder, max_shard_size)
    spec = replace(spec, sources=(Source(written[-1], "timm", hash_file(folder / written[-1])),))
    facts = Facts(
        dtype=dtype,
        sharded=written != [WEIGHTS_FILE],
        from_hashtags=origin.license_url == NC_URL,
        datasets=datasets,
        base_model=base_model
        or next((parse_url(s.url)[0] for s in origin.sources if s.url.startswith("hf://")), None),
        tags=tags,
        training=training,
    )
    _write_text(folder / CARD_FILE, make_card(spec, facts))
    _write_text(folder / CONFIG_FILE, json.dumps(make_config(spec, dtype), indent=2) + "\n")
    for path in folder.iterdir():
        if REMOVABLE_FILE.fullmatch(path.name) and path.name not in written:
            with contextlib.suppress(OSError):  # then it stays, and nothing refers to it
                path.unlink()
    return folder


def push(
    model: nn.Module | str | os.PathLike[str],
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
    **options: Any,
) -> Upload:
    """Send a model, or a folder that `save` wrote, to a repository of the Hugging Face Hub, in one commit.

    The repository is made if there is none, and so is the branch `revision` (default: main); if it is there, `private` asserts
    that it is private. Only the files of the published model are sent; weights and a recipe that an earlier version left in the
    repository are deleted in the same commit. `dry_run` sends nothing. `token` defaults to HF_TOKEN or what `hf auth login`
    keeps. For a model, `options` are those of `save`.

    ConfigError if the folder or the name will not do, FetchError if the folder's weights are not those in its config.json,
    PublishError with the reason if the Hub does not take it.
    """
    if not is_repo(repo):
        raise ConfigError(
            f"repository is {repo!r}; write org/repo, and the branch as revision=; allowed: {IN_REPO}"
        )
    if isinstance(model, (str, os.PathLike)):
        if options:
            raise ConfigError(
                f"{', '.join(options)}: a folder is sent as it is; give what describes a model to save"
            )
        return _push_folder(Path(model), repo, revision, private, message, dry_run, token)
    with tempfile.TemporaryDirectory(prefix="swag_models-") as folder:
        save(model, folder, **{"name": repo.split("/")[1], **options})
        return _push_folder(Path(folder), repo, revision, private, message, dry_run, token)


def _write_weights(state: dict[str, Tensor], folder: Path, max_shard_size: int) -> list[str]:
    """The names of the files written; the last one is what stands for all: the weights, or the index of the shards."""
    from swag_models.checkpoint import write_state_dict

    shards: list[dict[str, Tensor]] = [{}]
    room = max_shard_size
    for key, tensor in state.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = max_shard_size
        shards[-1][key] = tensor
        room -= tensor.nbytes
    single = len(shards) == 1
    files = [
        WEIGHTS_FILE if single else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    for file, shard in zip(files, shards):
        try:
            write_state_dict(shard, folder / file)
        except CheckpointError as error:
            raise PublishError(str(error)) from None
    if single:
        return files
    index = {
        "metadata": {
            "total_size": sum(tensor.nbytes for tensor in state.values()),
            "sha256": {file: hash_file(folder / file) for file in files},
        },
        "weight_map": {key: file for file, shard in zip(files, shards) for key in shard},
    }
    _write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    return [*files, INDEX_FILE]


def _write_text(path: Path, text: str) -> None:
    try:
        with atomic_write(path, unique=True) as temporary:
            temporary.write_text(text, "utf-8")
    except OSError as error:
        raise PublishError(f"cannot write {path}: {error.strerror}") from None


def _push_folder(
    folder: Path,
    repo: str,
    revision: str | None,
    private: bool,
    message: str | None,
    dry_run: bool,
    token: str | None,
) -> Upload:
    spec = read_folder(folder)
    weights = fetch_weights(spec)  # verified
    names = [
        CARD_FILE,
        CONFIG_FILE,
        weights.name,
        *(read_index(weights).shards if weights.name == INDEX_FILE else ()),
    ]
    names += [name for name in (RECIPE_FILE, VOCABULARY_FILE) if (folder / name).is_file()]
    address = f"{repo}@{revision}" if revision else repo
    try:
        card = address_card((folder / CARD_FILE).read_text("utf-8"), spec.name, address)
    except (OSError, ValueError) as error:
        raise PublishError(
            f"cannot read {folder / CARD_FILE}: {error}; save the model again"
        ) from None
    contents: dict[str, bytes | Path] = {
        file: card.encode() if file == CARD_FILE else folder / file for file in names
    }
    sizes = {
        file: len(what) if isinstance(what, bytes) else what.stat().st_size
        for file, what in contents.items()
    }
    upload = Upload(f"{PREFIX}{address}", tuple(sizes.items()), card)
    return upload if dry_run else _send(upload, contents, repo, revision, private, message, token)


def _send(
    upload: Upload,
    contents: dict[str, bytes | Path],
    repo: str,
    revision: str | None,
    private: bool,
    message: str | None,
    token: str | None,
) -> Upload:
    """One commit with these files, and without weights and a recipe that an earlier one left."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if not (token or get_token()):
        raise PublishError(f"no token to write to {repo} with; {LOG_IN}")
    api = HfApi(token=token)
    try:
        with readable_errors(repo):
            api.create_repo(repo, private=private, exist_ok=True)
            if private and not api.model_info(repo).private:
                raise PublishError(
                    f"{repo} is there already, and public; make it private on its page, or push without private"
                )
            if revision:
                api.create_branch(repo, branch=revision, exist_ok=True)
            there = api.list_repo_files(repo, revision=revision)
            commit = api.create_commit(
                repo,
                [
                    *(CommitOperationAdd(file, what) for file, what in contents.items()),
                    *(
                        CommitOperationDelete(file)
                        for file in there
                        if REMOVABLE_FILE.fullmatch(file) and file not in contents
                    ),
                ],
                commit_message=message or "Publish with swag_models",
                revision=revision,
            )
    except FetchError as error:
        raise PublishError(f"nothing was published: {error}") from None
    return replace(upload, commit=commit.oid, url=commit.commit_url)
