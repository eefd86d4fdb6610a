"""What users of timm call to train a model, with assertions on what they rely on.

Each function is the check of one row of compatibility.py.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import timm
import torch
from peers.subjects import Subject
from peers.timm_calls import equal
from timm.optim import create_optimizer_v2


def model_ema(subject: Subject) -> None:
    model = subject.load().train()
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    ema.update(model)
    for name, parameter in model.named_parameters():
        average = dict(ema.module.named_parameters())[name]
        torch.testing.assert_close(average, (parameter + before[name]) / 2)


def layer_decay(subject: Subject) -> None:
    optimizer = create_optimizer_v2(subject.load(), opt="adamw", lr=1.0, layer_decay=0.5)
    rates = {group["lr_scale"] for group in optimizer.param_groups}
    assert max(rates) == 1
    assert len(rates) > 2


def group_parameters(subject: Subject) -> None:
    model = subject.load()
    matcher = model.group_matcher()
    layers = timm.models.group_parameters(model, matcher)
    names = [name for names in layers.values() for name in names]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    modules = timm.models.group_modules(model, matcher)
    assert len(modules) > 2


def freeze(subject: Subject) -> None:
    model = subject.load()
    part = "blocks.0" if subject.family == "vit" else "s1"
    timm.utils.freeze(model, part)
    assert not any(p.requires_grad for p in model.get_submodule(part).parameters())
    assert any(p.requires_grad for p in model.parameters())
    timm.utils.unfreeze(model, part)
    assert all(p.requires_grad for p in model.parameters())


def freeze_batch_norm(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    expected = model(images)
    frozen = timm.layers.freeze_batch_norm_2d(model)
    assert "FrozenBatchNorm" in repr(frozen)
    torch.testing.assert_close(frozen(images), expected)


def split_batch_norm(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    expected = model(images)
    split = timm.layers.convert_splitbn_model(model, 2).eval()
    torch.testing.assert_close(split(images), expected)


def sync_batch_norm(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    expected = model(images)
    torch.testing.assert_close(timm.layers.convert_sync_batchnorm(model)(images), expected)


def reparameterize(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    assert torch.equal(timm.utils.reparameterize_model(model)(images), model(images))


def timm_load_checkpoint(subject: Subject) -> None:
    model, again = subject.load(), subject.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        torch.save({"state_dict": model.state_dict()}, path)
        timm.models.load_checkpoint(again, str(path))
    assert equal(model.state_dict().values(), again.state_dict().values())
