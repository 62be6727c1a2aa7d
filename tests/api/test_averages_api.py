"""weight_average and opt.averages: when averages begin, wait and end, and what is refused."""

import copy
import math
import pickle
import threading

import numpy as np
import pytest

import thalweg as tw
from conftest import told
from refusing import RULES, everything, refused


def pair():
    return {"a": np.arange(4.0), "b": np.ones((2, 3), np.float32)}


def grads():
    return {"a": np.ones(4), "b": np.ones((2, 3))}


def averages(opt):
    return {name: average.copy() for name, average in opt.averages.items()}


def same(one, other):
    return list(one) == list(other) and all((one[k] == other[k]).all() for k in one)


@pytest.mark.parametrize("made", RULES)
class TestWhatTheyAre:
    def test_off(self, made):
        opt = made(pair())
        assert opt.weight_average is None
        assert dict(opt.averages) == {}
        with refused(KeyError, "weight_average=0.999", "'a'", keeps=opt):
            opt.averages["a"]
        assert "weight_average" not in repr(opt)

    def test_views(self, made):
        """Of the live averages, in shape and dtype of the param; names cannot be rebound."""
        params = pair()
        opt = made(params, weight_average=0.5)
        live = opt.averages["a"]
        assert list(opt.averages) == ["a", "b"]
        assert len(opt.averages) == 2
        assert repr(opt.averages) == "Averages('a', 'b')"
        assert {k: (a.shape, a.dtype) for k, a in opt.averages.items()} == {
            k: (w.shape, w.dtype) for k, w in params.items()
        }
        before = params["a"].copy()
        for _ in range(2):
            opt.step(grads())
        assert np.shares_memory(live, opt.averages["a"])
        assert not np.shares_memory(live, params["a"])
        assert (live != before).all()
        with pytest.raises(TypeError):
            opt.averages["a"] = before
        with pytest.raises(AttributeError):
            opt.averages = {}
        with pytest.raises(KeyError):
            opt.averages["c"]
        live.shape = (2, 2)  # of the view alone
        assert opt.averages["a"].shape == (4,)
        assert opt.step(grads())
        assert "weight_average=0.5" in repr(opt)

    def test_the_first_step_makes_it_the_weights(self, made):
        """As torch's and Keras' averages; what params were before has no part in it."""
        params = pair()
        opt = made(params, weight_average=0.999)
        params["a"][:] = 7.0
        assert (opt.averages["a"] == 7.0).all()
        params["a"][:] = np.nan
        assert np.isnan(opt.averages["a"]).all()
        params["a"][:] = 5.0
        assert opt.step(grads())
        assert same(opt.averages, params)
        first = params["a"].copy()
        assert opt.step(grads())
        assert (opt.averages["a"] == 0.999 * first + (1.0 - 0.999) * params["a"]).all()

    def test_what_takes_no_part_waits(self, made):
        params = pair()
        opt = made([{"params": params}, {"match": "0.b", "frozen": True}], weight_average=0.5)
        opt.step([{"a": np.ones(4), "b": None}])
        params["b"][:] = 3.0
        assert (opt.averages["0.b"] == 3.0).all()  # frozen, and no step yet: the param
        after = params["a"].copy()
        opt.step([{}], partial=True)
        assert (opt.averages["0.a"] == after).all()
        opt.step([{"a": None, "b": None}])
        assert (opt.averages["0.a"] == after).all()

    def test_skipped_and_refused_steps_leave_them(self, made):
        opt = made(pair(), weight_average=0.5, on_nonfinite="skip")
        for _ in range(2):
            opt.step(grads())
        before, kept = everything(opt), averages(opt)
        bad = grads()
        bad["a"][1] = np.inf
        assert not opt.step(bad)
        assert everything(opt) == before
        assert same(opt.averages, kept)
        opt.on_nonfinite = "raise"
        with refused(FloatingPointError, keeps=[opt, averages(opt)]):
            opt.step(bad)

    def test_maximize_changes_no_sign_of_it(self, made):
        one, other = (
            made(pair(), weight_average=0.5, maximize=True),
            made(pair(), weight_average=0.5),
        )
        for _ in range(2):
            one.step(grads())
            other.step({name: -g for name, g in grads().items()})
        assert same(one.averages, averages(other))

    def test_a_schedule_of_ones_own(self, made):
        """A number is a number at any step: thinc's warm-up, min((1+t)/(10+t), 0.9999)."""
        w = {"a": np.zeros(1)}
        opt = made(w, weight_average=0.0)
        expected = np.zeros(1)
        for t in range(4):
            beta = (2.0 + t) / (11.0 + t)
            opt.weight_average = beta
            opt.step({"a": np.ones(1)})
            expected = w["a"].copy() if t == 0 else beta * expected + (1.0 - beta) * w["a"]
            assert (opt.averages["a"] == expected).all()


