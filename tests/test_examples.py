"""The pictures and weights that ship are what they are said to be."""

from pathlib import Path

from image_support import SCENES, predict_labels

import swag_models
from studies.scenes.scene import encode, plan_held_out
from studies.scenes.things import NAMES, THINGS

WEIGHTS = Path(swag_models.__file__).parent / "weights"


def test_the_pictures_are_the_first_held_out_ones_of_the_ten_most_frequent_things() -> None:
    assert {path.name for path in SCENES.iterdir()} == {f"{name}.jpg" for name in NAMES[:10]}
    for number, name in enumerate(NAMES[:10]):
        assert (SCENES / f"{name}.jpg").read_bytes() == encode(plan_held_out(0, number), 64)


def test_the_pictures_are_told_apart() -> None:
    for model in swag_models.list_models(variant="hashtags"):
        assert len(set(predict_labels(*SCENES.iterdir(), name=model))) >= 4, "of 10"


def test_weights_that_ship_are_small_and_no_others_do() -> None:
    assert {path.stem for path in WEIGHTS.iterdir()} == set(
        swag_models.list_models(variant="hashtags")
    )
    assert all(path.stat().st_size <= 2e6 for path in WEIGHTS.iterdir())


def test_every_thing_has_its_hashtag_in_the_vocabulary_that_ships() -> None:
    for model in swag_models.list_models(variant="hashtags"):
        spec = swag_models.get_spec(model)
        assert isinstance(spec.classes, tuple)
        assert spec.synsets
        assert len(set(spec.classes)) == len(set(spec.synsets)) == spec.num_classes
        assert set(NAMES) <= set(spec.classes)
        found = dict(zip(spec.classes, spec.synsets, strict=True))
        others = {thing.name for thing in THINGS if found[thing.name] != thing.synset}
        assert others == {"banana", "table"}, "which WordNet takes for something else"
