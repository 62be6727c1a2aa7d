"""zero_grads: what cannot be zeroed is refused before anything changes, and when it is not done."""

import copy
import pickle

import numpy as np
import pytest

import thalweg as tw
from refusing import RULES, everything, refused


def pair():
    return {"a": np.ones(4), "b": np.ones(4)}


def is_zero(grads):
    return all(not g.any() for g in grads.values())


@pytest.mark.parametrize("made", RULES)
class TestRefused:
    def test_read_only(self, made):
        params, grads = pair(), pair()
        opt = made(params, zero_grads=True)
        grads["b"].flags.writeable = False
        with refused(
            ValueError,
            'grads["b"]: expected a writeable array, received a read-only one',
            "np.array(g)",
            "leave zero_grads out",
            keeps=[params, grads, opt],
        ):
            opt.step(grads)
        opt.zero_grads = False
        assert opt.step(grads)

    @pytest.mark.parametrize(
        "second",
        [lambda g: g, lambda g: g[:], lambda g: g[::-1], lambda g: g.view("f4")[::2]],
        ids=["same", "view", "backwards", "halves"],
    )
    def test_shared_by_two_params(self, made, second):
        params, g = pair(), np.ones(4)
        grads = {"a": g, "b": second(g)}
        opt = made(params, zero_grads=True)
        for _ in range(2):  # a step that was refused has taught it nothing
            with refused(
                ValueError,
                "share memory",
                'grads["a"]',
                'grads["b"]',
                "a copy, for one of them",
                keeps=[params, g, opt],
            ):
                opt.step(grads)
        opt.zero_grads = False
        assert opt.step(grads)  # as without it: gradients may overlap

    def test_seen_when_they_move(self, made):
        """What was apart at one step may share memory at the next."""
        params, grads = pair(), pair()
        opt = made(params, zero_grads=True)
        for _ in range(2):
            assert opt.step(grads)
        grads["b"] = grads["a"]
        with refused(ValueError, "share memory", keeps=[params, opt]):
            opt.step(grads)

    def test_overlapping_itself(self, made):
        params = {"w": np.ones((3, 4))}
        row = np.ones(4)
        g = np.lib.stride_tricks.as_strided(row, (3, 4), (0, 8))
        opt = made(params, zero_grads=True)
        with refused(
            ValueError,
            'grads["w"]: ',
            "overlapping elements",
            "zero_grads",
            keeps=[params, row, opt],
        ):
            opt.step({"w": g})

    def test_a_number(self, made):
        params = {"b": np.ones(())}
        opt = made(params, zero_grads=True)
        with refused(
            TypeError, 'grads["b"]: expected an array, received the number 0.5', keeps=[params, opt]
        ):
            opt.step({"b": 0.5})

    def test_values_of_rows(self, made):
        params, values = {"e": np.ones((5, 2))}, np.ones((2, 2))
        values.flags.writeable = False
        opt = made(params, zero_grads=True)
        with refused(
            ValueError, 'grads["e"].values: expected a writeable', keeps=[params, values, opt]
        ):
            opt.step({"e": tw.RowGrad([0, 3], values)})

    def test_bound(self, made):
        """When it is made, and when it is set."""
        params, grads = pair(), pair()
        grads["a"].flags.writeable = False
        with refused(ValueError, 'grads["a"]: expected a writeable', keeps=[params, grads]):
            made(params, grads=grads, zero_grads=True)
        opt = made(params, grads=grads)
        with refused(ValueError, 'grads["a"]: expected a writeable', keeps=[params, grads, opt]):
            opt.zero_grads = True
        assert not opt.zero_grads
        shared = {"a": grads["b"], "b": grads["b"]}
        with refused(ValueError, "share memory", keeps=[params, grads]):
            made(pair(), grads=shared, zero_grads=True)

    @pytest.mark.parametrize("value", [1, 0, None, "yes"])
    def test_no_flag(self, made, value):
        words = f"zero_grads: expected True or False, received {value!r}"
        with refused(TypeError, words):
            made(pair(), zero_grads=value)
        opt = made(pair())
        with refused(TypeError, words, keeps=opt):
            opt.zero_grads = value


