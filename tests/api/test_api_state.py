"""State, counters, pickling, copies, and the life of an optimizer."""

import copy
import gc
import pickle
import threading
import warnings
import weakref

import numpy as np
import pytest

import thalweg as tw
from refusing import RULES, frozen, refused

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def slot_of(opt):
    return {tw.SGD: "velocity", tw.Adagrad: "accumulator"}[type(opt)]


@pytest.mark.parametrize("rule", RULES)
def test_state_is_a_live_view_in_the_params_form(rule):
    base = np.ones((4, 6), np.float32)
    params = {"a": base.T, "b": np.ones((2, 0)), "c": np.array(1.0), "d": np.asfortranarray(base)}
    opt = rule(params)
    states = {name: opt.state[name][slot_of(opt)] for name in params}
    for name, w in params.items():
        assert (states[name].shape, states[name].dtype) == (w.shape, w.dtype)
        assert set(opt.state[name]) == {slot_of(opt), "step"}
    assert list(opt.state) == list(params)
    opt.step({name: np.full(w.shape, 2.0) for name, w in params.items()})
    for state in states.values():
        assert (state == (2 if slot_of(opt) == "velocity" else 4)).all()
    states["c"][...] = 5
    assert opt.state["c"][slot_of(opt)] == 5
    assert repr(opt.state) == "State('a', 'b', 'c', 'd')"


@pytest.mark.parametrize("rule", RULES)
def test_state_cannot_be_rebound(rule):
    opt = rule({"a": np.ones(2)})
    slot = slot_of(opt)
    with refused(TypeError, "item assignment", keeps=opt):
        opt.state["a"][slot] = np.ones(2)
    with refused(TypeError, "item assignment", keeps=opt):
        opt.state["a"] = {}
    with refused(AttributeError, keeps=opt):
        opt.state = {}
    with refused(KeyError, "z", keeps=opt):
        opt.state["z"]
    with refused(AttributeError, keeps=opt):
        opt.step_count = 3


def test_a_view_of_the_state_in_another_form_leaves_the_state_alone():
    opt = tw.SGD(np.ones((300, 200)), 0.5, 0.5)
    view = opt.state[""]["velocity"]
    view.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        view.shape = (60000,)
    opt.step(np.ones((200, 300)).T)
    opt.step(np.ones((300, 200), np.float32))
    assert opt.state[""]["velocity"].shape == (300, 200)
    assert (view == 1.5).all()


def test_state_without_velocity():
    opt = tw.SGD([np.ones(2)])
    assert opt.state["0"] == {"step": 0}
    opt.step([np.ones(2)])
    assert opt.state["0"] == {"step": 1}


def test_accumulator_starts_where_it_is_told():
    opt = tw.Adagrad([np.ones((2, 3)), np.ones(2, np.float32)], initial_accumulator_value=0.1)
    assert (opt.state["0"]["accumulator"] == 0.1).all()
    assert (opt.state["1"]["accumulator"] == np.float32(0.1)).all()


def test_state_outlives_the_optimizer():
    state = tw.SGD(np.ones(1000), 0.5, 0.5).state[""]["velocity"]
    gc.collect()
    assert (state == 0).all()
    state[...] = 1


def steps(opt, count, rng):
    for _ in range(count):
        opt.step({name: rng.normal(size=w.shape) for name, w in opt._arrays.items()})


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("rule", RULES)
def test_pickle_goes_on_with_the_same_bits(rule, protocol):
    rng = np.random.default_rng(0)
    params = {"W": rng.normal(size=(5, 4)), "b": rng.normal(size=4).astype(np.float32)}
    params["T"] = rng.normal(size=(3, 2)).T
    opt = rule(params)
    opt.param_groups[0]["weight_decay"] = 0.25
    steps(opt, 3, rng)
    opt.step({"W": None, "b": np.ones(4), "T": None})
    again_params, again = pickle.loads(pickle.dumps((params, opt), protocol))
    assert all(again._arrays[name] is w for name, w in again_params.items())
    assert not any(np.shares_memory(again_params[name], w) for name, w in params.items())
    assert again.param_groups == opt.param_groups
    for _ in range(2):
        assert again.step_count == opt.step_count
        assert {k: v["step"] for k, v in again.state.items()} == {
            k: v["step"] for k, v in opt.state.items()
        }
        for name, w in params.items():
            assert again_params[name].tobytes() == w.tobytes()
            slots = [o.state[name][slot_of(o)].tobytes() for o in (opt, again)]
            assert slots[0] == slots[1]
        steps(opt, 5, np.random.default_rng(1))
        steps(again, 5, np.random.default_rng(1))


def schedule(t):
    return 0.5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickle_of_groups_schedules_and_bound_gradients(protocol):
    groups = [
        {"params": {"a": np.ones(2), 3: (np.ones(3),)}, "lr": schedule, "nesterov": True},
        {"params": np.array(1.0), "form": "classic"},
    ]
    grads = [{"a": np.full(2, 2.0), 3: [None]}, 0.5]
    opt = tw.SGD(groups, 0.25, 0.9, grads=grads)
    opt.step()
    again = pickle.loads(pickle.dumps(opt, protocol))
    assert list(again.state) == list(opt.state) == ["0.a", "0.3.0", "1"]
    assert again.param_groups[0]["lr"] is schedule
    assert [dict(group) for group in again.param_groups] == [dict(g) for g in opt.param_groups]
    assert again.step()
    assert opt.step()
    for name, w in opt._arrays.items():
        assert again._arrays[name].tobytes() == w.tobytes()
    assert [s["step"] for s in again.state.values()] == [2, 0, 2]


def test_pickle_of_a_schedule_that_cannot_be_pickled():
    opt = tw.SGD(np.ones(2), lambda t: 0.5)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(opt)


