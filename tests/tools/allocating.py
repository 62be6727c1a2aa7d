"""What test_failures.py runs in a process of its own: ``allocating.py WHOSE CASE`` fails each
allocation, with interpose.c before the system's libraries, and looks at what it left behind."""

import ctypes
import gc
import sys
from contextlib import suppress
from functools import partial

import numpy as np

try:
    import _testcapi
except ImportError:
    _testcapi = None

import thalweg as tw
from failing import contents
from forking import LR, MOMENTUM, fork
from refusing import frozen

EVERY = 10**6
MOST_OF_PYTHONS = 30  # allocations that a small step may need, with all that is around it

shim = ctypes.CDLL(None)


def halved(t):
    return LR / 2**t


def params():
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.standard_normal(shape) for shape in [(3, 4), 5, (4, 3, 2), 1])
    return [a, b.astype(np.float32), c.T, d.reshape(())]


def grads():
    """Of dtypes and layouts for which a step has to plan anew."""
    rng = np.random.default_rng(1)
    a, b, c, d = (rng.standard_normal(shape) for shape in [(4, 3), 5, (2, 3, 4), 1])
    return [a.astype(np.float16).T, b, c, d.reshape(())]


def as_list(a, b, c, d):
    return [a, b, c, d]


def as_dict(a, b, c, d):
    return {"x": [a, {"y": b}], "z": c, "w": d}


def as_groups(a, b, c, d):
    return [[a, {"a name too long for a small string": c}], {"y": b, "w": d}]


class Step:
    """A first step."""

    def __init__(self, layout=as_list):
        self.layout, self.params, self.grads = layout, params(), grads()
        self.opt = None
        self.prepare()

    def prepare(self):
        self.make()

    def make(self, **more):
        tree = self.layout(*self.params)
        if self.layout is as_groups:
            tree = [{"params": tree[0]}, {"params": tree[1], "momentum": 0.5, "lr": LR}]
        self.opt = tw.SGD(tree, halved, MOMENTUM, max_norm=2.0, **more)

    def step(self):
        self.opt.step(self.layout(*self.grads))

    work = step

    def again(self):
        """What is done where the work failed, before the end."""

    def seen(self):
        """What a failure must leave alone."""
        gc.collect()
        arrays = [*self.params, *self.grads]
        return [sys.getrefcount(array) for array in arrays], frozen([arrays, self.opt])

    def end(self):
        """What must come of it, other gradients being next."""
        self.step()
        self.grads = [np.array(g, np.float64, order="C") for g in self.grads]
        self.step()
        return self.contents()

    def contents(self):
        return contents(self.opt)


class Construct(Step):
    def prepare(self):
        pass

    work = again = Step.make


class Bind(Construct):
    def make(self):
        super().make(grads=self.layout(*self.grads))

    def step(self):
        self.opt.step()

    work = again = make


class Refuse(Step):
    """A step that would be refused anyway."""

    def work(self):
        with suppress(ValueError):
            self.opt.step(self.layout(*self.grads[:3], np.ones(2)))


class Judge(Step):
    """A step that raises because of its gradients' values."""

    def make(self):
        super().make(on_nonfinite="raise")

    def work(self):
        with suppress(FloatingPointError):
            self.opt.step(self.layout(*self.grads[:3], np.array(np.nan)))


class Freeze(Step):
    """A step in which every option is what it will be, and an array is frozen."""

    def make(self):
        a, b, c, d = self.params
        groups = [{"params": {"a": a}}, {"params": {"b": b, "c": c, "d": d}, "frozen": True}]
        self.opt = tw.SGD(groups, LR, MOMENTUM)

    def step(self):
        self.opt.step([{"a": self.grads[0]}, {}])

    work = step


class Grow(Step):
    """A step for which the pool needs one more thread."""

    def prepare(self):
        self.params[0], self.grads[0] = np.ones((2, 1 << 17))
        self.make()
        tw.set_num_threads(tw.get_num_threads() + 1)


