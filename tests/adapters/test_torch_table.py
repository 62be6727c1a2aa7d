"""thalweg.torch over torch's own table of option sets: parity with all three of torch's ways,
errors, schedulers, states that go back and forth."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.optim import lr_scheduler  # noqa: E402

from torch_twins import (  # noqa: E402
    RULES,
    WAYS,
    assert_close,
    assert_same_state,
    give,
    option_sets,
    ours,
    run_both,
    theirs,
    torch_table,
    twins,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_parity_over_the_table(rule, dtype, way):
    """As torch's: 4 steps, params and every slot of the state."""
    if way == "fused" and rule == "SGD" and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("torch's fused SGD leaves half-precision params as they are (#191763)")
    torch.manual_seed(0)
    tensors = [torch.randn(5, 3).to(dtype), torch.randn(4).to(dtype), torch.randn(()).to(dtype)]
    for options in option_sets(rule):
        run_both(rule, tensors, options | WAYS[way])


@pytest.mark.parametrize("rule", RULES)
def test_numbers_that_torch_takes(rule):
    """Beyond the ranges of thalweg's own optimizers."""
    sets = {
        "SGD": [
            {"momentum": 1.5},
            {"momentum": 1.0, "dampening": 3.0},
            {"momentum": 0.9, "dampening": -1.0},
            {"lr": 0},
            {"lr": 2, "momentum": 1},
        ],
        "Adagrad": [{"eps": 0.0}, {"eps": 0}, {"lr_decay": 5.0}, {"initial_accumulator_value": 3}],
    }
    for options in sets[rule]:
        opt, *_ = run_both(rule, [torch.randn(6), torch.randn(2, 3)], options)
        assert "by torch" not in opt.describe()


@pytest.mark.parametrize("rule", RULES)
def test_wrong_arguments_are_refused_as_torch_refuses_them(rule):
    info = torch_table()[rule]
    cases = info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    assert cases
    for case in cases:
        given = case.optimizer_error_input
        if issubclass(case.error_type, Warning):
            with pytest.warns(case.error_type, match=case.error_regex):
                ours(rule)(given.params, **given.kwargs)
        else:
            with pytest.raises(case.error_type, match=case.error_regex):
                ours(rule)(given.params, **given.kwargs)
    with pytest.raises(TypeError, match="unexpected keyword argument 'velocity'"):
        ours(rule)([torch.zeros(1)], velocity=1)


@pytest.mark.parametrize("rule", RULES)
def test_a_signature_and_a_name_as_torchs(rule):
    import inspect

    mine, its = (inspect.signature(f(rule).__init__).parameters for f in (ours, theirs))
    assert list(mine)[:-1] == list(its)
    for name, parameter in its.items():
        assert (mine[name].default, mine[name].kind) == (parameter.default, parameter.kind)
    params, _ = twins(torch.zeros(2))
    assert issubclass(ours(rule), theirs(rule))
    assert repr(ours(rule)(params)) == repr(theirs(rule)(params))
    assert str(inspect.signature(ours(rule).step)) == str(inspect.signature(theirs(rule).step))


@pytest.mark.parametrize("capturable", [False, True])
def test_capturable_is_taken(capturable):
    run_both("SGD", [torch.randn(3)], {"momentum": 0.9})
    params, _ = twins(torch.zeros(2))
    opt = ours("SGD")(params, capturable=capturable)
    assert opt.param_groups[0]["capturable"] is capturable


SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "constant": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "linear": lambda o: lr_scheduler.LinearLR(o),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "cyclic": lambda o: lr_scheduler.CyclicLR(
        o, 0.01, 0.1, 2, cycle_momentum="momentum" in o.defaults
    ),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=8, cycle_momentum="momentum" in o.defaults
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("rule", RULES)
def test_schedulers(rule, name, tensor_lr):
    params, others = twins(torch.randn(3), torch.randn(2, 2))
    options = {"momentum": 0.9} if rule == "SGD" else {}
    opts = [
        f(rule)(ps, lr=torch.tensor(0.1) if tensor_lr else 0.1, **options)
        for f, ps in ((ours, params), (theirs, others))
    ]
    schedulers = [SCHEDULERS[name](opt) for opt in opts]
    for i in range(7):
        give(params, others, i)
        for opt, scheduler in zip(opts, schedulers, strict=True):
            opt.step()
            scheduler.step(*[1.0] * (name == "plateau"))
        assert_close(params, others)
        rates = [float(opt.param_groups[0]["lr"]) for opt in opts]
        assert rates[0] == rates[1]


