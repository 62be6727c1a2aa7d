"""Params that are views of one array: which of them share memory, told without a search where one
period settles it."""

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits


def columns(count, rows=50, dtype=np.float32):
    base = np.zeros((rows, count), dtype)
    return base, [base[:, k] for k in range(count)]


@pytest.fixture
def no_search(monkeypatch):
    def refuse(*_):
        raise AssertionError("np.shares_memory was asked")

    monkeypatch.setattr(np, "shares_memory", refuse)


def halves():
    _, views = columns(300)
    return [view[part] for view in views for part in (slice(25), slice(25, None))]


def backwards():
    _, views = columns(300)
    return [view[::-1] if k % 2 else view for k, view in enumerate(views)]


def gates():
    base = np.zeros((64, 128), np.float32)
    return [base[:, k : k + 32] for k in range(0, 128, 32)]


def axes_that_are_one():
    base = np.zeros((4, 5, 60))
    return [base[:, :, k] for k in range(60)]


def middles():
    base = np.zeros((4, 30, 5))
    return [base[:, k, :] for k in range(30)]


def every_second_row_of_some():
    _, views = columns(40)
    return [*views[:20], *(view[i::2] for view in views[20:] for i in (0, 1))]


LAYOUTS = [halves, backwards, gates, axes_that_are_one, middles, every_second_row_of_some]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("no_search")
def test_views_of_one_period_need_no_search(layout):
    views = layout()
    grads = [np.ones_like(view) for view in views]
    tw.SGD(views, lr=0.5).step(grads)
    tw.sgd_(views, grads, lr=0.5)
    for view in views:
        assert_same_bits(view, -np.ones_like(view))


@pytest.mark.usefixtures("no_search")
def test_thousands_of_columns_and_their_gradients_beside_them():
    base = np.zeros((5, 6000), np.float32)
    base[:, 3000:] = 1
    params, grads = ([base[:, first + k] for k in range(3000)] for first in (0, 3000))
    opt = tw.SGD(params, lr=1.0, momentum=0.5)
    opt.step(grads)
    assert_same_bits(base[:, :3000], -np.ones((5, 3000), np.float32))


def test_two_of_many_columns_that_share_memory_are_found():
    base, views = columns(200)
    views[77] = base[:, 150]
    with pytest.raises(
        ValueError, match=r'params\["(77|150)"\].*params\["(77|150)"\] share memory'
    ):
        tw.SGD(views)
    views = [base[:, k : k + 2] for k in range(0, 200, 2)]
    tw.SGD(views)
    views[10] = base[:, 20:23]
    with pytest.raises(ValueError, match=r'"1[01]".*"1[01]"'):
        tw.SGD(views)


def test_a_column_that_begins_before_the_period_ends_and_reaches_the_next():
    """Blocks of a flat buffer: the last one's run goes round into the first one's place."""
    flat = np.zeros(100)
    blocks = [
        np.lib.stride_tricks.as_strided(flat[start:], (9, width), (80, 8))
        for start, width in ((2, 3), (5, 5), (8, 5))
    ]
    tw.SGD(blocks[:2])
    for pair in ([blocks[0], blocks[2]], [blocks[1], blocks[2]]):
        with pytest.raises(ValueError, match="share memory"):
            tw.SGD(pair)
    tw.SGD([blocks[0], np.lib.stride_tricks.as_strided(flat[8:], (9, 4), (80, 8))])
    with pytest.raises(ValueError, match="share memory"):
        tw.SGD([*blocks[:2], np.lib.stride_tricks.as_strided(flat[10:], (9, 3), (80, 8))])


def random_view(rng, base):
    def cut(length):
        first = int(rng.integers(length))
        last = int(rng.integers(first, length)) + 1
        return slice(first, last, int(rng.integers(1, 4)))

    view = base[tuple(cut(length) for length in base.shape)]
    view = view.transpose(rng.permutation(view.ndim))
    return view[tuple(slice(None, None, int(rng.choice([-1, 1]))) for _ in range(view.ndim))]


@pytest.mark.parametrize("seed", range(40))
def test_pairs_of_random_views_are_refused_exactly_where_numpy_says_so(seed):
    rng = np.random.default_rng(seed)
    base = np.zeros(rng.choice([2, 3, 4, 6, 12], int(rng.integers(1, 4))))
    seen = set()
    for _ in range(60):
        views = [random_view(rng, base) for _ in range(int(rng.integers(2, 4)))]
        shared = any(np.shares_memory(a, b) for i, a in enumerate(views) for b in views[i + 1 :])
        seen.add(shared)
        grads = [np.ones_like(view) for view in views]
        if shared:
            for call in (lambda: tw.SGD(views), lambda: tw.sgd_(views, grads, lr=1.0)):  # noqa: B023
                with pytest.raises(ValueError, match="share memory"):
                    call()
        else:
            tw.SGD(views).step(grads)
            opt = tw.SGD(views[:1])
            opt.step([views[1]] if views[1].shape == views[0].shape else [grads[0]])
    assert seen
