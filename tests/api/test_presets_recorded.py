"""Every preset against numbers that its library's own optimizer gave, and live where it is there.

The numbers stand in presets.json; tests/tools/record_presets.py makes them.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import record_presets
import thalweg as tw
from thalweg import presets

RECORDED = json.loads((Path(__file__).parent / "presets.json").read_text())
# These published lines of NumPy, whose order of operations is ours; the others are to a few eps.
SAME_BITS = set(record_presets.LINES)
CLOSE = 4e-15


def closeness(source, case):
    """optax computes the rates of its schedules in float32."""
    return 2e-7 if source == "optax" and isinstance(case["options"]["lr"], list) else CLOSE


CASES = [
    pytest.param(source, case, id=f"{source}-{name}")
    for source, library in RECORDED.items()
    for name, case in library["cases"].items()
]


def run(source, case):
    """What thalweg comes to with nothing said but what the library's user says."""
    options = {
        name: value.__getitem__ if isinstance(value, list) else value
        for name, value in case["options"].items()
    }
    params = record_presets.params()
    opt = getattr(tw, case["rule"]).like(source, params, **options)

    def step(grads):
        assert opt.step(grads)
        return params

    return record_presets.recorded(step)


@pytest.mark.parametrize(("source", "case"), CASES)
def test_preset_gives_the_recorded_numbers(source, case):
    found = np.array(run(source, case))
    if source in SAME_BITS:
        assert found.tolist() == case["params"]
    else:
        close = closeness(source, case)
        np.testing.assert_allclose(found, case["params"], rtol=close, atol=close)


def test_every_preset_is_recorded():
    for rule in (tw.SGD, tw.Adagrad):
        sources = {
            s
            for s, x in RECORDED.items()
            for c in x["cases"].values()
            if c["rule"] == rule.__name__
        }
        assert sources == set(rule._presets)


@pytest.mark.parametrize("rule", ["SGD", "Adagrad"])
def test_a_wrong_digit_of_a_preset_is_found(rule, monkeypatch):
    """Each number and flag of the table, changed in its last digit, fails at least one case."""
    table = presets.SGD_PRESETS if rule == "SGD" else presets.ADAGRAD_PRESETS
    for source, options in table.items():
        mine = [c for c in RECORDED[source]["cases"].values() if c["rule"] == rule]
        for name, value in options.items():
            if value is presets.REQUIRED:
                continue
            wrong = WRONG_WORDS.get(value) if isinstance(value, str) else wrong_number(value)
            monkeypatch.setitem(options, name, wrong)
            assert not all(agrees(source, case) for case in mine), (source, name)
            monkeypatch.setitem(options, name, value)
            assert all(agrees(source, case) for case in mine), (source, name)


WRONG_WORDS = {
    "heavy_ball": "classic",
    "classic": "heavy_ball",
    "ema": "heavy_ball",
    "inside": "outside",
    "outside": "inside",
}


def wrong_number(value):
    if isinstance(value, bool):
        return not value
    return 1e-6 if value == 0 else value * 1.01


def agrees(source, case):
    try:
        found = run(source, case)
        if source in SAME_BITS:
            return found == case["params"]
        close = closeness(source, case)
        return np.allclose(found, case["params"], rtol=close, atol=close)
    except ValueError:  # refused
        return False


@pytest.mark.parametrize("source", record_presets.LINES)
def test_lines_are_recorded_as_they_are(source):
    assert record_presets.record(source) == RECORDED[source]


@pytest.mark.parametrize("source", record_presets.LIBRARIES)
def test_a_library_that_is_here_gives_the_recorded_numbers(source):
    needed = {"optax": ["optax", "jax"], "keras": ["keras", "jax"]}.get(source, [source])
    for package in needed:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if source == "chainer" and not np.__version__.startswith("1."):
        pytest.skip("Chainer cannot be imported beside NumPy 2")
    tool = Path(record_presets.__file__)
    # A process of its own: these libraries are set to float64, which is theirs as a whole.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(tool), source],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    live, recorded = json.loads(done.stdout)[source], RECORDED[source]
    assert set(live["cases"]) == set(recorded["cases"])
    for name, case in recorded["cases"].items():
        np.testing.assert_allclose(
            live["cases"][name]["params"], case["params"], rtol=CLOSE, atol=CLOSE, err_msg=name
        )
