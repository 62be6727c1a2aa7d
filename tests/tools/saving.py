"""What test_checkpoint_processes.py runs in processes of its own: ``saving.py SCENARIO FOLDER
COUNT``."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

import thalweg as tw

MIB = 1 << 20


def new(value, size=150_000):
    """Two params and their states, all of one value."""
    params = [np.full(size, value, float), np.full((7, size // 7), value, np.float32)]
    opt = tw.SGD(params, 0.5, 0.9)
    for slots in opt.state.values():
        slots["velocity"][...] = value
    return opt


def new_joint(value, size=150_000):
    """The same in two optimizers."""
    table = np.full((7, size // 7), value, np.float32)
    emb = tw.Adagrad(table, 0.5)
    emb.state[""]["accumulator"][...] = value
    return tw.Joint(head=new(value, size), emb=emb)


def uniform(opt):
    """The one value of all arrays."""
    arrays = []
    for each in opt._members().values():
        arrays += [*each._arrays.values(), *(slots[each._slot] for slots in each.state.values())]
    values = {value for array in arrays for value in np.unique(array).tolist()}
    assert len(values) == 1, values
    return values.pop()


def kill_joint(folder, count):
    kill(folder, count, new_joint)


def kill(folder, count, new=new):
    """SIGKILL at random moments of a saving loop: the newest is i or i + 1."""
    path, partial = folder / "a.npz", folder / ".a.npz.partial"
    rng, found, left = random.Random(1), new(-1), 0
    tw.save_checkpoint(path, new(0), 0)
    for _ in range(count):
        start = tw.load_checkpoint(path, found)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            for i in range(start + 1, start + 10_000):
                tw.save_checkpoint(path, new(i), i)
                os.write(writing, i.to_bytes(8, "big"))
            os._exit(1)
        os.close(writing)
        done = start
        if rng.random() < 0.8:
            done = int.from_bytes(os.read(reading, 8), "big")
        time.sleep(rng.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while data := os.read(reading, 8):
            done = int.from_bytes(data, "big")
        os.close(reading)
        left += partial.exists()
        names = {*os.listdir(folder)}
        assert names <= {"a.npz", ".a.npz.partial"}, names
        extra = tw.load_checkpoint(path, found)
        assert extra >= start
        assert extra in (done, done + 1), (extra, done)
        assert uniform(found) == extra
        assert os.listdir(folder) == ["a.npz"], "load deletes what was left"
        if rng.random() < 0.5:
            partial.write_bytes(b"left")
            tw.save_checkpoint(path, found, extra)
            assert os.listdir(folder) == ["a.npz"]
    print(left)


def save_often(folder, count):
    """Saves beside two others that do: each is whole or says that another one is at work."""
    me = os.getpid()
    opt, done, busy = new(me), 0, 0
    (folder / f"{me}.ready").touch()
    while len(list(folder.glob("*.ready"))) < 3:
        time.sleep(0.001)
    while done < count:
        try:
            tw.save_checkpoint(folder / "a.npz", opt, me)
        except BlockingIOError as error:
            if "another save" not in str(error):
                raise
            busy += 1
            time.sleep(random.random() * 0.01)
        else:
            done += 1
    print(done, busy)


def save_among_readers(folder, count):
    """A reader looks for leftovers: that must not fail a save."""
    for i in range(count):
        tw.save_checkpoint(folder / "a.npz", new(i, 70), i)


def read_often(folder, _):
    found = new(0, 70)
    while not (folder / "stop").exists():
        extra = tw.load_checkpoint(folder / "a.npz", found)
        assert uniform(found) == extra


def memory(folder, mib):
    """Prints what a save and a load take at most, beyond what was there, in KiB."""
    count = mib * MIB // 4 // 8
    params = [np.zeros((2, count), np.float32), np.zeros((count // 1000, 1000), order="F")]
    params += [np.zeros((1000, count // 1000 * 2), np.float32)[:, ::2]]
    opt, small = tw.SGD(params, 0.5, 0.9), new(1, 7000)
    for array in [*params, *(slots["velocity"] for slots in opt.state.values())]:
        array[...] = 1.0
    tw.save_checkpoint(folder / "small", small)
    tw.load_checkpoint(folder / "small", small)
    taken = []
    for do in (tw.save_checkpoint, tw.load_checkpoint):
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        do(folder / "a", opt)
        taken.append(status("VmHWM") - before)
    assert (folder / "a").stat().st_size >= 0.99 * mib * MIB, (folder / "a").stat().st_size
    print(*taken)


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
