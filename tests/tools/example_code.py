"""The examples as modules, and the data that they read."""

import importlib
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"
AIRFOIL = Path(
    os.environ.get("THALWEG_AIRFOIL", ROOT.parent / "shared" / "data" / "airfoil_self_noise.dat")
)


def load(name, monkeypatch):
    if not FOLDER.exists():
        pytest.skip("needs the sources: examples/ is not beside tests/")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.syspath_prepend(FOLDER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matplotlib's own imports deprecate is not ours
        pytest.importorskip("matplotlib.pyplot", reason="needs matplotlib: the extra 'examples'")
    return importlib.import_module(name)


def write_like_airfoil(path):
    """A file like NASA's: six columns of different size, one of them noisy and linear in the rest.

    Half of the variance is noise, so that least squares leaves about 0.24 here too.
    """
    rng = np.random.default_rng(291)
    X = rng.standard_normal((1503, 5))
    y = X @ [0.45, -0.3, 0.25, 0.2, -0.3] + 0.7 * rng.standard_normal(1503)
    table = np.column_stack([X, y]) * [3000, 6, 0.1, 15, 0.01, 7] + [3000, 7, 0.1, 50, 0.01, 125]
    np.savetxt(path, table, fmt="%.6g", delimiter="\t", newline="\r\n")