class AddGroup(Step):
    """One more group, behind a step with those there are."""

    def prepare(self):
        groups = [{"params": self.params[:2]}]
        self.opt = tw.SGD(groups, halved, MOMENTUM, max_norm=2.0)
        self.opt.step([self.grads[:2]])

    def work(self):
        self.opt.add_group({"params": self.params[2:], "lr": LR})

    def again(self):
        """Others than those that failed."""
        for k, w in enumerate(self.params[2:]):
            self.opt.add_group({"params": [w], "lr": LR / 2**k})

    def step(self):
        first, *others = self.grads[:2], *self.grads[2:]
        apart = len(self.opt.param_groups) == 3
        self.opt.step([first, *([g] for g in others)] if apart else [first, others])


class Rows(Step):
    """A step with gradients of rows, between steps without; those use threads."""

    def prepare(self):
        self.params[0], self.grads[0] = np.ones((2, 1 << 16, 2))
        self.make()
        self.step()
        self.rows = [tw.RowGrad(np.array([2, 0]), g[:2]) for g in self.grads[:2]]

    def work(self):
        self.opt.step(self.layout(*self.rows, *self.grads[2:]))


class Table(Construct):
    """One whose state takes memory only as it is touched."""

    def make(self):
        self.params[0], self.grads[0] = np.ones((2, 4, 1 << 17))
        super().make()


class Few(Step):
    """A partial step with few of many arrays, behind one with all."""

    def prepare(self):
        tree = self.layout(*self.params) + [np.ones(1) for _ in range(9)]
        self.opt = tw.SGD({"all": dict(enumerate(tree))}, halved, MOMENTUM, max_norm=2.0)
        self.step()

    def step(self):
        grads = [*self.layout(*self.grads), *np.ones((9, 1))]
        self.opt.step({"all": dict(enumerate(grads))})

    def work(self):
        self.opt.step({"all": {2: self.grads[2], 0: self.grads[0]}}, partial=True)


class Function(Step):
    """sgd_, which has no optimizer."""

    def make(self):
        self.velocities = [np.ones_like(w) for w in self.params]

    def step(self):
        tw.sgd_(self.params, self.grads, self.velocities, lr=LR, momentum=MOMENTUM)

    work = step

    def seen(self):
        return super().seen(), frozen(self.velocities)

    def contents(self):
        return [array.tobytes() for array in [*self.params, *self.velocities]]


CASES = {
    f"{case.__name__.lower()}_{layout.__name__}": partial(case, layout)
    for case in (Construct, Bind, Step)
    for layout in (as_list, as_dict, as_groups)
} | {
    case.__name__.lower(): case
    for case in (Refuse, Judge, Freeze, Grow, AddGroup, Rows, Table, Few, Function)
}


def fail_pythons(nth):
    _testcapi.remove_mem_hooks()
    if nth:
        _testcapi.set_nomemory(nth - 1, nth)


def fail_one(make, nth, fail, expected):
    case = make()
    before = case.seen()
    work = case.work
    fail(nth)
    try:
        work()
        failed = False
    except MemoryError:
        failed = True
    reached = fail(0)
    if fail is shim.fail_allocation:
        assert reached >= nth, "there was no such allocation"
    else:
        before = before[1:]  # CPython leaks references when it cannot make a frame
    if failed:
        assert case.seen()[-len(before) :] == before, "something was left behind"
        case.again()
    assert case.end() == expected[failed]


def of_cpp(name):
    """Each of C++'s fails in a child of its own."""
    make = CASES[name]
    for _ in range(2):  # the second time without what is done once in a process
        case = make()
        shim.fail_allocation(EVERY)
        case.work()
        known = shim.fail_allocation(0)
    assert known > 0
    print(f"{known} allocations")
    each(known, make, shim.fail_allocation)


def of_python(name):
    """The same for Python's own."""
    make = CASES[name]
    make().work()
    each(MOST_OF_PYTHONS, make, fail_pythons)


def each(known, make, fail):
    expected = []
    for failed in (False, True):
        like = make()
        like.again() if failed else like.work()
        expected.append(like.end())
    gc.freeze()  # the children collect
    for nth in range(1, known + 1):
        print(f"number {nth}", flush=True)
        fork(lambda nth=nth: fail_one(make, nth, fail, expected))


if __name__ == "__main__":
    scenario, *given = sys.argv[1:]
    globals()[scenario](*given)
