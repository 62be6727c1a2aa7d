"""Whose options hold after a load: the file's or the live ones; where nobody has said it, a warning
before anything changes."""

import math
import warnings

import numpy as np
import pytest

import thalweg as tw
from conftest import told
from refusing import frozen, refused
from thalweg import schedules as s

SAYING = ('options="live"', 'options="file"')


def sgd(lr=0.5, momentum=0.9, **options):
    return tw.SGD({"w": np.ones(3)}, lr, momentum, **options)


def trained(opt, steps=10):
    for _ in range(steps):
        opt.step({"w": np.ones(3)})
    return opt


def by_file(opt, saved, folder, **options):
    tw.save_checkpoint(folder / "a.npz", saved)
    return tw.load_checkpoint(folder / "a.npz", opt, **options)


def by_keeper(opt, saved, folder, **options):
    with tw.CheckpointKeeper(folder) as keeper:
        keeper.save(saved, force=True)
        return keeper.restore(opt, **options)


def in_memory(opt, saved, folder, **options):
    opt.load_state_dict(saved.state_dict(), **options)
    for name, param in opt._arrays.items():
        param[...] = saved._arrays[name]


each_way = pytest.mark.parametrize("load", [by_file, by_keeper, in_memory])


def options_of(opt):
    return [group.options() for group in opt.param_groups], limits_of(opt)


def limits_of(opt):
    return opt.max_norm, opt.max_value, opt.on_nonfinite


def contents(opt):
    """What a run has learned."""
    arrays = [array.tobytes() for array in opt._arrays.values()]
    states = [{k: np.asarray(x).tobytes() for k, x in each.items()} for each in opt.state.values()]
    return arrays, states, (opt.step_count, opt.skipped_steps, opt.grad_norm)


@each_way
def test_a_run_that_is_prolonged(load, tmp_path):
    """The schedule of the file is finished: every step was of rate 0, without a word."""
    saved = trained(sgd(s.Cosine(0.1, steps=10)))
    opt = sgd(s.Cosine(0.1, steps=20))
    with pytest.warns(UserWarning, match="options") as caught:
        load(opt, saved, tmp_path)
    assert len(caught) == 1
    words = ["groups[0].lr", "Cosine(lr=0.1, steps=10", "Cosine(lr=0.1, steps=20", *SAYING]
    assert [word for word in words if word not in str(caught[0].message)] == []
    assert caught[0].filename == __file__
    assert (opt.lr, opt.lr(opt.step_count)) == (s.Cosine(0.1, steps=10), 0)
    opt = sgd(s.Cosine(0.1, steps=20))
    load(opt, saved, tmp_path, options="live")
    assert contents(opt) == contents(saved)
    before = opt._arrays["w"].copy()
    saved.lr = s.Cosine(0.1, steps=20)
    for each in (opt, saved):
        trained(each, 5)
    assert (opt._arrays["w"] < before).all()
    assert contents(opt) == contents(saved), "as if the schedule had been set in the first run"


def around(schedule):
    return s.Warmup(schedule, 3)


def rate(t):
    return 0.25


# By option: the saved value and the live one, both ways round.
DIFFERING = {
    "number": ("lr", 0.1, 0.2),
    "schedule": ("lr", s.Cosine(0.1, 10), s.Cosine(0.1, 20)),
    "number and schedule": ("lr", 0.1, s.Constant(0.1)),
    "schedules around schedules": ("lr", around(s.Constant(0.1)), around(s.Constant(0.2))),
    "sequence": ("lr", s.Sequence([s.Constant(1)], []), s.Sequence([s.Constant(2)], [])),
    "momentum": ("momentum", 0.9, 0.5),
    "momentum's schedule": ("momentum", 0.9, s.Constant(0.9)),
    "to no momentum": ("momentum", 0.9, 0.0),
    "weight_decay": ("weight_decay", 0.0, 1e-4),
    "decoupled": ("decoupled", False, True),
    "maximize": ("maximize", False, True),
    "frozen": ("frozen", False, True),
}
LIMITS = {
    "max_norm": (None, 1.0),
    "max_value": (0.5, 1.0),
    "on_nonfinite": ("propagate", "skip"),
}


@each_way
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("name", [*DIFFERING, *LIMITS])
def test_each_option(load, swapped, name, tmp_path):
    option, *values = DIFFERING.get(name, (name, *LIMITS.get(name, ())))
    saved, opt = trained(sgd()), sgd()
    stored, live = values[::-1] if swapped else values
    for each, value in ((saved, stored), (opt, live)):
        if name in LIMITS:
            setattr(each, option, value)
        else:
            each.param_groups[0][option] = value
    before = options_of(opt)
    words = [f"{option}: {stored!r} stored, {live!r} live", *SAYING]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refused(UserWarning, *words, keeps=opt):
            load(opt, saved, tmp_path)
        load(opt, saved, tmp_path, options="live")
        assert options_of(opt) == before
        assert contents(opt) == contents(saved)
        load(opt, saved, tmp_path, options="file")
        assert options_of(opt) == options_of(saved)
        load(opt, saved, tmp_path)  # nothing differs any more
    setattr(opt, option, live) if name in LIMITS else opt.param_groups[0].update({option: live})
    with pytest.warns(UserWarning, match=option):
        load(opt, saved, tmp_path)
    assert options_of(opt) == options_of(saved)


