"""The licence of a student: that of its teacher, and of its initial weights as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from distill_support import TEACHER, distill_digits
from runs import make_digits

from swag_models import load_model
from swag_models.catalog.swag import NC_URL
from swag_models.inference import Embedder
from swag_models.inference.embed import write_embeddings
from swag_models.publish import save
from swag_models.recipe.training.distillation import combine_licenses

APACHE, NC = ("apache-2.0", "https://a"), ("cc-by-nc-4.0", NC_URL)
MIT, UNKNOWN = ("mit", ""), ("unknown", "")


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        ([APACHE], APACHE),
        ([APACHE, APACHE], APACHE),
        ([APACHE, NC], ("cc-by-nc-4.0 and apache-2.0", NC_URL)),
        ([NC, APACHE], ("cc-by-nc-4.0 and apache-2.0", NC_URL)),
        ([MIT, APACHE], ("mit and apache-2.0", "https://a")),
        ([("cc-by-nc-sa-4.0", ""), NC], ("cc-by-nc-sa-4.0 and cc-by-nc-4.0", NC_URL)),
        ([("apache-2.0", ""), APACHE], ("apache-2.0", "https://a")),
        ([NC, UNKNOWN], UNKNOWN),
        ([UNKNOWN, UNKNOWN], UNKNOWN),
    ],
)
def test_all_licences_apply(licenses: list[tuple[str, str]], expected: tuple[str, str]) -> None:
    assert combine_licenses(licenses) == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and initial weights with other licences."""
    folder = tmp_path_factory.mktemp("licences")
    make_digits(folder / "images", 12)
    model = load_model("vit_nano_hashtags")
    assert model.spec
    save(model, folder / "unknown", license="unknown")
    save(model, folder / "nc", license="cc-by-nc-4.0", license_url=NC_URL)
    write_embeddings(Embedder(TEACHER), folder / "images", folder / "known.npy", progress=False)
    model.spec = replace(model.spec, name="mine")
    write_embeddings(Embedder(model), folder / "images", folder / "other.npy", progress=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "init", "license"),
    [
        (TEACHER, None, "apache-2.0"),
        (TEACHER, "vit_nano_hashtags", "apache-2.0"),
        (TEACHER, "nc", "cc-by-nc-4.0 and apache-2.0"),
        (TEACHER, "unknown", "unknown"),
        ("nc", None, "cc-by-nc-4.0"),
        ("nc", "vit_nano_hashtags", "cc-by-nc-4.0 and apache-2.0"),
        ("unknown", "vit_nano_hashtags", "unknown"),
        ("known.npy", "nc", "cc-by-nc-4.0 and apache-2.0"),
        ("known.npy", None, "apache-2.0"),
        ("other.npy", "vit_nano_hashtags", "unknown"),
    ],
)
def test_a_student_states_the_licences_of_teacher_and_initial_weights(
    teacher: str, init: str | None, license: str, folder: Path, tmp_path: Path
) -> None:
    paths = [str(folder / name) if (folder / name).exists() else name for name in (teacher,)]
    settings = ["steps=1", "batch_size=4"]
    if init:
        start = folder / init if (folder / init).exists() else init
        settings.append(f"init={start}")
    made = distill_digits(folder / "images", tmp_path / "run", *settings, teacher=paths[0])
    spec = load_model(made).spec
    assert spec
    assert spec.license == license
    card = (made / "README.md").read_text()
    assert "Licences of the teacher, " in card
    assert ("of the initial weights, " in card) == (init is not None)
    assert ("no commercial use" in card) == ("-nc" in license)
    assert ("**No licence is stated.**" in card) == (license == "unknown")
