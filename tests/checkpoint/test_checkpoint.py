"""Checkpoints: a run that is taken up again ends with the bits of the one that was never left."""

import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

import golden
import resuming
import thalweg as tw
from conftest import FULL
from processes import run_python
from resuming import STEPS, Course, digest
from rules import RULES

each_rule = pytest.mark.parametrize("kernel", RULES)
needs_umask = pytest.mark.skipif(os.name == "nt", reason="no umask, no links on Windows")


# A run that is left and taken up again


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """By rule: all that there is before every step, and the folder of checkpoints of it."""
    done = {}

    def record(kernel, saved):
        if kernel not in done:
            folder = tmp_path_factory.mktemp(kernel)
            course, before = Course(kernel).start(), []
            for t in range(STEPS + 1):
                before.append(course.all())
                if t in saved:
                    tw.save_checkpoint(folder / f"{t}.npz", course.opt, {"t": t})
                if t < STEPS:
                    course.step(t)
            assert course.opt.skipped_steps == 9
            done[kernel] = before, folder
        return done[kernel]

    return record


@pytest.mark.slow
@each_rule
def test_resumed_at_any_step_it_ends_with_the_same_bits(kernel, recorded):
    every = FULL or kernel == "adagrad_row_inside"
    saved = range(STEPS + 1) if every else (0, 1, 5, 6, 36, 37, 38, 50, 51, 60, 61, 99, 100)
    before, folder = recorded(kernel, saved)
    for t in saved:
        course = Course(kernel, t)
        assert tw.load_checkpoint(folder / f"{t}.npz", course.opt, options="file") == {"t": t}
        assert course.all() == before[t], t
        assert course.run(t).all() == before[STEPS], t


@pytest.mark.slow
@pytest.mark.parametrize("kernel", RULES if FULL else ["classic_nesterov", "adagrad_row_outside"])
def test_resumed_in_a_fresh_process(kernel, tmp_path):
    course = Course(kernel).start().run(0, 42)
    tw.save_checkpoint(tmp_path / "a.npz", course.opt)
    ran = run_python(resuming.__file__, kernel, 42, tmp_path / "a.npz")
    assert ran.stdout.strip() == digest(course.run(42).all()), ran.stderr


@each_rule
def test_saving_changes_nothing(kernel, tmp_path):
    course = Course(kernel).start().run(0, 7)
    before = course.all()
    tw.save_checkpoint(tmp_path / "a.npz", course.opt)
    assert course.all() == before


@each_rule
def test_read_without_an_optimizer(kernel, tmp_path):
    course = Course(kernel).start().run(0, 42)
    tw.save_checkpoint(tmp_path / "a.npz", course.opt, extra=["x"])
    found = tw.read_checkpoint(tmp_path / "a.npz")
    opt = course.opt
    assert (found["version"], found["step_count"], found["extra"]) == (2, opt.step_count, ["x"])
    assert found["rule"] == type(opt).__name__
    assert list(found["params"]) == list(found["state"]) == list(opt.state)
    for name, param in opt._arrays.items():
        assert resuming.bits(found["params"][name]) == resuming.bits(param)
        for slot, value in opt.state[name].items():
            other = found["state"][name][slot]
            assert np.array_equal(other, value), (name, slot)
    assert found["groups"] == opt.state_dict()["groups"]


def test_layouts_survive(tmp_path):
    """The live array keeps its strides whatever the file's order; what is read keeps F order."""
    values = np.arange(12.0).reshape(3, 4)
    for order in "CF":
        tw.save_checkpoint(tmp_path / "a.npz", tw.SGD(np.array(values, order=order)))
        read = tw.read_checkpoint(tmp_path / "a.npz")["params"][""]
        assert read.flags[f"{order}_CONTIGUOUS"]
        assert np.array_equal(read, values)
        for live in (np.zeros((3, 4)), np.zeros((4, 3)).T, np.zeros((6, 8))[::-2, ::2]):
            strides = live.strides
            tw.load_checkpoint(tmp_path / "a.npz", tw.SGD(live))
            assert np.array_equal(live, values)
            assert live.strides == strides


def test_arrays_larger_than_a_chunk(tmp_path):
    """They are read and written in pieces, along whichever axis."""
    rng = np.random.default_rng(0)
    shapes = [(3_000_001,), (3, 1_500_000), (1, 2, 1_200_000), (1_200_000, 3)]
    views = [rng.standard_normal(shape, np.float32) for shape in shapes]
    views += [views[1].copy().T, rng.standard_normal((3, 2_400_000), np.float32)[:, ::2]]
    views += [rng.standard_normal((1_500_000, 2), np.float32)[:, 0]]
    views += [rng.standard_normal((3, 2, 1_200_000), np.float32).transpose(1, 0, 2)]
    start = [view.copy() for view in views]
    opt = tw.SGD(views, momentum=0.5)
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        for i, expected in enumerate(start):
            assert np.array_equal(file[f"param{i}"], expected)
    for view in views:
        view[...] = 0
    tw.load_checkpoint(tmp_path / "a.npz", opt)
    for view, expected in zip(views, start, strict=True):
        assert np.array_equal(view, expected)


