"""The valid actions of capacitated vehicle routing, from the visits and the demands alone."""


def valid(state, options):
    """Return for each node whether the vehicle may go there."""
    visits = state.visits[: state.num_visits].tolist()
    last_depot = max(index for index, node in enumerate(visits) if node == 0)
    load = options.capacity - sum(int(state.demand[node]) for node in visits[last_depot:])
    customers = range(1, options.num_nodes)
    fits = [node not in visits and int(state.demand[node]) <= load for node in customers]
    return [last_depot < len(visits) - 1, *fits]