@pytest.mark.parametrize("made", RULES)
class TestBeginAndEnd:
    def test_begun_later(self, made):
        """As when the last epochs alone are averaged; strided gradients as before."""
        params = pair()
        opt = made(params)
        strided = {"a": np.ones(8)[::2], "b": np.ones((3, 2)).T}
        for g in (grads(), strided):
            opt.step(g)
        opt.weight_average = 0.5
        assert same(opt.averages, params)
        opt.step(strided)
        assert same(opt.averages, params)
        first = {name: w.copy() for name, w in params.items()}
        opt.step(grads())
        half = {name: np.float32(0.5) * (first[name] + w) for name, w in params.items()}
        assert all(np.allclose(opt.averages[k], half[k], rtol=1e-6) for k in half)
        opt.weight_average = None
        assert len(opt.averages) == 0
        for g in (strided, grads()):
            assert opt.step(g)

    def test_not_within_a_step(self, made):
        params = pair()
        opt = made(params)
        opt.step(grads())

        def lr(t):
            opt.weight_average = 0.5
            return 0.1

        opt.lr = lr
        with refused(RuntimeError, "from within a step", keeps=[params]):
            opt.step(grads())
        joint = tw.Joint(one=opt)
        with refused(RuntimeError, "from within a step", keeps=[params]):
            joint.step({"one": grads()})
        assert opt.weight_average is None
        opt.lr = 0.1
        assert opt.step(grads())

    def test_add_group(self, made):
        opt = made([{"params": np.zeros(2)}], weight_average=0.5)
        opt.step([np.ones(2)])
        opt.add_group({"params": np.full(3, 4.0)})
        assert (opt.averages["1"] == 4.0).all()
        w = opt.params
        opt.step([np.ones(2), np.ones(3)])
        assert (opt.averages["1"] == w[1]).all()
        assert (opt.averages["0"] != w[0]).all()

    def test_add_group_of_float32(self, made):
        beta = 1 - 2.0**-26
        opt = made([{"params": np.zeros(2)}], weight_average=beta)
        with refused(ValueError, "weight_average: ", "float32 arrays see as 1.0", keeps=opt):
            opt.add_group({"params": np.zeros(2, np.float32)})
        with refused(ValueError, "weight_average: ", "float32 arrays see as 1.0"):
            made(np.zeros(2, np.float32), weight_average=beta)

    def test_replace(self, made):
        """Rows that both have keep their average, new ones begin as they are."""
        params = {"e": np.ones((3, 2)), "b": np.ones(2)}
        opt = made(params, weight_average=0.5)
        for _ in range(2):
            opt.step({"e": np.ones((3, 2)), "b": np.ones(2)})
        kept = averages(opt)
        params["e"] = np.concatenate([params["e"], np.full((2, 2), 9.0)])
        opt.replace("e", params["e"])
        assert (opt.averages["e"][:3] == kept["e"]).all()
        assert (opt.averages["e"][3:] == 9.0).all()
        before = opt.averages["e"].copy()
        opt.step({"e": np.ones((5, 2)), "b": np.ones(2)})
        assert (opt.averages["e"] == 0.5 * before + 0.5 * params["e"]).all()

    def test_replace_before_the_first_step(self, made):
        params = {"e": np.ones((3, 2))}
        opt = made(params, weight_average=0.5)
        params["e"] = np.full((4, 2), 2.0)
        opt.replace("e", params["e"])
        assert (opt.averages["e"] == 2.0).all()
        opt.step({"e": np.ones((4, 2))})
        assert same(opt.averages, params)


