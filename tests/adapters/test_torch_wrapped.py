"""Other code around thalweg.torch's optimizers, which takes them for torch's: wrappers, schedulers'
warnings, scalers, steps in the backward pass, shards, transforms of functions."""

import contextlib
import copy
import gc
import io
import types
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.optim import lr_scheduler  # noqa: E402

from torch_twins import RULES, assert_close, assert_same_state, give, ours, theirs, twins  # noqa: E402

OPTIONS = {"SGD": {"lr": 0.1, "momentum": 0.9}, "Adagrad": {"lr": 0.1, "lr_decay": 0.1}}


def with_both(work):
    """What work(class of optimizers by name) returns, ours and torch's; params come first."""
    results = []
    for f in (ours, theirs):
        torch.manual_seed(0)
        results.append(work(f))
    (mine, *rest), (its, *others) = results
    assert_close(mine, its)
    assert rest == others


def descend(net, step, steps=4):
    for i in range(steps):
        net(torch.full((3, 4), float(i))).square().sum().backward()
        step()


@pytest.mark.parametrize("rule", RULES)
def test_steps_in_the_backward_pass(rule):
    def work(f):
        net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        opts = {p: f(rule)([p], **OPTIONS[rule]) for p in net.parameters()}

        def step(param):
            opts[param].step()
            opts[param].zero_grad()

        for p in net.parameters():
            p.register_post_accumulate_grad_hook(step)
        descend(net, lambda: None)
        assert all(p.grad is None for p in net.parameters())
        return (list(net.parameters()),)

    with_both(work)


@pytest.mark.filterwarnings("ignore")  # torch.distributed.optim imports what is deprecated
def test_optimizers_that_torch_puts_into_the_backward_pass():
    from torch.distributed.optim import _apply_optimizer_in_backward

    def work(f):
        net = torch.nn.Linear(4, 4)
        _apply_optimizer_in_backward(f("SGD"), net.parameters(), OPTIONS["SGD"])
        descend(net, lambda: None)
        return (list(net.parameters()),)

    with_both(work)


@pytest.mark.parametrize("rule", RULES)
def test_params_with_names(rule):
    states = []

    def work(f):
        net = torch.nn.Linear(4, 4)
        opt = f(rule)(net.named_parameters(), **OPTIONS[rule])
        descend(net, opt.step)
        states.append((opt, opt.state_dict()))
        return list(net.parameters()), opt.state_dict()["param_groups"]

    with_both(work)
    (opt, mine), (other, its) = states
    opt.load_state_dict(its)
    other.load_state_dict(mine)
    assert '["params"][1] (bias) by thalweg' in opt.describe()


@pytest.mark.parametrize("first", ["scheduler", "optimizer"])
@pytest.mark.parametrize("overridden", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_schedulers_warn_as_of_torchs(rule, overridden, first):
    def work(f):
        (p,), _ = twins(torch.ones(2))
        p.grad = torch.ones(2)
        opt = f(rule)([p], lr=0.1)
        scheduler = lr_scheduler.StepLR(opt, 3)
        if overridden:
            step = opt.step
            opt.step = types.MethodType(lambda self, *args: step(*args), opt)
        order = [scheduler.step, opt.step]
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for act in order if first == "scheduler" else reversed(order):
                act()
        assert bool(seen) == (overridden or first == "scheduler")
        return [p], [str(each.message) for each in seen]

    with_both(work)


@pytest.mark.parametrize("rule", RULES)
def test_optimizers_and_schedulers_make_no_cycles(rule):
    params, _ = twins(torch.ones(2))
    give(params, params)
    opt = ours(rule)(params)
    scheduler = lr_scheduler.LambdaLR(opt, lambda t: 1.0)
    opt.step()
    scheduler.step()
    gc.collect()
    gc.disable()
    try:
        seen = weakref.ref(scheduler)
        del scheduler
        assert seen() is None
        seen = weakref.ref(opt)
        del opt
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("rule", RULES)
def test_a_fused_step_is_told_of_a_scale_and_of_infinities(rule):
    params, others = twins(torch.ones(3), torch.ones(2))
    opts = [
        f(rule)(ps, fused=True, **OPTIONS[rule]) for f, ps in ((ours, params), (theirs, others))
    ]
    for found, scale in ((0.0, 4.0), (1.0, 4.0), (0.0, 2.0), (0.0, None), (None, 8.0)):
        give(params, others, 3)
        for opt in opts:
            for name, value in (("found_inf", found), ("grad_scale", scale)):
                if value is not None:
                    setattr(opt, name, torch.tensor(value))
            opt.step()
            for name in ("found_inf", "grad_scale"):
                with contextlib.suppress(AttributeError):
                    delattr(opt, name)
        assert_close(params, others)
    assert_same_state(*opts)


def test_one_scaler_for_two_optimizers():
    def work(f):
        nets = [torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)]
        opts = [
            f("SGD")(nets[0].parameters(), fused=True, **OPTIONS["SGD"]),
            f("Adagrad")(nets[1].parameters(), lr=0.1),
        ]
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        for i in range(6):
            for opt in opts:
                opt.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nets[1](nets[0](torch.full((2, 4), float(i)))).float().square().sum()
            scaler.scale(loss * (float("inf") if i == 2 else 1)).backward()
            for opt in opts:
                scaler.step(opt)
            scaler.update()
        return [p for net in nets for p in net.parameters()], scaler.get_scale()

    with_both(work)


