"""The example on sparse text: its gradient, what it learns from, what it prints and refuses."""

import numpy as np
import pytest
from test_examples import is_picture, load, run


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
        validation = np.array([[True], [rule == "momentum 0.9"]])
        return 0.5, rule == "SGD", validation, np.array([~hits, hits])

    monkeypatch.setattr(sparse_text, "with_rare_word", kept)
    monkeypatch.setattr(sparse_text, "best_of_grid", made_up)
    sparse_text.main(["--library", str(library)])
    lines, share = capsys.readouterr().out.splitlines(), 100 * rare[0].mean()
    assert [line.endswith("at the edge of its grid)") for line in lines[2:7]] == [True] + 4 * [
        False
    ]
    assert lines[3].split()[-4:] == ["0.5", f"{100 - share:.1f}", "0.0", "100.0"]
    assert lines[5].split()[-4:] == ["0.5", f"{share:.1f}", "100.0", "0.0"]
    assert lines[7] == "Adagrad, against momentum 0.9:"
    assert lines[9] == "  with a rare word  ahead +100.0 points, standard error 0.0"
    assert lines[10] == "  without           BEHIND -100.0 points, standard error 0.0"


@pytest.mark.parametrize(
    ("sources", "received"),
    [
        ([], 0),
        (["one two three"], 1),
        (["\n".join(f"one two three{i // 3} {i}" for i in range(300))], 300),
        (["\n".join(f"{a} {b} {c}" for a in "xyz" for b in "xyz" for c in "xyz")] * 2, 54),
        ([f"rare one {i}\nrare two {i}\nrare three {i}" for i in range(2)], 6),
    ],
    ids=["none", "one line", "one module", "no rare words", "rare words alone"],
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
