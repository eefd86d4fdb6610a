"""Sparse targets and losses, against torch's dense ones, timm's and the papers' formulas."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from timm.data.mixup import mixup_target
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from swag_models.errors import ConfigError
from swag_models.recipe.config import Objective, Run
from swag_models.recipe.training.asymmetric import MAX_LOGIT, balance_logits
from swag_models.recipe.training.classes import Classes, weigh_classes
from swag_models.recipe.training.losses import (
    LossKind,
    Targets,
    compute_losses,
    count_hits,
    draw_beta,
    make_targets,
    mix,
)
from swag_models.recipe.training.model import make_model

CLASSES = [[3], [0, 5], [4, 1, 6], [2, 3, 4, 5, 6], [0]]
KINDS: tuple[LossKind, ...] = ("softmax", "sigmoid", "asymmetric")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def make_dense(targets: Targets, num_classes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    dense = torch.zeros(len(targets.classes), num_classes, dtype=dtype)
    for row, classes, weights in zip(dense, targets.classes.tolist(), targets.weights.to(dtype)):
        for number, weight in zip(classes, weights):
            row[number] += weight
    return dense


def compute_dense_losses(objective: Objective, logits: Tensor, dense: Tensor) -> Tensor:
    """torch's own; for "asymmetric" the formula of the paper."""
    e = objective.label_smoothing
    if objective.kind == "softmax":
        return F.cross_entropy(logits, dense, label_smoothing=e, reduction="none")
    dense = (1 - e) * dense + e / 2
    if objective.kind == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits, dense, reduction="none").sum(1)
    p = logits.sigmoid()
    shifted = (p - objective.clip).clamp(min=1e-300)  # 0**0.5 has no derivative
    positive = (1 - p) ** objective.gamma_pos * -F.logsigmoid(logits)
    negative = shifted**objective.gamma_neg * -torch.log1p(-shifted)
    return (dense * positive + (1 - dense) * negative).sum(1)


def draw_targets(kind: LossKind, samples: int, num_classes: int, mixup: float = 0.0) -> Targets:
    chance = random.Random(0)
    targets = make_targets(
        [chance.sample(range(num_classes), chance.randint(1, 5)) for _ in range(samples)],
        kind,
        num_classes,
    )
    return mix(torch.zeros(samples), targets, mixup, torch.Generator().manual_seed(1))[1]


class TestTargets:
    def test_softmax_shares_one_among_the_classes(self) -> None:
        targets = make_targets(CLASSES, "softmax", 7)
        assert targets.classes.dtype == torch.int64
        assert targets.weights.dtype == torch.float32
        assert targets.classes.shape == targets.weights.shape == (5, 5)
        dense = make_dense(targets, 7)
        for row, classes in zip(dense, CLASSES, strict=True):
            assert row.nonzero().flatten().tolist() == sorted(classes)
            assert row[classes].tolist() == pytest.approx([1 / len(classes)] * len(classes))

    def test_sigmoid_asks_for_each_class_and_may_have_none(self) -> None:
        dense = make_dense(make_targets([[1, 2], [], [0]], "sigmoid", 4), 4)
        assert dense.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_class_named_twice_counts_once(self, kind: LossKind) -> None:
        twice, once = make_targets([[2, 1, 2]], kind, 4), make_targets([[2, 1]], kind, 4)
        assert all(torch.equal(a, b) for a, b in zip(twice, once, strict=True))

    def test_empty_batches_have_a_shape(self) -> None:
        assert make_targets([], "softmax", 3).classes.shape == (0, 0)
        targets = make_targets([[], []], "sigmoid", 3)
        assert compute_losses(
            Objective("sigmoid"), torch.zeros(2, 3), targets
        ).tolist() == pytest.approx([2.0794415] * 2)

    @pytest.mark.parametrize("number", [-1, 7, 27_000])
    def test_a_class_outside_is_refused(self, number: int) -> None:
        with pytest.raises(
            ConfigError, match=rf"^class {number} is out of range; allowed: 0 to 6; "
        ):
            make_targets([[0], [0, 6, 3, number]], "sigmoid", 7)

    def test_softmax_refuses_a_sample_without_classes(self) -> None:
        with pytest.raises(ConfigError, match=r"^sample 1 of the batch has no class; "):
            make_targets([[0], []], "softmax", 7)

    @pytest.mark.parametrize("options", [{}, {"non_blocking": True}])
    def test_copies_wait_unless_asked_not_to(self, options: dict[str, bool]) -> None:
        calls: list[dict[str, object]] = []

        class Recorder(Tensor):
            """Notes the arguments of `to`, which have no effect from CPU to CPU."""

            def to(self, *args: object, **options: object) -> Tensor:
                calls.append(options)
                return self

        zeros = torch.zeros(2, 1).as_subclass(Recorder)
        Targets(zeros, zeros).to("cpu", **options)
        assert calls == [{"non_blocking": False} | options] * 2


