"""What may be kept beside the optimizer: it comes back as it was, or is refused by its path."""

import collections
import dataclasses
import datetime
import enum
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import thalweg as tw
from conftest import FULL
from refusing import refused
from strategies import checked


def kept(extra, tmp_path):
    opt = tw.SGD(np.ones(1))
    tw.save_checkpoint(tmp_path / "a", opt, extra)
    return tw.load_checkpoint(tmp_path / "a", opt), tw.read_checkpoint(tmp_path / "a")["extra"]


def assert_equal(actual, expected):
    if isinstance(expected, np.ndarray):
        assert type(actual) is np.ndarray
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.dtype.str == expected.dtype.str
        assert actual.tobytes() == np.asarray(expected).tobytes()
        assert actual.flags.f_contiguous >= expected.flags.f_contiguous
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert_equal(actual[key], value)
    elif isinstance(expected, (list, tuple)):
        assert type(actual) is (list if isinstance(expected, list) else tuple)
        assert len(actual) == len(expected)
        for both in zip(actual, expected, strict=True):
            assert_equal(*both)
    else:
        assert type(actual) is type(expected)
        assert repr(actual) == repr(expected)


TAGS = ["dict", "array", "float", "tuple", "items", "bytes", "scalar", "random"]
words = st.text() | st.sampled_from(TAGS)
number_keys = st.integers() | st.floats(allow_nan=False) | st.booleans() | st.binary() | words
all_keys = number_keys | st.lists(number_keys, max_size=3).map(tuple)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary()
    | st.binary().map(bytearray)
    | st.sampled_from([np.datetime64("NaT"), np.datetime64(5, "ns"), np.timedelta64(-1, "7m")])
    | st.text(st.characters(exclude_categories=())),
    lambda below: (
        st.lists(below, max_size=4)
        | st.lists(below, max_size=4).map(tuple)
        | st.dictionaries(words, below, max_size=4)
        | st.dictionaries(all_keys, below, max_size=4)
    ),
    max_leaves=20,
)


@checked
@given(values)
def test_any_value_comes_back(tmp_path_factory, value):
    folder = tmp_path_factory.getbasetemp()
    for back in kept(value, folder):
        assert_equal(back, value)


def test_numbers_and_words_that_json_has_no_name_for(tmp_path):
    big = 10**3999
    value = [
        math.inf,
        -math.inf,
        math.nan,
        -0.0,
        5e-324,
        2**127 + 1,
        -(2**64),
        big,
        "\ud83d",
        "\ud83d\ude00",
    ]
    value += ["\0", "\u2028", "\ud83d" + "\ude00", {"": {"dict": {"array": 0}}}, [[], {}], True]
    for back in kept(value, tmp_path):
        assert_equal(back, value)
    numpy_s = [np.float32(0.1), np.int8(-3), np.bool_(True), np.str_("x"), np.float64(np.nan)]
    for back in kept(numpy_s, tmp_path):
        assert_equal(back, [float(np.float32(0.1)), -3, True, "x", math.nan])


def test_the_manifest_is_strict_json(tmp_path):
    kept([math.inf, -math.inf, math.nan, 1.5], tmp_path)
    with np.load(tmp_path / "a", allow_pickle=False) as file:
        text = file["manifest"].tobytes()

    def constant(word):
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(text, parse_constant=constant)["format"] == "thalweg checkpoint"


MOST_AXES = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
ARRAYS = [np.ones(3, code) for code in "?bBhHiIlLqQefdgFDG"]
ARRAYS += [np.array(["a", "äö♞", ""]), np.array([b"a", b"b\0c"]), np.array(["x" * 300] * 2)]
ARRAYS += [np.array(["2024-02-29", "NaT"], f"M8[{unit}]") for unit in ("D", "ns", "25s", "Y", "us")]
ARRAYS += [np.array([1, -5], f"m8[{unit}]") for unit in ("D", "as", "7m")] + [np.array([3], "m8")]
ARRAYS += [np.ones((2, 3)).T, np.arange(24.0).reshape(2, 3, 4).T, np.array(5.5), np.array("word")]
ARRAYS += [np.empty((0, 3)), np.empty((3, 0, 2)), np.arange(9.0)[::-2], np.arange(30)[::7]]
ARRAYS += [np.arange(5, dtype=">f8"), np.arange(4, dtype=">u2"), np.array(["ab"], ">U2")]
ARRAYS += [np.frombuffer(b"abcdefgh", "V4"), np.eye(3)[1:, ::2]]
ARRAYS += [
    np.zeros((1,) * MOST_AXES),
    np.broadcast_to(np.arange(3.0), (2, 3)),
    np.array([np.nan, -0.0]),
]


def test_arrays_of_every_dtype_and_layout(tmp_path):
    for array in ARRAYS:
        for back in kept({"x": [array, {"y": array}]}, tmp_path):
            assert_equal(back["x"][0], array)
            assert_equal(back["x"][1]["y"], array)
    with np.load(tmp_path / "a", allow_pickle=False) as file:
        assert np.array_equal(file["extra0"], ARRAYS[-1], equal_nan=True)


