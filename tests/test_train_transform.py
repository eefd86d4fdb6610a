"""The training transform: equal to torchvision's for the same random numbers, also in workers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from image_support import NANO, SCENES, make_pixels
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

import swag_models
from swag_models import load_model, load_preprocess
from swag_models.errors import ConfigError, ImageError
from swag_models.spec import Preprocess
from swag_models.train_transform import TrainTransform

NAMES = ("vit_b16_in1k", "regnety_16gf", "vit_nano_hashtags")


def make_image(number: int = 0, height: int = 90, width: int = 70) -> Image.Image:
    return Image.fromarray(make_pixels(number, height, width))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("image_size", [None, (48, 80)])
def test_it_equals_torchvisions_for_the_same_seed(name: str, image_size: Any) -> None:
    ours = load_preprocess(name, train=True, image_size=image_size)
    preprocess = ours.preprocess
    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                preprocess.size,
                interpolation=transforms.InterpolationMode(preprocess.interpolation),
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    for number, shape in enumerate([(90, 70), (33, 200), (300, 40), (50, 50)]):
        image = make_image(number, *shape)
        torch.manual_seed(number)
        result = ours(image)
        torch.manual_seed(number)
        assert torch.equal(result, theirs(image))
        assert result.shape == (3, *preprocess.size)


def test_it_is_that_of_a_model_in_memory() -> None:
    model = load_model(NANO, num_classes=3)
    model.set_input_size(64)
    transform = load_preprocess(model, train=True)
    assert isinstance(transform, TrainTransform)
    assert transform.preprocess == load_preprocess(model).preprocess
    assert transform(make_image()).shape == (3, 64, 64)
    with pytest.raises(ConfigError, match="invalid train 'yes': allowed: bool"):
        load_preprocess(NANO, train="yes")  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.uint16])
def test_a_batch_of_tensors_gets_one_crop(kind: torch.dtype) -> None:
    transform = TrainTransform(Preprocess(32), hflip=0)
    image = torch.randint(256, (3, 70, 90))
    scaled = (
        image * 257 if kind == torch.uint16 else image / 255 if kind.is_floating_point else image
    )
    batch = torch.stack([scaled.to(kind)] * 3)
    result = transform(batch)
    assert result.shape == (3, 3, 32, 32)
    assert result.dtype == torch.float32
    assert torch.equal(result[0], result[2])


def test_parameters() -> None:
    fixed = TrainTransform(Preprocess(48), scale=(1, 1), ratio=(1, 1), hflip=0)
    image = make_image(0, 48, 48)
    assert torch.equal(fixed(image), load_preprocess(NANO, image_size=48)(image))
    flipped = TrainTransform(Preprocess(48), scale=(1, 1), ratio=(1, 1), hflip=1)(image)
    assert torch.equal(flipped, fixed(image).flip(-1))
    assert "scale=(0.08, 1.0)" in repr(TrainTransform(Preprocess(48)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0, 1)}, r"invalid scale \(0, 1\): allowed: two positive .*, at most 1$"),
        ({"scale": (0.5, 1.5)}, "invalid scale"),
        ({"scale": 0.5}, "invalid scale 0.5"),
        ({"ratio": (2, 1)}, "invalid ratio"),
        ({"ratio": (1, float("inf"))}, "invalid ratio"),
        ({"ratio": ("a", "b")}, "invalid ratio"),
        ({"hflip": 1.5}, "invalid hflip 1.5: allowed: 0 to 1"),
        ({"hflip": -1}, "invalid hflip -1"),
        ({"hflip": float("nan")}, "invalid hflip nan"),
        ({"hflip": "often"}, "invalid hflip 'often'"),
    ],
)
def test_other_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainTransform(Preprocess(48), **options)


@pytest.mark.parametrize("image", [None, "x.jpg", torch.zeros(3), Image.new("RGB", (0, 4))])
def test_something_that_is_no_image_is_refused(image: Any) -> None:
    with pytest.raises(ImageError):
        load_preprocess(NANO, train=True)(image)


class Scenes(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self) -> None:
        self.files = sorted(SCENES.iterdir())[:4]
        self.transform = load_preprocess(NANO, train=True)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[index]))


def test_workers_of_a_data_loader_draw_from_the_seed() -> None:
    def read(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat(list(DataLoader(Scenes(), generator=generator, num_workers=2)))

    first = read(0)
    assert first.shape == (4, 3, 48, 48)
    assert torch.equal(read(0), first)
    assert not torch.equal(read(1), first)


def test_it_can_be_sent_to_workers() -> None:
    transform = load_preprocess(NANO, train=True)
    for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert repr(twin) == repr(transform)
        assert vars(twin) == vars(transform)


def test_the_default_device_is_not_used() -> None:
    with torch.device("meta"):
        assert not swag_models.load_preprocess(NANO, train=True)(make_image()).is_meta
