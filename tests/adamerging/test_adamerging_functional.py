"""The objectives: entropy, that of the mean prediction, and the experts' labels."""

import math

import pytest
import torch

from fusion_plugins.adamerging.functional import (
    marginal_negentropy,
    prediction_entropy,
)
from fusion_plugins.learned.functional import pseudo_label_loss


def plain_entropy(logits: list[float], eps: float) -> float:
    exponentials = [math.exp(value) for value in logits]
    shares = [value / sum(exponentials) for value in exponentials]
    return -sum(share * math.log(share + eps) for share in shares)


@pytest.mark.parametrize("eps", [0.0, 1e-8, 0.1])
def test_entropy_is_the_formula_as_plain_loops(eps):
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 5, dtype=torch.float64)
    before = logits.clone()
    want = [plain_entropy(row.tolist(), eps) for row in logits]
    got = prediction_entropy(logits, eps)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))
    assert torch.equal(logits, before)


def test_certain_predictions_have_none_and_equal_ones_the_most():
    logits = torch.tensor([[1000.0, 0.0, 0.0], [2.0, 2.0, 2.0]], requires_grad=True)
    entropy = prediction_entropy(logits)
    torch.testing.assert_close(entropy, torch.tensor([0.0, math.log(3)]))
    entropy.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_the_mean_equals_fusion_benchs_loss():
    from fusion_bench.method.adamerging.entropy_loss import entropy_loss

    torch.manual_seed(1)
    logits = 5 * torch.randn(16, 8)
    got = prediction_entropy(logits, 1e-8).mean()
    torch.testing.assert_close(got, entropy_loss(logits))


def test_other_shapes_are_refused():
    with pytest.raises(
        ValueError, match=r"shape \(4,\), expected \(samples, classes\)"
    ):
        prediction_entropy(torch.zeros(4))


def test_the_marginal_is_the_formula_as_plain_loops():
    torch.manual_seed(2)
    logits = 3 * torch.randn(3, 6, 5, dtype=torch.float64)
    want = []
    for batch in logits.tolist():
        exponentials = [[math.exp(v) for v in row] for row in batch]
        shares = [[v / sum(row) for v in row] for row in exponentials]
        mean = [sum(column) / len(batch) for column in zip(*shares, strict=True)]
        want.append(sum(q * math.log(q) for q in mean))
    got = marginal_negentropy(logits.softmax(-1).mean(1))
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_one_class_for_all_costs_nothing_less_than_diversity():
    sure = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)  # 0 in float32
    one_class = marginal_negentropy(sure.softmax(-1).mean(0))
    assert one_class == 0
    one_class.backward()
    assert torch.isfinite(sure.grad).all()
    assert marginal_negentropy(torch.full((3,), 1 / 3)) == pytest.approx(-math.log(3))


def information_maximisation(logits):
    mean = logits.softmax(-1).mean(0)
    return prediction_entropy(logits).mean() + 0.7 * marginal_negentropy(mean)


OBJECTIVES = {
    "entropy": prediction_entropy,
    "entropy with epsilon": lambda logits: prediction_entropy(logits, 1e-3),
    "information_maximisation": information_maximisation,
    "expert_labels": lambda logits: pseudo_label_loss(logits, torch.arange(5) % 4),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_equal_finite_differences(name):
    torch.manual_seed(3)
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(OBJECTIVES[name], logits)
