"""Checkpoints and keepers of all ranks."""

import os
import tempfile
from pathlib import Path

import numpy as np

import reference
import thalweg as tw
import thalweg.mpi as tm
from bits import assert_same_bits
from ranks import COMM, RANK, SIZE, case, dense, ours, raised, shapes, sizes
from rules import RULES


@case
def checkpoints_at_other_numbers_of_ranks():
    """Saved by the first job of the test, whatever its size; gone on with by all others."""
    folder = Path(os.environ["THALWEG_TEST_FOLDER"])
    for small in (1 << 20, 0):
        sizes(small)
        for name in ("heavy_ball", "adagrad_row_inside", "sgd"):
            rule = RULES[name]
            path = folder / f"{name}-{small}.npz"
            params = shapes(np.float32)
            opt = ours(rule, params)
            alone = shapes(np.float32)
            one = rule.optimizer(alone, **{"lr": 0.1} | rule.choices)
            if not path.exists() or os.environ.get("THALWEG_TEST_FIRST"):
                for step in range(2):
                    opt.step(dense(params, step, 0))
                tw.save_checkpoint(path, opt, extra={"epoch": 2})
            else:
                assert tw.load_checkpoint(path, opt) == {"epoch": 2}
            assert tw.load_checkpoint(path, one) == {"epoch": 2}
            opt.check_synced()
            summed = reference.rank_sum([dense(params, 2, rank)["w"] for rank in range(SIZE)], "f4")
            grads = {"w": dense(params, 2, RANK)["w"]}
            opt.step(grads, partial=True)
            one.step({"w": summed}, scale=1 / SIZE, partial=True)
            for key, w in params.items():
                assert_same_bits(w, alone[key], key)
            found, expected = opt.state_dict(), one.state_dict()
            for key, array in expected["arrays"].items():
                for slot, value in array.items():
                    if isinstance(value, np.ndarray):
                        assert_same_bits(found["arrays"][key][slot], value, key)
                    else:
                        assert found["arrays"][key][slot] == value
            opt.load_state_dict(expected)
            again = opt.state_dict()
            assert_same_bits(
                np.asarray(again["arrays"]["w"].get(rule.slot or "", 0.0)),
                np.asarray(expected["arrays"]["w"].get(rule.slot or "", 0.0)),
            )
            COMM.Barrier()


@case
def a_keeper():
    folder = COMM.bcast(tempfile.mkdtemp() if RANK == 0 else None)
    sizes()
    params = shapes(np.float32)
    opt = tm.Adagrad(params, lr=0.1)
    keeper = tw.CheckpointKeeper(folder, keep=2, every=2)
    assert keeper.restore(opt) is None
    for step in range(5):
        opt.step(dense(params, step, RANK))
        assert keeper.save(opt, extra={"step": step}) is (opt.step_count % 2 == 0)
    after = {k: w.copy() for k, w in params.items()}
    assert tw.CheckpointKeeper(folder).restore(opt) == {"step": 3}
    assert opt.step_count == 4
    opt.step(dense(params, 4, RANK))
    for k, w in params.items():
        assert_same_bits(w, after[k], k)
    raised(lambda: tw.save_checkpoint(Path(folder) / "nowhere" / "a.npz", opt), OSError)
    COMM.Barrier()
    if RANK == 0:
        keeper.close()
