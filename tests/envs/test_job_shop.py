from hashlib import sha256
from itertools import pairwise, permutations

import numpy as np
import pytest
from playing import make_vec, play

from rlmask_envs import job_shop
from rlmask_envs.dispatching import dispatch
from rlmask_envs.gantt import job_color, tick_for
from rlmask_envs.job_shop import (
    clear_schedule,
    load_instance,
    observe,
    reset,
    setup,
    step,
    valid_actions,
)

# three jobs on two machines: 0 takes 3 on machine 0, then 2 on machine 1; and so on
DURATIONS = np.array([[3, 2], [4, 1], [4, 5]])
MACHINES = np.array([[0, 1], [1, 0], [0, 1]])

# the least makespans are in the literature (see job_shop); a schedule that has it, as the jobs in
# order of dispatch, and the proof that none is shorter are from a constraint solver
OPTIMA = {
    "ft06": (55, "120203124531502543432150341502534104"),
    "ft10": (
        930,
        "05385356185643796514375482469139635847236981495607"
        "24558769804027018942109068392721780127603173241902",
    ),
    "la01": (666, "45679356479403568902386117836471921381058207920542"),
}


class Game:
    """One state, and the compiled rules on it."""

    def __init__(self, seed=0, **sizes):
        envs = make_vec("JobShop", 1, **sizes)
        (self.state,), self.options = envs.states, envs.options
        self.obs = np.zeros(envs.single_observation_space.shape, np.float32)
        self.rng = np.array([seed, 0], np.uint64)
        reset(self.state, self.rng, self.options)

    def step(self, job):
        return step(self.state, job, self.rng, self.options)

    def play(self, jobs):
        return [self.step(int(job)) for job in jobs]

    def mask(self):
        mask = np.zeros(self.options.num_jobs, np.int8)
        valid_actions(self.state, mask, self.options)
        return mask.tolist()

    def observe(self):
        self.obs[:] = 0
        observe(self.state, self.obs, self.options)
        return self.obs

    def operations(self):
        """(job, index, machine, start, end) of all that is scheduled."""
        state = self.state
        return [
            (job, index, int(machine), int(start), int(start + duration))
            for (job, index), start, machine, duration in zip(
                np.ndindex(state.starts.shape),
                state.starts.flat,
                state.machines.flat,
                state.durations.flat,
                strict=True,
            )
            if start >= 0
        ]


def tiny():
    game = Game(num_jobs=3, num_machines=2)
    game.state.durations[:], game.state.machines[:] = DURATIONS, MACHINES
    clear_schedule(game.state, game.options)
    return game


def test_each_operation_starts_once_its_job_and_its_machine_are_free():
    game = tiny()
    # machine 0: job 0 from 0 to 3, job 2 from 3 to 7, job 1, which waits since 4, from 7 to 8;
    # machine 1: job 1 from 0 to 4, job 0, which waits since 3, from 4 to 6, job 2 from 7 to 12
    rewards, ends = zip(*game.play([0, 1, 2, 0, 1, 2]), strict=True)
    assert game.state.starts.tolist() == [[0, 4], [0, 7], [3, 7]]
    assert rewards == (-3, -1, -3, 0, -1, -4)  # of the makespans 3, 4, 7, 7, 8, 12
    assert ends == (False,) * 5 + (True,)
    assert game.state.makespan == 12


def test_gaps_are_not_filled():
    game = tiny()
    game.play([1, 1, 0])  # machine 0 does nothing until 4, job 1 until 5
    assert game.state.starts.tolist() == [[5, -1], [0, 4], [-1, -1]]


def test_jobs_with_operations_left_are_valid():
    game = tiny()
    assert game.mask() == [1, 1, 1]
    game.play([2])
    assert game.mask() == [1, 1, 1]
    game.play([2])
    assert game.mask() == [1, 1, 0]
    game.play([0, 1, 0, 1])
    assert game.mask() == [0, 0, 0]


def test_observation():
    game = tiny()
    game.play([0, 1])
    # jobs are free from 3, 4, 0 on, machines from 3, 4; next could be job 0 from 4 to 6, job 1 from
    # 4 to 5, job 2 from 3 to 7: so now is 3; the first end is 5, and the makespan 4
    d, t = 1 / 99, 1 / 150  # the mean of 1 .. 99 is 50, and there are three jobs
    expected = [
        *(1, 0.5, 2 * d, 2 * d / 2, 0 * t, 1 * t, 1 * t, 1 * t, 2 * t),
        *(1, 0.5, 1 * d, 1 * d / 2, 1 * t, 0 * t, 1 * t, 0 * t, 1 * t),
        *(1, 0.0, 4 * d, 9 * d / 2, -3 * t, 0 * t, 0 * t, 2 * t, 3 * t),
        *(0 * t, 5 * d / 3),  # machine 0: 1 and 4 are left
        *(1 * t, 7 * d / 3),  # machine 1: 2 and 5
        1 * t,
        *(0, 0, 2 * d, 1),  # job 0: machine 0, machine 1
        *(1 * d, 1, 0, 0),
        *(4 * d, 1, 5 * d, 0.5),
    ]
    np.testing.assert_allclose(game.observe(), expected, rtol=1e-6)


