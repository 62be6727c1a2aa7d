"""The presets of DESIGN.md section 3, repr, show_config."""

import numpy as np
import pytest

import thalweg as tw
from thalweg import _core

GIVEN = 0.0625  # where the source leaves lr to the caller

# The table of section 3, with every other option at its default.
SGD = {
    "torch": {"form": "heavy_ball", "lr": 1e-3},
    "d2l": {"form": "heavy_ball", "lr": GIVEN},
    "keras": {"form": "classic", "lr": 1e-2, "decoupled": True},
    "optax": {"form": "heavy_ball", "lr": GIVEN},
    "sklearn": {"form": "classic", "nesterov": True, "momentum": 0.9, "lr": 1e-3},
    "chainer": {"form": "classic", "momentum": 0.9, "lr": 1e-2},
    "saito": {"form": "classic", "momentum": 0.9, "lr": 1e-2},
    "openai_es": {"form": "ema", "momentum": 0.9, "lr": GIVEN},
}
ADAGRAD = {
    "torch": {"eps_placement": "outside", "eps": 1e-10, "lr": 1e-2},
    "d2l": {"eps_placement": "inside", "eps": 1e-6, "lr": GIVEN},
    "keras": {"eps": 1e-7, "initial_accumulator_value": 0.1, "lr": 1e-3, "decoupled": True},
    "optax": {"eps": 1e-7, "initial_accumulator_value": 0.1, "lr": GIVEN},
    "chainer": {"eps_placement": "outside", "eps": 1e-8, "lr": 1e-3},
    "saito": {"eps_placement": "outside", "eps": 1e-7, "lr": 1e-2},
    "openfl": {
        "eps_placement": "outside",
        "eps": 1e-10,
        "initial_accumulator_value": 0.1,
        "lr": 1e-2,
    },
    "min_char_rnn": {"eps_placement": "inside", "eps": 1e-8, "lr": 0.1},
}
DEFAULTS = {
    tw.SGD: {
        "lr": 1e-3,
        "momentum": 0.0,
        "dampening": 0.0,
        "nesterov": False,
        "form": "heavy_ball",
        "weight_decay": 0.0,
        "decoupled": False,
        "maximize": False,
        "frozen": False,
    },
    tw.Adagrad: {
        "lr": 1e-2,
        "eps": 1e-8,
        "eps_placement": "inside",
        "lr_decay": 0.0,
        "initial_accumulator_value": 0.0,
        "accumulator": "element",
        "weight_decay": 0.0,
        "decoupled": False,
        "maximize": False,
        "frozen": False,
    },
}
TABLE = [
    pytest.param(rule, name, options, id=f"{rule.__name__}-{name}")
    for rule, presets in ((tw.SGD, SGD), (tw.Adagrad, ADAGRAD))
    for name, options in presets.items()
]


@pytest.mark.parametrize("rule", DEFAULTS)
def test_defaults(rule):
    assert dict(rule(np.ones(2)).param_groups[0]) == DEFAULTS[rule]


WITHOUT_NORM_EPS = "keras", "optax", "chainer"


@pytest.mark.parametrize("rule", DEFAULTS)
def test_all_presets_are_in_the_table(rule):
    assert set(rule._presets) == set(SGD if rule is tw.SGD else ADAGRAD)


@pytest.mark.parametrize(("rule", "name", "options"), TABLE)
def test_preset(rule, name, options):
    given = {"lr": GIVEN} if options["lr"] == GIVEN else {}
    opt = rule.like(name, {"w": np.ones(2)}, **given)
    assert type(opt) is rule
    assert dict(opt.param_groups[0]) == DEFAULTS[rule] | options
    assert opt.norm_eps == (0.0 if name in WITHOUT_NORM_EPS else 1e-6)
    assert opt.step({"w": np.ones(2)})
    assert rule.like(name, np.ones(2), **given, norm_eps=0.5).norm_eps == 0.5


@pytest.mark.parametrize(("rule", "name", "options"), TABLE)
def test_preset_with_overrides(rule, name, options):
    w = np.ones(2)
    extra = {"lr": 0.75, "weight_decay": 0.5, "maximize": True, "grads": np.ones(2)}
    same = {key: options[key] for key in ("form", "eps_placement") if key in options}
    opt = rule.like(name, w, **extra, **same)
    del extra["grads"]
    assert dict(opt.param_groups[0]) == DEFAULTS[rule] | options | extra
    assert opt.step()


def test_preset_of_a_subclass():
    class Mine(tw.Adagrad):
        pass

    assert type(Mine.like("keras", np.ones(2))) is Mine


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: tw.SGD(np.ones(3)),
            "SGD(lr=0.001, momentum=0.0, dampening=0.0, nesterov=False, form='heavy_ball', "
            "weight_decay=0.0, decoupled=False, maximize=False; 1 array, 3 elements, float64)",
        ),
        (
            lambda: tw.Adagrad({"a": np.ones((1000, 20)), "b": np.ones(7, np.float32)}, 0.5),
            "Adagrad(lr=0.5, eps=1e-08, eps_placement='inside', lr_decay=0.0, "
            "initial_accumulator_value=0.0, accumulator='element', weight_decay=0.0, "
            "decoupled=False, maximize=False; 2 arrays, 20,007 elements, float32 and float64)",
        ),
        (
            lambda: tw.SGD([{"params": [np.ones(1), np.ones(2)]}, {"params": np.ones(0)}]),
            "SGD(2 groups; 3 arrays, 3 elements, float64)",
        ),
    ],
)
def test_repr(make, text):
    assert repr(make()) == text


def test_repr_of_a_subclass_and_of_a_schedule():
    class Mine(tw.SGD):
        pass

    assert repr(Mine(np.ones(1), print)).startswith("Mine(lr=<built-in function print>, ")


def test_show_config(capsys):
    tw.show_config()
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {key: value.strip() for key, value in lines.items()} == {
        "thalweg": tw.__version__,
        "numpy": np.__version__,
        "isa compiled": ", ".join(_core.isa_compiled),
        "isa supported": ", ".join(_core.isa_supported),
        "isa in use": _core.isa,
        "threads": str(tw.get_num_threads()),
    }


def test_the_public_names():
    assert {"SGD", "Adagrad", "__version__", "adagrad_", "sgd_", "show_config"} <= set(tw.__all__)
    assert all(hasattr(tw, name) for name in tw.__all__)


@pytest.mark.parametrize(
    ("rule", "name", "option", "value"),
    [
        (tw.SGD, "keras", "form", "heavy_ball"),
        (tw.SGD, "chainer", "nesterov", True),
        (tw.SGD, "torch", "nesterov", True),
        (tw.Adagrad, "torch", "eps_placement", "inside"),
    ],
)
def test_a_group_cannot_make_another_thing_of_a_preset(rule, name, option, value):
    groups = [{"params": np.ones(2)}, {"params": np.ones(2), option: value}]
    momentum = 0.0 if name == "torch" else 0.9
    with pytest.raises(ValueError, match=f"like: expected .*{option}"):
        rule.like(name, groups, **({"momentum": momentum} if rule is tw.SGD else {}))
