"""Generated scenes can be learnt, and not from a few: a small network needs thousands of posts.

Axes: N images, 3 colours, H W pixels, K things.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from studies.scenes.scene import Scene, plan_held_out, plan_post, render
from studies.scenes.things import NAMES


def paint(scenes: Iterable[Scene]) -> Tensor:
    """(N, 3, H, W) uint8."""
    return torch.from_numpy(np.stack([np.asarray(render(scene, 64)) for scene in scenes])).movedim(
        -1, 1
    )


def make_network() -> nn.Module:
    """Seven convolutions; 0.8 million weights."""
    widths = (
        (3, 24, 2),
        (24, 48, 2),
        (48, 48, 1),
        (48, 96, 2),
        (96, 96, 1),
        (96, 192, 2),
        (192, 192, 1),
    )
    layers = [
        layer
        for wide, out, stride in widths
        for layer in (
            nn.Conv2d(wide, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        )
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, len(NAMES)))


def train(images: Tensor, targets: Tensor, epochs: int) -> nn.Module:
    network = make_network().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(images)).split(64)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, len(batches))
    for number, batch in enumerate(batches):
        inputs = scale(images[batch]).flip(3) if number % 2 else scale(images[batch])
        optimiser.zero_grad()
        functional.cross_entropy(network(inputs), targets[batch]).backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def scale(images: Tensor) -> Tensor:
    return images.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_few_posts_teach_little_and_many_teach_much() -> None:
    posts = [plan_post(0, number) for number in range(12_000)]
    images = paint(posts)
    targets = torch.tensor(
        [[(name in post.things) / len(post.things) for name in NAMES] for post in posts]
    )  # N K
    held_out = [plan_held_out(0, number) for number in range(20 * len(NAMES))]
    views, truth = (
        scale(paint(held_out)),
        torch.tensor([NAMES.index(scene.things[0]) for scene in held_out]),
    )
    found = {}
    for count, epochs in ((200, 40), (len(posts), 3)):
        network = train(images[:count], targets[:count], epochs)
        prior = targets[:count].mean(0).clamp(min=1e-3).log()  # held-out things are all as frequent
        with torch.inference_mode():
            found[count] = ((network(views) - prior).argmax(1) == truth).float().mean().item()
    assert found[200] < 0.2, found
    assert found[len(posts)] > 0.5, found
