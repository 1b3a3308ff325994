"""Job-shop scheduling: finish all jobs early, on machines that do one thing at a time.

## Description
There are n jobs and m machines. A job is a sequence of m operations, each on another machine and of
its own duration, to be done in order and without a break. Each step schedules the next operation of
one job, at the earliest time that its job and its machine allow: once the job's previous operation
and what was last scheduled on the machine have ended. Gaps before that stay as they are. Every
schedule in which no operation could start earlier without a change of order can be had so, an
optimal one among them: take the operations by the times at which they start there.

Random instances are as in Taillard 1993, doi:10.1016/0377-2217(93)90182-M: durations uniform on
1 .. 99, machines in random order. Shipped are three classics:

| instance | jobs x machines | least makespan | from |
|---|---|---|---|
| `ft06` | 6 x 6 | 55 | Fisher and Thompson 1963, in Muth and Thompson, Industrial Scheduling |
| `ft10` | 10 x 10 | 930 | the same |
| `la01` | 10 x 5 | 666 | Lawrence 1984, Resource Constrained Project Scheduling (Supplement) |

`rlmask_envs.dispatching` has two rules of thumb to compare with.

## Action Space
`Discrete(n)`: schedule the next operation of job 0 .. n - 1.

## Action mask
Valid are the jobs that have operations left.

## Observation Space
`Box(-inf, inf, (9 n + 2 m + 1 + 2 n m,), float32)`, in four parts. "Now" is the earliest time at
which a next operation could start. Times are divided by the mean duration times the larger of n
and m, durations by the largest one, sums of them also by their number. With this, most is within
[-1, 1].

- [n, 9], for each job: 1 if it has operations left (if not, the other entries but the next are 0);
  the share of its operations that are scheduled; the duration of the next one; the work left; since
  when or from when on the job and its next machine are free, from now; the next operation's
  earliest start, from now; its end, from the earliest end of all jobs; and how much it would add to
  the makespan.
- [m, 2], for each machine: since when or from when on it is free, from now; its work left.
- [1]: the makespan so far, from now.
- [n, m, 2], for each job and machine: the duration of the job's operation there, and when its turn
  is: 1 for the next operation, 1 / m less for each that comes before it. Both are 0 once the
  operation is scheduled.

## Rewards
Minus what the makespan, the end of the last operation, grows by; in units of time. The return is
minus the makespan.

## Starting State
Nothing is scheduled. A random instance is drawn anew for each episode.

## Episode End
Terminated: all n m operations are scheduled.

## Arguments
`instance` (None for random ones, or `ft06`, `ft10`, `la01`), None; for random ones `num_jobs`
(2 to 100) and `num_machines` (2 to 20), both 10.
"""

from importlib import resources

import numpy as np
from gymnasium import spaces
from numba import njit

from rlmask_envs import gantt
from rlmask_envs.rng import random_integer
from rlmask_envs.rules import Setup
from rlmask_envs.settings import check_choice, check_size

