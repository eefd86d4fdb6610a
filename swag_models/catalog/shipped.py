"""The models that ship with the library, pre-trained by SWAG's recipe.

The accuracy of the `nano` models was measured on 960 generated images, 30 for each of 32 classes,
with predictions limited to the hashtags of these classes. That of `regnety_200mf_hashtags` is the
share of a held-out artist's emoji with one of their keywords as the first class, or in the first 5.
"""

from pathlib import Path

from swag_models.catalog.configs import REGNETY_200MF, REGNETY_NANO, VIT_NANO
from swag_models.spec import Metrics, ModelSpec, Preprocess, Source

SCENES = (
    "pre-trained on the hashtags of generated scenes by `python -m studies run`; "
    "ships with the library"
)
DRAWINGS = (
    "pre-trained on the keywords of clip art and emoji by `python -m studies models`; "
    "ships with the library"
)


def _read_vocabulary(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the classes of models that ship with the library, in the order of their logits.

    Returns:
        The hashtags, most frequent first, and the WordNet 3.0 ids of their meanings.
    """
    path = Path(__file__).parents[1] / "weights" / f"{name}.tsv"
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    return tuple(hashtag for hashtag, _ in rows), tuple(synset for _, synset in rows)


SCENE_CLASSES, SCENE_SYNSETS = _read_vocabulary("scenes")
DRAWING_CLASSES, DRAWING_SYNSETS = _read_vocabulary("drawings")

SHIPPED = (
    ModelSpec(
        name="regnety_200mf_hashtags",
        arch="regnety_200mf",
        variant="hashtags",
        description=DRAWINGS,
        config=REGNETY_200MF,
        preprocess=Preprocess(96),
        num_classes=1751,
        classes=DRAWING_CLASSES,
        synsets=DRAWING_SYNSETS,
        num_params=3_440_115,
        gmacs=0.038,
        metrics=Metrics("1,893 held-out emoji", top1=73.01, top5=90.65),
        license="cc-by-4.0",
        license_url="https://creativecommons.org/licenses/by/4.0/",
        sources=(
            Source(
                "package://regnety_200mf_hashtags.safetensors",
                "timm",
                "2ca53b1c909de31aa02366a41681ee8f4b7573d0a84a960160bbff6325dad3f4",
            ),
        ),
        pretraining="drawings",
    ),
    ModelSpec(
        name="vit_nano_hashtags",
        arch="vit_nano",
        variant="hashtags",
        description=SCENES,
        config=VIT_NANO,
        preprocess=Preprocess(48),
        num_classes=65,
        classes=SCENE_CLASSES,
        synsets=SCENE_SYNSETS,
        num_params=327_809,
        gmacs=0.013,
        metrics=Metrics("960 held-out scenes", top1=24.06),
        license="apache-2.0",
        license_url="https://www.apache.org/licenses/LICENSE-2.0",
        sources=(
            Source(
                "package://vit_nano_hashtags.safetensors",
                "timm",
                "7af0243e43e287e677240fb557066e056a40cd93ec232364050a66c9efa9a57d",
            ),
        ),
        pretraining="scenes",
    ),
    ModelSpec(
        name="regnety_nano_hashtags",
        arch="regnety_nano",
        variant="hashtags",
        description=SCENES,
        config=REGNETY_NANO,
        preprocess=Preprocess(48),
        num_classes=65,
        classes=SCENE_CLASSES,
        synsets=SCENE_SYNSETS,
        num_params=446_819,
        gmacs=0.011,
        metrics=Metrics("960 held-out scenes", top1=32.6),
        license="apache-2.0",
        license_url="https://www.apache.org/licenses/LICENSE-2.0",
        sources=(
            Source(
                "package://regnety_nano_hashtags.safetensors",
                "timm",
                "82db9f24c1011ec263c26cc0afa560a60fa6068355ff8d38a2579b4d56fde6b4",
            ),
        ),
        pretraining="scenes",
    ),
)
