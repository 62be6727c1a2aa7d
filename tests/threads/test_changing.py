"""Groups added and copies made while other threads step."""

import copy
import pickle
import threading

import numpy as np
import pytest

import thalweg as tw
from together import together

ONE = np.ones(2)


@pytest.mark.parametrize("rule", [tw.SGD, tw.Adagrad])
def test_groups_from_several_threads(rule):
    opt = rule([{"params": np.zeros(2)}], lr=0.5)
    each, count = 30, 4
    trees = [[{"w": np.zeros(2), "b": np.zeros(1)} for _ in range(each)] for _ in range(count)]

    def add(mine):
        for tree in mine:
            opt.add_group({"params": tree, "lr": 0.25})

    together(*[lambda mine=mine: add(mine) for mine in trees])
    groups = opt.param_groups
    assert len(groups) == len(opt.params) == 1 + each * count
    assert len(opt.state) == 1 + 2 * each * count
    assert opt.step([ONE, *({"w": ONE, "b": np.ones(1)} for _ in groups[1:])])
    for i, group in enumerate(groups[1:], 1):
        assert group["lr"] == 0.25
        assert opt.params[i]["w"] is group["params"]["w"]
        assert opt.state[f"{i}.w"]["step"] == 1
    assert {id(tree["w"]) for mine in trees for tree in mine} == {
        id(tree["w"]) for tree in opt.params[1:]
    }
    assert all((tree["w"] < 0).all() for mine in trees for tree in mine)


def test_a_group_that_is_refused_leaves_no_place_behind():
    opt = tw.SGD([{"params": np.zeros(2)}])

    def add(group, refused):
        for _ in range(20):
            if refused:
                with pytest.raises((TypeError, ValueError)):
                    opt.add_group(group())
            else:
                opt.add_group(group())

    together(
        lambda: add(lambda: {"params": np.zeros(2)}, False),
        lambda: add(lambda: {"params": [np.zeros(2), "no array"]}, True),
        lambda: add(lambda: {"params": np.zeros(2), "lr": -1}, True),
    )
    assert opt.step([ONE] * 21)


def test_no_group_within_a_step():
    def lr(t):
        opt.add_group({"params": np.zeros(2)})
        return 0.5

    opt = tw.SGD([{"params": np.zeros(2)}], lr)
    with pytest.raises(RuntimeError, match="called from within a step"):
        opt.step([ONE])
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize("copied", [lambda opt: pickle.loads(pickle.dumps(opt)), copy.deepcopy])
@pytest.mark.parametrize("size", [3, 200_000])  # with the GIL, and without it
def test_a_copy_beside_steps_is_of_one_moment(copied, size):
    """State and counters; the gradients are ones, so the velocity tells the step."""
    opt = tw.SGD({"a": np.zeros(size), "b": np.zeros(size)}, 1e-3, 1.0 - 2**-20)
    grads = {"a": np.ones(size), "b": np.ones(size)}
    done = threading.Event()

    def step():
        try:
            for _ in range(60):
                opt.step(grads)
        finally:
            done.set()

    velocities = [0.0]
    for _ in range(60):
        velocities.append((1.0 - 2**-20) * velocities[-1] + 1.0)

    def take():
        while not done.is_set():
            other = copied(opt)
            t = other.step_count
            for name in "ab":
                assert other.state[name]["step"] == t
                assert (other.state[name]["velocity"] == velocities[t]).all()

    together(step, take)
    assert opt.step_count == 60
