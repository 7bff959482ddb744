"""The rules on hand-made cases: losses, sampling, and a head as a map of features."""

import pytest
import torch
import torch.nn.functional as F

from fusion_plugins.learned.functional import pseudo_label_loss
from fusion_plugins.merged.heads import head_as_feature_map
from fusion_plugins.tinting.functional import (
    confidence_gap_selection,
    top_p_selection,
)


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_the_confidence_gap_keeps_agreement_and_surer_teachers():
    cases = {  # merged probabilities, teacher label, teacher confidence -> kept
        "agree, teacher less sure": ([0.9, 0.05, 0.05], 0, 0.4, True),
        "agree, teacher surer": ([0.6, 0.2, 0.2], 0, 0.9, True),
        "disagree, teacher surer": ([0.6, 0.2, 0.2], 1, 0.7, True),
        "disagree, equally sure": ([0.5, 0.25, 0.25], 1, 0.5, True),
        "disagree, teacher less sure": ([0.6, 0.2, 0.2], 1, 0.5, False),
    }
    merged, labels, confidence, want = zip(*cases.values(), strict=True)
    got = confidence_gap_selection(
        logits_of(*merged),
        torch.tensor(labels),
        torch.tensor(confidence, dtype=torch.float64),
    )
    assert got.dtype == torch.bool
    assert dict(zip(cases, got.tolist(), strict=True)) == dict(
        zip(cases, want, strict=True)
    )


def test_the_confidence_gap_can_keep_all_or_nothing():
    merged = logits_of([0.8, 0.2], [0.3, 0.7])
    other = torch.tensor([1, 0])
    low, high = torch.full((2,), 0.5), torch.full((2,), 0.9)
    assert not confidence_gap_selection(merged, other, low).any()
    assert confidence_gap_selection(merged, other, high).all()
    assert confidence_gap_selection(merged, 1 - other, low).all()


def test_the_selection_passes_no_gradient():
    logits = logits_of([0.8, 0.2]).requires_grad_(True)
    kept = confidence_gap_selection(logits, torch.tensor([0]), torch.tensor([0.5]))
    assert not kept.requires_grad


@pytest.mark.parametrize(
    "share, want", [(0.5, [1, 3]), (0.25, [3]), (0.01, [3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_samples_the_teacher_is_surest_of(share, want):
    kept = top_p_selection(torch.tensor([0.2, 0.8, 0.3, 0.9]), share)
    assert kept.nonzero().flatten().tolist() == want


def test_top_p_of_equal_confidences_keeps_no_more_than_its_share():
    assert top_p_selection(torch.full((10,), 0.5), 0.3).sum() == 3
    assert top_p_selection(torch.empty(0), 0.3).shape == (0,)


def test_hard_labels_are_plain_cross_entropy():
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64)
    labels = torch.tensor([3, 0, 1, 1, 2])
    want = [
        -row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)
    ]
    got = pseudo_label_loss(logits, labels)
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=1e-12)
    assert got.mean().item() == pytest.approx(F.cross_entropy(logits, labels).item())


def test_soft_labels_are_cross_entropy_to_all_probabilities():
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64)
    teacher = torch.randn(5, 4, dtype=torch.float64).softmax(1)
    want = [
        -sum(p * log_p for p, log_p in zip(row, merged.log_softmax(0), strict=True))
        for row, merged in zip(teacher, logits, strict=True)
    ]
    got = pseudo_label_loss(logits, teacher)
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=1e-12)
    sharp = F.one_hot(teacher.argmax(1), 4).double()
    hard = pseudo_label_loss(logits, teacher.argmax(1))
    torch.testing.assert_close(pseudo_label_loss(logits, sharp), hard)


@pytest.mark.parametrize("shape", [(4,), (5, 3), (4, 4)])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(5,\) for hard or \(5, 4\)"):
        pseudo_label_loss(torch.zeros(5, 4), torch.zeros(shape))


@pytest.mark.parametrize("classes, features", [(3, 8), (10, 32), (47, 48), (16, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_zero_shot_head_on_mapped_features_is_the_trained_head(
    classes, features, dtype
):
    torch.manual_seed(classes)
    noise = torch.randn(classes, features, dtype=dtype)
    reference = 5 * torch.eye(classes, features, dtype=dtype) + noise / 2
    head = reference + torch.randn(classes, features, dtype=dtype)
    bias = torch.randn(classes, dtype=dtype)
    inputs = F.normalize(torch.randn(20, features, dtype=dtype), dim=1)
    matrix, offset = head_as_feature_map(head, bias, reference)
    assert matrix.shape == (features, features) and matrix.dtype == dtype
    got = (inputs @ matrix.t() + offset) @ reference.t()
    want = inputs @ head.t() + bias
    assert (want - inputs @ reference.t()).abs().max() > 0.1
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_an_untrained_head_maps_features_to_themselves():
    torch.manual_seed(0)
    reference = torch.randn(5, 9)
    matrix, offset = head_as_feature_map(reference, torch.zeros(5), reference)
    assert torch.equal(matrix, torch.eye(9)) and (offset == 0).all()


@pytest.mark.parametrize(
    "reference, text",
    [
        (torch.eye(6, 4), "a head of 6 classes on 4 features has rank 4"),
        (torch.ones(3, 5), "a head of 3 classes on 5 features has rank 1"),
        (torch.zeros(2, 5), "a head of 2 classes on 5 features has rank 0"),
    ],
    ids=["more classes than features", "equal rows", "zero"],
)
def test_a_head_without_full_row_rank_is_refused(reference, text):
    with pytest.raises(ValueError, match=text):
        head_as_feature_map(reference + 1, torch.zeros(len(reference)), reference)
