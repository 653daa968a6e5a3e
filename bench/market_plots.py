"""Plots of what bench.market and bench.market_scale have left under bench/results. Needs the `bench` extra.

python -m bench.market_plots
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

__all__ = ["main", "plot_routers", "plot_scale"]

RESULTS = Path(__file__).with_name("results")
SHOWN: tuple[str, ...] = (
    "oracle",
    "market",
    "market, no scarcity",
    "market, no backlog",
    "prefix-aware (Dynamo)",
    "prefix-aware (llm-d)",
    "least connections",
    "power of two",
)
SHOWN += ("round robin", "random")
PANELS = (
    ("welfare", "welfare, share of the oracle's"),
    ("goodput", "answered in time"),
    ("p99_s", "p99 of the time to completion, s"),
    ("cost", "cost per good answer, micro-credits"),
)


def rows(name: str) -> list[dict[str, Any]]:
    """The raw figures of a bench."""
    return [json.loads(line) for line in RESULTS.joinpath(name).read_text().splitlines()]


def plot_routers(scores: list[dict[str, Any]], where: Path) -> None:
    """Each router's line over the load, four panels. Those that always send to one worker are far below: left out."""
    by: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for one in scores:
        by[one["router"], one["load"]].append(one)
    loads = sorted({load for _, load in by})
    best = {(one["load"], one["seed"]): one["welfare"] for one in scores if one["router"] == "oracle"}
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    for axis, (field, title) in zip(axes.flat, PANELS, strict=True):
        for name in SHOWN:
            means, errors = [], []
            for load in loads:
                each = by[name, load]
                values = [one[field] / (best[load, one["seed"]] if field == "welfare" else 1) for one in each]
                means.append(statistics.fmean(values))
                errors.append(2 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0)
            style = {"linewidth": 2.5} if name == "market" else {"linestyle": "--"} if name == "oracle" else {}
            axis.errorbar([load * 100 for load in loads], means, yerr=errors, label=name, capsize=2, **style)
        axis.set_title(title)
        axis.set_xlabel("load, %")
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.savefig(where, dpi=110)
    plt.close(figure)


def plot_scale(sizes: list[dict[str, Any]], where: Path) -> None:
    """Time to decide and memory over the number of workers."""
    workers = [one["workers"] for one in sizes]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    labels = {"choose_us": "whom to ask", "decide_us": "decide", "decide_p99_us": "decide, p99", "learn_us": "learn"}
    for field, label in labels.items():
        left.loglog(workers, [one[field] for one in sizes], marker="o", label=label)
    left.set_title("market code per task, microseconds")
    left.legend(fontsize=8)
    right.loglog(workers, [one["memory_mb"] for one in sizes], marker="o")
    right.set_title("memory of one negotiator's market, MB")
    for axis in (left, right):
        axis.set_xlabel("workers")
        axis.grid(alpha=0.3)
    figure.savefig(where, dpi=110)
    plt.close(figure)


def main() -> None:
    """Draw both."""
    mpl.use("Agg")
    plot_routers(rows("market.jsonl"), RESULTS / "market.png")
    plot_scale(rows("market_scale.jsonl"), RESULTS / "market_scale.png")


if __name__ == "__main__":
    main()
