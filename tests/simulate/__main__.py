"""`python -m tests.simulate --seeds 1000`: histories through random faults; prints the first seed that fails."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

from tests.simulate.history import History


def main() -> int:
    """Play seeds; 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many histories (default 1000)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seed", type=int, help="replay this one alone")
    given = parser.parse_args()
    seeds = [given.seed] if given.seed is not None else range(given.start, given.start + given.seeds)
    started, ends, faults, attempts = time.monotonic(), Counter[str](), Counter[str](), Counter[str]()
    for done, seed in enumerate(seeds, 1):
        history = History(seed)
        try:
            history.play()
            history.check()
        except Exception:
            traceback.print_exc()
            print(f"\nfailed: seed {seed} (replay with --seed {seed})")
            return 1
        except KeyboardInterrupt:
            print(f"\nstopped after {done - 1} histories", file=sys.stderr)
            return 130
        ends.update(final.status for final in history.ends())
        faults.update(negotiators=history.takeovers, workers_killed=history.deaths, workers_frozen=history.freezes)
        faults.update(workers_cut_off=history.cuts, workers_left=history.drains)
        if (books := history.world.books) is not None:
            faults.update(ledger_away=books.outages, holds_refused=books.refusals)
        attempts.update(history.kinds())
    took_s = time.monotonic() - started
    print(f"{len(seeds)} histories in {took_s:.1f} s, {sum(ends.values())} tasks, each with one Final")
    for title, counted in (("ends", ends), ("faults", faults), ("attempts", attempts)):
        print(f"{title:<10}" + "  ".join(f"{name} {count}" for name, count in sorted(counted.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
