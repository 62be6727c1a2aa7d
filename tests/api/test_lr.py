"""``opt.lr = x``: native, checked, for all groups or none."""

import inspect
import re

import numpy as np
import pytest

import thalweg as tw


def groups_of(*dtypes):
    return [{"params": [np.zeros(2, dtype)]} for dtype in dtypes]


def test_a_rate_for_all_groups():
    opt = tw.SGD(groups_of(np.float32, np.float64), lr=0.1)
    opt.lr = 0.25
    assert [group["lr"] for group in opt.param_groups] == [0.25, 0.25]
    opt.lr = schedule = lambda t: 0.5
    assert opt.lr is schedule
    assert opt.param_groups[1]["lr"] is schedule
    opt.lr = np.float32(0.5)
    assert opt.lr == 0.5
    opt.param_groups[1]["lr"] = 0.125
    with pytest.raises(
        ValueError, match=r"lr: expected one for all groups, received \[0.5, 0.125\]"
    ):
        _ = opt.lr
    opt.step([[np.ones(2, np.float32)], [np.ones(2)]])
    assert opt.last_lr == (0.5, 0.125)


class Rate:
    """A number that counts how often it is asked."""

    def __init__(self, value, ask=lambda: None):
        self.value, self.ask, self.asked = value, ask, 0

    def __float__(self):
        self.asked += 1
        self.ask()
        return self.value


@pytest.mark.parametrize("dtypes", [(np.float32,), (np.float64, np.float32, np.float64)])
@pytest.mark.parametrize(
    ("error", "value"),
    [
        (ValueError, -1.0),
        (ValueError, np.nan),
        (ValueError, np.inf),
        (ValueError, 1e39),  # infinite in float32
        (TypeError, "0.1"),
        (TypeError, None),
        (TypeError, True),
        (TypeError, np.bool_(True)),
        (TypeError, [0.1]),
        (ValueError, 10**400),
        (ZeroDivisionError, Rate(1.0, lambda: 1 // 0)),
    ],
)
def test_what_is_refused_changes_no_group(dtypes, error, value):
    opt = tw.SGD(groups_of(*dtypes), lr=lambda t: 0.5)
    for i, group in enumerate(opt.param_groups):
        group["lr"] = 0.5 + i
    label = "lr: " if len(dtypes) == 1 else r'param_groups\[\d\]\["lr"\]: '
    with pytest.raises(error, match="zero" if error is ZeroDivisionError else label + "expected a"):
        opt.lr = value
    assert [group["lr"] for group in opt.param_groups] == [0.5 + i for i in range(len(dtypes))]


def test_a_number_of_the_callers_is_asked_once_and_may_add_a_group():
    opt = tw.SGD(groups_of(np.float64, np.float64), lr=0.5)
    rate = Rate(0.25)
    opt.lr = rate
    assert rate.asked == 1
    opt.lr = Rate(0.125, lambda: opt.add_group({"params": np.zeros(1)}))
    assert [group["lr"] for group in opt.param_groups] == [0.125] * 3


def test_a_schedule_that_goes_may_look_at_the_optimizer():
    opt = tw.SGD(groups_of(np.float64, np.float64), lr=0.5)
    seen = []

    class Schedule:
        def __call__(self, step):
            return 0.5

        def __del__(self):
            seen.append(opt.lr)

    opt.lr = Schedule()
    opt.lr = 0.25
    assert seen == [0.25]


def test_it_is_an_attribute_like_others():
    opt = tw.Adagrad(np.zeros(2))
    with pytest.raises(AttributeError, match="lr"):
        del opt.lr
    setattr(opt, "".join(["l", "r"]), 0.75)
    assert opt.lr == 0.75
    assert (
        inspect.getdoc(tw.SGD.lr) == "The learning rate of all groups; assigning sets it for all."
    )
    with pytest.raises(TypeError, match="never initialised"):
        _ = tw.SGD.__new__(tw.SGD).lr
    with pytest.raises(TypeError, match="never initialised"):
        tw.SGD.__new__(tw.SGD).lr = 0.5


def test_options_belong_to_groups_and_other_attributes_to_subclasses():
    opt = tw.SGD(np.zeros(2), momentum=0.5)
    for name in ("momentum", "form", "nesterov", "frozen", "weight_decay"):
        with pytest.raises(
            AttributeError, match=rf"{name}: an option.*opt.param_groups\[i\]\['{name}'\]"
        ):
            setattr(opt, name, 0.25)
    assert opt.param_groups[0]["momentum"] == 0.5
    for name, cure in {
        "learning_rate": "did you mean lr?",
        "clipnorm": "did you mean max_array_norm?",
        "eps": "no step would read",  # no option of SGD's
        "note": "a subclass may have attributes of its own",
    }.items():
        with pytest.raises(AttributeError, match=f"^{name}: .*{re.escape(cure)}"):
            setattr(opt, name, 0.25)
        assert not hasattr(opt, name)

    class Mine(tw.SGD):
        pass

    mine = Mine(np.zeros(2))
    mine.note = "mine"
    assert mine.note == "mine"
    del mine.note
    assert not hasattr(mine, "note")
    with pytest.raises(TypeError):
        type(opt).__setattr__(opt, 3, 4)


def test_a_subclass_may_have_a_rate_of_its_own():
    class Mine(tw.SGD):
        @property
        def lr(self):
            return "mine"

    assert Mine(np.zeros(2)).lr == "mine"
    with pytest.raises(AttributeError):
        Mine(np.zeros(2)).lr = 0.5