@pytest.mark.parametrize("made", RULES)
class TestRefused:
    @pytest.mark.parametrize("value", [1.0, -0.1, 1.5, math.nan, math.inf, 1 - 1e-9])
    def test_out_of_range(self, made, value):
        words = "weight_average: expected a number from 0 to below 1, or None, received "
        params = pair()
        with refused(ValueError, words, keeps=params):
            made(params, weight_average=value)
        opt = made(params, weight_average=0.5)
        with refused(ValueError, words, keeps=opt):
            opt.weight_average = value

    @pytest.mark.parametrize("value", ["0.9", True, [0.9], lambda t: 0.9], ids=told)
    def test_no_number(self, made, value):
        words = "weight_average: expected a number from 0 to below 1, or None, received "
        with refused(TypeError, words):
            made(pair(), weight_average=value)
        opt = made(pair())
        with refused(TypeError, words, keeps=opt):
            opt.weight_average = value

    def test_rows(self, made):
        params = {"e": np.ones((5, 2)), "b": np.ones(2)}
        opt = made(params, weight_average=0.5)
        given = {"e": tw.RowGrad([0, 3], np.ones((2, 2))), "b": np.ones(2)}
        words = 'grads["e"]: expected an array, received a RowGrad', "thalweg.Joint"
        with refused(ValueError, *words, keeps=[params, opt]):
            opt.step(given)
        opt.weight_average = None
        assert opt.step(given)
        opt.weight_average = 0.5
        with refused(ValueError, *words, keeps=[params, opt]):
            opt.step(given)

    def test_shared_memory(self, made):
        """An average is written by the step: it is no gradient, no param and no state."""
        params = pair()
        opt = made(params, weight_average=0.5)
        opt.step(grads())
        words = "share memory", 'averages["a"]'
        with refused(ValueError, *words, keeps=[params, opt]):
            opt.step({"a": opt.averages["a"], "b": np.ones((2, 3))})
        with refused(ValueError, "share memory"):
            tw.Joint(one=opt, two=tw.SGD(opt.averages["a"], 0.1))

    def test_an_option_of_a_group(self, made):
        params = [{"params": np.ones(2), "weight_average": 0.5}]
        with refused(TypeError, "weight_average"):
            made(params)
        opt = made(np.ones(2), weight_average=0.5)
        with refused(KeyError, "weight_average", keeps=opt):
            opt.param_groups[0]["weight_average"] = 0.9


@pytest.mark.parametrize("made", RULES)
class TestCopies:
    def test_copies(self, made):
        params = pair()
        opt = made(params, weight_average=0.5)
        for _ in range(3):
            opt.step(grads())
        others = [copy.deepcopy((params, opt)), pickle.loads(pickle.dumps((params, opt)))]
        for w, other in others:
            assert other.weight_average == 0.5
            assert same(other.averages, averages(opt))
            assert not np.shares_memory(other.averages["a"], opt.averages["a"])
            for each in (w, params):
                (other if each is w else copy.deepcopy(opt)).step(grads())
        opt.step(grads())
        for _, other in others:
            assert same(other.averages, averages(opt))

    def test_not_begun(self, made):
        w, other = copy.deepcopy((params := pair(), made(params, weight_average=0.5)))
        w["a"][:] = 8.0
        other.step(grads())
        assert same(other.averages, w)

    def test_bound(self, made):
        params, buffers = pair(), grads()
        opt = made(params, weight_average=0.5, grads=buffers, zero_grads=True)
        assert opt.step()
        assert not buffers["a"].any()
        before = params["a"].copy()
        buffers["a"] += 1.0
        assert opt.step()
        assert (opt.averages["a"] == 0.5 * before + 0.5 * params["a"]).all()

    def test_find_rate_puts_them_back(self, made):
        params = pair()
        opt = made(params, weight_average=0.5)
        for _ in range(2):
            opt.step(grads())
        kept = averages(opt)

        def loss_and_grads():
            return sum(float((w * w).sum()) for w in params.values()), {
                name: 2 * w for name, w in params.items()
            }

        tw.find_rate(opt, loss_and_grads)
        assert same(opt.averages, kept)
        assert opt._averages_started == [True, True]


def test_read_beside_steps():
    """Another thread may ask for them at any time, steps and the first look at a param included."""
    n = 300_000  # long enough for a step, and a copy, to let others run
    w = {"a": np.zeros(n, np.float32), "b": np.zeros(3)}
    g = {"a": np.ones(n, np.float32), "b": None}
    opt = tw.SGD(w, 0.1, weight_average=0.5)
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            found = opt.averages
            seen.append([repr(found), *(found.get(name) is None for name in w)])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for t in range(40):
            opt.weight_average = None if t % 4 == 0 else 0.5
            opt.step(g)
            if t % 4 == 1:  # the first one of these averages
                assert (opt.averages["a"] == w["a"]).all()
            opt.weight_average = 0.5
    finally:
        stop.set()
        for reader in readers:
            reader.join(60)
    assert not any(reader.is_alive() for reader in readers)
    assert opt.step_count == 40
