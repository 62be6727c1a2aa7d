"""Averages in snapshots and checkpoints: written, read, and where one side has none."""

import numpy as np
import pytest

import golden
import thalweg as tw
from refusing import refused
from thalweg._checkpoint.file import CheckpointError


def made(beta=0.5, fill=1.0, **options):
    params = {"a": np.full(4, fill), "b": np.full((2, 3), fill, np.float32)}
    return params, tw.SGD(params, 0.1, 0.9, weight_average=beta, **options)


def trained(beta=0.5, steps=3):
    params, opt = made(beta)
    for _ in range(steps):
        opt.step({"a": np.ones(4), "b": np.ones((2, 3))})
    return params, opt


def averages(opt):
    return {name: average.copy() for name, average in opt.averages.items()}


def same(one, other):
    return list(one) == list(other) and all((one[k] == other[k]).all() for k in one)


def by_file(saved, opt, folder, **words):
    tw.save_checkpoint(folder / "a.npz", saved)
    return tw.load_checkpoint(folder / "a.npz", opt, **words)


def in_memory(saved, opt, folder, **words):
    opt.load_state_dict(saved.state_dict(), **words)
    members = saved._optimizers.items() if isinstance(saved, tw.Joint) else [("", saved)]
    for name, each in members:
        live = opt[name] if name else opt
        for key, param in live._arrays.items():
            param[...] = each._arrays[key]


@pytest.fixture(params=[by_file, in_memory])
def load(request, tmp_path):
    return lambda saved, opt, **words: request.param(saved, opt, tmp_path, **words)


def step(opt):
    assert opt.step({"a": np.ones(4), "b": np.ones((2, 3))})


def test_the_run_goes_on(load):
    _, saved = trained()
    _, opt = made(fill=5.0)
    load(saved, opt)
    assert same(opt.averages, averages(saved))
    step(saved)
    step(opt)
    assert same(opt.averages, averages(saved))


def test_before_the_first_step(load):
    """What is stored is the param, and the first step has it in the average no more."""
    _, saved = made(fill=2.0)
    _, opt = trained()
    load(saved, opt)
    assert (opt.averages["a"] == 2.0).all()


@pytest.mark.parametrize("words", [{"options": "file"}, {}])
def test_those_of_the_file_hold(load, words):
    """A number in the file begins averages here, None in it ends them."""
    _, saved = trained(0.75)
    _, opt = made(None)
    if not words:
        with pytest.warns(UserWarning, match="weight_average: 0.75 stored, None live"):
            load(saved, opt)
    else:
        load(saved, opt, **words)
    assert opt.weight_average == 0.75
    assert same(opt.averages, averages(saved))
    _, none = trained(None)
    load(none, opt, options="file")
    assert opt.weight_average is None
    assert len(opt.averages) == 0


def test_the_live_ones_stay(load):
    """Averages that the file does not have begin anew; those that it alone has are left."""
    _, saved = trained(None)
    params, opt = trained()
    load(saved, opt, options="live")
    assert opt.weight_average == 0.5
    assert same(opt.averages, params)
    step(opt)
    assert same(opt.averages, params)
    _, off = made(None)
    load(opt, off, options="live")
    assert off.weight_average is None


def test_what_fits():
    _, saved = trained()
    params = {"a": np.zeros(4), "new": np.full(2, 3.0)}
    opt = tw.SGD(params, 0.1, 0.9, weight_average=0.5)
    opt.load_state_dict(saved.state_dict(), strict=False)
    assert (opt.averages["a"] == saved.averages["a"]).all()
    assert (opt.averages["new"] == 3.0).all()


