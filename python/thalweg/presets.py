"""The defaults of other libraries and books, for ``SGD.like`` and ``Adagrad.like``.

``REQUIRED`` stands where the source leaves the learning rate to the caller. Bits are those of
min_char_rnn, saito, openfl and d2l; Keras, optax and torch associate or fuse differently and agree
to a few eps.
"""

from collections.abc import Mapping
from typing import Any

REQUIRED: Any = object()

SGD_PRESETS: dict[str, dict[str, Any]] = {
    "torch": {"form": "heavy_ball", "lr": 1e-3},
    "d2l": {"form": "heavy_ball", "lr": REQUIRED},
    "keras": {"form": "classic", "lr": 1e-2, "decoupled": True, "norm_eps": 0.0},
    "optax": {"form": "heavy_ball", "lr": REQUIRED, "norm_eps": 0.0},
    "sklearn": {"form": "classic", "nesterov": True, "momentum": 0.9, "lr": 1e-3},
    "chainer": {"form": "classic", "momentum": 0.9, "lr": 1e-2, "norm_eps": 0.0},
    "saito": {"form": "classic", "momentum": 0.9, "lr": 1e-2},
    "openai_es": {"form": "ema", "momentum": 0.9, "lr": REQUIRED},
}

ADAGRAD_PRESETS: dict[str, dict[str, Any]] = {
    "torch": {"eps_placement": "outside", "eps": 1e-10, "lr": 1e-2},
    "d2l": {"eps_placement": "inside", "eps": 1e-6, "lr": REQUIRED},
    "keras": {
        "eps_placement": "inside",
        "eps": 1e-7,
        "initial_accumulator_value": 0.1,
        "lr": 1e-3,
        "decoupled": True,
        "norm_eps": 0.0,
    },
    "optax": {
        "eps_placement": "inside",
        "eps": 1e-7,
        "initial_accumulator_value": 0.1,
        "lr": REQUIRED,
        "norm_eps": 0.0,
    },
    "chainer": {"eps_placement": "outside", "eps": 1e-8, "lr": 1e-3, "norm_eps": 0.0},
    "saito": {"eps_placement": "outside", "eps": 1e-7, "lr": 1e-2},
    "openfl": {
        "eps_placement": "outside",
        "eps": 1e-10,
        "initial_accumulator_value": 0.1,
        "lr": 1e-2,
    },
    "min_char_rnn": {"eps_placement": "inside", "eps": 1e-8, "lr": 0.1},
}

FIXED = ("form", "eps_placement")


def preset(
    presets: dict[str, dict[str, Any]], name: str, overrides: dict[str, Any]
) -> dict[str, Any]:
    """The options of a preset with the caller's own on top."""
    if name not in presets:
        raise ValueError(f"like: expected one of {', '.join(presets)}, received {name!r}")
    options = presets[name] | (_from_keras(overrides) if name == "keras" else overrides)
    check_kept(presets, name, options)
    if options["lr"] is REQUIRED:
        raise TypeError(f"like: expected lr, received none; {name!r} has no default for it")
    return options


# Keras' words for what clips gradients.
KERAS_CLIPS = {
    "clipnorm": "max_array_norm",
    "global_clipnorm": "max_norm",
    "clipvalue": "max_value",
}


def _from_keras(overrides: dict[str, Any]) -> dict[str, Any]:
    given = [word for word in KERAS_CLIPS if overrides.get(word) is not None]
    clips = [*given, *(word for word in KERAS_CLIPS.values() if overrides.get(word) is not None)]
    if given and len(clips) > 1:
        raise ValueError(
            f"like: expected one of clipnorm, global_clipnorm and clipvalue, as Keras does, "
            f"received {' and '.join(clips)}; in our own words, max_value goes with a norm"
        )
    return {
        KERAS_CLIPS.get(word, word): value
        for word, value in overrides.items()
        if word not in KERAS_CLIPS or value is not None
    }


def check_kept(presets: dict[str, dict[str, Any]], name: str, options: Mapping[str, Any]) -> None:
    """Refuse options, all or one group's, that make another thing of a preset."""
    for key in FIXED:
        expected = presets[name].get(key)
        if expected is not None and options[key] != expected:
            raise ValueError(
                f"like: expected {key}={expected!r}, which makes {name!r} what it is, "
                f"received {options[key]!r}; drop one of the two"
            )
    if name == "chainer" and options.get("nesterov"):
        raise ValueError(
            "like: expected no nesterov for 'chainer', received nesterov=True; its NesterovAG is "
            "another formula"
        )
    momentum = options.get("momentum", 0.0)
    # Of another type it is looked at again, as a float, once the optimizer is made.
    without = type(momentum) in (float, int) and momentum == 0
    if name == "torch" and options.get("nesterov") and without:
        raise ValueError(
            "like: expected momentum > 0 for 'torch', which refuses nesterov without it, received "
            f"momentum={momentum!r}; drop nesterov=True"
        )
