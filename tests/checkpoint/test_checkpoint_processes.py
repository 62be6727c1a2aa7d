"""Saves that are killed, that meet others, and that meet steps of other threads."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

import saving
import thalweg as tw
from bits import assert_same_bits
from conftest import FULL
from processes import run_python
from saving import new, uniform
from thalweg._checkpoint import replacing

posix = pytest.mark.skipif(os.name == "nt", reason="neither kill -9 nor locks on Windows")


def succeeded(ran):
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    return list(map(int, ran.stdout.split()))


@posix
@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    count = 2000 if FULL else 20
    (left,) = succeeded(run_python(saving.__file__, "kill", tmp_path, count, timeout=900))
    # Most of the time it is writing.
    assert left > count / 10


@posix
def test_saves_to_one_name_at_a_time(tmp_path):
    """Three processes; what stands there is always one of theirs, whole."""
    count, found = (1000 if FULL else 30), new(0)
    tw.save_checkpoint(tmp_path / "a.npz", found, 0)
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(run_python, saving.__file__, "save_often", tmp_path, count)
            for _ in range(3)
        ]
        while not all(job.done() for job in jobs):
            assert tw.load_checkpoint(tmp_path / "a.npz", found) == uniform(found)
    results = [succeeded(job.result()) for job in jobs]
    assert [done for done, _ in results] == [count] * 3
    assert sum(busy for _, busy in results) > 0
    tw.load_checkpoint(tmp_path / "a.npz", found)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".ready"] == ["a.npz"]


@posix
def test_readers_do_not_fail_a_save(tmp_path):
    folder = tmp_path
    tw.save_checkpoint(folder / "a.npz", new(0, 70), 0)
    with ThreadPoolExecutor(3) as pool:
        readers = [
            pool.submit(run_python, saving.__file__, "read_often", folder, 0) for _ in range(2)
        ]
        count = 3000 if FULL else 300
        try:
            succeeded(run_python(saving.__file__, "save_among_readers", folder, count))
        finally:
            (folder / "stop").touch()
        for reader in readers:
            succeeded(reader.result())


@posix
@pytest.mark.parametrize("held", [0.0, 0.3])
def test_a_reader_between_the_making_and_the_locking(tmp_path, monkeypatch, held):
    """It takes the new file for a leftover and deletes it: the save makes another one."""
    fcntl = pytest.importorskip("fcntl", reason="no locks")
    lock, partial, seen = replacing._lock, tmp_path / ".a.npz.partial", []

    def late(file, wait=False):
        if wait and not seen:
            seen.append(file)
            reader = open(partial, "rb")  # noqa: SIM115
            fcntl.flock(reader, fcntl.LOCK_EX)
            partial.unlink()
            if held:
                threading.Timer(held, reader.close).start()
            else:
                reader.close()
        lock(file, wait)

    monkeypatch.setattr(replacing, "_lock", late)
    tw.save_checkpoint(tmp_path / "a.npz", new(1, 70), "kept")
    assert seen
    assert tw.load_checkpoint(tmp_path / "a.npz", new(0, 70)) == "kept"
    assert os.listdir(tmp_path) == ["a.npz"]


@posix
def test_a_leftover_whose_name_another_save_takes(tmp_path, monkeypatch):
    """Between the opening and the locking: the lock is then of a file that has no name any more."""
    fcntl = pytest.importorskip("fcntl", reason="no locks")
    lock, partial, taken = replacing._lock, tmp_path / ".a.npz.partial", []

    def late(file, wait=False):
        if not taken:
            partial.unlink()
            taken.append(open(partial, "wb"))  # noqa: SIM115
            fcntl.flock(taken[0], fcntl.LOCK_EX)
        lock(file, wait)

    partial.write_bytes(b"left")
    monkeypatch.setattr(replacing, "_lock", late)
    with pytest.raises(BlockingIOError, match="another save"):
        tw.save_checkpoint(tmp_path / "a.npz", new(1, 70))
    assert os.path.samestat(partial.stat(), os.fstat(taken[0].fileno()))
    taken[0].close()
    tw.save_checkpoint(tmp_path / "a.npz", new(1, 70))
    assert os.listdir(tmp_path) == ["a.npz"]


@posix
@pytest.mark.parametrize("another", [False, True])
def test_a_partial_file_that_is_taken_away(tmp_path, another):
    """As on a file system without locks: the save fails, and leaves alone what is not its own."""
    tw.save_checkpoint(tmp_path / "a.npz", new(1, 70), "before")
    partial = tmp_path / ".a.npz.partial"

    def take(done, total):
        if done == total:
            partial.unlink()
            if another:
                partial.write_bytes(b"another's")

    with pytest.raises(BlockingIOError, match="another save"):
        tw.save_checkpoint(tmp_path / "a.npz", new(2, 70), "after", progress=take)
    if another:
        assert partial.read_bytes() == b"another's"
    found = new(0, 70)
    assert tw.load_checkpoint(tmp_path / "a.npz", found) == "before"
    assert uniform(found) == 1


def test_another_thread_that_saves_to_the_name(tmp_path):
    """The locks are of open files, not of processes."""
    opt, other = new(1, 70), new(2, 70)

    def meanwhile(done, total):
        with pytest.raises(BlockingIOError, match="another save"):
            tw.save_checkpoint(tmp_path / "a.npz", other)
        tw.save_checkpoint(tmp_path / "b.npz", other)

    tw.save_checkpoint(tmp_path / "a.npz", opt, progress=meanwhile)
    assert uniform(opt) == tw.load_checkpoint(tmp_path / "a.npz", opt) or uniform(opt) == 1
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/clear_refs is Linux's")
def test_memory_of_a_large_save_and_load(tmp_path):
    mib = 1024 if FULL else 256
    taken = succeeded(run_python(saving.__file__, "memory", tmp_path, mib, timeout=300))
    assert max(taken) <= 32 * 1024, f"{taken} KiB"


# Threads


class Stepper:
    """A thread that steps all the time; what the arrays are after t steps is known."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.start = [rng.standard_normal(700_000), rng.standard_normal((300, 1000))]
        self.params = [w.copy() for w in self.start]
        self.grads = [np.ones_like(w) for w in self.start]
        self.opt = tw.SGD(self.params, 2.0**-10, 0.5)
        self.stopped = False
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.stopped:
            self.opt.step(self.grads)

    def __enter__(self):
        self.thread.start()
        return self

    def wait(self):
        """Until it has taken one more step."""
        before, end = self.opt.step_count, time.monotonic() + 60
        while self.opt.step_count == before:
            assert self.thread.is_alive()
            assert time.monotonic() < end

    def __exit__(self, *_):
        self.stopped = True
        self.thread.join()

    def assert_is_after(self, t, params, states):
        """Velocities first, which tell the step by themselves while they are exact."""
        expected = [w.copy() for w in self.start]
        opt = tw.SGD(expected, 2.0**-10, 0.5)
        for _ in range(t):
            opt.step(self.grads)
        for i in range(2):
            assert_same_bits(states[i], opt.state[str(i)]["velocity"], f"state after {t}")
            assert_same_bits(params[i], expected[i], f"param after {t}")


