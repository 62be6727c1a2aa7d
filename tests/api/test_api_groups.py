"""Groups, options that change between steps, and schedules."""

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

import thalweg as tw
from conftest import FREE
from refusing import refused


def A(*shape):
    return np.ones(shape)


def test_groups():
    w = {"W": A(2)}, [A(2), A(2)]
    groups = [{"params": w[0], "lr": 0.25}, {"params": w[1], "momentum": 0.5, "maximize": True}]
    opt = tw.SGD(groups, 0.5)
    assert list(opt.state) == ["0.W", "1.0", "1.1"]
    for _ in range(2):
        assert opt.step([{"W": A(2)}, (A(2), None)])
    assert (w[0]["W"] == 0.5).all()
    assert (w[1][0] == 1 + 0.5 + 0.75).all()
    assert (w[1][1] == 1).all()
    assert opt.state["0.W"] == {"step": 2}
    assert (opt.state["1.0"]["velocity"] == -1.5).all()
    assert opt.param_groups[0]["params"] == {"W": w[0]["W"]}
    assert opt.param_groups[1]["params"][0] is w[1][0]
    assert [group["maximize"] for group in opt.param_groups] == [False, True]


@pytest.mark.parametrize("kind", [list, tuple])
def test_forms_of_groups(kind):
    lone = A(3)
    opt = tw.Adagrad(kind([{"params": lone}, {"params": [A(2)], "eps_placement": "outside"}]))
    assert list(opt.state) == ["0", "1.0"]
    assert opt.step(kind([A(3), [A(2)]]))
    assert (lone < 1).all()
    assert [group["eps_placement"] for group in opt.param_groups] == ["inside", "outside"]


def test_what_is_no_group():
    """A mapping is one only with "params" and, besides it, names of options."""
    names = {
        ("0.params", "0.W"): [{"params": A(2), "W": A(2)}],
        ("0.params", "1"): [{"params": A(2)}, A(2)],
        ("0.lr",): [{"lr": A(2)}],
        ("params", "lr"): {"params": A(2), "lr": A(1)},
        ("x.0.params",): {"x": [{"params": A(2)}]},
    }
    for expected, params in names.items():
        assert tuple(tw.SGD(params).state) == expected


@pytest.mark.parametrize("value", [0.1, 1, True, "x", np.float32(0.1)])
def test_an_option_of_a_group_that_is_misspelt(value):
    w = A(2), A(2)
    said = 'params["1.lrr"]: expected an array, or for a group one of the options lr, momentum, '
    with refused(TypeError, said, f"received lrr={value!r}", keeps=w):
        tw.SGD([{"params": w[0]}, {"params": w[1], "lrr": value}])


def test_bound_gradients_in_groups():
    w, g = [A(2), A(3)], [np.ones(2), {"b": np.ones(3)}]
    opt = tw.SGD([{"params": w[0]}, {"params": {"b": w[1]}, "lr": 0.25}], 0.5, grads=g)
    assert opt.step()
    g[0][:] = 0
    assert opt.step(scale=2.0)
    assert (w[0] == 0.5).all()
    assert (w[1] == 1 - 0.25 - 0.5).all()


def test_bound_buffers_are_read_anew_and_may_be_passed_over():
    w, g = A(2), np.zeros(2)
    opt = tw.SGD({"w": w}, 0.5, grads={"w": g})
    g[:] = 1
    assert opt.step()
    assert opt.step({"w": np.full(2, -1.0)})
    assert (w == 1).all()
    skipped = tw.SGD([A(2), A(2)], 0.5, grads=[A(2), None])
    assert skipped.step()
    assert [state["step"] for state in skipped.state.values()] == [1, 0]


def test_lr_of_all_groups():
    opt = tw.SGD([{"params": A(1)}, {"params": A(1), "lr": 0.25}], 0.5)
    with refused(ValueError, "lr: expected one for all groups, received [0.5, 0.25]", keeps=opt):
        assert opt.lr
    opt.lr = 2
    assert opt.lr == 2
    assert isinstance(opt.lr, float)
    assert [group["lr"] for group in opt.param_groups] == [2, 2]
    opt.param_groups[1]["lr"] = np.float32(0.5)
    assert opt.param_groups[1]["lr"] == 0.5
    opt.lr = schedule = lambda t: 0.5
    assert opt.lr is schedule


def test_options_change_between_steps():
    w = np.array([8.0])
    opt = tw.SGD(w, 1.0, 0.5)
    options = opt.param_groups[0]
    history = [{}, {"lr": 0.5}, {"momentum": 0.0}, {"weight_decay": 0.25}, {"decoupled": True}]
    history += [{"maximize": True}, {"momentum": 0.5, "dampening": 0.5}, {"dampening": 0.0}]
    v, x = 0.0, 8.0
    now = {"lr": 1.0, "momentum": 0.5, "weight_decay": 0.0}
    now |= {"decoupled": False, "maximize": False, "dampening": 0.0}
    for change in history:
        now |= change
        options.update(change)
        opt.step(np.array([1.0]))
        g = -1.0 if now["maximize"] else 1.0
        if now["decoupled"]:
            x = (1 - now["lr"] * now["weight_decay"]) * x
        else:
            g = g + now["weight_decay"] * x
        v = now["momentum"] * v + (1 - now["dampening"]) * g
        x = x - now["lr"] * v
        assert w[0] == x, change
        assert opt.state[""]["velocity"][0] == v


