"""The model card: metadata that the Hub's client reads, correct text, and examples that run."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from tiny import REGNET_SPEC, VIT_SPEC, load_tiny

import swag_models
from swag_models.inference import Classifier
from swag_models.publish import save
from swag_models.publish.model_card import CardDetails, make_card, set_card_address
from swag_models.publish.pretraining import WORKS, find_work
from swag_models.spec import Metrics, ModelSpec

DETAILS = CardDetails(dtype="float32", sharded=False, pretraining=None)
SPEC = replace(swag_models.get_spec("vit_nano_hashtags"), name="mine")


def read_card(spec: ModelSpec = SPEC, **details: Any) -> ModelCard:
    """A card as the Hub's client reads it."""
    return ModelCard(make_card(spec, replace(DETAILS, **details)))


@pytest.mark.parametrize("name", swag_models.list_models())
def test_every_model_has_a_card_that_the_hubs_client_reads(name: str) -> None:
    spec = swag_models.get_spec(name)
    text = make_card(spec, replace(DETAILS, pretraining=find_work(spec)))
    data = ModelCard(text).data
    has_head = spec.num_classes is not None
    assert data.license == spec.license
    assert data.pipeline_tag == ("image-classification" if has_head else "image-feature-extraction")
    assert data.library_name == "swag_models"
    # timm has no RegNet with a stem as narrow as that of regnety_nano.
    timm_tag = set() if name == "regnety_nano_hashtags" else {"timm"}
    assert {data.pipeline_tag, "swag_models", spec.family, *timm_tag} == set(data.tags)
    metadata = yaml.safe_load(text.split("---")[1])
    assert ("model-index" in metadata) == (spec.metrics is not None)
    assert "{" not in text.split("## Citation")[0]


def test_accuracy_is_in_the_hubs_metadata_format() -> None:
    data = read_card(replace(SPEC, metrics=Metrics("My Flowers (test)", top1=91.5, top5=99))).data
    assert data.metrics == ["accuracy"]
    results = [
        (result.metric_name, result.metric_value, result.dataset_name, result.dataset_type)
        for result in data.eval_results
    ]
    flowers = ("My Flowers (test)", "my-flowers-test")
    assert results == [("Top-1 accuracy", 91.5, *flowers), ("Top-5 accuracy", 99, *flowers)]


def test_unknown_accuracy_is_stated() -> None:
    card = read_card(replace(SPEC, metrics=None))
    assert card.data.eval_results is None
    assert "## Accuracy\n\nUnknown for these weights." in card.text


@pytest.mark.parametrize(
    ("license", "url", "expected", "sentence"),
    [
        ("mit", "", ("mit", None, None), "licensed mit."),
        (
            "apache-2.0",
            "https://x/l",
            ("apache-2.0", None, None),
            "licensed [apache-2.0](https://x/l).",
        ),
        (
            "my-own-1.0",
            "https://x/l",
            ("other", "my-own-1.0", "https://x/l"),
            "licensed [my-own-1.0](https://x/l).",
        ),
        ("cc-by-nc-4.0", "", ("cc-by-nc-4.0", None, None), "**cc-by-nc-4.0: no commercial use**"),
        ("unknown", "", ("unknown", None, None), "**No licence is stated.**"),
    ],
)
def test_a_licence_unknown_to_the_hub_is_other(
    license: str, url: str, expected: tuple[str | None, ...], sentence: str
) -> None:
    card = read_card(replace(SPEC, license=license, license_url=url))
    data = card.data.to_dict()
    assert (data["license"], data.get("license_name"), data.get("license_link")) == expected
    assert sentence in card.text


def test_datasets_base_model_and_tags_are_in_the_metadata() -> None:
    data = read_card(datasets=["org/flowers"], base_model="org/base", tags=["flowers"]).data
    assert (data.datasets, data.base_model) == (["org/flowers"], "org/base")
    assert data.tags[-1] == "flowers"
    assert "Trained on org/flowers." in read_card(datasets=["org/flowers"]).text


def test_weights_from_hashtags_state_their_origin_and_limits() -> None:
    spec = swag_models.get_spec("vit_b16_in1k")
    text = read_card(spec, pretraining=find_work(spec)).text
    for phrase in (
        "3.6 billion public Instagram images",
        "no commercial use",
        "prejudices of one platform",
        "@inproceedings{singh",
    ):
        assert phrase in text
    other_text = read_card().text
    assert "Instagram" not in other_text
    assert "singh" not in other_text
    assert "Do not use it to identify people" in other_text


def test_examples_for_timm_register_an_architecture_that_it_lacks() -> None:
    text = make_card(REGNET_SPEC, DETAILS)
    assert text.count("import swag_models.timm  # timm") == 2  # for timm and for transformers
    assert "timm" not in ModelCard(text).data.tags
    assert "import swag_models.timm" not in make_card(VIT_SPEC, DETAILS)


