"""The examples end where the lecture's do, and say so plainly when they cannot start."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from example_code import AIRFOIL, FOLDER, load, write_like_airfoil

# Two epochs end less than this above what least squares leaves.
MARGIN = 0.27 - 0.241688


@pytest.fixture
def airfoil(monkeypatch):
    return load("airfoil", monkeypatch)


@pytest.fixture
def valley(monkeypatch):
    return load("valley", monkeypatch)


@pytest.fixture
def synthetic(tmp_path):
    path = tmp_path / "synthetic.dat"
    write_like_airfoil(path)
    return path


def run(*arguments, **environment):
    """Run an example, or a line of code beside it, in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=FOLDER,
        env=os.environ | {"MPLBACKEND": "Agg"} | environment,
    )


def offline(tmp_path):
    """An environment without cache and with a proxy that nobody listens to."""
    nobody = "http://127.0.0.1:9"
    return {
        "http_proxy": nobody,
        "HTTP_PROXY": nobody,
        "no_proxy": "",
        "NO_PROXY": "",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "LOCALAPPDATA": str(tmp_path),
    }


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def last_losses(airfoil, path, seed):
    X, y = airfoil.read(path)
    floor = airfoil.least_squares(X, y)
    ends = [airfoil.train(make, X, y, 2, seed)[1] for make in airfoil.OPTIMIZERS.values()]
    return floor, [(losses[0], losses[-1]) for losses in ends]


@pytest.mark.parametrize("seed", range(3))
def test_airfoil_ends_where_the_lecture_does(airfoil, seed):
    if not AIRFOIL.exists():
        pytest.skip(f"needs the airfoil data: {AIRFOIL.name} at $THALWEG_AIRFOIL")
    floor, runs = last_losses(airfoil, AIRFOIL, seed)
    assert floor == pytest.approx(0.241688, abs=1e-6)
    for first, last in runs:
        assert first == pytest.approx(0.5, abs=0.03)
        assert 0.241687 < last < 0.27


@pytest.mark.parametrize("seed", range(3))
def test_airfoil_on_synthetic_data(airfoil, synthetic, seed):
    floor, runs = last_losses(airfoil, synthetic, seed)
    assert 0.2 < floor < 0.3
    for first, last in runs:
        assert first > floor + 0.15
        assert floor < last < floor + MARGIN


def test_airfoil_reads_a_standardised_table(airfoil, synthetic):
    X, y = airfoil.read(synthetic)
    assert X.shape == (1500, 5)
    assert y.shape == (1500,)
    np.testing.assert_allclose(X.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(X.std(0), 1, atol=0.01)


def test_airfoil_prints_and_draws(airfoil, synthetic, tmp_path):
    output = tmp_path / "loss.png"
    result = run("airfoil.py", "--data", synthetic, "--epochs", 3, "--output", output)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == ["SGD", "Adagrad"]
    assert all("loss 0.2" in line and "sec/epoch" in line for line in lines[:2])
    assert is_picture(output)


def test_find_rate_prints_and_draws(airfoil, synthetic, tmp_path):
    output = tmp_path / "rates.png"
    result = run("find_rate.py", "--data", synthetic, "--output", output)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("RateTest(suggestion=0.00")
    assert is_picture(output)


def test_airfoil_offline_says_what_to_do(airfoil, tmp_path):
    result = run("airfoil.py", **offline(tmp_path))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "airfoil: could not fetch the data" in result.stderr
    assert airfoil.URL in result.stderr
    assert "--data PATH" in result.stderr


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "could not be read"), ("1\t2\n", "expected 6 columns"), ("a b", "could not be read")],
)
def test_airfoil_names_a_file_it_cannot_use(airfoil, tmp_path, content, complaint):
    path = tmp_path / "data.dat"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        airfoil.main(["--data", str(path)])
    assert complaint in stop.value.code
    assert str(path) in stop.value.code


def test_airfoil_downloads_once_and_checks_what_came(airfoil, synthetic, tmp_path):
    pytest.importorskip("pooch", reason="needs pooch: the extra 'examples'")
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=synthetic.parent)

        def log_message(self, *arguments):
            requests.append(arguments)

    def fetch(sha):
        url = f"http://127.0.0.1:{server.server_port}/{synthetic.name}"
        code = f"import airfoil; airfoil.URL = {url!r}; airfoil.SHA256 = {sha!r}\n"
        code += "print(open(airfoil.fetch(), 'rb').read().count(b'\\t'))"
        return run("-c", code, **offline(tmp_path) | {"no_proxy": "127.0.0.1"})

    sha = hashlib.sha256(synthetic.read_bytes()).hexdigest()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            bad = fetch("0" * 64)
            good = [fetch(sha), fetch(sha)]
        finally:
            server.shutdown()
            thread.join()
    assert "what came is another file" in bad.stderr
    assert "Traceback" not in bad.stderr
    assert [result.stdout.strip() for result in good] == [str(5 * 1503)] * 2
    assert len(requests) == 2


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("gradient descent, lr 0.4", (-0.9434666458139824, -7.312316880125978e-05)),
        ("gradient descent, lr 0.6", (-0.38781396819094793, -1673.365108505695)),
        ("momentum 0.5, lr 0.6", (0.007187866737294238, 0.0025532747547120736)),
        ("Adagrad, lr 0.4", (-2.382562771979649, -0.15859055003666966)),
    ],
)
def test_valley_ends_at_the_known_points(valley, name, end):
    points = valley.descend(valley.RUNS[name])
    assert points.shape == (21, 2)
    assert tuple(points[0]) == (-5, -2)
    np.testing.assert_allclose(points[-1], end, rtol=1e-12, atol=1e-12)


def test_valley_slope_is_that_of_its_height(valley):
    x, h = np.array([-3.0, 0.7]), 1e-6
    slopes = [
        (valley.height(*(x + h * axis)) - valley.height(*(x - h * axis))) / (2 * h)
        for axis in np.eye(2)
    ]
    np.testing.assert_allclose(valley.gradient(x), slopes, rtol=1e-8)


def test_valley_draws_both_pictures(valley, tmp_path):
    result = run("valley.py", "--output", tmp_path / "new" / "folder")
    assert result.returncode == 0, result.stderr
    for name in ("valley.png", "leaky_average.png"):
        assert is_picture(tmp_path / "new" / "folder" / name)
    assert "-1673.365109" in result.stdout
