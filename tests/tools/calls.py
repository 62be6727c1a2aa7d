"""The functional calls: which there are, and the one of each rule."""

import pytest

import thalweg as tw
from bits import DTYPES
from rules import RULES

CALLS = {"sgd_": tw.sgd_, "adagrad_": tw.adagrad_}
ROW_CALLS = {"sgd_rows_": tw.sgd_rows_, "adagrad_rows_": tw.adagrad_rows_}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
dense_rules = {name: rule for name, rule in RULES.items() if "row" not in name}
each_rule = pytest.mark.parametrize("rule", dense_rules.values(), ids=dense_rules)


def call_of(rule):
    """The function of a rule, with the options that choose it."""
    function = tw.sgd_ if rule.optimizer is tw.SGD else tw.adagrad_
    choices = {name: x for name, x in rule.choices.items() if name != "accumulator"}
    return lambda *arrays, **options: function(*arrays, **{"lr": 0.1} | choices | options)
