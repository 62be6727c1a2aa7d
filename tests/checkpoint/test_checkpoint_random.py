"""Random generators beside the optimizer: they go on as they would have, or are refused."""

import contextlib
import copy
import random

import numpy as np
import pytest
from test_checkpoint_extra import kept

import thalweg as tw
from crafting import SAMPLE, Loader, pack
from refusing import frozen, refused


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_a_generator_goes_on_as_it_would_have(kind, tmp_path):
    def new(seed):
        return np.random.Generator(getattr(np.random, kind)(seed))

    rng, again = new(1), new(2)
    rng.standard_normal(1001, np.float32)
    for back in kept({"rng": rng.bit_generator.state}, tmp_path):
        again.bit_generator.state = back["rng"]
        assert again.bit_generator.random_raw(0) is not None
        expected = copy.deepcopy(rng).bytes(1000)
        assert again.bytes(1000) == expected


def drawn(rng):
    """What is drawn next, and what its children draw."""
    children = []
    with contextlib.suppress(AttributeError, TypeError):  # one of the old kind, or without a seed
        children = [child.bytes(99) for child in rng.spawn(2)]
    return rng.standard_normal(101).tolist(), rng.bytes(5000), children


def assert_goes_on(again, expected):
    """As the other one does; children only where that one can have any."""
    *mine, children = drawn(again)
    *others, expected_children = drawn(expected)
    assert mine == others
    assert children == expected_children or not expected_children


RANDOM = {
    "default": lambda: np.random.default_rng(5),
    "entropy of the system": np.random.default_rng,
    "spawned": lambda: np.random.default_rng(5).spawn(3)[2],
    "half a draw left": lambda: half_drawn(np.random.default_rng(3)),
    "many seeds": lambda: np.random.Generator(
        np.random.PCG64DXSM(np.random.SeedSequence([1, 2**70], spawn_key=(4, 5), pool_size=8))
    ),
    "Philox with a key": lambda: np.random.Generator(np.random.Philox(key=2**100, counter=5)),
    "SFC64": lambda: half_drawn(np.random.Generator(np.random.SFC64(1))),
    "MT19937": lambda: half_drawn(np.random.Generator(np.random.MT19937(1))),
    "Philox": lambda: half_drawn(np.random.Generator(np.random.Philox(1))),
}


def half_drawn(rng):
    rng.integers(0, 2**31, dtype=np.int32)
    return rng


@pytest.mark.parametrize("name", RANDOM)
def test_a_generator_itself(name, tmp_path):
    rng = RANDOM[name]()
    rng.standard_normal(13, np.float32)
    expected = copy.deepcopy(rng)
    for back in kept({"rngs": [rng, {0: rng}]}, tmp_path):
        each = [back["rngs"][0], back["rngs"][1][0]]
        for again in each:
            assert type(again.bit_generator) is type(rng.bit_generator)
            assert_goes_on(again, copy.deepcopy(expected))
    assert_goes_on(rng, expected)  # saving draws nothing


@pytest.mark.parametrize("kind", ["MT19937", "PCG64"])
def test_a_generator_of_the_old_kind(kind, tmp_path):
    rng = np.random.RandomState(getattr(np.random, kind)(3))
    rng.standard_normal(3)  # one of a pair is left
    for back in kept((rng,), tmp_path):
        assert type(back[0]) is np.random.RandomState
        assert_goes_on(back[0], copy.deepcopy(rng))


def test_the_states_of_generators(tmp_path):
    """As loops keep them: what comes back can be set."""
    mine, numpy_s = random.Random(3), np.random.RandomState(3)
    for made in (mine.gauss(0, 1), numpy_s.standard_normal()):
        assert made
    extra = {"random": mine.getstate(), "numpy": numpy_s.get_state()}
    for back in kept(extra, tmp_path):
        assert back["random"] == mine.getstate()
        again, numpy_again = random.Random(), np.random.RandomState()
        again.setstate(back["random"])
        numpy_again.set_state(back["numpy"])
        assert again.getstate() == mine.getstate()
        assert numpy_again.bytes(5000) == copy.deepcopy(numpy_s).bytes(5000)


class Foreign(np.random.Generator):
    """Its bits are nobody's that could be made again."""

    def __init__(self):
        super().__init__(type("Own", (np.random.PCG64,), {})())

    @property
    def bit_generator(self):
        return type("Bits", (), {"state": {"bit_generator": "Xoroshiro128"}, "seed_seq": None})()

    def __repr__(self):
        return "Foreign"


def test_bits_that_are_not_numpys(tmp_path):
    with refused(TypeError, 'extra["rng"]', "bit generator of NumPy's own", "Xoroshiro128"):
        kept({"rng": Foreign()}, tmp_path)


def described(**changes):
    """What a file says of a generator, changed by key."""
    state = {"bit_generator": "MT19937", "state": {"key": [*range(624)], "pos": 3}}
    seed = {"entropy": 3, "spawn_key": [], "pool_size": 4, "n_children_spawned": 0}
    made = {"kind": "Generator", "state": state, "seed": seed}
    for path, value in changes.items():
        *above, last = path.split("_at_")
        below = made
        for key in above:
            below = below[key]
        below[last] = value
    return made


def wrapped(value):
    return {"dict": {k: wrapped(v) for k, v in value.items()}} if isinstance(value, dict) else value


LIES = {
    "a place behind the buffer": {"state_at_state_at_pos": 625},
    "a place far behind": {"state_at_state_at_pos": 2**31 - 1},
    "a place before it": {"state_at_state_at_pos": -1},
    "half a place": {"state_at_state_at_pos": 1.5},
    "a place of Philox": {
        "state": {
            "bit_generator": "Philox",
            "state": {"counter": [0] * 4, "key": [0] * 2},
            "buffer": [0] * 4,
            "buffer_pos": 5,
            "has_uint32": 0,
            "uinteger": 0,
        }
    },
    "a short key": {"state_at_state_at_key": [1, 2, 3]},
    "a key of words": {"state_at_state_at_key": "key"},
    "another module's name": {"state_at_bit_generator": "seed"},
    "a name that is none": {"state_at_bit_generator": 3},
    "another kind": {"kind": "Evil"},
    "a pool without end": {"seed_at_pool_size": 2**40},
    "a large pool": {"seed_at_pool_size": 1025},
    "a small pool": {"seed_at_pool_size": 1},
    "a seed of words": {"seed_at_entropy": "x"},
    "a negative seed": {"seed_at_entropy": -3},
    "an argument too many": {"seed_at_x": 1},
    "no state": {"state": {}},
    "no seed": {"seed": [1]},
}


@pytest.mark.parametrize("name", LIES)
def test_what_a_file_says_of_a_generator(name, tmp_path):
    """NumPy itself would read behind its buffers."""
    manifest = SAMPLE.manifest()
    with Loader(tmp_path) as loader:
        for changes in ({}, LIES[name]):
            manifest["extra"]["dict"]["rng"] = {"random": wrapped(described(**changes))}
            loader.write(pack(SAMPLE.members(manifest)))
            opt = SAMPLE.new()
            before = frozen(opt)
            if not changes:
                extra = tw.load_checkpoint(loader.path, opt, options="file")
                assert extra["rng"].random() < 1
                continue
            with pytest.raises(tw.CheckpointError, match="damaged"):
                tw.load_checkpoint(loader.path, opt, options="file")
            assert frozen(opt) == before
            with pytest.raises(tw.CheckpointError, match="damaged"):
                tw.read_checkpoint(loader.path)
