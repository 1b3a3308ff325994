import math

import pytest
import torch

from rlmask.ops import policy_regression_loss
from rlmask.teachers import (
    Teacher,
    TeacherError,
    label,
    own_obs,
    padded_obs,
    random_policy,
    teacher_policy,
)
from rlmask.types import ObsSpec

IMAGE = ObsSpec(kind="image", shape=(2, 3, 1), dtype="uint8")


def teacher(action_ids, scores=None, features=0, kind="policy", obs=IMAGE, **more):
    """Return a teacher that gives the same scores everywhere, or the first pixel of each row."""

    def score(own, mask):
        given = own.flatten(1)[:, : mask.shape[1]].float()
        if scores is not None:
            given = torch.tensor(scores).expand(len(own), -1).clone()
        return given, torch.full((len(own), features), float(len(action_ids)))

    return Teacher(
        name="t",
        score=score,
        kind=kind,
        num_features=features,
        obs=obs,
        action_ids=action_ids,
        **more,
    )


def test_scores_go_where_the_action_ids_say_not_by_their_place():
    scores, _ = teacher((5, 0, 3), [1.0, 2.0, 3.0]).widened(
        torch.zeros((2, 2, 3, 1), dtype=torch.uint8), torch.ones((2, 6), dtype=torch.bool)
    )
    assert scores.tolist() == [[2.0, 0.0, 0.0, 3.0, 0.0, 1.0]] * 2


def test_a_teacher_sees_its_own_mask_and_its_own_observation():
    seen = []

    def score(obs, mask):
        seen.append((obs, mask))
        return mask.float(), torch.zeros((len(mask), 0))

    own = Teacher(name="t", score=score, kind="policy", obs=IMAGE, action_ids=(3, 1))
    obs = torch.arange(2 * 4 * 4 * 2).view(2, 4, 4, 2).to(torch.uint8)
    mask = torch.tensor([[True, True, False, False], [False, False, False, True]])
    own.widened(obs, mask)
    ((shown, own_mask),) = seen
    assert (shown == obs[:, :2, :3, :1]).all()
    assert own_mask.tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("spec", "union", "offset"),
    [
        (IMAGE, ObsSpec(kind="image", shape=(3, 3, 4), dtype="uint8"), 0),
        (
            ObsSpec(kind="vector", shape=(2,), dtype="float32"),
            ObsSpec(kind="vector", shape=(5,), dtype="float32"),
            0,
        ),
        (
            ObsSpec(kind="discrete", shape=(), dtype="int64", n=3),
            ObsSpec(kind="discrete", shape=(), dtype="int64", n=9),
            4,
        ),
    ],
    ids=["image", "vector", "discrete"],
)
def test_padding_is_undone(spec, union, offset):
    count = 2
    size = torch.Size([count, *spec.shape]).numel()
    own = torch.arange(size).view(count, *spec.shape).to(spec.torch_dtype)
    padded = padded_obs(own, union, offset)
    assert padded.shape[1:] == union.shape
    assert padded.double().sum() == own.double().sum() + offset * count  # only zeros are added
    assert (own_obs(padded, spec, offset) == own).all()


def test_each_teacher_labels_the_rows_of_its_game():
    teachers = [
        teacher((0, 1), [1.0, 2.0], features=2),
        teacher((2, 0), [3.0, 4.0], features=3),
    ]
    obs = torch.zeros((4, 2, 3, 1), dtype=torch.uint8)
    states = label(teachers, obs, torch.ones((4, 3), dtype=torch.bool), num_features=3)
    assert states.scores.tolist() == [[1.0, 2.0, 0.0], [4.0, 0.0, 3.0]] * 2
    assert states.features.tolist() == [[2.0, 2.0, 0.0], [2.0, 2.0, 2.0]] * 2


def test_a_teacher_that_gives_no_scores_is_an_error():
    obs, mask = torch.zeros((1, 2, 3, 1), dtype=torch.uint8), torch.tensor([[True, False, True]])
    with pytest.raises(TeacherError, match=r"shape \(1, 3\)"):
        teacher((0, 2), [1.0, 2.0, 3.0]).widened(obs, mask)
    with pytest.raises(TeacherError, match="NaN"):
        teacher((0, 2), [1.0, float("nan")]).widened(obs, mask)
    with pytest.raises(TeacherError, match="NaN or inf"):
        teacher((0, 2), [1.0, float("inf")]).widened(obs, mask)
    with pytest.raises(TeacherError, match="-inf to all valid"):
        teacher((0, 1, 2), [-float("inf"), 1.0, -float("inf")]).widened(obs, mask)
    # where the action is invalid nothing is looked at
    teacher((0, 1, 2), [1.0, float("nan"), 2.0]).widened(obs, mask)


def test_a_policy_may_never_do_something():
    obs, mask = torch.zeros((1, 2, 3, 1), dtype=torch.uint8), torch.tensor([[True, True, True]])
    rule = teacher((0, 1, 2), [0.0, -float("inf"), -float("inf")])
    assert teacher_policy([rule], greedy=False, seed=0)(obs, mask) == 0
    scores, _ = rule.widened(obs, mask)
    terms = policy_regression_loss(torch.zeros((1, 3)), scores, mask, 1.0)
    assert terms.loss.item() == pytest.approx(math.log(3))
    assert terms.grad.tolist() == [pytest.approx([-2 / 3, 1 / 3, 1 / 3])]


def test_teachers_play_each_in_its_own_way():
    obs = torch.zeros((2000, 2, 3, 1), dtype=torch.uint8)
    mask = torch.tensor([[True, True, False]]).repeat(2000, 1)
    scores = [1.0, 1.0 + torch.tensor(3.0).log().item(), 99.0]  # of the valid two, 1 to 3
    teachers = [teacher((0, 1, 2), scores), teacher((0, 1, 2), scores, kind="values")]
    assert (teacher_policy(teachers, greedy=True, seed=0)(obs, mask) == 1).all()
    drawn = teacher_policy(teachers, greedy=False, seed=0)(obs, mask)
    assert (drawn[1::2] == 1).all()  # values are no distribution
    assert 0.71 < (drawn[::2] == 1).float().mean() < 0.79  # 3/4, standard deviation 0.014
    assert set(drawn.tolist()) == {0, 1}


def test_the_random_policy_draws_valid_actions_with_equal_chances():
    mask = torch.tensor([[True, False, True, True]]).repeat(3000, 1)
    counts = torch.bincount(random_policy(0)(mask, mask), minlength=4)
    assert counts[1] == 0
    assert ((counts[[0, 2, 3]] - 1000).abs() < 130).all()  # standard deviation 26
