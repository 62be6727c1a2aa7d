"""opt.params, and optimizers that arrive with read-only memory."""

import collections
import copy
import pickle

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits

RULES = {
    "sgd": lambda params, **more: tw.SGD(params, 0.1, 0.9, **more),
    "adagrad": lambda params, **more: tw.Adagrad(params, 0.1, **more),
    "row": lambda params, **more: tw.Adagrad(params, 0.1, accumulator="row", **more),
}


def A(*shape):
    return np.ones(shape)


PARAMS = {
    "array": lambda: A(3),
    "0-d": lambda: A(),
    "dict": lambda: {"W": A(2, 3), 7: A(3)},
    "list": lambda: [A(2), A(3)],
    "tuple": lambda: (A(2), [A(3), (A(1),)]),
    "nested": lambda: {"layers": [{"W": A(2, 2), "b": A(2)}, {}], "head": ([], A(1))},
}


def same(one, other):
    """The same structure with the same arrays, of exact dicts, lists and tuples."""
    if isinstance(one, dict):
        assert type(other) is dict
        assert list(one) == list(other)
        return all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        assert type(other) is type(one)
        assert len(one) == len(other)
        return all(map(same, one, other))
    return one is other


@pytest.mark.parametrize("made", PARAMS.values(), ids=PARAMS)
def test_params_have_the_structure_they_were_given_in(made):
    params = made()
    assert same(params, tw.SGD(params).params)
    assert same([params], tw.SGD([{"params": params}]).params)


def test_params_of_groups():
    first, second, third = {"W": A(2), "b": A(2)}, [A(3)], (A(1),)
    opt = tw.SGD([{"params": first}, {"match": "*.b", "lr": 0.5}, {"params": second}])
    assert same([first, second], opt.params)
    opt.add_group({"params": third})
    assert same([first, second, third], opt.params)
    assert opt.step(copy.deepcopy(opt.params))
    with pytest.raises(AttributeError):
        opt.params = []


def test_other_mappings_come_as_dicts():
    params = collections.OrderedDict(b=A(2), a=A(1))
    assert same(dict(params), tw.SGD(params).params)
    pair = collections.namedtuple("Pair", "x y")(A(2), A(1))
    assert same(tuple(pair), tw.SGD(pair).params)


@pytest.mark.parametrize("made", PARAMS.values(), ids=PARAMS)
def test_params_of_copies_are_theirs(made):
    params = made()
    opt = tw.SGD(params, 0.5)
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        mine = other.params
        assert other.step(made())
        for w, old in zip(other._arrays.values(), opt._arrays.values(), strict=True):
            assert (w == 0.5).all()
            assert (old == 1).all()
        assert same(mine, other.params)
        assert pickle.loads(pickle.dumps((mine, other)))[1].step(made())


def through_buffers(thing, kind=bytes):
    """As Ray, Dask and multiprocessing hand a pickle over: its memory lies elsewhere."""
    buffers = []
    data = pickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[kind(x.raw()) for x in buffers])


def mapped(tmp_path, mode):
    def arrive(thing):
        joblib = pytest.importorskip("joblib", reason="joblib is not installed")
        joblib.dump(thing, tmp_path / "thing")
        return joblib.load(tmp_path / "thing", mmap_mode=mode)

    return arrive


WAYS = {
    "bytes": lambda _: through_buffers,
    "bytearray": lambda _: lambda thing: through_buffers(thing, bytearray),
    "read-only view": lambda _: lambda x: through_buffers(x, lambda b: memoryview(bytes(b))),
    "joblib r": lambda path: mapped(path, "r"),
    "joblib c": lambda path: mapped(path, "c"),
    "joblib r+": lambda path: mapped(path, "r+"),
    "joblib": lambda path: mapped(path, None),
}


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_optimizer_that_arrives_goes_on(way, make, tmp_path):
    rng = np.random.default_rng(3)
    params = {
        "W": rng.standard_normal((3, 4)),
        "F": np.asfortranarray(rng.standard_normal((3, 4))).astype("f4", order="K"),
        "x": [rng.standard_normal(5)[::2], rng.standard_normal(())],
    }
    grads = copy.deepcopy(params)
    opt = make(params)
    opt.step(grads)
    other = way(tmp_path)(opt)
    for _ in range(2):
        assert opt.step(grads) is other.step(grads) is True
    for name in opt.state:
        mine, theirs = other._arrays[name], opt._arrays[name]
        assert mine.flags.writeable
        assert not np.shares_memory(mine, theirs)
        assert_same_bits(mine, theirs)
        assert_same_bits(other.state[name][opt._slot], opt.state[name][opt._slot])
    assert other.params["W"] is other._arrays["W"]
    assert other.params["F"].flags.f_contiguous
    assert pickle.loads(pickle.dumps(other)).step(grads)


def test_arrays_that_arrive_read_only_are_plain_ones(tmp_path):
    opt = mapped(tmp_path, "r")(tw.SGD(A(3)))
    assert type(opt.params) is np.ndarray
    assert opt.params.flags.owndata
    assert type(mapped(tmp_path, "r+")(tw.SGD(A(3))).params) is np.memmap  # steps the file

    other = through_buffers(tw.SGD(A(3).view(Marked)))
    assert type(other.params) is Marked
    assert other.step(A(3))


class Marked(np.ndarray):
    """A plain subclass, which stays one."""


def test_bound_gradients_and_groups_that_arrive(tmp_path):
    groups = [{"params": [A(3)]}, {"params": {"w": A(2)}, "frozen": True}]
    opt = tw.SGD(groups, 0.5, grads=[[A(3)], {"w": A(2)}])
    for way in WAYS.values():
        other = way(tmp_path)(opt)
        assert other.step()
        assert (other.params[0][0] == 0.5).all()
        assert other.params[1]["w"].flags.writeable
        other.param_groups[1]["frozen"] = False
        assert other.step()
        assert (other.params[1]["w"] == 0.5).all()


def test_joblib_does_not_keep_an_arrays_identity(tmp_path):
    """What docs/copies.md says; should it be mended there, the page may go."""
    params = {"w": A(300_000)}
    loaded, opt = mapped(tmp_path, None)((params, tw.SGD(params, 0.5)))
    assert loaded["w"] is not opt.params["w"]
    opt.step({"w": A(300_000)})
    assert (opt.params["w"] == 0.5).all()


def work(opt):
    opt.step(np.ones(opt.params.shape))
    return opt


@pytest.mark.parametrize("options", [{}, {"max_nbytes": None}, {"mmap_mode": "c"}], ids=str)
def test_workers_of_joblib(options):
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    opt = tw.SGD(np.zeros(200_000), 0.5, 0.9)
    run = joblib.Parallel(n_jobs=2, backend="loky", **options)
    for trained in run(joblib.delayed(work)(opt) for _ in range(2)):
        assert trained.step_count == 1
        assert (trained.params == -0.5).all()
        assert trained.step(np.ones(200_000))
    assert opt.step_count == 0
