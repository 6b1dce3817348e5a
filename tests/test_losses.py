import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conlst.method.complementary import draw_negatives
from conlst.method.losses import (
    Distance,
    contrastive_negative_loss,
    distance,
    literal_source_loss,
    negative_loss,
    soft_cross_entropy,
)

# no deadline: the machine may be busy with a training
REPEATABLE = settings(deadline=None, derandomize=True)
KINDS: list[Distance] = ["euclidean", "squared_euclidean", "cosine"]
Vector = list[float]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The slow, obvious references: Python floats, one number after the other, as the paper writes them.


def slow_softmax(logits: Vector) -> Vector:
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / math.fsum(powers) for power in powers]


def slow_negative(logits: list[Vector], complementary: list[int]) -> float:
    """Eq. 1; ``1 - p`` as the sum of the other classes, which does not cancel."""
    total = 0.0
    for row, label in zip(logits, complementary, strict=True):
        probabilities = slow_softmax(row)
        total -= math.log(math.fsum(p for index, p in enumerate(probabilities) if index != label))
    return total / len(logits)


def slow_distance(a: Vector, b: Vector, kind: Distance) -> float:
    if kind == "cosine":
        return 1 - math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
    squared = math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    return squared if kind == "squared_euclidean" else math.sqrt(squared)


def slow_contrastive(anchor: Vector, twin: Vector, negatives: list[Vector], kind: Distance, temperature: float) -> float:
    """Eq. 6 for one anchor with ``⟨a, b⟩ = exp(-d(a, b) / τ)``."""
    positive = math.exp(-slow_distance(anchor, twin, kind) / temperature)
    others = math.fsum(math.exp(-slow_distance(anchor, negative, kind) / temperature) for negative in negatives)
    return -math.log(positive / (positive + others))


def slow_soft_cross_entropy(logits: list[Vector], targets: list[Vector]) -> float:
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        total -= math.fsum(t * math.log(p) for t, p in zip(target, slow_softmax(row), strict=True))
    return total / len(logits)


def logit_rows(classes: int = 3) -> st.SearchStrategy[list[Vector]]:
    return st.lists(st.lists(st.floats(-8, 8, width=32), min_size=classes, max_size=classes), min_size=1, max_size=5)


