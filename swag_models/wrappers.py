"""Find the state dict of a model inside what training code puts around it.

Training scripts store a state dict under a key beside other things (`{"model": ..., "epoch": 3}`),
and modules that contain the model put a prefix before its names (`backbone.cls_token`). Both are
found by the names that each layout has, so no list of keys or prefixes is needed.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from swag_models.errors import CheckpointError, UnsafeCheckpointError
from swag_models.formatting import count_noun, list_names
from swag_models.layouts import LAYOUT_KEYS
from swag_models.stored_tensor import OddTensor, StoredTensor

MAX_DEPTH = 16  # levels of nesting
MAX_CANDIDATES = 100
# Inserted in the middle of names by torch.compile, activation checkpointing and FSDP1.
INNER_WRAPPERS = re.compile(r"\b(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
AVERAGED = re.compile(r"(^|[._])(ema|averaged|swa)($|[._])|_ema|ema_", re.IGNORECASE)
COUNTERS = {"n_averaged"}  # of torch's AveragedModel
# What training code adds to a model itself: that counter, losses and metrics.
NO_WEIGHT = re.compile(
    r"n_averaged$|([^.]*_)?(loss(es|_fn|_fun\w*)?|criteri(on|a)|metrics?|acc(uracy)?|auroc|f1"
    r"|confmat)(_[^.]*)?(\.|$)",
    re.IGNORECASE,
)
# Lightning's WeightAveraging stores averaged weights as "state_dict", and those of training here.
NOT_AVERAGED = "current_model_state"
TRANSFORMERS = "embeddings."  # where transformers has the class token
# Names that PEFT gives to adapters, and to the layers inside them.
ADAPTER = re.compile(
    r"(^|\.)(base_layer|modules_to_save|original_module|ln_tuning_layers"
    r"|(lora|ia3|hada|lokr|oft|boft|vera|hra|fourierft|bone|randlora|shira|c3a|vblora)_\w+)(\.|$)"
)
# Under which training scripts and configurations store class names.
CLASS_KEYS = {
    *("classes", "class_names", "class_to_idx", "idx_to_class", "categories"),
    *("label_names", "labels", "id2label", "label2id", "names"),
}
PLACEHOLDER_LABEL = re.compile(r"LABEL_\d+")  # of transformers
# "stem.stem.0.weight" must be tried before "stem.0.weight", with which it ends.
LONGEST_FIRST = sorted(LAYOUT_KEYS, key=len, reverse=True)

logger = logging.getLogger("swag_models")


class Candidate(NamedTuple):
    """A state dict in a checkpoint.

    Attributes:
        keys: the keys that lead to the dict that contains it.
        prefix: prefix of its names, with a final dot; "" for none.
        values: all values of that dict by name.
    """

    keys: tuple[str, ...]
    prefix: str
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """Keys and prefix, joined by dots; "." for a file that is the state dict."""
        return ".".join([*self.keys, self.prefix]).rstrip(".") or "."

    def select(self, other_prefixes: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the values whose name has the prefix, and none of the others, without it."""
        return {
            name[len(self.prefix) :]: value
            for name, value in self.values.items()
            if name.startswith(self.prefix) and not name.startswith(other_prefixes)
        }


