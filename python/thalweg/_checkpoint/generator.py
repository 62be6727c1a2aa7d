"""NumPy's random generators as plain values, and made of them again."""

from typing import Any

import numpy as np

KINDS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
LARGEST_POOL = 1024

Random = np.random.Generator | np.random.RandomState


def describe(random: Random) -> dict[str, Any]:
    """What it will draw, and what ``spawn`` will make of it. Raises where it cannot be remade."""
    if isinstance(random, np.random.Generator):
        state, seed = random.bit_generator.state, random.bit_generator.seed_seq
    else:
        state, seed = random.get_state(legacy=False), None
    described = {
        "kind": "Generator" if isinstance(random, np.random.Generator) else "RandomState",
        "state": state,
        "seed": seed.state if type(seed) is np.random.SeedSequence else None,
    }
    made(described)
    return described


def made(described: Any) -> Random:
    kind, state, seed = described["kind"], described["state"], described["seed"]
    named = state["bit_generator"]
    if named not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, received {str(named)[:80]}")
    # NumPy takes any place in a buffer, and reads there.
    if named == "MT19937":
        _check_place(state["state"]["pos"], 624)
    if named == "Philox":
        _check_place(state["buffer_pos"], 4)
    bits = getattr(np.random, named)(None if seed is None else _seed(seed))
    if kind == "RandomState":
        random = np.random.RandomState(bits)
        random.set_state(state)
        return random
    if kind != "Generator":
        raise ValueError(f"expected Generator or RandomState, received {str(kind)[:80]}")
    bits.state = state
    return np.random.Generator(bits)


def _check_place(place: Any, last: int) -> None:
    if type(place) is not int or not 0 <= place <= last:
        raise ValueError(f"expected a place from 0 to {last}, received {str(place)[:80]}")


def _seed(state: Any) -> np.random.SeedSequence:
    if not 4 <= state["pool_size"] <= LARGEST_POOL:
        raise ValueError(f"expected a pool of 4 to {LARGEST_POOL}, received {state['pool_size']}")
    return np.random.SeedSequence(**state)