class TestMix:
    def test_mixes_as_timm(self) -> None:
        images, labels = torch.randn(6, 3, 4, 4), torch.randint(7, (6,))
        targets = make_targets([[label] for label in labels.tolist()], "softmax", 7)
        mixed, sparse = mix(images, targets, 0.4, torch.Generator().manual_seed(3))
        share = float(sparse.weights[0, 0])
        assert 0 < share < 1
        assert sparse.weights.shape == (6, 2)
        torch.testing.assert_close(
            make_dense(sparse, 7, torch.float32), mixup_target(labels, 7, share)
        )
        torch.testing.assert_close(mixed, images * share + images.flip(0) * (1 - share))

    def test_mixes_several_classes_and_their_weights(self) -> None:
        targets = make_targets([[0, 1], [2], [3, 4, 5]], "softmax", 6)
        mixed = mix(torch.zeros(3), targets, 0.4, torch.Generator().manual_seed(3))[1]
        dense, share = make_dense(targets, 6), float(mixed.weights[1, 0])
        expected = share * dense + (1 - share) * dense.flip(0)
        torch.testing.assert_close(make_dense(mixed, 6), expected, rtol=1e-6, atol=1e-6)

    def test_alpha_0_changes_nothing_and_draws_nothing(self) -> None:
        images, targets = torch.randn(2, 3), make_targets([[0], [1]], "softmax", 2)
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        mixed, same = mix(images, targets, 0.0, generator)
        assert mixed is images
        assert same is targets
        assert torch.equal(generator.get_state(), before)

    def test_repeats_with_its_generator_whatever_the_global_one(self) -> None:
        first = draw_beta(0.2, torch.Generator().manual_seed(5))
        torch.rand(7)
        assert draw_beta(0.2, torch.Generator().manual_seed(5)) == first

    @pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0, 4.0])
    def test_shares_are_of_the_beta_distribution(self, alpha: float) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = [draw_beta(alpha, generator) for _ in range(3000)]
        assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3

    def test_tiny_alphas_give_one_image_or_the_other(self) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = [draw_beta(1e-4, generator) for _ in range(400)]
        assert sum(share < 1e-6 or share > 1 - 1e-6 for share in drawn) >= 395
        assert 140 < sum(share > 0.5 for share in drawn) < 260


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
class TestLosses:
    @pytest.mark.parametrize("mixup", [0.0, 0.5])
    @pytest.mark.parametrize("device", DEVICES)
    def test_values_and_gradients_are_the_dense_ones(
        self, kind: LossKind, smoothing: float, mixup: float, device: str
    ) -> None:
        objective = Objective(kind, smoothing)
        targets = draw_targets(kind, 16, 40, mixup)
        logits = 5 * torch.randn(16, 40, dtype=torch.float64)
        ours, theirs = (
            logits.to(device, copy=True).requires_grad_(),
            logits.clone().requires_grad_(),
        )
        scales = torch.randn(16, dtype=torch.float64)  # negative ones too
        losses = compute_losses(objective, ours, targets.to(device))
        expected = compute_dense_losses(objective, theirs, make_dense(targets, 40))
        assert losses.dtype == torch.float64
        torch.testing.assert_close(losses.cpu(), expected, rtol=1e-6, atol=1e-6)  # float32 weights
        (losses.cpu() * scales).sum().backward()
        (expected * scales).sum().backward()
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-6, atol=1e-7)

    def test_second_derivatives_are_refused(self, kind: LossKind, smoothing: float) -> None:
        logits = torch.randn(4, 7, requires_grad=True)
        losses = compute_losses(Objective(kind, smoothing), logits, draw_targets(kind, 4, 7))
        (gradient,) = torch.autograd.grad(losses.square().sum(), logits, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.square().sum().backward()

    def test_gradients_are_the_numerical_ones(self, kind: LossKind, smoothing: float) -> None:
        # Weights that floats hold exactly, a class twice, and padding; the sum is 1.
        targets = Targets(
            torch.tensor([[3, 1, 3], [2, 0, 0]]), torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
        )
        logits = torch.tensor(
            [[0.3, -2.0, 25.0, 1.0], [-30.0, 0.0, 4.0, -1.0]],
            dtype=torch.float64,
            requires_grad=True,
        )
        assert torch.autograd.gradcheck(
            lambda each: compute_losses(Objective(kind, smoothing), each, targets), (logits,)
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("device", DEVICES)
    def test_16_bits_are_computed_in_32(
        self, kind: LossKind, smoothing: float, dtype: torch.dtype, device: str
    ) -> None:
        targets = draw_targets(kind, 8, 3000).to(device)
        logits = torch.randn(8, 3000, device=device).to(dtype)
        half, full = logits.clone().requires_grad_(), logits.float().requires_grad_()
        losses, expected = (
            compute_losses(Objective(kind, smoothing), each, targets) for each in (half, full)
        )
        assert losses.dtype == torch.float32
        assert torch.equal(losses, expected)
        losses.sum().backward()
        expected.sum().backward()
        assert half.grad.dtype == dtype
        # a GPU adds in no fixed order, which can change the last bit of a 16-bit number
        exact = {"rtol": 0.0, "atol": 0.0} if device == "cpu" else {"rtol": 2e-3, "atol": 0.0}
        torch.testing.assert_close(half.grad, full.grad.to(dtype), **exact)

    def test_float32_is_as_close_to_float64_as_torchs(
        self, kind: LossKind, smoothing: float
    ) -> None:
        objective, targets = Objective(kind, smoothing), draw_targets(kind, 8, 27_000)
        logits = torch.randn(8, 27_000) - 10  # where sums of all logits would cancel
        exact = compute_dense_losses(objective, logits.double(), make_dense(targets, 27_000))
        ours = (compute_losses(objective, logits, targets) - exact).abs().max()
        theirs = (
            (compute_dense_losses(objective, logits, make_dense(targets, 27_000).float()) - exact)
            .abs()
            .max()
        )
        assert ours <= 2 * theirs + 1e-5

    def test_far_out_logits_stay_finite(self, kind: LossKind, smoothing: float) -> None:
        logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 88.0]], requires_grad=True)
        losses = compute_losses(
            Objective(kind, smoothing), logits, make_targets([[0], [0, 2]], kind, 3)
        )
        losses.sum().backward()
        assert losses.isfinite().all()
        assert logits.grad.isfinite().all()

    def test_no_dense_target_is_made(self, kind: LossKind, smoothing: float) -> None:
        logits = torch.randn(4, 500, requires_grad=True)
        targets = draw_targets(kind, 4, 500)
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda each: (saved.append(each), each)[1], lambda each: each
        ):
            losses = compute_losses(Objective(kind, smoothing), logits, targets)
        assert {each.data_ptr() for each in saved if each.numel() >= 2000} == {logits.data_ptr()}
        with Buffers(2000) as buffers:
            (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert buffers.found == {gradient.data_ptr()}


@pytest.mark.parametrize("gamma_pos", [0.0, 1.5])
@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("clip", [0.0, 0.05, 0.6])
def test_the_asymmetric_loss_and_its_gradients_are_the_papers(
    gamma_pos: float, gamma_neg: float, clip: float
) -> None:
    parameters = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "clip": clip}
    objective = Objective("asymmetric", **parameters)
    targets = draw_targets("asymmetric", 70, 40)  # in blocks of 3 samples, and one of 1
    logits = (5 * torch.randn(70, 40, dtype=torch.float64)).clamp(-12, 12)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = compute_losses(objective, ours, targets)
    expected = compute_dense_losses(objective, theirs, make_dense(targets, 40))
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-10)
    losses.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10)
    loss = AsymmetricLossMultiLabel(**parameters)(logits, make_dense(targets, 40))
    assert losses.mean().item() == pytest.approx(loss.item(), rel=1e-4)  # timm's is float32


