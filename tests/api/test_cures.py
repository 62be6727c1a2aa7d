"""What people hand in instead of what is expected: words of the refusal, and its cure, run.

A cure that is code stands in the table as it stands in the message.
"""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import thalweg as tw
from refusing import refused

F = np.float32


def ones(*shape):
    return np.ones(shape, F)


@dataclasses.dataclass
class Model:
    W: np.ndarray
    b: np.ndarray


class Module:
    """Has what torch's modules have."""

    def __init__(self):
        self.own = {"weight": Tensor(ones(2, 2)), "bias": Tensor(ones(2))}

    def named_parameters(self):
        return iter(self.own.items())


class Tensor:
    """Answers as one of torch's does."""

    def __init__(
        self, array, layout="torch.strided", dtype="torch.float32", device="cpu", rows=True
    ):
        self.rows, self.array = rows, array
        self.layout, self.dtype, self.device = layout, dtype, device

    def detach(self):
        return self

    def numpy(self):
        if self.layout != "torch.strided" or self.dtype == "torch.bfloat16" or self.device != "cpu":
            raise TypeError("can't convert")
        return self.array

    def cpu(self):
        return Tensor(self.array)

    float = to_dense = cpu

    def coalesce(self):
        return self

    def sparse_dim(self):
        return 1 if self.rows else 2

    def indices(self):
        return [Tensor(np.array([0, 2]))]

    def values(self):
        return Tensor(self.array[[0, 2]])


def jax_like(array):
    kind = type("ArrayImpl", (), {"__array__": lambda self, *a, **k: array})
    kind.__module__ = "jaxlib._jax"
    return kind()


counter = {"W": ones(2), "steps": np.zeros((), np.int64)}
COO = Tensor(ones(3, 2), layout="torch.sparse_coo")
RAGGED = np.empty(2, object)
RAGGED[:] = [ones(2, 3), ones(3)]
RECORD = np.zeros(3, [("a", "f4"), ("b", "f4")])
NONE = {"W": ones(2), "b": None}