# The file


def small(tree=None, **options):
    return tw.SGD(
        {"w": np.arange(6.0).reshape(2, 3)} if tree is None else tree, 0.5, 0.9, **options
    )


def test_numpy_reads_every_member_without_pickle(tmp_path):
    course = Course("heavy_ball").start().run(0, 40)
    tw.save_checkpoint(tmp_path / "a.npz", course.opt, {"a": np.ones(3), "F": np.ones((2, 3)).T})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        members = {name: file[name] for name in file.files}
    count = len(course.opt.state)
    assert len(members) == 2 * count + 2 + 1
    params = list(course.opt._arrays.values())
    for i, param in enumerate(params):
        assert resuming.bits(members[f"param{i}"]) == resuming.bits(param)
    assert members["manifest"].dtype == np.uint8
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_the_same_state_makes_the_same_bytes(tmp_path):
    for name in "ab":
        course = Course("adagrad_inside").start().run(0, 40)
        tw.save_checkpoint(tmp_path / name, course.opt, {"x": [1, np.ones(2)]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    tw.save_checkpoint(tmp_path / "b", course.run(40, 41).opt, {"x": [1, np.ones(2)]})
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


@needs_umask
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o000])
def test_mode_follows_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        tw.save_checkpoint(tmp_path / "a.npz", small())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.npz").stat().st_mode) == 0o666 & ~mask


@needs_umask
def test_a_link_keeps_pointing_to_its_file(tmp_path):
    (tmp_path / "data").mkdir()
    target, link = tmp_path / "data" / "real.npz", tmp_path / "link.npz"
    link.symlink_to(Path("data") / "real.npz")
    opt = small()
    for _ in range(2):  # there is no such file at first
        tw.save_checkpoint(link, opt)
        assert link.is_symlink()
        assert not target.is_symlink()
        tw.load_checkpoint(link, opt)
        tw.load_checkpoint(target, opt)
    assert sorted(path.name for path in tmp_path.rglob("*.npz")) == ["link.npz", "real.npz"]
    left = target.parent / ".real.npz.partial"
    left.write_bytes(b"left")
    tw.load_checkpoint(link, opt)
    assert not left.exists()


@pytest.mark.parametrize("do", [tw.save_checkpoint, tw.load_checkpoint], ids=["save", "load"])
def test_a_leftover_is_deleted(tmp_path, do):
    opt, left = small(), tmp_path / ".a.npz.partial"
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    others = [tmp_path / ".b.npz.partial", tmp_path / "a.npz.partial", tmp_path / ".a.npz"]
    for path in (left, *others):
        path.write_bytes(b"left")
    do(tmp_path / "a.npz", opt)
    assert not left.exists()
    assert all(path.exists() for path in others)
    left.write_bytes(b"left")
    tw.read_checkpoint(tmp_path / "a.npz")
    assert not left.exists()


@needs_umask
@pytest.mark.parametrize("do", [tw.save_checkpoint, tw.load_checkpoint], ids=["save", "load"])
def test_a_leftover_that_is_a_link_goes_without_its_file(tmp_path, do):
    opt = small()
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    (tmp_path / "other").write_bytes(b"mine")
    (tmp_path / ".a.npz.partial").symlink_to(tmp_path / "other")
    do(tmp_path / "a.npz", opt)
    assert (tmp_path / "other").read_bytes() == b"mine"
    assert tw.load_checkpoint(tmp_path / "a.npz", opt) is None


def test_relative_paths_and_all_kinds_of_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    opt = small()
    names = ["a", "ä ♞.npz", "deep/../b.npz", "-x", "a.npz.partial", "x" * 200]
    for name in [*names, Path("deep") / "c", tmp_path / "d"]:
        opt.step({"w": np.ones((2, 3))})
        tw.save_checkpoint(name, opt, {"name": str(name)})
        assert Path(name).is_file()
        assert tw.load_checkpoint(name, opt) == {"name": str(name)}
        assert tw.read_checkpoint(name)["step_count"] == opt.step_count
    assert not list(Path().rglob(".*"))


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", "ä♞", "param0", "manifest", "a\0b", "x" * 5000, " ", "\\", '"']
)
def test_any_name_of_a_param(tmp_path, name):
    """Names are in the manifest only: no member is called by one."""
    tree = {name: np.ones(3), "other": np.zeros(2)}
    opt = small(tree)
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    tree[name][...] = 5
    tw.load_checkpoint(tmp_path / "a.npz", opt)
    assert tree[name].tolist() == [1, 1, 1]
    assert list(tw.read_checkpoint(tmp_path / "a.npz")["params"]) == [name, "other"]
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        expected = ["param0", "param1", "state0", "state1", "manifest"]
        assert archive.namelist() == [f"{member}.npy" for member in expected]


