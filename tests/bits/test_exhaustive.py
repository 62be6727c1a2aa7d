"""All 2^32 float32 gradients, and an array of more than 2^31 elements; neither runs by default."""

import time
from pathlib import Path

import numpy as np
import pytest

import thalweg as tw
from rules import RULES
from thalweg import _core

# Buffers of a chunk stay in the cache, so that the arithmetic is what takes the time.
CHUNK = 2**18
EXHAUSTIVE = ["heavy_ball", "heavy_ball_nesterov", "adagrad_inside", "adagrad_outside"]


def hashed(x, factor):
    """A fixed hash of 32 bits (murmur3's finalizer)."""
    h = x * np.uint32(factor)
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    return h


def near(bits, noise):
    """Numbers within 2^16 of those of ``bits``, where a sum rounds; one in four is anything."""
    anything = (noise & np.uint32(0x600)) == 0
    return np.where(anything, noise, bits ^ (noise & np.uint32(0x87FFFFFF))).view(np.float32)


class Chunk:
    """Gradients, and for each the weight and state that belong to it."""

    def __init__(self):
        self.pattern = np.arange(CHUNK, dtype=np.uint32)
        self.after = np.empty((2, CHUNK), np.float32)

    def start(self, first):
        pattern = self.pattern + np.uint32(first)
        noise = hashed(pattern, 0x9E3779B1), hashed(pattern, 0x85EBCA77)
        self.grad = pattern.view(np.float32)
        hundredth = np.float32(0.01).view(np.uint32)
        with np.errstate(all="ignore"):
            square = (self.grad * self.grad).view(np.uint32)
        self.operands = {
            "velocity": (near(pattern, noise[0]), near(pattern, noise[1])),
            "accumulator": (near(hundredth, noise[0]), np.abs(near(square, noise[1]))),
        }

    def differing(self, rule):
        """How many elements of param and state differ from the twin's, by ISA level."""
        start = self.operands[rule.slot]
        expected = [x.copy() for x in start]
        rule.twin(expected[0], self.grad, expected[1], 1)
        for level in _core.isa_supported:
            for after, before in zip(self.after, start, strict=True):
                after[...] = before
            rule.apply([self.after[0]], [self.grad], [self.after[1]], level)
            yield level, sum(map(count_differing, self.after, expected))


def count_differing(actual, expected):
    differs = np.flatnonzero(actual.view(np.uint32) != expected.view(np.uint32))
    if differs.size == 0:
        return 0
    return np.count_nonzero(~(np.isnan(actual[differs]) & np.isnan(expected[differs])))


def check_gradients(firsts, report):
    """Every chunk from ``firsts`` at every level; no element may differ."""
    chunk = Chunk()
    totals = {(name, level): 0 for name in EXHAUSTIVE for level in _core.isa_supported}
    begun, count = time.perf_counter(), 0
    for first in firsts:
        chunk.start(first)
        for name in EXHAUSTIVE:
            for level, differing in chunk.differing(RULES[name]):
                totals[name, level] += differing
        count += CHUNK
        if count % 2**28 == 0:
            report(f"{count:,} gradients, {time.perf_counter() - begun:.0f} s")
    for (name, level), differing in totals.items():
        report(f"{name:<20} {level:<9} {count:,} gradients, {differing} elements differ")
    assert not any(totals.values()), totals


@pytest.fixture
def report(capfd):
    """Prints past the capture: these runs are long."""

    def write(line):
        with capfd.disabled():
            print(line, flush=True)

    return write


@pytest.mark.exhaustive
def test_every_float32_gradient(report):
    check_gradients(range(0, 2**32, CHUNK), report)


def test_some_of_every_float32_gradient():
    """Of either sign: subnormals, numbers below 1, the largest ones, infinity and NaN."""
    chunks = (0, 0x3F7C0000, 0x7F7C0000, 0x7F800000)
    check_gradients([sign + first for sign in (0, 2**31) for first in chunks], print)


def available_bytes():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


@pytest.mark.huge
def test_more_than_2_to_the_31_elements(report):
    size = 2**31 + 17
    if not Path("/proc/meminfo").exists() or available_bytes() < 18 * 2**30:
        pytest.skip("needs 18 GiB of free memory, as /proc/meminfo tells it")
    rule, options = RULES["heavy_ball"], {"lr": 0.1, "momentum": 0.9}
    probes = np.r_[0, 2**31 - 1, size - 17 : size]
    rng = np.random.default_rng(1)

    param = np.zeros(size, np.float32)
    param[probes] = rng.standard_normal(probes.size)
    grad = np.broadcast_to(np.float32(0.3), size)
    expected, velocity = param[probes], np.zeros(probes.size, np.float32)
    elsewhere, elsewhere_velocity = np.zeros((2, 1), np.float32)

    opt = tw.SGD(param, **options)
    for t in range(2):
        opt.step(grad)
        rule.twin(expected, grad[: probes.size], velocity, t, **options)
        rule.twin(elsewhere, grad[:1], elsewhere_velocity, t, **options)
    assert np.array_equal(param[probes], expected)
    assert np.array_equal(opt.state[""]["velocity"][probes], velocity)
    report(f"{size:,} elements: the first, the 2^31st and the last 17 are right")

    param[probes] = elsewhere
    wrong = sum(
        np.count_nonzero(param[i : i + 2**24] != elsewhere)
        + np.count_nonzero(opt.state[""]["velocity"][i : i + 2**24] != elsewhere_velocity)
        for i in range(0, size, 2**24)
    )
    report(f"{wrong} of all the others are wrong")
    assert wrong == 0
