"""What fails outside of the package: an error, the checkpoint of before, and an optimizer that goes
on."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import failing_files
import thalweg as tw
from conftest import TOOLS
from processes import run_python
from refusing import frozen, refused
from thalweg._checkpoint.archive import Archive

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="LD_PRELOAD and these limits are Linux's"
)


@pytest.fixture(scope="module")
def files_interposer(tmp_path_factory):
    """For LD_PRELOAD: the library made from interpose_files.c."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if not compiler:
        pytest.skip("no C compiler to build interpose_files.c with")
    library = tmp_path_factory.mktemp("interposer") / "files.so"
    source = TOOLS / "interpose_files.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return str(library)


def succeeded(ran):
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    assert not ran.stderr


@linux
@pytest.mark.parametrize("scenario", ["save", "parts", "load"])
def test_every_system_call_fails_once(files_interposer, tmp_path, scenario):
    succeeded(run_python(failing_files.__file__, scenario, tmp_path, LD_PRELOAD=files_interposer))


@linux
def test_full_at_every_size(tmp_path):
    succeeded(run_python(failing_files.__file__, "limit", tmp_path))


@linux
def test_full_disk(tmp_path):
    unshare = shutil.which("unshare")
    command = [unshare, "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    mount = f"mount -t tmpfs -o size=256k none '{tmp_path}'"
    if not unshare or subprocess.run([*command, "sh", "-c", mount], check=False).returncode:
        pytest.skip("this system lets nobody mount a tmpfs in a name space of its own")
    run = f'{mount} && exec "$0" -W error "$1" disk "$2"'
    arguments = [sys.executable, failing_files.__file__, tmp_path]
    paths = os.pathsep.join([str(Path(tw.__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}
    ran = subprocess.run(
        [*command, "sh", "-c", run, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    succeeded(ran)


# The second pass


def two():
    return tw.SGD({"a": np.ones(5), "b": np.ones((2, 3), np.float32)}, 0.5, 0.9, max_norm=2.0)


GRADS = {"a": np.ones(5), "b": np.ones((2, 3))}


@pytest.fixture
def saved(tmp_path):
    opt = two()
    opt.step(GRADS)
    opt.lr, opt.max_norm = 0.25, 7.0
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    return tmp_path / "a.npz", opt


def options(opt):
    return repr(opt), (opt.max_norm, opt.max_value, opt.on_nonfinite)


def assert_refuses_until_loaded(opt, path, expected):
    for _ in range(2):
        with refused(RuntimeError, "step", str(path), "half-way", "load a checkpoint", keeps=opt):
            opt.step(GRADS)
    with refused(tw.CheckpointError, "damaged", keeps=opt):
        (path.parent / "b.npz").write_bytes(b"x")
        tw.load_checkpoint(path.parent / "b.npz", opt)
    copied = path.parent / "copied.npz"
    for hand_on in (
        lambda: opt.step(GRADS),
        lambda: tw.save_checkpoint(copied, opt),
        opt.state_dict,
        lambda: pickle.dumps(opt),
        lambda: copy.deepcopy(opt),
    ):
        with pytest.raises(RuntimeError, match="half-way"):
            hand_on()
    assert not copied.exists()
    tw.load_checkpoint(path, opt, options="file")
    again = two()
    tw.load_checkpoint(path, again, options="file")
    assert options(opt) == options(again) == options(expected)
    assert opt.step(GRADS)
    assert again.step(GRADS)
    for mine, other in zip(opt._arrays.values(), again._arrays.values(), strict=True):
        assert mine.tobytes() == other.tobytes()


@pytest.mark.parametrize("nth", range(4))
@pytest.mark.parametrize(
    "error", [OSError(5, "no such luck"), KeyboardInterrupt(), MemoryError(), ValueError("wrong")]
)
def test_reading_that_fails_once_arrays_change(saved, monkeypatch, nth, error):
    """In any of the two params and two states."""
    path, expected = saved
    opt = two()
    before, copy, calls = options(opt), Archive.copy, []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) == nth + 1:
            raise error
        copy(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Archive, "copy", failing)
        wrapped = isinstance(error, (MemoryError, ValueError))
        expected_error = tw.CheckpointError if wrapped else type(error)
        with pytest.raises(expected_error):
            tw.load_checkpoint(path, opt, options="file")
    assert options(opt) == before
    assert opt.step_count == 0
    assert_refuses_until_loaded(opt, path, expected)


def test_a_file_that_is_cut_short_between_the_passes(saved):
    path, expected = saved
    whole, opt = path.read_bytes(), two()
    before = options(opt)

    def cut(done, total):
        if done == total:
            os.truncate(path, 300)

    with pytest.raises(tw.CheckpointError, match="ends early"):
        tw.load_checkpoint(path, opt, options="file", progress=cut)
    assert options(opt) == before
    path.write_bytes(whole)
    assert_refuses_until_loaded(opt, path, expected)


def test_a_file_that_is_cut_short_in_the_first_pass(saved):
    path, _ = saved
    opt = two()
    with refused(tw.CheckpointError, "ends early", keeps=opt):
        tw.load_checkpoint(path, opt, progress=lambda *_: os.truncate(path, 300))
    assert opt.step(GRADS)


def test_a_param_that_has_become_read_only(saved):
    path, _ = saved
    opt = two()
    opt._arrays["b"].flags.writeable = False
    with refused(tw.CheckpointError, "params['b']", "read-only", keeps=opt):
        tw.load_checkpoint(path, opt, options="file")


def test_a_param_that_has_another_shape(saved):
    path, _ = saved
    opt = two()
    opt._arrays["a"].resize(4, refcheck=False)
    with refused(tw.CheckpointError, "params['a']", "(4,)", "(5,)", keeps=opt):
        tw.load_checkpoint(path, opt, options="file")


# Places where nothing can be written


def test_folders_that_are_not_there_or_are_no_folders(tmp_path):
    opt = two()
    with refused(
        FileNotFoundError, "folder is not there", "make it", str(tmp_path / "no"), keeps=opt
    ):
        tw.save_checkpoint(tmp_path / "no" / "a.npz", opt)
    with refused(IsADirectoryError, "name of a file", "folder", str(tmp_path), keeps=opt):
        tw.save_checkpoint(tmp_path, opt)
    (tmp_path / "file").write_bytes(b"mine")
    with refused(FileNotFoundError, "folder is not there", keeps=opt):
        tw.save_checkpoint(tmp_path / "file" / "a.npz", opt)
    (tmp_path / "link").symlink_to(tmp_path / "no" / "a.npz")
    with refused(FileNotFoundError, "folder is not there", keeps=opt):
        tw.save_checkpoint(tmp_path / "link", opt)
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


READ_ONLY = """
import os, sys
import encodings.cp437, numpy as np, thalweg as tw, thalweg.checkpoint  # while they may be read
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
opt = tw.SGD(np.zeros(3))
assert tw.load_checkpoint(sys.argv[1], opt) == "before"
for path in (sys.argv[1], os.path.dirname(sys.argv[1]) + "/new.npz"):
    try:
        tw.save_checkpoint(path, opt)
    except PermissionError as error:
        print(error)
    else:
        raise AssertionError("it was writeable")
try:
    tw.CheckpointKeeper(os.path.dirname(sys.argv[1])).save(opt, force=True)
except PermissionError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no user ids on this system")
def test_a_folder_that_may_only_be_read(tmp_path):
    """By a user that is not root, for whom nothing is read-only."""
    folder = tmp_path / "folder"
    folder.mkdir()
    tw.save_checkpoint(folder / "a.npz", tw.SGD(np.ones(3)), "before")
    before = (folder / "a.npz").read_bytes()
    (folder / ".a.npz.partial").write_bytes(b"left by another user")
    if os.geteuid() == 0:
        reached = [folder, *folder.parents[:-1]]
        closed = [path for path in reached if not path.stat().st_mode & 1]
        if any(path.parent == path.parent.parent for path in closed):
            pytest.skip(f"no other user may enter {closed[-1]}")
        for path in closed:
            path.chmod(0o755)
    folder.chmod(0o555)
    try:
        (script := tmp_path / "run.py").write_text(READ_ONLY)
        ran = run_python(script, folder / "a.npz")
    finally:
        folder.chmod(0o755)
    succeeded(ran)
    said = ran.stdout.splitlines()
    assert len(said) == 3
    for line in said[1:]:
        assert str(folder) in line
        assert "choose another, or make it writeable" in line
    assert (folder / "a.npz").read_bytes() == before


def test_nothing_is_lost_when_what_is_saved_is_refused(tmp_path):
    opt = two()
    tw.save_checkpoint(tmp_path / "a", opt, "before")
    before = frozen(opt)
    with pytest.raises(TypeError):
        tw.save_checkpoint(tmp_path / "a", opt, {1})
    with pytest.raises(ValueError, match="67,108,864 bytes"):
        tw.save_checkpoint(tmp_path / "a", opt, ["x" * 1000] * 70_000)
    assert os.listdir(tmp_path) == ["a"]
    assert tw.load_checkpoint(tmp_path / "a", opt) == "before"
    assert frozen(opt) == before