class Lightning:
    """As PyTorch Lightning wraps an optimizer: its attributes, and a class made of both."""

    def __init__(self, opt):
        self.__dict__ = {k: v for k, v in opt.__dict__.items() if k not in ("step", "__del__")}
        name = "Lightning" + type(opt).__name__
        self.__class__ = type(name, (Lightning, type(opt)), {})
        self._optimizer = opt

    def step(self, closure=None, **kwargs):
        return self._optimizer.step(closure=closure, **kwargs)


def test_a_class_made_of_two():
    def work(f):
        (p,), _ = twins(torch.ones(3))
        wrapped = Lightning(f("SGD")([p], **OPTIONS["SGD"]))
        for _ in range(3):
            p.grad = torch.ones(3)
            wrapped.step(lambda: 3)
            wrapped.zero_grad()
            assert p.grad is None
        return [p], str(wrapped), wrapped.state_dict()["param_groups"]

    with_both(work)


class Horovod(torch.optim.Optimizer):
    """As Horovod's distributed optimizer: a class of the same name with these methods."""

    def __init__(self, groups):
        super(self.__class__, self).__init__(groups)
        self.synchronized = 0

    def step(self, closure=None):
        self.synchronized += 1
        return super(self.__class__, self).step(closure)


def test_a_class_that_replaces_methods():
    def work(f):
        (p,), _ = twins(torch.ones(3))
        its = f("SGD")
        body = {k: v for k, v in vars(Horovod).items() if k not in ("__dict__", "__weakref__")}
        cls = type(its.__name__, (its,), body)
        opt = cls([{"params": [p], **OPTIONS["SGD"]}])
        for i in range(3):
            p.grad = torch.full((3,), float(i))
            opt.step()
        return [p], opt.synchronized

    with_both(work)


@pytest.mark.parametrize("rule", RULES)
def test_arguments_of_step(rule):
    for f in (ours, theirs):
        (p,), _ = twins(torch.ones(2))
        opt = f(rule)([p])
        for args, kwargs in (((1, 2), {}), ((), {"other": 1}), ((3,), {})):
            with pytest.raises(TypeError):
                opt.step(*args, **kwargs)
        assert opt.step(None) is None
        assert opt.step(closure=None) is None
        assert opt.step(lambda: 5) == 5
        assert f(rule).step(opt) is None


