"""thalweg.torch against the NumPy twin: every rule, layout and level, bit for bit."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from bits import assert_same_bits, sample  # noqa: E402
from rules import RULES  # noqa: E402
from thalweg import _core  # noqa: E402
from torch_twins import as_dict, layouts, numpy_of, ours, strided_parameter  # noqa: E402
from twin import Twin  # noqa: E402

KERNELS = [name for name in RULES if "row" not in name]
LATER = {
    "decay": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled": True},
    "maximize": {"maximize": True},
    "max_value": {"max_value": 0.5},
    "max_norm": {"max_norm": 1.0},
    "norm_eps": {"max_norm": 1.0, "norm_eps": 0.5},
    "norm_eps of 0": {"max_norm": 1.0, "norm_eps": 0.0},
    "judged": {"on_nonfinite": "skip"},
}


def optimizer(rule, params, **options):
    """thalweg.torch's with the choices of a rule."""
    return ours(rule.optimizer.__name__)(params, **{"lr": 0.1} | rule.choices | options)


def placed(rule):
    """eps outside is torch's own; it has no word for it."""
    return {} if rule.slot != "accumulator" else {"eps_placement": "inside"} | rule.choices


def slot_of(rule, entries):
    return entries["sum" if rule.slot == "accumulator" else "momentum_buffer"]


def check(rule, params, grads_of, steps=3, **options):
    whole = ("max_norm", "norm_eps", "max_value", "on_nonfinite")
    limits = {k: options[k] for k in whole if k in options}
    others = {k: v for k, v in options.items() if k not in limits}
    opt = optimizer(rule, params, **placed(rule), **options)
    twin = Twin(
        rule,
        as_dict(numpy_of(p) for p in params),
        {str(i): others for i in range(len(params))},
        **limits,
    )
    for t in range(steps):
        grads = grads_of(t)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        opt.step()
        twin.step(as_dict(numpy_of(g) for g in grads))
        for i, p in enumerate(params):
            context = f"{rule.kernel}, step {t}, {tuple(p.shape)} {p.stride()} {p.dtype}"
            assert_same_bits(numpy_of(p), twin.params[str(i)], context)
            if rule.slot:
                state = numpy_of(slot_of(rule, opt.state[p]))
                assert_same_bits(state, twin.states[str(i)], context)
    assert " by torch" not in opt.describe()
    return opt, twin


@pytest.mark.parametrize("kernel", KERNELS)
def test_layouts(kernel, at_level):
    rule = RULES[kernel]
    pairs = list(layouts(np.random.default_rng(1)))
    params = [strided_parameter(w) for w, _ in pairs]
    check(rule, params, lambda t: [g if t != 1 else g.contiguous() for _, g in pairs])


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("kernel", KERNELS)
def test_options(kernel, later, at_level):
    rule = RULES[kernel]
    rng = np.random.default_rng(2)
    params = [
        torch.nn.Parameter(torch.from_numpy(rng.standard_normal(n).astype(dtype)))
        for n in (1, 33, 300)
        for dtype in ("float32", "float64")
    ]

    def grads(t):
        return [torch.from_numpy(rng.standard_normal(p.shape)).to(p.dtype) for p in params]

    opt, twin = check(rule, params, grads, **LATER[later])
    if "max_norm" in LATER[later]:
        assert opt.grad_norm == twin.grad_norm


@pytest.mark.parametrize("kernel", KERNELS)
def test_any_numbers(kernel, at_level):
    rule = RULES[kernel]
    rng = np.random.default_rng(3)
    params = [
        torch.nn.Parameter(torch.from_numpy(sample(rng, (501,), dtype)))
        for dtype in ("float32", "float64")
    ]
    check(
        rule,
        params,
        lambda t: [torch.from_numpy(sample(rng, 501, "f4")).to(p.dtype) for p in params],
    )


def test_dampening_and_rate_decay_count_steps(at_level):
    rng = np.random.default_rng(4)
    for kernel, option in (
        ("heavy_ball", {"dampening": 0.5}),
        ("adagrad_outside", {"lr_decay": 0.3}),
    ):
        params = [torch.nn.Parameter(torch.from_numpy(rng.standard_normal(9))) for _ in range(2)]
        grads = [torch.from_numpy(rng.standard_normal(9)) for _ in range(2)]
        check(RULES[kernel], params, lambda t, grads=grads: grads, steps=5, **option)


def test_long_steps_let_the_gil_go(at_level):
    """Above 4 MiB other threads run, and there the pieces of a step are shared."""
    rng = np.random.default_rng(5)
    params = [
        torch.nn.Parameter(torch.from_numpy(rng.standard_normal((700, 1000)).astype("f4")))
        for _ in range(2)
    ]
    grads = [torch.from_numpy(rng.standard_normal((700, 1000)).astype("f4")) for _ in range(2)]
    before = _core.get_num_threads()
    try:
        for threads in (1, 3):
            _core.set_num_threads(threads)
            check(RULES["heavy_ball"], params, lambda t: grads, steps=2)
    finally:
        _core.set_num_threads(before)


@pytest.mark.parametrize("kernel", ["sgd", "adagrad_inside", "adagrad_outside"])
def test_sparse_gradients_are_summed_by_rows(kernel, at_level):
    import thalweg as tw

    rule = RULES[kernel]
    rng = np.random.default_rng(6)
    for shape in ((50, 3), (20,), (9, 2, 2)):
        table = rng.standard_normal(shape).astype("f4")
        param = torch.nn.Parameter(torch.from_numpy(table.copy()))
        opt = optimizer(rule, [param], **placed(rule))
        twin = Twin(rule, {"0": table}, {"0": {}})
        for count in (7, 0, 30):
            rows = rng.integers(0, shape[0], count)
            values = rng.standard_normal((count, *shape[1:])).astype("f4")
            param.grad = torch.sparse_coo_tensor(
                torch.from_numpy(rows)[None], torch.from_numpy(values), shape, check_invariants=True
            )
            opt.step()
            twin.step({"0": tw.RowGrad(rows, values)})
            assert_same_bits(numpy_of(param), twin.params["0"], (shape, count))
        assert opt.describe().endswith("by thalweg")
