"""What a search for a rate has found, and its picture."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Trial:
    """A run at one constant rate from the optimizer's present state."""

    rate: float
    losses: Array = field(repr=False)
    diverged: bool
    loss: float
    """The mean of the second half of the losses; infinite where it diverged."""


@dataclass(frozen=True, eq=False)
class RateTest:
    """What ``find_rate`` returns.

    ``rates``, ``losses`` and ``smoothed`` are those of the range test, ``trials`` the runs at
    constant rates in ascending order. ``diverged`` is the rate from which on steps diverge, None
    where the highest did not; ``suggestion`` is a rate, ``reason`` says why.
    """

    suggestion: float
    reason: str
    diverged: float | None
    rates: Array = field(repr=False)
    losses: Array = field(repr=False)
    smoothed: Array = field(repr=False)
    trials: tuple[Trial, ...] = field(repr=False)

    def __repr__(self) -> str:
        where = "nowhere" if self.diverged is None else f"{self.diverged:.4g}"
        return f"RateTest(suggestion={self.suggestion:.4g}, diverged={where}; {self.reason})"

    def plot(self, axes: Any = None) -> Any:
        """Draw losses against rates with matplotlib, into ``axes`` or a figure of its own.

        Returns the axes. ImportError without matplotlib, which is the extra "examples".
        """
        if axes is None:
            import matplotlib.pyplot as plt

            _, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
        calm = [trial for trial in self.trials if not trial.diverged]
        early = self.smoothed[: max(1, len(self.smoothed) // 2)]
        usual = [*early, *(min(trial.loss, early[0]) for trial in calm)]
        low, high = min(usual), max(usual)
        room = 0.15 * ((high - low) or abs(high) or 1.0)
        axes.plot(self.rates, self.losses, color="#c4c4c4", lw=0.8, label="range test, each batch")
        axes.plot(self.rates, self.smoothed, color="#0072b2", lw=2, label="range test, smoothed")
        axes.plot(
            [trial.rate for trial in calm],
            [trial.loss for trial in calm],
            "o",
            color="#d55e00",
            ms=5,
            label="constant rate, second half",
        )
        axes.axvline(self.suggestion, color="#009e73", lw=1.6, label=f"try {self.suggestion:.3g}")
        if self.diverged is not None:
            label = f"diverges from {self.diverged:.3g} on"
            axes.axvline(self.diverged, color="black", lw=1.2, ls="--", label=label)
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.set_ylim(low - room, high + 2 * room)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=9, facecolor="white", edgecolor="none", framealpha=0.9)
        return axes
