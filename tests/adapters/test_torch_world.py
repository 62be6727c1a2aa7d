"""What stands around a torch optimizer does not notice: hooks, the profiler, closures, scalers,
averages, compilation, wrappers, other processes."""

import contextlib
import copy
import subprocess
import sys
import textwrap

import pytest

from conftest import FULL

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from torch_twins import RULES, assert_close, give, ours, theirs, twins  # noqa: E402


@pytest.mark.parametrize("rule", RULES)
def test_hooks_run_once_and_in_order(rule):
    for f in (ours, theirs):
        params, _ = twins(torch.ones(3))
        give(params, params)
        opt, seen = f(rule)(params), []

        def note(name, seen=seen):
            return lambda opt, args, kwargs: seen.append((name, len(args), sorted(kwargs)))

        handles = [
            register_optimizer_step_pre_hook(note("all before")),
            register_optimizer_step_post_hook(note("all after")),
            opt.register_step_pre_hook(note("before")),
            opt.register_step_post_hook(note("after")),
        ]
        try:
            opt.step()
            opt.step(lambda: None)
            opt.step(closure=lambda: None)
        finally:
            for handle in handles:
                handle.remove()
        names = ["all before", "before", "after", "all after"]
        assert seen == [
            (name, count, words)
            for count, words in ((1, []), (2, []), (1, ["closure"]))
            for name in names
        ]
        opt.step()
        assert len(seen) == 12
        assert params[0]._version == 4


