"""examples/torch_airfoil.py: one loop with torch's optimizers and with ours ends in one place."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

from example_code import FOLDER, load


@pytest.fixture
def example(monkeypatch):
    return load("torch_airfoil", monkeypatch)


def noise(count=1503):
    """Like NASA's: linear in five features, half of the variance noise."""
    rng = np.random.default_rng(291)
    X = rng.standard_normal((count, 5))
    return X, X @ [0.45, -0.3, 0.25, 0.2, -0.3] + 0.7 * rng.standard_normal(count)


def test_both_end_near_least_squares(example):
    X, y = noise()
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    floor = example.least_squares(X, y)
    data_iter = example.batches(X, y)
    for rule, hyperparams in example.SETTINGS.items():
        runs = [
            example.train_concise(getattr(module, rule), hyperparams, data_iter, 2)
            for module in example.MODULES.values()
        ]
        (at, theirs, _), (at_too, ours, seconds) = runs
        assert at == at_too
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
        assert floor + 0.15 < ours[0]
        assert floor - 1e-6 < ours[-1] < floor + 0.03
        assert seconds > 0


def test_the_command_draws_a_picture(example, tmp_path):
    X, y = noise(600)
    table = tmp_path / "noise.dat"
    np.savetxt(table, np.column_stack([X, y]), delimiter="\t")
    picture = tmp_path / "picture.png"
    command = [sys.executable, "-W", "ignore", FOLDER / "torch_airfoil.py"]
    done = subprocess.run(
        [*command, "--data", table, "--epochs", "1", "--output", picture],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sec/epoch") == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