def see_count(opt, seen, done, total):
    seen.append(opt.step_count)


def test_a_save_between_the_steps_of_another_thread(tmp_path):
    with Stepper() as stepper:
        counts = []
        for i in range(5):
            seen = []
            progress = partial(see_count, stepper.opt, seen)
            tw.save_checkpoint(tmp_path / f"{i}", stepper.opt, progress=progress)
            assert len(seen) > 3
            assert len(set(seen)) == 1, "steps wait"
            counts += seen[:1]
            stepper.wait()
    for i, count in enumerate(counts):
        found = tw.read_checkpoint(tmp_path / f"{i}")
        assert found["step_count"] == count
        assert {slots["step"] for slots in found["state"].values()} == {count}
        velocities = [slots["velocity"] for slots in found["state"].values()]
        stepper.assert_is_after(count, list(found["params"].values()), velocities)


def test_params_that_another_thread_writes_meanwhile(tmp_path):
    """Whatever is stored, it is stored with its own checksum."""
    w = np.ones((300, 20_000), np.float32)
    opt, stopped = tw.SGD([w, w.T.copy().T], 0.5), threading.Event()

    def write():
        while not stopped.is_set():
            w[...] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for order in "CF":
            tw.save_checkpoint(tmp_path / "a", opt, {"w": np.array(w, order=order), "same": w.T})
            tw.read_checkpoint(tmp_path / "a")
    finally:
        stopped.set()
        thread.join()


def test_a_load_between_the_steps_of_another_thread(tmp_path):
    stepper = Stepper()
    for _ in range(7):
        stepper.opt.step(stepper.grads)
    tw.save_checkpoint(tmp_path / "a", stepper.opt)
    with stepper:
        for _ in range(5):
            tw.load_checkpoint(tmp_path / "a", stepper.opt)
            stepper.wait()
    count = stepper.opt.step_count
    assert count > 7
    velocities = [slots["velocity"] for slots in stepper.opt.state.values()]
    assert {slots["step"] for slots in stepper.opt.state.values()} == {count}
    stepper.assert_is_after(count, stepper.params, velocities)


def test_a_state_dict_between_the_steps_of_another_thread():
    with Stepper() as stepper:
        found = [stepper.opt.state_dict() for _ in range(10)]
        stepper.opt.load_state_dict(found[0])
    for each in (found[0], found[-1]):
        arrays = each["arrays"].values()
        assert {array["step"] for array in arrays} == {each["step_count"]}
        opt = tw.SGD([np.zeros(1)], 0.5, 0.5)
        for _ in range(each["step_count"]):
            opt.step([np.ones(1)])
        velocity = opt.state["0"]["velocity"][0]
        assert all((array["velocity"] == velocity).all() for array in arrays)


@posix
def test_a_fork_during_a_save(tmp_path):
    """The child has the file open; that the save replaces it is not the child's doing."""
    opt, pids = new(1, 70), []

    def fork(done, total):
        if not pids:
            reading, writing = os.pipe()
            child = subprocess.Popen(["sleep", "30"], pass_fds=[writing])
            os.close(reading)
            os.close(writing)
            pids.append(child)

    tw.save_checkpoint(tmp_path / "a.npz", opt, progress=fork)
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    pids[0].kill()
    pids[0].wait()
    assert os.listdir(tmp_path) == ["a.npz"]
