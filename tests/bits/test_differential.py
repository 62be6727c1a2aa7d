"""Runs of an optimizer in which everything may happen at once, against the twin, bit for bit."""

import copy
import pickle

import numpy as np
import pytest

import thalweg as tw
from conftest import FULL
from layouts import LAYOUTS, laid_out, lay
from rules import RULES
from thalweg import _core
from thalweg import schedules as made
from twin import Twin

RUNS = 1000 if FULL else 24
SHAPES = [(1,), (3, 4), (7, 5), (2, 3, 4), (40, 9), (0, 3), (130, 33)]
GRADS = [np.float16, np.float32, np.float64]
SCHEDULES = [
    made.Exponential(0.2, 0.9),
    made.Cosine(0.3, steps=5, end=0.01),
    made.Warmup(made.InverseSqrt(0.1), steps=3),
    made.Step(0.25, every=2),
]


class Run:
    """One run; all that is random comes from its number."""

    def __init__(self, number, folder):
        self.r = np.random.default_rng(number)
        self.path = folder / "run.npz"
        self.rule = self.one_of(list(RULES.values()))
        self.level = self.one_of(_core.isa_supported)
        self.groups = []
        start = {}
        for g in range(self.r.integers(1, 4)):
            members = {}
            for i in range(self.r.integers(1, 4)):
                dtype = self.one_of([np.float32, np.float64])
                values = self.r.normal(size=self.one_of(SHAPES)).astype(dtype)
                members[f"p{i}"] = self.laid(values)
                start[f"{g}.p{i}"] = members[f"p{i}"]
            self.groups.append((members, self.options()))
        self.limits = {
            "max_norm": self.one_of([None, 0.3, 5.0, np.inf]),
            "norm_eps": self.one_of([1e-6, 0.0, 0.5]),
            "max_value": self.one_of([None, None, 0.8]),
            "on_nonfinite": self.one_of(["propagate", "skip"]),
        }
        of_each = {f"{g}.{k}": o for g, (m, o) in enumerate(self.groups) for k in m}
        self.twin = Twin(self.rule, start, of_each, **self.limits)
        self.opt = self.make()

    def one_of(self, values):
        return values[self.r.integers(len(values))]

    def often(self, chance):
        return bool(self.r.random() < chance)

    def laid(self, values):
        return lay(self.one_of(list(LAYOUTS)) if values.size else "C", values)[1]

    def options(self):
        chosen = {"lr": self.one_of([0.1, 0.02, *SCHEDULES])}
        if self.often(0.5):
            chosen |= {"weight_decay": self.one_of([0.1, SCHEDULES[0]])}
            chosen |= {"decoupled": self.often(0.5)}
        chosen["maximize"] = self.often(0.2)
        chosen["frozen"] = self.often(0.15)
        if self.rule.slot == "velocity":
            chosen["momentum"] = self.one_of([0.9, 0.5, 1.0, SCHEDULES[1]])
            if self.rule.kernel == "heavy_ball" and self.often(0.3):
                chosen["dampening"] = 0.25
        if self.rule.slot == "accumulator":
            chosen["initial_accumulator_value"] = self.one_of([0.0, 0.1])
            chosen["lr_decay"] = self.one_of([0.0, 0.5])
        return chosen

    def make(self):
        groups = [{"params": members, **options} for members, options in self.groups]
        return self.rule.make(groups, self.level, **self.limits)

    def params(self):
        return {f"{g}.{k}": w for g, (m, _) in enumerate(self.groups) for k, w in m.items()}

    def gradient(self, w):
        if self.often(0.1):
            return None
        dtype = self.one_of(GRADS)
        size = self.one_of([0.01, 1.0, 30.0])
        if self.often(0.3):
            many = self.r.integers(0, 2 * len(w) + 1) if len(w) else 0
            ids = self.r.integers(0, max(len(w), 1), many)
            values = (size * self.r.normal(size=(many, *w.shape[1:]))).astype(dtype)
            height = len(w) if self.often(0.5) else None
            return tw.RowGrad(ids.astype(self.one_of(["i8", "i4", "u2"])), values, height)
        grad = (size * self.r.normal(size=w.shape)).astype(dtype)
        if self.often(0.05) and grad.size:
            grad.flat[self.r.integers(grad.size)] = self.one_of([np.nan, np.inf, -np.inf])
        if len(w) and self.often(0.5):
            return laid_out(grad, self.one_of(["F", "broadcast", "strided", "backwards"]))
        return grad

    def step(self):
        scale = self.one_of([1.0, 1.0, 0.25, 1 / 3])
        grads = {name: self.gradient(w) for name, w in self.params().items()}
        trees = [{k: grads[f"{g}.{k}"] for k in m} for g, (m, _) in enumerate(self.groups)]
        partial = self.often(0.3)
        if partial:
            trees = [{k: x for k, x in tree.items() if x is not None} for tree in trees]
        assert self.opt.step(trees, scale=scale, partial=partial) == self.twin.step(grads, scale)

    def take(self, opt, members):
        self.opt = opt
        opt._use_level(self.level)
        self.groups = [(m, o) for m, (_, o) in zip(members, self.groups, strict=True)]

    def leave_and_come_back(self):
        """By a pickle, a copy, a checkpoint or a state_dict; or the options change."""
        members = [m for m, _ in self.groups]
        way = self.one_of(["pickle", "copy", "file", "dict", "threads", "limits"])
        if way == "pickle":
            self.take(*pickle.loads(pickle.dumps((self.opt, members))))
        elif way == "copy":
            self.take(*copy.deepcopy((self.opt, members)))
        elif way in ("file", "dict"):
            old = self.opt
            fresh = [{k: self.laid(np.array(w)) for k, w in m.items()} for m in members]
            if way == "file":
                tw.save_checkpoint(self.path, old)
                for m in fresh:
                    for w in m.values():
                        w[...] = 9
            self.take(old, fresh)
            self.opt = self.make()
            if way == "file":
                tw.load_checkpoint(self.path, self.opt, options="file")
            else:
                self.opt.load_state_dict(old.state_dict(), options="file")
        elif way == "threads":
            tw.set_num_threads(int(self.r.integers(1, 4)))
        else:
            self.limits["norm_eps"] = self.one_of([0.0, 1e-3])
            self.opt.norm_eps = self.twin.norm_eps = self.limits["norm_eps"]
        return way


@pytest.mark.parametrize("block", range(4))
def test_everything_at_once(block, tmp_path):
    before = tw.get_num_threads()
    try:
        for number in range(block, RUNS, 4):
            run = Run(number, tmp_path)
            ways = []
            for _ in range(run.r.integers(3, 8)):
                run.step()
                if run.often(0.4):
                    ways.append(run.leave_and_come_back())
                context = f"run {number}, {run.rule.kernel} at {run.level} after {ways}"
                run.twin.assert_equals(run.opt, run.params(), context)
    finally:
        tw.set_num_threads(before)
