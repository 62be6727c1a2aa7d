"""thalweg.keras: the numbers of Keras' own optimizers, with the backend that is set; its own code
where the arrays are not ours; a refusal with backends whose arrays must not change."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

if "KERAS_BACKEND" not in os.environ:
    os.environ["KERAS_BACKEND"] = "numpy"  # the one that needs nothing more; Keras reads it once

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its imports deprecate is not ours
    keras = pytest.importorskip("keras", reason="keras is not installed")
    import thalweg.keras as ours

BACKEND = keras.backend.backend()
if BACKEND not in ("numpy", "torch"):
    pytest.skip(f"Keras has the backend {BACKEND}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras' own

SHAPES = [(5, 3), (7,), (2, 3, 4)]
STEPS = 20

SETTINGS = {
    "plain": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "decay": ("SGD", {"momentum": 0.9, "weight_decay": 0.01}),
    "clipnorm": ("SGD", {"clipnorm": 0.5}),
    "global_clipnorm": ("SGD", {"global_clipnorm": 0.5}),
    "clipvalue": ("SGD", {"clipvalue": 0.2}),
    "averages": ("SGD", {"use_ema": True, "ema_overwrite_frequency": 3}),
    "accumulated": ("SGD", {"gradient_accumulation_steps": 2}),
    "loss scale": ("SGD", {"loss_scale_factor": 8.0}),
    "schedule": (
        "SGD",
        {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.2, 4, 0.5)},
    ),
    "adagrad": ("Adagrad", {}),
    "adagrad, eps": ("Adagrad", {"epsilon": 0.1, "initial_accumulator_value": 0.0}),
}


def tensor(array, dtype):
    return keras.ops.convert_to_tensor(array, dtype=dtype)


def run(optimizer, dtype="float32", grad_dtype=None):
    """The optimizer's variables and the model's after some steps."""
    rng = np.random.default_rng(31)
    held = [keras.Variable(rng.standard_normal(s), dtype=dtype) for s in SHAPES]
    for _ in range(STEPS):
        grads = [tensor(rng.standard_normal(s), grad_dtype or dtype) for s in SHAPES]
        optimizer.apply(grads, held)
    return [keras.ops.convert_to_numpy(v.value) for v in [*held, *optimizer.variables]]


def both(name, options):
    options = {"learning_rate": 0.1, **options}
    return [getattr(module, name)(**options) for module in (ours, keras.optimizers)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_numbers_are_keras_own(setting, dtype):
    """With the NumPy backend to the last bit, but that Keras rounds float64 to float32 on the way;
    torch's kernels fuse some roundings."""
    mine, theirs = (run(optimizer, dtype) for optimizer in both(*SETTINGS[setting]))
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == b.dtype
        if BACKEND == "numpy" and dtype == "float32":
            assert a.tobytes() == b.tobytes()
        else:
            rounded = "float32" if BACKEND == "numpy" else dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=STEPS * 8 * np.finfo(rounded).eps)


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_a_step_is_taken_in_place(name):
    optimizer, _ = both(name, {"momentum": 0.9} if name == "SGD" else {})
    w = keras.Variable(np.ones(3, "float32"))
    optimizer.build([w])
    before = [v._value for v in (w, *optimizer.variables[2:])]
    optimizer.apply([tensor(np.ones(3), "float32")], [w])
    after = [v._value for v in (w, *optimizer.variables[2:])]
    assert len(before) == 2
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert (keras.ops.convert_to_numpy(w.value) < 1).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_other_dtypes_are_stepped_by_keras(name, dtype):
    if BACKEND == "numpy" and dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    mine, theirs = (run(optimizer, dtype) for optimizer in both(name, {}))
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=0.05, atol=0.05)


def test_gradients_of_other_dtypes_are_converted_first():
    mine, theirs = (run(optimizer, "float32", "float16") for optimizer in both("SGD", {}))
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=STEPS * 8 * np.finfo("f").eps)


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_a_stateless_call_changes_no_variable(name):
    optimizer, other = both(name, {})
    w = keras.Variable(np.ones(3, "float32"))
    for each in (optimizer, other):
        each.build([w])
    results = []
    for each in (optimizer, other):
        state = [keras.ops.copy(v.value) for v in each.variables]
        found, _ = each.stateless_apply(
            state, [tensor(np.ones(3), "float32")], [keras.ops.copy(w.value)]
        )
        results.append(keras.ops.convert_to_numpy(found[0]))
    np.testing.assert_array_equal(*results)
    assert (results[0] < 1).all()
    assert (keras.ops.convert_to_numpy(w.value) == 1).all()


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_configs_come_back(name):
    optimizer, _ = both(name, {"clipnorm": 0.5})
    other = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(other) is getattr(ours, name)
    assert other.get_config() == optimizer.get_config()


@pytest.mark.skipif(BACKEND != "torch", reason="Keras' NumPy backend has no fit")
def test_fit_and_autograds_versions():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((64, 4)).astype("f")
    y = X @ np.ones((4, 1), "f")
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(optimizer=ours.SGD(0.05, momentum=0.5), loss="mse")
    assert model.fit(X, y, epochs=20, verbose=0).history["loss"][-1] < 0.01
    w = keras.Variable(np.ones(3, "float32"))
    before = w.value._version
    ours.SGD(0.1).apply([tensor(np.ones(3), "float32")], [w])
    assert w.value._version > before


CODE = """
import keras.backend
keras.backend.backend = lambda: "jax"
import thalweg.keras
for name in ("SGD", "Adagrad"):
    try:
        getattr(thalweg.keras, name)()
    except RuntimeError as error:
        print(error)
"""


def test_backends_whose_arrays_must_not_change_are_refused():
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [
        "thalweg.keras.SGD",
        "thalweg.keras.Adagrad",
    ]
    assert done.stdout.count("received jax") == 2
    assert "keras.optimizers.Adagrad" in done.stdout
