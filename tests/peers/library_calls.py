"""What users of transformers, peft, grad-cam, captum and torch.hub call, with assertions.

Each function is the check of one row of compatibility.py. The peer's model is saved in the peer's
own way.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from peers.subjects import Subject
from PIL import Image
from torch import nn

import swag_models
from swag_models import publish

NAMES = ("ash", "beech", "cedar", "dogwood", "elm")


@contextmanager
def saved(subject: Subject) -> Iterator[tuple[nn.Module, Path]]:
    """Save a model with five named classes as its library publishes models."""
    model = subject.load(num_classes=len(NAMES))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "model")
        if subject.is_ours:
            publish.save(model, folder, classes=NAMES, license="mit")
        else:
            timm.models.save_for_hf(model, folder, model_config={"label_names": NAMES})
            config = json.loads((folder / "config.json").read_text())
            config["model_args"].pop("num_classes", None)  # transformers does not expect it there
            (folder / "config.json").write_text(json.dumps(config))
        yield model, folder


def transformers_logits(subject: Subject) -> None:
    from transformers import AutoModelForImageClassification

    with saved(subject) as (model, folder), torch.no_grad():
        theirs = AutoModelForImageClassification.from_pretrained(folder).eval()
        images = subject.images()
        torch.testing.assert_close(theirs(pixel_values=images).logits, model(images))
        assert tuple(theirs.config.id2label.values()) == NAMES


def transformers_pipeline(subject: Subject) -> None:
    from transformers import pipeline

    image = Image.effect_noise((90, 70), 80).convert("RGB")
    with saved(subject) as (model, folder), torch.no_grad():
        answers = pipeline("image-classification", str(folder))(image, top_k=5)
        if subject.is_ours:
            pixels = swag_models.load_preprocess(folder)(image)[None]
        else:
            config = timm.data.resolve_model_data_config(model)
            pixels = timm.data.create_transform(**config)(image)[None]
        scores = model(pixels).softmax(1)[0]
    assert {answer["label"] for answer in answers} == set(NAMES)
    for answer in answers:
        expected = float(scores[NAMES.index(answer["label"])])
        assert abs(answer["score"] - expected) < 1e-4


def timm_local_folder(subject: Subject) -> None:
    with saved(subject) as (model, folder), torch.no_grad():
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        images = subject.images()
        torch.testing.assert_close(theirs(images), model(images))
        assert theirs.num_classes == len(NAMES)


def _targets(subject: Subject) -> tuple[list[str], list[str]]:
    """Names of layers for adapters, and of the head."""
    if subject.family == "vit":
        return ["attn.qkv", "attn.proj"], ["head"]
    return ["conv1.conv"], ["fc"]


def _adapt(method: str, **options: Any) -> Any:
    def check(subject: Subject) -> None:
        import peft

        layers, head = _targets(subject)
        base, images = subject.load(num_classes=3), subject.images(4)
        config = getattr(peft, method)(target_modules=layers, modules_to_save=head, **options)
        model = peft.get_peft_model(base, config).train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        labels = torch.arange(4) % 3
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            logits = model.eval()(images)
            model.save_pretrained(folder)
            state = base.state_dict()
            again = subject.load(num_classes=3)
            own = {name: state[key] for name in again.state_dict() if (key := name) in state}
            again.load_state_dict(own, strict=False)
            merged = model.merge_and_unload()
            torch.testing.assert_close(merged(images), logits, rtol=1e-3, atol=1e-4)
        assert type(merged) is type(again)

    return check


lora = _adapt("LoraConfig", r=2)
loha = _adapt("LoHaConfig", r=2)
ia3 = _adapt("IA3Config", feedforward_modules=[])


def _grad_cam(method: str) -> Any:
    def check(subject: Subject) -> None:
        import pytorch_grad_cam

        model, images = subject.load(num_classes=5), subject.images()
        layer = model.blocks[-1].norm1 if subject.family == "vit" else model.s2.b1.conv3

        def to_map(tokens: torch.Tensor) -> torch.Tensor:
            grid = model.patch_embed.grid_size
            return tokens[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)

        reshape = to_map if subject.family == "vit" else None
        with getattr(pytorch_grad_cam, method)(model, [layer], reshape) as explain:
            (heat,) = explain(images, targets=None)
        assert heat.shape == subject.image_size
        assert 0 <= heat.min() <= heat.max() <= 1

    return check


grad_cam = _grad_cam("GradCAM")
layer_cam = _grad_cam("LayerCAM")
eigen_cam = _grad_cam("EigenCAM")


def _attribution(method: str, tolerance: float) -> Any:
    def check(subject: Subject) -> None:
        """Attributions add up to the difference of the logits of the image and the baseline."""
        import captum.attr

        model, images = subject.load(num_classes=5), subject.images()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        baseline = torch.zeros_like(images)
        attributions = getattr(captum.attr, method)(model).attribute(images, baseline, target=1)
        with torch.no_grad():
            difference = (model(images) - model(baseline))[0, 1]
        assert abs(attributions.sum() - difference) <= tolerance * max(1, abs(difference))

    return check


integrated_gradients = _attribution("IntegratedGradients", 0.1)
