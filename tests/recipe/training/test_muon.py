"""Muon and AdamW as one optimizer: against torch's two and a float64 formula, in whole runs."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import REGNET, compare, make_arguments, make_digits, read_losses, run
from tiny import CONFIGS, images, tiny
from torch import Tensor, nn

from swag_models.catalog import MODELS
from swag_models.errors import ConfigError
from swag_models.models import build, group_parameters
from swag_models.recipe.config import Objective, Optimizer, Run
from swag_models.recipe.training.losses import compute_losses, make_targets
from swag_models.recipe.training.memory import count_matrix_weights, estimate_memory
from swag_models.recipe.training.muon import find_matrices
from swag_models.recipe.training.optimizer import make_optimizer, set_lr

FAMILIES = ("vit", "regnet")
MATRICES = {
    "vit": r"blocks\.\d\.(attn\.(qkv|proj)|mlp\.fc[12])\.weight",
    "regnet": r"s\d\.b\d\.((conv1|conv3|downsample)\.conv|se\.fc[12])\.weight",
}
RATES = (0.01, 0.02, 0.005)
SETTINGS = Optimizer("muon", momentum=0.95, betas=(0.7, 0.95), weight_decay=0.2, layer_decay=0.7)


def compute_gradients(model: Any) -> None:
    model.zero_grad()
    x = images(3).to(next(model.parameters()).dtype)
    targets = make_targets([[0, 3], [1], [2, 4, 5]], "softmax", 10)
    compute_losses(Objective(), model(x), targets).mean().backward()


def list_names(model: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrices_are_those_of_hidden_layers(family: str) -> None:
    model = tiny(family)
    names = [name for name, _ in model.named_parameters() if re.fullmatch(MATRICES[family], name)]
    assert sorted(list_names(model, find_matrices(model))) == sorted(names)
    assert sorted(list_names(model, find_matrices(nn.Sequential(model)))) == sorted(names)
    assert sum(weight.numel() for weight in find_matrices(model)) == count_matrix_weights(
        CONFIGS[family]
    )


@pytest.mark.parametrize("arch", ["vit_b16", "vit_h14", "regnety_16gf", "regnety_128gf"])
def test_memory_counts_one_number_for_each_weight_of_a_matrix(arch: str) -> None:
    config = next(spec.config for spec in MODELS if spec.arch == arch)
    with torch.device("meta"):
        model = build(config, num_classes=9, image_size=224)
    matrices = sum(weight.numel() for weight in find_matrices(model))
    count = sum(weight.numel() for weight in model.parameters())
    settings = Run(arch, 224, 8, steps=1, optimizer=SETTINGS)
    memory = estimate_memory(settings, count, count, gpus=1)
    assert memory.optimizer == 4 * (matrices + 2 * (count - matrices))
    assert 0.7 * count < matrices < count


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("rule", ["match_rms_adamw", "original"])
def test_updates_are_those_of_torchs_two_optimizers(
    family: str, channels_last: bool, rule: Any
) -> None:
    settings = copy.copy(SETTINGS)
    object.__setattr__(settings, "adjust_lr_fn", rule)
    ours = tiny(family)
    theirs = copy.deepcopy(ours)
    if channels_last:
        ours.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(ours, settings, 0.01)
    groups = group_parameters(theirs, lr=0.01, weight_decay=0.2, layer_decay=0.7)
    chosen = {id(weight) for weight in find_matrices(theirs)}
    # each 1x1 convolution as a matrix of its own
    views = {id(weight): weight.detach().flatten(1) for weight in find_matrices(theirs)}
    muon, adamw = [], []
    for group in groups:
        inside = [weight for weight in group["params"] if id(weight) in chosen]
        outside = [weight for weight in group["params"] if id(weight) not in chosen]
        if inside:
            muon.append({**group, "params": [views[id(weight)] for weight in inside]})
        if outside:
            adamw.append({**group, "params": outside})
    pair = (
        torch.optim.Muon(muon, momentum=0.95, adjust_lr_fn=rule),
        torch.optim.AdamW(adamw, betas=(0.7, 0.95)),
    )
    before = copy.deepcopy(theirs)
    for rate in RATES:
        compute_gradients(ours)
        for mine, twin in zip(ours.parameters(), theirs.parameters()):
            twin.grad = mine.grad.clone() if mine.grad is not None else None
            if id(twin) in views:
                views[id(twin)].grad = twin.grad.flatten(1)  # type: ignore[union-attr]
        set_lr(optimizer, rate)
        optimizer.step()
        for each in pair:
            set_lr(each, rate)
            each.step()
    for mine, twin, old in zip(ours.parameters(), theirs.parameters(), before.parameters()):
        assert torch.equal(mine, twin)
        assert not torch.equal(mine, old)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", ["match_rms_adamw", "original"])
def test_matrices_follow_the_formula(
    family: str, rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: torch iterates in bfloat16, which this test replaces."""
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    settings = copy.copy(SETTINGS)
    object.__setattr__(settings, "adjust_lr_fn", rule)
    model = tiny(family).double()
    optimizer = make_optimizer(model, settings, 0.01)
    scales = {id(weight): group["scale"] for group in optimizer.param_groups
              for weight in group["params"]}  # fmt: skip
    matrices = find_matrices(model)
    values = [weight.detach().flatten(1).clone() for weight in matrices]
    momenta = [torch.zeros_like(value) for value in values]
    for rate in RATES:
        compute_gradients(model)
        for index, weight in enumerate(matrices):
            assert weight.grad is not None
            gradient, lr = weight.grad.flatten(1), rate * scales[id(weight)]
            momenta[index] = 0.95 * momenta[index] + 0.05 * gradient
            update = orthogonalise(0.95 * momenta[index] + 0.05 * gradient)
            rows, columns = update.shape
            factor = 0.2 * max(rows, columns) ** 0.5
            if rule == "original":
                factor = max(1, rows / columns) ** 0.5
            values[index] = values[index] * (1 - lr * 0.2) - lr * factor * update
        set_lr(optimizer, rate)
        optimizer.step()
        torch.testing.assert_close(
            [weight.detach().flatten(1) for weight in matrices], values, rtol=1e-7, atol=1e-9
        )


