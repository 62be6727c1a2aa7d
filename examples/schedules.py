"""Every schedule over 100 steps
=============================

The twelve of thalweg.schedules, drawn as small multiples.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from thalweg.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseSqrt,
    InverseTime,
    MultiStep,
    OneCycle,
    Polynomial,
    Sequence,
    Step,
    Warmup,
)

STEPS = 100
# By their words in the legend: lr is 1, and a second one keeps what it does not name.
PANELS = [
    {"": Constant(1)},
    {"gamma=0.97": Exponential(1, 0.97), "gamma=0.9": Exponential(1, 0.9)},
    {"": InverseSqrt(1)},
    {"decay=0.05": InverseTime(1, 0.05), "decay=0.5": InverseTime(1, 0.5)},
    {"every=25, gamma=0.5": Step(1, 25, 0.5), "gamma=0.1": Step(1, 25)},
    {
        "[50, 80], gamma=0.3": MultiStep(1, [50, 80], 0.3),
        "[10, 20, 30], gamma=0.6": MultiStep(1, [10, 20, 30], 0.6),
    },
    {"steps=80": Polynomial(1, 80), "power=3, end=0.1": Polynomial(1, 80, 3, 0.1)},
    {"steps=80": Cosine(1, 80), "end=0.2": Cosine(1, 80, 0.2)},
    {"period=25": CosineRestarts(1, 25), "period=14, mult=2": CosineRestarts(1, 14, 2)},
    {"steps=100": OneCycle(1, 100), "steps=80, pct_start=0.5": OneCycle(1, 80, 0.5)},
    {
        "Cosine, 20, start=0.2": Warmup(Cosine(1, 100), 20, start=0.2),
        "InverseSqrt(4.5), 20": Warmup(InverseSqrt(4.5), 20),
    },
    {
        "Warmup, Exponential, Cosine": (
            Sequence([Warmup(Constant(1), 20), Exponential(1, 0.9), Cosine(0.6, 40)], [40, 60])
        )
    },
]
# Two of Okabe and Ito's colours, told apart by colour-blind readers too; dashes say it once more.
STYLES = ({"color": "#0072b2"}, {"color": "#d55e00", "linestyle": (0, (4, 2))})


def draw(output):
    figure, grid = plt.subplots(
        3, 4, figsize=(11, 6.4), sharex=True, sharey=True, layout="constrained"
    )
    for axes, panel in zip(grid.flat, PANELS, strict=True):
        for (label, schedule), style in zip(panel.items(), STYLES, strict=False):
            values = [schedule(t) for t in range(STEPS + 1)]
            axes.plot(values, drawstyle="steps-post", lw=1.6, label=label, **style)
        axes.set_title(type(schedule).__name__, loc="left", fontsize=11)
        if any(panel):
            axes.legend(frameon=False, fontsize=9, loc="upper right", handlelength=1.8)
        axes.grid(color="#e4e4e4", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set(xlim=(0, STEPS), ylim=(-0.03, 1.5), yticks=(0, 0.5, 1))
    for axes in grid[-1]:
        axes.set_xlabel("step t")
    for axes in grid[:, 0]:
        axes.set_ylabel("lr")
    figure.savefig(output, dpi=90)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(), help="the folder for the picture")
    folder = parser.parse_args(arguments).output
    folder.mkdir(parents=True, exist_ok=True)
    for panel in PANELS:
        for schedule in panel.values():
            values = " ".join(f"{schedule(t):.4f}" for t in range(0, STEPS + 1, 20))
            print(f"{values}   {schedule}")
    draw(folder / "schedules.png")
    print(f"written: {folder / 'schedules.png'}")


if __name__ == "__main__":
    main()