def test_a_sharded_model_has_no_example_for_timm() -> None:
    text = make_card(VIT_SPEC, replace(DETAILS, sharded=True))
    assert "timm.create_model" not in text
    assert 'pipeline("image-classification"' in text


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("vit_b16_in1k", 10, "An image classifier of 10 classes (architecture `vit_b16`)."),
        ("vit_b16", 10, "An image classifier of 10 classes (architecture `vit_b16`)."),
        ("vit_b16", None, "An image encoder without a classifier (architecture `vit_b16`)."),
    ],
)
def test_the_introduction_describes_the_model_and_not_its_origin(
    name: str, num_classes: int | None, expected: str, tmp_path: Path
) -> None:
    model = load_tiny(num_classes=num_classes)
    assert model.spec is not None
    origin = swag_models.get_spec(name)
    model.spec = replace(model.spec, name=name, description=origin.description, arch=origin.arch)
    save(model, tmp_path / "flowers", license="mit")
    title, introduction = (tmp_path / "flowers" / "README.md").read_text().split("\n\n")[1:3]
    assert title == "# flowers"
    assert introduction.startswith(f"{expected} Derived from {name}: pre-trained on ")
    assert "features only" not in introduction


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("trained on flowers", "Trained on flowers."),
        ("vit_nano, trained on flowers.", "vit_nano, trained on flowers."),
        ("Élan", "Élan."),
    ],
)
def test_an_identifier_at_the_beginning_is_not_capitalised(description: str, expected: str) -> None:
    text = make_card(replace(SPEC, description=description), DETAILS)
    assert f"`). {expected}\n" in text


def test_limits_of_hashtags_are_stated_for_real_posts_only() -> None:
    phrase = "prejudices of one platform"
    assert phrase not in make_card(SPEC, DETAILS)  # of generated scenes
    assert phrase in make_card(replace(SPEC, description="trained on posts"), DETAILS)


def test_a_section_about_training_needs_something_to_say() -> None:
    assert "## Training" not in make_card(SPEC, DETAILS)
    text = make_card(SPEC, replace(DETAILS, pretraining=WORKS["wsl"], datasets=("org/flowers",)))
    assert "Fine-tuned on org/flowers." in text
    assert "@inproceedings{mahajan" in text


@pytest.mark.parametrize(
    ("classes", "num_classes", "sentence"),
    [
        (("cat", "dog"), 2, "2: cat, dog."),
        (tuple(f"c{i}" for i in range(102)), 102, "c98, c99 and 2 more, in `config.json`."),
        ("imagenet-1k", 1000, "The 1,000 classes of imagenet-1k, in torchvision's order."),
        (None, 2, "2, without names."),
        (None, None, "None: the model outputs features."),
    ],
)
def test_classes_are_listed(classes: Any, num_classes: int | None, sentence: str) -> None:
    text = read_card(replace(SPEC, classes=classes, num_classes=num_classes)).text
    assert text.split("## Classes\n\n")[1].split("\n")[0].endswith(sentence)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_first_example_prints_classes_and_probabilities(
    multi_label: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    model = swag_models.load_model("vit_nano_hashtags")
    folder = save(model, tmp_path / "path" / "to" / "mine", multi_label=multi_label)
    Image.open("examples/scenes/cup.jpg").save(tmp_path / "photo.jpg")
    text = (folder / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = Classifier(folder)(tmp_path / "photo.jpg")[0]
    assert [name for name, _ in printed] == [p.label for p in expected]
    assert [float(value) for _, value in printed] == pytest.approx(
        [p.probability for p in expected], rel=1e-5
    )
    assert "print" not in make_card(replace(SPEC, classes=None, num_classes=None), DETAILS)


def test_examples_of_a_pushed_card_load_from_the_hub() -> None:
    text = set_card_address(make_card(SPEC, DETAILS), "mine", "org/repo@dev")
    assert 'load_model("hf-hub:org/repo@dev")' in text
    assert 'timm.create_model("hf-hub:org/repo@dev", pretrained=True)' in text
    assert "path/to" not in text
    assert 'pipeline("image-classification", "org/repo", revision="dev")' in text
    assert "\n# repo\n" in text


@pytest.mark.parametrize("name", ["mine", "007", "true", "a.b"])
def test_the_accuracy_of_a_pushed_card_has_the_name_of_the_repository(name: str) -> None:
    spec = replace(SPEC, name=name, metrics=Metrics("photos", 70.0, 90.0))
    text = set_card_address(make_card(spec, DETAILS), name, "org/42")
    (result,) = yaml.safe_load(text.split("---\n")[1])["model-index"]
    assert result["name"] == "42"
    assert text.count("\n# 42\n") == 1


def test_the_examples_run(tmp_path: Path, caches: Path) -> None:
    model = load_tiny()
    folder = save(model, tmp_path / "path" / "to" / "mine", license="mit")
    Image.new("RGB", (60, 40), "teal").save(tmp_path / "photo.jpg")
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    snippets = [snippet for snippet in snippets if "transformers" not in snippet]
    assert len(snippets) == 2
    script = "\n".join([*snippets, "assert output.shape == (1, 10) and model.num_classes == 10"])
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_template_syntax_markup_and_pipes_in_texts_stay_text() -> None:
    text = make_card(
        replace(SPEC, arch="a|b", classes=("{{ 1 + 1 }}", "<b>&'"), num_classes=2),
        replace(DETAILS, training="{% raw %} 50% | <i>"),
    )
    assert r"| architecture | a\|b, `" in text
    assert "2: {{ 1 + 1 }}, <b>&'." in text
    assert "\n{% raw %} 50% | <i>\n" in text


def test_the_base_model_is_by_default_the_repository_of_the_weights(tmp_path: Path) -> None:
    model = load_tiny()
    model.spec = replace(
        VIT_SPEC, classes=None, sources=swag_models.get_spec("regnety_16gf").sources
    )
    card = ModelCard.load(save(model, tmp_path) / "README.md")
    assert card.data.base_model == "timm/regnety_160.swag_lc_in1k"
    card = ModelCard.load(save(model, tmp_path, base_model="org/own") / "README.md")
    assert card.data.base_model == "org/own"