MAX_DURATION = 99  # of random instances
JOB_FEATURES, MACHINE_FEATURES, OPERATION_FEATURES = 9, 2, 2
COLUMNS = 80  # of text
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def setup(
    instance: str | None = None, num_jobs: int | None = None, num_machines: int | None = None
) -> Setup:
    """Return what depends on the instance, or on the size of random ones."""
    sizes = {"num_jobs": num_jobs, "num_machines": num_machines}
    for name, value in sizes.items():
        if instance is not None and value is not None:
            raise ValueError(f"{name} is {value!r}; it goes with random instances alone")
    if instance is None:
        jobs = check_size("num_jobs", 10 if num_jobs is None else num_jobs, 2, 100)
        count = check_size("num_machines", 10 if num_machines is None else num_machines, 2, 20)
        durations = machines = np.zeros((jobs, count), np.int32)
        max_duration, mean_duration = MAX_DURATION, (MAX_DURATION + 1) / 2
    else:
        durations, machines = load_instance(instance)
        jobs, count = durations.shape
        max_duration, mean_duration = durations.max(), durations.mean()
    options = {
        "is_random": instance is None,
        "num_jobs": jobs,
        "num_machines": count,
        "durations": durations,
        "machines": machines,
        "max_duration": float(max_duration),
        "span": float(mean_duration * max(jobs, count)),  # what times are divided by
    }
    fields = [
        ("durations", np.int32, (jobs, count)),  # of the operations of each job, in their order
        ("machines", np.int32, (jobs, count)),
        ("starts", np.int32, (jobs, count)),  # -1: not scheduled
        ("scheduled", np.int32, (jobs,)),  # operations of a job
        ("job_free", np.int32, (jobs,)),  # from when on
        ("machine_free", np.int32, (count,)),
        ("job_work", np.int32, (jobs,)),  # sum of the durations that are left
        ("machine_work", np.int32, (count,)),
        ("makespan", np.int32),
        ("operations_left", np.int32),
    ]
    length = JOB_FEATURES * jobs + MACHINE_FEATURES * count + 1 + OPERATION_FEATURES * jobs * count
    space = spaces.Box(-np.inf, np.inf, (length,), np.float32)
    return Setup(np.dtype(fields), options, space, jobs)


