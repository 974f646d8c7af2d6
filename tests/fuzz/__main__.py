"""Bad inputs through the public doors, from one seed: each must be refused by a clear error, with nothing half written.

    python -m tests.fuzz --count 10000 --seed 0

prints the number of cases per door and every violation. A case depends on (seed, number) alone; `--only 17` repeats
one. What can still be read, because the damage spared it, must come to a sound end.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import torch

from tests.fuzz.cases import DOORS, run_case
from tests.fuzz.world import World


def main() -> int:
    """Run the cases; returns 1 if there was a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the number of the first case")
    parser.add_argument("--only", type=int, help="run one case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    numbers = range(options.start, options.start + options.count) if options.only is None else [options.only]
    began, done, wrong = time.monotonic(), Counter[str](), 0
    with tempfile.TemporaryDirectory() as place:
        world = World(Path(place))
        for number in numbers:
            door, text = run_case(number, options.seed, world)
            done[door] += 1
            if text:
                wrong += 1
                print(f"case {number} ({door}): {text}", flush=True)
        world.close()
    for door in DOORS:
        print(f"{door:12} {done[door]:6}")
    print(f"{done.total()} cases of seed {options.seed} in {time.monotonic() - began:.0f} s: {wrong} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
