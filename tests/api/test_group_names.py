"""Groups carry a name: in messages, repr, checkpoints."""

import copy
import pickle

import numpy as np
import pytest

import thalweg as tw
from refusing import refused


def made(**options):
    return tw.SGD(
        [
            {"params": {"W": np.ones(3), "b": np.ones(3)}, "name": "enc", "lr": 0.5},
            {"params": np.ones(2), "name": "dec"},
            {"match": "*.b", "weight_decay": 0.0, "name": "biases"},
        ],
        momentum=0.9,
        **options,
    )


def test_names():
    opt = made()
    groups = opt.param_groups
    assert [group.name for group in groups] == ["enc", "dec", "enc.biases"]
    assert [group["name"] for group in groups] == ["enc", "dec", "enc.biases"]
    assert "name" in groups[0]
    assert "name" not in list(groups[0])
    assert repr(groups[0]).startswith("Group('enc', {'lr': 0.5")
    assert "3 groups: 'enc', 'dec', 'enc.biases'" in repr(opt)
    assert opt.step([{"W": np.ones(3), "b": np.ones(3)}, np.ones(2)])
    for each in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert [group.name for group in each.param_groups] == ["enc", "dec", "enc.biases"]
    one = tw.SGD([{"params": np.ones(2), "name": "all"}])
    assert "name='all'" in repr(one)
    unnamed = tw.SGD([{"params": np.ones(2)}])
    assert unnamed.param_groups[0].name is None
    assert unnamed.param_groups[0].get("name") is None
    assert "name" not in unnamed.param_groups[0]


def test_messages():
    opt = made()
    with refused(ValueError, 'lr of the group "dec"', keeps=opt):
        opt.param_groups[1]["lr"] = -1.0
    with refused(ValueError, 'weight_decay of the group "late"', keeps=opt):
        opt.add_group({"params": np.ones(2), "name": "late", "weight_decay": -1.0})
    with refused(ValueError, 'momentum of the group "a"'):
        tw.SGD([{"params": np.ones(2), "name": "a", "momentum": 2.0}, {"params": np.ones(3)}])
    with refused(ValueError, "name: fixed", keeps=opt):
        opt.param_groups[0]["name"] = "other"


def test_a_group_that_is_added():
    opt = made()
    with refused(ValueError, "'dec' twice", keeps=opt):
        opt.add_group({"params": np.ones(2), "name": "dec"})
    opt.add_group({"params": np.ones(2), "name": "late"})
    opt.add_group({"params": np.ones(4)})
    assert [group.name for group in opt.param_groups[3:]] == ["late", None]


@pytest.mark.parametrize(
    ("error", "second", "words"),
    [
        (ValueError, {"name": "a"}, ["name", "'a' twice"]),
        (ValueError, {"name": ""}, ["name", "letter"]),
        (TypeError, {"name": 3}, ['params["1.name"]', "name=3"]),
    ],
)
def test_wrong_names(error, second, words):
    w = [np.ones(2), np.ones(3)]
    with refused(error, *words, keeps=w):
        tw.SGD([{"params": w[0], "name": "a"}, {"params": w[1], **second}])


def test_a_param_called_name_is_one():
    w = [{"params": np.ones(2), "name": np.ones(3)}]
    opt = tw.SGD(w)
    assert list(opt.state) == ["0.params", "0.name"]


def test_checkpoints(tmp_path):
    opt = made()
    opt.step([{"W": np.ones(3), "b": np.ones(3)}, np.ones(2)])
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    found = tw.read_checkpoint(tmp_path / "a.npz")
    assert [group["name"] for group in found["groups"]] == ["enc", "dec", "enc.biases"]
    other = made()
    tw.load_checkpoint(tmp_path / "a.npz", other)
    assert other.step_count == 1

    def two(*names):
        groups = [{"params": np.ones(2)}, {"params": np.ones(2)}]
        for group, name in zip(groups, names, strict=False):
            group["name"] = name
        return tw.SGD(groups, momentum=0.9)

    found = two("a", "b").state_dict()
    two().load_state_dict(found)  # known by its place
    two("a").load_state_dict(found)
    other = two("b", "a")
    with refused(ValueError, "groups[0]: expected the name 'b', received 'a'", keeps=other):
        other.load_state_dict(found)
    two("a", "b").load_state_dict(two().state_dict())