def find_state_dict(
    content: Any, path: Path, key: str | None = None, objects: list[str] | None = None
) -> dict[str, Any]:
    """Return the state dict inside the wrappers that training code puts around it.

    Args:
        content: content of a file.
        path: the file, for messages.
        key: as for `read_state_dict`.
        objects: names of classes of which the file contains objects, for messages.

    Returns:
        Values by name. They are tensors if the file is sound, which the caller checks.

    Raises:
        CheckpointError: the file contains no state dict of a ViT, RegNet or ResNet, or several.
        UnsafeCheckpointError: there is none, but the file contains a pickled model.
    """
    found = list(_find_candidates(content))
    # Shapes and learning rates are listed by the same names, for example by DeepSpeed.
    candidates = [c for c in found if any(map(_is_tensor, c.select().values()))] or found
    if not candidates:
        if objects:
            raise UnsafeCheckpointError(
                f"{path} was rejected, nothing in it ran: it has no state dict, but pickled "
                f"objects: {list_names(objects)}. Save model.state_dict() alone, or as safetensors"
            )
        _check_adapters(content if isinstance(content, Mapping) else {}, path)
        raise CheckpointError(
            f"{path} contains no ViT, RegNet or ResNet in the swag, torchvision or timm layout: "
            f"{_describe(content)}"
        )
    chosen = _choose(candidates, path, key)
    inner = tuple(
        other.prefix
        for other in candidates
        if other.keys == chosen.keys and len(other.prefix) > len(chosen.prefix)
    )
    if chosen.prefix.endswith(TRANSFORMERS):
        raise CheckpointError(
            f"{path} is a ViT in the layout of transformers, which is not read; convert the names "
            "of its tensors to those of timm"
        )
    state = {k: v for k, v in chosen.select(inner).items() if not NO_WEIGHT.match(k)}
    _check_adapters(state, path)
    _check_empty(state, path)
    if left_out := [
        name
        for name, value in chosen.values.items()
        if name not in COUNTERS
        and _is_tensor(value)
        and not (name.startswith(chosen.prefix) and name[len(chosen.prefix) :] in state)
    ]:
        logger.warning(
            "%s: left out %s outside %s: %s",
            path,
            count_noun(len(left_out), "tensor"),
            chosen.prefix.rstrip(".") or "the model",
            list_names(left_out, 3),
        )
    return state


def _check_adapters(names: Mapping[Any, Any], path: Path) -> None:
    """Raise CheckpointError if a state dict has adapters, without which it is another model."""
    adapters = [str(name) for name in names if ADAPTER.search(str(name))]
    if adapters:
        raise CheckpointError(
            f"{path} has adapters of PEFT (LoRA or its like), for example {adapters[0]}: load them "
            "with PEFT, and save the state dict of what merge_and_unload() returns"
        )


