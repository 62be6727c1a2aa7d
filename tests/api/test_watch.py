"""An array put in another's place is found; what is none; what is let go; what a copy watches."""

import collections
import copy
import gc
import pickle
import sys
import weakref

import numpy as np
import pytest

import thalweg as tw
from refusing import refused, rows


def ones(tree):
    """Gradients in the structure of the params."""
    if isinstance(tree, dict):
        return {key: ones(child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [ones(child) for child in tree]
    return np.ones(np.shape(tree))


def steps_until_found(opt, grads, most=50):
    """How many steps pass before one is refused; that one is included. None: none was."""
    for count in range(1, most + 1):
        try:
            opt.step(grads)
        except RuntimeError:
            return count
    return None


def said(step, most):
    """What the refusal says that comes within so many steps."""
    for _ in range(most):
        try:
            step()
        except RuntimeError as error:
            return str(error)
    return ""


def flat():
    return {"W": np.ones((2, 3)), "b": np.ones(3), "c": np.ones(())}


def nested():
    return {"layers": [{"W": np.ones(3), "b": np.ones(2)} for _ in range(3)], 7: (np.ones(1), [])}


def put(*path):
    """Replaces the array at the end of the path by what arithmetic makes of it."""

    def change(tree):
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = np.clip(tree[path[-1]], -1, 1)

    return change


REPLACED = {
    "dict": (flat, put("W"), 'params["W"]', "opt.params['W']"),
    "the last": (flat, put("b"), 'params["b"]', "opt.params['b']"),
    "0-d becomes a number": (flat, put("c"), 'params["c"]', "opt.params['c']"),
    "list": (lambda: [np.ones(2), np.ones(3)], put(1), 'params["1"]', "opt.params[1]"),
    "nested": (
        nested,
        put("layers", 1, "b"),
        'params["layers.1.b"]',
        "opt.params['layers'][1]['b']",
    ),
    "in a tuple": (
        lambda: ({"a": np.ones(2)}, [np.ones(2)]),
        put(1, 0),
        'params["1.0"]',
        "opt.params[1][0]",
    ),
    "a dict for a dict": (
        nested,
        lambda p: p["layers"].__setitem__(0, {"W": np.ones(3), "b": p["layers"][0]["b"]}),
        'params["layers.0.W"]',
        "opt.params['layers'][0]['W']",
    ),
    "a shape of its own": (flat, lambda p: p.update(W=np.ones(7)), 'params["W"]', "shape (7,)"),
    "another dtype": (flat, lambda p: p.update(b=p["b"].astype("f4")), 'params["b"]'),
    "integers": (flat, lambda p: p.update(b=np.zeros(3, int)), 'params["b"]'),
    "a float": (flat, lambda p: p.update(c=0.5), 'params["c"]'),
    "two swapped": (
        lambda: [np.ones(2), np.zeros(2)],
        lambda p: p.reverse(),
        'params["0"]',
    ),
    "put in again": (
        flat,
        lambda p: p.update(W=(p.pop("W") + 1)),
        'params["W"]',
    ),
}


@pytest.mark.parametrize(
    ("made", "change", "words"), rows({k: (a, b, c) for k, (a, b, *c) in REPLACED.items()})
)
def test_a_replaced_array_is_found(made, change, words):
    """Within as many steps as there are arrays; and then at every step, with nothing changed."""
    for before in range(4):
        params = made()
        opt, grads = tw.SGD(params, 0.1, 0.9), ones(params)
        count = len(opt.state)
        for _ in range(before):
            assert opt.step(grads)
        held = list(opt._arrays.values())
        change(params)
        assert steps_until_found(opt, grads) <= count
        for _ in range(2):
            with refused(RuntimeError, *words, "watch=False", "[...] = new", keeps=[opt, held]):
                opt.step(grads)


@pytest.mark.parametrize("rule", [tw.SGD, tw.Adagrad])
def test_the_cure_works(rule):
    params = flat()
    opt, grads = rule(params, 0.1), ones(flat())
    held = dict(params)
    params["W"] = new = np.full((2, 3), 5.0)
    cure = said(lambda: opt.step(grads), 3).split("instead, ")[1].split(",")[0]
    exec(cure, {"opt": opt, "new": new})
    params["W"] = held["W"]
    for _ in range(5):
        assert opt.step(grads)
    assert (params["W"] < 5).all()
    assert (params["W"] > 3).all()


def test_watch_false():
    params = flat()
    opt, grads = tw.SGD(params, 0.1, watch=False), ones(flat())
    put("W")(params)
    assert steps_until_found(opt, grads) is None
    other = pickle.loads(pickle.dumps(opt))
    given = other.params
    put("W")(given)
    assert steps_until_found(other, grads) is None
    for value in (None, 1, "no", []):
        with refused(TypeError, "watch: expected True or False, received", repr(value)):
            tw.Adagrad(flat(), watch=value)
    assert tw.SGD(flat(), watch=np.bool_(True)).step(grads)


def test_a_list_used_again_for_the_next_layer():
    buffer, opts = [None, None], []
    for _ in range(3):
        buffer[:] = np.ones(2), np.ones(3)
        opts.append(tw.SGD(buffer, watch=False))
    grads = [np.ones(2), np.ones(3)]
    assert all(opt.step(grads) for opt in opts for _ in range(5))


class Odd:
    """Anything but an array."""


NO_REPLACEMENT = {
    "the same array": lambda p: p.update(W=p["W"]),
    "a view": lambda p: p.update(W=p["W"][:]),
    "a part": lambda p: p.update(W=p["W"][:1]),
    "reshaped": lambda p: p.update(W=p["W"].reshape(3, 2)),
    "transposed": lambda p: p.update(W=p["W"].T),
    "turned round": lambda p: p.update(W=p["W"][::-1, ::-1]),
    "other bytes": lambda p: p.update(W=p["W"].view(np.int64)),
    "None": lambda p: p.update(W=None),
    "no key": lambda p: p.pop("W"),
    "no keys": lambda p: p.clear(),
    "one more": lambda p: p.update(new=np.ones(3)),
    "another order": lambda p: p.update(W=p.pop("W")),
    "no array": lambda p: p.update(W=Odd()),
    "a dict": lambda p: p.update(W={}),
    "a string": lambda p: p.update(W="W"),
    "what has changed": lambda p: p["W"].fill(9),
}


@pytest.mark.parametrize("change", NO_REPLACEMENT.values(), ids=NO_REPLACEMENT)
def test_what_is_no_replacement(change):
    params = flat()
    opt, grads = tw.SGD(params, 0.1), ones(flat())
    opt.step(grads)
    change(params)
    assert steps_until_found(opt, grads) is None
    held = opt.params["b"]
    params["b"] = held + 1  # the others are looked at all the same
    assert steps_until_found(opt, grads) <= 3


@pytest.mark.parametrize("change", [lambda p: p.pop(), lambda p: p.clear(), lambda p: p.append(1)])
def test_lists_that_change_their_length(change):
    params = [np.ones(2), np.ones(2)]
    opt, grads = tw.SGD(params, 0.1), ones([np.ones(2)] * 2)
    opt.step(grads)
    change(params)
    assert steps_until_found(opt, grads) is None
    params[:] = np.ones(2), *params[1:]
    assert steps_until_found(opt, grads) <= 2


def test_an_empty_array_has_nothing_to_lose():
    params = {"e": np.ones((0, 3)), "w": np.ones(2)}
    opt, grads = tw.SGD(params, 0.1), ones(params)
    params["e"] = np.ones((0, 3))
    assert steps_until_found(opt, grads) is None
    params["w"] = np.ones(0)
    assert 'params["w"]' in said(lambda: opt.step(grads), 2)


def test_subclasses_are_not_looked_into():
    """Their own code would run."""

    class Told(dict):
        def __getitem__(self, key):
            asked.append(key)
            return super().__getitem__(key)

    asked = []
    told, ordered = Told(w=np.ones(2)), collections.OrderedDict(w=np.ones(2))
    params = {"told": told, "ordered": ordered, "plain": {"w": np.ones(2)}}
    opt = tw.SGD(params, 0.1)
    held = opt.params
    grads = ones(held)
    asked.clear()
    told["w"], ordered["w"] = np.zeros(2), np.zeros(2)
    assert steps_until_found(opt, grads) is None
    params["plain"]["w"] = np.zeros(2)
    assert steps_until_found(opt, grads) <= 3
    assert asked == []


def test_a_key_that_compares_itself():
    class Key(str):
        def __eq__(self, other):
            params.clear()
            opt.params  # noqa: B018
            raise KeyError

        __hash__ = str.__hash__

    params = {"a": {"k": np.ones(2)}, "b": np.ones(2)}
    opt, grads = tw.SGD(params, 0.1), ones(params)
    inner = params["a"]
    inner.clear()
    inner[Key("k")] = np.zeros(2)
    assert steps_until_found(opt, grads) is None


def test_bound_gradients():
    params, grads = nested(), ones(nested())
    opt = tw.SGD(params, 0.1, grads=grads)
    count = len(opt.state)
    for _ in range(3):
        assert opt.step()
    grads["layers"][2]["b"] = np.ones(2)
    assert opt.step(ones(nested()))  # does not read the bound ones
    message = said(opt.step, count)
    for words in ('grads["layers.2.b"]', "grads['layers'][2]['b'][...] = new", "watch=False"):
        assert words in message
    with refused(RuntimeError, 'grads["layers.2.b"]', keeps=[opt, params]):
        opt.step()


@pytest.mark.parametrize("watch", [True, False])
def test_bound_rows_and_numbers(watch):
    def row_grad():
        return tw.RowGrad(np.array([0]), np.ones((1, 2)))

    for bound, other in [
        (row_grad(), row_grad()),
        (row_grad(), np.ones((3, 2))),
        (np.ones((3, 2)), row_grad()),
    ]:
        grads = [bound, 0.5]
        opt = tw.SGD([np.ones((3, 2)), np.ones(())], 0.1, grads=grads, watch=watch)
        assert opt.step()
        grads[0] = other
        assert steps_until_found_bound(opt) == watch
        grads[:] = bound, 0.25
        assert steps_until_found_bound(opt) == watch


def steps_until_found_bound(opt):
    for _ in range(2):
        try:
            opt.step()
        except RuntimeError:
            return True
    return False


def test_groups_and_add_group():
    body, head, more = flat(), [np.ones(2)], {"x": [np.ones(2)]}
    opt = tw.SGD([{"params": body}, {"match": "*.b", "lr": 0.5}, {"params": head}], 0.1)
    opt.add_group({"params": more})
    grads = [ones(flat()), ones(head), ones(more)]
    assert steps_until_found(opt, grads) is None
    for tree, key, words in (
        (body, "b", ['params["0.b"]', "opt.params[0]['b']"]),
        (head, 0, ['params["1.0"]', "opt.params[1][0]"]),
        (more["x"], 0, ['params["2.x.0"]', "opt.params[2]['x'][0]"]),
    ):
        held, tree[key] = tree[key], np.zeros_like(tree[key])
        assert steps_until_found(opt, grads) <= len(opt.state)
        with refused(RuntimeError, *words, keeps=opt):
            opt.step(grads)
        tree[key] = held
        assert opt.step(grads)


def test_a_container_that_nobody_else_holds_is_let_go():
    class Layer:
        def __init__(self):
            self.params = {"W": np.ones(2), "b": np.ones(1)}

    layers = [Layer() for _ in range(3)]
    opt = tw.SGD([layer.params for layer in layers], 0.1)
    grads = [ones(layer.params) for layer in layers]
    assert steps_until_found(opt, grads) is None
    before = [sys.getrefcount(layer.params) for layer in layers]
    put("b")(layers[1].params)
    message = said(lambda: opt.step(grads), 6)
    assert message.startswith('params["1.b"]: ')
    assert "opt.params[1]['b'][...] = new" in message
    layers[1].params = None  # its dict and what was put there
    assert steps_until_found(opt, grads) is None
    assert [sys.getrefcount(layer.params) for layer in layers][::2] == before[::2]
    layers.clear()
    assert steps_until_found(opt, grads) is None
    assert not opt._is_watching


def test_what_stands_beside_the_arrays_is_let_go_too():
    params = flat()
    params_too = dict(params, big=(big := Odd()))
    seen = weakref.ref(big)
    params_too.pop("big")
    opt = tw.SGD(params_too, 0.1)
    params_too["big"] = big
    del params_too, big
    for _ in range(3):
        opt.step(ones(params))
    assert seen() is None


def test_a_container_that_holds_the_optimizer_is_garbage_with_it():
    params = flat()
    opt = tw.SGD(params, 0.1)
    params["opt"] = opt
    seen = weakref.ref(opt)
    del params, opt
    gc.collect()
    assert seen() is None


def test_copies_together():
    """copy.deepcopy notes the copies of containers it has made; a pickle has none of it."""
    for make in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        params, opt = make((p := flat(), tw.SGD(p, 0.1)))
        assert all(opt.params[name] is params[name] for name in params)
        assert steps_until_found(opt, ones(flat())) is None
        put("W")(params)
        found = steps_until_found(opt, ones(flat()))
        assert found <= 3 if make is copy.deepcopy else found is None


def test_a_copy_alone_watches_what_params_gives():
    for made in (flat, nested):
        opt = tw.SGD(made(), 0.1)
        for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
            grads = ones(made())
            assert not other._is_watching
            params = other.params
            assert steps_until_found(other, grads) is None
            put(*("layers", 0, "W") if made is nested else "W")(params)
            assert steps_until_found(other, grads) <= len(opt.state)
            del params
            assert steps_until_found(other, grads) is None


def test_a_copy_of_groups_and_bound_gradients():
    params, grads = flat(), ones(flat())
    opt = tw.SGD([{"params": params}], 0.1, grads=[grads])
    for _ in range(4):
        opt.step()
    params, grads, opt = copy.deepcopy((params, grads, opt))
    assert opt.step()
    held, grads["b"] = grads["b"], np.ones(3)
    assert steps_until_found_bound(opt) or steps_until_found_bound(opt)
    grads["b"] = held
    assert opt.step()
    put("b")(params)
    assert steps_until_found_bound(opt) or steps_until_found_bound(opt)


def test_the_pickle_does_not_hold_the_container():
    params = flat()
    opt = tw.SGD(params, 0.1)
    size = len(pickle.dumps(opt))
    params["big"] = np.ones(100_000)
    assert len(pickle.dumps(opt)) == size
    params["not to be pickled"] = lambda: None
    assert pickle.loads(pickle.dumps(opt)).step(ones(flat()))
    assert copy.deepcopy(opt).step(ones(flat()))


def test_a_swap_between_looks_is_found(level):
    """A list at the address of one that is gone, with other arrays."""
    params = {"l": [np.ones(2), np.ones(2)]}
    opt, grads = tw.SGD(params, 0.1), ones({"l": [np.ones(2)] * 2})
    for _ in range(20):
        arrays = list(params["l"])
        params["l"] = None
        params["l"] = [np.ones(2), arrays[1]]
        assert steps_until_found(opt, grads) <= 2
        params["l"] = None
        params["l"] = arrays
        assert steps_until_found(opt, grads) is None


def test_the_core_is_not_brought_down():
    made = tw.SGD(flat(), 0.1)
    for other in (tw.SGD(nested(), 0.1), tw.SGD([np.ones(1), [np.ones(2)], np.ones(2)], 0.1)):
        for thing in (None, 1, [], {}, [[]], {"W": 1}, nested(), flat(), (flat(),), object()):
            other._watch(thing, thing)
            made._watch_copies(other, {id(thing): thing, id(made): None})
            with pytest.raises(TypeError):
                made._watch_copies(thing, {})
            try:
                for _ in range(9):
                    other.step(other.params)
            except (RuntimeError, ValueError, IndexError):
                pass
    assert made.step(ones(flat()))
