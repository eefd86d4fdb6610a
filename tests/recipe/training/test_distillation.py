"""Distillation: losses against other formulas, teachers, students, and runs that resume."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from distill_support import SETTINGS, TEACHER, distill_digits
from fetch_support import wait_until
from PIL import Image
from runs import (
    finish,
    killed_at_exit,
    list_steps,
    make_digits,
    read_errors,
    read_losses,
    read_weights,
    run,
    start,
)
from safetensors.torch import load_file
from shards_support import make_shards
from torch import nn

from swag_models import get_spec, load_model, load_preprocess
from swag_models.catalog import MODELS
from swag_models.errors import ConfigError, SwagModelsError
from swag_models.inference import Classifier, Embedder
from swag_models.inference.embed import write_embeddings
from swag_models.publish import save
from swag_models.recipe.distill_runs import check_distill_run
from swag_models.recipe.training.distill import distill, make_distill_run
from swag_models.recipe.training.distill_losses import compare_features, compare_logits

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "train", 48)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["cosine", "l2"])
def test_feature_losses_equal_the_formula_in_float64(kind: str) -> None:
    both = draw(2, 5, 7)
    features, goals = both[0].requires_grad_(), 3 * both[1] + 2
    losses = compare_features(kind, features, goals)  # type: ignore[arg-type]
    for row, loss in enumerate(losses.tolist()):
        a, b = features[row].detach().numpy(), goals[row].numpy()
        if kind == "cosine":
            expected = 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        else:
            whitened = (b - b.mean()) / math.sqrt(b.var() + 1e-5)
            expected = ((a - whitened) ** 2).mean()
        assert loss == pytest.approx(expected, abs=1e-12)
    assert losses.dtype == torch.float64
    assert torch.autograd.gradcheck(
        lambda x: compare_features(kind, x, goals),  # type: ignore[arg-type]
        features,
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_logit_loss_equals_the_formula_in_float64(
    temperature: float, multi_label: bool
) -> None:
    both = 5 * draw(2, 4, 6)
    logits, goals = both[0].requires_grad_(), both[1]
    losses = compare_logits(logits, goals, temperature, multi_label=multi_label)
    for row, loss in enumerate(losses.tolist()):
        z, t = (x[row].detach().numpy() / temperature for x in (logits, goals))
        if multi_label:
            q, p = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-t))
            terms = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
        else:
            q, p = np.exp(z) / np.exp(z).sum(), np.exp(t) / np.exp(t).sum()
            terms = p * np.log(p / q)
        assert loss == pytest.approx(temperature**2 * terms.sum(), abs=1e-11)
    assert torch.autograd.gradcheck(
        lambda x: compare_logits(x, goals, temperature, multi_label=multi_label), logits
    )
    same = compare_logits(goals, goals, temperature, multi_label=multi_label)
    assert same.abs().max() < 1e-12


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_class_that_the_teacher_excludes_adds_nothing(multi_label: bool) -> None:
    goals = draw(3, 4)
    goals[:, 1] = -math.inf
    logits = draw(3, 4).requires_grad_()
    losses = compare_logits(logits, goals, 2.0, multi_label=multi_label)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_gradient_at_a_high_temperature_is_that_of_matching_logits() -> None:
    """Hinton et al., equation 4: (z - v) / C for logits of mean 0, times our factor C."""
    goals, logits = (x - x.mean(1, keepdim=True) for x in draw(2, 3, 8))
    logits = logits.requires_grad_()
    compare_logits(logits, goals, 1e6, multi_label=False).sum().backward()
    assert torch.allclose(logits.grad, (logits.detach() - goals) / 8, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_student_learns_the_features_of_its_teacher_and_is_published_without_a_head(
    images: Path, tmp_path: Path
) -> None:
    folder = distill_digits(images, tmp_path / "run", "steps=25", "augment.scale=0.8,1")
    losses = read_losses(tmp_path / "run")
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    model = load_model(folder)
    assert model.spec is not None
    assert (model.spec.num_classes, model.spec.license) == (None, "apache-2.0")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 96)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["teacher"]["model"] == TEACHER
    assert len(record["data"]["teacher"]["weights_sha256"]) == 64
    assert "distilled from regnety_nano_hashtags" in (folder / "README.md").read_text()
    tensors = load_file(folder / "model.safetensors")
    assert not any("projection" in name or "teacher" in name for name in tensors)


@pytest.mark.slow
def test_a_student_of_logits_has_the_classes_of_its_teacher(images: Path, tmp_path: Path) -> None:
    settings = ("distill.logit_weight=1", "distill.feature_weight=0", "distill.temperature=2")
    folder = distill_digits(
        images, tmp_path / "run", *settings, "steps=40", "augment.scale=0.9,1", "augment.flip=0"
    )
    assert Classifier(folder).classes == Classifier(TEACHER).classes
    student, teacher = load_model(folder), load_model(TEACHER)
    assert student.spec is not None
    assert teacher.spec is not None
    assert student.spec.synsets == teacher.spec.synsets
    pictures = [Image.open(path) for path in sorted(images.rglob("*.png"))[::4]]
    fresh = load_model("vit_nano_hashtags", pretrained=False, num_classes=65, image_size=32)

    def measure(model: nn.Module, name: object) -> float:
        with torch.inference_mode():
            rows = [
                source(torch.stack([load_preprocess(spec)(image) for image in pictures]))
                for source, spec in ((model, name), (teacher, TEACHER))
            ]
        return compare_logits(*rows, 1.0, multi_label=False).mean().item()

    assert measure(student, folder) < 0.5 * measure(fresh, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("distill.feature_loss=l2",),
        ("distill.logit_weight=1",),
        ("distill.logit_weight=1", "distill.temperature=3"),
        ("distill.feature_weight=0.5",),
        ("objective.mixup=1",),
        ("distill.teacher=vit_nano_hashtags",),
    ],
)
def test_each_setting_changes_the_loss(
    settings: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    distill_digits(images, tmp_path / "plain", "steps=1", *settings[:-1])
    distill_digits(images, tmp_path / "run", "steps=1", *settings)
    assert read_losses(tmp_path / "run") != read_losses(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [("engine.micro_batch=5",), ("engine.parallel=fsdp",), ("engine.grad_checkpointing=true",)],
)
def test_the_engine_does_not_change_what_a_student_learns(
    settings: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    for name, more in (("plain", ()), ("run", settings)):
        distill_digits(images, tmp_path / name, "distill.logit_weight=1", "ema.decay=0.5", *more)
    ours, theirs = read_losses(tmp_path / "run"), read_losses(tmp_path / "plain")
    assert ours == pytest.approx(theirs, abs=2e-5)
    assert load_file(tmp_path / "run" / "model" / "model.safetensors").keys() == (
        load_file(tmp_path / "plain" / "model" / "model.safetensors").keys()
    )


@pytest.mark.slow
def test_teacher_and_student_see_the_same_crop_at_their_own_sizes(
    images: Path, tmp_path: Path
) -> None:
    """A student with the weights of its teacher and an identity as projection has no loss."""
    from swag_models.recipe.config_overrides import override
    from swag_models.recipe.data.collate import Batch
    from swag_models.recipe.training.distillation import DistillState
    from swag_models.recipe.training.distributed import init_distributed
    from swag_models.recipe.training.setup import set_up

    settings = ["init=vit_nano_hashtags", "objective.mixup=1", "distill.logit_weight=1"]
    run = override(make_distill_run("vit_nano", "vit_nano_hashtags"), [*settings, "batch_size=4"])
    with init_distributed(torch.device("cpu")) as dist:
        setup = set_up(run, images, None, tmp_path, dist)
        state = setup.state
        assert isinstance(state, DistillState)
        student = state.model.eval()
        nn.init.eye_(student.projection.weight)  # type: ignore[union-attr, arg-type]
        nn.init.zeros_(student.projection.bias)  # type: ignore[union-attr, arg-type]
        batch: Batch = next(iter(setup.loader))
        assert batch.images.shape == (4, 3, 48, 48)
        assert state.compute_losses(batch).abs().max() < 1e-5
        small = set_up(override(run, ["image_size=32"]), images, None, tmp_path, dist)
        assert next(iter(small.loader)).images.shape == (4, 3, 48, 48)  # the teacher's
        large = set_up(override(run, ["image_size=64"]), images, None, tmp_path, dist)
        assert next(iter(large.loader)).images.shape == (4, 3, 64, 64)


def test_every_architecture_of_the_catalog_can_be_a_student() -> None:
    for arch in {spec.arch: None for spec in MODELS}:
        run = make_distill_run(arch, TEACHER)
        assert (run.arch, run.distill and run.distill.teacher) == (arch, TEACHER)
        check_distill_run(run)


@pytest.mark.slow
@pytest.mark.parametrize("student", ["resnet18", "regnety_200mf"])
def test_a_student_without_a_preset_is_trained(student: str, images: Path, tmp_path: Path) -> None:
    settings = ["epochs=none", "steps=1", "batch_size=4", "image_size=32", "engine.workers=0"]
    model = distill(student, TEACHER, images, tmp_path / "run", settings=settings, progress=False)
    assert get_spec(model).arch == student


@pytest.mark.slow
def test_stored_embeddings_teach_and_images_without_one_are_left_out(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(images, tmp_path / "images")
    write_embeddings(Embedder(TEACHER), tmp_path / "images", tmp_path / "e.npy", progress=False)
    shutil.copy(next(images.rglob("*.png")), tmp_path / "images" / "new.png")
    teacher = tmp_path / "e.npy"
    settings = ("steps=25", "augment.scale=0.9,1")
    distill_digits(tmp_path / "images", tmp_path / "run", *settings, teacher=teacher)
    losses = read_losses(tmp_path / "run")
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("1 image of images left out, because") for line in lines)
    assert any(line.endswith("has no embedding of them: new.png") for line in lines)
    # the same run with other embeddings is refused
    teacher.unlink()
    teacher.with_suffix(".json").unlink()
    write_embeddings(Embedder("vit_nano_hashtags"), images, teacher, progress=False)
    with pytest.raises(ConfigError, match=r"holds other work, with data.teacher"):
        distill_digits(tmp_path / "images", tmp_path / "run", *settings, teacher=teacher)


@pytest.mark.slow
def test_stored_embeddings_of_packed_shards_are_found_by_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = make_shards(tmp_path, 24, 2)
    tars = sorted(map(str, shards.glob("*.tar")))
    write_embeddings(Embedder(TEACHER), tars[:1], tmp_path / "e.npy", progress=False)
    distill_digits(shards, tmp_path / "run", teacher=tmp_path / "e.npy")
    assert all(math.isfinite(loss) for loss in read_losses(tmp_path / "run"))
    assert "of shards left out" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ((), {"student": "vit_nan"}, "unknown arch 'vit_nan'; did you mean: vit_nano"),
        ((), {"student": "timm:resnet99"}, "unknown timm architecture 'resnet99'"),
        ((), {"teacher": "vit_nano_hashtag"}, "did you mean: vit_nano_hashtags"),
        (("distill.teacher=none",), {}, "distill.teacher is none; give a model by name"),
        (("distill.logit_weight=1",), {"teacher": "e.npy"}, "has embeddings and no logits"),
        (("trainable=head",), {}, "trainable is head; allowed in distillation: all"),
        (("head_init=hashtags",), {}, "head_init is hashtags; allowed in distillation: random"),
        (("augment.sizes=32,48",), {}, "augment.sizes is .* allowed in distillation: none"),
        (("objective.label_smoothing=0.1",), {}, "of the objective only mixup applies"),
        (("objective.kind=sigmoid",), {}, "of the objective only mixup applies"),
    ],
)
def test_what_does_not_fit_is_one_line(
    settings: tuple[str, ...],
    options: dict[str, str],
    message: str,
    images: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(SwagModelsError, match=message) as caught:
        distill_digits(images, tmp_path / "run", *settings, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.slow
@pytest.mark.parametrize("large", ["teacher", "student"])
@pytest.mark.parametrize("student", ["vit_nano", "timm:test_vit"])
def test_a_batch_that_no_memory_holds_is_refused(
    student: str, large: str, images: Path, tmp_path: Path
) -> None:
    teacher = save(load_model(TEACHER, image_size=1024), tmp_path / "large")
    settings = ("batch_size=1048576", f"image_size={1024 if large == 'student' else 32}")
    options = {"student": student, "teacher": teacher if large == "teacher" else TEACHER}
    with pytest.raises(ConfigError, match=r"its images of 1024 pixels take .* smaller batch_size"):
        distill_digits(images, tmp_path / "run", *settings, **options)


@pytest.mark.slow
def test_mixup_and_embeddings_do_not_fit(images: Path, tmp_path: Path) -> None:
    write_embeddings(Embedder(TEACHER), images, tmp_path / "e.npy", progress=False)
    with pytest.raises(ConfigError, match="embeddings are of images that are not mixed"):
        distill_digits(images, tmp_path / "run", "objective.mixup=1", teacher=tmp_path / "e.npy")
    other = make_digits(tmp_path / "other", 3, first=100)
    with pytest.raises(ConfigError, match="has no embedding of any image of other, such as"):
        distill_digits(other, tmp_path / "run", teacher=tmp_path / "e.npy")


def make_arguments(images: Path, output: Path, *settings: str) -> list[str]:
    chosen = [part for each in (*SETTINGS, *settings) for part in ("--set", each)]
    return [
        *("recipe", "distill", "vit_nano", "--teacher", TEACHER, "--data", str(images)),
        *("-o", str(output), "--quiet", *chosen),
    ]


STATEFUL = (
    *("steps=14", "checkpoint.every=2", "ema.decay=0.9", "objective.mixup=0.5"),
    *("distill.logit_weight=1", "drop_path_rate=0.2"),
)


@pytest.mark.slow
def test_a_killed_distillation_ends_in_the_same_weights(images: Path, tmp_path: Path) -> None:
    run(make_arguments(images, tmp_path / "whole", *STATEFUL))
    output = tmp_path / "run"
    arguments = make_arguments(images, output, *STATEFUL)
    (process,) = start(arguments)
    with killed_at_exit([process]):
        wait_until(lambda: bool(list_steps(output)), 60)
        process.kill()
        process.join()
    assert 0 < list_steps(output)[-1] < 14
    run(arguments)
    assert read_weights(output) == read_weights(tmp_path / "whole")
    assert read_losses(output) == read_losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_learns(parallel: str, images: Path, tmp_path: Path) -> None:
    settings = ("distill.logit_weight=1", "ema.decay=0.5")
    run(make_arguments(images, tmp_path / "one", *settings))
    run(make_arguments(images, tmp_path / "two", *settings, f"engine.parallel={parallel}"), ranks=2)
    ours, theirs = read_losses(tmp_path / "two"), read_losses(tmp_path / "one")
    assert ours == pytest.approx(theirs, abs=2e-5)


@pytest.mark.slow
def test_the_command_reports_errors_in_one_line(images: Path, tmp_path: Path) -> None:
    arguments = make_arguments(images, tmp_path / "run", "distill.temperature=0")
    (code,) = finish(start(arguments))
    assert code == 2
    (line,) = read_errors(arguments).splitlines()
    assert line.startswith("swag-models: error: distill.temperature is 0.0; ")