def test_a_hook_may_change_gradients_and_arguments():
    params, others = twins(torch.ones(3))
    for f, ps in ((ours, params), (theirs, others)):
        opt = f("SGD")(ps, lr=0.5)
        give(ps, ps)
        opt.register_step_pre_hook(lambda *_, ps=ps: setattr(ps[0], "grad", torch.full((3,), 2.0)))
        opt.register_step_pre_hook(lambda o, a, k: ((o, lambda: 7), k))
        assert opt.step() == 7
    assert_close(params, others)
    assert params[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("rule", RULES)
def test_a_closure(rule):
    params, _ = twins(torch.ones(3))
    opt = ours(rule)(params)
    with torch.no_grad():

        def closure():
            assert torch.is_grad_enabled()
            opt.zero_grad()
            loss = (params[0] ** 2).sum()
            loss.backward()
            return loss

        assert opt.step(closure).item() == 3
        assert not torch.is_grad_enabled()
    assert params[0].tolist() != [1, 1, 1]
    with pytest.raises(TypeError):
        opt.step(None, None)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_profiler_sees_both():
    params, _ = twins(torch.ones(3))
    opt = ours("SGD")(params)
    give(params, params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
        opt.zero_grad()
    names = {event.name for event in profile.events()}
    assert {"Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad"} <= names
    assert params[0]._version == 1


def test_state_dict_hooks():
    params, _ = twins(torch.ones(3))
    opt, seen = ours("SGD")(params, momentum=0.9), []
    opt.register_state_dict_pre_hook(lambda o: seen.append("before"))
    opt.register_state_dict_post_hook(lambda o, state: seen.append("after"))
    opt.register_load_state_dict_pre_hook(lambda o, state: seen.append("before loading"))
    opt.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    opt.load_state_dict(opt.state_dict())
    assert seen == ["before", "after", "before loading", "loaded"]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_a_scaler(rule, fused):
    """The first step and a later one overflow; each is left out."""
    results = []
    for f in (ours, theirs):
        params, _ = twins(torch.ones(3), torch.full((2, 2), 0.5))
        opt = f(rule)(params, lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for i in range(5):
            opt.zero_grad()
            factor = float("inf") if i in (0, 3) else 1.0
            loss = sum((p**2 * factor).sum() for p in params)
            scaler.scale(loss).backward()
            if i == 2:
                scaler.unscale_(opt)
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            before = copy.deepcopy((params, opt.state_dict()))
            scaler.step(opt)
            scaler.update()
            if i in (0, 3) and f is ours:
                assert str((params, opt.state_dict())) == str(before)
        results.append((params, scaler.get_scale()))
    assert_close(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_averages_of_weights():
    from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

    results = []
    for f in (ours, theirs):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        opt = f("SGD")(net.parameters(), lr=0.1, momentum=0.9)
        averages = [AveragedModel(net), AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))]
        scheduler = SWALR(opt, swa_lr=0.05)
        for _ in range(4):
            opt.zero_grad()
            net(torch.ones(1, 3)).sum().backward()
            opt.step()
            scheduler.step()
            for average in averages:
                average.update_parameters(net)
        results.append([p for average in averages for p in average.parameters()])
    assert_close(*results)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", RULES)
def test_a_compiled_step(rule):
    torch._dynamo.reset()
    params, others = twins(torch.randn(3), torch.randn(2))
    opt, other = ours(rule)(params), theirs(rule)(others)

    @torch.compile(backend="eager")
    def train(x):
        loss = sum((p * x).sum() for p in params)
        loss.backward()
        opt.step()
        opt.zero_grad()
        return loss + 1

    for i in range(4):
        train(torch.tensor(float(i)))
        for q in others:
            q.grad = torch.full_like(q, float(i))
        other.step()
        assert_close(params, others)
        assert [p.grad for p in params] == [None, None]
    torch._dynamo.reset()


def test_subclasses_and_wrappers():
    params, _ = twins(torch.zeros(3))
    params[0].grad = torch.ones(3)
    seen = []

    class Mine(ours("SGD")):
        def step(self, closure=None):
            seen.append("mine")
            return super().step(closure)

    opt = Mine(params, lr=1.0)
    opt.register_step_pre_hook(lambda *_: seen.append("hook"))
    opt.step()
    assert seen == ["hook", "mine"]

    opt = ours("SGD")(params, lr=1.0)
    opt.__class__ = type("Wrapped", (opt.__class__,), {"extra": 1})
    opt.step()
    method = opt.step
    opt.step = lambda *args: (seen.append("wrapped"), method(*args))
    opt.step()
    assert seen[-1] == "wrapped"
    assert params[0].tolist() == [-3, -3, -3]
    assert repr(opt).startswith("Wrapped (")


def test_an_instance_without_init_is_refused():
    """As pickle makes one: torch says what is missing, nothing crashes."""
    opt = ours("SGD").__new__(ours("SGD"))
    with pytest.raises(AttributeError):
        opt.step()
    from thalweg import _core

    for rule in ("sgd", "adagrad"):
        stepper = _core.TorchStepper(rule)
        for thing in (None, 3, object(), [], type, stepper):
            with pytest.raises((AttributeError, TypeError)):
                stepper.step(thing)
            with contextlib.suppress(AttributeError, TypeError):
                assert not stepper.zero_grad(thing)
    with pytest.raises(ValueError, match="sgd or adagrad"):
        _core.TorchStepper("adam")
    raw = _core.TorchStepper.__new__(_core.TorchStepper)
    with pytest.raises(TypeError):
        raw.step(opt)


def test_optimizers_that_were_tampered_with():
    def fresh():
        (p,), _ = twins(torch.ones(3))
        p.grad = torch.ones(3)
        return p, ours("SGD")([p], momentum=0.9)

    for break_it in (
        lambda opt: setattr(opt, "param_groups", 3),
        lambda opt: opt.param_groups.append(3),
        lambda opt: opt.param_groups[0].update(params=3),
        lambda opt: opt.param_groups[0].update(params=(1, 2)),
        lambda opt: opt.param_groups[0]["params"].append(3),
        lambda opt: setattr(opt, "state", 3),
        lambda opt: delattr(opt, "state"),
        lambda opt: opt.param_groups[0].update(lr="fast"),
        lambda opt: opt.param_groups[0].update(max_norm="much"),
    ):
        p, opt = fresh()
        break_it(opt)
        with pytest.raises((TypeError, AttributeError, ValueError, RuntimeError)):
            opt.step()
        assert p.tolist() == [1, 1, 1]


def run(code, timeout=120):
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_importing_thalweg_does_not_import_torch():
    run("import sys, thalweg; assert 'torch' not in sys.modules")


def test_importing_it_imports_nothing_that_no_step_needs():
    """Dataclasses and zipfile take longer than all of the package."""
    run("""
        import sys, torch
        before = set(sys.modules)
        import thalweg.torch
        new = sys.modules.keys() - before
        assert not new & {"thalweg.schedules", "thalweg.joint", "thalweg.checkpoint"}, new
    """)


def test_two_processes_share_params(tmp_path):
    """Hogwild."""
    script = tmp_path / "hogwild.py"
    script.write_text(
        textwrap.dedent(
            """
            import torch, torch.multiprocessing as mp
            import thalweg.torch

            def work(p, opt):
                for _ in range(50):
                    p.grad = torch.ones(4)
                    opt.step()

            if __name__ == "__main__":
                torch.set_num_threads(1)
                p = torch.nn.Parameter(torch.zeros(4))
                p.share_memory_()
                opt = thalweg.torch.Adagrad([p], lr=0.1)
                opt.share_memory()
                for start in ("fork", "spawn"):
                    context = mp.get_context(start)
                    both = [context.Process(target=work, args=(p, opt)) for _ in range(2)]
                    for each in both: each.start()
                    for each in both: each.join()
                    assert [each.exitcode for each in both] == [0, 0]
                assert (p < -0.5).all(), p
                assert opt.state[p]["sum"].min() > 50
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


DISTRIBUTED = """
import os, sys, torch, torch.distributed as dist
import thalweg.torch
from torch.distributed.optim import ZeroRedundancyOptimizer
rank, file = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
for sharded in (False, True):
    results = []
    for module in (thalweg.torch, torch.optim):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        net = torch.nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
        if sharded:
            opt = ZeroRedundancyOptimizer(net.parameters(), module.SGD, lr=0.1, momentum=0.9)
        else:
            opt = module.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for i in range(4):
            opt.zero_grad(set_to_none=i != 2)
            net(torch.full((3, 4), float(rank + i))).sum().backward()
            opt.step()
        results.append([p.detach().clone() for p in net.parameters()])
        if module is thalweg.torch and not sharded:
            assert opt.describe().count("by thalweg") == 5, opt.describe()
    for mine, its in zip(*results):
        torch.testing.assert_close(mine, its)
dist.barrier()
os._exit(0)  # torch's own threads may end the process while it ends
"""


def test_two_processes_over_gloo(tmp_path):
    """Distributed data parallel, and with the state in shards."""
    file = tmp_path / "meeting"
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", DISTRIBUTED, str(rank), str(file)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "".join(e[-1500:] for e in errors)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_many_steps_leave_nothing_behind(rule):
    """Gradients made anew each time."""
    import gc
    import resource

    steps = 100_000 if FULL else 4_000
    net = torch.nn.Linear(5, 1)
    opt = ours(rule)(net.parameters(), lr=1e-3, **({"momentum": 0.9} if rule == "SGD" else {}))
    x = torch.randn(8, 5)

    def train(count):
        for _ in range(count):
            opt.zero_grad()
            net(x).square().mean().backward()
            opt.step()

    train(500)
    gc.collect()
    objects = len(gc.get_objects())
    references = [sys.getrefcount(thing) for thing in (None, opt, *net.parameters())]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train(steps)
    gc.collect()
    assert len(gc.get_objects()) < objects + 100
    after = [sys.getrefcount(thing) for thing in (None, opt, *net.parameters())]
    assert after[1:] == references[1:]
    assert abs(after[0] - references[0]) < 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB
