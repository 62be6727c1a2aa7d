"""What params and gradients may look like, and how the arrays are called."""

from collections import ChainMap, OrderedDict, defaultdict, namedtuple
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest

import thalweg as tw

Layer = namedtuple("Layer", ["W", "b"])


class View(Mapping):
    """A mapping that is no dict and gives new arrays at every look."""

    def __init__(self, items):
        self._items = items

    def __getitem__(self, key):
        return self._items[key]

    def __iter__(self):
        return iter(self._items)

    def __len__(self):
        return len(self._items)


class FreshView(View):
    def __getitem__(self, key):
        return self._items[key].copy()


def A(*shape):
    return np.ones(shape)


# id: params, the names of its arrays in order
FORMS = {
    "lone array": (lambda: A(3), [""]),
    "0-d": (lambda: A(), [""]),
    "list": (lambda: [A(3), A(2)], ["0", "1"]),
    "tuple": (lambda: (A(3), A(2)), ["0", "1"]),
    "dict": (lambda: {"W1": A(3, 2), "b1": A(2)}, ["W1", "b1"]),
    "int keys": (lambda: {7: A(3), 0: A(2)}, ["7", "0"]),
    "nested": (
        lambda: {"layers": [{"W": A(3), "b": A()}, {"W": A(2, 2)}], "out": (A(1),)},
        ["layers.0.W", "layers.0.b", "layers.1.W", "out.0"],
    ),
    "deep": (lambda: [[[[{"x": [A(2)]}]]]], ["0.0.0.0.x.0"]),
    "namedtuple": (lambda: Layer(A(3), A(2)), ["0", "1"]),
    "ordered": (lambda: OrderedDict(b=A(3), a=A(2)), ["b", "a"]),
    "proxy": (lambda: MappingProxyType({"a": A(3)}), ["a"]),
    "chain": (lambda: ChainMap({"a": A(3)}, {"b": A(2)}), ["b", "a"]),
    "mapping": (lambda: View({"a": View({1: A(3)})}), ["a.1"]),
    "empty arrays": (lambda: {"a": A(0), "b": A(3, 0)}, ["a", "b"]),
    "empty containers": (lambda: {"none": [], "a": A(2), "x": {"y": ()}}, ["a"]),
    "empty key": (lambda: {"": A(2), "a": {"": A(3)}}, ["", "a."]),
    "unicode": (lambda: {"η": {"β.0": A(2)}}, ["η.β.0"]),
}


def mapped(tree, function):
    """The tree with every array replaced; mappings become dicts, sequences lists."""
    if isinstance(tree, Mapping):
        return {key: mapped(tree[key], function) for key in tree}
    if isinstance(tree, (list, tuple)):
        return [mapped(child, function) for child in tree]
    return function(tree)


def leaves(tree):
    if isinstance(tree, Mapping):
        return [leaf for key in tree for leaf in leaves(tree[key])]
    if isinstance(tree, (list, tuple)):
        return [leaf for child in tree for leaf in leaves(child)]
    return [tree]


