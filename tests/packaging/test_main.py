"""``python -m thalweg`` as a user runs it, and the examples in the docstrings."""

import doctest
import importlib
import itertools
import os
import pkgutil
import re
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

import thalweg
from thalweg import _core
from thalweg.__main__ import main
from thalweg._command import demo, selftest

TRAJECTORY = "e58658532c9aa7943252409169d57443dc2b0aac027f3f97087d798ed93ad78a"
MODULES = [
    module.name
    for module in pkgutil.walk_packages(thalweg.__path__, "thalweg.")
    if module.name != "thalweg.__main__"
]
LIBRARY = {
    "thalweg.flower": "flwr",
    "thalweg.keras": "keras",
    "thalweg.mpi": "mpi4py",
    "thalweg.sklearn": "sklearn",
    "thalweg.thinc": "thinc",
    "thalweg.torch": "torch",
}


def command(*arguments):
    return [sys.executable, "-W", "error", "-m", "thalweg", *arguments]


def run(*arguments, env=None):
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | (env or {}),
    )


@pytest.fixture(scope="module")
def text():
    return demo.Text()


def test_demo_learns_and_keeps_the_bits():
    result = run("demo", "--seconds", "4", "--seed", "3")
    assert result.returncode == 0, result.stderr
    losses = [float(x) for x in re.findall(r"loss (\d+\.\d+)", result.stdout)]
    assert len(losses) >= 5
    assert losses[-1] < losses[0] - 0.2
    assert losses[-1] < 3.5
    identical = re.search(
        r"bits identical: yes, 0 of ([\d,]+) .* any of ([\d,]+) steps", result.stdout
    )
    assert identical, result.stdout
    compared, steps = (int(group.replace(",", "")) for group in identical.groups())
    size = sum(w.size for w in demo.CharRNN(102, np.random.default_rng(0)).params)
    assert steps > 0
    assert compared >= steps * size
    assert re.search(r"\d characters/s", result.stdout)
    assert result.stdout.count("it goes on:") == 2
    for caches in ("hot", "cold"):
        row = rf"{caches} +[\d.]+ +[\d.]+, [\d.]+ times as fast +[\d.]+: (\w+) dominates\n"
        assert re.search(row, result.stdout)[1] in ("memory", "arithmetic")
    assert re.search(r"whole loop is [\d.]+ times as fast", result.stdout)
    assert "\r" not in result.stdout


def test_demo_tells_of_a_bit_that_differs(text, capsys):
    lockstep = demo.Lockstep(text, seed=0)
    lockstep.memory_by_hand[0][0, 0] = np.float32(1e-12)
    lockstep.run(0.02)
    lockstep.report()
    assert lockstep.different > 0
    assert "bits identical: NO" in capsys.readouterr().out


def test_demo_measures_hot_and_cold_steps_apart(text, monkeypatch):
    flushed = []
    monkeypatch.setattr(demo, "flush", lambda: flushed.append(len(lockstep.times["hot"]["call"])))
    lockstep = demo.Lockstep(text, seed=0)
    lockstep.run(0.1)
    hot, cold = lockstep.times["hot"], lockstep.times["cold"]
    for times in (hot, cold):
        assert len({len(found) for found in times.values()}) == 1
        assert min(times["call"]) > 0
    # Once before each cold step, when all hot ones were over.
    assert flushed == [len(hot["call"])] * 3 * len(cold["call"])
    assert lockstep.different == 0