def test_a_group_is_a_mapping_of_its_options():
    options = tw.SGD(A(2), 0.5, 0.9, nesterov=True).param_groups[0]
    assert dict(options) == {
        "lr": 0.5,
        "momentum": 0.9,
        "dampening": 0.0,
        "nesterov": True,
        "form": "heavy_ball",
        "weight_decay": 0.0,
        "decoupled": False,
        "maximize": False,
        "frozen": False,
    }
    assert len(options) == 9
    assert "eps" not in options
    assert repr(options) == f"Group({dict(options)})"
    assert list(tw.Adagrad(A(2)).param_groups[0]) == [
        "lr",
        "eps",
        "eps_placement",
        "lr_decay",
        "initial_accumulator_value",
        "accumulator",
        "weight_decay",
        "decoupled",
        "maximize",
        "frozen",
    ]


class Spy:
    """A schedule that notes what it is asked."""

    def __init__(self, value=0.5):
        self.value, self.seen = value, []

    def __call__(self, step):
        self.seen.append(step)
        return self.value


def test_schedules_are_called_once_per_step_and_group():
    spies = Spy(), Spy(), Spy()
    groups = [
        {"params": [A(2), A(3)], "lr": spies[0]},
        {"params": A(2), "weight_decay": spies[1]},
        {"params": A(2), "lr": spies[0], "momentum": spies[2]},
    ]
    opt = tw.SGD(groups)
    for _ in range(3):
        opt.step([[A(2), None], None, A(2)])
    assert spies[0].seen == [0, 0, 1, 1, 2, 2]
    assert spies[1].seen == spies[2].seen == [0, 1, 2]
    assert type(spies[0].seen[0]) is int


def test_a_schedule_is_obeyed():
    w = A(1)
    opt = tw.SGD(w, lambda t: 2.0**-t)
    for _ in range(4):
        opt.step(A(1))
    assert w == 1 - 1 - 0.5 - 0.25 - 0.125
    w, s = A(1), A(1)
    opt = tw.Adagrad(s, lambda t: (0.5, 0.25)[t], lr_decay=1.0)
    opt.step(np.full(1, 2.0))
    opt.step(np.zeros(1))
    assert s == 1 - (0.5 * 2) / np.sqrt(4 + 1e-8)


def test_a_refused_step_asks_the_schedule_for_the_same_step_again():
    spy = Spy()
    opt = tw.SGD(A(2), spy)
    with refused(ValueError, keeps=opt._arrays):
        opt.step(A(3))
    opt.step(A(2))
    assert spy.seen == [0, 0]


@pytest.mark.parametrize("option", ["lr", "momentum", "weight_decay"])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, StopIteration, MemoryError])
def test_a_raising_schedule_changes_nothing(option, error):
    def schedule(t):
        if t == 1:
            raise error("from the schedule")
        return 0.5

    w = [A(2), A(3)]
    opt = tw.SGD([{"params": w[0]}, {"params": w[1], option: schedule}], 0.5, 0.5)
    opt.step([A(2), A(3)])
    with refused(error, "from the schedule", keeps=opt):
        opt.step([A(2), A(3)])
    opt.param_groups[1][option] = 0.5
    assert opt.step([A(2), A(3)])


def test_other_options_take_no_schedule():
    for rule, option in itertools.product((tw.SGD, tw.Adagrad), ("dampening", "eps", "lr_decay")):
        opt = rule(A(2), **({"momentum": 0.5} if rule is tw.SGD else {}))
        if option in opt.param_groups[0]:
            with refused(TypeError, f"{option}: expected a", "received function", keeps=opt):
                opt.param_groups[0][option] = lambda t: 0.5


def test_a_step_within_a_step_is_refused():
    class Stepping(Mapping):
        def __getitem__(self, key):
            opt.step({"a": A(2)})

        def __len__(self):
            return 1

        def __iter__(self):
            return iter("a")

    opt = tw.SGD({"a": A(2)}, 0.5)
    said = "step: called from within a step of the same optimizer"
    with refused(RuntimeError, said, "by a schedule or by a mapping", keeps=opt):
        opt.step(Stepping())
    opt.lr = lambda t: opt.step({"a": A(2)}) and 0.5
    with refused(RuntimeError, said, keeps=opt):
        opt.step({"a": A(2)})
    opt.lr = 0.5
    assert opt.step({"a": A(2)})
    assert (opt._arrays["a"] == 0.5).all()


def test_a_step_of_another_optimizer_within_a_step():
    inner, outer = tw.SGD(A(2), 0.5), tw.SGD(A(2), lambda t: 0.5 * inner.step(A(2)))
    assert outer.step(A(2))
    assert inner.step_count == outer.step_count == 1


def test_a_schedule_may_set_options_for_the_next_step():
    def schedule(t):
        opt.lr = 0.25
        return 0.5

    w = A(1)
    opt = tw.SGD(w, schedule)
    opt.step(A(1))
    assert (w, opt.lr) == (0.5, 0.25)
    opt.step(A(1))
    assert w == 0.25


def test_containers_that_change_while_they_are_read():
    class Clears(Mapping):
        def __getitem__(self, key):
            outer.clear()
            return np.ones(2)

        def __len__(self):
            return 2

        def __iter__(self):
            return iter("ab")

    w = [{"a": A(2), "b": A(2)}, A(3)]
    opt = tw.SGD(w, 0.5)
    outer = [Clears(), A(3)]
    if FREE:  # the list as it was when the walk came to it
        assert opt.step(outer)
        assert all((each == 0.5).all() for each in (*w[0].values(), w[1]))
    else:
        with refused(ValueError, "grads: changed its length while it was read", keeps=opt):
            opt.step(outer)

    class Grows(Clears):
        def __len__(self):
            return 3

    outer = [Grows(), A(3)]
    with refused(ValueError, 'grads["0"]: its length and its keys disagree', keeps=opt):
        opt.step((outer[0], A(3)))
