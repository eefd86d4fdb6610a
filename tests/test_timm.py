"""The catalog's models in timm's registry."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from tiny import SMALL_REGNET, VIT_SPEC, deviation, images, randomise

import swag_models.timm
from swag_models import get_spec, list_models, load_model, load_preprocess
from swag_models.errors import ConfigError
from swag_models.hub.timm_format import OWN_REGNET
from swag_models.publish import save

pytestmark = pytest.mark.usefixtures("caches")
NANO = ["vit_nano_hashtags", "regnety_nano_hashtags"]
every_nano = pytest.mark.parametrize("name", NANO)


def test_every_name_of_the_catalog_is_listed_with_its_metadata() -> None:
    names = sorted(f"swag_{name}" for name in list_models())
    assert sorted(timm.list_models("swag_*", module="timm")) == sorted([*names, OWN_REGNET])
    assert sorted(timm.list_pretrained("swag_*")) == names
    assert not timm.is_model_pretrained(OWN_REGNET)
    for spec in map(get_spec, list_models()):
        cfg = timm.get_pretrained_cfg(f"swag_{spec.name}")
        assert cfg.architecture == f"swag_{spec.name}"
        assert cfg.input_size == (3, *spec.preprocess.size)
        preprocess = spec.preprocess
        assert (cfg.crop_pct, cfg.interpolation) == (preprocess.crop_pct, preprocess.interpolation)
        assert cfg.crop_mode == preprocess.crop_mode
        assert cfg.num_classes == (spec.num_classes or 0)
        assert (cfg.license, cfg.url) == (spec.license, spec.sources[0].url)


@every_nano
def test_pretrained_models_are_ours_in_training_mode(name: str) -> None:
    model: Any = timm.create_model(f"swag_{name}", pretrained=True)
    assert model.training
    inputs = images(2, 48)
    with torch.no_grad():
        assert torch.equal(model.eval()(inputs), load_model(name)(inputs))
    image = Image.effect_noise((90, 70), 80).convert("RGB")
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    torch.testing.assert_close(transform(image), load_preprocess(name)(image), rtol=0, atol=1e-6)
    random: Any = timm.create_model(f"swag_{name}").eval()
    assert not torch.equal(random(inputs), model(inputs))


@every_nano
def test_options_are_timms(name: str) -> None:
    model: Any = timm.create_model(
        f"swag_{name}",
        pretrained=True,
        num_classes=7,
        img_size=64,
        in_chans=1,
        drop_rate=0.1,
        drop_path_rate=0.2,
        global_pool="avg",
    )
    assert model(images(2, 64, 1)).shape == (2, 7)
    assert (model.image_size, model.in_chans, model.drop_rate) == ((64, 64), 1, 0.1)
    rates = [module.rate for module in model.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2)
    assert timm.create_model(f"swag_{name}", num_classes=0).num_classes in (0, None)


@every_nano
def test_features_only(name: str) -> None:
    inputs, ours = images(2, 48), load_model(name)
    model: Any = timm.create_model(f"swag_{name}", pretrained=True, features_only=True).eval()
    levels = {"vit_nano_hashtags": 3, "regnety_nano_hashtags": 4}[name]
    assert len(model.feature_info.channels()) == levels
    with torch.no_grad():
        expected = ours.forward_intermediates(inputs, levels, intermediates_only=True)
        for output, feature in zip(model(inputs), expected, strict=True):
            assert deviation(output, feature) < 1e-5
    model = timm.create_model(f"swag_{name}", features_only=True, out_indices=(0, 2))
    channels = [ours.feature_info[index]["num_chs"] for index in (0, 2)]
    assert model.feature_info.channels() == channels
    assert [feature.shape[1] for feature in model(inputs)] == channels


@every_nano
@pytest.mark.parametrize("layout", ["timm", "torchvision", "swag"])
def test_a_checkpoint_in_any_layout_is_loaded(name: str, layout: Any, tmp_path: Path) -> None:
    from swag_models.layouts import translate_layout

    model: Any = randomise(timm.create_model(f"swag_{name}", num_classes=3)).eval()
    torch.save({"state_dict": translate_layout(model.state_dict(), layout)}, tmp_path / "a.pth")
    inputs = images(2, 48)
    other: Any = timm.create_model(
        f"swag_{name}", num_classes=3, checkpoint_path=tmp_path / "a.pth"
    ).eval()
    assert deviation(other(inputs), model(inputs)) < 1e-5
    # As train.py --pretrained-path: with other classes, another size.
    overlay = {"file": str(tmp_path / "a.pth"), "num_classes": -1}
    other = timm.create_model(
        f"swag_{name}",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        num_classes=5,
        img_size=64,
    ).eval()
    name_of_block = "blocks.1.mlp.fc1.weight" if "vit" in name else "s1.b1.conv1.conv.weight"
    state = model.state_dict()
    assert torch.equal(other.state_dict()[name_of_block], state[name_of_block])
    assert other(images(2, 64)).shape == (2, 5)


@every_nano
def test_what_timm_saves_of_our_models_loads_here_and_in_timm(name: str, tmp_path: Path) -> None:
    model: Any = randomise(timm.create_model(f"swag_{name}", pretrained=True, num_classes=3)).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    inputs = images(2, 48)
    assert deviation(load_model(tmp_path)(inputs), model(inputs)) < 1e-5
    assert get_spec(tmp_path).arch == get_spec(name).arch
    other: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert deviation(other(inputs), model(inputs)) < 1e-5
    save(model, tmp_path / "ours", license="mit")  # and with our own function
    assert deviation(load_model(tmp_path / "ours")(inputs), model(inputs)) < 1e-5


def test_a_published_regnet_that_timm_lacks_loads_in_timm(tmp_path: Path) -> None:

    spec = replace(VIT_SPEC, name="tiny", config=SMALL_REGNET, classes=None)
    model = randomise(load_model(spec, pretrained=False, in_chans=1))
    save(model, tmp_path, license="mit")
    other: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    inputs = images(2, 64, 1)
    with torch.no_grad():
        assert deviation(other(inputs), model(inputs)) < 1e-5
    assert other.num_classes == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qk_norm": True}, "vit_nano_hashtags has no option qk_norm; allowed: num_classes"),
        ({"global_pool": "map"}, "global_pool is 'map'"),
        ({"img_size": 50}, "image size 50x50 is not a multiple of the patch size 8"),
        ({"pretrained": True, "cache_dir": "/tmp/x"}, "set SWAG_MODELS_CACHE instead"),
        ({"in_chans": 0}, "in_chans is 0"),
        ({"num_classes": -3}, "-3"),
    ],
)
def test_an_option_that_these_models_lack_is_rejected(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        timm.create_model("swag_vit_nano_hashtags", **options)


def test_weights_of_an_architecture_without_any_are_rejected() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(OWN_REGNET, pretrained=True)


SCRIPT = """
import sys
from dataclasses import replace
import helper, timm  # a module beside the script
assert __name__ == "__main__", __name__
model = timm.create_model(sys.argv[1], pretrained=True)
print(sys.argv, model.num_classes, timm.list_models("swag_vit_nano*", module="timm"))
"""


def test_a_script_runs_with_its_arguments_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "helper.py").touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [str(tmp_path / "script.py"), "swag_vit_nano_hashtags"]
    monkeypatch.setattr(sys, "argv", ["timm.py", *arguments])
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    swag_models.timm.run_script()
    assert capsys.readouterr().out == f"{arguments} 65 ['swag_vit_nano_hashtags']\n"


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "usage: python -m"), (["missing.py"], "missing.py: no such")]
)
def test_a_missing_script_is_an_error_of_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["timm.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        swag_models.timm.run_script()
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_the_module_runs_a_script_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "helper.py").touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [str(tmp_path / "script.py"), "swag_vit_nano_hashtags"]
    result = subprocess.run(
        [sys.executable, "-m", "swag_models.timm", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{arguments} 65 ['swag_vit_nano_hashtags']\n"
    assert not result.stderr
