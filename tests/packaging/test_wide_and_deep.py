"""The example with two rules: its gradient, what it prints and refuses."""

import numpy as np
import pytest
from test_examples import is_picture, load, run


@pytest.fixture
def wide_and_deep(monkeypatch):
    return load("wide_and_deep", monkeypatch)


@pytest.fixture
def library(tmp_path):
    """Two modules: words that both use, and words of each that are rare."""
    rng = np.random.default_rng(5)
    for module in "ab":
        lines = [
            " ".join(f"common{i}" for i in rng.integers(20, size=4))
            + f" {module}_word{rng.integers(40)}"
            for _ in range(200)
        ]
        (tmp_path / f"{module}.py").write_text("\n".join(lines))
    return tmp_path


def test_wide_and_deep_gradient_is_that_of_its_loss(wide_and_deep, monkeypatch):
    monkeypatch.setattr(wide_and_deep, "BUCKETS", 5)
    rng = np.random.default_rng(3)
    params = {
        part: {name: rng.normal(size=array.shape) for name, array in arrays.items()}
        for part, arrays in wide_and_deep.model(3, rng).items()
    }
    lines, labels = [np.array(rows) for rows in ([4, 1, 4], [1], [3, 1])], np.array([2, 0, 0])

    def loss():
        return -wide_and_deep.forward(params, lines)[4][np.arange(3), labels].mean()

    grads = wide_and_deep.gradient(params, lines, labels)
    for part, arrays in params.items():
        for name, array in arrays.items():
            mine, slopes, h = grads[part][name], np.empty_like(array), 1e-6
            if part == "emb":
                dense = np.zeros_like(array)
                np.add.at(dense, mine.rows, mine.values)
                mine = dense
            for at in np.ndindex(array.shape):
                start, ends = array[at], []
                for end in (start + h, start - h):
                    array[at] = end
                    ends.append(loss())
                array[at], slopes[at] = start, (ends[0] - ends[1]) / (2 * h)
            np.testing.assert_allclose(mine, slopes, atol=1e-7)


def test_wide_and_deep_prints_and_draws(wide_and_deep, library, tmp_path):
    output = tmp_path / "new" / "joint.png"
    options = ["--library", library, "--epochs", 2, "--rates", 3, "--output", output]
    ran = run("wide_and_deep.py", *options)
    assert ran.returncode == 0, ran.stderr
    assert is_picture(output)
    lines = ran.stdout.splitlines()
    assert [line.split(",")[0] for line in lines[2:5]] == ["momentum 0.9", "Adagrad", "Joint"]
    adagrad = lines[3].split(", lr ")[1].split()[0]
    assert f"Joint, lr {adagrad} and " in lines[4]
    assert ran.stdout.count("standard error") == 6


def test_wide_and_deep_learns(wide_and_deep, library):
    words, labels = wide_and_deep.read(library, 2, 1000, np.random.default_rng(0))
    parts = wide_and_deep.split(len(words), np.random.default_rng(0))
    task = wide_and_deep.hashed(words), labels, parts, 5, 0
    hits = wide_and_deep.train(wide_and_deep.joined(0.4, 0.2), *task)
    assert hits[1][-1].mean() > 0.8


def test_wide_and_deep_says_what_it_needs(wide_and_deep, tmp_path):
    with pytest.raises(SystemExit) as stop:
        wide_and_deep.main(["--library", str(tmp_path)])
    assert "expected the sources of two modules" in stop.value.code