@each_way
def test_all_that_differs_is_in_one_warning(load, tmp_path):
    def make(lrs, **limits):
        params = [{"params": np.ones(2), "lr": lr} for lr in lrs]
        return tw.Adagrad(params, lr_decay=0.125, **limits)

    saved = make([0.1, 0.2, 0.3], max_norm=2.0)
    opt = make([0.1, 0.25, s.Constant(0.5)], max_norm=1.0, max_value=4.0)
    opt.param_groups[1]["lr_decay"] = 0.5
    words = [
        "groups[1].lr: 0.2 stored, 0.25 live",
        "groups[1].lr_decay: 0.125 stored, 0.5 live",
        "groups[2].lr: 0.3 stored, Constant(lr=0.5) live",
        "max_norm: 2.0 stored, 1.0 live",
        "max_value: None stored, 4.0 live",
    ]
    with pytest.warns(UserWarning, match="options") as caught:
        load(opt, saved, tmp_path)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert [word for word in words if word not in message] == []
    assert "groups[0]" not in message
    assert "on_nonfinite" not in message


@each_way
@pytest.mark.parametrize("stored", [0.1, s.Constant(0.1), around(s.Constant(0.1))], ids=repr)
@pytest.mark.parametrize("live", [rate, abs, around(rate)], ids=told)
def test_a_callable_is_not_replaced_without_a_word(load, stored, live, tmp_path):
    """No file gives it back."""
    saved, opt = trained(sgd(stored)), sgd(live)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refused(UserWarning, "groups[0].lr", repr(stored), repr(live), *SAYING, keeps=opt):
            load(opt, saved, tmp_path)
        assert opt.lr is live
        load(opt, saved, tmp_path, options="live")
        assert opt.lr is live
        assert contents(opt) == contents(saved)
        load(opt, saved, tmp_path, options="file")
        assert opt.lr == stored


@each_way
def test_a_callable_that_was_not_stored(load, tmp_path):
    """The live one stays; that it is another one is said where it can be known."""
    saved = trained(sgd(rate))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(opt := sgd(abs), saved, tmp_path)
        assert opt.lr is abs
        opt = sgd(live := s.Constant(0.5))
        words = "groups[0].lr: a callable that cannot be stored, Constant(lr=0.5) live, which stays"
        with refused(UserWarning, words, *SAYING, keeps=opt):
            load(opt, saved, tmp_path)
        load(opt, saved, tmp_path, options="file")
        assert opt.lr is live
        opt = sgd(0.125)
        with pytest.raises(ValueError, match=r'groups\[0\].lr: .*0.125.* options="live"'):
            load(opt, saved, tmp_path)
        load(opt, saved, tmp_path, options="live")
        assert opt.lr == 0.125
        opt = sgd(around(around(rate)))
        other = trained(sgd(around(rate)))
        with pytest.raises(ValueError, match=r'same form.* options="live"'):
            load(opt, other, tmp_path)
        load(opt, other, tmp_path, options="live")
        load(sgd(around(rate)), other, tmp_path)


@each_way
def test_what_is_equal_is_no_difference(load, tmp_path):
    """However it is written."""
    saved = trained(sgd(1, momentum=1 / 2, weight_decay=np.float32(0.25), max_norm=2))
    opt = sgd(1.0, momentum=0.5, weight_decay=0.25, max_norm=2.0)
    load(opt, saved, tmp_path)
    saved, opt = sgd(s.MultiStep(0.1, [1, 2])), sgd(s.MultiStep(0.1, (1, 2)))
    load(opt, saved, tmp_path)
    saved, opt = sgd(s.Sequence([rate], [])), sgd(s.Sequence([abs], []))
    load(opt, saved, tmp_path)


@each_way
@pytest.mark.parametrize("wrong", ["both", "File", "", 1, True, ["live"], np.ones(2)], ids=repr)
def test_other_words(load, wrong, tmp_path):
    opt = sgd()
    with refused(ValueError, "options", '"file" or "live"', repr(wrong), keeps=opt):
        load(opt, sgd(0.1), tmp_path, options=wrong)


def test_live_options_are_no_way_round_what_must_fit(tmp_path):
    """A velocity of another form, or an accumulator of other eps, is another thing."""
    opt = sgd()
    for saved in (sgd(form="classic"), sgd(nesterov=True), tw.SGD({"w": np.ones(3)})):
        with refused(tw.CheckpointError, "does not fit", keeps=opt):
            by_file(opt, saved, tmp_path, options="live")


def test_who_hears_the_warning_sees_nothing_changed(tmp_path):
    """As a hook of a log does."""
    saved, opt = trained(sgd(0.1)), sgd(0.2)
    before, seen = frozen(opt), []

    def hear(*_, **__):
        seen.append(frozen(opt))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = hear
        by_file(opt, saved, tmp_path)
    assert seen == [before]


def test_who_hears_the_warning_and_breaks_what_fits(tmp_path):
    saved, opt = trained(sgd(0.1)), sgd(0.2)

    def hear(*_, **__):
        opt._arrays["w"].flags.writeable = False

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = hear
        before = contents(opt), options_of(opt)
        with refused(tw.CheckpointError, "read-only"):
            by_file(opt, saved, tmp_path)
        assert (contents(opt), options_of(opt)) == before


def test_a_long_schedule_is_told_in_short(tmp_path):
    long = s.MultiStep(0.1, range(10_000))
    with pytest.warns(UserWarning, match="options") as caught:
        by_file(sgd(long), sgd(0.5), tmp_path)
    assert len(str(caught[0].message)) < 1000


def test_limits_that_the_first_version_did_not_name(tmp_path):
    """They were what they are by default."""
    opt = sgd()
    found = opt.state_dict() | {"version": 1}
    found["limits"] = {"max_norm": None, "max_value": None, "on_nonfinite": "propagate"}
    opt.load_state_dict(found)
    assert math.isclose(getattr(opt, "norm_eps", 1e-6), 1e-6)
    for name in ("max_norm", "on_nonfinite"):
        with refused(ValueError, "limits", name, keeps=opt):
            limits = {key: value for key, value in found["limits"].items() if key != name}
            opt.load_state_dict(found | {"limits": limits})
