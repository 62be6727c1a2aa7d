"""The README's before and after, and the code in the wild of the table "Find your code"."""

import re
from pathlib import Path

import numpy as np
import pytest

import pages
import thalweg as tw

ROOT = Path(__file__).parents[2]
README, TABLE = ROOT / "README.md", ROOT / "docs" / "find_your_code.md"
if not README.exists():
    pytest.skip("needs the sources: README.md is not beside tests/", allow_module_level=True)

STEPS = 30


def model(dtype=np.float32):
    """Params and a gradient for each step."""
    rng = np.random.default_rng(5)
    shapes = {"W1": (17, 9), "b1": (9,), "W2": (9, 4)}
    params = {k: rng.standard_normal(shape).astype(dtype) for k, shape in shapes.items()}
    grads = [
        {k: rng.standard_normal(shape).astype(dtype) for k, shape in shapes.items()}
        for _ in range(STEPS)
    ]
    return params, grads


def test_before_and_after_give_the_same_bits():
    before, after = [part.text for part in pages.read(README) if part.kind == "python"][:2]
    results = []
    for block in (before, after):
        params, grads = (list(x.values()) for x in (model()[0], model()[1][0]))
        memory = [np.zeros_like(w) for w in params]
        names = {"np": np, "tw": tw, "params": params, "memory": memory, "lr": 0.1, "grads": grads}
        for _ in range(3):
            exec(block, names)
        results.append([a.tobytes() for a in params + memory])
    assert results[0] == results[1]


def test_the_readme_is_short_and_has_rows_of_the_whole_table():
    text, table = README.read_text(encoding="utf-8"), TABLE.read_text(encoding="utf-8")
    assert text.count("\n") < 150
    calls = [
        r.split(" | ")[1] for r in re.findall(r"^\| (.*) \|$", text, re.MULTILINE) if "tw." in r
    ]
    assert len(calls) >= 5
    assert [call for call in calls if re.sub(r":? \[.*", "", call) not in table] == []


def test_presets_of_the_table_exist():
    found = re.findall(r'tw\.(SGD|Adagrad)\.like\("(\w+)"', TABLE.read_text(encoding="utf-8"))
    assert len(found) > 10
    for rule, name in found:
        presets = tw.presets.SGD_PRESETS if rule == "SGD" else tw.presets.ADAGRAD_PRESETS
        assert name in presets


# The code that people have, one parameter at a time: w, g and the state s, which starts at zero.
lr, mu, wd = 0.07, 0.9, 0.02


def plain(w, g, s):
    w -= lr * g


def min_char_rnn(w, g, mem):
    mem += g * g
    w += -0.1 * g / np.sqrt(mem + 1e-8)


def d2l_momentum(w, g, v):
    v[:] = mu * v + g
    w[:] -= lr * v


def d2l_adagrad(w, g, s):
    s[:] += np.square(g)
    w[:] -= lr * g / np.sqrt(s + 1e-6)


def saito_momentum(w, g, v):
    v[...] = 0.9 * v - 0.01 * g
    w += v


def saito_adagrad(w, g, h):
    h += g * g
    w -= 0.01 * g / (np.sqrt(h) + 1e-7)


def chainer_momentum(w, g, v):
    v *= 0.9
    v -= 0.01 * g
    w += v


def chainer_adagrad(w, g, h):
    h += g * g
    w -= 0.001 * g / (np.sqrt(h) + 1e-8)


def sklearn(w, g, v):
    v[...] = 0.9 * v - 0.001 * g
    w += 0.9 * v - 0.001 * g


def openai_es(theta, g, v):
    v[...] = 0.9 * v + (1.0 - 0.9) * g
    theta += -lr * v


def openfl(w, g, s):
    if not s.any():
        s += 0.1
    s += g**2
    w -= 0.01 * g / (np.sqrt(s) + 1e-10)


def coupled(w, g, s):
    g = g + wd * w
    w -= lr * g


def decoupled(w, g, s):
    w *= 1 - lr * wd
    w -= lr * g


def uphill(w, g, s):
    w += lr * g


def cs231n(w, g, v):
    v_prev = v.copy()
    v[...] = mu * v - lr * g
    w += -mu * v_prev + (1 + mu) * v


SAME = {
    plain: lambda p: tw.SGD(p, lr=lr),
    min_char_rnn: lambda p: tw.Adagrad.like("min_char_rnn", p),
    d2l_momentum: lambda p: tw.SGD.like("d2l", p, lr=lr, momentum=mu),
    d2l_adagrad: lambda p: tw.Adagrad.like("d2l", p, lr=lr),
    saito_momentum: lambda p: tw.SGD.like("saito", p),
    saito_adagrad: lambda p: tw.Adagrad.like("saito", p),
    chainer_momentum: lambda p: tw.SGD.like("chainer", p),
    chainer_adagrad: lambda p: tw.Adagrad.like("chainer", p),
    sklearn: lambda p: tw.SGD.like("sklearn", p),
    openai_es: lambda p: tw.SGD.like("openai_es", p, lr=lr),
    openfl: lambda p: tw.Adagrad.like("openfl", p),
    coupled: lambda p: tw.SGD(p, lr=lr, weight_decay=wd),
    decoupled: lambda p: tw.SGD(p, lr=lr, weight_decay=wd, decoupled=True),
    uphill: lambda p: tw.SGD(p, lr=lr, maximize=True),
}
CLOSE = {
    cs231n: lambda p: tw.SGD(p, lr=lr, momentum=mu, form="classic", nesterov=True),
}


def run_both(form, make_optimizer, dtype):
    theirs, grads = model(dtype)
    ours, _ = model(dtype)
    states = {k: np.zeros_like(w) for k, w in theirs.items()}
    opt = make_optimizer(ours)
    for g in grads:
        opt.step(g)
        for k, w in theirs.items():
            form(w, g[k], states[k])
    return ours, theirs


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", SAME, ids=lambda form: form.__name__)
def test_code_in_the_wild_gives_the_same_bits(form, dtype):
    ours, theirs = run_both(form, SAME[form], dtype)
    for k in ours:
        assert ours[k].tobytes() == theirs[k].tobytes()


@pytest.mark.parametrize("form", CLOSE, ids=lambda form: form.__name__)
def test_code_in_the_wild_is_close(form):
    ours, theirs = run_both(form, CLOSE[form], np.float64)
    for k in ours:
        np.testing.assert_allclose(ours[k], theirs[k], rtol=0, atol=1e-13)


def test_the_calls_on_lists_are_d2ls():
    ours, grads = model()
    theirs, _ = model()
    states = [np.zeros_like(w) for w in ours.values()]
    by_hand = {k: np.zeros_like(w) for k, w in theirs.items()}
    for g in grads:
        tw.sgd_(list(ours.values()), list(g.values()), states, lr=lr, momentum=mu)
        for k, w in theirs.items():
            d2l_momentum(w, g[k], by_hand[k])
    assert [w.tobytes() for w in ours.values()] == [w.tobytes() for w in theirs.values()]
