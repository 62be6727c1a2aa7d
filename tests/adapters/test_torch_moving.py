"""Params, gradients, states and options that become others between steps: thalweg.torch beside
torch's own optimizers, over everything that torch lets a loop do to them."""

import collections
import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch_twins import RULES, assert_close, assert_same_state, give, ours, theirs, twins  # noqa: E402

OPTIONS = {"SGD": {"lr": 0.1, "momentum": 0.9}, "Adagrad": {"lr": 0.1, "lr_decay": 0.1}}


def pair(rule, *tensors, **options):
    params, others = twins(*tensors)
    options = OPTIONS[rule] | options
    return params, others, ours(rule)(params, **options), theirs(rule)(others, **options)


def outcome(act):
    """What it returns, or the class of what it raises."""
    try:
        return act()
    except Exception as error:
        return type(error)


def train_both(rule, make, before, steps=6):
    """The same net with both; before(net, step) runs ahead of each step."""
    results = []
    for f in (ours, theirs):
        torch.manual_seed(0)
        net = make()
        opt = f(rule)(net.parameters(), **OPTIONS[rule])
        for i in range(steps):
            opt.zero_grad()
            before(net, i)
            first = next(net.parameters())
            x = torch.full((2, 3, 5, 5), float(i), dtype=first.dtype)
            net(x if first.ndim == 4 else x[:, :, 0, 0]).square().sum().backward()
            opt.step()
        results.append((list(net.parameters()), opt))
    (mine, opt), (its, other) = results
    assert_close(mine, its)
    assert_same_state(opt, other)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_module_that_is_moved(rule, swapped):
    """.to(), .bfloat16() and .double(), by new data and by swap_tensors."""

    def move(net, step):
        if step == 2:
            net.to(memory_format=torch.channels_last)
        if step == 3:
            net.bfloat16()
        if step == 4:
            net.to(torch.float64)

    torch.__future__.set_swap_module_params_on_conversion(swapped)
    try:
        train_both(rule, lambda: torch.nn.Conv2d(3, 2, 3), move)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("rule", RULES)
def test_params_that_are_frozen_for_a_while(rule):
    def freeze(net, step):
        net.bias.requires_grad_(step % 2 == 0)

    train_both(rule, lambda: torch.nn.Linear(3, 2), freeze)


def swap(param, i):
    grad, param.grad = param.grad, None
    torch.utils.swap_tensors(param, torch.nn.Parameter(torch.full((3, 4), i + 0.5)))
    param.grad = grad


def other_data(param, i):
    new = torch.full((3, 4), i + 0.5)
    param.data = new if i % 2 else new.t().contiguous().t()


def longer_storage(param, i):
    param.untyped_storage().resize_(48 + 400_000 * (i % 2))


def emptied_storage(param, i):
    kept = param.detach().clone()
    param.untyped_storage().resize_(0)
    param.untyped_storage().resize_(48)
    param.data.copy_(kept)


def set_to(param, i):
    with torch.no_grad():
        param.set_(torch.full((3, 4), i + 0.5))


@pytest.mark.parametrize("move", [swap, other_data, longer_storage, emptied_storage, set_to])
@pytest.mark.parametrize("rule", RULES)
def test_memory_that_is_exchanged(rule, move):
    params, others, opt, other = pair(rule, torch.randn(3, 4), torch.randn(2))
    for i in range(5):
        give(params, others, i)
        for w in (params, others):
            move(w[0], i)
        opt.step()
        other.step()
        assert_close(params, others)
    assert_same_state(opt, other)
    assert "by torch" not in opt.describe()


@pytest.mark.parametrize("rule", RULES)
def test_a_buffer_whose_memory_is_exchanged(rule):
    params, others, opt, other = pair(rule, torch.randn(3, 4))
    slot = "momentum_buffer" if rule == "SGD" else "sum"
    for i in range(5):
        give(params, others, i)
        opt.step()
        other.step()
        assert_close(params, others)
        for o, (w,) in ((opt, params), (other, others)):
            state = o.state[w][slot]
            if i % 2:
                state.data = state.detach().t().contiguous().t()
            else:
                o.state[w][slot] = state.clone()
    assert_same_state(opt, other)


