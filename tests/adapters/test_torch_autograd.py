"""What autograd and the memory of tensors see of a step: versions, gradients left as they are, and
params that change their storage between steps."""

import copy
import gc
import threading
import weakref

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch_twins import (  # noqa: E402
    RULES,
    WAYS,
    assert_close,
    assert_same_state,
    give,
    option_sets,
    ours,
    theirs,
    twins,
)


@pytest.mark.parametrize("rule", RULES)
def test_a_step_between_forward_and_backward_raises(rule):
    w = torch.nn.Parameter(torch.randn(3))
    opt = ours(rule)([w])
    loss = (w * w).sum()
    w.grad = torch.ones(3)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("rule", RULES)
def test_versions_of_stepped_params_rise_and_of_nothing_else(rule):
    params, _ = twins(torch.randn(3), torch.randn(2), torch.randn(4))
    options = {"momentum": 0.9} if rule == "SGD" else {}
    opt = ours(rule)(params, **options)
    give(params, params, missing=[1])
    for step in range(1, 4):
        opt.step()
        assert [p._version for p in params] == [step, 0, step]
        assert [p.grad._version for p in params if p.grad is not None] == [0, 0]
        for p in params:
            assert all(s._version == 0 for s in opt.state.get(p, {}).values())


@pytest.mark.parametrize("how", ["skip", "raise", "found_inf", "error"])
def test_a_step_that_is_not_taken_leaves_no_trace(how):
    params, _ = twins(torch.randn(3), torch.randn(2))
    options = {"fused": True} if how == "found_inf" else {}
    if how in ("skip", "raise"):
        options = {"on_nonfinite": how}
    opt = ours("SGD")(params, lr=0.1, momentum=0.9, **options)
    give(params, params)
    params[1].grad[1] = float("inf")
    before = [p.detach().clone() for p in params]
    if how == "found_inf":
        opt.found_inf, opt.grad_scale = torch.ones(1), torch.ones(1)
        opt.step()
    elif how == "skip":
        opt.step()
        assert opt.skipped_steps == 1
    elif how == "raise":
        with pytest.raises(FloatingPointError, match=r'\["params"\]\[1\]\.grad: .* 1 inf.* \[1\]'):
            opt.step()
    else:
        opt.param_groups[0]["max_norm"] = -1.0
        with pytest.raises(ValueError, match="max_norm"):
            opt.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert [p._version for p in params] == [0, 0]
    assert not opt.state
    if how == "found_inf":
        opt.found_inf = torch.zeros(1)
        params[1].grad[1] = 0.0
        opt.step()
        assert len(opt.state) == 2
        assert params[0]._version == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_never_written(rule, way):
    for options in option_sets(rule):
        params, _ = twins(torch.randn(5, 3), torch.randn(4))
        opt = ours(rule)(params, **options, **WAYS[way])
        for step in range(3):
            give(params, params, step)
            kept = [(p.grad, p.grad.clone()) for p in params]
            opt.step()
            for p, (grad, value) in zip(params, kept, strict=True):
                assert p.grad is grad
                assert torch.equal(grad, value)
                assert grad._version == 0


def test_inference_tensors_are_refused():
    with torch.inference_mode():
        p = torch.ones(3)
    p.grad = torch.ones(3)
    q = torch.nn.Parameter(torch.ones(3))
    q.grad = torch.ones(3)
    opt = ours("SGD")([q, p], lr=0.5)
    with pytest.raises(
        RuntimeError, match=r'Inplace update to inference tensor .*\["params"\]\[1\]'
    ):
        opt.step()
    assert (p.tolist(), q.tolist()) == ([1, 1, 1], [1, 1, 1])
    with torch.inference_mode():
        opt.step()
    assert (p.tolist(), q.tolist()) == ([0.5] * 3, [0.5] * 3)
    w = torch.nn.Parameter(torch.ones(3))
    opt = ours("SGD")([w], lr=0.5)
    w.grad = torch.ones(3)
    opt.step()
    with torch.inference_mode():
        w.data = torch.ones(3)
    with pytest.raises(RuntimeError, match="inference tensor"):
        opt.step()


def replace_data(p):
    p.data = p.data.clone()


def transpose_data(p):
    p.data = p.data.t().contiguous().t()


def resize_storage(p):
    values = p.data.clone()
    p.untyped_storage().resize_(0)
    p.untyped_storage().resize_(4096)
    p.data.copy_(values)


def swap(p):
    torch.utils.swap_tensors(p, torch.nn.Parameter(p.detach().clone()))


def shared(p):
    p.data = p.data.share_memory_()