def test_progress_counts_up_to_all_bytes(tmp_path):
    opt = small([np.ones(1_000_000), np.ones(3), np.ones((0, 2))])
    extra, seen = np.ones(600_000), []
    tw.save_checkpoint(tmp_path / "a", opt, extra, progress=lambda *x: seen.append(x))
    total = 2 * 8 * 1_000_003 + extra.nbytes
    for _ in range(3):
        done = [count for count, _ in seen]
        assert {every for _, every in seen} == {total}
        assert done == sorted(done)
        assert done[-1] == total
        assert len(done) >= 6
        steps, seen[:] = np.diff([0, *done]), []
        assert max(steps) <= 4 << 20
        tw.load_checkpoint(tmp_path / "a", opt, progress=lambda *x: seen.append(x))
    tw.read_checkpoint(tmp_path / "a", progress=lambda *x: seen.append(x))
    assert seen[-1] == (2 * total, 2 * total) or seen[-1] == (total, total)


@pytest.mark.parametrize("work", ["save", "load", "read"])
def test_an_error_of_progress_is_its_own(tmp_path, work):
    opt = small()
    tw.save_checkpoint(tmp_path / "a", opt, 1)

    def fail(*_):
        raise LookupError("mine")

    do = getattr(tw, f"{work}_checkpoint")
    with pytest.raises(LookupError, match="mine"):
        do(tmp_path / "a", *([] if work == "read" else [opt]), progress=fail)
    assert os.listdir(tmp_path) == ["a"]
    assert tw.load_checkpoint(tmp_path / "a", opt) == 1
    assert opt.step({"w": np.ones((2, 3))})


# The golden files


@pytest.mark.parametrize("version", [1, 2])
def test_golden_file_of_sgd(version):
    opt = golden.sgd()
    extra = tw.load_checkpoint(golden.GOLDEN / f"v{version}-sgd.npz", opt, options="file")
    assert extra["note"] == "all of JSON: é"
    assert (extra["values"][:4], extra["big"]) == ([None, True, -7, 0.1], 2**127 + 1)
    assert np.isnan(extra["values"][4])
    assert extra["array"].tolist() == ["x", "yz"]
    assert (
        extra["dates" if version == 1 else "array_of_dates"].tolist()
        == np.array(["2024-02-29", "NaT"], "M8[D]").tolist()
    )
    assert [x.tolist() for x in opt._arrays.values()] == [
        [[0.125, -1.5, 2.75], [3.0, 4.5, -5.25]],
        [0.5, -0.25, 8.0],
        [[1.0, 2.0, 3.0], [-4.0, 5.5, 0.0]],
    ]
    assert [x["velocity"].tolist() for x in opt.state.values()] == [
        [[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]],
        [0.5, 0.25, 0.125],
        [[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]],
    ]
    assert [x["step"] for x in opt.state.values()] == [12, 12, 11]
    assert (opt.step_count, opt.skipped_steps, opt.grad_norm) == (12, 1, 2.5)
    assert (opt.max_norm, opt.max_value, opt.on_nonfinite) == (3.0, None, "skip")
    assert opt.param_groups[0]["lr"] == tw.schedules.Warmup(tw.schedules.Cosine(0.5, 100), 10)
    assert [group["momentum"] for group in opt.param_groups] == [0.875, 0.75]
    assert [group["lr"] for group in opt.param_groups][1] == 0.0625


@pytest.mark.parametrize("version", [1, 2])
def test_golden_file_of_adagrad(version):
    opt, path = golden.adagrad(), golden.GOLDEN / f"v{version}-adagrad.npz"
    assert tw.load_checkpoint(path, opt, options="file") is None
    assert opt._arrays["table"].tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert opt.state["table"]["accumulator"].tolist() == [0.5, 0.25, 8.0]
    assert (opt.state["table"]["step"], opt.step_count, opt.grad_norm) == (5, 6, None)
    options = opt.param_groups[0]
    assert (options["lr"], options["lr_decay"]) == (tw.schedules.Step(0.25, 3), 0.125)
    found = tw.read_checkpoint(path)
    assert (found["version"], found["step_count"]) == (version, 6)


def test_the_golden_extra():
    found = tw.read_checkpoint(golden.GOLDEN / "v2-sgd.npz")["extra"]
    made = golden.kept()
    for name in ("tuple", "ix_to_char", "bytes", "dates", "python"):
        assert repr(found[name]) == repr(made[name])
    rng, old = found["rng"], found["old"]
    assert rng.bytes(99) == made["rng"].bytes(99)
    assert [x.bytes(9) for x in rng.spawn(2)] == [x.bytes(9) for x in made["rng"].spawn(2)]
    assert old.bytes(5000) == made["old"].bytes(5000)


@pytest.mark.parametrize("name", ["v2-sgd.npz", "v2-adagrad.npz"])
def test_golden_files_are_what_is_written_today(name, tmp_path):
    """A format that changes needs a new version, and a golden file of its own."""
    golden.main(tmp_path)
    cure = "while no release can read it: python tests/tools/golden.py writes it anew"
    assert (tmp_path / name).read_bytes() == (golden.GOLDEN / name).read_bytes(), cure
