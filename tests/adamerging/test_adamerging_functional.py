"""The entropy of predictions."""

import math

import pytest
import torch

from fusion_plugins.adamerging.functional import prediction_entropy


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
