"""A run of 100 steps with all that a state is made of, to be left and taken up again at any step.
``resuming.py RULE STEP FILE`` takes one up from a file and prints the digest of its end."""

import hashlib
import sys

import numpy as np

import thalweg as tw
from rules import RULES
from thalweg import schedules as s

STEPS = 100
ADDED = 37  # the step before which one more group comes
OWN = {
    "heavy_ball": {"dampening": 0.4},
    "adagrad_inside": {"lr_decay": 0.01, "initial_accumulator_value": 0.1},
    "adagrad_row_inside": {"lr_decay": 0.5, "initial_accumulator_value": 0.1},
}


def kept(t):
    """A callable that no file holds."""
    return 0.1 / (1 + t)


def _arrays():
    """Every layout and both dtypes; no element has a meaning yet."""
    full = np.full
    return {
        "W": full((6, 5), 9.0),
        "bias": full(5, 9.0, np.float32),
        "f": full((7, 4), 9.0, np.float32).T,
        "window": full((9, 8), 9.0)[2:7, 1:6].T,
        "every": full(40, 9.0, np.float32)[::3],
        "backwards": full((4, 3), 9.0)[::-1, ::-1],
        "scalar": full((), 9.0),
        "none": full((0, 3), 9.0, np.float32),
        "table": full((20, 6), 9.0, np.float32),
        "big": full((70, 90), 9.0, np.float32)[:, ::2],
    }


class Course:
    """The optimizer of a rule as it is before step ``t``; what to load is still missing."""

    def __init__(self, kernel, t=0):
        self.rule = RULES[kernel]
        self.body, self.table = _arrays(), _arrays()["table"]
        own = OWN.get(kernel, {})
        momentum = self.rule.choices.get("momentum")
        groups = [
            {"params": self.body} | own,
            {"params": [np.full(3, 9.0)], "frozen": True, "weight_decay": kept},
            {"match": "*.bias", "weight_decay": 0.0, "lr": s.CosineRestarts(0.2, 7, 2, 0.01)},
            {
                "match": "*.e*",
                "lr": s.Warmup(s.Sequence([s.Cosine(0.3, 20), s.Constant(0.1)], [20]), 5),
            },
        ]
        if momentum is not None:
            groups[2]["momentum"] = s.Polynomial(0.5, 80, end=0.9)
        self.opt = self.rule.make(
            groups, tw._core.isa, weight_decay=0.01, max_norm=2.0, on_nonfinite="skip"
        )
        if t > ADDED:
            self._add()
        if t > 60:
            self.opt.param_groups[1]["frozen"] = False

    def _add(self):
        self.opt.add_group({"params": self.table, "lr": s.InverseTime(0.4, 0.1)})

    def start(self):
        """Values that every run begins with."""
        rng = np.random.default_rng(7)
        for array in self.opt._arrays.values():
            array[...] = rng.standard_normal(array.shape)
        return self

    def step(self, t):
        if t == ADDED:
            self._add()
            self.table[...] = np.random.default_rng(8).standard_normal(self.table.shape)
        if t == 50:
            self.opt.param_groups[0]["lr"] = 0.05
            self.opt.max_value = 1.5
        if t == 60:
            self.opt.param_groups[1]["frozen"] = False
        body, frozen, table = GRADS[t]
        grads = [body, [frozen]] + ([table] if t >= ADDED else [])
        assert self.opt.step(grads, scale=0.5 if t % 3 else 1.0) == (t % 11 != 5)

    def run(self, start, stop=STEPS):
        for t in range(start, stop):
            self.step(t)
        return self

    def all(self):
        """Every bit and number that a checkpoint must bring back."""
        opt = self.opt
        found = {
            "counters": (opt.step_count, opt.skipped_steps, _hex(opt.grad_norm), opt.last_lr),
            "limits": (opt.max_norm, opt.max_value, opt.on_nonfinite),
            "groups": [repr(g.options()).replace(repr(kept), "kept") for g in opt.param_groups],
        }
        for name, param in opt._arrays.items():
            slots = {k: x if k == "step" else bits(x) for k, x in opt.state[name].items()}
            found[name] = bits(param), slots
        return found


def _hex(norm):
    return norm if norm is None else norm.hex()


def bits(array):
    return str(array.dtype), array.shape, np.array(array, order="C").tobytes()


def _grads(t):
    rng = np.random.default_rng(t)
    body = {
        name: rng.standard_normal(w.shape).astype((np.float32, np.float64)[t % 2])
        for name, w in _arrays().items()
    }
    body["table"] = tw.RowGrad(rng.integers(0, 20, 5), rng.standard_normal((5, 6)))
    if t % 4 == 1:
        body["W"] = body["scalar"] = None
    if t % 7 == 2:
        body["table"] = rng.standard_normal((20, 6))
    if t % 11 == 5:
        body["bias"][2] = np.nan
    rows = tw.RowGrad(rng.integers(0, 20, 3), rng.standard_normal((3, 6)).astype(np.float32))
    return body, rng.standard_normal(3), rows


GRADS = [_grads(t) for t in range(STEPS)]


def digest(found):
    return hashlib.sha256(repr(found).encode()).hexdigest()


def main(kernel, step, path):
    course = Course(kernel, int(step))
    tw.load_checkpoint(path, course.opt, options="file")
    print(digest(course.run(int(step)).all()))


if __name__ == "__main__":
    main(*sys.argv[1:])
