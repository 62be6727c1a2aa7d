"""Compares thalweg with its peers and with the memory's own limit, side by side in one process.

    python bench/peers.py                 the targets: a table of ratios
    python bench/peers.py --sweep         time per step against elements: the picture
    python bench/peers.py --only NAME     the targets whose name holds NAME
    python bench/peers.py --rows          time per step of sparse gradients, by table and ids
    THALWEG_ISA=avx2 python bench/peers.py    the same on another level

In the columns "cold" 64 MiB are touched between steps, outside the clock; all others are hot. Only
ratios from one run count: the machine's speed is not ours.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import sparse
import thalweg as tw
from contenders import MAKERS, Work, make
from extras import EXTRA_TARGETS
from thalweg import _core
from timing import interleave

K, M = 1 << 10, 1 << 20
DEMO = (13_056, 16_384, 13_056, 128, 102)  # the arrays of `python -m thalweg demo`


@dataclass(frozen=True)
class Target:
    """``ours`` is to be at least ``ratio`` times as fast as ``against``."""

    name: str
    work: Work
    ours: str
    against: dict[str, float]
    cold: dict[str, float] = field(default_factory=dict)  # the same with cold caches


def targets() -> Iterator[Target]:
    tiny = Work("momentum", (5, 1))
    fused, in_place, lines = "torch fused", "numpy in place", "numpy naive"
    for rule in ("momentum", "adagrad"):
        for size in (6, 64):
            yield Target(
                f"{rule}, a function, {size}", Work(rule, (size,)), "function", {in_place: 5}
            )
    few, more, step = (16,) * 5, (16,) * 150, "thalweg"
    for rule, sizes, against in (
        ("momentum", few, {in_place: 10}),
        ("adagrad", few, {lines: 15, step: 1 / 2.5}),
        ("momentum", more, {in_place: 12}),
        ("adagrad", more, {lines: 12, step: 1 / 2.5}),
        ("adagrad", DEMO, {step: 1 / 1.1}),
    ):
        name = f"{rule}, a function, " + ("the demo" if sizes is DEMO else f"{len(sizes)} x 16")
        yield Target(name, Work(rule, sizes), "function", against)
    yield Target("Linear(5,1), step(list)", tiny, "thalweg", {fused: 50, in_place: 8})
    yield Target("Linear(5,1), step()", tiny, "thalweg bound", {fused: 80})
    many = Work("momentum", (16,) * 150)
    yield Target("150 x 16, step(list)", many, "thalweg", {fused: 25})
    yield Target("150 x 16, step(dict)", many, "thalweg dict", {fused: 25})
    for rule, ratio in (("momentum", 3), ("adagrad", 2.5)):
        yield Target(f"{rule} 32,768", Work(rule, (32 * K,)), "thalweg", {fused: ratio})
    for rule in ("momentum", "adagrad"):
        against = {"limit": 0.95, fused: 1.1, in_place: 2}
        yield Target(f"{rule} 2^20", Work(rule, (M,)), "thalweg", against, {"limit": 0.9})
        yield Target(
            f"{rule} 2^20, 2 threads", Work(rule, (M,), threads=2), "thalweg", {"limit": 0.85}
        )
        yield Target(
            f"{rule} 2^20 float64", Work(rule, (M,), np.float64), "thalweg", {"limit": 0.95}
        )
    for rule in ("momentum", "adagrad"):
        for threads in (1, 2):
            work = Work(rule, (64 * M,), threads=threads)
            name = f"{rule} 64 million, {threads} thread{'s'[: threads - 1]}"
            yield Target(name, work, "thalweg", {"limit": 0.95, fused: 1.0})
            work = Work(rule, (64 * M,), np.float64, threads)
            yield Target(f"{name}, float64", work, "thalweg", {"limit": 0.95})


def rounds_for(work: Work) -> int:
    elements = sum(work.sizes)
    return 31 if elements <= 4 * M else 7


def run_targets(only: str) -> tuple[list[dict[str, Any]], set[str]]:
    rows, skipped = [], set()
    for target in targets():
        if only not in target.name:
            continue
        names = [target.ours, *target.against]
        times = interleave(target.name, make(names, target.work, skipped), rounds_for(target.work))
        cold: dict[str, float] = {}
        if sum(target.work.sizes) <= 4 * M:  # others do not fit into the caches
            contenders = make(names, replace(target.work, cold=True), skipped)
            cold = interleave(f"{target.name}, cold", contenders, 7)
        for against, ratio in target.against.items():
            if against not in times:
                continue
            rows.append(row(target.name, against, times[target.ours], times[against], ratio))
            if cold:
                rows[-1] |= cold_row(cold[target.ours], cold[against], target.cold.get(against))
            print(line(rows[-1]), flush=True)
    for name, measure in EXTRA_TARGETS.items():
        if only in name:
            for part, against, ours, theirs, ratio in measure():
                rows.append(row(part, against, ours, theirs, ratio))
                print(line(rows[-1]), flush=True)
    return rows, skipped


def row(name: str, against: str, ours: float, theirs: float, ratio: float) -> dict[str, Any]:
    return {
        "work": name,
        "against": against,
        "us": ours * 1e6,
        "their us": theirs * 1e6,
        "ratio": theirs / ours,
        "target": ratio,
    }


def cold_row(ours: float, theirs: float, ratio: float | None) -> dict[str, Any]:
    return {"cold us": ours * 1e6, "cold ratio": theirs / ours, "cold target": ratio}


HEADER = (
    f"{'work':<38} {'us':>10}  {'against':<30} {'us':>10} {'ratio':>8} {'target':>7} "
    f"{'cold us':>10} {'ratio':>8} {'target':>7}"
)


def line(r: dict[str, Any]) -> str:
    text = (
        f"{r['work']:<38} {r['us']:>10.3f}  {r['against']:<30} {r['their us']:>10.3f} "
        f"{r['ratio']:>7.2f}x {r['target']:>6.2f}x"
    )
    missed = r["ratio"] < r["target"]
    if "cold us" in r:
        wanted = r["cold target"]
        text += f" {r['cold us']:>10.3f} {r['cold ratio']:>7.2f}x "
        text += f"{wanted:>6.2f}x" if wanted else f"{'-':>7}"
        missed = missed or bool(wanted and r["cold ratio"] < wanted)
    return text + ("  missed" if missed else "")


SWEEP_SIZES = (6, 64, 1 * K, 32 * K, 256 * K, 1 * M, 4 * M, 16 * M, 64 * M)


def run_sweep() -> tuple[dict[str, dict[int, float]], set[str]]:
    """Seconds per momentum step of one array, by contender and size, one thread."""
    skipped: set[str] = set()
    lines: dict[str, dict[int, float]] = {}
    names = [name for name in MAKERS if name not in ("thalweg dict", "thalweg bound")]
    print(f"{'elements':>10} " + " ".join(f"{name:>15}" for name in names))
    for size in SWEEP_SIZES:
        work = Work("momentum", (size,))
        contenders = make(names, work, skipped)
        times = interleave(f"{size:,}", contenders, 5 if size > 4 * M else 15)
        for name, seconds in times.items():
            lines.setdefault(name, {})[size] = seconds
        cells = (f"{times[n] * 1e6:>15.2f}" if n in times else f"{'-':>15}" for n in names)
        print(f"{size:>10} " + " ".join(cells), flush=True)
    return lines, skipped


def draw(lines: dict[str, dict[int, float]], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    styles = {"thalweg": {"color": "black", "linewidth": 2.5, "zorder": 5}}
    styles["limit"] = {"color": "0.6", "linestyle": "--", "zorder": 4, "linewidth": 2}
    for name, times in lines.items():
        label = "limit: same loads and stores, no arithmetic" if name == "limit" else name
        sizes = sorted(times)
        axes.loglog(sizes, [times[n] * 1e6 for n in sizes], label=label, **styles.get(name, {}))
    axes.set_xlabel("elements (float32, one array, one thread)")
    axes.set_ylabel("microseconds per momentum step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title(f"One step of SGD with momentum, {cpu()}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"picture: {path}")


def cpu() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
        return next(x for x in info.splitlines() if x.startswith("model name")).split(": ")[1]
    except (OSError, StopIteration, IndexError):
        return platform.processor()


def versions() -> dict[str, str]:
    found = {"thalweg": tw.__version__, "level": _core.isa}
    found |= {"python": platform.python_version(), "cpu": cpu()}
    for name in ("numpy", "numba", "torch", "optax", "jax"):
        try:
            found[name] = __import__(name).__version__
        except ImportError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="time against elements")
    parser.add_argument("--only", default="", help="the targets whose name holds this")
    parser.add_argument("--rows", action="store_true", help="sparse gradients, every table")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--png", type=Path, help="draw the sweep here")
    args = parser.parse_args()
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    if args.rows:
        sparse.run_table()
        return
    result: dict[str, Any] = {"versions": versions()}
    if args.sweep or args.png:
        result["sweep"], skipped = run_sweep()
        if args.png:
            draw(result["sweep"], args.png)
    else:
        print(HEADER)
        result["targets"], skipped = run_targets(args.only)
    for name in sorted(skipped):
        print(f"skipped: {name}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
