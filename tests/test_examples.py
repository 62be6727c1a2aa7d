"""The examples end where the lecture's do, and say so plainly when they cannot start."""

import hashlib
import http.server
import importlib
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples"
AIRFOIL = Path(
    os.environ.get("THALWEG_AIRFOIL", ROOT.parent / "shared" / "data" / "airfoil_self_noise.dat")
)
# Two epochs end less than this above what least squares leaves.
MARGIN = 0.27 - 0.241688


def load(name, monkeypatch):
    if not FOLDER.exists():
        pytest.skip("needs the sources: examples/ is not beside tests/")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.syspath_prepend(FOLDER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matplotlib's own imports deprecate is not ours
        pytest.importorskip("matplotlib.pyplot", reason="needs matplotlib: the extra 'examples'")
    return importlib.import_module(name)


@pytest.fixture
def airfoil(monkeypatch):
    return load("airfoil", monkeypatch)


@pytest.fixture
def valley(monkeypatch):
    return load("valley", monkeypatch)


@pytest.fixture
def sparse_text(monkeypatch):
    return load("sparse_text", monkeypatch)


@pytest.fixture
def library(tmp_path):
    """Three modules: words that all of them use, a word of each that is frequent, and rare ones."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "library"
    folder.mkdir()
    for module in "abc":
        lines = [
            " ".join(f"common{i}" for i in rng.integers(20, size=4))
            + (f" {module}_often" if rng.random() < 0.5 else f" {module}_rare{rng.integers(80)}")
            for _ in range(240)
        ]
        (folder / f"{module}.py").write_text("\n".join([*lines, *lines[:50], "too short", ""]))
    (folder / "_generated.py").write_text("of no module " * 1000)
    return folder


@pytest.fixture
def synthetic(tmp_path):
    """A file like NASA's: six columns of different size, one of them noisy and linear in the rest.

    Half of the variance is noise, so that least squares leaves about 0.24 here too.
    """
    rng = np.random.default_rng(291)
    X = rng.standard_normal((1503, 5))
    y = X @ [0.45, -0.3, 0.25, 0.2, -0.3] + 0.7 * rng.standard_normal(1503)
    table = np.column_stack([X, y]) * [3000, 6, 0.1, 15, 0.01, 7] + [3000, 7, 0.1, 50, 0.01, 125]
    path = tmp_path / "synthetic.dat"
    np.savetxt(path, table, fmt="%.6g", delimiter="\t", newline="\r\n")
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


def dense_loss(sparse_text, params, lines, labels):
    return -sparse_text.predict(params, lines)[2][np.arange(len(lines)), labels].mean()


def test_sparse_text_gradient_is_that_of_its_loss(sparse_text):
    rng = np.random.default_rng(3)
    params = {"W": rng.normal(size=(5, 3)), "b": rng.normal(size=3)}
    lines, labels = [np.array(rows) for rows in ([4, 1, 4], [1], [3, 1])], np.array([2, 0, 0])
    grads = sparse_text.gradient(params, lines, labels)
    assert grads["W"].rows.tolist() == [4, 1, 4, 1, 3, 1]
    sums = {"W": np.zeros((5, 3)), "b": grads["b"]}
    np.add.at(sums["W"], grads["W"].rows, grads["W"].values)
    for name, param in params.items():
        slopes, h = np.empty_like(param), 1e-6
        for at in np.ndindex(param.shape):
            start, ends = param[at], []
            for end in (start + h, start - h):
                param[at] = end
                ends.append(dense_loss(sparse_text, params, lines, labels))
            param[at], slopes[at] = start, (ends[0] - ends[1]) / (2 * h)
        np.testing.assert_allclose(sums[name], slopes, atol=1e-8)


def test_sparse_text_reads_no_line_of_a_module_twice(sparse_text, library):
    words, labels = sparse_text.read(library, 3, 1000, np.random.default_rng(0))
    assert sorted(set(labels)) == [0, 1, 2]
    for label in range(3):
        of_module = [line for line, its in zip(words, labels, strict=True) if its == label]
        assert len(set(of_module)) == len(of_module) > 200
        assert len({line[-1][0] for line in of_module}) == 1
    fewer, labels = sparse_text.read(library, 2, 70, np.random.default_rng(0))
    assert (len(fewer), sorted(set(labels))) == (140, [0, 1])


def test_sparse_text_keeps_held_out_lines_out(sparse_text, library, monkeypatch):
    words, labels = sparse_text.read(library, 3, 1000, np.random.default_rng(0))
    parts = sparse_text.split(len(words), np.random.default_rng(0))
    assert sorted(np.concatenate(parts)) == list(range(len(words)))
    assert [round(len(part) / len(words), 2) for part in parts] == [0.7, 0.15, 0.15]
    lines, trained = sparse_text.hashed(words), set()
    of_line = {id(line): i for i, line in enumerate(lines)}
    gradient = sparse_text.gradient

    def watched(params, batch, labels):
        trained.update(of_line[id(line)] for line in batch)
        return gradient(params, batch, labels)

    monkeypatch.setattr(sparse_text, "gradient", watched)
    make_optimizer = sparse_text.RULES["SGD"][1]
    hits = sparse_text.train(make_optimizer, 0.1, lines, labels, parts, 1, 0)
    assert trained == set(parts[0])
    assert [part.shape for part in hits] == [(1, len(parts[1])), (1, len(parts[2]))]


def test_sparse_text_gives_a_word_the_same_row_everywhere(sparse_text):
    assert [row.tolist() for row in sparse_text.hashed([("import", "numpy"), ("numpy",)])] == [
        [52765, 34434],
        [34434],
    ]


def test_sparse_text_counts_rare_words_where_it_trains(sparse_text):
    words = [("x", "often")] * 5 + [("rare",)] * 4 + [("rare", "x"), ("never", "x"), ("often",)]
    rare = sparse_text.with_rare_word(words, range(9), range(9, 12))
    assert rare.tolist() == [True, False, False]


def test_sparse_text_says_who_is_behind(sparse_text):
    better, worse = np.ones(100, bool), np.arange(100) < 90
    assert sparse_text.compared(better, worse) == "ahead +10.0 points, standard error 3.0"
    assert sparse_text.compared(worse, better) == "BEHIND -10.0 points, standard error 3.0"
    nearly = np.arange(100) < 97
    assert sparse_text.compared(nearly, better).startswith("no clear difference: -3.0 points")


def test_sparse_text_chooses_the_rate_on_validation(sparse_text, monkeypatch):
    ends = {1.0: (0.2, 0.9), 2.0: (0.4, 0.1), 4.0: (0.6, 0.2), 8.0: (0.5, 0.3)}

    def train(make_optimizer, lr):
        validation, held_out = ends[lr]
        return np.array([[0.99], [validation]]), np.array([[0.99], [held_out]])

    monkeypatch.setattr(sparse_text, "train", train)
    lr, edge, _, hits = sparse_text.best_of_grid("SGD", 4)
    assert (lr, edge, hits[-1, 0]) == (4.0, False, 0.2)
    ends[8.0] = (0.7, 0.0)
    assert sparse_text.best_of_grid("SGD", 4)[:2] == (8.0, True)


def test_sparse_text_learns_rare_words_first_with_adagrad(sparse_text, library):
    words, labels = sparse_text.read(library, 3, 1000, np.random.default_rng(0))
    parts = sparse_text.split(len(words), np.random.default_rng(0))
    rare = sparse_text.with_rare_word(words, parts[0], parts[2])
    for rule, (lr, make_optimizer) in sparse_text.RULES.items():
        task = (sparse_text.hashed(words), labels, parts, 4, 0)
        right = sparse_text.train(make_optimizer, lr, *task)[1][-1]
        assert right[~rare].mean() > 0.75, rule
        assert (right[rare].mean() > 0.88) == ("Adagrad" in rule), rule


def test_sparse_text_prints_the_same_in_every_process(sparse_text, library, tmp_path):
    output = tmp_path / "new" / "text.png"
    options = ["--library", library, "--epochs", 2, "--rates", 2]
    first = run("sparse_text.py", *options, "--output", output, PYTHONHASHSEED="1")
    assert first.returncode == 0, first.stderr
    assert is_picture(output)
    code = (
        "import sys, sparse_text as s; s.main(sys.argv[1:]); assert 'matplotlib' not in sys.modules"
    )
    again = run("-c", code, *options, PYTHONHASHSEED="2")
    assert again.returncode == 0, again.stderr
    assert first.stdout.splitlines()[:-1] == again.stdout.splitlines()
    assert [line[:16].rstrip() for line in again.stdout.splitlines()[2:7]] == [*sparse_text.RULES]
    assert again.stdout.count("standard error") == 6


def test_sparse_text_on_the_standard_library(sparse_text, capsys):
    options = ["--modules", "6", "--lines", "300", "--epochs", "2", "--rates", "1"]
    try:
        sparse_text.main(options)
    except SystemExit as stop:
        pytest.skip(f"needs the standard library's sources: {stop.code}")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:7]]
    shares = np.array([[float(share) for share in row if "." in share][-3:] for row in rows])
    assert shares.shape == (5, 3)
    assert (shares > 2 * 100 / 6).all()


def test_sparse_text_puts_each_share_in_its_column(sparse_text, library, monkeypatch, capsys):
    with_rare_word, rare = sparse_text.with_rare_word, []

    def kept(*arguments):
        rare[:] = [with_rare_word(*arguments)]
        return rare[0]

    def made_up(rule, *task):
        hits = rare[0] if "Adagrad" in rule else ~rare[0]
        return 0.5, rule == "SGD", np.ones((1, 1)), hits[None]

    monkeypatch.setattr(sparse_text, "with_rare_word", kept)
    monkeypatch.setattr(sparse_text, "best_of_grid", made_up)
    sparse_text.main(["--library", str(library)])
    lines, share = capsys.readouterr().out.splitlines(), 100 * rare[0].mean()
    assert [line.endswith("at the edge of its grid)") for line in lines[2:7]] == [True] + 4 * [
        False
    ]
    assert lines[3].split()[-4:] == ["0.5", f"{100 - share:.1f}", "0.0", "100.0"]
    assert lines[5].split()[-4:] == ["0.5", f"{share:.1f}", "100.0", "0.0"]
    assert lines[7] == "Adagrad, against SGD:"
    assert lines[9] == "  with a rare word  ahead +100.0 points, standard error 0.0"
    assert lines[10] == "  without           BEHIND -100.0 points, standard error 0.0"


@pytest.mark.parametrize(
    ("sources", "received"),
    [
        ([], 0),
        (["one two three"], 1),
        (["\n".join(f"one two three{i // 3} {i}" for i in range(300))], 300),
        (["\n".join(f"{a} {b} {c}" for a in "xyz" for b in "xyz" for c in "xyz")] * 2, 54),
    ],
    ids=["none", "one line", "one module", "no rare words"],
)
def test_sparse_text_names_a_library_it_cannot_use(sparse_text, tmp_path, sources, received):
    for i, source in enumerate(sources):
        (tmp_path / f"module{i}.py").write_text(source)
    with pytest.raises(SystemExit) as stop:
        sparse_text.main(["--library", str(tmp_path)])
    assert f"{tmp_path}: expected the sources of two modules" in stop.value.code
    assert f"received {received} lines" in stop.value.code


def test_sparse_text_refuses_counts_below_one(sparse_text, capsys):
    with pytest.raises(SystemExit):
        sparse_text.main(["--rates", "0"])
    assert "argument --rates: expected 1 or more, received 0" in capsys.readouterr().err