CHANGES = {f.__name__: f for f in (replace_data, transpose_data, resize_storage, swap, shared)}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rule", RULES)
def test_memory_that_changes_between_steps(rule, change):
    """Layouts are kept, addresses never."""
    params, others = twins(torch.randn(3, 4), torch.randn(2, 2))
    options = {"momentum": 0.9} if rule == "SGD" else {}
    opts = [f(rule)(ps, **options) for f, ps in ((ours, params), (theirs, others))]
    old = []
    for i in range(6):
        give(params, others, i)
        for opt in opts:
            opt.step()
        assert_close(params, others)
        for p in (*params, *others):
            p.grad = None
            old.append((p.data.detach(), p.data.clone()))
            if change != "swap" or i == 0:
                state = copy.copy(opts[0].state.get(p))
                CHANGES[change](p)
                assert state is None or opts[0].state[p] == state
    if change == "replace_data":
        assert all(torch.equal(kept, value) for kept, value in old)


@pytest.mark.parametrize("rule", RULES)
def test_a_module_that_becomes_double(rule):
    nets = [torch.nn.Linear(3, 2) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    opts = [f(rule)(net.parameters(), lr=0.1) for f, net in zip((ours, theirs), nets, strict=True)]
    for dtype in (torch.float32, torch.float64, torch.float32):
        for net, opt in zip(nets, opts, strict=True):
            net.to(dtype)
            opt.zero_grad()
            net(torch.ones(1, 3, dtype=dtype)).sum().backward()
            opt.step()
        assert_close(nets[0].parameters(), nets[1].parameters())


def test_late_gradients_and_tied_params():
    torch.manual_seed(0)
    nets = []
    for f in (ours, theirs):
        torch.manual_seed(0)
        net = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3)))
        net[2].weight = net[0].weight
        nets.append((net, f("SGD")(net.parameters(), lr=0.1, momentum=0.9, dampening=0.3)))
    for i in range(4):
        for net, opt in nets:
            net[1].requires_grad_(i > 1)
            opt.zero_grad()
            net(torch.ones(2, 3)).sum().backward()
            opt.step()
        assert_close(nets[0][0].parameters(), nets[1][0].parameters())
        assert_same_state(nets[0][1], nets[1][1])
    assert len(nets[0][1].state) == 5


def test_other_layouts_of_gradients():
    """channels_last, expanded, bucket views, and those that autograd makes anew."""
    results = []
    for f in (ours, theirs):
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        opt = f("SGD")(net.parameters(), lr=0.1, momentum=0.9)
        for i in range(4):
            opt.zero_grad()
            x = torch.randn(2, 3, 6, 6)
            net(x.to(memory_format=torch.channels_last) if i % 2 else x).sum().backward()
            if i == 2:
                bucket = torch.cat([p.grad.flatten() for p in net.parameters()])
                net.weight.grad = bucket[:108].view(4, 3, 3, 3)
                net.bias.grad = bucket[108:]
            if i == 3:
                net.bias.grad = torch.ones(1).expand(4)
            opt.step()
        results.append(list(net.parameters()))
    assert_close(*results)


def test_two_threads_take_turns():
    p = torch.nn.Parameter(torch.zeros(1 << 20))
    p.grad = torch.ones(1 << 20)
    opt = ours("SGD")([p], lr=1.0)
    threads = [threading.Thread(target=lambda: [opt.step() for _ in range(8)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (p.detach() == -24).all()
    assert p._version == 24


def test_storages_are_held_while_the_gil_is_free():
    """Another thread takes the memory of params and gradients away in the middle of steps."""
    p = torch.nn.Parameter(torch.zeros(1 << 21))
    opt = ours("SGD")([p], lr=1.0, momentum=0.5)
    done = threading.Event()

    def replace():
        while not done.is_set():
            p.data = torch.zeros(1 << 21)
            p.grad = torch.ones(1 << 21)

    p.grad = torch.ones(1 << 21)
    other = threading.Thread(target=replace)
    other.start()
    try:
        for _ in range(30):
            opt.step()
    finally:
        done.set()
        other.join()
    assert torch.isfinite(p.detach()).all()


def test_nothing_is_kept_alive():
    params, _ = twins(torch.randn(3), torch.randn(3))
    opt = ours("SGD")(params, momentum=0.9)
    give(params, params)
    opt.step()
    grads = [weakref.ref(p.grad) for p in params]
    opt.zero_grad()
    assert [g() for g in grads] == [None, None]
    kept = [weakref.ref(p) for p in params]
    its = weakref.ref(opt)
    gc.disable()
    try:
        del opt
        params.clear()
        assert its() is None
        assert [p() for p in kept] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    params, _ = twins(torch.randn(3), torch.randn(2))
    opt = ours("SGD")(params)
    give(params, params, missing=[1])
    opt.zero_grad(set_to_none)
    assert params[1].grad is None
    if set_to_none:
        assert params[0].grad is None
    else:
        assert params[0].grad.tolist() == [0, 0, 0]
