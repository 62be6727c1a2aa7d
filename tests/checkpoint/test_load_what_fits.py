"""strict=False and rename: what fits is loaded, the rest stays, and a report says which."""

import copy

import numpy as np
import pytest

import crafting
import thalweg as tw
from bits import assert_same_bits
from refusing import frozen, refused


def made(shapes, make=lambda w: tw.SGD(w, 0.1, 0.9), steps=0, value=1.0):
    w = {name: np.full(shape, value) for name, shape in shapes.items()}
    opt = make(w)
    for _ in range(steps):
        opt.step({name: np.ones(shape) for name, shape in shapes.items()})
    return w, opt


def adagrad(w):
    return tw.Adagrad(w, 0.1)


def test_what_fits_and_what_stays(tmp_path):
    w, opt = made({"a": 3, "b": 2, "gone": 4}, steps=3)
    tw.save_checkpoint(tmp_path / "x.npz", opt, extra="kept")
    w2, other = made({"a": 3, "b": 5, "new": 2}, steps=1, value=7.0)
    other.lr = 0.25
    before = copy.deepcopy((w2, other.state_dict()))
    extra, report = tw.load_checkpoint(tmp_path / "x.npz", other, strict=False)
    assert extra == "kept"
    assert report.loaded == ["a"]
    assert set(report.kept) == {"b", "new"}
    assert "(5,)" in report.kept["b"]
    assert "(2,)" in report.kept["b"]
    assert set(report.unused) == {"gone"}
    assert not report.params_only
    assert report.counters
    assert_same_bits(w2["a"], w["a"])
    assert_same_bits(other.state["a"]["velocity"], opt.state["a"]["velocity"])
    assert (other.state["a"]["step"], other.state["b"]["step"]) == (3, 1)
    for name in ("b", "new"):
        assert_same_bits(w2[name], before[0][name])
        assert_same_bits(other.state[name]["velocity"], before[1]["arrays"][name]["velocity"])
    assert (other.lr, other.step_count) == (0.25, 3)
    assert other.step({"a": np.ones(3), "b": np.ones(5), "new": np.ones(2)})


def test_another_rule(tmp_path):
    w, opt = made({"a": 3}, steps=3)
    tw.save_checkpoint(tmp_path / "x.npz", opt)
    w2, other = made({"a": 3}, adagrad, steps=1)
    _, report = tw.load_checkpoint(tmp_path / "x.npz", other, strict=False)
    assert (report.loaded, list(report.params_only), report.counters) == ([], ["a"], False)
    assert "SGD" in report.params_only["a"]
    assert_same_bits(w2["a"], w["a"])
    assert other.step_count == 1
    assert (other.state["a"]["accumulator"] == 1).all()
    report = other.load_state_dict(opt.state_dict(), strict=False)
    assert (report.loaded, list(report.kept), report.params_only) == ([], ["a"], {})


@pytest.mark.parametrize(
    ("mine", "word"),
    [
        (lambda w: tw.Adagrad(w, eps=1e-3), "eps"),
        (lambda w: tw.Adagrad(w, accumulator="row"), "accumulator"),
        (lambda w: tw.Adagrad(w, eps_placement="outside"), "eps_placement"),
    ],
)
def test_a_state_that_means_something_else(mine, word):
    _, opt = made({"a": (3, 2)}, adagrad, steps=1)
    w, other = made({"a": (3, 2)}, mine)
    report = other.load_state_dict(opt.state_dict(), strict=False)
    assert word in report.kept["a"]
    with refused(ValueError, word, keeps=(w, other)):
        other.load_state_dict(opt.state_dict())


def test_another_dtype_and_a_state_that_is_not_there():
    _, opt = made({"a": 3, "b": 2}, steps=1)
    w = {"a": np.ones(3, np.float32), "b": np.ones(2)}
    other = tw.SGD(w, 0.1, 0.9)
    report = other.load_state_dict(opt.state_dict(), strict=False)
    assert report.loaded == ["b"]
    assert "float32" in report.kept["a"]
    plain = tw.SGD({"a": np.ones(3), "b": np.ones(2)}, 0.1)
    report = plain.load_state_dict(opt.state_dict(), strict=False)
    assert "velocity" in report.kept["a"]