class TestNegativeLoss:
    @REPEATABLE
    @given(logit_rows(), st.data())
    def test_equals_the_formula(self, logits: list[Vector], data: st.DataObject) -> None:
        labels = data.draw(st.lists(st.integers(0, 2), min_size=len(logits), max_size=len(logits)))
        found = negative_loss(torch.tensor(logits), torch.tensor(labels))
        assert found.item() == pytest.approx(slow_negative(logits, labels), rel=1e-4, abs=2e-6)

    @pytest.mark.parametrize("classes", [2, 3, 7])
    def test_any_number_of_classes(self, classes: int) -> None:
        logits = torch.randn(20, classes, generator=seeded(0)) * 3
        labels = torch.randint(classes, (20,), generator=seeded(1))
        expected = slow_negative(logits.tolist(), labels.tolist())
        assert negative_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("margin", [20.0, 40.0, 80.0])
    def test_gradient_where_the_model_is_confidently_wrong(self, margin: float) -> None:
        logits = torch.tensor([[margin, 0.0, 0.0]], requires_grad=True)
        loss = negative_loss(logits, torch.tensor([0]))
        loss.backward()
        assert loss.item() == pytest.approx(margin - math.log(2), rel=1e-6)
        assert logits.grad is not None
        torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -0.5, -0.5]]), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("margin", [20.0, 40.0])
    def test_the_textbook_form_would_teach_nothing_there(self, margin: float) -> None:
        # why the loss is a difference of log-sum-exps: if this ever fails, the plain form may come back
        logits = torch.tensor([[margin, 0.0, 0.0]], requires_grad=True)
        (-(1 - logits.softmax(1)[:, 0]).clamp_min(1e-5).log()).sum().backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() == 0

    @pytest.mark.parametrize("margin", [20.0, 40.0])
    def test_is_nothing_where_the_model_agrees(self, margin: float) -> None:
        logits = torch.tensor([[-margin, 0.0, 1.0]], requires_grad=True)
        loss = negative_loss(logits, torch.tensor([0]))
        loss.backward()
        assert 0 <= loss.item() < 1e-6
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-6

    def test_gradient_equals_the_analytic_one(self) -> None:
        logits = torch.randn(6, 3, generator=seeded(0), dtype=torch.float64).float().requires_grad_()
        labels = torch.tensor([0, 1, 2, 2, 1, 0])
        negative_loss(logits, labels).backward()
        for row, gradient, label in zip(logits.tolist(), logits.grad.tolist(), labels.tolist(), strict=True):  # type: ignore[union-attr]
            p = slow_softmax(row)
            expected = [p[k] - (0 if k == label else p[k] / (1 - p[label])) for k in range(3)]
            assert gradient == pytest.approx([value / 6 for value in expected], abs=1e-6)

    def test_is_a_mean_and_knows_no_order(self) -> None:
        logits, labels = torch.randn(8, 3, generator=seeded(0)), torch.randint(3, (8,), generator=seeded(1))
        loss = negative_loss(logits, labels)
        order = torch.randperm(8, generator=seeded(2))
        torch.testing.assert_close(negative_loss(logits[order], labels[order]), loss)
        torch.testing.assert_close(negative_loss(logits.repeat(3, 1), labels.repeat(3)), loss)
        for classes in itertools.permutations(range(3)):
            moved = torch.tensor(classes)  # new column j holds old class classes[j]
            torch.testing.assert_close(negative_loss(logits[:, moved], moved.argsort()[labels]), loss)
        torch.testing.assert_close(negative_loss(logits + 5, labels), loss, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_is_computed_in_float32_under_autocast(self, dtype: torch.dtype) -> None:
        logits = (torch.randn(8, 3, generator=seeded(0)) * 6).to(dtype)
        labels = torch.randint(3, (8,), generator=seeded(1))
        found = negative_loss(logits, labels)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(slow_negative(logits.tolist(), labels.tolist()), rel=1e-5)


class TestSourceTerm:
    """Both readings of eq. 7."""

    @REPEATABLE
    @given(logit_rows(), st.data())
    def test_the_literal_reading_equals_the_formula(self, logits: list[Vector], data: st.DataObject) -> None:
        labels = data.draw(st.lists(st.integers(0, 2), min_size=len(logits), max_size=len(logits)))
        expected = 0.0
        for row, label in zip(logits, labels, strict=True):
            expected += math.log(math.fsum(p for k, p in enumerate(slow_softmax(row)) if k != label)) / len(logits)
        assert literal_source_loss(torch.tensor(logits), torch.tensor(labels)).item() == pytest.approx(
            expected, rel=1e-4, abs=2e-6
        )

    def test_both_pull_towards_the_true_class(self) -> None:
        for loss, label in ((literal_source_loss, 0), (negative_loss, 1), (negative_loss, 2)):
            logits = torch.tensor([[0.3, 0.1, -0.2]], requires_grad=True)
            loss(logits, torch.tensor([label])).backward()
            assert logits.grad is not None
            assert logits.grad[0, 0] < 0

    @pytest.mark.parametrize("margin", [20.0, 40.0])
    def test_only_the_literal_one_is_unbounded_below(self, margin: float) -> None:
        # a pair of class 0 that the model knows better and better
        logits = torch.tensor([[margin, 0.0, 0.0]])
        assert literal_source_loss(logits, torch.tensor([0])).item() == pytest.approx(math.log(2) - margin, rel=1e-6)
        for wrong in (1, 2):
            assert 0 <= negative_loss(logits, torch.tensor([wrong])).item() < 1e-6

    @pytest.mark.parametrize("margin", [20.0, 40.0])
    def test_only_the_literal_one_goes_on_pushing_what_is_learned(self, margin: float) -> None:
        for loss, label, gradient in ((literal_source_loss, 0, [-1, 0.5, 0.5]), (negative_loss, 1, [0, 0, 0])):
            logits = torch.tensor([[margin, 0.0, 0.0]], requires_grad=True)
            loss(logits, torch.tensor([label])).backward()
            assert logits.grad is not None
            torch.testing.assert_close(logits.grad, torch.tensor([gradient], dtype=torch.float32), rtol=0, atol=1e-6)


class TestDistance:
    @pytest.mark.parametrize("kind", KINDS)
    def test_equals_the_formula(self, kind: Distance) -> None:
        a, b = torch.randn(9, 5, generator=seeded(0)), torch.randn(9, 5, generator=seeded(1))
        expected = [slow_distance(x, y, kind) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        torch.testing.assert_close(distance(a, b, kind), torch.tensor(expected), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(distance(b, a, kind), distance(a, b, kind))

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_every_anchor_to_every_negative(self, kind: Distance) -> None:
        anchors, others = torch.randn(4, 5, generator=seeded(0)), torch.randn(7, 5, generator=seeded(1))
        table = distance(anchors[:, None], others, kind)
        expected = [[slow_distance(x, y, kind) for y in others.tolist()] for x in anchors.tolist()]
        torch.testing.assert_close(table, torch.tensor(expected), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("value", [0.0, 1.0, -40.0])
    def test_gradient_is_finite_at_distance_zero(self, kind: Distance, value: float) -> None:
        # a dropout twin may equal its anchor: without dropout, or where the dropped units did not matter
        a = torch.full((2, 4), value, requires_grad=True)
        b = torch.full((2, 4), value, requires_grad=True)
        found = distance(a, b, kind)
        found.sum().backward()
        if kind != "cosine" or value:
            assert found.tolist() == pytest.approx([0, 0], abs=2e-6)
        for gradient in (a.grad, b.grad):
            assert gradient is not None
            assert gradient.isfinite().all()

    @pytest.mark.parametrize("width", [128, 1024])
    def test_keeps_its_digits_where_norms_dwarf_distances(self, width: int) -> None:
        # float32's norms of ~550 and true distances of ~.27 were seen on a real encoder
        generator = seeded(3)
        base = F.normalize(torch.randn(32, width, generator=generator, dtype=torch.float64), dim=1) * 550
        step = F.normalize(torch.randn(32, width, generator=generator, dtype=torch.float64), dim=1) * 0.27
        a, b = base.float(), (base + step).float()
        true = torch.tensor([slow_distance(x, y, "euclidean") for x, y in zip(a.tolist(), b.tolist(), strict=True)])
        torch.testing.assert_close(true, torch.full((32,), 0.27), rtol=2e-3, atol=0)
        torch.testing.assert_close(distance(a, b, "euclidean"), true, rtol=1e-5, atol=0)
        torch.testing.assert_close(distance(a, b, "squared_euclidean"), true.square(), rtol=1e-5, atol=0)
        # the matrix-product form, which this test is to keep out
        gram = (a.square().sum(1) + b.square().sum(1) - 2 * (a * b).sum(1)).clamp_min(0).sqrt()
        assert ((gram - true).abs() / true).max() > 0.05

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_computed_in_float32_under_autocast(self, kind: Distance) -> None:
        a = torch.randn(6, 64, generator=seeded(0)).bfloat16()
        b = torch.randn(6, 64, generator=seeded(1)).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            found = distance(a, b, kind)
        expected = [slow_distance(x, y, kind) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)

    def test_kinds_measure_different_things(self) -> None:
        a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
        assert [distance(a, b, kind).item() for kind in KINDS] == pytest.approx([5, 25, 1])


class TestContrastiveNegativeLoss:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
    def test_equals_the_formula_one_anchor_at_a_time(self, kind: Distance, temperature: float) -> None:
        generator = seeded(5)
        anchors = torch.randn(6, 4, generator=generator)
        twins = anchors + 0.1 * torch.randn(6, 4, generator=generator)
        others, classes = torch.randn(9, 4, generator=generator), torch.arange(9) % 3
        complementary = torch.tensor([0, 1, 2, 2, 1, 0])
        found = contrastive_negative_loss(
            distance(anchors, twins, kind),
            distance(anchors[:, None], others, kind),
            complementary[:, None] == classes,
            temperature,
        )
        expected = [
            slow_contrastive(
                anchors[i].tolist(), twins[i].tolist(), others[classes == complementary[i]].tolist(), kind, temperature
            )
            for i in range(6)
        ]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-6)

    @REPEATABLE
    @given(st.integers(1, 20), st.floats(0, 50, width=32))
    def test_of_equal_distances_is_that_of_a_guess(self, count: int, at: float) -> None:
        found = contrastive_negative_loss(
            torch.tensor([at]), torch.full((1, count), at), torch.ones(1, count, dtype=torch.bool), 1.0
        )
        assert found.item() == pytest.approx(math.log(1 + count), abs=2e-5)

    def test_temperature_divides_the_distances(self) -> None:
        positive, negative = torch.rand(5, generator=seeded(0)), torch.rand(5, 4, generator=seeded(1))
        member = torch.rand(5, 4, generator=seeded(2)) < 0.6
        for temperature in (0.05, 0.5, 20.0):
            torch.testing.assert_close(
                contrastive_negative_loss(positive, negative, member, temperature),
                contrastive_negative_loss(positive / temperature, negative / temperature, member, 1.0),
            )

    def test_an_anchor_without_a_negative_costs_nothing_and_breaks_nothing(self) -> None:
        positive = torch.tensor([0.5, 3.0], requires_grad=True)
        negative = torch.tensor([[1.0, 2.0], [0.0, 1.0]], requires_grad=True)
        losses = contrastive_negative_loss(positive, negative, torch.tensor([[True, False], [False, False]]), 1.0)
        losses.mean().backward()
        assert losses[1].item() == 0
        assert losses[0].item() > 0
        assert positive.grad is not None
        assert negative.grad is not None
        assert positive.grad[1] == 0
        assert negative.grad[1].tolist() == [0, 0]
        assert positive.grad[0] > 0
        assert negative.grad[0, 0] < 0

    def test_a_step_without_any_negative_costs_nothing(self) -> None:
        positive = torch.tensor([0.5, 3.0], requires_grad=True)
        losses = contrastive_negative_loss(positive, torch.empty(2, 0), torch.empty(2, 0, dtype=torch.bool), 1.0)
        losses.mean().backward()
        assert losses.tolist() == [0, 0]
        assert positive.grad is not None
        assert positive.grad.tolist() == [0, 0]

    def test_pairs_that_are_no_negatives_of_an_anchor_do_not_matter(self) -> None:
        positive = torch.tensor([1.0])
        member = torch.tensor([[True, False, True]])
        expected = contrastive_negative_loss(positive, torch.tensor([[1.5, 0.7]]), torch.ones(1, 2, dtype=torch.bool), 0.5)
        for stranger in (0.0, 1.0, 1e6, math.inf):
            negative = torch.tensor([[1.5, stranger, 0.7]], requires_grad=True)
            found = contrastive_negative_loss(positive, negative, member, 0.5)
            found.sum().backward()
            torch.testing.assert_close(found, expected)
            assert negative.grad is not None
            assert negative.grad[0, 1] == 0

    @pytest.mark.parametrize("margin", [20.0, 40.0])
    def test_gradient_at_extreme_margins(self, margin: float) -> None:
        # the twin far and the negative near: full strength
        positive, negative = torch.tensor([margin], requires_grad=True), torch.tensor([[0.0]], requires_grad=True)
        loss = contrastive_negative_loss(positive, negative, torch.tensor([[True]]), 1.0)
        loss.sum().backward()
        assert loss.item() == pytest.approx(margin, rel=1e-6)
        assert (positive.grad.item(), negative.grad.item()) == pytest.approx((1, -1), abs=1e-6)  # type: ignore[union-attr]
        # the other way round the softmax is solved
        positive, negative = torch.tensor([0.0], requires_grad=True), torch.tensor([[margin]], requires_grad=True)
        loss = contrastive_negative_loss(positive, negative, torch.tensor([[True]]), 1.0)
        loss.sum().backward()
        assert 0 <= loss.item() < 1e-6
        assert (positive.grad.item(), negative.grad.item()) == pytest.approx((0, 0), abs=1e-6)  # type: ignore[union-attr]

    @pytest.mark.parametrize("temperature", [1e-3, 1e-2])
    def test_tiny_temperatures_stay_finite(self, temperature: float) -> None:
        positive, negative = torch.tensor([10.0, 0.1], requires_grad=True), torch.tensor([[0.2, 12.0], [9.0, 8.0]])
        losses = contrastive_negative_loss(positive, negative, torch.ones(2, 2, dtype=torch.bool), temperature)
        losses.sum().backward()
        assert losses.tolist() == pytest.approx([9.8 / temperature, 0], rel=1e-5)
        assert positive.grad is not None
        assert positive.grad.isfinite().all()

    def test_knows_no_order_of_anchors_negatives_or_classes(self) -> None:
        positive, negative = torch.rand(5, generator=seeded(0)), torch.rand(5, 6, generator=seeded(1))
        complementary, classes = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0, 0, 1, 1, 2, 2])
        losses = contrastive_negative_loss(positive, negative, complementary[:, None] == classes, 0.3)
        rows, columns = torch.randperm(5, generator=seeded(2)), torch.randperm(6, generator=seeded(3))
        moved = contrastive_negative_loss(
            positive[rows], negative[rows][:, columns], complementary[rows][:, None] == classes[columns], 0.3
        )
        torch.testing.assert_close(moved, losses[rows])
        for names in itertools.permutations(range(3)):
            renamed = torch.tensor(names)
            member = renamed[complementary][:, None] == renamed[classes]
            torch.testing.assert_close(contrastive_negative_loss(positive, negative, member, 0.3), losses)

    @pytest.mark.parametrize("kind", KINDS)
    def test_trains_even_when_twins_are_equal(self, kind: Distance) -> None:
        anchors = torch.randn(3, 4, generator=seeded(0), requires_grad=True)
        twins = anchors.detach().clone().requires_grad_()
        others = torch.randn(2, 4, generator=seeded(1), requires_grad=True)
        losses = contrastive_negative_loss(
            distance(anchors, twins, kind), distance(anchors[:, None], others, kind), torch.ones(3, 2, dtype=torch.bool), 1.0
        )
        losses.mean().backward()
        for h in (anchors, twins, others):
            assert h.grad is not None
            assert h.grad.isfinite().all()
        assert others.grad is not None
        assert others.grad.abs().max() > 0


class TestSharedNegatives:
    """Eq. 5 draws K negatives for each anchor; conlst draws K a class once a step. Same loss in expectation."""

    K, THRESHOLD, TEMPERATURE, DRAWS = 3, 0.9, 0.7, 1500
    KIND: Distance = "euclidean"

    @pytest.fixture
    def scene(self) -> dict[str, Tensor]:
        """Anchors with twins and complementary labels; a pool with 6, 8 and 2 sure pairs a class, and unsure ones."""
        generator = seeded(11)
        classes = torch.tensor([0] * 6 + [1] * 8 + [2] * 2 + [0, 1, 2] * 3)
        top = torch.where(torch.arange(25) < 16, 0.95, 0.6)
        q = ((1 - top) / 2)[:, None].repeat(1, 3)
        q[torch.arange(25), classes] = top
        anchors = torch.randn(5, 4, generator=generator)
        return {
            "q": q,
            "pool": torch.randn(25, 4, generator=generator),
            "anchors": anchors,
            "twins": anchors + 0.3 * torch.randn(5, 4, generator=generator),
            "complementary": torch.tensor([0, 1, 2, 1, 0]),
        }

    def members(self, scene: dict[str, Tensor], anchor: int) -> list[int]:
        confidence, label = scene["q"].max(1)
        wanted = int(scene["complementary"][anchor])
        return [j for j in range(25) if label[j] == wanted and confidence[j] >= self.THRESHOLD]

    def slow_loss(self, scene: dict[str, Tensor], anchor: int, negatives: list[int]) -> float:
        h, twin = scene["anchors"][anchor].tolist(), scene["twins"][anchor].tolist()
        return slow_contrastive(h, twin, [scene["pool"][j].tolist() for j in negatives], self.KIND, self.TEMPERATURE)

    def shared_losses(self, scene: dict[str, Tensor], generator: torch.Generator) -> Vector:
        indices, classes = draw_negatives(scene["q"], self.THRESHOLD, self.K, generator)
        losses = contrastive_negative_loss(
            distance(scene["anchors"], scene["twins"], self.KIND),
            distance(scene["anchors"][:, None], scene["pool"][indices], self.KIND),
            scene["complementary"][:, None] == classes,
            self.TEMPERATURE,
        )
        return losses.tolist()

    def test_every_shared_draw_is_a_draw_of_the_slow_reference(self, scene: dict[str, Tensor]) -> None:
        for seed in range(20):
            indices, classes = draw_negatives(scene["q"], self.THRESHOLD, self.K, seeded(seed))
            expected = []
            for anchor in range(5):
                mine = indices[classes == scene["complementary"][anchor]].tolist()
                assert set(mine) <= set(self.members(scene, anchor))
                assert len(mine) == min(self.K, len(self.members(scene, anchor)))
                expected.append(self.slow_loss(scene, anchor, mine))
            assert self.shared_losses(scene, seeded(seed)) == pytest.approx(expected, rel=1e-4)

    def test_the_loss_is_the_same_in_expectation(self, scene: dict[str, Tensor]) -> None:
        generator, chance = seeded(1), random.Random(1)
        # what the paper's way gives in the limit: the mean over every set of K that an anchor could draw
        every = []
        for anchor in range(5):
            members = self.members(scene, anchor)
            sets = itertools.combinations(members, min(self.K, len(members)))
            every.append([self.slow_loss(scene, anchor, list(chosen)) for chosen in sets])
        exact = [math.fsum(losses) / len(losses) for losses in every]

        shared = torch.tensor([self.shared_losses(scene, generator) for _ in range(self.DRAWS)], dtype=torch.float64)
        # a draw of the slow reference is one of those losses, each as likely, for each anchor apart from the others
        apart = torch.tensor([[chance.choice(losses) for losses in every] for _ in range(self.DRAWS)], dtype=torch.float64)

        for draws, truth in (
            *((draws.mean(1), math.fsum(exact) / 5) for draws in (shared, apart)),
            *((shared[:, anchor], exact[anchor]) for anchor in range(5)),
        ):
            error = draws.std().item() / math.sqrt(self.DRAWS)
            assert abs(draws.mean().item() - truth) < 4 * error + 1e-5  # a class of K pairs or fewer is the same at every draw
        difference = (shared.mean(1).mean() - apart.mean(1).mean()).abs().item()
        error = math.hypot(*(draws.mean(1).std().item() / math.sqrt(self.DRAWS) for draws in (shared, apart)))
        assert difference < 4 * error

        # and the tolerance is fine enough to tell K from K - 1 negatives, or always the same ones, apart
        fewer = [slow[: self.K - 1] for slow in (self.members(scene, anchor) for anchor in range(5))]
        biased = math.fsum(self.slow_loss(scene, anchor, fewer[anchor]) for anchor in range(5)) / 5
        assert abs(biased - math.fsum(exact) / 5) > 8 * error


class TestSoftCrossEntropy:
    @REPEATABLE
    @given(logit_rows(), st.integers(0, 2**30))
    def test_equals_the_formula(self, logits: list[Vector], seed: int) -> None:
        targets = torch.rand(len(logits), 3, generator=seeded(seed)) + 1e-3
        targets = targets / targets.sum(1, keepdim=True)
        found = soft_cross_entropy(torch.tensor(logits), targets)
        assert found.item() == pytest.approx(slow_soft_cross_entropy(logits, targets.tolist()), rel=1e-5, abs=1e-6)

    def test_of_hard_labels_is_the_usual_one(self) -> None:
        logits, labels = torch.randn(10, 3, generator=seeded(0)), torch.randint(3, (10,), generator=seeded(1))
        torch.testing.assert_close(soft_cross_entropy(logits, F.one_hot(labels, 3).float()), F.cross_entropy(logits, labels))

    def test_of_mixed_labels_is_the_mix_of_the_losses(self) -> None:
        # what eq. 10 relies on
        logits, weight = torch.randn(10, 3, generator=seeded(0)), 0.3
        first, second = torch.randint(3, (2, 10), generator=seeded(1))
        mixed = weight * F.one_hot(first, 3) + (1 - weight) * F.one_hot(second, 3)
        expected = weight * F.cross_entropy(logits, first) + (1 - weight) * F.cross_entropy(logits, second)
        torch.testing.assert_close(soft_cross_entropy(logits, mixed), expected)

    @pytest.mark.parametrize("margin", [20.0, 40.0])
    def test_at_extreme_logits(self, margin: float) -> None:
        logits = torch.tensor([[margin, 0.0, 0.0]], requires_grad=True)
        loss = soft_cross_entropy(logits, torch.tensor([[0.0, 0.5, 0.5]]))
        loss.backward()
        assert loss.item() == pytest.approx(margin, rel=1e-6)
        assert logits.grad is not None
        torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -0.5, -0.5]]), rtol=0, atol=1e-6)

    def test_is_computed_in_float32_under_autocast(self) -> None:
        logits = (torch.randn(8, 3, generator=seeded(0)) * 6).bfloat16()
        targets = torch.tensor([[0.2, 0.3, 0.5]]).repeat(8, 1)
        found = soft_cross_entropy(logits, targets)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(slow_soft_cross_entropy(logits.tolist(), targets.tolist()), rel=1e-5)