@pytest.mark.parametrize("rule", RULES)
def test_deepcopy_keeps_the_container_and_the_optimizer_together(rule):
    params = {"layers": [{"W": np.ones((2, 3))}], "b": np.ones(2)}
    grads = {"layers": [{"W": np.ones((2, 3))}], "b": np.ones(2)}
    opt = rule(params, grads=grads)
    opt.step()
    before = frozen((params, opt))
    p, g, o = copy.deepcopy((params, grads, opt))
    assert o.param_groups[0]["params"]["layers"][0]["W"] is p["layers"][0]["W"]
    assert o.step_count == 1
    g["b"][:] = 5
    assert o.step()
    assert frozen((params, opt)) == before
    assert opt.step()
    assert (p["b"] != params["b"]).all()
    assert (p["layers"][0]["W"] == params["layers"][0]["W"]).all()


class Plateau:
    def __call__(self, t):
        return 0.5


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copied_schedule_holds_the_copy_of_its_optimizer(copied):
    opt = tw.SGD({"w": np.ones(2)}, momentum=0.5)
    opt.lr = Plateau()
    opt.lr.held = opt
    params, again = copied((opt.param_groups[0]["params"], opt))
    assert again.lr.held is again
    assert again.param_groups[0]["params"]["w"] is params["w"]
    assert again.step({"w": np.ones(2)})
    assert (params["w"] == 0.5).all()


def test_copy_is_refused():
    opt = tw.SGD(np.ones(2))
    with refused(TypeError, "two optimizers cannot share one state", "deepcopy((params, opt))"):
        copy.copy(opt)


class Named(tw.SGD):
    """A subclass with a signature and attributes of its own."""

    def __init__(self, name, width):
        super().__init__({"W": np.ones(width)}, 0.5, 0.5)
        self.name = name
        self.notes = {"seen": [self.param_groups[0]["params"]["W"]]}

    def step(self, *args, **kwargs):
        self.last = super().step(*args, **kwargs)
        return self.last


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_subclasses_keep_their_attributes(protocol):
    opt = Named("x", 3)
    opt.step({"W": np.ones(3)})
    for again in (pickle.loads(pickle.dumps(opt, protocol)), copy.deepcopy(opt)):
        assert type(again) is Named
        assert (again.name, again.last) == ("x", True)
        assert again.notes["seen"][0] is again.param_groups[0]["params"]["W"]
        assert again.step({"W": np.ones(3)})
        assert (again.param_groups[0]["params"]["W"] == -0.25).all()


def test_init_runs_once():
    w = np.ones(2)
    opt = tw.SGD(w)
    with refused(TypeError, "__init__: this optimizer holds arrays already; make a new", keeps=opt):
        opt.__init__([np.ones(2), np.ones(3)])
    opt = tw.SGD.__new__(tw.SGD)
    with refused(ValueError, "lr: ", keeps=w):
        opt.__init__(w, -1)
    opt.__init__(w, 0.5)
    assert opt.step(np.ones(2))


def test_the_base_class_is_no_rule():
    with pytest.raises(TypeError, match="expected SGD or Adagrad"):
        tw.SGD.__base__(np.ones(2), {})


def cycle(link):
    class Holder:
        pass

    holder, w = Holder(), np.ones(4)
    if link == "schedule":
        opt = tw.SGD(w, lambda t: 0.5 if holder else 0.0)
    elif link == "param":
        w = w.view(type("Array", (np.ndarray,), {}))
        w.holder = holder
        opt = tw.SGD([w], 0.5, 0.9)
    elif link == "gradient":
        g = w.view(type("Array", (np.ndarray,), {})).copy()
        g.holder = holder
        opt = tw.Adagrad([w], grads=[g])
    elif link == "key":
        key = type("Key", (str,), {})("a")
        key.holder = holder
        opt = tw.SGD({key: w})
    else:
        opt = type("Mine", (tw.SGD,), {})(w)
        opt.holder = holder
    holder.opt = opt
    return weakref.ref(holder), weakref.ref(w), opt


@pytest.mark.parametrize("link", ["schedule", "param", "gradient", "key", "attribute"])
def test_an_optimizer_in_a_reference_cycle_is_collected(link):
    gc.collect()
    holder, w, opt = cycle(link)
    opt.lr = opt.lr  # set again, and so held once more
    assert holder() is not None
    del opt
    gc.collect()
    assert holder() is None
    assert w() is None


def test_gradients_are_let_go_after_the_step():
    w, g = np.ones(4), np.ones(4)
    opt = tw.SGD([w, np.ones(2)], 0.5)
    ref = weakref.ref(g)
    opt.step([g, None])
    with pytest.raises(ValueError):
        opt.step([g, np.ones(3)])
    del g
    assert ref() is None


def test_two_threads_that_step_one_optimizer_take_turns():
    w, size, count = np.zeros(40_000), 40_000, 50
    seen = []
    opt = tw.SGD(w, lambda t: seen.append(t) or 1.0)
    threads = [
        threading.Thread(target=lambda: [opt.step(np.full(size, -1.0)) for _ in range(count)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opt.step_count == opt.state[""]["step"] == 4 * count
    assert (w == 4 * count).all()
    assert seen == list(range(4 * count))


def test_a_thread_waits_while_another_is_in_a_schedule():
    entered, go = threading.Event(), threading.Event()
    order = []

    def slow(t):
        if t == 0:
            entered.set()
            go.wait()
        order.append(t)
        return 1.0

    opt = tw.SGD(np.zeros(2), slow)
    threads = [threading.Thread(target=opt.step, args=(np.ones(2),)) for _ in range(2)]
    threads[0].start()
    entered.wait()
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join()
    assert order == [0, 1]
    assert (opt._arrays[""] == -2).all()