def test_names_that_were_changed(tmp_path):
    w, opt = made({"old": 3, "b": 2}, steps=3)
    tw.save_checkpoint(tmp_path / "x.npz", opt)
    w2, other = made({"new": 3, "b": 2})
    tw.load_checkpoint(tmp_path / "x.npz", other, rename={"old": "new"})
    assert_same_bits(w2["new"], w["old"])
    assert other.step_count == 3
    w2, other = made({"new": 3, "b": 2})
    assert other.load_state_dict(opt.state_dict(), rename={"old": "new"}) is None
    assert_same_bits(other.state["new"]["velocity"], opt.state["old"]["velocity"])
    # The longest name holds: all below "", but for one.
    w2 = {"x": {"b": np.ones(2)}, "y": np.ones(3)}
    other = tw.SGD(w2, 0.1, 0.9)
    tw.load_checkpoint(tmp_path / "x.npz", other, rename={"": "x", "old": "y"})
    assert_same_bits(w2["y"], w["old"])
    # Two that change places.
    w2, other = made({"b": 3, "old": 2})
    tw.load_checkpoint(tmp_path / "x.npz", other, rename={"old": "b", "b": "old"})
    assert_same_bits(w2["b"], w["old"])


def test_a_tree_becomes_groups(tmp_path):
    w = {"enc": {"W": np.ones(3)}, "dec": {"W": np.ones(2)}}
    opt = tw.SGD(w, 0.1, 0.9)
    opt.step({"enc": {"W": np.ones(3)}, "dec": {"W": np.ones(2)}})
    tw.save_checkpoint(tmp_path / "x.npz", opt)
    one = {"enc": {"W": np.ones(3)}, "dec": {"W": np.ones(2)}}
    grouped = tw.SGD([{"params": one}], 0.1, 0.9)
    tw.load_checkpoint(tmp_path / "x.npz", grouped, rename={"": "0"})
    assert_same_bits(one["enc"]["W"], w["enc"]["W"])
    enc, dec = {"W": np.ones(3)}, {"W": np.ones(2)}
    two = tw.SGD([{"params": enc}, {"params": dec, "lr": 0.5}], 0.1, 0.9)
    rename = {"enc": "0", "dec": "1"}
    with refused(tw.CheckpointError, "groups: expected 2, received 1", keeps=(enc, dec, two)):
        tw.load_checkpoint(tmp_path / "x.npz", two, rename=rename)
    _, report = tw.load_checkpoint(tmp_path / "x.npz", two, rename=rename, strict=False)
    assert report.loaded == ["0.W", "1.W"]
    assert_same_bits(dec["W"], w["dec"]["W"])
    assert two.step_count == 1
    assert two.last_lr == (None, None)
    # A lone array, into a dict.
    lone = tw.SGD(np.ones(3), 0.1, 0.9)
    lone.step(np.ones(3))
    _, other = made({"a": 3})
    other.load_state_dict(lone.state_dict(), rename={"": "a"})
    assert_same_bits(other.state["a"]["velocity"], lone.state[""]["velocity"])


def joint(emb="emb", head="head", steps=0):
    w = {emb: np.ones((3, 2)), head: {"W": np.ones(2)}}
    made = tw.Joint(**{emb: tw.Adagrad(w[emb]), head: tw.SGD(w[head], 0.1, 0.9)}, max_norm=1.0)
    for _ in range(steps):
        made.step({emb: np.ones((3, 2)), head: {"W": np.ones(2)}})
    return w, made


def test_joints(tmp_path):
    w, both = joint(steps=3)
    tw.save_checkpoint(tmp_path / "both.npz", both)
    tw.save_checkpoint(tmp_path / "head.npz", both["head"])
    w2, other = joint("table", "head")
    tw.load_checkpoint(tmp_path / "both.npz", other, rename={"emb": "table"})
    assert_same_bits(w2["table"], w["emb"])
    assert (other.step_count, other.grad_norm) == (3, both.grad_norm)
    # One optimizer's into a Joint, and out of it again.
    w2, other = joint()
    _, report = tw.load_checkpoint(tmp_path / "head.npz", other, strict=False, rename={"": "head"})
    assert report.loaded == ["head.W"]
    assert list(report.kept) == ["emb"]
    assert (other["head"].step_count, other["emb"].step_count) == (3, 0)
    assert not report.counters
    assert_same_bits(w2["head"]["W"], w["head"]["W"])
    alone = {"W": np.ones(2)}
    head = tw.SGD(alone, 0.1, 0.9)
    rename = {"head": ""}
    _, report = tw.load_checkpoint(tmp_path / "both.npz", head, strict=False, rename=rename)
    assert (report.loaded, list(report.unused), report.counters) == (["W"], ["emb"], True)
    assert_same_bits(alone["W"], w["head"]["W"])
    w2, other = joint()
    report = other.load_state_dict(both.state_dict(), strict=False)
    assert report.loaded == ["emb", "head.W"]
    assert other.grad_norm == both.grad_norm
    with refused(ValueError, "one optimizer below 'head'", keeps=(w2, other["emb"])):
        other.load_state_dict(both.state_dict(), rename={"emb": "head.x"})


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (TypeError, ["strict"], {"strict": 1}),
        (TypeError, ["strict"], {"strict": None}),
        (ValueError, ["options", "strict=False"], {"strict": False, "options": "file"}),
        (TypeError, ["rename"], {"rename": [("a", "b")]}),
        (TypeError, ["rename"], {"rename": {"a": 1}}),
        (TypeError, ["rename"], {"rename": {1: "a"}}),
        (ValueError, ["rename", "'a', 'b'", "'c'"], {"rename": {"c": "a"}}),
        (ValueError, ["rename", "'b' for 'a' and 'b'"], {"rename": {"a": "b"}}),
    ],
)
def test_wrong_words(error, words, arguments, tmp_path):
    w, opt = made({"a": 3, "b": 2}, steps=1)
    tw.save_checkpoint(tmp_path / "x.npz", opt)
    found = opt.state_dict()
    opt.step({"a": np.ones(3), "b": np.ones(2)})
    with refused(error, *words, keeps=(w, opt)):
        opt.load_state_dict(found, **arguments)
    of_file = tw.CheckpointError if arguments.get("rename") in ({"c": "a"}, {"a": "b"}) else error
    with refused(of_file, *words, keeps=(w, opt)):
        tw.load_checkpoint(tmp_path / "x.npz", opt, **arguments)