@pytest.mark.parametrize("rule", RULES)
def test_a_param_of_another_shape(rule):
    """The state does not fit any more: torch's error."""
    params, others, opt, other = pair(rule, torch.randn(3))
    give(params, others)
    raised = []
    for o, (w,) in ((opt, params), (other, others)):
        o.step()
        w.data, w.grad = torch.ones(2, 3), torch.ones(2, 3)
        raised.append(outcome(o.step))
    assert raised[0] is raised[1] is RuntimeError


@pytest.mark.parametrize("from_dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_a_state_of_another_dtype_is_loaded(rule, from_dtype):
    (source,), _ = twins(torch.randn(3).to(from_dtype))
    trained = theirs(rule)([source], **OPTIONS[rule])
    give([source], [source])
    trained.step()
    params, others, opt, other = pair(rule, torch.randn(3))
    for each in (opt, other):
        each.load_state_dict(copy.deepcopy(trained.state_dict()))
    for i in range(2):
        give(params, others, i)
        opt.step()
        other.step()
    assert_close(params, others)
    assert_same_state(opt, other)


@pytest.mark.parametrize("rule", RULES)
def test_a_state_that_is_cleared(rule):
    for clear in (lambda o, w: o.state.pop(w), lambda o, w: o.state.clear()):
        params, others, opt, other = pair(rule, torch.randn(3), torch.randn(3))
        give(params, others)
        found = []
        for o, w in ((opt, params), (other, others)):
            o.step()
            clear(o, w[0])
            w[1].grad = None  # its state is left, and no other's
            found.append(outcome(o.step))
        assert found == [None, None]
        assert_close(params, others)


def test_options_that_change():
    params, others, opt, other = pair("SGD", torch.randn(3), momentum=0)
    changes = [
        {"momentum": 0.9},
        {"nesterov": True},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"momentum": 0},
        {"momentum": 0.5, "dampening": 0.5, "nesterov": False},
        {"foreach": True},
        {"foreach": False, "fused": True},
        {"fused": False, "differentiable": True},
        {"differentiable": False, "lr": 2},
        {"momentum": 1.5},
    ]
    for i, change in enumerate(changes):
        for o in (opt, other):
            o.param_groups[0].update(change)
        give(params, others, i)
        opt.step()
        other.step()
        assert_close(params, others)
    assert_same_state(opt, other)


def test_a_rate_that_is_a_tensor_changes_in_place():
    params, others = twins(torch.randn(3))
    rates = [torch.tensor(0.5), torch.tensor(0.5)]
    opt = ours("SGD")(params, lr=rates[0], momentum=0.9)
    other = theirs("SGD")(others, lr=rates[1], momentum=0.9)
    for i in range(4):
        give(params, others, i)
        opt.step()
        other.step()
        assert_close(params, others)
        for rate in rates:
            rate.mul_(0.5)


class Listed(list):
    pass


@pytest.mark.parametrize("kind", [tuple, Listed])
@pytest.mark.parametrize("rule", RULES)
def test_sequences_in_place_of_torchs_lists(rule, kind):
    params, others, opt, other = pair(rule, torch.randn(3), torch.randn(2))
    for o in (opt, other):
        group = collections.OrderedDict(o.param_groups[0])
        group["params"] = kind(group["params"])
        o.param_groups = kind([group])
    for i in range(3):
        give(params, others, i, missing=[1] if i == 1 else [])
        opt.step()
        other.step()
        assert_close(params, others)
    assert_same_state(opt, other)
    assert "by torch" not in opt.describe()
    opt.zero_grad()
    assert [p.grad for p in params] == [None, None]