def test_growth_of_the_makespan_is_not_below_0():
    game = tiny()
    game.play([2, 2])  # to 9; job 0 next would go from 4 to 7
    assert game.observe()[8] == 0


def test_ends_count_from_the_earliest_one():
    game = tiny()
    game.play([0, 1, 2])  # next would go: 0 from 4 to 6, 1 from 7 to 8, 2 from 7 to 12
    np.testing.assert_allclose(game.observe()[[7, 16, 25]], np.array([0, 2, 6]) / 150, rtol=1e-6)


def test_observation_of_a_finished_schedule():
    game = tiny()
    game.play([0, 1, 2, 0, 1, 2])  # machine 0 until 8, machine 1 until 12
    expected = np.zeros(3 * 9 + 2 * 2 + 1 + 3 * 2 * 2)
    expected[[1, 10, 19]] = 1
    expected[27] = -4 / 150
    np.testing.assert_allclose(game.observe(), expected, rtol=1e-6)


def test_units_of_an_instance_are_its_own():
    durations, _ = load_instance("ft06")
    options = setup("ft06").options
    assert options["max_duration"] == 10
    assert options["span"] == pytest.approx(durations.sum() / 36 * 6)


def orders(game):
    """All orders of dispatch from here on."""
    if game.state.operations_left == 0:
        yield []
    for job in np.flatnonzero(game.mask()).tolist():
        before = game.state.copy()
        game.step(job)
        yield from ([job, *rest] for rest in orders(game))
        for name in game.state.dtype.names:
            game.state[name] = before[name]


def schedule_of(sequences):
    """Starts for an order of jobs on each machine, or None if they block each other."""
    sequences = [list(sequence) for sequence in sequences]
    starts, machine_end, job_end, done = {}, [0, 0], [0, 0, 0], [0, 0, 0]
    while any(sequences):
        ready = [
            (machine, sequence[0])
            for machine, sequence in enumerate(sequences)
            if sequence and MACHINES[sequence[0], done[sequence[0]]] == machine
        ]
        if not ready:
            return None
        machine, job = ready[0]
        start = max(machine_end[machine], job_end[job])
        starts[job, done[job]] = start
        machine_end[machine] = job_end[job] = start + int(DURATIONS[job, done[job]])
        done[job] += 1
        sequences[machine].pop(0)
    return max(job_end), tuple(sorted(starts.items()))


def test_orders_of_dispatch_reach_just_the_semi_active_schedules():
    found, count = set(), 0
    for order in list(orders(tiny())):
        game = tiny()
        rewards = [reward for reward, _ in game.play(order)]
        starts = {(job, index): start for job, index, _, start, _ in game.operations()}
        found.add((-int(sum(rewards)), tuple(sorted(starts.items()))))
        count += 1
    assert count == 90  # 6! / (2! 2! 2!)
    pairs = ((a, b) for a in permutations(range(3)) for b in permutations(range(3)))
    wanted = {schedule_of(pair) for pair in pairs} - {None}
    assert found == wanted
    # machine 1 has 11 to do and can begin at 0 with job 1
    assert min(makespan for makespan, _ in found) == 11


@pytest.mark.parametrize("name", OPTIMA)
def test_optimal_schedules_of_the_classics(name):
    makespan, order = OPTIMA[name]
    game = Game(instance=name)
    rewards, ends = zip(*game.play(order), strict=True)
    assert sum(rewards) == -makespan
    assert ends == (False,) * (len(order) - 1) + (True,)
    check_schedule(game)


def check_schedule(game):
    """That nothing overlaps, and nothing could start earlier without a change of order."""
    num_jobs, num_machines = game.state.durations.shape
    operations = game.operations()
    assert len(operations) == num_jobs * num_machines
    for job, index, machine, start, _ in operations:
        before = [end for j, i, _, _, end in operations if j == job and i < index]
        before += [end for _, _, m, begin, end in operations if m == machine and begin < start]
        assert start == max(before, default=0)
    for machine in range(num_machines):
        on_machine = sorted(op[3:] for op in operations if op[2] == machine)
        assert len(on_machine) == num_jobs
        assert all(end <= begin for (_, end), (begin, _) in pairwise(on_machine))


def test_schedules_of_random_play_are_feasible():
    rng = np.random.default_rng(0)
    for seed in range(5):
        game = Game(seed)
        jobs = rng.permutation(np.repeat(np.arange(10), 10))
        rewards, ends = zip(*game.play(jobs), strict=True)
        assert ends == (False,) * 99 + (True,)
        assert max(rewards) <= 0
        check_schedule(game)
        assert -sum(rewards) == max(end for *_, end in game.operations()) == game.state.makespan


def test_episodes_have_an_action_an_operation_and_the_next_one_another_instance():
    envs = make_vec("JobShop", 4)
    start = None
    for number, (*_, obs, reward, terminated, truncated, _) in enumerate(play(envs, 200), 1):
        if start is None:
            start = envs.states.durations.copy()
        assert (terminated == (number % 100 == 0)).all()
        assert not truncated.any()
        assert (reward <= 0).all()
        assert np.abs(obs).max() < 8
    assert (envs.states.durations != start).mean() > 0.9


def test_random_instances_are_uniform():
    envs = make_vec("JobShop", 500)
    envs.reset(seed=0)
    durations, machines = envs.states.durations, envs.states.machines
    counts = np.bincount(durations.ravel(), minlength=100)
    # 50,000 draws of 99 values: 505 each, standard deviation 22.4
    assert counts[0] == 0 and len(counts) == 100
    assert np.abs(counts[1:] - 505).max() < 5 * 22.4
    assert (np.sort(machines) == np.arange(10)).all()
    # 5,000 jobs: a machine has a place in 500 of them, standard deviation 21.2; two machines have
    # the first and the last place in 55.6 of them, standard deviation 7.4
    places = np.stack([(machines == machine).sum((0, 1)) for machine in range(10)])
    assert np.abs(places - 500).max() < 5 * 21.2
    pairs = np.bincount((10 * machines[..., 0] + machines[..., -1]).ravel(), minlength=100)
    assert np.abs(np.delete(pairs, range(0, 100, 11)) - 55.6).max() < 5 * 7.4
    assert len({row.tobytes() for row in durations}) == 500


def test_an_instance_is_the_same_in_all_episodes():
    envs = make_vec("JobShop", 2, instance="ft10")
    durations, machines = load_instance("ft10")
    for _ in play(envs, 101):
        pass
    assert (envs.states.durations == durations).all()
    assert (envs.states.machines == machines).all()
    assert envs.options.max_duration == 99


def test_reset_sets_every_field():
    game, other = tiny(), Game(num_jobs=3, num_machines=2, seed=5)
    for name in game.state.dtype.names:
        game.state[name] = 77
    reset(game.state, np.array([5, 0], np.uint64), game.options)
    for name in game.state.dtype.names:
        np.testing.assert_array_equal(game.state[name], other.state[name])


@pytest.mark.parametrize(
    "name, first_job, digest",
    [  # machine and duration in turn; SHA-256 of all numbers of OR-Library's copy, file jobshop1
        ("ft06", [2, 1, 0, 3, 1, 6, 3, 7, 5, 3, 4, 6], "b2d46e9f7d13169a"),
        (
            "ft10",
            [0, 29, 1, 78, 2, 9, 3, 36, 4, 49, 5, 11, 6, 62, 7, 56, 8, 44, 9, 21],
            "7aafede2e83d9ec9",
        ),
        ("la01", [1, 21, 0, 53, 4, 95, 3, 55, 2, 34], "f49af8a6ad0e331a"),
    ],
)
def test_load_instance(name, first_job, digest):
    durations, machines = load_instance(name)
    assert durations.dtype == machines.dtype == np.int32
    numbers = np.stack([machines, durations], -1).ravel().tolist()
    assert numbers[: len(first_job)] == first_job
    words = " ".join(map(str, [*durations.shape, *numbers]))
    assert sha256(words.encode()).hexdigest()[:16] == digest
    assert (np.sort(machines) == np.arange(machines.shape[1])).all()


