"""Compile the rules of every native game with Numba's CUDA target, as functions of a device.

    pip install 'numba-cuda[cu12]'
    python scripts/compile_for_gpu.py              # some minutes; needs no GPU

Nothing is run: what is checked is that the four rules of each game, and all that they call, use
only what that target takes, for a GPU of compute capability 8.0. Exit code 1 if one does not
compile.
"""

import importlib
import sys
from types import SimpleNamespace

import gymnasium as gym
from numba import cuda, typeof, types
from numba.cuda import compiler, dispatcher

import rlmask_envs  # noqa: F401  registers the games
from rlmask_envs.batch import make_batch, make_options

CAPABILITY = (8, 0)
GAMES = {
    spec.name: spec.kwargs["game"]
    for spec in gym.registry.values()
    if spec.entry_point == "rlmask_envs.envs:GameEnv"
}


def main() -> None:
    for module in (compiler, dispatcher):  # they ask the GPU that is there for what it can do
        module.get_current_device = lambda: SimpleNamespace(compute_capability=CAPABILITY)
    failures = 0
    for name, path in GAMES.items():
        game = importlib.import_module(path)
        setup = game.setup()
        batch = make_batch(setup, 1)
        state, options = typeof(batch.states).dtype, typeof(make_options(setup)).dtype
        rng, obs, mask = typeof(batch.rngs[0]), typeof(batch.obs[0]), typeof(batch.masks[0])
        signatures = {
            "reset": (state, rng, options),
            "step": (state, types.int64, rng, options),
            "observe": (state, obs, options),
            "valid_actions": (state, mask, options),
        }
        for rule, signature in signatures.items():
            function = getattr(game, rule).py_func
            try:
                ptx, _ = cuda.compile_ptx(function, signature, device=True, cc=CAPABILITY)
                print(f"{name:12} {rule:14} {len(ptx):8,} bytes of PTX", flush=True)
            except Exception as error:
                failures += 1
                print(f"{name:12} {rule:14} FAILED: {str(error).strip().splitlines()[-1]}")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
