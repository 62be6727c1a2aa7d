"""Steps over ranks beside the twin that is fed their sum."""

from functools import partial

import numpy as np

import thalweg as tw
import thalweg.mpi as tm
from bits import DTYPES, assert_same_bits
from ranks import (
    RANK,
    SIZE,
    case,
    compare,
    dense,
    everywhere,
    fed,
    shapes,
    sizes,
    spoiled,
    with_rows,
)
from rules import RULES


@case
def bits_of_every_rule():
    def run():
        for rule in RULES.values():
            for dtype in DTYPES:
                compare(rule, dtype, dense, steps=2)

    everywhere(run)


LATER = [
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled": True},
    {"maximize": True},
    {"max_value": 0.5},
    {"max_norm": 1.0},
    {"max_norm": 1.0, "max_value": 0.3},
    {"max_norm": 1.0, "norm_eps": 0.5},
    {"max_norm": 1e9, "on_nonfinite": "skip"},
    {"max_array_norm": 0.5},
    {"max_array_norm": 0.5, "max_value": 0.3, "on_nonfinite": "skip"},
    {"on_nonfinite": "skip", "max_value": 0.5},
    {"lr": lambda t: 0.1 / (1 + t)},
    {"weight_decay": lambda t: 0.01 * t},
]


@case
def bits_of_every_option():
    def run():
        for options in LATER:
            for name in ("heavy_ball", "adagrad_row_inside"):
                compare(RULES[name], np.float32, spoiled, **options)
        compare(RULES["heavy_ball"], np.float64, dense, max_norm=1.0, average=False, scale=0.7)
        compare(RULES["adagrad_inside"], np.float32, dense, lr_decay=0.1)
        compare(RULES["heavy_ball"], np.float32, dense, dampening=0.1)

    everywhere(run)


@case
def bits_of_every_rule_with_options():
    options = {"weight_decay": 0.1, "maximize": True, "max_value": 0.7, "max_norm": 3.0}
    everywhere(lambda: [compare(r, np.float64, dense, 2, **options) for r in RULES.values()])


def few(dtype):
    made = {"one": (1,), "two": (2, 5), "scalar": (), "none": (0,)}
    return {name: np.full(shape, 0.25, dtype) for name, shape in made.items()}


@case
def more_ranks_than_elements():
    def run():
        for options in ({}, {"max_norm": 0.1}, {"on_nonfinite": "skip"}):
            for name in ("heavy_ball", "adagrad_row_inside"):
                compare(RULES[name], np.float32, dense, made=few, **options)

    everywhere(run)


@case
def messages_of_a_few_bytes():
    """As of arrays that no one message can hold."""
    sizes(0, 128)
    for make in (dense, with_rows):
        compare(RULES["heavy_ball"], np.float64, make, 2, made=lambda t: shapes(t, 0.1))
    compare(RULES["adagrad_row_inside"], np.float32, dense, 2, max_norm=1.0, made=few)


@case
def bits_by_rows():
    def run():
        for name in ("sgd", "heavy_ball", "adagrad_inside", "adagrad_row_outside"):
            for dtype in DTYPES:
                compare(RULES[name], dtype, with_rows)
        for options in (
            {"max_norm": 1.0},
            {"max_array_norm": 0.5},
            {"on_nonfinite": "skip", "max_value": 0.5},
        ):
            compare(RULES["adagrad_inside"], np.float32, with_rows, **options)
            compare(RULES["heavy_ball"], np.float32, partial(spoiled, make=with_rows), **options)

    everywhere(run)


@case
def none_and_missing_gradients():
    def some(params, step, rank):
        grads = dense(params, step, rank)
        if step == 0:
            del grads["table"]
        if step == 1:
            grads["w"] = None
        return grads

    everywhere(lambda: compare(RULES["heavy_ball"], np.float32, some))


@case
def gradients_of_other_dtypes_and_layouts():
    def other(params, step, rank):
        grads = dense(params, step, rank)
        grads["w"] = grads["w"].astype(np.float64)[::-1]
        grads["table"] = np.asfortranarray(grads["table"].astype(np.float16))
        return grads

    everywhere(lambda: compare(RULES["adagrad_inside"], np.float32, other))


@case
def groups_and_frozen_params():
    def run():
        made = shapes(np.float32)
        params = [
            {"params": {"w": made["w"]}, "lr": 0.2},
            {"params": {"table": made["table"]}, "frozen": True},
            {"params": {"bias": made["bias"]}, "lr": lambda step: 0.1 / (1 + step)},
        ]
        copies = [g | {"params": {k: v.copy() for k, v in g["params"].items()}} for g in params]
        opt = tm.SGD(params, lr=0.1, momentum=0.9)
        alone = tw.SGD(copies, lr=0.1, momentum=0.9)
        for step in range(3):
            everyone = [dense(made, step, rank) for rank in range(SIZE)]
            summed = fed(everyone, made)
            mine = everyone[RANK]
            opt.step([{"w": mine["w"]}, {"table": mine["table"]}, {"bias": mine["bias"]}])
            alone.step(
                [{"w": summed["w"]}, {"table": summed["table"]}, {"bias": summed["bias"]}],
                scale=1 / SIZE,
            )
            if step == 1:
                for each in (opt, alone):
                    each.param_groups[1]["frozen"] = False
                    each.param_groups[0]["lr"] = 0.05
        for group, copy in zip(params, copies, strict=True):
            for name, w in group["params"].items():
                assert_same_bits(w, copy["params"][name], name)
        assert opt.last_lr == alone.last_lr

    everywhere(run)
