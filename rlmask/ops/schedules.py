"""Schedules: a number as a function of the step."""


def linear_schedule(start: float, end: float, num_steps: int, step: int) -> float:
    """Go from `start` at step 0 to `end` at step `num_steps` in a straight line, then stay.

    Raises:
        ValueError: if `num_steps` < 1 or `step` < 0.
    """
    if num_steps < 1 or step < 0:
        raise ValueError(f"need num_steps >= 1 and step >= 0, not {num_steps} and {step}")
    fraction = min(step / num_steps, 1.0)
    return start + fraction * (end - start)