def test_what_fits_of_a_file(tmp_path):
    """A param that comes without its state begins its average anew."""
    _, saved = trained()
    params = {"a": np.zeros(4), "b": np.zeros((2, 3), np.float32)}
    opt = tw.Adagrad(params, 0.1, weight_average=0.5)
    for _ in range(2):
        opt.step({"a": np.ones(4), "b": np.ones((2, 3))})
    tw.save_checkpoint(tmp_path / "a.npz", saved)
    _, report = tw.load_checkpoint(tmp_path / "a.npz", opt, strict=False)
    assert set(report.params_only) == {"a", "b"}
    assert same(opt.averages, params)
    step(opt)
    assert same(opt.averages, params)


def test_a_joint(load):
    def joint(beta, fill=1.0):
        return tw.Joint(one=made(beta, fill)[1], two=made(None, fill)[1])

    saved = joint(0.5)
    for _ in range(3):
        g = {"a": np.ones(4), "b": np.ones((2, 3))}
        saved.step({"one": g, "two": g})
    opt = joint(0.5, 7.0)
    load(saved, opt)
    assert same(opt["one"].averages, averages(saved["one"]))
    assert len(opt["two"].averages) == 0
    other = joint(None)
    load(saved, other, options="file")
    assert same(other["one"].averages, averages(saved["one"]))


def test_old_files(tmp_path):
    """Written before there were averages."""
    opt = golden.sgd()
    tw.load_checkpoint(golden.GOLDEN / "v2-sgd.npz", opt, options="file")
    assert opt.weight_average is None
    opt.weight_average = 0.5
    tw.load_checkpoint(golden.GOLDEN / "v2-sgd.npz", opt, options="live")
    assert opt.weight_average == 0.5
    assert all((opt.averages[name] == w).all() for name, w in opt._arrays.items())


def test_read_checkpoint(tmp_path):
    _, saved = trained()
    tw.save_checkpoint(tmp_path / "a.npz", saved)
    contents = tw.read_checkpoint(tmp_path / "a.npz")
    assert contents["limits"]["weight_average"] == 0.5
    assert (contents["state"]["a"]["average"] == saved.averages["a"]).all()
    assert set(contents["state"]["a"]) == {"velocity", "average", "step"}


@pytest.mark.parametrize(
    "average", [np.zeros(5), np.zeros(4, np.float32), "x", None, np.zeros((4, 1))], ids=str
)
def test_one_that_does_not_fit(average):
    _, saved = trained()
    found = saved.state_dict()
    found["arrays"]["a"]["average"] = average
    for beta in (0.5, None):
        params, opt = made(beta)
        with refused(
            ValueError, "arrays['a'].average: expected float64 of shape (4,)", keeps=[params, opt]
        ):
            opt.load_state_dict(found, options="file")


@pytest.mark.parametrize("value", [1.0, "x", [0.5], -1])
def test_a_number_that_is_none(value):
    _, saved = trained()
    found = saved.state_dict()
    found["limits"]["weight_average"] = value
    for beta in (0.5, None):
        params, opt = made(beta)
        with refused(ValueError, "weight_average", keeps=[params, opt]):
            opt.load_state_dict(found, options="file")
        step(opt)


def test_a_joint_changes_all_or_none():
    """One whose number is wrong leaves the averages of the other where they are."""
    joint = tw.Joint(one=trained()[1], two=trained()[1])
    found = joint.state_dict()
    found["optimizers"]["one"]["limits"]["weight_average"] = None
    found["optimizers"]["two"]["limits"]["weight_average"] = 2.0
    with refused(ValueError, "weight_average", keeps=[joint["one"], joint["two"]]):
        joint.load_state_dict(found, options="file")
    assert joint.step({"one": {"a": np.ones(4), "b": None}, "two": {"a": None, "b": None}})


def test_damage_is_found(tmp_path):
    _, saved = trained()
    tw.save_checkpoint(tmp_path / "a.npz", saved)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    at = data.find(saved.averages["a"].tobytes())
    assert at > 0
    data[at + 3] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    params, opt = made()
    with refused(CheckpointError, keeps=[params, opt]):
        tw.load_checkpoint(tmp_path / "a.npz", opt)
