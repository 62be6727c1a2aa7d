"""Checkpoints: params, state, options and counters in one file, whole or not at all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from thalweg._checkpoint.archive import (
    Archive,
    CheckpointError,
    Progress,
    Stored,
    Writer,
    opened,
    sound,
)
from thalweg._checkpoint.extra import from_json, to_json
from thalweg._checkpoint.replacing import clear, partial_of, replacing
from thalweg._optimizer import snapshot
from thalweg._optimizer.base import Optimizer

FORMAT = "thalweg checkpoint"

PathLike = str | os.PathLike[str]


def save_checkpoint(
    path: PathLike, opt: Optimizer, extra: Any = None, *, progress: Progress | None = None
) -> None:
    """Write an optimizer's params, state, options and counters, and ``extra``, into one file.

    The file appears whole and durable, or the one before stays: whatever happens, a crash of the
    machine included. It is an uncompressed .npz, written array by array without a copy in memory;
    docs/checkpoint.md has its format. Steps in other threads wait meanwhile.

    Parameters
    ----------
    path : str or path
        Its folder must exist. Where it is a link, the file behind it is replaced.
    opt : SGD or Adagrad
    extra : None, bool, int, float, str, array, and lists and dicts (with str keys) of them
        Given back by ``load_checkpoint``; for example a generator's
        ``rng.bit_generator.state``, the epoch, losses. Tuples come back as lists.
    progress : callable, (bytes done, bytes in all) -> anything
        Called after every few MiB.

    Raises
    ------
    TypeError
        ``extra`` holds what cannot be stored, named by its path.
    OSError
        The file cannot be written; the one before is still there.

    Example
    -------
    >>> import numpy as np, tempfile, thalweg as tw
    >>> w = np.ones(3)
    >>> opt = tw.SGD(w, lr=0.5, momentum=0.9)
    >>> opt.step(np.ones(3))
    True
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tw.save_checkpoint(f"{folder}/a.npz", opt, extra={"epoch": 3})
    ...     w[:] = 0
    ...     tw.load_checkpoint(f"{folder}/a.npz", opt)
    {'epoch': 3}
    >>> w
    array([0.5, 0.5, 0.5])
    """
    found: list[np.ndarray] = []
    stored_extra = to_json(extra, "extra", found)
    with snapshot.paused(opt):
        opt._check_whole()
        described = snapshot.describe(opt)
        described["grad_norm"] = to_json(described["grad_norm"], "grad_norm", [])
        params = {name: np.asarray(param) for name, param in opt._arrays.items()}
        states = {
            name: np.asarray(array[opt._slot])
            for name, array in described["arrays"].items()
            if opt._slot in array
        }
        every = [*params.values(), *states.values(), *found]
        total = sum(array.nbytes for array in every)
        with (
            replacing(Path(path)) as file,
            Writer(file, progress, total) as out,
        ):
            param_index = {name: out.add(f"param{i}", a) for i, (name, a) in _numbered(params)}
            for i, (name, array) in _numbered(states):
                described["arrays"][name][opt._slot] = out.add(f"state{i}", array)
            extra_index = [out.add(f"extra{i}", array) for i, array in enumerate(found)]
            out.close(
                {
                    "format": FORMAT,
                    "version": snapshot.VERSION,
                    "optimizer": described,
                    "params": param_index,
                    "extra": stored_extra,
                    "extra_arrays": extra_index,
                }
            )


def load_checkpoint(path: PathLike, opt: Optimizer, *, progress: Progress | None = None) -> Any:
    """Put back what ``save_checkpoint`` wrote, into the live arrays; returns ``extra``.

    All of the file is verified, and compared with the optimizer by name, shape and dtype, before
    the first byte changes. Numbers and schedules among the options are those of the file; the rule,
    form, nesterov, dampening, eps, eps_placement and accumulator must be the optimizer's. A
    callable that is no schedule of ``thalweg.schedules`` stays as it is.

    Raises
    ------
    CheckpointError
        The file is damaged, is none, is newer, or does not fit; all that does not fit is listed.
        Nothing has changed.
    OSError
        The file cannot be read. Should that, or a change of the file, happen once arrays change,
        the optimizer refuses steps until a load succeeds.
    """
    path = _cleared(path)
    with opened(path) as archive:
        contents = contents_of(archive, path)
        described = contents["optimizer"]
        with snapshot.paused(opt):
            _check_fit(path, opt, contents)
            archive.verify(path, progress)
            _check_fit(path, opt, contents)  # again: progress is the caller's code
            with sound(path):
                extra = from_json(
                    contents["extra"], [*map(archive.array, contents["extra_arrays"])]
                )
            params = [
                (np.asarray(param), contents["params"][name]) for name, param in opt._arrays.items()
            ]

            def copy(live: np.ndarray, stored: Stored) -> None:
                with sound(path):
                    archive.copy(live, stored)

            try:
                snapshot.restore(opt, described, f"a load of {path}", copy, params)
            except CheckpointError:
                raise
            except ValueError as error:
                raise CheckpointError(f"{path}: does not fit the optimizer: {error}") from None
    return extra


def read_checkpoint(path: PathLike, *, progress: Progress | None = None) -> dict[str, Any]:
    """Verify a checkpoint and return its contents, without an optimizer.

    The result has ``params`` and, by the same names, ``state`` (the accumulator or velocity, and
    the step), ``groups`` (options), ``rule``, ``step_count``, ``version`` and ``extra``.

    Raises CheckpointError for a file that is damaged, newer, or none; OSError if it cannot be read.
    """
    path = _cleared(path)
    with opened(path) as archive:
        contents = contents_of(archive, path)
        archive.verify(path, progress)
        with sound(path):
            described = contents["optimizer"]

            def state(each: Mapping[str, Any]) -> dict[str, Any]:
                return {
                    key: archive.array(value) if isinstance(value, Stored) else value
                    for key, value in each.items()
                    if key != "group"
                }

            return {
                "version": described["version"],
                "rule": described["rule"],
                "step_count": described["step_count"],
                "groups": described["groups"],
                "params": {name: archive.array(a) for name, a in contents["params"].items()},
                "state": {name: state(each) for name, each in described["arrays"].items()},
                "extra": from_json(
                    contents["extra"], [*map(archive.array, contents["extra_arrays"])]
                ),
            }


def _numbered(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[int, tuple[str, np.ndarray]]]:
    return enumerate(arrays.items())


def _cleared(path: PathLike) -> Path:
    """The path; what a save that was killed has left beside it is deleted."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"{path}: expected a checkpoint, received a folder; CheckpointKeeper looks into one"
        )
    real = Path(os.path.realpath(path))
    with suppress(OSError):  # it is being written, or the folder is read-only: not ours to say
        clear(partial_of(real))
    return path


