"""Dispatching rules for job-shop scheduling: yardsticks for a learnt policy, in ordinary Python.

Whenever a machine is free and jobs wait for it, one of them starts there, chosen by a rule.

Reference: Panwalkar and Iskander 1977, doi:10.1287/opre.25.1.45, a survey of such rules.
"""

import numpy as np

from rlmask_envs.settings import check_choice

# which job goes first, from the durations of each job's operations that are left; of several jobs
# with the least value, the first
DISPATCHING_RULES = {
    "spt": lambda left: left[0],  # shortest processing time
    "mwkr": lambda left: -left.sum(),  # most work remaining
}


def dispatch(durations: np.ndarray, machines: np.ndarray, rule: str) -> tuple[int, list[int]]:
    """Return the makespan of the schedule that a rule makes, and the jobs in order of dispatch.

    That order, as actions of the env, leads to the same schedule.

    Args:
        durations: [jobs, machines], of the operations of each job in their order.
        machines: [jobs, machines], where they take place.
        rule: `spt` or `mwkr`.

    Raises:
        ValueError: if there is no such rule.
    """
    check_choice("rule", rule, list(DISPATCHING_RULES))
    priority = DISPATCHING_RULES[rule]
    num_jobs, num_machines = durations.shape
    scheduled, job_free = [0] * num_jobs, [0] * num_jobs
    machine_free = [0] * num_machines
    order = []
    for _ in range(durations.size):
        starts = {
            job: max(job_free[job], machine_free[machines[job, index]])
            for job, index in enumerate(scheduled)
            if index < num_machines
        }
        now = min(starts.values())
        waiting = [job for job, start in starts.items() if start == now]
        job = min(waiting, key=lambda job: priority(durations[job, scheduled[job] :]))
        index = scheduled[job]
        job_free[job] = machine_free[machines[job, index]] = now + int(durations[job, index])
        scheduled[job] += 1
        order.append(job)
    return max(job_free), order