@pytest.mark.parametrize("clip", [0.0, 1e-6, 0.999])
def test_the_asymmetric_loss_of_far_out_logits_is_finite(clip: float) -> None:
    objective = Objective("asymmetric", gamma_pos=0.5, gamma_neg=0.5, clip=clip)
    logits = torch.tensor([[1e4, -1e4, 100.0], [-100.0, 30.0, -30.0]], requires_grad=True)
    losses = compute_losses(objective, logits, make_targets([[0], [1, 2]], "asymmetric", 3))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad.isfinite().all()


def test_the_asymmetric_loss_without_parameters_is_the_sigmoids() -> None:
    logits, targets = 8 * torch.randn(9, 30), draw_targets("sigmoid", 9, 30)
    plain = Objective("asymmetric", gamma_pos=0, gamma_neg=0, clip=0)
    values, gradients = [], []
    for objective in (plain, Objective("sigmoid")):
        each = logits.clone().requires_grad_()
        values.append(compute_losses(objective, each, targets))
        values[-1].sum().backward()
        gradients.append(each.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("objective", [Objective("sigmoid"), Objective("asymmetric")])
def test_a_balanced_head_has_no_gradient_for_a_constant_feature(objective: Objective) -> None:
    counts = torch.tensor([1, 30, 500, 990])
    has_class = torch.arange(1000)[:, None] < counts
    logits = balance_logits(counts / 1000, objective).repeat(1000, 1).requires_grad_()
    compute_dense_losses(objective, logits, has_class.double()).sum().backward()
    assert logits.grad.abs().max() > 0.01
    assert logits.grad.sum(0).abs().max() < 2e-3  # of logits in float32


@pytest.mark.parametrize("objective", [Objective("sigmoid"), Objective("asymmetric")])
@pytest.mark.parametrize("samples", [3, 20_000_000, 10**15])
def test_classes_of_all_images_or_none_start_at_finite_biases(
    samples: int, objective: Objective
) -> None:
    # the last is one too many, as a damaged manifest could have it
    counts = (0.0, 1.0, samples / 2, samples - 1.0, float(samples), samples + 2.0)
    classes = Classes(len(counts), sample_counts=counts, samples=samples)
    run = Run("vit_nano", image_size=32, batch_size=1, steps=1, objective=objective)
    model, _ = make_model(run, classes)
    biases = model.get_classifier().get_parameter("bias").double()
    assert biases.abs().max() <= MAX_LOGIT
    assert biases.tolist() == sorted(biases.tolist())
    if objective.kind == "sigmoid":
        # by the odds, which do not cancel
        odds = [(count + 1) / (samples + 1 - count) for count in counts[:-1]]
        expected = torch.tensor(odds, dtype=torch.float64).log()
        torch.testing.assert_close(biases[:-1], expected, atol=1e-6, rtol=1e-3)


def test_the_asymmetric_loss_takes_little_more_memory_than_the_sigmoid() -> None:
    logits, peaks = torch.randn(64, 5000, requires_grad=True), {}
    for kind in ("sigmoid", "asymmetric"):
        targets = draw_targets(kind, 64, 5000)
        logits.grad = None
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            compute_losses(Objective(kind), logits, targets).sum().backward()
        events = record.profiler.kineto_results.events()  # by time
        sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
        peaks[kind] = max(itertools.accumulate(sizes))
    assert peaks["sigmoid"] >= logits.nbytes
    assert peaks["asymmetric"] <= 1.2 * peaks["sigmoid"]


def test_rare_classes_get_more_of_the_target() -> None:
    samples = 1000
    counts = [500.0, 9.0, 99.5, 0.0, 999.0, 1000.0]
    classes = Classes(len(counts), sample_counts=tuple(counts), samples=samples)
    weights = weigh_classes(Objective(weighting="idf"), classes)
    assert weights is not None
    assert weights[:4] == pytest.approx([math.log(1000 / (1 + count)) for count in counts[:4]])
    dense = make_dense(make_targets([[0, 1], [2], [0, 1, 2, 3], [4, 5]], "softmax", 6, weights), 6)
    w = [math.log(samples / (1 + count)) for count in counts[:4]]
    expected = [
        [w[0] / (w[0] + w[1]), w[1] / (w[0] + w[1]), 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [each / sum(w) for each in w] + [0, 0],
        [0, 0, 0, 0, 0.5, 0.5],  # both of (almost) all images
    ]
    torch.testing.assert_close(dense, torch.tensor(expected, dtype=torch.float64))
    assert make_dense(make_targets([[3, 5]], "softmax", 6, weights), 6)[0, 5] < 1e-6


def test_idf_needs_the_frequencies_of_the_classes() -> None:
    assert weigh_classes(Objective(), Classes(3)) is None
    with pytest.raises(ConfigError, match=r"^objective.weighting is 'idf', and the training data"):
        weigh_classes(Objective(weighting="idf"), Classes(3))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_targets_are_mixed_and_smoothed(smoothing: float) -> None:
    weights = [1.0, 0.25, 3.0, 0.5, 2.0]
    samples = [[0, 1], [2], [1, 3, 4], [4, 0]]
    targets = make_targets(samples, "softmax", 5, weights)
    dense = torch.zeros(4, 5, dtype=torch.float64)
    for row, classes in zip(dense, samples, strict=True):
        row[classes] = torch.tensor([weights[index] for index in classes], dtype=torch.float64)
    dense /= dense.sum(1, keepdim=True)
    torch.testing.assert_close(make_dense(targets, 5), dense, rtol=1e-6, atol=1e-7)
    mixed = mix(torch.zeros(4), targets, 0.5, torch.Generator().manual_seed(1))[1]
    share = draw_beta(0.5, torch.Generator().manual_seed(1))
    dense = share * dense + (1 - share) * dense.flip(0)
    logits = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(
        compute_losses(Objective(label_smoothing=smoothing, weighting="idf"), logits, mixed),
        F.cross_entropy(logits, dense, label_smoothing=smoothing, reduction="none"),
        rtol=1e-6,
        atol=1e-6,
    )


class Buffers(TorchDispatchMode):
    """Memory of tensors of so many elements that operations made."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.found, self.alive = size, set(), []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {
            each.data_ptr() for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)
        }
        result = function(*args, **(kwargs or {}))
        made = [
            each
            for each in tree_leaves(result)
            if isinstance(each, Tensor) and each.numel() >= self.size
        ]
        self.alive += made  # or the next might take its memory
        self.found |= {each.data_ptr() for each in made} - given
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_serves_a_compiled_model_under_autocast(kind: LossKind) -> None:
    targets, x = draw_targets(kind, 4, 50), torch.randn(4, 8)
    grads = []
    for compiled in (True, False):
        torch.manual_seed(1)
        model = nn.Linear(8, 50)
        run = torch.compile(model, backend="aot_eager") if compiled else model
        with torch.autocast("cpu", torch.bfloat16):
            losses = compute_losses(Objective(kind), run(x), targets)
        assert losses.dtype == torch.float32
        losses.mean().backward()
        grads.append(model.weight.grad)
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(*grads)


def test_hits_are_samples_whose_best_class_is_among_theirs() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
    assert count_hits(logits, [[1], [1, 2], [0, 2], []]) == 2
    assert count_hits(logits[:0], []) == 0
    with pytest.raises(ValueError, match="argument"):
        count_hits(logits, [[1]])
