"""Every number of every preset has a source and matches the published models."""

from __future__ import annotations

import json
import re

import pytest

from swag_models.api import SPECS
from swag_models.errors import ConfigError
from swag_models.recipe.config import EMA, Run
from swag_models.recipe.config_overrides import iterate_fields
from swag_models.recipe.presets import (
    DATA_FIELDS,
    DEFAULT,
    PRESETS,
    Preset,
    find_value_source,
    get_preset,
)
from swag_models.recipe.value_sources import ValueSource

ARCHS = ("regnety_16gf", "regnety_32gf", "regnety_128gf", "vit_b16", "vit_l16", "vit_h14")
KINDS = ("hashtags", "in1k", "in1k_linear")  # of the published models
NAMES = [preset.name for preset in PRESETS]
PUBLISHED = [preset for preset in PRESETS if preset.run.arch in ARCHS]
NANO = [preset for preset in PRESETS if preset.run.arch not in ARCHS]
LEARNT = re.compile(
    r"(optimizer|objective|augment)\..*|ema(\..*)?|epochs|steps|batch_size|image_size|warmup|"
    r"schedule|cooldown|patch_drop_rate|merge_tokens"
)


def in_presets(presets: list[Preset]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("preset", presets, ids=[preset.name for preset in presets])


def test_there_is_a_preset_for_each_model() -> None:
    wanted = {f"{arch}_{kind}" for arch in ARCHS for kind in (*KINDS, "multilabel", "distill")}
    wanted |= {
        f"{arch}_nano_{kind}"
        for arch in ("vit", "regnety")
        for kind in ("hashtags", "finetune", "linear", "multilabel", "distill")
    }
    wanted.add("regnety_200mf_hashtags")
    assert len(NAMES) == len(wanted)
    assert set(NAMES) == wanted
    assert all(preset.name.startswith(preset.run.arch) for preset in PRESETS)


@in_presets(list(PRESETS))
def test_every_value_that_differs_from_the_default_has_a_source(preset: Preset) -> None:
    plain = dict(iterate_fields(Run(arch="", image_size=1, batch_size=1, epochs=1)))
    required = ("arch", "image_size", "batch_size", "epochs")
    for name, value in iterate_fields(preset.run):
        if name in required or name not in plain or value != plain[name]:
            assert find_value_source(preset, name) is not DEFAULT, name
    assert all(find_value_source(preset, name) is not DEFAULT for name in DATA_FIELDS)


@in_presets(PUBLISHED)
def test_every_value_that_affects_the_result_has_a_source(preset: Preset) -> None:
    names = [name for name, _ in iterate_fields(preset.run) if LEARNT.fullmatch(name)]
    assert len(names) > 20
    assert [name for name in names if find_value_source(preset, name) is DEFAULT] == []


@in_presets(list(PRESETS))
def test_no_source_names_an_absent_field(preset: Preset) -> None:
    names = {*dict(iterate_fields(preset.run)), *DATA_FIELDS}
    assert [
        key for key in preset.sources if not any(f"{name}.".startswith(f"{key}.") for name in names)
    ] == []


@in_presets(list(PRESETS))
def test_confirmed_values_name_a_document(preset: Preset) -> None:
    names = [*dict(iterate_fields(preset.run)), *DATA_FIELDS]
    sources = {name: find_value_source(preset, name) for name in names}
    assert [
        name
        for name, source in sources.items()
        if source.mark in ("confirmed", "quoted") and not source.document
    ] == []


@in_presets(list(PRESETS))
def test_presets_survive_json(preset: Preset) -> None:
    assert Run.from_dict(json.loads(json.dumps(preset.run.to_dict()))) == preset.run


@in_presets([preset for preset in PUBLISHED if preset.run.init and preset.name in SPECS])
def test_fine_tuning_matches_the_catalog(preset: Preset) -> None:
    spec = SPECS[preset.name]
    assert (spec.arch, spec.image_size, spec.num_classes) == (
        preset.run.arch,
        preset.run.image_size,
        preset.num_classes,
    )
    assert spec.preprocess.interpolation == preset.run.augment.interpolation
    assert preset.run.init is not None
    assert SPECS[preset.run.init].variant == "backbone"
    assert SPECS[preset.run.init].arch == preset.run.arch
    assert preset.run.trainable == ("head" if spec.variant == "in1k_linear" else "all")


@in_presets([preset for preset in PUBLISHED if preset.name.endswith("_hashtags")])
def test_pre_training_matches_the_catalog(preset: Preset) -> None:
    assert SPECS[preset.run.arch].image_size == preset.run.image_size
    two = preset.run.arch in ("regnety_128gf", "vit_h14")
    assert preset.run.epochs == (2 if two else 1)
    assert preset.run.epochs * preset.samples_per_epoch == (10e9 if two else 5e9)
    assert find_value_source(preset, "epochs").mark == ("confirmed" if two else "our reading")


@in_presets(NANO)
def test_every_number_of_the_miniatures_is_our_choice(preset: Preset) -> None:
    assert {find_value_source(preset, name).mark for name, _ in iterate_fields(preset.run)} == {
        "our choice"
    }
    if preset.run.init:
        assert get_preset(preset.run.init).run.arch == preset.run.arch


@pytest.mark.parametrize(
    ("name", "field", "value", "mark"),
    [
        ("regnety_32gf_in1k", "optimizer.lr", 6e-3, "confirmed"),
        ("regnety_32gf_in1k", "optimizer.momentum", 0.9, "our reading"),
        ("regnety_32gf_in1k", "ema.decay", 0.9999, "confirmed"),
        ("regnety_32gf_in1k", "ema.warmup_ratio", 0.05, "confirmed"),
        ("regnety_32gf_in1k", "objective.mixup", 0.1, "confirmed"),
        ("regnety_32gf_in1k", "engine.sync_bn", True, "confirmed"),
        ("vit_l16_in1k", "optimizer.lr", 0.01, "our reading"),
        ("vit_l16_in1k", "optimizer.clip_norm", 1.0, "our reading"),
        ("vit_l16_in1k", "image_size", 512, "confirmed"),
        ("vit_l16_in1k", "engine.parallel", "fsdp", "our choice"),
        ("regnety_16gf_in1k_linear", "optimizer.lr", 1e-3, "confirmed"),
        ("regnety_16gf_in1k_linear", "batch_size", 256, "confirmed"),
        ("vit_b16_in1k_linear", "optimizer.lr", 1e-2, "our reading"),
        ("vit_b16_in1k_linear", "optimizer.weight_decay", 1e-9, "confirmed"),
        ("vit_b16_in1k_linear", "epochs", 28, "confirmed"),
        ("regnety_128gf_hashtags", "optimizer.no_decay", "norms", "our reading"),
        ("regnety_128gf_hashtags", "optimizer.weight_decay", 1e-5, "our reading"),
        ("vit_h14_hashtags", "optimizer.weight_decay", 0.1, "our reading"),
        ("vit_h14_hashtags", "engine.precision", "bf16", "confirmed"),
        ("vit_h14_hashtags", "objective.kind", "softmax", "confirmed"),
        ("vit_h14_hashtags", "ema", None, "our reading"),
        ("vit_h14_hashtags", "seed", 0, "our choice"),
        ("vit_l16_multilabel", "optimizer.lr", 1e-4, "quoted"),
        ("regnety_16gf_multilabel", "image_size", 448, "quoted"),
        ("regnety_16gf_multilabel", "objective.kind", "sigmoid", "our choice"),
    ],
)
def test_known_numbers(name: str, field: str, value: object, mark: str) -> None:
    preset = get_preset(name)
    assert dict(iterate_fields(preset.run))[field] == value
    assert find_value_source(preset, field).mark == mark


@in_presets([preset for preset in PRESETS if preset.name.endswith("_multilabel")])
def test_multi_label_presets_differ_in_their_objective(preset: Preset) -> None:
    assert preset.run.objective.kind == "sigmoid"
    backbone = SPECS[preset.run.arch] if preset.run.arch in ARCHS else None
    if backbone is not None and backbone.family == "vit":
        assert preset.run.image_size % backbone.config.patch_size == 0  # type: ignore[union-attr]


def test_rates_at_the_batch_of_pre_training() -> None:
    assert get_preset("regnety_16gf_hashtags").run.lr == pytest.approx(0.1 * 8192 / 256)
    assert get_preset("vit_b16_hashtags").run.lr == 4e-4


def test_the_longest_name_counts() -> None:
    run = Run(arch="vit_nano", image_size=32, batch_size=64, epochs=1, ema=EMA())
    part, field = ValueSource("quoted", "of the part"), ValueSource("confirmed", "of the field")
    preset = Preset(
        "made", "", run, 1, 1, {"ema": part, "ema.warmup_ratio": field, "samples_per_epoch": field}
    )
    assert find_value_source(preset, "ema.warmup_ratio") is field
    assert find_value_source(preset, "ema.decay") is part
    assert find_value_source(preset, "epochs") is DEFAULT
    assert find_value_source(preset, "samples_per_epoch") is field


def test_an_unknown_name_is_rejected_with_similar_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"^unknown preset 'vit_b16_in1'; did you mean: vit_b16_in1k, "
    ):
        get_preset("vit_b16_in1")
    with pytest.raises(
        ConfigError,
        match=r"^unknown preset 'zzz'; allowed: regnety_16gf_hashtags, .*_200mf_hashtags$",
    ):
        get_preset("zzz")
