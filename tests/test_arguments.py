"""Every public function and class refuses an argument of a wrong type in one line.

The functions are collected from `__all__` of the public packages, and their parameters from their
signatures, so that a new one is tested without a change here (or fails until it has an entry).
"""

import inspect
import io
import math
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from packages import write_package
from PIL import Image
from tiny import REGNET, RESNET, VIT, VIT_SPEC, load_tiny
from torchvision.models import ViT_B_16_Weights

import swag_models
from swag_models import errors, export, inference, models, publish
from swag_models.errors import SwagModelsError
from swag_models.inference.embed import write_embeddings

# Classes with the constructor of their base class, which is called by another class
INHERITED = {"Embedder": "Classifier"}
PACKAGES: tuple[ModuleType, ...] = (swag_models, errors, inference, models, publish, export)
NANO = "vit_nano_hashtags"
MAX_SECONDS = 20  # for one call


class BadPath:
    """A path object of a library with a defect."""

    def __fspath__(self) -> Any:
        return 3


def _fail(*_: object, **__: object) -> Any:
    raise RuntimeError("a defect\nin a library")


def load_package(path: Any) -> Any:
    """Load a compiled model without its code, which takes a minute to compile."""
    with mock.patch("torch._inductor.aoti_load_package"):
        return export.load_compiled(path)


METHODS = "str repr format index int float complex iter len getitem contains bool eq lt hash call"
RAISING = {f"__{name}__": _fail for name in METHODS.split()}
RaisingObject = type("RaisingObject", (), RAISING)
# The methods that Python needs to make an object of a class.
NEEDED = {
    "__new__",
    "__init__",
    "__class__",
    "__getattribute__",
    "__setattr__",
    "__init_subclass__",
}


def make_raising(base: type, *values: Any) -> Any:
    """An object of a subclass of a built-in type, each of whose methods raises."""
    methods = {name: _fail for name in dir(base) if callable(getattr(base, name))}
    methods = {name: method for name, method in methods.items() if name not in NEEDED}
    return type(f"Raising{base.__name__.title()}", (base,), methods)(*values)


RaisingPath = type("RaisingPath", (), {"__fspath__": _fail, "__str__": _fail, "__repr__": _fail})


def _raise_later() -> Iterator[Any]:
    yield "a.png"
    _fail()


# Each is made again for each call, because a generator can be used once.
ODD_VALUES: dict[str, Callable[[], Any]] = {
    "object with a defect": RaisingObject,
    "path with a defect": RaisingPath,
    "generator with a defect": _raise_later,
    "str with a defect": lambda: make_raising(str, NANO),
    "name with a defect": lambda: make_raising(str, "avg"),
    "int with a defect": lambda: make_raising(int, 3),
    "float with a defect": lambda: make_raising(float, 0.1),
    "list with a defect": lambda: make_raising(list, [1, 2]),
    "tuple with a defect": lambda: make_raising(tuple, (64, 64)),
    "dict with a defect": lambda: make_raising(dict, {"dataset": "a", "top1": 3}),
    "bytes with a defect": lambda: make_raising(bytes, b"a"),
    "items with a defect": lambda: [make_raising(str, "a"), make_raising(int, 1)],
    "values with a defect": lambda: {"dataset": "a", "top1": make_raising(float, 1.0)},
    "None": lambda: None,
    "True": lambda: True,
    "zero": lambda: 0,
    "negative": lambda: -1,
    "fraction": lambda: 1.5,
    "nan": lambda: math.nan,
    "infinite": lambda: math.inf,
    "large": lambda: 10**18,
    "huge": lambda: 10**5000,
    "complex": lambda: 1j,
    "empty text": lambda: "",
    "escape codes": lambda: "odd\x1b[31m\n\u202e",
    "null": lambda: "a\0b",
    "surrogate": lambda: "a\ud800b",
    "long": lambda: "x" * 100_000,
    "bytes": lambda: b"vit_b16",
    "stream": lambda: io.BytesIO(b"x"),
    "folder": lambda: Path("a"),
    "bad path": BadPath,
    "list": lambda: ["vit_b16"],
    "empty list": list,
    "nested list": lambda: [[[]]],
    "numbers": lambda: (1, 2, 3),
    "dict": lambda: {"a": 1},
    "set": lambda: {1, "a"},
    "generator": lambda: (x for x in "ab"),
    "object": object,
    "class": lambda: dict,
    "function": lambda: len,
    "module": lambda: torch,
    "model": lambda: torch.nn.Linear(2, 2),
    "enum": lambda: ViT_B_16_Weights.DEFAULT,
    "numpy int": lambda: np.int64(3),
    "numpy float": lambda: np.float32(math.nan),
    "numpy bool": lambda: np.bool_(True),
    "numpy text": lambda: np.str_("vit_b16"),
    "array": lambda: np.ones(3),
    "objects": lambda: np.array([None, "a"], dtype=object),
    "tensor": lambda: torch.ones(2, 3),
    "meta tensor": lambda: torch.empty(1, 3, 64, 64, device="meta"),
    "sparse tensor": lambda: torch.ones(3, 3).to_sparse(),
    "image": lambda: Image.new("RGB", (4, 4)),
    "no pixels": lambda: Image.new("RGB", (0, 4)),
    "dtype": lambda: torch.int8,
    "device": lambda: torch.device("meta"),
}


def make_calls(folder: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """A valid call of every public function and class by name: what to call, and its arguments."""
    vit, regnet = load_tiny("vit"), load_tiny("regnet")
    image = Image.new("RGB", (64, 48), "red")
    batch = torch.rand(1, 3, 64, 64)
    classifier, embedder = inference.Classifier(NANO), inference.Embedder(NANO)
    exported, embeddings = folder / "read.onnx", folder / "embeddings.parquet"
    if not embeddings.exists():
        image.save(folder / "image.png")
        write_embeddings(embedder, folder / "image.png", embeddings, progress=False)
    search = inference.ImageSearch(embeddings)
    sizes = {"num_classes": 3, "image_size": (64, 64)}
    build = {"in_chans": 3, "drop_rate": 0.1, "attn_drop_rate": 0.0, "drop_path_rate": 0.1}
    build |= {"patch_drop_rate": 0.1, "merge_tokens": 1}
    transform = swag_models.load_preprocess(NANO)
    load = {
        "pretrained": False,
        "weights": None,
        "num_classes": 3,
        "image_size": 48,
        "in_chans": 3,
        "device": "cpu",
        "dtype": "float32",
        "progress": False,
        "drop_rate": 0.0,
        "attn_drop_rate": 0.0,
        "drop_path_rate": 0.0,
        "patch_drop_rate": 0.0,
        "merge_tokens": 1,
        "global_pool": "token",
        "backend": "mmap",
        "trusted_key": None,
        "weights_key": None,
        "features_only": False,
        "out_indices": None,
    }
    pipeline: dict[str, Any] = {
        "model": NANO,
        "fast": False,
        "compile": None,
        "scaled_decoding": None,
        "device": "cpu",
        "dtype": "float32",
        "image_size": 48,
        "batch_size": 2,
        "workers": 1,
        **{name: load[name] for name in ("weights", "progress", "drop_rate", "backend")},
    }
    levels = {"x": batch, "indices": 1, "norm": False, "stop_early": True, "output_fmt": "NCHW"}
    levels |= {"intermediates_only": False, "output_dict": False}
    saved = {
        "name": "a",
        "description": "b",
        "classes": ["c"] * 10,
        "synsets": ["n1"] * 10,
        "metrics": None,
        "license": "mit",
        "license_url": "https://localhost/",
        "tags": ["a"],
        "datasets": ["a"],
        "base_model": "a/b",
        "training": "c",
        "multi_label": None,
        "max_shard_size": 10**9,
        "sign": None,
    }
    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "list_models": (
            swag_models.list_models,
            {"pattern": "*", "include": "v*", "exclude": None, "variant": "in1k"},
        ),
        "get_spec": (swag_models.get_spec, {"name": NANO}),
        "load_model": (swag_models.load_model, {"name": NANO, **load}),
        "load_preprocess": (
            swag_models.load_preprocess,
            {"name": NANO, "image_size": 48, "train": False},
        ),
        "load_classes": (swag_models.load_classes, {"name": NANO}),
        "hub_entries": (swag_models.hub_entries, {}),
        "get_model": (swag_models.get_model, {"name": NANO, "weights": None, "num_classes": 3}),
        "get_model_builder": (swag_models.get_model_builder, {"name": NANO}),
        "get_model_weights": (swag_models.get_model_weights, {"name": NANO}),
        "get_weight": (swag_models.get_weight, {"name": f"{NANO}_Weights.DEFAULT"}),
        "load_model(features_only=True)": (
            lambda out_indices, num_classes: swag_models.load_model(
                NANO, features_only=True, out_indices=out_indices, num_classes=num_classes
            ),
            {"out_indices": (0, 2), "num_classes": None},
        ),
        NANO: (getattr(swag_models, NANO), load),
        "Transform": (transform, {"image": image}),
        "Transform.normalise": (transform.normalise, {"tensor": batch[0]}),
        "ModelSpec.from_json": (swag_models.ModelSpec.from_json, {"text": VIT_SPEC.to_json()}),
        "ModelSpec.from_dict": (swag_models.ModelSpec.from_dict, {"data": VIT_SPEC.to_dict()}),
        "Classifier": (
            inference.Classifier,
            {
                **pipeline,
                "classes": None,
                "threshold": 0.5,
                "multi_label": None,
                "candidate_labels": None,
            },
        ),
        "Classifier.call": (classifier, {"images": image, "top_k": 1}),
        "Classifier.stream": (
            lambda **options: list(classifier.stream(**options)),
            {"images": image, "top_k": 1},
        ),
        "Embedder": (inference.Embedder, {"model": NANO}),
        "Embedder.call": (embedder, {"images": image}),
        "ImageSearch": (inference.ImageSearch, {"path": embeddings, "model": NANO}),
        "ImageSearch.call": (
            lambda **options: list(search(**options)),
            {"images": image, "top_k": 1},
        ),
        "build": (models.build, {"config": VIT, **sizes, **build, "global_pool": "token"}),
        "ViT": (models.ViT, {"config": VIT, **sizes, **build, "global_pool": "token"}),
        "RegNet": (
            models.RegNet,
            {
                "config": REGNET,
                **sizes,
                **{name: build[name] for name in ("in_chans", "drop_rate", "drop_path_rate")},
                "global_pool": "avg",
            },
        ),
        "ResNet": (
            models.ResNet,
            {
                "config": RESNET,
                **sizes,
                **{name: build[name] for name in ("in_chans", "drop_rate", "drop_path_rate")},
                "global_pool": "avg",
            },
        ),
        "FeatureNet": (
            lambda model, out_indices, norm, output_fmt: models.FeatureNet(
                load_tiny("vit") if model is vit else model,
                out_indices,
                norm=norm,
                output_fmt=output_fmt,
            ),
            {"model": vit, "out_indices": 1, "norm": True, "output_fmt": "NLC"},
        ),
        "FeatureNet.call": (models.FeatureNet(load_tiny("vit")), {"x": batch}),
        "FeaturePyramid": (
            lambda model, out_channels: models.FeaturePyramid(model, out_channels),
            {"model": load_tiny("vit"), "out_channels": 8},
        ),
        "FeaturePyramid.call": (models.FeaturePyramid(load_tiny("vit"), 8), {"x": batch}),
        "group_parameters": (
            models.group_parameters,
            {"model": vit, "lr": 0.1, "weight_decay": 0.1, "layer_decay": 0.5, "no_decay": "norms"},
        ),
        "save": (publish.save, {"model": vit, "folder": folder / "saved", **saved}),
        "push": (
            publish.push,
            {
                "model": vit,
                "repo": "org/repo",
                "revision": "a",
                "private": False,
                "message": "a",
                "dry_run": True,
                "token": "a",
                "sign": None,
            },
        ),
        "export_model": (
            export.export_model,
            {
                "model": vit,
                "path": folder / "x.pt2",
                "spec": VIT_SPEC,
                "image_size": None,
                "dynamic_size": False,
                "dtype": "float32",
                "opset": 18,
                "external_data": None,
                "classes": None,
                "images": None,
            },
        ),
        "sign_folder": (
            publish.sign_folder,
            {"folder": publish.save(vit, folder / "signed", name="a"), "key": folder / "key.pem"},
        ),
        "read_metadata": (export.read_metadata, {"path": exported}),
        "load_compiled": (load_package, {"path": write_package(folder / "x.aoti.pt2")}),
    }
    for family, model in {"ViT": vit, "RegNet": regnet}.items():
        features = model.forward_features(batch).detach()
        mask: dict[str, Any] = {"attn_mask": None} if family == "ViT" else {}
        vit_only = {"return_prefix_tokens": False, **mask} if mask else {}
        calls |= {
            f"{family}.call": (model, {"x": batch}),
            f"{family}.forward_features": (model.forward_features, {"x": batch, **mask}),
            f"{family}.forward_head": (model.forward_head, {"x": features, "pre_logits": True}),
            f"{family}.forward_intermediates": (
                model.forward_intermediates,
                levels | vit_only,
            ),
            f"{family}.freeze": (load_tiny(family.lower()).freeze, {"up_to": None}),
            f"{family}.group_matcher": (model.group_matcher, {"coarse": True}),
            f"{family}.train": (load_tiny(family.lower()).train, {"mode": True}),
            f"{family}.set_grad_checkpointing": (
                load_tiny(family.lower()).set_grad_checkpointing,
                {"enable": True},
            ),
            f"{family}.reset_classifier": (
                load_tiny(family.lower()).reset_classifier,
                {"num_classes": 3, "global_pool": "avg"},
            ),
            f"{family}.prune_intermediate_layers": (
                load_tiny(family.lower()).prune_intermediate_layers,
                {"indices": 1, "prune_norm": False, "prune_head": True},
            ),
            f"{family}.set_input_size": (
                load_tiny(family.lower()).set_input_size,
                {"img_size": 64, "patch_size": None},
            ),
        }
    calls["ViT.forward_attention"] = (vit.forward_attention, {"x": batch, "indices": 1})
    calls["ViT.pool"] = (vit.pool, {"x": torch.rand(1, 65, 32), "pool_type": "avg"})
    calls["ViT.get_intermediate_layers"] = (
        vit.get_intermediate_layers,
        {
            "x": batch,
            "n": 1,
            "reshape": True,
            "return_prefix_tokens": False,
            "norm": True,
            "attn_mask": None,
            "return_class_token": False,
        },
    )
    return calls


with tempfile.TemporaryDirectory() as _folder:
    NAMES = tuple(make_calls(Path(_folder)))


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_calls(tmp_path_factory.mktemp("calls"))


@pytest.fixture(autouse=True)
def _stop_before_long_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An export ends after the checks of its arguments; no call may take long.

    What a call writes under an odd name is written to a temporary folder.
    """
    monkeypatch.chdir(tmp_path)

    def stop(*_: Any, **__: Any) -> None:
        raise errors.ExportError("stopped by the test")

    def fail(*_: Any) -> None:
        raise AssertionError(f"the call took more than {MAX_SECONDS} seconds")

    monkeypatch.setattr(export, "trace_model", stop)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    handler = signal.signal(signal.SIGALRM, fail)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


def find_flaw(function: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """Call a function; returns what is wrong with the error, None for a clear error or success."""
    signal.alarm(MAX_SECONDS)
    try:
        function(**arguments)
    except SwagModelsError as error:
        text = str(error)
        return None if text.isprintable() and 0 < len(text) < 500 else f"ugly: {text!r}"
    except Exception as error:  # any error of another class
        return f"{type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.alarm(0)
    return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_an_odd_argument_is_refused_in_one_line(name: str, calls: dict[str, Any]) -> None:
    function, valid = calls[name]
    flaws = {
        f"{parameter}={odd}": flaw
        for parameter in valid
        for odd, make in ODD_VALUES.items()
        if (flaw := find_flaw(function, {**valid, parameter: make()}))
    }
    assert not flaws, "\n" + "\n".join(f"{key}: {flaw}" for key, flaw in flaws.items())


def test_every_parameter_of_a_public_function_is_tested(calls: dict[str, Any]) -> None:
    missing = {
        name: untested
        for name, (function, valid) in calls.items()
        if (
            untested := list_parameters(function)
            - set(valid)
            - set(calls[INHERITED[name]][1] if name in INHERITED else ())
        )
    }
    assert not missing


def list_parameters(function: Callable[..., Any]) -> set[str]:
    """The parameters of a function that have a name, without those of the options of others."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind not in kinds}


def test_every_public_function_has_a_valid_call() -> None:
    public = [(name, getattr(package, name)) for package in PACKAGES for name in package.__all__]
    untested = {
        name
        for name, value in public
        if callable(value)
        and name not in NAMES
        # Records and errors hold what they are given.
        and not (
            is_dataclass(value)
            or (inspect.isclass(value) and issubclass(value, (Exception, tuple)))
        )
        and name not in ("Backbone", *swag_models.list_models())
    }
    assert not untested