def test_sizes():
    spec = setup(num_jobs=4, num_machines=3)
    assert spec.num_actions == 4
    assert spec.observation_space.shape == (4 * 9 + 3 * 2 + 1 + 4 * 3 * 2,)
    assert setup().num_actions == 10
    assert setup("la01").options["num_machines"] == 5


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"num_jobs": 1}, "num_jobs is 1; it takes an integer of 2 to 100"),
        ({"num_jobs": 101}, "num_jobs is 101; it takes an integer of 2 to 100"),
        ({"num_machines": 21}, "num_machines is 21; it takes an integer of 2 to 20"),
        ({"num_machines": 2.0}, "num_machines is 2.0; it takes an integer of 2 to 20"),
        ({"instance": "ft07"}, "instance is 'ft07'; it takes 'ft06', 'ft10' or 'la01'"),
        ({"instance": 6}, "instance is 6; it takes 'ft06', 'ft10' or 'la01'"),
        ({"instance": "ft06", "num_jobs": 6}, "num_jobs is 6; it goes with random instances"),
        ({"instance": "ft06", "num_machines": 6}, "num_machines is 6; it goes with random"),
    ],
)
def test_errors_of_setup(sizes, message):
    with pytest.raises(ValueError, match=message):
        setup(**sizes)


def test_dispatching_rules_by_hand():
    # shortest first: at 0 job 0 (3) goes before job 2 (4) on machine 0, and job 1 on machine 1; job
    # 2 from 3 to 7, job 0 on machine 1 from 4 to 6; at 7 job 1 (1) on machine 0 and job 2 on 1
    assert dispatch(DURATIONS, MACHINES, "spt") == (12, [0, 1, 2, 0, 1, 2])
    # most work first: job 2 (9) from 0 to 4, job 1 on machine 1; at 4 job 0 (5) goes before job 1
    # (1) on machine 0, until 7, and job 2 on machine 1 until 9; job 1 from 7 to 8, 0 from 9 to 11
    assert dispatch(DURATIONS, MACHINES, "mwkr") == (11, [2, 1, 0, 2, 1, 0])


@pytest.mark.parametrize("rule", ["spt", "mwkr"])
@pytest.mark.parametrize("name", OPTIMA)
def test_dispatching_rules_in_the_env(name, rule):
    durations, machines = load_instance(name)
    makespan, order = dispatch(durations, machines, rule)
    game = Game(instance=name)
    assert sum(reward for reward, _ in game.play(order)) == -makespan
    assert makespan > OPTIMA[name][0]
    check_schedule(game)
    # who waits for a machine that is free, does so for one that goes first by the rule
    operations = game.operations()
    for job, index, machine, start, _ in operations:
        waits_since = game.state.starts[job, index - 1] + durations[job, index - 1] if index else 0
        for other, i, m, begin, _ in operations:
            if m == machine and waits_since <= begin < start:
                mine, its = durations[job, index:], durations[other, i:]
                goes_first = its[0] <= mine[0] if rule == "spt" else its.sum() >= mine.sum()
                assert goes_first


def test_unknown_dispatching_rule():
    with pytest.raises(ValueError, match="rule is 'lpt'; it takes 'spt' or 'mwkr'"):
        dispatch(DURATIONS, MACHINES, "lpt")


def test_text():
    game = tiny()
    game.play([0, 1, 2, 0, 1])
    assert job_shop.text(game.state, game.options).splitlines() == [
        "makespan 8; a column is 1",
        "machine  0 |00022221",
        "machine  1 |111100..",
        "job 0: 2 of 2 done",
        "job 1: 2 of 2 done",
        "job 2: 1 of 2 done, next on machine 1 from 7 to 12",
    ]


def test_long_schedules_take_few_columns():
    game = Game(num_jobs=3, num_machines=2)
    game.state.durations[:] = 99
    clear_schedule(game.state, game.options)
    game.play([0, 0, 1, 1, 2, 2])  # at most 6 x 99 = 594 = 80 x 7.4
    head, row, *_ = job_shop.text(game.state, game.options).splitlines()
    assert head == f"makespan {game.state.makespan}; a column is {-(-game.state.makespan // 80)}"
    assert len(row) <= len("machine  0 |") + 80


def test_image():
    game = tiny()
    empty = job_shop.image(game.state, game.options)
    game.play([0, 1, 2, 0, 1, 2])
    picture = job_shop.image(game.state, game.options)
    assert picture.shape == empty.shape and picture.dtype == np.uint8
    for job in range(3):
        is_color = [(frame == job_color(job)).all(-1).sum() for frame in (empty, picture)]
        assert is_color[1] > 2 * is_color[0] > 0  # each has a chip at the bottom
    colors = np.array([job_color(job) for job in range(20)])
    distance = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(20)
    assert distance.min() > 60


def test_ticks_are_round():
    assert [tick_for(reach) for reach in (1, 11, 12, 23.5, 930, 1200)] == [1, 1, 2, 2, 100, 200]


def test_an_image_of_many_jobs():
    game = Game(num_jobs=25, num_machines=2)
    game.play(list(range(25)) * 2)
    assert job_shop.image(game.state, game.options).shape[1] == 24 * 32
    assert "job 24 (o): 2 of 2 done" in job_shop.text(game.state, game.options)