@pytest.mark.parametrize(("limit", "what"), [(6.0, "memory"), (4.0, "arithmetic")])
def test_demo_says_what_dominated(limit, what):
    said = demo._compared("hot", 30.0, 10.0, limit)
    assert "10.0, 3.0 times as fast" in said
    assert said.endswith(f"{limit}: {what} dominates")


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
def test_ctrl_c_ends_the_demo_politely():
    with subprocess.Popen(
        command("demo", "--seconds", "20"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    ) as process:
        while "step " not in (line := process.stdout.readline()) or "loss" not in line:
            assert line, process.stderr.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == ""
    assert out.endswith("Stopped early.\n")
    assert re.search(r"loss \d", out)


@pytest.mark.parametrize("live", [True, False])
def test_progress_writes_over_its_line_on_a_terminal_only(live, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: live)
    progress = demo.Progress(10)
    for tenth in range(100):
        progress.show(tenth / 10, f"at {tenth}")
    progress.close(10, "at the end")
    out = capsys.readouterr().out
    assert out.count("\r") == (out.count("at ") if live else 0)
    assert out.count("\n") == (1 if live else 10)
    assert out.rstrip().endswith("at the end")


@pytest.mark.parametrize("which", range(5))
def test_gradients_of_the_demo_are_the_slopes_of_its_loss(text, which):
    rng = np.random.default_rng(1)
    network = demo.CharRNN(len(text.alphabet), rng)
    # Inputs that bend the tanh, and a recurrence that stays short of chaos.
    for w, size in zip(network.params, (1, 0.05, 0.05, 0.5, 0.05), strict=True):
        w += np.float32(size) * rng.standard_normal(w.shape, np.float32)
    x, y, _ = text.next()
    _, grads = network.gradients(x, y, True)
    length = np.linalg.norm(grads[which])
    start, direction = network.params[which].copy(), grads[which] / length
    losses = []
    for step in (-0.02, 0.02):
        network.params[which][...] = start + np.float32(step) * direction
        losses.append(network.gradients(x, y, True)[0])
    assert (losses[1] - losses[0]) / 0.04 == pytest.approx(length, rel=0.02)


def test_text_is_read_in_order_and_round_again(text):
    fresh = demo.Text()
    seen = [fresh.next() for _ in range(2000)]
    assert [afresh for *_, afresh in seen[:3]] == [True, False, False]
    assert sum(afresh for *_, afresh in seen) >= 2
    for (x, y, _), (following, _, afresh) in itertools.pairwise(seen):
        assert np.array_equal(x[1:], y[:-1])
        assert afresh or np.array_equal(y[-1], following[0])


def test_selftest_passes_and_its_trajectory_is_everyones():
    result = run("selftest")
    assert result.returncode == 0, result.stdout + result.stderr
    *levels, _, sha = result.stdout.splitlines()
    assert [line.split()[0] for line in levels] == list(_core.isa_supported)
    for line in levels:
        assert re.search(r" 1,152 runs, [\d,]{9,} elements: 0 differ from NumPy$", line)
    assert sha == TRAJECTORY


@pytest.mark.parametrize("level", _core.isa_supported)
def test_trajectory_at_each_level(level):
    assert selftest.trajectory(level) == TRAJECTORY


def test_selftest_fails_where_bits_differ(monkeypatch, capsys):
    def wrong(rule, w, g, state, t, options):
        right(rule, w, g, state, t, options)
        if options.get("eps_placement") == "outside" and w.dtype == np.float32:
            w[...] = np.nextafter(w, np.float32(9))

    right = selftest.twin
    monkeypatch.setattr(selftest, "twin", wrong)
    monkeypatch.setattr(selftest, "OPTIONS", [{}])
    assert main(["selftest"]) == 1
    lines = capsys.readouterr().out.splitlines()
    level = _core.isa_supported[0]
    assert any(
        re.match(
            rf"{level}: Adagrad\(eps_placement='outside', .*\), float32, .* elements differ", line
        )
        for line in lines
    )
    assert any(f"{level}: another trajectory" in line for line in lines)
    assert "FAILED" in lines[-1]


def test_info_names_versions_and_levels():
    result = run("info")
    assert result.returncode == 0, result.stderr
    said = dict(re.split(r"\s{2,}", line) for line in result.stdout.splitlines())
    assert said == {
        "thalweg": thalweg.__version__,
        "numpy": np.__version__,
        "isa compiled": ", ".join(_core.isa_compiled),
        "isa supported": ", ".join(_core.isa_supported),
        "isa in use": _core.isa,
        "threads": str(thalweg.get_num_threads()),
    }


def test_info_shows_the_level_that_was_forced():
    result = run("info", env={"THALWEG_ISA": "baseline"})
    assert re.search(r"^isa in use +baseline$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "command"),
        (["dance"], "dance"),
        (["demo", "--seconds", "0"], "expected a finite number > 0, received 0"),
        (["demo", "--seconds", "nan"], "expected a finite number > 0, received nan"),
        (["demo", "--seconds", "soon"], "soon"),
        (["demo", "--seed", "-1"], "expected a whole number >= 0, received -1"),
    ],
)
def test_wrong_arguments_are_named(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("name", ["thalweg", *MODULES])
def test_doctests(name):
    if name == "thalweg.rows":
        pytest.importorskip("scipy", reason="scipy, which an example needs, is not installed")
    with warnings.catch_warnings():
        if library := LIBRARY.get(name):
            warnings.simplefilter("ignore")  # what its imports deprecate is not ours
            pytest.importorskip(library, reason=f"{library}, whose adapter it is, is not installed")
        module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0
    documented = {"functional", "optimizers", "rows", "_optimizer.base", "_command.info"}
    documented |= {"_identify.search", "_range_test.search"}
    assert result.attempted > 0 or name.removeprefix("thalweg.") not in documented


def test_bench_takes_about_the_time_it_is_given(capsys):
    assert main(["bench", "--seconds", "0.5"]) == 0
    table = capsys.readouterr().out
    assert "memory alone" in table
    assert "2^23" in table


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise there")
def test_a_reader_that_leaves_early():
    command = f"{sys.executable} -m thalweg info | true; exit ${{PIPESTATUS[0]}}"
    for _ in range(5):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, 1)
        assert "Traceback" not in done.stderr
