"""Runs as values: overridden by field=value, converted to JSON and back, checked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.augmentation import Augment
from swag_models.recipe.config import EMA, Checkpointing, Engine, Objective, Optimizer, Run
from swag_models.recipe.config_overrides import iterate_fields, override
from swag_models.recipe.distillation import Distillation
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.estimate import count_steps

RUN = Run(arch="vit_nano", image_size=32, batch_size=64, epochs=2)


def test_a_run_survives_json() -> None:
    full = replace(
        RUN,
        init="a folder",
        ema=EMA(0.9),
        optimizer=Optimizer("sgd", lr_batch=256),
        engine=Engine(lanes=4),
        warmup=0.1,
    )
    for run in (RUN, full):
        assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run
        assert Run.from_dict(run.to_dict()) == run
    assert isinstance(Run.from_dict(json.loads(json.dumps(full.to_dict()))).optimizer.betas, tuple)


def test_a_run_made_in_python_equals_one_from_json() -> None:
    betas: list[float] = [0, 0.5]
    run = replace(RUN, epochs=2, optimizer=Optimizer(lr=1, betas=betas), ema={"decay": 0})  # type: ignore[arg-type]
    assert json.dumps(run.to_dict()) == json.dumps(
        Run.from_dict(json.loads(json.dumps(run.to_dict()))).to_dict()
    )
    assert run == replace(RUN, optimizer=Optimizer(lr=1.0, betas=(0.0, 0.5)), ema=EMA(0.0))
    assert hash(run) == hash(Run.from_dict(run.to_dict()))


def test_missing_fields_have_their_defaults() -> None:
    data = {
        "arch": "vit_nano",
        "image_size": 32,
        "batch_size": 64,
        "epochs": 2,
        "optimizer": {"lr": 1},
    }
    assert Run.from_dict(data) == replace(RUN, optimizer=Optimizer(lr=1.0))


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ([], RUN),
        (["batch_size=128"], replace(RUN, batch_size=128)),
        ([" batch_size = 128 "], replace(RUN, batch_size=128)),
        (
            ["optimizer.lr=1e-2", "optimizer.kind=sgd"],
            replace(RUN, optimizer=Optimizer("sgd", lr=0.01)),
        ),
        (["optimizer.lr=1"], replace(RUN, optimizer=Optimizer(lr=1.0))),
        (["optimizer.betas=0.8, 0.9"], replace(RUN, optimizer=Optimizer(betas=(0.8, 0.9)))),
        (["optimizer.no_decay=norms"], replace(RUN, optimizer=Optimizer(no_decay="norms"))),
        (["epochs=none", "steps=10"], replace(RUN, epochs=None, steps=10)),
        (["steps=10", "epochs=none"], replace(RUN, epochs=None, steps=10)),
        (["steps=10"], replace(RUN, epochs=None, steps=10)),
        (["epochs=3", " epochs = 4"], replace(RUN, epochs=4.0)),
        (["steps=none"], RUN),
        (
            ["engine.compile=true", "engine.sync_bn=False"],
            replace(RUN, engine=Engine(compile=True, sync_bn=False)),
        ),
        (["ema.decay=0.5"], replace(RUN, ema=EMA(decay=0.5))),
        (["ema.decay=0.5", "ema=none"], RUN),
        (["ema=None", "ema.warmup_ratio=0"], replace(RUN, ema=EMA(warmup_ratio=0.0))),
        (["augment.sizes=16,32"], replace(RUN, augment=Augment(sizes=(16, 32)))),
        (["augment.sizes=16"], replace(RUN, augment=Augment(sizes=(16,)))),
        (["augment.sizes=16,32", "augment.sizes=none"], RUN),
        (["init=none"], RUN),
        (["objective.weighting=idf"], replace(RUN, objective=Objective(weighting="idf"))),
        (["objective.weighting=idf", "objective.weighting=none"], RUN),
        (
            ["objective.gamma_neg=2", "objective.clip=0", "objective.kind=asymmetric"],
            replace(RUN, objective=Objective("asymmetric", gamma_neg=2.0, clip=0.0)),
        ),
        (["init=2024"], replace(RUN, init="2024")),
        (["init=true"], replace(RUN, init="true")),
        (["init=runs/a,b"], replace(RUN, init="runs/a,b")),
        (["init=runs/lr=1"], replace(RUN, init="runs/lr=1")),
        (["seed=1", "seed=2"], replace(RUN, seed=2)),
    ],
)
def test_override(settings: list[str], changed: Run) -> None:
    assert override(RUN, settings) == changed


def test_override_does_not_change_its_argument() -> None:
    before = RUN.to_dict()
    override(RUN, ["optimizer.lr=5", "ema.decay=0.5"])
    assert RUN.to_dict() == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr", "setting 'lr' is not field=value, as in optimizer.lr=0.01"),
        (
            "lr=1",
            "lr: a run has no field 'lr'; fields: arch, .*, optimizer, .*loss_spike_factor",
        ),
        ("=1", "setting '=1' is not field=value"),
        (
            "optimizer.rate=1",
            "optimizer.rate: optimizer has no field 'rate'; fields: kind, lr, lr_batch, ",
        ),
        ("ema.share=1", "ema.share: ema has no field 'share'; fields: decay, warmup_ratio"),
        ("optimizer.lr.max=1", "optimizer.lr.max: optimizer.lr has no field 'max'; fields: none"),
        ("optimizer.kind=adam", "optimizer.kind is 'adam'; allowed: sgd, adamw"),
        ("optimizer=sgd", r"optimizer is 'sgd'; allowed: its fields \(kind, lr, .*clip_norm\)"),
        ("ema=1", r"ema is 1; allowed: its fields \(decay, warmup_ratio\) or none"),
        ("optimizer.lr=fast", "optimizer.lr is 'fast'; allowed: a finite number"),
        ("optimizer.lr=none", "optimizer.lr is None; allowed: a finite number"),
        ("optimizer.lr=inf", "optimizer.lr is inf; allowed: a finite number"),
        ("optimizer.lr=nan", "optimizer.lr is nan; allowed: a finite number"),
        ("optimizer.lr=true", "optimizer.lr is True; allowed: a finite number"),
        ("optimizer.betas=0.9", "optimizer.betas is 0.9; allowed: 2 numbers with commas between"),
        (
            "optimizer.betas=1,2,3",
            r"optimizer.betas is \[1, 2, 3\]; allowed: 2 numbers with commas between",
        ),
        ("optimizer.betas=a,b", r"optimizer.betas\[0\] is 'a'; allowed: a finite number"),
        ("batch_size=1.5", "batch_size is 1.5; allowed: a whole number"),
        ("epochs=x", "epochs is 'x'; allowed: a finite number or none"),
        ("engine.compile=1", "engine.compile is 1; allowed: true, false"),
        ("arch=none", "arch is None; allowed: a text"),
        ("augment.sizes=1.5", r"augment.sizes\[0\] is 1.5; allowed: a whole number"),
        ("augment.sizes=16,x", r"augment.sizes\[1\] is 'x'; allowed: a whole number"),
        ("augment.sizes=16,99999999", r"augment.sizes is \(16, 99999999\); allowed: 16384 or less"),
        ("optimizer.adjust_lr_fn=x", "optimizer.adjust_lr_fn is 'x'; allowed: match_rms_adamw, "),
        ("schedule=linear", "schedule is 'linear'; allowed: cosine, wsd"),
        (
            "distill.feature_weight=0",
            "distill.feature_weight and logit_weight are 0; give one of them a",
        ),
        ("epochs=none", "epochs is None and steps None; give one of them, and none for the other"),
    ],
)
def test_invalid_settings_are_rejected(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        override(RUN, [setting])
    assert "\n" not in str(caught.value)


def test_epochs_replace_steps_but_both_at_once_are_rejected() -> None:
    run = replace(RUN, epochs=None, steps=10)
    assert override(run, ["epochs=2"]) == replace(RUN, epochs=2.0)
    for base in (RUN, run):
        with pytest.raises(ConfigError, match=r"epochs is 2\.0 and steps 5; give one of them"):
            override(base, ["epochs=2", "steps=5"])


def test_a_part_set_to_a_word_is_rejected_despite_later_settings() -> None:
    with pytest.raises(ConfigError, match="ema is 5; allowed: its fields"):
        override(RUN, ["ema=5", "ema.decay=0.5"])


def test_warmup_and_cooldown_may_not_overlap() -> None:
    settings = ["warmup=0.4", "cooldown=0.7"]
    assert override(RUN, settings).schedule == "cosine"  # which has no cooldown
    assert override(RUN, ["warmup=0.25", "cooldown=0.75", "schedule=wsd"]).cooldown == 0.75
    with pytest.raises(ConfigError, match=r"^warmup is 0.4 and cooldown 0.7; allowed: fractions "):
        override(RUN, [*settings, "schedule=wsd"])


def test_a_frozen_backbone_has_neither_muon_nor_patch_dropout() -> None:
    for setting in ("optimizer.kind=muon", "patch_drop_rate=0.5"):
        override(RUN, [setting])
        with pytest.raises(ConfigError, match=r"is .* and trainable is 'head'[,;] "):
            override(RUN, [setting, "trainable=head"])
    with pytest.raises(ConfigError, match=r"^sizes is \(\); allowed: pixels, or none$"):
        Augment(sizes=())


RANGES: dict[str, tuple[str, str]] = {
    "image_size": ("0", "a number of pixels"),
    "batch_size": ("0", "1 or more"),
    "epochs": ("0", "a positive number, or none"),
    "steps": ("0", "1 or more, or none"),
    "warmup": ("1", "a fraction from 0 to below 1"),
    "cooldown": ("1.1", "a fraction from 0 to 1"),
    "drop_path_rate": ("1", "from 0 to below 1"),
    "patch_drop_rate": ("1", "from 0 to below 1"),
    "merge_tokens": ("-1", "0 or more"),
    "augment.sizes": ("32,0", "pixels, or none"),
    "optimizer.lr": ("0", "a positive number"),
    "optimizer.lr_batch": ("0", "a number of samples, or none"),
    "optimizer.momentum": ("1", "from 0 to below 1"),
    "optimizer.betas": ("0.9,1", "two numbers from 0 to below 1"),
    "optimizer.weight_decay": ("-1", "0 or more"),
    "optimizer.layer_decay": ("0", "above 0, at most 1"),
    "optimizer.clip_norm": ("0", "a positive number, or none"),
    "objective.label_smoothing": ("1", "from 0 to below 1"),
    "objective.mixup": ("-0.1", "0 or more"),
    "objective.gamma_pos": ("-1", "0 to 64"),
    "objective.gamma_neg": ("65", "0 to 64"),
    "objective.clip": ("1e-7", "0, or 1e-6 to below 1"),
    "augment.scale": ("0.5,0.1", "two fractions, the smaller first"),
    "augment.ratio": ("2,1", "0.001 to 1000, the smaller first"),
    "augment.flip": ("2", "a probability"),
    "augment.color_jitter": ("1.5", "from 0 to 1"),
    "augment.grayscale": ("-0.1", "a probability"),
    "distill.feature_weight": ("-1", "0 or more"),
    "distill.logit_weight": ("-1", "0 or more"),
    "distill.temperature": ("0", "a positive number"),
    "ema.decay": ("1", "from 0 to below 1"),
    "ema.warmup_ratio": ("2", "a fraction from 0 to 1"),
    "engine.micro_batch": ("0", "a number of samples, or none"),
    "engine.workers": ("-1", "0 or more"),
    "engine.lanes": ("0", "1 or more, or none"),
    "engine.buffer": ("0", "1 or more"),
    "checkpoint.every": ("0", "1 or more"),
    "checkpoint.keep": ("0", "1 or more"),
    "eval_every": ("0", "1 or more, or none"),
    "log_every": ("0", "1 or more"),
    "loss_spike_factor": ("1", "above 1, or none"),
}


@pytest.mark.parametrize("name", RANGES)
def test_numbers_out_of_range_are_rejected(name: str) -> None:
    text, allowed = RANGES[name]
    with pytest.raises(ConfigError) as caught:
        override(RUN, [f"{name}={text}"])
    assert str(caught.value).startswith(f"{name} is ")
    assert str(caught.value).endswith(f"; allowed: {allowed}")


def test_every_number_has_a_range() -> None:
    free = {"seed"}
    values = {
        name: value
        for name, value in iterate_fields(replace(RUN, ema=EMA(), distill=Distillation()))
        if not isinstance(value, (str, bool))
    }
    assert values.keys() - free == RANGES.keys() | {"init", "distill.teacher", "augment.auto"}


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (Optimizer, {"kind": "adam"}, "kind is 'adam'; allowed: sgd, adamw"),
        (Objective, {"kind": "hinge"}, "kind is 'hinge'; allowed: softmax, sigmoid, asymmetric"),
        (
            Augment,
            {"interpolation": "nearest"},
            "interpolation is 'nearest'; allowed: bicubic, bilinear",
        ),
        (EMA, {"decay": "1"}, "decay is '1'; allowed: a finite number"),
        (Engine, {"precision": "fp8"}, "precision is 'fp8'; allowed: fp32, bf16, fp16"),
        (Engine, {"parallel": None}, "parallel is None; allowed: ddp, fsdp"),
        (Checkpointing, {"keep": 1.5}, "keep is 1.5; allowed: a whole number"),
    ],
)
def test_parts_made_in_python_are_checked_too(
    part: Any, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        part(**values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["objective.kind=sigmoid", "objective.weighting=idf"],
            r"^objective.weighting is 'idf' with kind=sigmoid; allowed: none, because only the",
        ),
        (
            ["objective.weighting=idf", "objective.kind=asymmetric"],
            r"^objective.weighting is 'idf' with kind=asymmetric; allowed: none, because only",
        ),
        (["objective.weighting=tfidf"], r"^objective.weighting is 'tfidf'; allowed: none, idf"),
        (
            ["objective.gamma_neg=2"],
            r"^objective.gamma_neg is 2 with kind=softmax, which does not use it; set kind=asymm",
        ),
        (
            ["objective.clip=0", "objective.kind=sigmoid"],
            r"^objective.clip is 0 with kind=sigmoid, which does not use it; set kind=asymmetric",
        ),
    ],
)
def test_settings_that_the_objective_would_not_use_are_refused(
    settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        override(RUN, settings)


def test_runs_made_in_python_are_checked_too() -> None:
    wrong: Any = "none"
    with pytest.raises(ConfigError, match=r"trainable is 'none'; allowed: all, head"):
        replace(RUN, trainable=wrong)
    with pytest.raises(
        ConfigError, match=r"ema is 'none'; allowed: its fields \(decay, warmup_ratio\) or none"
    ):
        replace(RUN, ema=wrong)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"^a run is \[\]; allowed: its fields \(arch, "),
        (
            {"arch": "vit_nano"},
            "^a run: missing 2 required positional arguments: 'image_size' and 'batch_size'",
        ),
        (
            {**RUN.to_dict(), "learning": 1, "a": 2},
            "^a run has no field a, learning; fields: arch, ",
        ),
        (
            {**RUN.to_dict(), "optimizer": {"speed": 1}},
            "^optimizer has no field speed; fields: kind, ",
        ),
        (
            {**RUN.to_dict(), "optimizer": {"lr": -1}},
            "^optimizer.lr is -1.0; allowed: a positive number",
        ),
        ({**RUN.to_dict(), "optimizer": None}, r"^optimizer is None; allowed: its fields \(kind, "),
        (
            {**RUN.to_dict(), "augment": {"scale": ["a", 1]}},
            r"^augment.scale\[0\] is 'a'; allowed: a finite number",
        ),
        ({**RUN.to_dict(), "trainable": ["all"]}, r"^trainable is \['all'\]; allowed: all, head"),
    ],
)
def test_data_of_an_invalid_run_are_rejected(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Run.from_dict(data)


def test_the_rate_is_scaled_with_the_batch_only_if_lr_batch_is_set() -> None:
    assert replace(
        RUN, batch_size=8192, optimizer=Optimizer(lr=0.1, lr_batch=256)
    ).lr == pytest.approx(3.2)
    assert replace(RUN, batch_size=8192, optimizer=Optimizer(lr=0.1)).lr == 0.1


def test_iterate_fields_names_what_override_takes() -> None:
    run = replace(RUN, ema=EMA())
    values = dict(iterate_fields(run))
    assert values["optimizer.betas"] == (0.9, 0.95)
    assert "optimizer" not in values
    settings = [
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in values.items()
    ]
    assert override(replace(RUN, seed=3, batch_size=1), settings) == run


@pytest.mark.parametrize(
    ("setting", "limit"),
    [
        ("image_size=1000000000000", 16_384),
        ("image_size=16385", 16_384),
        ("batch_size=999999999", 2**20),
        ("batch_size=1" + "0" * 20, 2**20),
        ("engine.micro_batch=999999999", 2**20),
        ("engine.workers=1025", 1024),
        ("engine.lanes=1000000000000", 2**20),
        ("engine.buffer=999999999", 10**8),
        ("epochs=1e300", 10**6),
        ("steps=999999999", 10**8),
        ("optimizer.lr=1e16", 10**15),
        ("checkpoint.every=1" + "0" * 16, 10**15),
    ],
)
def test_numbers_too_large_for_any_run_are_refused(setting: str, limit: int) -> None:
    run = replace(get_preset("vit_b16_in1k").run, epochs=None, steps=1)
    name = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{name} is .*; allowed: {limit} or less$"):
        override(run, [setting])


def test_epochs_of_too_many_steps_are_refused() -> None:
    run = Run(arch="vit_nano", image_size=32, batch_size=1, epochs=1e6)
    assert count_steps(run, 100) == 10**8
    with pytest.raises(ConfigError, match=r"^epochs is 1e\+06, which is 101,000,000 steps"):
        count_steps(run, 101)


@pytest.mark.parametrize("ratio", ["1e-300,1e300", "1e-4,1", "1,1001", "2,1"])
def test_ratios_of_no_image_are_refused(ratio: str) -> None:
    with pytest.raises(ConfigError, match=r"^augment.ratio is .*; allowed: 0.001 to 1000"):
        override(RUN, [f"augment.ratio={ratio}"])
