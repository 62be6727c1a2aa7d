"""thalweg.flower: Flower's own server steps, bit for bit, and counters passed through."""

import warnings
from unittest.mock import Mock

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its imports deprecate is not ours
    pytest.importorskip("flwr", reason="flwr is not installed")
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import strategy as theirs
    from flwr.serverapp.exception import AggregationError

    import thalweg.flower as ours

from bits import assert_same_bits

ROUNDS = 6


def reply(arrays, examples):
    record = {k: Array(np.asarray(a)) for k, a in arrays.items()}
    content = {"arrays": ArrayRecord(record), "metrics": MetricRecord({"num-examples": examples})}
    message = Mock(spec=Message, content=RecordDict(content))
    message.has_error.side_effect = lambda: False
    message.has_content.side_effect = lambda: True
    return message


def model(rng, dtype=np.float32):
    return {
        "W": rng.standard_normal((5, 3)).astype(dtype),
        "b": rng.standard_normal(3).astype(dtype),
        "scale": np.array(rng.standard_normal(), dtype),
    }


def rounds(strategy, dtype=np.float32):
    """The server's arrays after each round: what clients send depends on no strategy."""
    rng = np.random.default_rng(21)
    arrays = ArrayRecord({k: Array(a) for k, a in model(rng, dtype).items()})
    found = []
    for turn in range(1, ROUNDS + 1):
        list(
            strategy.configure_train(
                turn, arrays, ConfigRecord(), Mock(get_node_ids=lambda: [1, 2])
            )
        )
        sent = [reply(model(rng, dtype), n) for n in (1, 2)]
        arrays, metrics = strategy.aggregate_train(turn, sent)
        assert metrics is not None
        found.append({k: a.numpy() for k, a in arrays.items()})
    return found


MOMENTUM = {
    "momentum": {"server_learning_rate": 0.7, "server_momentum": 0.9},
    "rate": {"server_learning_rate": 0.7},
    "momentum alone": {"server_momentum": 0.5},
    "average": {},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", MOMENTUM.values(), ids=MOMENTUM)
def test_the_bits_of_fedavgm_are_flowers(options, dtype):
    other, mine = (m.FedAvgM(fraction_train=0.0, **options) for m in (theirs, ours))
    for a, b in zip(rounds(mine, dtype), rounds(other, dtype), strict=True):
        assert [*a] == [*b]
        for name in a:
            assert_same_bits(a[name], b[name])
    if options.get("server_momentum"):
        for v, expected in zip(mine.momentum_vector.values(), other.momentum_vector, strict=True):
            assert_same_bits(v, np.asarray(expected))
    else:
        assert mine.momentum_vector is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"eta": 0.3, "tau": 1e-9}, {"tau": 0.5}], ids=str)
def test_the_bits_of_fedadagrad_are_flowers(options, dtype):
    other, mine = (m.FedAdagrad(fraction_train=0.0, **options) for m in (theirs, ours))
    for a, b in zip(rounds(mine, dtype), rounds(other, dtype), strict=True):
        assert [*a] == [*b]
        for name in a:
            assert_same_bits(a[name], b[name])
    for name, sums in other.v_t.items():
        assert_same_bits(mine.v_t[name], np.asarray(sums))


def made(rule, current):
    options = {"server_momentum": 0.9} if rule is ours.FedAvgM else {}
    strategy = rule(**options)
    if rule is ours.FedAvgM:
        current = ArrayRecord({k: Array(np.asarray(a)) for k, a in current.items()})
    strategy.current_arrays = current
    return strategy


def kept(strategy):
    return {**(getattr(strategy, "momentum_vector", None) or getattr(strategy, "v_t", None) or {})}