def _check_empty(state: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError if all weights are empty, as in the files of DeepSpeed's ZeRO-3."""
    shapes = [value.shape for value in state.values() if isinstance(value, (Tensor, StoredTensor))]
    if shapes and all(0 in shape for shape in shapes if shape):
        raise CheckpointError(
            f"{path} has the names of a model, but empty tensors: its weights are in other files. "
            "For DeepSpeed, run zero_to_fp32.py in the folder of the checkpoint"
        )


def _choose(candidates: list[Candidate], path: Path, key: str | None) -> Candidate:
    """Return the candidate that `key` names; by default the only one, or the averaged one."""
    names = [candidate.name for candidate in candidates]
    if key is not None:
        matching = [c for c in candidates if c.name == key or c.name.startswith(f"{key}.")]
        if len(matching) != 1:
            raise CheckpointError(
                f"{path} has {len(matching) or 'no'} state dicts at key {key!r}; "
                f"allowed: {list_names(names)}"
            )
        return matching[0]
    if all(_is_same(candidate.select(), candidates[0].select()) for candidate in candidates[1:]):
        return candidates[0]
    averaged = [candidate for candidate in candidates if AVERAGED.search(candidate.name)]
    if any(candidate.keys[:1] == (NOT_AVERAGED,) for candidate in candidates):
        averaged = [candidate for candidate in candidates if candidate.keys == ("state_dict",)]
    if len(averaged) != 1:
        raise CheckpointError(
            f"{path} has {len(candidates)} state dicts: {list_names(names)}; "
            f'choose one, for example weights_key="{names[0]}"'
        )
    logger.warning(
        '%s contains %s: using %s; for another one pass weights_key="..."',
        path,
        " and ".join(names),
        averaged[0].name,
    )
    return averaged[0]


def _is_same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Return whether two state dicts are one, in a file that names it twice."""
    return ours.keys() == theirs.keys() and all(
        value is theirs[name] or (not isinstance(value, Tensor) and value == theirs[name])
        for name, value in ours.items()
    )


def _find_candidates(content: Any) -> Iterator[Candidate]:
    """Find every state dict of a ViT, RegNet or ResNet, in the order of the file."""
    visited: set[int] = set()
    count = 0

    def visit(value: Any, keys: tuple[str, ...]) -> Iterator[Candidate]:
        nonlocal count
        if isinstance(value, (list, tuple)) and len(value) < MAX_DEPTH:
            value = dict(enumerate(value))  # `torch.save((state, epoch), ...)`
        elif id(value) in visited:
            return
        if not isinstance(value, Mapping) or len(keys) > MAX_DEPTH:
            return
        visited.add(id(value))
        values = _clean_names(value, keys)
        for prefix in _find_prefixes(values):
            count += 1
            if count > MAX_CANDIDATES:
                raise CheckpointError(f"more than {MAX_CANDIDATES} state dicts in one file")
            yield Candidate(keys, prefix, values)
        for key, item in value.items():
            if isinstance(item, (Mapping, list, tuple)):
                yield from visit(item, (*keys, str(key)))

    yield from visit(content, ())


def _clean_names(values: Mapping[Any, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Remove wrappers in the middle of names."""
    clean: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(name, (str, int)):
            short = INNER_WRAPPERS.sub("", str(name))
            if short in clean and (short != str(name) or short in values):
                raise CheckpointError(f"{'.'.join(keys)} has {short} twice, once in a wrapper")
            clean[short] = value
    return clean


def _find_prefixes(names: Mapping[str, Any]) -> list[str]:
    """Return the prefixes before names that identify a layout, each with a final dot."""
    prefixes: dict[str, None] = {}
    for name in names:
        for mark in LONGEST_FIRST:
            prefix = name.removesuffix(mark)
            if name == prefix or (prefix and not prefix.endswith(".")):
                continue
            # "stem.stem.0.weight" is the original's, or torchvision's in an attribute "stem".
            if mark.startswith("stem.stem.") and not any(
                other.startswith(f"{prefix}trunk_output.") for other in names
            ):
                continue
            prefixes[prefix] = None
            break
    return list(prefixes)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (Tensor, StoredTensor, OddTensor))


def find_class_names(content: Any, depth: int = 3) -> list[tuple[str, ...]]:
    """Return the lists of class names in a file or configuration.

    Args:
        content: content of a file, or parsed JSON. Known are lists of names, names by number and
            numbers by name, under one of `CLASS_KEYS`.
        depth: levels of nesting to search.

    Returns:
        Distinct lists, in the order of the logits. Texts with control characters are no names.
    """
    found: dict[tuple[str, ...], None] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if str(key).lower() in CLASS_KEYS and (names := _order_names(value)):
            found[names] = None
        elif depth > 1:
            found |= dict.fromkeys(find_class_names(value, depth - 1))
    return list(found)


def _order_names(value: Any) -> tuple[str, ...]:
    """Return names in the order of their numbers; () for anything else."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
        if all(isinstance(number, int) for _, number in pairs):  # numbers by name
            pairs = [(number, name) for name, number in pairs]
        numbered = {str(number): name for number, name in pairs}
        if len(numbered) < len(pairs):
            return ()
        value = [numbered.get(str(index)) for index in range(len(numbered))]
    if not isinstance(value, (list, tuple)):
        return ()
    names = tuple(value)
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        return ()
    return () if all(map(PLACEHOLDER_LABEL.fullmatch, names)) else names


def _describe(content: Any) -> str:
    """Return what a file without a state dict contains."""
    if not isinstance(content, Mapping):
        kind = "Tensor" if _is_tensor(content) else type(content).__name__
        return f"it is a {getattr(content, 'name', kind)}"
    keys = [str(key) for key in content]
    text = f"the file has {list_names(keys, 5) or 'no keys'}"
    for key, value in content.items():
        if isinstance(value, Mapping) and any(map(_is_tensor, value.values())):
            text += f"; {key} has {list_names([str(name) for name in value], 5)}"
    return text