def through_pickle(state):
    return pickle.loads(pickle.dumps(state))


def through_file(weights_only):
    def save_and_load(state):
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=weights_only)

    return save_and_load


WAYS_OF_A_STATE = {
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "file": through_file(False),
    "file, weights only": through_file(True),
}


@pytest.mark.parametrize("way", WAYS_OF_A_STATE)
@pytest.mark.parametrize("from_ours", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_a_state_goes_both_ways(rule, from_ours, way):
    for options in option_sets(rule):
        first, second = (ours, theirs) if from_ours else (theirs, ours)
        params, others = twins(torch.randn(3, 2), torch.randn(4))
        opt = first(rule)(params, **copy.deepcopy(options))
        for i in range(3):
            give(params, others, i)
            opt.step()
        for p, q in zip(params, others, strict=True):
            q.data.copy_(p.data)
        other = second(rule)(others, **copy.deepcopy(options))
        other.load_state_dict(WAYS_OF_A_STATE[way](opt.state_dict()))
        assert_same_state(opt, other)
        for i in range(3):
            give(params, others, i)
            opt.step()
            other.step()
            assert_close(params, others)
        assert_same_state(opt, other)
        assert opt.state_dict().keys() == other.state_dict().keys()
        assert opt.state_dict()["param_groups"] == other.state_dict()["param_groups"]


@pytest.mark.parametrize("rule", RULES)
def test_a_whole_optimizer_is_copied(rule):
    for copied in (copy.deepcopy, through_pickle):
        params, _ = twins(torch.randn(3))
        opt = ours(rule)(params, max_norm=1.0)
        give(params, params)
        opt.step()
        both, its = copied((params, opt))
        assert its.param_groups[0]["params"][0] is both[0]
        both[0].grad = params[0].grad.clone()
        opt.step()
        its.step()
        assert torch.equal(params[0], both[0])
        assert its.grad_norm == opt.grad_norm


def test_states_of_older_versions_are_taken():
    """A buffer of None, a step that is a number, groups without the newer flags."""
    params, others = twins(torch.randn(3), torch.randn(2))
    opts = [f("SGD")(ps, momentum=0.9) for f, ps in ((ours, params), (theirs, others))]
    for opt in opts:
        old = opt.state_dict()
        old["state"] = {0: {"momentum_buffer": None}}
        for flag in ("nesterov", "maximize", "foreach", "differentiable", "fused"):
            del old["param_groups"][0][flag]
        opt.load_state_dict(old)
    for i in range(3):
        give(params, others, i)
        for opt in opts:
            opt.step()
        assert_close(params, others)
    assert_same_state(*opts)

    params, others = twins(torch.randn(3))
    opts = [f("Adagrad")(ps, lr_decay=0.5) for f, ps in ((ours, params), (theirs, others))]
    for opt in opts:
        old = opt.state_dict()
        old["state"][0]["step"] = 4
        opt.load_state_dict(old)
    give(params, others)
    for opt in opts:
        opt.step()
    assert_close(params, others)
    assert_same_state(*opts)


@pytest.mark.parametrize("rule", RULES)
def test_groups(rule):
    params, others = twins(torch.randn(3), torch.randn(2), torch.randn(4))
    opts = []
    for f, ps in ((ours, params), (theirs, others)):
        groups = [{"params": ps[:1], "lr": 0.5}, {"params": ps[1], "weight_decay": 0.1}]
        opt = f(rule)(groups, lr=0.1)
        opt.add_param_group({"params": [ps[2]], "lr": 0.01})
        opts.append(opt)
    for i in range(3):
        give(params, others, i, missing=[i])
        for opt in opts:
            opt.step()
        assert_close(params, others)
    assert_same_state(*opts)
    for opt in opts:
        opt.param_groups[1]["lr"] = 0.7
        opt.param_groups[2]["params"].pop()
    give(params, others)
    for opt in opts:
        opt.step()
    assert_close(params, others)


@pytest.mark.parametrize("rule", RULES)
def test_a_loop_of_the_lecture_goes_down(rule):
    torch.manual_seed(0)
    net = torch.nn.Linear(5, 1)
    x, y = torch.randn(40, 5), torch.randn(40, 1)
    opt = ours(rule)(net.parameters(), lr=0.1)
    losses = []
    for _ in range(40):
        opt.zero_grad()
        loss = ((net(x) - y) ** 2 / 2).mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert opt.describe().count("by thalweg") == 3