@pytest.mark.parametrize("rule", [ours.FedAvgM, ours.FedAdagrad])
def test_counters_keep_their_dtype_and_are_not_stepped(rule):
    w = np.ones(3, np.float32)
    strategy = made(rule, {"seen": np.array(10), "w": w, "mask": np.array([True, False])})
    sent = {"seen": np.array(20), "w": w / 2, "mask": np.array([True, False])}
    more = {**sent, "seen": np.array(21)}
    arrays, _ = strategy.aggregate_train(1, [reply(sent, 1), reply(more, 3)])
    found = {k: a.numpy() for k, a in arrays.items()}
    assert [*found] == ["seen", "w", "mask"]
    assert found["seen"].dtype == np.int64
    assert found["seen"] == 21  # 20.75
    assert found["mask"].tolist() == [True, False]
    assert found["w"].dtype == np.float32
    assert (found["w"] < 1).all()
    assert [*kept(strategy)] == ["w"]


@pytest.mark.parametrize("rule", [ours.FedAvgM, ours.FedAdagrad])
def test_counters_alone(rule):
    strategy = made(rule, {"seen": np.array(10)})
    arrays, _ = strategy.aggregate_train(1, [reply({"seen": np.array(7)}, 1)])
    assert arrays["seen"].numpy() == 7


@pytest.mark.parametrize("rule", [ours.FedAvgM, ours.FedAdagrad])
def test_half_precision_is_stepped_in_single(rule):
    half, single = (np.linspace(0, 1, 7).astype(d) for d in (np.float16, np.float32))
    single = half.astype(np.float32)
    found = []
    for start in (half, single):
        strategy = made(rule, {"w": start})
        arrays, _ = strategy.aggregate_train(1, [reply({"w": np.full(7, 0.5, np.float16)}, 1)])
        found.append(arrays["w"].numpy())
        assert kept(strategy)["w"].dtype == np.float32
    assert found[0].dtype == np.float16
    assert_same_bits(found[0], found[1].astype(np.float16))


@pytest.mark.parametrize("rule", [ours.FedAvgM, ours.FedAdagrad])
def test_the_order_of_names_does_not_matter(rule):
    w, b = np.ones(3, np.float32), np.zeros(3, np.float32)
    strategy = made(rule, {"b": b, "w": w})
    arrays, _ = strategy.aggregate_train(1, [reply({"w": w, "b": b}, 1)])
    assert [*arrays] == ["w", "b"]
    assert_same_bits(arrays["w"].numpy(), w)
    assert_same_bits(arrays["b"].numpy(), b)


@pytest.mark.parametrize("rule", [ours.FedAvgM, ours.FedAdagrad])
def test_what_is_refused_leaves_no_trace(rule):
    ones = np.ones(3, np.float32)
    strategy = made(rule, None if rule is ours.FedAdagrad else {})
    strategy.current_arrays = None
    with pytest.raises(AggregationError, match="configure_train comes before"):
        strategy.aggregate_train(1, [reply({"w": ones}, 1)])
    strategy = made(rule, {"w": ones, "b": ones})
    start = strategy.current_arrays
    for sent, words in (
        ({"w": ones}, "not in both: b"),
        ({"w": ones, "b": np.ones(4, np.float32)}, r"b: expected the server's shape \(3,\)"),
    ):
        with pytest.raises(AggregationError, match=words):
            strategy.aggregate_train(1, [reply(sent, 1)])
    name = "server_learning_rate" if rule is ours.FedAvgM else "eta"
    setattr(strategy, name, -1.0)
    with pytest.raises(ValueError, match="lr"):
        strategy.aggregate_train(1, [reply({"w": ones / 2, "b": ones}, 1)])
    assert kept(strategy) == {}
    assert strategy.current_arrays is start
    held = start["w"].numpy() if rule is ours.FedAvgM else start["w"]
    assert_same_bits(held, ones)


def test_what_was_sent_out_stays():
    """Flower's FedAdagrad reads it again when a round is aggregated twice."""
    ones = np.ones(3, np.float32)
    strategy = made(ours.FedAdagrad, {"w": ones})
    strategy.aggregate_train(1, [reply({"w": ones / 2}, 1)])
    assert_same_bits(strategy.current_arrays["w"], np.ones(3, np.float32))


def test_no_reply_is_no_step():
    strategy = made(ours.FedAvgM, {"w": np.ones(3)})
    assert strategy.aggregate_train(1, []) == (None, None)
    strategy = made(ours.FedAdagrad, {"w": np.ones(3)})
    assert strategy.aggregate_train(1, []) == (None, None)