@pytest.mark.parametrize("made", RULES)
class TestWhen:
    def test_off(self, made):
        opt, grads = made(pair()), pair()
        assert opt.zero_grads is False
        assert opt.step(grads)
        assert (grads["a"] == 1).all()

    def test_set_between_steps(self, made):
        opt, grads = made(pair(), zero_grads=np.bool_(True)), pair()
        assert opt.zero_grads is True
        assert opt.step(grads)
        assert is_zero(grads)
        opt.zero_grads = False
        grads["a"][:] = 1
        assert opt.step(grads)
        assert (grads["a"] == 1).all()

    def test_skipped(self, made):
        """Zeroed as well: an accumulated NaN would skip every step to come."""
        params, grads = pair(), pair()
        opt = made(params, zero_grads=True, on_nonfinite="skip")
        assert opt.step(grads)
        before = everything(opt)
        grads["a"][1], grads["b"][:] = np.nan, 2.0
        assert not opt.step(grads)
        assert everything(opt) == before
        assert opt.skipped_steps == 1
        assert is_zero(grads)
        grads["a"] += 1.0
        assert opt.step(grads)

    def test_skipped_rows(self, made):
        table, values = np.ones((50, 3)), np.ones((4, 3), np.float16)
        opt = made(table, zero_grads=True, on_nonfinite="skip")
        values[2, 1] = np.inf
        assert not opt.step(tw.RowGrad([7, 3, 7, 9], values))
        assert (table == 1).all()
        assert not values.any()

    def test_raising(self, made):
        """Left for whoever wants to look at it."""
        params, grads = pair(), pair()
        opt = made(params, zero_grads=True, on_nonfinite="raise")
        grads["a"][1] = np.inf
        with refused(FloatingPointError, 'grads["a"]', keeps=[params, grads, opt]):
            opt.step(grads)

    def test_refused(self, made):
        params, grads = pair(), pair()
        opt = made(params, zero_grads=True)
        grads["b"] = np.ones(3)
        with refused(ValueError, "expected shape", keeps=[params, grads, opt]):
            opt.step(grads)

    def test_those_of_the_step_alone(self, made):
        """Neither what a partial step does not name nor what is frozen is looked at."""
        params = {"a": np.ones(4), "b": np.ones(4), "c": np.ones(4)}
        grads = {name: np.ones(4) for name in params}
        opt = made([{"params": params}, {"match": "0.c", "frozen": True}], zero_grads=True)
        grads["c"].flags.writeable = False
        assert opt.step([{"a": grads["a"], "c": grads["c"]}], partial=True)
        assert [float(g.sum()) for g in grads.values()] == [0.0, 4.0, 4.0]

    def test_copies(self, made):
        opt = made(pair(), zero_grads=True)
        for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
            grads = pair()
            assert other.zero_grads
            assert other.step(grads)
            assert is_zero(grads)
        assert "zero_grads=True" in repr(opt)
        assert "zero_grads" not in repr(made(pair()))

    def test_a_snapshot_leaves_it(self, made):
        """It belongs to the loop, not to what was trained."""
        on, off = made(pair(), zero_grads=True), made(pair())
        on.load_state_dict(off.state_dict())
        off.load_state_dict(on.state_dict())
        assert (on.zero_grads, off.zero_grads) == (True, False)


class TestJoint:
    def made(self, **of_joint):
        params = [pair(), pair()]
        first = tw.SGD(params[0], 0.1, zero_grads=True)
        return params, tw.Joint(one=first, two=tw.Adagrad(params[1], 0.1), **of_joint)

    def test_only_those_of_the_optimizer_that_wants_it(self):
        _, joint = self.made()
        grads = {"one": pair(), "two": pair()}
        assert joint.step(grads)
        assert is_zero(grads["one"])
        assert (grads["two"]["a"] == 1).all()

    def test_shared_with_another_optimizer(self):
        params, joint = self.made()
        grads = {"one": pair(), "two": pair()}
        grads["two"]["b"] = grads["one"]["a"]
        words = 'grads["two.b"]: ', 'grads["one.a"] share memory'
        with refused(ValueError, *words, keeps=[params, grads]):
            joint.step(grads)
        grads["two"]["b"] = grads["two"]["a"]  # which are only read
        assert joint.step(grads)

    def test_skipped(self):
        params, joint = self.made(on_nonfinite="skip")
        grads = {"one": pair(), "two": pair()}
        grads["two"]["a"][0] = np.nan
        assert not joint.step(grads)
        assert is_zero(grads["one"])
        assert (params[0]["a"] == 1).all()

    def test_raising(self):
        params, joint = self.made(on_nonfinite="raise")
        grads = {"one": pair(), "two": pair()}
        grads["two"]["a"][0] = np.nan
        with refused(FloatingPointError, "two.a", keeps=[params, grads]):
            joint.step(grads)

    def test_left_out_by_itself(self):
        params = [pair(), pair()]
        first = tw.SGD(params[0], 0.1, zero_grads=True, on_nonfinite="skip")
        second = tw.SGD(params[1], 0.1, zero_grads=True)
        joint = tw.Joint(one=first, two=second)
        grads = {"one": pair(), "two": pair()}
        grads["one"]["a"][0] = np.inf
        assert not joint.step(grads)
        assert is_zero(grads["one"])
        assert is_zero(grads["two"])
        assert (params[0]["a"] == 1).all()
        assert (params[1]["a"] == 0.9).all()
