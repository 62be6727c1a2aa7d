"""Averages of arrays that change, of loads before a first step, and of those who look meanwhile."""

import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits
from thalweg.checkpoint import load_checkpoint, save_checkpoint


def made(**options):
    w = {"w": np.zeros(4)}
    return w, tw.SGD(w, lr=1.0, **options)


GRADS = {"w": np.full(4, -1.0)}


@pytest.mark.parametrize("size", [2, 64])
@pytest.mark.parametrize("put_back", [False, True])
def test_averages_of_an_array_that_has_changed_are_not_begun(size, put_back):
    w, opt = made()
    w["w"].resize(size, refcheck=False)
    with pytest.raises(RuntimeError, match=r'params\["w"\]: expected the memory it had'):
        opt.weight_average = 0.5
    assert opt.weight_average is None
    if put_back:
        w["w"].resize(4, refcheck=False)
        if w["w"].ctypes.data == opt.params["w"].ctypes.data:
            assert len(opt.averages) == 0


@pytest.mark.parametrize("size", [1, 400])
def test_averages_of_an_array_that_has_changed_are_not_looked_at(size):
    w, opt = made(weight_average=0.5)
    w["w"].resize(size, refcheck=False)
    with pytest.raises(RuntimeError, match=r'params\["w"\]: expected the memory it had'):
        opt.averages["w"]


def resumed_from_a_dict(opt, other, path):
    other.params["w"][...] = opt.params["w"]
    other.load_state_dict(opt.state_dict(), options="file")


def resumed_from_a_file(opt, other, path):
    save_checkpoint(path, opt)
    load_checkpoint(path, other, options="file")


@pytest.mark.parametrize("resume", [resumed_from_a_dict, resumed_from_a_file])
@pytest.mark.parametrize("begun_late", [False, True])
def test_an_average_without_a_step_is_resumed_as_one(resume, begun_late, tmp_path):
    _, opt = made(weight_average=None if begun_late else 0.5)
    if begun_late:
        opt.step(GRADS)
        opt.weight_average = 0.5
    _, other = made(weight_average=0.5)
    resume(opt, other, tmp_path / "file.npz")
    for each in (opt, other):
        each.step(GRADS)
        assert_same_bits(each.averages["w"], each.params["w"])
        each.step(GRADS)
    assert_same_bits(opt.averages["w"], other.averages["w"])


class Saying(Mapping):
    """A mapping of gradients that does something when it is read."""

    def __init__(self, does):
        self.does = does

    def __getitem__(self, name):
        self.does()
        return np.ones(4)

    def __iter__(self):
        return iter("w")

    def __len__(self):
        return 1


CHANGES = {
    "ended": lambda opt: setattr(opt, "weight_average", None),
    "another array": lambda opt: opt.replace("w", np.ones(4)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_arrays_of_a_joints_optimizer_stay_within_its_step(change):
    (a, one), (b, two) = made(weight_average=0.5), made()
    joint = tw.Joint(one=one, two=two)
    joint.step({"one": GRADS, "two": GRADS})
    before = [x.copy() for x in (a["w"], b["w"], one.averages["w"])]
    with pytest.raises(RuntimeError, match="called from within a step of the same optimizer"):
        joint.step({"one": GRADS, "two": Saying(lambda: change(one))})
    for x, y in zip((a["w"], b["w"], one.averages["w"]), before, strict=True):
        assert_same_bits(x, y)
    assert joint.step({"one": GRADS, "two": GRADS})


def test_a_mapping_of_averages_sees_what_there_is():
    _, opt = made(weight_average=0.5)
    averages = opt.averages
    assert dict(averages).keys() == {"w"}
    opt.weight_average = None
    assert dict(averages) == {}
    with pytest.raises(KeyError, match="there are none"):
        averages["w"]
    opt.weight_average = 0.5
    assert_same_bits(averages["w"], opt.params["w"])
    with pytest.raises(KeyError, match="'v'"):
        averages["v"]


def test_a_look_at_averages_waits_for_the_step():
    """Else it would read params that are being written, and write into averages."""
    n = 1_000_000

    def look_during_a_first_step():
        opt = tw.SGD({"w": np.zeros(n)}, lr=1.0, weight_average=0.5)
        grads = {"w": np.full(n, -1.0)}
        reader = threading.Thread(target=lambda: opt.averages["w"])
        reader.start()
        for _ in range(3):
            opt.step(grads)
        reader.join(60)
        assert not reader.is_alive()
        return opt.averages["w"]

    for _ in range(20):
        assert np.unique(look_during_a_first_step()).tolist() == [2.25]


def test_averages_begun_by_two_threads_are_begun_once():
    """Who waited for a step sees what another has begun meanwhile, and goes on with it."""
    _, opt = made()

    def begin():
        opt.weight_average = 0.5

    threads = [threading.Thread(target=f) for f in (begin, lambda: opt.step(GRADS), begin)]

    def lr(step):
        if step == 0:
            for thread in threads:
                thread.start()
                time.sleep(0.1)  # it has come to the gate, where this step keeps it
        return 1.0

    opt.lr = lr
    opt.step(GRADS)
    for thread in threads:
        thread.join(60)
    opt.step(GRADS)
    assert opt.step_count == 3
    assert_same_bits(opt.averages["w"], np.full(4, 2.5))
