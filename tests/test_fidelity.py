import math

import pytest
import torch

from rlmask.fidelity import figures


def test_figures_of_two_states_by_hand():
    """In the first state both agree, by a gap of 2; in the second they do not, by a gap of 1."""
    mask = torch.tensor([[True, True, False], [True, True, False]])
    scores = torch.tensor([[2.0, 0.0, 9.0], [0.0, 1.0, 9.0]])
    logits = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    found = figures(logits, scores, mask, 1.0)
    assert found.agreement == 0.5
    assert found.weighted_agreement == pytest.approx(2 / 3)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    def entropy(p):
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    def kl(p, q):
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    student = sigmoid(1)  # of action 0, in both
    teachers = sigmoid(2), sigmoid(-1)
    assert found.kl == pytest.approx(sum(kl(p, student) for p in teachers) / 2, rel=1e-5)
    assert found.teacher_entropy == pytest.approx(sum(map(entropy, teachers)) / 2, rel=1e-5)
    assert found.student_entropy == pytest.approx(entropy(student), rel=1e-5)
    assert found.invalid_mass == pytest.approx(1 / (math.e + 2), rel=1e-5)
    assert found.states == 2


def test_a_state_of_one_valid_action_says_nothing():
    mask = torch.tensor([[False, True], [True, True]])
    scores = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    found = figures(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), scores, mask, 0.5)
    assert found.agreement == 0.5  # the first cannot but agree
    assert found.weighted_agreement == 0.0
    alone = figures(scores[:1], scores[:1], mask[:1], 0.5)
    assert (alone.weighted_agreement, alone.kl, alone.teacher_entropy) == (0.0, 0.0, 0.0)
