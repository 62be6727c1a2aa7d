"""Partial steps: few of many arrays, whatever came before, step as in a full step."""

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits

COUNT = 40


def made(rule, **options):
    rng = np.random.default_rng(0)
    params = {f"w{i}": rng.standard_normal(3 + i) for i in range(COUNT)}
    params["layers"] = [
        {"W": rng.standard_normal((3, 2)), "b": rng.standard_normal(2)} for _ in range(2)
    ]
    return params, rule(params, **options)


def grads_of(params, scale=0.5):
    if isinstance(params, dict):
        return {key: grads_of(value, scale) for key, value in params.items()}
    if isinstance(params, list):
        return [grads_of(value, scale) for value in params]
    return np.full_like(params, scale)


def with_none(grads, kept):
    return {
        key: value if key in kept else [{"W": None, "b": None}] * 2 if key == "layers" else None
        for key, value in grads.items()
    }


RULES = [
    pytest.param(tw.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, id="sgd"),
    pytest.param(tw.Adagrad, {"lr": 0.1, "lr_decay": 0.1}, id="adagrad"),
    pytest.param(tw.SGD, {"lr": 0.1, "momentum": 0.9, "max_norm": 0.3}, id="norm"),
    pytest.param(tw.Adagrad, {"max_norm": 0.3, "on_nonfinite": "raise"}, id="judged"),
]


@pytest.mark.parametrize(("rule", "options"), RULES)
def test_few_of_many_are_stepped_as_with_none_for_the_others(rule, options):
    """In an order of its own, which is not that of the norm; between steps of all."""
    params, opt = made(rule, **options)
    twins, full = made(rule, **options)
    grads = grads_of(params)
    for kept in (["w7"], ["layers", "w30", "w2"], list(grads), ["w39", "w0"], [], ["w7"]):
        few = {key: grads[key] for key in kept}
        for _ in range(2):
            assert opt.step(few, partial=True)
            assert full.step(with_none(grads, kept))
        assert opt.step(grads)
        assert full.step(grads)
        assert opt.grad_norm == full.grad_norm
    for name in opt.state:
        assert opt.state[name]["step"] == full.state[name]["step"]
    for key, value in params.items():
        if key != "layers":
            assert_same_bits(value, twins[key])
    assert_same_bits(params["layers"][1]["W"], twins["layers"][1]["W"])


@pytest.mark.parametrize("threads", [1, 2])
def test_large_ones_among_many_on_threads(threads):
    before = tw.get_num_threads()
    tw.set_num_threads(threads)
    try:
        params = {i: np.zeros(200_000 if i % 8 == 0 else 5, np.float32) for i in range(40)}
        opt = tw.Adagrad(params, max_norm=1e9)
        opt.step({i: np.ones_like(params[i]) for i in (32, 0, 3)}, partial=True)
    finally:
        tw.set_num_threads(before)
    assert opt.grad_norm == np.sqrt(400_005.0)
    assert [i for i, w in params.items() if w.any()] == [0, 3, 32]
    assert [opt.state[name]["step"] for name in opt.state] == [int(i in (0, 3, 32)) for i in params]


def test_what_does_not_take_part_is_not_looked_at_but_by_a_full_step():
    params, opt = made(tw.SGD, lr=0.1)
    grads = grads_of(params)
    params["w5"].setflags(write=False)
    assert opt.step({"w6": grads["w6"]}, partial=True)
    for bad in ({"w5": grads["w5"]}, {"w6": grads["w6"], "w5": grads["w5"]}):
        with pytest.raises(RuntimeError, match=r'params\["w5"\].*read-only'):
            opt.step(bad, partial=True)
    with pytest.raises(RuntimeError, match=r'params\["w5"\].*read-only'):
        opt.step(grads)
    assert opt.step_count == 1
    assert opt.state["w6"]["step"] == 1


def test_refused_partial_steps_leave_no_trace():
    params, opt = made(tw.Adagrad, on_nonfinite="raise")
    before = {key: value.copy() for key, value in params.items() if key != "layers"}
    grads = grads_of(params)
    nan = np.full_like(params["w2"], np.nan)
    for error, few, words in (
        (ValueError, {"w3": grads["w3"], "w4": grads["w5"]}, r'grads\["w4"\]: expected shape'),
        (ValueError, {"w3": grads["w3"], "x": grads["w5"]}, "unknown key 'x'"),
        (ValueError, {"w3": grads["w3"], 3: grads["w5"]}, "unknown key 3"),
        (ValueError, {"w3": grads["w3"], "w4": params["w4"]}, "share memory"),
        (TypeError, {"w3": grads["w3"], "layers": {}}, r'grads\["layers"\]: expected a list'),
        (FloatingPointError, {"w3": grads["w3"], "w2": nan}, r'grads\["w2"\]: .*5 NaN'),
    ):
        with pytest.raises(error, match=words):
            opt.step(few, partial=True)
        for key, value in before.items():
            assert_same_bits(params[key], value)
        assert {opt.state[name]["step"] for name in opt.state} == {0}
    opt.step({"w9": grads["w9"]}, partial=True)
    changed = [key for key, value in before.items() if not np.array_equal(params[key], value)]
    assert changed == ["w9"]


class Equal(str):
    """Equal to another key than the one it is stored under."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        return True


def test_keys_that_say_they_are_equal():
    params, opt = made(tw.SGD, lr=1.0, momentum=0.5)
    before = params["w8"].copy()
    alike = {Equal("w8"): np.ones(11)}
    opt.step(alike, partial=True)
    assert_same_bits(params["w8"], before - 1.0)
    assert opt.state["w8"]["step"] == 1


def test_frozen_ones_of_few():
    groups = [{"params": {i: np.zeros(2) for i in range(9)}} for _ in range(2)]
    opt = tw.SGD([groups[0], groups[1] | {"frozen": True}], lr=1.0)
    opt.step([{3: np.ones(2)}, {4: np.ones(2)}], partial=True)
    assert [opt.state[name]["step"] for name in opt.state] == [int(i == 3) for i in range(18)]


def test_a_group_added_between_partial_steps():
    opt = tw.SGD([{"params": {i: np.zeros(2) for i in range(9)}}], lr=1.0)
    opt.step([{3: np.ones(2)}], partial=True)
    opt.add_group({"params": {"new": np.zeros(1)}})
    assert opt.state["1.new"]["step"] == 0
    opt.step([{5: np.ones(2)}, {"new": np.ones(1)}], partial=True)
    taken = {name: opt.state[name]["step"] for name in opt.state}
    assert {name for name, steps in taken.items() if steps} == {"0.3", "0.5", "1.new"}
