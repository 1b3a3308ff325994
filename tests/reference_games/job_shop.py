"""The valid actions of job-shop scheduling, read off the start times without a compiled rule."""


def valid(state, options):
    """Return for each job whether any of its operations has no start time."""
    return [any(int(start) < 0 for start in starts) for starts in state.starts]
