"""The campaign, run by a person: `python -m tests.chaos [--seed N] [--minutes M] [--tasks N] [--faults N] [--write]`.

Ends with 1 if anything that must be zero is not, or a target is missed. Ctrl-C ends every process it started.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import shutil
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.campaign import Campaign, Plan, interrupted
from tests.chaos.faults import KINDS, PAID
from tests.chaos.fleet import Sizes
from tests.chaos.report import details, failures, table

_PAID = ", 2 ledger workers, tenants with accounts\nother work ran on the cores meanwhile: only correctness counts here"

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"


def main() -> int:
    """Run it and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float, default=9.0, help="how long tasks are published")
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--negotiators", type=int, default=3)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), help="draw only these kinds of faults")
    parser.add_argument("--vllm", action="store_true", help="with a vLLM worker, killed too; reported apart")
    parser.add_argument("--paid", action="store_true", help="tenants have accounts; correctness alone counts")
    parser.add_argument("--write", action="store_true", help="write it to bench/results/chaos.txt or chaos-paid.txt")
    parser.add_argument("--keep", action="store_true", help="keep the folder with every log, also when all is well")
    args = parser.parse_args()
    sizes = Sizes(
        negotiators=args.negotiators, workers=args.workers, clients=args.clients, ledgers=2 if args.paid else 0
    )
    plan = Plan(seed=args.seed, minutes=args.minutes, tasks=args.tasks, faults=args.faults, sizes=sizes, vllm=args.vllm)
    if args.paid:
        plan = replace(plan, kinds=(*plan.kinds, *PAID))
    if args.kinds:
        plan = replace(plan, kinds=tuple(args.kinds))
    head = (
        f"tests/chaos, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}: "
        f"seed {plan.seed}, {plan.minutes:g} min, {sizes.negotiators} negotiators, {sizes.workers} workers, "
        f"{sizes.clients} clients{', a vLLM worker' if plan.vllm else ''}" + _PAID * plan.paid
    )
    print(head, flush=True)
    folder = Path(tempfile.mkdtemp(prefix="modelnet-chaos-"))
    said = (folder / "campaign.log").open("w", buffering=1)
    tally = asyncio.run(interrupted(Campaign(plan, folder, lambda line: print(line, file=said))))
    if tally is None:
        print(f"interrupted; what there is stands in {folder}")
        return 1
    shown, wrong = table(tally, plan), failures(tally, plan)
    verdict = "passed" if not wrong else "\n".join(["FAILED", *wrong])
    print(f"\n{shown}\n\n{verdict} in {tally.took_s:.0f} s", flush=True)
    if args.write:
        (RESULTS / ("chaos-paid.txt" if plan.paid else "chaos.txt")).write_text(f"{head}\n\n{shown}\n\n{verdict}\n")
    if wrong or args.keep:
        print(f"\n{details(tally)}\nlogs, records and streams: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
