"""Down a narrow valley
====================

f = 0.1 x1^2 + 2 x2^2: gradient descent, momentum and Adagrad. The figures of "Dive into Deep
Learning" 12.6 and 12.7, drawn anew. Start (-5, -2), 20 steps.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import thalweg as tw

START, STEPS = (-5.0, -2.0), 20
RUNS = {
    "gradient descent, lr 0.4": lambda x: tw.SGD(x, lr=0.4),
    "gradient descent, lr 0.6": lambda x: tw.SGD(x, lr=0.6),
    "momentum 0.5, lr 0.6": lambda x: tw.SGD(x, lr=0.6, momentum=0.5),
    "Adagrad, lr 0.4": lambda x: tw.Adagrad(x, lr=0.4, eps=1e-6),
}
BETAS = (0.95, 0.9, 0.6, 0.0)

# Okabe and Ito's colours, told apart by colour-blind readers too; markers say it once more.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
MARKERS = ("o", "s", "^", "D")


def height(x1, x2):
    return 0.1 * x1**2 + 2 * x2**2


def gradient(x):
    return np.array([0.2, 4.0]) * x


def descend(make_optimizer):
    """The 21 points of a run, the start among them."""
    x = np.array(START)
    opt = make_optimizer(x)
    points = [x.copy()]
    for _ in range(STEPS):
        opt.step(gradient(x))
        points.append(x.copy())
    return np.array(points)


def draw_valley(output):
    figure, panels = plt.subplots(
        2, 2, figsize=(9, 5.8), sharex=True, sharey=True, layout="constrained"
    )
    x1, x2 = np.meshgrid(np.linspace(-5.6, 1.6, 200), np.linspace(-3.4, 3.4, 200))
    for axes, (name, make_optimizer), colour, marker in zip(
        panels.flat, RUNS.items(), COLOURS, MARKERS, strict=True
    ):
        points = descend(make_optimizer)
        a, b = points[-1].round(2) + 0.0  # no -0.00
        end = f"after {STEPS} steps: ({a:.2f}, {b:.2f})"
        outside = np.flatnonzero(np.abs(points[:, 1]) > 3.4)
        if outside.size:
            points, end = points[: outside[0] + 1], f"diverges; {end}"
        levels = [0.05, 0.3, 1, 2.5, 5, 9, 14]
        axes.contour(x1, x2, height(x1, x2), levels=levels, colors="#c4c4c4", linewidths=0.8)
        axes.plot(0, 0, "x", color="black", ms=8, mew=1.6, zorder=1)
        axes.plot(*points.T, color=colour, marker=marker, ms=4.5, lw=1.6)
        axes.annotate("start", START, (6, -4), textcoords="offset points", va="top", fontsize=9)
        axes.annotate(
            "minimum", (0, 0), (0, 9), textcoords="offset points", ha="center", fontsize=9
        )
        axes.set_title(name, loc="left", fontsize=11)
        box = {"fc": "white", "ec": "none", "pad": 1.5}
        axes.text(1.5, -3.1, end, ha="right", fontsize=9, bbox=box)
    panels[0, 0].set(xlim=(-5.6, 1.6), ylim=(-3.4, 3.4))
    for axes in panels[1]:
        axes.set_xlabel("$x_1$")
    for axes in panels[:, 0]:
        axes.set_ylabel("$x_2$")
    figure.savefig(output, dpi=100)
    plt.close(figure)


def draw_leaky_average(output):
    """What a gradient tau steps old still weighs in the velocity."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    tau = np.arange(41)
    for beta, colour, marker in zip(BETAS, COLOURS, MARKERS, strict=True):
        label = rf"$\beta$ = {beta:g}: weights sum to {1 / (1 - beta):g}"
        axes.plot(tau, beta**tau, color=colour, marker=marker, ms=3.5, lw=1.2, label=label)
    axes.set(xlabel=r"age $\tau$ of a gradient, in steps", ylabel=r"its weight $\beta^\tau$")
    axes.set(xlim=(-0.6, 40.6), ylim=(-0.03, 1.04))
    axes.set_title("The leaky average: how long a velocity remembers", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(), help="the folder for the pictures")
    folder = parser.parse_args(arguments).output
    for name, make_optimizer in RUNS.items():
        x1, x2 = descend(make_optimizer)[-1]
        print(f"{name:<26} x1 {x1:+.6f}   x2 {x2:+.6f}")
    folder.mkdir(parents=True, exist_ok=True)
    draw_valley(folder / "valley.png")
    draw_leaky_average(folder / "leaky_average.png")
    print(f"written: {folder / 'valley.png'}, {folder / 'leaky_average.png'}")


if __name__ == "__main__":
    main()