def load_instance(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return durations and machines of a shipped instance, [jobs, machines] int32 each.

    Raises:
        ValueError: if there is none of that name; lists those there are.
    """
    folder = resources.files("rlmask_envs").joinpath("instances")
    files = {file.name.removesuffix(".txt"): file for file in folder.iterdir()}
    check_choice("instance", name, sorted(files))
    numbers = [int(word) for word in files[name].read_text().split()]
    pairs = np.array(numbers[2:], np.int32).reshape(*numbers[:2], 2)  # machine, duration
    return pairs[..., 1].copy(), pairs[..., 0].copy()


@njit
def reset(state, rng, options):
    """Take the instance, or draw one."""
    if options.is_random:
        draw_instance(state, rng, options)
    else:
        for job in range(options.num_jobs):
            for index in range(options.num_machines):
                state.durations[job, index] = options.durations[job, index]
                state.machines[job, index] = options.machines[job, index]
    clear_schedule(state, options)


@njit
def draw_instance(state, rng, options):
    """Draw durations and the order of machines."""
    for job in range(options.num_jobs):
        for index in range(options.num_machines):
            state.durations[job, index] = 1 + random_integer(rng, MAX_DURATION)
            # the next machine goes to a random place, and who was there to the end
            other = random_integer(rng, index + 1)
            state.machines[job, index] = state.machines[job, other]
            state.machines[job, other] = index


@njit
def clear_schedule(state, options):
    """Set all fields but durations and machines for an empty schedule."""
    for machine in range(options.num_machines):
        state.machine_free[machine] = 0
        state.machine_work[machine] = 0
    for job in range(options.num_jobs):
        state.scheduled[job] = 0
        state.job_free[job] = 0
        state.job_work[job] = 0
        for index in range(options.num_machines):
            duration = state.durations[job, index]
            state.starts[job, index] = -1
            state.job_work[job] += duration
            state.machine_work[state.machines[job, index]] += duration
    state.makespan = 0
    state.operations_left = options.num_jobs * options.num_machines


@njit
def step(state, action, rng, options):
    """Schedule the next operation of a job."""
    index = state.scheduled[action]
    machine, duration = state.machines[action, index], state.durations[action, index]
    start = max(state.job_free[action], state.machine_free[machine])
    end = start + duration
    state.starts[action, index] = start
    state.scheduled[action] += 1
    state.job_free[action] = end
    state.machine_free[machine] = end
    state.job_work[action] -= duration
    state.machine_work[machine] -= duration
    state.operations_left -= 1
    growth = max(0, end - state.makespan)
    state.makespan += growth
    return -float(growth), state.operations_left == 0


@njit
def observe(state, obs, options):
    """Write the features."""
    num_jobs, num_machines = options.num_jobs, options.num_machines
    time = 1.0 / options.span
    duration = 1.0 / options.max_duration
    now, first_end = state.makespan, state.makespan + int(options.max_duration)
    for job in range(num_jobs):
        index = state.scheduled[job]
        if index < num_machines:
            machine = state.machines[job, index]
            start = max(state.job_free[job], state.machine_free[machine])
            now = min(now, start)
            first_end = min(first_end, start + state.durations[job, index])

    at = 0
    for job in range(num_jobs):
        index = state.scheduled[job]
        obs[at + 1] = index / num_machines
        if index < num_machines:
            machine, length = state.machines[job, index], state.durations[job, index]
            job_free, machine_free = state.job_free[job], state.machine_free[machine]
            start = max(job_free, machine_free)
            obs[at] = 1.0
            obs[at + 2] = length * duration
            obs[at + 3] = state.job_work[job] * duration / num_machines
            obs[at + 4] = (job_free - now) * time
            obs[at + 5] = (machine_free - now) * time
            obs[at + 6] = (start - now) * time
            obs[at + 7] = (start + length - first_end) * time
            obs[at + 8] = max(0, start + length - state.makespan) * time
        at += JOB_FEATURES

    for machine in range(num_machines):
        obs[at] = (state.machine_free[machine] - now) * time
        obs[at + 1] = state.machine_work[machine] * duration / num_jobs
        at += MACHINE_FEATURES

    obs[at] = (state.makespan - now) * time
    at += 1

    for job in range(num_jobs):
        first = state.scheduled[job]
        for index in range(first, num_machines):
            place = at + OPERATION_FEATURES * state.machines[job, index]
            obs[place] = state.durations[job, index] * duration
            obs[place + 1] = 1.0 - (index - first) / num_machines
        at += OPERATION_FEATURES * num_machines


@njit
def valid_actions(state, mask, options):
    """Allow the jobs that have operations left."""
    for job in range(options.num_jobs):
        mask[job] = state.scheduled[job] < options.num_machines


def image(state, options):
    """Return a picture: what each machine does when, and how far each job is."""
    longest_job = int(state.durations.sum(1).max())
    busiest = int(np.bincount(state.machines.ravel(), state.durations.ravel()).max())
    # good schedules take little more than the longest job or the busiest machine, and so the axis
    # stays as it is over most of an episode
    reach = max(1.5 * max(longest_job, busiest), int(state.makespan))
    shares = [int(scheduled) / options.num_machines for scheduled in state.scheduled]
    bars = schedule(state, options)
    return gantt.chart(bars, options.num_machines, shares, int(state.makespan), reach)


def schedule(state, options):
    """Return what is scheduled as (job, machine, start, end)."""
    return [
        (
            job,
            int(state.machines[job, index]),
            int(state.starts[job, index]),
            int(state.starts[job, index] + state.durations[job, index]),
        )
        for job in range(options.num_jobs)
        for index in range(state.scheduled[job])
    ]


def text(state, options):
    """Return lines of text: what each machine does when, and what comes next in each job."""
    makespan = int(state.makespan)
    unit = max(1, -(-makespan // COLUMNS))
    lines = [f"makespan {makespan}; a column is {unit}"]
    rows = [["."] * -(-makespan // unit) for _ in range(options.num_machines)]
    for job, machine, start, end in schedule(state, options):
        for column in range(start // unit, -(-end // unit)):
            rows[machine][column] = LETTERS[job % len(LETTERS)]
    lines += [f"machine {machine:2} |{''.join(row)}" for machine, row in enumerate(rows)]
    for job in range(options.num_jobs):
        index = int(state.scheduled[job])
        letter = f" ({LETTERS[job % len(LETTERS)]})" if job >= 10 else ""
        line = f"job {job}{letter}: {index} of {options.num_machines} done"
        if index < options.num_machines:
            machine, duration = state.machines[job, index], state.durations[job, index]
            start = max(state.job_free[job], state.machine_free[machine])
            line += f", next on machine {machine} from {start} to {start + duration}"
        lines.append(line)
    return "\n".join(lines)