@pytest.mark.parametrize(("make", "names"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("bound", [False, True])
def test_form_and_names(make, names, bound):
    params = make()
    grads = mapped(params, lambda w: np.full(w.shape, 2.0))
    opt = tw.SGD(params, 0.25, 0.5, grads=grads if bound else None)
    assert list(opt.state) == names
    assert (opt.step() if bound else opt.step(grads)) is True
    for w, v in zip(leaves(params), opt.state.values(), strict=True):
        assert (w == 0.5).all()
        assert (v["velocity"] == 2).all()
        assert v["step"] == 1


def test_lists_and_tuples_are_interchangeable():
    opt = tw.SGD({"a": [A(2), A(3)], "b": Layer(A(1), (A(4),))}, 0.5)
    for grads in (
        {"a": (A(2), A(3)), "b": [A(1), [A(4)]]},
        {"b": (A(1), [A(4)]), "a": Layer(A(2), A(3))},
    ):
        assert opt.step(grads)
    assert all((w == 0).all() for w in opt._arrays.values())


def test_mappings_are_interchangeable_whatever_their_order():
    w = {"a": A(2), "b": {"c": A(3)}}
    opt = tw.SGD(w, 0.5)
    for kind in (dict, OrderedDict, MappingProxyType, FreshView):
        inner = kind({"c": np.full(3, 0.5)}) if kind is not FreshView else {"c": np.full(3, 0.5)}
        nested = MappingProxyType({"b": inner, "a": np.full(2, 0.5)})
        assert opt.step(nested)
    assert (w["a"] == 0).all()
    assert (w["b"]["c"] == 0).all()


def test_gradients_made_on_the_fly_live_until_the_step_is_over():
    w = {str(i): A(1000) for i in range(50)}
    opt = tw.SGD(w, 1.0)
    assert opt.step(FreshView({str(i): np.full(1000, float(i)) for i in range(50)}))
    assert all((w[str(i)] == 1 - i).all() for i in range(50))


def test_a_default_dict_is_not_filled():
    opt = tw.SGD({"a": A(2), "b": A(2)})
    grads = defaultdict(lambda: A(2), a=A(2))
    with pytest.raises(ValueError, match="key is missing"):
        opt.step(grads)
    assert opt.step(grads, partial=True)
    assert list(grads) == ["a"]


def test_none_skips_an_array():
    w = {"a": A(2), "b": [A(2), A(2)]}
    opt = tw.SGD(w, 0.5, 0.5)
    assert opt.step({"a": None, "b": [A(2), None]})
    assert opt.step({"a": A(2), "b": [A(2), None]})
    assert [state["step"] for state in opt.state.values()] == [1, 2, 0]
    assert opt.step_count == 2
    assert (w["a"] == 0.5).all()
    assert (w["b"][0] == -0.25).all()
    assert (w["b"][1] == 1).all()
    assert (opt.state["b.1"]["velocity"] == 0).all()


def test_an_array_starts_to_count_with_its_first_gradient():
    # d = 1 in an array's own first step, whenever that is.
    w = [A(2), A(2)]
    opt = tw.SGD(w, 1.0, 0.5, dampening=0.75)
    opt.step([A(2), None])
    opt.step([A(2), A(2)])
    assert (opt.state["0"]["velocity"] == 0.75).all()
    assert (opt.state["1"]["velocity"] == 1).all()


def test_a_step_without_any_gradient():
    opt = tw.SGD([A(2), A(3)])
    assert opt.step([None, None])
    assert opt.step_count == 1
    assert tw.SGD(A(2)).step(None)
    empty = tw.SGD({"a": A(2)})
    assert empty.step({}, partial=True)
    assert (empty.state["a"]["step"], empty.step_count) == (0, 1)


def test_partial_steps():
    w = {"a": A(2), "b": {"c": A(2), "d": A(2)}}
    opt = tw.SGD(w, 0.5)
    assert opt.step({"b": {"d": A(2)}}, partial=True)
    assert opt.step({"a": A(2), "b": {}}, partial=1)
    assert [state["step"] for state in opt.state.values()] == [1, 0, 1]
    assert (w["a"] == 0.5).all()
    assert (w["b"]["c"] == 1).all()
    assert (w["b"]["d"] == 0.5).all()


@pytest.mark.parametrize("number", [0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_as_gradients_of_0d_params(number, dtype):
    w, loss = np.array(1, dtype), [np.array(1, dtype), A(2)]
    opt = tw.SGD(w, 0.5, grads=number)
    assert opt.step(number)
    assert opt.step()
    assert opt.step(np.array(0.5, np.float16))
    assert opt.step(np.full(3, number)[1])
    assert w == 0
    tw.sgd_(loss, [number, None], lr=0.5)
    assert loss[0] == 0.75


def test_float_subclasses_count_by_their_value():
    class Odd(float):
        def __float__(self):
            return 7.0

    w = np.array(1.0)
    tw.SGD(w, 1.0).step(Odd(0.5))
    assert w == 0.5


def test_arrays_are_held_not_containers():
    params = {"a": A(2)}
    first = params["a"]
    opt = tw.SGD(params, 0.5, watch=False)
    params["a"] = A(2)
    params["b"] = A(2)
    assert opt.step({"a": A(2)})
    assert (first == 0.5).all()
    assert (params["a"] == 1).all()
    assert opt.param_groups[0]["params"] == {"a": first}


def test_a_held_array_cannot_be_resized():
    w, g = np.ones(4), np.ones(4)
    opt = tw.SGD(w, grads=g)
    for array in (w, g):
        with pytest.raises(ValueError, match="resize"):
            array.resize(8)
    assert opt.step()
    with pytest.raises(ValueError, match="resize"):
        tw.Adagrad(w).state[""]["accumulator"].resize(8)


class Tagged(np.ndarray):
    """A plain subclass: an array that carries a little more."""

    def __array_finalize__(self, other):
        self.tag = getattr(other, "tag", None)


def test_plain_subclasses_work_in_place(tmp_path):
    mapped_file = np.memmap(tmp_path / "w", np.float32, "w+", shape=(4,))
    w = {"tag": A(4).view(Tagged), "map": mapped_file, "matrix": A(2, 2).view(Tagged).T}
    opt = tw.SGD(w, 0.5, 0.5)
    assert opt.step({name: np.ones(x.shape).view(Tagged) for name, x in w.items()})
    assert (w["tag"] == 0.5).all()
    assert (w["matrix"] == 0.5).all()
    assert (mapped_file == -0.5).all()
    assert type(opt.state["tag"]["velocity"]) is np.ndarray


def test_dtypes_with_metadata_and_native_order_are_plain_floats():
    dtype = np.dtype(np.float32, metadata={"unit": "m"})
    w = np.ones(3, dtype)
    opt = tw.SGD(w, 0.5)
    native = np.ones(3, np.dtype(np.float32).newbyteorder("="))
    for grad in (np.ones(3, dtype), native, np.ones(3, np.dtype("f8", metadata={"a": 1}))):
        assert opt.step(grad)
    assert (w == -0.5).all()


@pytest.mark.parametrize(
    "shape", [(1,) * 64, (2,) * 10 + (1,) * 54, (1, 0) * 32], ids=["ones", "ten twos", "empty"]
)
def test_as_many_axes_as_numpy_has(shape):
    axes = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    w = np.ones(shape[:axes])
    opt = tw.SGD(w, 0.25, 0.5)
    assert opt.step(np.ones(w.shape, np.float16))
    assert opt.step(np.broadcast_to(-0.5, w.shape))
    assert opt.step(np.zeros(w.shape[::-1]).T)
    assert (w == 0.75).all()


def test_empty_arrays_with_strides_of_all_kinds():
    base = np.ones((5, 7))
    for w in (base[:0, :4], base[:4, :0], base[:0].T, base[:3:2, 7:], base[:0, ::-2]):
        opt = tw.SGD([w], 0.5, 0.5)
        assert opt.step([np.ones(w.shape)])
        assert opt.step([np.ones(w.shape[::-1], np.float32).T])
        assert opt.state["0"]["step"] == 2
    assert (base == 1).all()