def orthogonalise(gradient: Tensor) -> Tensor:
    """Five steps of x -> a x + b x^3 + c x^5 on the singular values, by their decomposition."""
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left * values @ right


def test_infinite_gradients_change_neither_part() -> None:
    """Of fp16; a scaler sees infinities for each optimizer, so two would be skipped apart."""
    for name in ("blocks.0.mlp.fc1.weight", "head.bias"):
        model = tiny("vit")
        optimizer = make_optimizer(model, SETTINGS, 0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        compute_gradients(model)
        before = copy.deepcopy(model.state_dict())
        scaler.scale(torch.zeros(()))
        model.get_parameter(name).grad.view(-1)[0] = torch.inf  # type: ignore[union-attr]
        scaler.unscale_(optimizer)  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_older_torch_and_a_frozen_backbone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("vit")
    model.freeze()
    with pytest.raises(ConfigError, match=r"'muon', but no matrix of a hidden layer is trained; "):
        make_optimizer(model, SETTINGS, 0.01)
    with pytest.raises(ConfigError, match="'muon' and trainable is 'head', which is no hidden la"):
        Run("vit_nano", 32, 8, steps=1, optimizer=SETTINGS, trainable="head")
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"which torch 2\..* does not have; install torch 2.9"):
        make_optimizer(tiny("vit"), SETTINGS, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "weights"), [((), 4e-3), (REGNET, 0.04)])
def test_two_ranks_learn_what_one_does(
    family: tuple[str, ...], weights: float, tmp_path: Path
) -> None:
    """Sharded or not; the iteration in bfloat16 turns differences of 1e-7 into some of 1e-2."""
    data, settings = make_digits(tmp_path / "digits", 60), ("optimizer.kind=muon", "steps=6")
    settings = (*family, *settings, "optimizer.lr=0.002", "engine.sync_bn=false")
    for parallel in ("ddp", "fsdp"):
        run(make_arguments(data, tmp_path / parallel, *settings, f"engine.parallel={parallel}"), 2)
    compare(tmp_path / "ddp", tmp_path / "fsdp", losses=5e-3, weights=weights)
    if not family:  # which has no batch norms, whose statistics would be each rank's
        run(make_arguments(data, tmp_path / "alone", *settings))
        compare(tmp_path / "ddp", tmp_path / "alone", losses=5e-3, weights=weights)
    run(make_arguments(data, tmp_path / "adamw", *settings, "optimizer.kind=adamw"))
    assert max(
        abs(ours - theirs)
        for ours, theirs in zip(read_losses(tmp_path / "adamw"), read_losses(tmp_path / "ddp"))
    ) > 0.01  # fmt: skip
    card = (tmp_path / "ddp" / "model" / "README.md").read_text()
    assert "| optimizer | Muon and AdamW, peak learning rate 0.002 |" in card
