"""A small distillation on pictures of digits."""

from __future__ import annotations

from pathlib import Path

from swag_models.recipe.training.distill import distill

TEACHER = "regnety_nano_hashtags"
SETTINGS = (
    "steps=4",
    "engine.workers=0",
    "batch_size=12",
    "image_size=32",
    "log_every=1",
    "optimizer.lr=0.003",
)


def distill_digits(images: Path, output: Path, *settings: str, **options: str | Path) -> Path:
    arguments = {"student": "vit_nano", "teacher": TEACHER} | options
    return distill(
        data=images,  # type: ignore[arg-type]
        output=output,
        settings=[*SETTINGS, *settings],
        progress=False,
        **arguments,  # type: ignore[arg-type]
    )