def contents_of(archive: Archive, path: Path) -> dict[str, Any]:
    """The manifest with its arrays in place of their numbers."""
    manifest = archive.manifest
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected a checkpoint of thalweg, received another file")
    version = manifest.get("version")
    if type(version) is not int or version != snapshot.VERSION:
        newer = type(version) is int and version > snapshot.VERSION
        cure = "; it is newer: update thalweg" if newer else ""
        raise CheckpointError(
            f"{path}: expected version {snapshot.VERSION} of the format, received {version!r}{cure}"
        )
    with sound(path):
        used: list[int] = []

        def entry(index: Any) -> Stored:
            if type(index) is not int or not 0 <= index < len(archive.entries):
                raise ValueError("an array that is not there")
            used.append(index)
            return archive.entries[index]

        described = manifest["optimizer"]
        arrays = {
            name: {
                key: value if key in ("group", "step") else entry(value)
                for key, value in each.items()
            }
            for name, each in described["arrays"].items()
        }
        contents = {
            "optimizer": described
            | {"arrays": arrays, "grad_norm": from_json(described["grad_norm"], [])},
            "params": {name: entry(index) for name, index in manifest["params"].items()},
            "extra": manifest["extra"],
            "extra_arrays": [entry(index) for index in manifest["extra_arrays"]],
        }
        if sorted(used) != list(range(len(archive.entries))):
            raise ValueError("an array that belongs to nothing, or to two things")
    return contents


def _check_fit(path: Path, opt: Optimizer, contents: Mapping[str, Any]) -> None:
    wrong = [*snapshot.problems(opt, contents["optimizer"], Stored)]
    # Once those are the same, the params' names are, too.
    wrong = wrong or [*_param_problems(opt, contents["params"])]
    if wrong:
        raise CheckpointError(f"{path}: does not fit the optimizer: {'; '.join(wrong)}")


def _param_problems(opt: Optimizer, params: Mapping[str, Stored]) -> Iterator[str]:
    if set(params) != set(opt._arrays):
        names = ", ".join(sorted(set(params) ^ set(opt._arrays)))
        yield f"params: not in both: {names}"
        return
    for name, param in opt._arrays.items():
        yield from snapshot.fit(f"params[{name!r}]", param, params[name], Stored)