GRADIENTS = {
    "zeros that are not there": lambda: torch._efficientzerotensor(3),
    "expanded": lambda: torch.zeros(1).expand(3),
    "strided": lambda: torch.ones(6)[::2],
    "of a graph": lambda: torch.ones(3).requires_grad_(),
    "a diagonal": lambda: torch.ones(3, 3).diagonal(),
    "a parameter": lambda: torch.nn.Parameter(torch.ones(3)),
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_every_kind(rule, kind):
    params, others, opt, other = pair(rule, torch.randn(3))
    for _ in range(2):
        params[0].grad, others[0].grad = GRADIENTS[kind](), GRADIENTS[kind]()
        opt.step()
        other.step()
        assert_close(params, others)
    assert_same_state(opt, other)
    assert not any(s.requires_grad for s in opt.state[params[0]].values())


SPARSE = {
    "no rows": lambda: torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 3), (5, 3)
    ),
    "no elements": lambda: torch.sparse_coo_tensor(
        torch.zeros(2, 0, dtype=torch.long), torch.zeros(0), (5, 3)
    ),
    "elements": lambda: torch.sparse_coo_tensor(
        torch.tensor([[0, 1], [2, 2]]), torch.ones(2), (5, 3)
    ),
    "a row twice": lambda: torch.sparse_coo_tensor(
        torch.tensor([[4, 4, 0]]), torch.ones(3, 3), (5, 3)
    ),
    "hybrid": lambda: torch.eye(5, 3).to_sparse(1),
    "transposed": lambda: torch.eye(3, 5).to_sparse().t(),
    "compressed rows": lambda: torch.ones(5, 3).to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("rule", RULES)
def test_sparse_gradients_of_every_kind(rule, kind):
    params, others = twins(torch.randn(5, 3))
    opts = ours(rule)(params, lr=0.1), theirs(rule)(others, lr=0.1)
    for _ in range(2):
        found = []
        for o, (w,) in zip(opts, (params, others), strict=True):
            w.grad = None
            found.append(outcome(lambda w=w, o=o: setattr(w, "grad", SPARSE[kind]()) or o.step()))
        assert found[0] == found[1]
        assert_close(params, others)


@pytest.mark.parametrize("rule", RULES)
def test_numbers_that_are_not_finite(rule):
    inf, nan = float("inf"), float("nan")
    start = torch.tensor([1.0, inf, -inf, nan, 0.0, 1e38, 1e-40])
    gradients = [[1.0, 1, 1, 1, 0, 1e38, 1e-40], [inf, inf, -inf, 0, nan, 0, 0], [0.0] * 7]
    for options in ({}, {"lr": inf}, {"weight_decay": inf}, {"lr": 0.0}):
        params, others = twins(start)
        opt, other = ours(rule)(params, **options), theirs(rule)(others, **options)
        for g in gradients:
            params[0].grad, others[0].grad = torch.tensor(g), torch.tensor(g)
            opt.step()
            other.step()
            torch.testing.assert_close(params[0], others[0], equal_nan=True)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_another_default_dtype(rule, fused):
    torch.set_default_dtype(torch.float64)
    try:
        params, others, opt, other = pair(
            rule, torch.randn(3, dtype=torch.float32), torch.randn(3), fused=fused
        )
        for i in range(2):
            give(params, others, i)
            opt.step()
            other.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(params, others)
    assert_same_state(opt, other)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("rule", RULES)
def test_steps_in_a_mode_of_autograds(rule, mode):
    """Buffers made in inference mode are inference tensors, with which no later step goes on."""
    params, others, opt, other = pair(rule, torch.randn(3), torch.randn(2, 3))
    for i in range(2):
        give(params, others, i)
        with mode():
            opt.step()
            other.step()
        assert_close(params, others)
    give(params, others, 7)
    found = [outcome(o.step) for o in (opt, other)]
    assert found[0] == found[1]
    assert [p._version for p in params] == [q._version for q in others]
    if found[0] is None:
        assert_close(params, others)
