"""Which params of a torch optimizer are stepped here, and which by torch's own code: nothing is
skipped, copied, or stepped twice."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch_twins import (  # noqa: E402
    RULES,
    assert_close,
    assert_same_state,
    give,
    ours,
    theirs,
    twins,
)

KINDS = {
    "bfloat16": lambda: torch.randn(5).bfloat16(),
    "float16": lambda: torch.randn(5).half(),
    "complex": lambda: torch.randn(5, dtype=torch.complex64),
    "complex128": lambda: torch.randn(2, 3, dtype=torch.complex128),
}

# torch's own sparse steps warn so.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")


def pair(rule, params, others, **options):
    return ours(rule)(params, **options), theirs(rule)(others, **options)


def by(opt):
    """Who steps each param: the word behind "by"."""
    return [line.split(" by ")[1].split(":")[0] for line in opt.describe().splitlines()[1:]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_other_dtypes_beside_those_of_ours(rule, kind):
    params, others = twins(torch.randn(3), KINDS[kind](), torch.randn(2).double())
    opts = pair(rule, params, others)
    for i in range(4):
        give(params, others, i, missing=[i])
        for opt in opts:
            opt.step()
        assert_close(params, others)
    assert_same_state(*opts)
    give(params, others)
    assert by(opts[0]) == ["thalweg", "torch", "thalweg"]
    assert "neither float32 nor float64" in opts[0].describe()


@pytest.mark.parametrize(
    "option", ["max_norm", "norm_eps", "max_value", "decoupled", "on_nonfinite"]
)
@pytest.mark.parametrize("rule", RULES)
def test_options_of_ours_are_refused_where_torch_steps(rule, option):
    value = {"on_nonfinite": "skip", "decoupled": True}.get(option, 1.0)
    params, others = twins(torch.ones(3), torch.ones(3).bfloat16())
    opt = ours(rule)(params, **{option: value})
    before = copy.deepcopy(opt.state_dict())
    give(params, others)
    with pytest.raises(ValueError, match=rf'\["params"\]\[1\]: .* because {option} is given'):
        opt.step()
    assert params[0].tolist() == [1, 1, 1]
    assert params[1].tolist() == [1, 1, 1]
    assert str(opt.state_dict()) == str(before)
    params[1].grad = None
    opt.step()
    assert params[0].tolist() != [1, 1, 1]


def test_options_of_ours_stand_nowhere_unless_given():
    for rule in RULES:
        params, others = twins(torch.zeros(2))
        opt, other = pair(rule, params, others)
        assert opt.defaults == other.defaults
        assert opt.state_dict()["param_groups"] == other.state_dict()["param_groups"]
        opt = ours(rule)(params, max_norm=2.0)
        assert opt.defaults == other.defaults | {"max_norm": 2.0}
        opt.load_state_dict(other.state_dict())
        assert opt.param_groups[0]["max_norm"] == 2.0


@pytest.mark.parametrize(
    ("rule", "options", "error", "words"),
    [
        ("SGD", {"form": "heavy"}, ValueError, "expected heavy_ball, classic or ema"),
        ("SGD", {"form": "ema", "momentum": 0.9, "nesterov": True}, ValueError, "nesterov"),
        ("SGD", {"form": "classic", "momentum": 0.9, "dampening": 0.1}, ValueError, "dampening"),
        ("Adagrad", {"eps_placement": "under"}, ValueError, "expected outside or inside"),
        ("SGD", {"max_norm": 0.0}, ValueError, "max_norm.*> 0"),
        ("Adagrad", {"norm_eps": -1.0}, ValueError, "norm_eps.*>= 0"),
        ("SGD", {"max_value": "much"}, TypeError, "max_value"),
        ("SGD", {"on_nonfinite": "stop"}, ValueError, "propagate, skip or raise"),
        ("SGD", {"eps_placement": "inside"}, TypeError, "unexpected keyword"),
        ("Adagrad", {"form": "ema"}, TypeError, "unexpected keyword"),
    ],
)
def test_options_of_ours_are_checked(rule, options, error, words):
    with pytest.raises(error, match=words):
        ours(rule)([torch.zeros(2, requires_grad=True)], **options)


def test_limits_hold_for_the_whole_step():
    params, _ = twins(torch.zeros(2), torch.zeros(2))
    for option in ("max_norm", "norm_eps"):
        groups = [{"params": [params[0]]}, {"params": [params[1]], option: 3.0}]
        with pytest.raises(ValueError, match="whole step"):
            ours("SGD")(groups, max_norm=1.0)


def sparse(shape, rows, seed=0):
    values = torch.randn(len(rows), *shape[1:], generator=torch.Generator().manual_seed(seed))
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, shape, check_invariants=True)


@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "maximize": True}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("Adagrad", {}),
        ("Adagrad", {"lr_decay": 0.1, "maximize": True}),
    ],
)
def test_sparse_gradients(rule, options, coalesced):
    params, others = twins(torch.randn(8, 3), torch.randn(4))
    opts = pair(rule, params, others, **options)
    for i in range(3):
        give(params, others, i)
        grad = sparse((8, 3), [1, 6, 1, 0], i)
        for ps in (params, others):
            ps[0].grad = grad.clone().coalesce() if coalesced else grad.clone()
        for opt in opts:
            opt.step()
        assert_close(params, others)
    momentum = options.get("momentum", 0) != 0
    assert by(opts[0]) == ["torch" if momentum else "thalweg", "thalweg"]
    if not momentum:
        assert_same_state(*opts)


def test_a_table_takes_sparse_and_dense_gradients_in_turn():
    params, others = twins(torch.randn(8, 3))
    opts = pair("Adagrad", params, others)
    for i in range(4):
        give(params, others, i)
        if i % 2:
            params[0].grad, others[0].grad = sparse((8, 3), [2, 2], i), sparse((8, 3), [2, 2], i)
        for opt in opts:
            opt.step()
        assert_close(params, others)


@pytest.mark.parametrize(
    ("rule", "options"),
    [("Adagrad", {"weight_decay": 0.1}), ("Adagrad", {"fused": True}), ("SGD", {"fused": True})],
)
def test_sparse_gradients_that_torch_refuses(rule, options):
    params, others = twins(torch.zeros(8, 3))
    grad = sparse((8, 3), [1])
    for opt, p in zip(pair(rule, params, others, **options), (params[0], others[0]), strict=True):
        p.grad = grad.clone()
        with pytest.raises(RuntimeError, match="sparse"):
            opt.step()


def test_a_row_that_is_none_of_the_params():
    with torch.sparse.check_sparse_tensor_invariants(False):
        grad = torch.sparse_coo_tensor(torch.tensor([[1, 9]]), torch.ones(2, 3), (8, 3))
    p = torch.nn.Parameter(torch.zeros(8, 3))
    p.grad = grad
    opt = ours("Adagrad")([p])
    with pytest.raises(IndexError, match=r"grad._indices\(\): expected rows from 0 to 7.* 9 at"):
        opt.step()
    assert not p.detach().any()
    assert p._version == 0
    assert opt.state[p]["step"] == 0


@pytest.mark.parametrize("rule", RULES)
def test_lazily_negated_gradients_and_params(rule):
    params, others = twins(torch.randn(4), torch.randn(4))
    opts = pair(rule, params, others)
    z = torch.randn(4, dtype=torch.complex64)
    for i in range(6):
        give(params, others, i)
        value = params[0].grad.clone()
        params[0].grad = None
        params[0].grad = torch._neg_view(-value) if i % 2 else value
        if i == 4:
            params[1].grad, others[1].grad = z.conj().imag, z.conj().imag.clone()
        for opt in opts:
            opt.step()
        assert_close(params, others)
    data = params[0].detach().clone()
    params[0].data = torch._neg_view(-data)
    give(params, others)
    for opt in opts:
        opt.step()
    assert_close(params, others)


@pytest.mark.parametrize("rule", RULES)
def test_differentiable_steps_and_rates(rule):
    grads = []
    for f in (ours, theirs):
        w = torch.ones(3, requires_grad=True)
        lr = torch.tensor(0.5, requires_grad=rule == "SGD")
        p = w.clone()
        opt = f(rule)([p], lr=lr, differentiable=True)
        p.grad = (w * 2).clone()
        opt.step()
        p.sum().backward()
        grads.append([w.grad, lr.grad] if rule == "SGD" else [w.grad])
    for mine, its in zip(*grads, strict=True):
        torch.testing.assert_close(mine, its)


MEMORY = {
    "partly the same": lambda base: [base[:4], base[2:]],
    "the same": lambda base: [base[:3], base[:3]],
    "interleaved": lambda base: [base[::2], base[1::2]],
}


@pytest.mark.parametrize("kind", MEMORY)
@pytest.mark.parametrize("rule", RULES)
def test_params_that_share_memory(rule, kind):
    bases = [torch.arange(6.0) for _ in range(2)]
    params, others = ([torch.nn.Parameter(t) for t in MEMORY[kind](b)] for b in bases)
    opts = pair(rule, params, others)
    for i in range(3):
        give(params, others, i)
        for opt in opts:
            opt.step()
        assert_close(params, others)
    assert_same_state(*opts)


def test_a_gradient_or_a_buffer_that_is_another_operand():
    params, others = twins(torch.ones(3))
    opts = pair("SGD", params, others, momentum=0.9)
    for opt, (p,) in zip(opts, (params, others), strict=True):
        p.grad = p.data
        opt.step()
        opt.step()
        p.grad = opt.state[p]["momentum_buffer"]
        opt.step()
    assert_close(params, others)
    params, others = twins(torch.ones(3), torch.ones(3))
    opts = pair("Adagrad", params, others, lr_decay=0.5)
    for opt, ps in zip(opts, (params, others), strict=True):
        opt.state[ps[0]]["step"] = opt.state[ps[1]]["step"]
    for i in range(2):
        give(params, others, i)
        for opt in opts:
            opt.step()
        assert_close(params, others)


def test_a_param_whose_own_elements_overlap():
    p = torch.nn.Parameter(torch.ones(1).expand(3))
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="single memory location"):
        ours("SGD")([p]).step()


def test_a_param_twice():
    (p,), (q,) = twins(torch.ones(3))
    for f, w in ((ours, p), (theirs, q)):
        with pytest.warns(UserWarning, match="duplicate parameters"):
            opt = f("SGD")([w, w], momentum=0.5)
        w.grad = torch.ones(3)
        opt.step()
        opt.step()
    assert_close([p], [q])


def test_states_that_do_not_fit_go_torchs_way():
    params, others = twins(torch.randn(3), torch.randn(3))
    opts = pair("SGD", params, others, momentum=0.9)
    give(params, others)
    for opt, ps in zip(opts, (params, others), strict=True):
        opt.step()
        ps[0].data = ps[0].data.double()
        ps[0].grad = torch.ones(3).double()
        opt.step()
    assert_close(params, others)
    assert by(opts[0]) == ["torch", "thalweg"]
    params, others = twins(torch.randn(3))
    opts = pair("Adagrad", params, others, lr_decay=0.5)
    give(params, others)
    for opt, (p,) in zip(opts, (params, others), strict=True):
        opt.state[p]["step"] += 0.5
        opt.step()
        del opt.state[p]["sum"]
        with pytest.raises(KeyError):
            opt.step()
    assert_close(params, others)


def test_modes_and_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen = []
    params, others = twins(torch.randn(3))
    opts = pair("SGD", params, others)
    give(params, others)
    with Seeing():
        opts[0].step()
    opts[1].step()
    assert seen
    assert_close(params, others)
    with FakeTensorMode():
        net = torch.nn.Linear(3, 2)
        opt = ours("SGD")(net.parameters(), momentum=0.9)
        net(torch.ones(1, 3)).sum().backward()
        opt.step()
        assert type(opt.state[net.weight]["momentum_buffer"]).__name__ == "FakeTensor"


def test_meta_params():
    p = torch.nn.Parameter(torch.empty(3, device="meta"))
    p.grad = torch.empty(3, device="meta")
    opt = ours("SGD")([p], momentum=0.9)
    opt.step()
    assert opt.state[p]["momentum_buffer"].is_meta
    assert by(opt) == ["torch"]


def test_a_subclass_of_tensor_goes_torchs_way():
    class Mine(torch.Tensor):
        pass

    p = torch.ones(3).as_subclass(Mine).requires_grad_()
    q = torch.ones(3, requires_grad=True)
    for f, w in ((ours, p), (theirs, q)):
        w.grad = torch.ones(3)
        f("SGD")([w]).step()
    assert p.tolist() == q.tolist()
