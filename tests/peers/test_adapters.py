"""Scenarios of peft's tests: train an adapter, save it, load it again, merge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peers.subjects import OURS, TIMM, Subject, on
from torch import nn
from torch.nn.functional import cross_entropy

CLASSES = 3
LAYERS = {"vit": ["attn.qkv", "attn.proj", "mlp.fc1"], "regnet": ["conv1.conv", "conv3.conv"]}
HEAD = {"vit": ["head"], "regnet": ["fc"]}
# Name of the config, its options, and the families whose layers it adapts.
METHODS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "LoraConfig": ({"r": 2}, ("vit", "regnet")),
    "LoHaConfig": ({"r": 2}, ("vit", "regnet")),
    "LoKrConfig": ({"r": 2}, ("vit", "regnet")),
    "OFTConfig": ({"r": 0, "oft_block_size": 4, "use_cayley_neumann": False}, ("vit", "regnet")),
    "HRAConfig": ({"r": 2}, ("vit", "regnet")),
    "IA3Config": ({"feedforward_modules": []}, ("vit", "regnet")),
    "BOFTConfig": ({"boft_block_size": 4}, ("vit",)),
    "VeraConfig": ({"r": 2}, ("vit",)),
    "FourierFTConfig": ({"n_frequency": 10}, ("vit",)),
    "VBLoRAConfig": ({"r": 2, "num_vectors": 4, "vector_length": 2, "topk": 2}, ("vit",)),
    "RandLoraConfig": ({"r": 2}, ("vit",)),
    "AdaLoraConfig": ({"total_step": 4}, ("vit",)),
}
CASES = [
    pytest.param(
        subject,
        method,
        marks=(
            *subject.marks,
            *(() if method == "LoraConfig" else (pytest.mark.peers,)),
        ),
        id=f"{method}-{subject.name}",
    )
    for method, (_, families) in METHODS.items()
    for subject in (*OURS, *TIMM)
    if subject.family in families
]


def train(model: nn.Module, images: torch.Tensor) -> None:
    """Make three steps on random labels."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(images), torch.arange(len(images)) % CLASSES).backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(("subject", "method"), CASES)
def test_an_adapter_is_trained_saved_loaded_and_merged(
    subject: Subject, method: str, tmp_path: Path
) -> None:
    base, images = subject.load(num_classes=CLASSES), subject.images(4)
    state = {name: values.clone() for name, values in base.state_dict().items()}
    config = getattr(peft, method)(
        target_modules=LAYERS[subject.family],
        modules_to_save=HEAD[subject.family],
        **METHODS[method][0],
    )
    model = peft.get_peft_model(base, config).eval()  # batch norms keep their averages
    before = model(images).detach()
    train(model, images)
    with torch.no_grad():
        logits = model(images)
        assert not torch.allclose(logits, before)
        model.save_pretrained(tmp_path)
        again = subject.load(num_classes=CLASSES)
        again.load_state_dict(state)
        loaded = peft.PeftModel.from_pretrained(again, tmp_path).eval()
        torch.testing.assert_close(loaded(images), logits, rtol=1e-4, atol=1e-4)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(images), logits, rtol=1e-3, atol=1e-4)
    assert type(merged) is type(base)
    assert merged.state_dict().keys() == state.keys()


@pytest.mark.peers
@on(*OURS, *TIMM)
def test_only_the_adapter_and_the_head_are_trained(subject: Subject) -> None:
    config = peft.LoraConfig(
        r=2, target_modules=LAYERS[subject.family], modules_to_save=HEAD[subject.family]
    )
    model = peft.get_peft_model(subject.load(num_classes=CLASSES), config).eval()
    frozen = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    train(model, subject.images(4))
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], values) for name, values in frozen.items())
    assert all(
        "lora_" in name or "modules_to_save" in name for name in parameters.keys() - frozen.keys()
    )