# Gradients of a param of shape (3, 2): what is given, words of the message, the cure.
GRADIENTS = {
    "tensor": (Tensor(ones(3, 2)), ".detach().numpy()", lambda g: g.detach().numpy()),
    "sparse tensor": (
        COO,
        "g = g.coalesce() pass thalweg.RowGrad(g.indices()[0].numpy(), g.values().numpy())",
        lambda g: tw.RowGrad(g.coalesce().indices()[0].numpy(), g.coalesce().values().numpy()),
    ),
    "sparse tensor, made dense": (COO, "g.to_dense().numpy()", lambda g: g.to_dense().numpy()),
    "tensor of sparse elements": (
        Tensor(ones(3, 2), layout="torch.sparse_coo", rows=False),
        "pass its .to_dense().detach().numpy()",
        lambda g: g.to_dense().detach().numpy(),
    ),
    "compressed tensor": (
        Tensor(ones(3, 2), layout="torch.sparse_csr"),
        ".to_dense().detach().numpy()",
        lambda g: g.to_dense().detach().numpy(),
    ),
    "bfloat16 tensor": (
        Tensor(ones(3, 2), dtype="torch.bfloat16"),
        ".detach().float().numpy()",
        lambda g: g.detach().float().numpy(),
    ),
    "tensor elsewhere": (
        Tensor(ones(3, 2), device="cuda:0"),
        ".detach().cpu().numpy()",
        lambda g: g.detach().cpu().numpy(),
    ),
    "jax": (jax_like(ones(3, 2)), "np.asarray(g), which shares the memory", np.asarray),
    "something with an array": (
        SimpleNamespace(__array__=None), "received types.SimpleNamespace", None
    ),
    "frame": (
        SimpleNamespace(to_numpy=lambda: ones(3, 2)), ".to_numpy()", lambda g: g.to_numpy()
    ),
    "tensorflow": (SimpleNamespace(numpy=lambda: ones(3, 2)), ".numpy()", lambda g: g.numpy()),
    "pair": ((np.array([0]), ones(1, 2)), "thalweg.RowGrad(*g)", lambda g: tw.RowGrad(*g)),
    "pair of int32": (
        (np.array([0, 1], np.uint32), ones(2, 2)), "thalweg.RowGrad(*g)", lambda g: tw.RowGrad(*g)
    ),
    "list": ([[1, 2]] * 3, "np.array(..., float)", lambda g: np.array(g, float)),
    "integers": (np.ones((3, 2), int), "g.astype(np.float32)", lambda g: g.astype(F)),
    "masked": (np.ma.ones((3, 2)), ".data", lambda g: g.data),
    "complex": (np.ones((3, 2), complex), "a.real", lambda g: g.real),
    "swapped": (np.ones((3, 2), ">f4"), "g.astype(np.float32)", lambda g: g.astype(F)),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    given, words, cure = GRADIENTS[name]
    w = ones(3, 2)
    opt = tw.SGD({"w": w}, lr=1.0)
    with refused(TypeError, 'grads["w"]: expected', words, keeps=opt):
        opt.step({"w": given})
    if cure:
        assert opt.step({"w": cure(given)})
        assert (w[0] != 1).all()


# Params: what is given, the exception, words, the cure.
PARAMS = {
    "number": ({"b": F(0)}, TypeError, "np.array(value)", lambda p: {"b": np.array(p["b"])}),
    "python's number": ({"b": 0.0}, TypeError, "np.array(value)", lambda p: {"b": np.array(0.0)}),
    "none": (
        NONE,
        TypeError,
        "leave it out: {k: p for k, p in params.items() if p is not None}",
        lambda params: {k: p for k, p in params.items() if p is not None},
    ),
    "object array": (RAGGED, TypeError, "pass list(a)", list),
    "record array": (
        RECORD,
        TypeError,
        "{k: a[k] for k in a.dtype.names}",
        lambda a: {k: a[k] for k in a.dtype.names},
    ),
    "items": ({"W": ones(2)}.items(), TypeError, "pass dict(...) of it", dict),
    "list of pairs": ([("W", ones(2))], TypeError, "pass dict(...) of them", dict),
    "values": ({"W": ones(2)}.values(), TypeError, "pass list(...) of it", list),
    "dataclass": (Model(ones(2, 2), ones(2)), TypeError, "pass vars(...) of it", vars),
    "module": (
        Module(),
        TypeError,
        "{k: p.detach().numpy() for k, p in module.named_parameters()}",
        lambda m: {k: p.detach().numpy() for k, p in m.named_parameters()},
    ),
    "counter": (counter, TypeError, "is no param: leave it out", lambda p: {"W": p["W"]}),
    "one group": (
        {"params": [ones(3)], "lr": 0.1}, TypeError, "groups stand in a list", lambda p: [p]
    ),
    "jax": (jax_like(ones(3)), TypeError, "np.array(p), a copy of your own", np.array),
    "sparse": (
        SimpleNamespace(tocsr=None, toarray=lambda: ones(2, 2)),
        TypeError,
        ".toarray()",
        lambda p: p.toarray(),
    ),
    "half": (np.ones(2, np.float16), TypeError, "a.astype(np.float32)", lambda a: a.astype(F)),
    "masked": (np.ma.ones(2), TypeError, ".data", lambda a: a.data),
    "broadcast": (np.broadcast_to(F(0), (2,)), ValueError, "np.array(a)", np.array),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMS)
def test_params(name):
    given, exception, words, cure = PARAMS[name]
    with refused(exception, "params", words):
        tw.SGD(given)
    assert tw.SGD(cure(given)).step_count == 0


def test_tied_weights():
    """The cure is a sum of gradients, which a copy is not."""
    emb, decoder = ones(4, 3), ones(3, 4)
    with refused(ValueError, "tied weights are passed once, with the sum of their gradients"):
        tw.SGD({"emb": emb, "out": emb.T})
    opt = tw.SGD({"emb": emb}, lr=1.0)
    opt.step({"emb": np.ones((4, 3)) + decoder.T})
    assert (emb == -1).all()


def test_groups_take_a_list():
    w = ones(3)
    opt = tw.SGD([{"params": {"w": w}}], lr=1.0)
    with refused(TypeError, "pass a list with one tree for each: [grads]", keeps=opt):
        opt.step({"w": ones(3)})
    assert opt.step([{"w": ones(3)}])


def test_state_of_another_dtype():
    w, g = ones(3), ones(3)
    with refused(TypeError, "accumulator: ", "np.zeros_like(param)", keeps=[w]):
        tw.adagrad_(w, g, np.zeros(3), lr=0.1)
    assert tw.adagrad_(w, g, np.zeros_like(w), lr=0.1)


def test_no_gradient_for_some_rows():
    with refused(TypeError, "RowGrad.values", "pass None in place of the RowGrad"):
        tw.RowGrad(np.array([1]), None)


@pytest.mark.parametrize("option", ["lr", "momentum", "weight_decay"])
def test_arrays_as_numbers(option):
    one = np.array([0.5])
    with refused(TypeError, f"{option}: expected", "pass its .item()"):
        tw.SGD(ones(2), **{option: one})
    assert tw.SGD(ones(2), **{option: one.item()})
    with refused(TypeError, f"{option}: expected", "groups have others"):
        tw.SGD(ones(2), **{option: np.array([0.5, 0.5])})
    with refused(TypeError, f"{option}: expected", "pass float(...) of it"):
        tw.SGD(ones(2), **{option: "0.5"})


SPELT = {
    "learning_rate": "lr",
    "learning_rate_init": "lr",
    "eta": "lr",
    "global_clipnorm": "max_norm",
    "max_grad_norm": "max_norm",
    "clipvalue": "max_value",
    "wd": "weight_decay",
}


@pytest.mark.parametrize("there", [*SPELT, "epsilon", "clipnorm", "nesterovs_momentum", "beta"])
def test_spellings_of_other_libraries(there):
    """Wherever an option may stand: classes, presets, groups, functions."""
    rule = tw.SGD if there in ("nesterovs_momentum", "beta") else tw.Adagrad
    others = {"epsilon": "eps", "nesterovs_momentum": "nesterov", "beta": "momentum"}
    here = f"did you mean {(SPELT | others).get(there, 'max_')}"
    w = ones(2)
    given = {there: 0.5}
    with refused(TypeError, f"{there!r}; {here}", keeps=w):
        rule(w, **given)
    with refused(TypeError, f"{there!r}; {here}", keeps=w):
        rule.like("torch", w, **given)
    called = tw.sgd_ if rule is tw.SGD else tw.adagrad_
    with refused(TypeError, f"{there!r}; {here}", keeps=w):
        called(w, ones(2), ones(2), lr=0.1, **given)
    opt = rule([{"params": w}])
    if "max_" in here:
        return
    with refused(TypeError, there, here, keeps=w):
        rule([{"params": w, there: 0.5}])
    with refused(TypeError, there, here, keeps=opt):
        opt.add_group({"params": ones(3), there: 0.5})
    with refused(KeyError, there, here, keeps=opt):
        opt.param_groups[0][there] = 0.5


def test_a_word_that_nobody_uses():
    with refused(TypeError, "SGD: got an unexpected keyword argument 'lrr'"):
        tw.SGD(ones(2), lrr=0.1)


def test_real_libraries():
    """The same with what the libraries hand out, where they are installed."""
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    w = ones(3, 2)
    opt = tw.SGD({"w": w}, lr=1.0)
    g = sparse.csr_array(np.eye(3, 2))
    for given in (g, sparse.coo_matrix(g), sparse.csc_array(g)):
        with refused(TypeError, "thalweg.RowGrad.from_scipy(g)", ".toarray()", keeps=opt):
            opt.step({"w": given})
        assert opt.step({"w": tw.RowGrad.from_scipy(given)})
        assert opt.step({"w": given.toarray()})
