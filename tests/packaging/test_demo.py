"""The demo's checkpoints: a run that was stopped goes on as if it had not been."""

import pytest

from bits import assert_same_bits
from thalweg.__main__ import main
from thalweg._command import demo


def steps(training, count):
    for _ in range(count):
        _, grads = training.network.gradients(*training.text.next())
        training.opt.step(grads)


def test_the_demo_goes_on_where_it_stopped(tmp_path, capsys):
    whole = demo.Training(demo.Text(), 3, None)
    steps(whole, 7)
    first = demo.Training(demo.Text(), 3, str(tmp_path))
    steps(first, 4)
    assert first.keeper.save(first.opt, first.describe, force=True)
    second = demo.Training(demo.Text(), 8, str(tmp_path))
    assert "Resumed from 4 steps" in capsys.readouterr().out
    steps(second, 3)
    for a, b in zip(second.network.params, whole.network.params, strict=True):
        assert_same_bits(a, b)
    assert second.rng.random() == first.rng.random()
    assert second.text.row == whole.text.row


def test_the_demo_saves_and_resumes(tmp_path, capsys):
    for run in range(2):
        assert main(["demo", "--seconds", "0.3", "--checkpoint", str(tmp_path)]) == 0
        assert ("Resumed from" in capsys.readouterr().out) == (run == 1)
    assert len(list(tmp_path.iterdir())) in (1, 2)


@pytest.mark.parametrize(("done", "shown"), [(0, 0), (50, 20), (100, None)])
def test_the_bar(monkeypatch, capsys, done, shown):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    demo.bar(done, 100)
    written = capsys.readouterr().out
    assert written.count("#") == (shown or 0)
    assert ("checkpoint" in written) == (shown is not None)
    assert len(written.strip("\r\n")) == 78
