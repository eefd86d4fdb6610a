"""The public functions: names, filters, options, errors and imports."""

import ast
import copy
import dataclasses
import importlib.util
import inspect
import pickle
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import swag_models
from swag_models import errors, export, inference, models, publish
from swag_models.errors import ConfigError, UnknownModelError
from swag_models.spec import Preprocess

NANO = "vit_nano_hashtags"
BENCHMARKS = sorted(Path(__file__).parents[1].glob("benchmarks/*.py"))


def test_listing_and_specs_import_neither_torch_nor_a_network_client() -> None:
    code = (
        "import sys, swag_models\n"
        "swag_models.list_models('vit*', variant='in1k')\n"
        "swag_models.get_spec('vit_b16').to_json()\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'requests', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_sorted_and_exist() -> None:
    names = [name for name in swag_models.__all__ if name not in swag_models.list_models()]
    assert names == sorted(names)
    assert all(hasattr(swag_models, name) for name in swag_models.__all__)
    assert set(swag_models.list_models()) <= set(swag_models.__all__)


def test_only_public_names_are_completed() -> None:
    for package in (swag_models, inference, models, publish, export, errors):
        assert dir(package) == sorted(package.__all__)
    scope: dict[str, object] = {}
    exec("from swag_models import *", scope)
    assert set(swag_models.__all__) == set(scope) - {"__builtins__"}


def test_functions_of_models_are_pickled_by_name() -> None:
    for name in swag_models.list_models():
        builder = getattr(swag_models, name)
        assert pickle.loads(pickle.dumps(builder)) is copy.deepcopy(builder) is builder
        assert swag_models.get_model_builder(name) is swag_models.hub_entries()[name] is builder


def test_the_help_describes_the_public_names() -> None:
    text = pydoc.render_doc(swag_models, renderer=pydoc.plaintext)
    assert all(name in text for name in swag_models.__all__)
    assert "escape_record" not in text


def test_names_are_listed_by_pattern_and_filters() -> None:
    assert swag_models.list_models("vit*", variant="in1k", family="swag") == [
        "vit_b16_in1k",
        "vit_l16_in1k",
        "vit_h14_in1k",
    ]
    assert swag_models.list_models(family="regnet", num_classes=None) == [
        "regnety_16gf",
        "regnety_32gf",
        "regnety_128gf",
    ]
    assert swag_models.list_models("vit_h*", image_size=518) == [
        "vit_h14_in1k",
        "vit_h14_maws_in1k",
    ]
    assert swag_models.list_models("densenet*") == []
    assert swag_models.list_models("*18*", family="swsl") == ["resnet18_swsl_in1k"]
    resnets = swag_models.list_models(family="resnet")
    assert resnets == swag_models.list_models("resne*")
    assert len(resnets) == 10
    names = swag_models.list_models(
        include=["vit_?1*", "regnety_1*"], exclude=["*in1k*", "*nano*", "*ma*"]
    )
    assert names == ["regnety_16gf", "regnety_128gf", "vit_b16", "vit_l16", "vit_h14"]
    assert "vit_b16" not in swag_models.list_models(exclude="vit*")
    for name in ("include", "exclude"):
        with pytest.raises(ConfigError, match="3"):
            swag_models.list_models(**{name: [3]})


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"variant": "in2k"}, "unknown variant 'in2k'; did you mean: in1k"),
        ({"variant": ""}, "unknown variant ''; allowed: .*in1k_linear, .*hashtags"),
        ({"arch": "vit_b_16"}, "unknown arch 'vit_b_16'; did you mean: vit_b16"),
        ({"family": "ViT"}, "unknown family 'ViT'; did you mean: vit"),
        (
            {"family": 3},
            "unknown family 3; allowed: swag, regnet, vit, wsl, resnet, swsl, maws",
        ),
        ({"image_size": 385}, "unknown image_size 385; allowed: 224, 384"),
        ({"num_classes": "1000"}, "unknown num_classes '1000'; allowed: None, 1000, 1751, 65"),
        ({"license": "mit"}, "unknown license 'mit'; allowed: cc-by-nc-4.0, cc-by-4.0, apache-2.0"),
        ({"family": "vit", "license": None}, "unknown license None; allowed"),
    ],
)
def test_a_value_that_no_model_has_is_an_error(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        swag_models.list_models(**filters)


def test_values_that_only_different_models_have_match_none() -> None:
    assert swag_models.list_models(variant="hashtags", num_classes=1000) == []
    assert swag_models.list_models("regnet*", family="vit") == []


def test_a_spec_whose_parameters_are_not_counted_is_returned_unchanged() -> None:
    spec = dataclasses.replace(swag_models.get_spec("vit_b16"), num_params=0)
    assert swag_models.get_spec(spec) is spec


def test_an_unknown_filter_is_reported_with_the_allowed_ones() -> None:
    with pytest.raises(ConfigError, match="unknown filter size; allowed: arch, family, variant"):
        swag_models.list_models(size=384)
    with pytest.raises(ConfigError, match="unknown filter module; allowed: arch, family"):
        swag_models.list_models(module=swag_models)


def test_an_unknown_name_is_reported_with_the_nearest_ones() -> None:
    with pytest.raises(
        UnknownModelError, match="unknown model 'vit_b_16_in1k'; did you mean: vit_b16_in1k"
    ):
        swag_models.load_model("vit_b_16_in1k")
    for name in ("VIT_B16", "ViT-B16", "Vit_B16"):
        with pytest.raises(UnknownModelError, match="did you mean: vit_b16, "):
            swag_models.load_model(name)
    with pytest.raises(
        ConfigError, match=r"unknown option .Num_Classes.; did you mean: num_classes"
    ):
        swag_models.vit_nano_hashtags(Num_Classes=3)  # type: ignore[call-overload]
    with pytest.raises(UnknownModelError, match="allowed: regnety_16gf, "):
        swag_models.get_spec("?")


def test_a_model_is_loaded_in_eval_mode_with_trainable_parameters() -> None:
    model = swag_models.load_model(NANO)
    assert not model.training
    assert all(
        parameter.requires_grad and not parameter.is_meta for parameter in model.parameters()
    )
    assert model(torch.zeros(2, 3, 48, 48)).shape == (2, 65)


def test_every_name_is_a_function_with_the_originals_signature() -> None:
    for name in swag_models.list_models():
        entry = getattr(swag_models, name)
        assert str(inspect.signature(entry)).startswith(
            "(pretrained: 'bool' = True, progress: 'Progress' = True, **kwargs"
        )
        assert entry.__name__ == name
        assert swag_models.get_spec(name).license in entry.__doc__


def test_a_model_function_equals_load_model() -> None:
    images = torch.randn(1, 3, 48, 48)
    by_name = swag_models.vit_nano_hashtags(True, False)(images)
    torch.testing.assert_close(by_name, swag_models.load_model(NANO)(images), rtol=0, atol=0)
    assert swag_models.vit_nano_hashtags(pretrained=False, num_classes=3)(images).shape == (1, 3)


def test_options_are_keyword_only() -> None:
    kinds = {
        parameter.kind
        for parameter in list(inspect.signature(swag_models.load_model).parameters.values())[1:]
    }
    assert kinds == {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


def test_a_custom_spec_is_built() -> None:
    spec = dataclasses.replace(
        swag_models.get_spec(NANO), name="mine", preprocess=Preprocess(16), num_classes=4
    )
    assert swag_models.load_model(spec, pretrained=False)(torch.zeros(1, 3, 16, 16)).shape == (1, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"dtype": "float12"}, "dtype 'float12' is not allowed; give float32"),
        ({"dtype": torch.int64}, "torch.int64 is not allowed"),
        ({"num_classes": -1}, "num_classes is -1; give a positive number, or None"),
        ({"image_size": 30}, "30x30 is not a multiple of the patch size 8; nearest: 32x32"),
        ({"image_size": True}, "give pixels as an int or"),
        ({"in_chans": "1"}, "in_chans is '1'; give a positive number"),
        ({"drop_path_rate": "x"}, "drop_path_rate is 'x'; give a number"),
        ({"image_size": (32, 32, 3)}, "give pixels as an int or"),
        ({"global_pool": "max"}, "allowed for a ViT: token, avg"),
        ({"drop_rate": 1.5}, "drop_rate is 1.5"),
    ],
)
def test_an_invalid_value_gives_a_one_line_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        swag_models.load_model(NANO, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_gives_a_one_line_error() -> None:
    with pytest.raises(ConfigError, match="device 'cuda' cannot be used here"):
        swag_models.load_model(NANO, device="cuda")


def test_dtype_is_applied_to_weights() -> None:
    model = swag_models.load_model(NANO, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_class_names_are_the_specs_or_torchvisions() -> None:
    assert swag_models.load_classes(NANO)[:2] == ("flower", "car")
    categories = torchvision.models.ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1.meta["categories"]
    assert list(swag_models.load_classes("regnety_16gf_in1k")) == categories


def test_an_error_for_a_backbone_without_class_names_lists_models_with_class_names() -> None:
    with pytest.raises(
        ConfigError,
        match=r"vit_b16 gives features and has no classes; .*vit_b16_in1k, vit_b16_in1k_linear",
    ):
        swag_models.load_classes("vit_b16")


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_imports_what_exists(path: Path) -> None:
    """Benchmarks run rarely, and some need packages that are not installed here."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("swag_models"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(name), name