def test_hooks_that_fail():
    for f in (ours, theirs):
        (p,), _ = twins(torch.ones(2))
        p.grad = torch.ones(2)
        opt = f("SGD")([p], lr=1.0)
        for hook, error in ((lambda *_: 1 / 0, ZeroDivisionError), (lambda *_: 3, RuntimeError)):
            handle = opt.register_step_pre_hook(hook)
            with pytest.raises(error):
                opt.step()
            handle.remove()
        assert p.tolist() == [1, 1]
        opt.step()
        assert p.tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bucket_view", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_shards_of_one_process(rule, bucket_view, tmp_path):
    import torch.distributed as dist
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def work(f):
        net = torch.nn.Linear(4, 4)
        opt = ZeroRedundancyOptimizer(
            net.parameters(), f(rule), parameters_as_bucket_view=bucket_view, **OPTIONS[rule]
        )
        scheduler = lr_scheduler.StepLR(opt, 2)
        for _ in range(3):
            descend(net, opt.step, 2)
            opt.zero_grad()
            scheduler.step()
        opt.consolidate_state_dict()
        opt.load_state_dict(opt.state_dict())
        descend(net, opt.step, 1)
        return (list(net.parameters()),)

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/here", rank=0, world_size=1)
    try:
        with_both(work)
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", RULES)
def test_the_state_dicts_of_distributed_checkpoints(rule):
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    found = []

    def work(f):
        net = torch.nn.Linear(4, 2)
        opt = f(rule)(net.parameters(), **OPTIONS[rule])
        descend(net, opt.step, 1)
        model, state = get_state_dict(net, opt)
        set_state_dict(net, opt, model_state_dict=model, optim_state_dict=state)
        descend(net, opt.step, 1)
        found.append(state)
        return list(net.parameters()), state["param_groups"]

    with_both(work)
    torch.testing.assert_close(found[0]["state"], found[1]["state"])


@pytest.mark.parametrize("rule", RULES)
def test_a_whole_optimizer_in_a_file(rule):
    net = torch.nn.Linear(4, 2)
    opt = ours(rule)(net.parameters(), **OPTIONS[rule])
    descend(net, opt.step, 2)
    file = io.BytesIO()
    torch.save((net, opt), file)
    file.seek(0)
    again, its = torch.load(file, weights_only=False)
    shared = copy.copy(opt)
    assert shared.param_groups is opt.param_groups
    shared.zero_grad()
    for a, b in ((net, opt), (again, its)):
        descend(a, b.step, 2)
    assert_close(net.parameters(), again.parameters())
    assert its.state[again.weight].keys() == opt.state[net.weight].keys()


@pytest.mark.parametrize("transform", ["functionalize", "vmap", "make_fx"])
@pytest.mark.filterwarnings("ignore")
def test_steps_in_transformed_functions(transform):
    from torch.fx.experimental.proxy_tensor import make_fx

    transforms = {
        "functionalize": torch.func.functionalize,
        "vmap": torch.vmap,
        "make_fx": lambda g: make_fx(g)(torch.ones(2, 3), torch.ones(2, 3)),
    }

    def work(f):
        def step(x, g):
            p = x.detach().clone()
            p.grad = g
            f("SGD")([p], lr=0.5).step()
            return p

        return ([transforms[transform](step)(torch.zeros(2, 3), torch.ones(2, 3))],)

    with_both(work)


@pytest.mark.parametrize("rule", RULES)
def test_the_mode_of_a_default_device(rule):
    """As torch.device("meta") around a loop: buffers stay beside their params."""

    def work(f):
        (p,), _ = twins(torch.ones(3))
        p.grad = torch.ones(3)
        opt = f(rule)([p], **OPTIONS[rule])
        with torch.device("meta"):
            opt.step()
        opt.step()
        return [p], [str(s.device) for s in opt.state[p].values()]

    with_both(work)


@pytest.mark.parametrize("rule", RULES)
def test_a_differentiable_step_has_the_right_gradients(rule):
    def step(p, g, state, **options):
        p = p.clone()
        p.grad = g
        opt = ours(rule)([p], lr=0.9, differentiable=True, **options)
        opt.state[p].update({name: value.clone() for name, value in state.items()})
        opt.step()
        return p, *(s for s in opt.state[p].values() if s.requires_grad)

    operands = [torch.rand(4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    if rule == "SGD":
        for options in ({}, {"nesterov": True}, {"dampening": 0.5, "weight_decay": 0.1}):
            assert torch.autograd.gradcheck(
                lambda p, g, v, o=options: step(p, g, {"momentum_buffer": v}, momentum=0.9, **o),
                operands,
            )
    else:
        count = torch.tensor(10.0, dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda p, g, s: step(p, g, {"step": count, "sum": s}, lr_decay=0.1), operands
        )
