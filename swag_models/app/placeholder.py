"""Stands in for what is being written elsewhere."""
from __future__ import annotations
from pathlib import Path
from typing import Any, NamedTuple
import torch
from torch import Tensor
from PIL import Image
from swag_models.api import load_model, load_preprocess
from swag_models.errors import ImageError
from swag_models.preprocess import read_image

class Skipped(NamedTuple):
    name: str
    reason: str

class Embeddings(NamedTuple):
    vectors: Tensor
    names: list[str]
    skipped: list[Skipped]

class Embedder:
    def __init__(self, model: Any, **options: Any) -> None:
        self.model = load_model(model, num_classes=None)
        self.preprocess = load_preprocess(model)

    @torch.inference_mode()
    def __call__(self, images: Any) -> Embeddings:
        names, skipped, vectors = [], [], []
        for image in images:
            name = str(image)
            try:
                if not isinstance(image, Image.Image):
                    image = read_image(image)
                x = self.preprocess(image)[None]
            except ImageError as error:
                skipped.append(Skipped(name, str(error)))
                continue
            names.append(name)
            vectors.append(self.model.forward_head(self.model.forward_features(x), pre_logits=True))
        return Embeddings(torch.cat(vectors) if vectors else torch.empty(0, self.model.num_features), names, skipped)

class Picture(NamedTuple):
    name: str
    source: Path

def find_pictures(folder: Path) -> list[Picture]:
    from swag_models.cli.pictures import IMAGE_SUFFIXES
    return [Picture(str(p), p) for p in sorted(folder.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES]

def forward_attention(self: Any, x: Tensor, indices: list[int]) -> list[Tensor]:
    seen = []
    def hook(module, inputs, output):
        (x,) = inputs
        n, s, d = x.shape
        q, k, v = module.qkv(x).reshape(n, s, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
        seen.append((q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1))
    hs = [self.blocks[i].attn.register_forward_hook(hook) for i in indices]
    self.forward_features(x)
    for h in hs: h.remove()
    return seen

from swag_models.models import ViT
ViT.forward_attention = forward_attention