class Own(np.ndarray):
    def __new__(cls):
        return np.arange(4.0).view(cls)


def test_subclasses_come_back_as_plain_arrays(tmp_path):
    for array in (Own(), np.memmap(tmp_path / "m", "f8", "w+", shape=(3,))):
        for back in kept(array, tmp_path):
            assert_equal(back, np.asarray(array))


def test_long_words_with_gaps(tmp_path):
    """One element is larger than the pieces in which arrays are written."""
    array = np.array([b"a" * 5_000_000, b"", b"b" * 7, b""])
    for back in kept(array[::2], tmp_path):
        assert_equal(back, array[::2])


LONG = bytes(range(256)) * 40
PAIR = collections.namedtuple("PAIR", "a b")
TAKEN = {
    "ix_to_char": {0: "a", 1: "b"},
    "counts of pairs": {("a", "b"): 3, ("a", 1): 4, (): 0},
    "losses by rate": {0.1: [1.5], 1e-3: [2.5], math.inf: []},
    "a vocabulary of bytes": {b"the": 0, "the": 1, b"\xff": 2},
    "keys of all kinds": {1: 1, "1": 2, 2.5: 3, False: 4},
    "tags as words": [{"tuple": 1}, {"items": [[1, 2]]}, {"bytes": "!"}, {"random": {}}],
    "bytes": [b"", b"\0", b"a" * 4096, b"a" * 4097, LONG],
    "bytearrays": (bytearray(), bytearray(LONG)),
    "dates": [np.datetime64("2024-02-29"), np.datetime64("NaT", "ns"), np.timedelta64(3, "25s")],
    "tuples": ((), ((),), [((1,), [2])]),
    "empty": [{}, [], (), "", b""],
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_people_keep(name, tmp_path):
    for back in kept(TAKEN[name], tmp_path):
        assert_equal(back, TAKEN[name])


def test_subclasses_come_back_as_what_they_are_subclasses_of(tmp_path):
    counted = collections.Counter("aab")
    ordered = collections.OrderedDict([(2, "b"), (1, "a")])
    value = [PAIR(1, 2), counted, ordered, {np.int64(3): np.str_("x")}, np.bytes_(b"x")]
    for back in kept(value, tmp_path):
        assert_equal(back, [(1, 2), {"a": 2, "b": 1}, {2: "b", 1: "a"}, {3: "x"}, b"x"])


@dataclasses.dataclass
class Config:
    depth: int = 3


class Colour(enum.Enum):
    RED = 1


def contains_itself():
    value = {"a": [1]}
    value["a"].append(value)
    return value


NESTED = {
    list: lambda value: [value],
    tuple: lambda value: (value,),
    dict: lambda value: {"k": value},
    "int keys": lambda value: {7: value},
}


def nested(depth, kind):
    value = 1
    for _ in range(depth):
        value = NESTED[kind](value)
    return value


REFUSED = {
    "object": (TypeError, {"a": [0, object()]}, 'extra["a"][1]', "object"),
    "set": (TypeError, {"a": {1}}, 'extra["a"]', "set"),
    "complex": (TypeError, {"a": {"b": 1j}}, 'extra["a"]["b"]', "complex"),
    "date": (TypeError, [datetime.date(2024, 1, 1)], "extra[0]", "date"),
    "function": (TypeError, len, "extra:", "builtin_function_or_method"),
    "path": (TypeError, {"a": Path("b")}, 'extra["a"]', "str("),
    "below an int key": (TypeError, {"a": {1: [len]}}, 'extra["a"][1][0]', "builtin"),
    "below a pair": (TypeError, {("a", 1): len}, "extra[('a', 1)]", "builtin"),
    "in a tuple": (TypeError, {"rng": (len,)}, 'extra["rng"][0]', "builtin"),
    "a quoted key": (TypeError, {'a"b': len}, 'extra["a\\"b"]', "builtin"),
    "class": (TypeError, [Config], "extra[0]", "received type"),
    "None key": (TypeError, {None: 2}, "extra:", "keys", "None"),
    "key of a list": (TypeError, {(1, frozenset()): 2}, "extra:", "keys", "frozenset"),
    "enum": (TypeError, [Colour.RED], "extra[0]", "value"),
    "frozen set": (TypeError, [frozenset("a")], "extra[0]", "sorted("),
    "time": (TypeError, [datetime.timedelta(1)], "extra[0]", "np.timedelta64("),
    "array of objects": (TypeError, [np.array([None])], "extra[0]", "object"),
    "array of records": (TypeError, {"a": np.zeros(2, "f8,i4")}, 'extra["a"]', "f0"),
    "masked array": (TypeError, [np.ma.masked_equal([1, 2], 1)], "extra[0]", "masked"),
    "array of nothing": (TypeError, [np.zeros(2, "V0")], "extra[0]", "V0"),
    "long number": (ValueError, [1, -(10**4000)], "extra[1]", "4,000 digits"),
    "itself": (ValueError, contains_itself(), 'extra["a"][1]["a"]', "itself"),
    "deep": (ValueError, nested(101, list), "extra[0][0]", "100 levels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_extra_that_cannot_be_kept(name, tmp_path):
    exception, extra, *words = REFUSED[name]
    opt = tw.SGD(np.ones(2))
    tw.save_checkpoint(tmp_path / "a", opt, "before")
    with refused(exception, *words, keeps=opt):
        tw.save_checkpoint(tmp_path / "a", opt, extra)
    assert tw.load_checkpoint(tmp_path / "a", opt) == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


class Sized:
    def __array__(self, dtype=None, copy=None):
        return np.ones(2)


# What is refused, and what the message says can be kept in its place, written as it says.
CURED = {
    "str(...)": (Path("a"), str),
    "sorted(...)": ({2, 1}, sorted),
    "np.datetime64(...)": (datetime.datetime(2024, 2, 29, 12), np.datetime64),
    "np.timedelta64(...)": (datetime.timedelta(hours=1), np.timedelta64),
    "np.array(...)": (1j, np.array),
    "np.random.Generator(...)": (np.random.PCG64(1), np.random.Generator),
    "its getstate()": (random.Random(1), lambda x: x.getstate()),
    "its value": (Colour.RED, lambda x: x.value),
    "its state_dict()": (tw.SGD([np.ones(2)], momentum=0.9), lambda x: x.state_dict()),
    "np.asarray(...)": (Sized(), np.asarray),
    "dataclasses.asdict(...)": (Config(), dataclasses.asdict),
    "its state is": (np.random.SeedSequence([3, 2**70], pool_size=8), lambda x: x.state),
    "list(...)": (collections.deque([1, 2]), list),
    "list(...) makes": ({"b": 1, "a": 2}.keys(), list),
    "list(...) makes a": (range(3), list),
    "list(...) makes a list": (iter("ab"), list),
    "its tolist()": (np.array([None, "a"]), lambda x: x.tolist()),
    "{name: x[name] for name in x.dtype.names}": (
        np.zeros(2, [("a", "f4"), ("b", "i8")]),
        lambda x: {name: x[name] for name in x.dtype.names},
    ),
    "store .data and .mask": (
        np.ma.masked_equal([1, 2], 1),
        lambda x: [x.data, x.mask],
    ),
}


@pytest.mark.parametrize("cure", CURED)
def test_the_cure_works(cure, tmp_path):
    value, cured = CURED[cure]
    with refused(TypeError, 'extra["x"][0]', cure):
        kept({"x": (value,)}, tmp_path)
    value = iter("ab") if isinstance(value, type(iter("ab"))) else value
    kept({"x": (cured(value),)}, tmp_path)


def test_a_tensor_is_told_how(tmp_path):
    """As torch's: detached, brought to the processor, made an array."""

    class Tensor(Sized):
        def detach(self):
            return self

    with refused(TypeError, "extra:", "detach().cpu().numpy()"):
        kept(Tensor(), tmp_path)


def test_a_class_is_told_nothing_that_is_true_of_its_instances(tmp_path):
    for each in (np.ndarray, Config, Path, set, tw.SGD):
        with pytest.raises(TypeError, match=r"received \w+$"):
            kept(each, tmp_path)


def test_dtypes_that_only_look_like_bytes(tmp_path):
    """Their str is that of untyped bytes: they would come back as such."""
    extended = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    with refused(TypeError, "extra", "bfloat16"):
        tw.save_checkpoint(tmp_path / "a", tw.SGD(np.ones(2)), np.ones(2, extended.bfloat16))


@pytest.mark.parametrize("kind", [list, dict, tuple, "int keys"])
def test_the_deepest_extra_is_read_from_deep_down_the_stack(kind, tmp_path):
    def deeper(levels):
        return deeper(levels - 1) if levels else kept(nested(100, kind), tmp_path)

    for back in deeper(300):
        assert back == nested(100, kind)


@pytest.mark.slow
def test_more_members_and_bytes_than_a_plain_zip_has_numbers_for(tmp_path, monkeypatch):
    """Beyond 65,535 members or 4 GiB its numbers are in other places."""
    count = 70_000 if FULL else 10
    if not FULL:
        monkeypatch.setattr("zipfile.ZIP_FILECOUNT_LIMIT", 5)
        monkeypatch.setattr("zipfile.ZIP64_LIMIT", 1000)
    arrays = [np.full(2, i) for i in range(count)]
    for back in kept(arrays, tmp_path):
        assert len(back) == count
        assert all((array == i).all() for i, array in enumerate(back))
    data = (tmp_path / "a").read_bytes()
    assert b"PK\6\6" in data[-200:]
    damaged = bytearray(data)
    damaged[data.index(b"PK\6\6") + 48] ^= 1  # where the directory starts
    (tmp_path / "a").write_bytes(damaged)
    with pytest.raises(tw.CheckpointError):
        tw.read_checkpoint(tmp_path / "a")


@pytest.mark.huge
def test_more_than_4_gib(tmp_path):
    array = np.arange(2**29 + 5, dtype=np.int64)
    for back in kept([array, array[:5]], tmp_path):
        assert np.array_equal(back[0], array)
        assert back[1].tolist() == [0, 1, 2, 3, 4]