def test_what_is_no_state_dict():
    w, opt = made({"a": 3}, steps=1)
    found = opt.state_dict()
    for change in (
        {"version": 9},
        {"groups": 3},
        {"arrays": {"a": 3}},
        {"arrays": {"a": {"group": 7, "step": 0}}},
        {"step_count": -1},
        {"last_lr": [1, 2]},
    ):
        for words in ({"strict": False}, {"rename": {"a": "b"}}):
            with refused(ValueError, next(iter(change)), keeps=(w, opt)):
                opt.load_state_dict({**found, **change}, **words)
    with refused(ValueError, "mapping", keeps=(w, opt)):
        opt.load_state_dict([found], strict=False)
    odd = {**found, "arrays": {"a": {"group": 0, "step": 0, "accumulator": np.ones(3)}}}
    assert "accumulator" in opt.load_state_dict(odd, strict=False).kept["a"]


def test_a_damaged_file(tmp_path):
    w, opt = made({"a": 3000}, steps=1)
    tw.save_checkpoint(tmp_path / "x.npz", opt)
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[2000] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with refused(tw.CheckpointError, "checksum", keeps=(w, opt)):
        tw.load_checkpoint(tmp_path / "x.npz", opt, strict=False)


GARBAGE = [None, True, -1, 2**70, 0.5, float("nan"), "x", [], {}, [[]], {"w": 0}, [0, 0], "é"]


def places(tree, path=()):
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, child in items:
        if isinstance(child, (dict, list)):
            yield from places(child, (*path, key))
        else:
            yield (*path, key)


def changed(tree, path, value):
    if not path:
        return value
    made = dict(tree) if isinstance(tree, dict) else list(tree)
    made[path[0]] = changed(tree[path[0]], path[1:], value)
    return made


@pytest.mark.parametrize("words", [{"strict": False}, {"rename": {"": "emb"}, "strict": False}])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "joint"])
def test_garbage_in_every_place(tmp_path, words, together):
    """Files that lie: a CheckpointError with nothing changed, or a load of what fits."""
    manifest = crafting.SAMPLE.manifest()
    if together:
        one = manifest["optimizer"]
        manifest["optimizer"] = {
            "version": 1,
            "rule": "Joint",
            "skipped_steps": 0,
            "grad_norm": None,
            "limits": {"max_norm": None, "norm_eps": 1e-6, "on_nonfinite": "propagate"},
            "optimizers": {"emb": one},
        }
        manifest["params"] = {"emb.w": 0}
    path, count = tmp_path / "a.npz", 0
    for place in places(manifest["optimizer"]):
        for value in GARBAGE:
            lie = manifest | {"optimizer": changed(manifest["optimizer"], place, value)}
            path.write_bytes(crafting.pack(crafting.SAMPLE.members(lie)))
            w = np.full(3, 9.0)
            opt = tw.SGD({"w": w}, lr=9.0, momentum=0.125)
            whole = tw.Joint(emb=opt) if together or "rename" in words else opt
            before = frozen(opt)
            try:
                _, report = tw.load_checkpoint(path, whole, **words)
            except tw.CheckpointError:
                assert frozen(opt) == before
                count += 1
            else:
                assert {*report.loaded, *report.params_only, *report.kept} <= {"w", "emb.w"}
    assert count > 100
    lie = manifest | {"params": {"other": 0}}
    path.write_bytes(crafting.pack(crafting.SAMPLE.members(lie)))
    with refused(tw.CheckpointError, "other names", keeps=opt):
        tw.load_checkpoint(path, whole, **words)
