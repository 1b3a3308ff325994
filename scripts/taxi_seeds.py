"""Train configs/ppo/taxi.yaml on several seeds; print return, training time and invalid actions.

    python scripts/taxi_seeds.py --seeds 10

The return is the mean over 100 greedy episodes that training never saw; the time is that of the
whole training, from the first env step to the last update.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "ppo" / "taxi.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train Taxi on several seeds.")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threshold", type=float, default=7.5, help="mean return to reach")
    arguments = parser.parse_args()
    reached = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            run = Path(folder) / str(seed)
            command = ["-m", "rlmask.cli", "train", CONFIG, "--seed", seed, "--run-dir", run]
            subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
            result = json.loads((run / "result.json").read_text())
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            reached += result["mean_return"] >= arguments.threshold
            print(
                f"seed {seed}: return {result['mean_return']:.2f} ± "
                f"{result['standard_error']:.2f}, {last['seconds']:.0f} s, "
                f"{result['invalid_actions']:.2%} invalid actions",
                flush=True,
            )
    print(f"{reached} of {arguments.seeds} seeds reach {arguments.threshold}")


if __name__ == "__main__":
    main()
