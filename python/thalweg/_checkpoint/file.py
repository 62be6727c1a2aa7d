"""Checkpoints: params, state, options and counters in one file, whole or not at all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

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
from thalweg._optimizer import matching, snapshot, whole
from thalweg._optimizer import options as option
from thalweg._optimizer.base import Optimizer
from thalweg._optimizer.copies import paused
from thalweg.joint import Joint

FORMAT = "thalweg checkpoint"
VERSION = 2
READABLE = (1, 2)
UNCOUNTED = 0  # saved by nobody who counts saves

PathLike = str | os.PathLike[str]


def save_checkpoint(
    path: PathLike, opt: Optimizer | Joint, extra: Any = None, *, progress: Progress | None = None
) -> None:
    """Write an optimizer's params, state, options and counters, and ``extra``, into one file.

    The file appears whole and durable, or the one before stays: whatever happens, a crash of the
    machine included. It is an uncompressed .npz, written array by array without a copy in memory;
    docs/checkpoint.md has its format. Steps in other threads wait meanwhile.

    Parameters
    ----------
    path : str or path
        Its folder must exist. Where it is a link, the file behind it is replaced. The new file has
        the mode of the one that it replaces.
    opt : SGD, Adagrad or Joint
    extra : None, bool, int, float, str, bytes, np.datetime64, array, random generator of NumPy; \
and lists, tuples and dicts of them
        Given back by ``load_checkpoint``; for example ``rng``, ``random.getstate()``, the epoch,
        losses. Keys are str, int, float, bytes or tuples of them. NumPy's numbers come back as
        Python's, subclasses as what they are subclasses of.
    progress : callable, (bytes done, bytes in all) -> anything
        Called after every few MiB.

    Raises
    ------
    TypeError
        ``extra`` holds what cannot be stored, named by its place.
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
    write(path, opt, extra, progress, UNCOUNTED)


def write(
    path: PathLike, opt: Optimizer | Joint, extra: Any, progress: Progress | None, saved: int
) -> None:
    """``saved``: which save of its folder this is, from 1 on."""
    check_one(opt)
    opt._by_writer(lambda: _write(path, opt, extra, progress, saved))


def _write(
    path: PathLike, opt: Optimizer | Joint, extra: Any, progress: Progress | None, saved: int
) -> None:
    found: list[np.ndarray] = []
    stored_extra = to_json(extra, "extra", found)
    with paused(opt):
        whole.check_whole(opt)
        described = whole.describe(opt)
        described = whole.with_norms(described, lambda norm: to_json(norm, "grad_norm", []))
        params = {name: np.asarray(param) for name, param in whole.params(opt).items()}
        states: list[np.ndarray] = []
        whole.mapped(described, states.append)
        total = sum(array.nbytes for array in (*params.values(), *states, *found))
        with (
            replacing(Path(path)) as file,
            Writer(file, progress, total) as out,
        ):
            names = (f"state{i}" for i in range(len(states)))
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "saved": saved,
                "params": {
                    name: out.add(f"param{i}", array)
                    for i, (name, array) in enumerate(params.items())
                },
                "optimizer": whole.mapped(
                    described, lambda array: out.add(next(names), np.asarray(array))
                ),
                "extra": stored_extra,
                "extra_arrays": [out.add(f"extra{i}", array) for i, array in enumerate(found)],
            }
            out.close(manifest)


def load_checkpoint(
    path: PathLike,
    opt: Optimizer | Joint,
    *,
    options: Literal["file", "live"] | None = None,
    strict: bool = True,
    rename: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Any:
    """Put back what ``save_checkpoint`` wrote, into the live arrays; returns ``extra``.

    All of the file is verified, and compared with the optimizer by name, shape and dtype, before
    the first byte changes. The rule, form, nesterov, dampening, eps, eps_placement and accumulator
    must be the optimizer's; whose the other options are says ``options``. A callable that is no
    schedule of ``thalweg.schedules`` is in no file and stays as it is.

    Parameters
    ----------
    path : str or path
    opt : SGD, Adagrad or Joint
        Made as the one that was saved.
    options : "file", "live" or None
        Numbers, schedules and limits of the file hold, as if the run had not been left, or those
        that the optimizer has now stay, as for a run that is prolonged. None: those of the file,
        and a UserWarning first, where they differ.
    strict : bool
        False: what fits by name, shape and rule is loaded, the rest and the options stay, and the
        result is ``(extra, report)``: a ``thalweg.LoadReport`` of which is which.
    rename : dict or None
        From names of arrays in the file to names here; a name stands for all that is below it, too:
        ``{"": "0"}`` turns a tree into the first group, ``{"": "emb"}`` into that optimizer's.
    progress : callable, (bytes done, bytes in all) -> anything
        Called after every few MiB.

    Raises
    ------
    CheckpointError
        The file is damaged, is none, is newer, or does not fit; all that does not fit is listed.
        Nothing has changed.
    OSError
        The file cannot be read. Should that, or a change of the file, happen once arrays change,
        the optimizer refuses steps until a load succeeds.

    Example
    -------
    >>> import numpy as np, tempfile, thalweg as tw
    >>> opt = tw.SGD(np.ones(3), lr=tw.schedules.Cosine(0.1, steps=10))
    >>> longer = tw.SGD(np.ones(3), lr=tw.schedules.Cosine(0.1, steps=20))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tw.save_checkpoint(f"{folder}/a.npz", opt)
    ...     tw.load_checkpoint(f"{folder}/a.npz", longer, options="live")
    >>> longer.lr
    Cosine(lr=0.1, steps=20, end=0.0)
    """
    option.check_whose(options)
    matching.check_words(strict, options, rename)
    check_one(opt)
    return opt._by_writer(
        lambda: _load(path, opt, options, bool(strict), rename, progress), changes=True
    )


def _load(
    path: PathLike,
    opt: Optimizer | Joint,
    options: option.Whose,
    strict: bool,
    rename: Mapping[str, str] | None,
    progress: Progress | None,
) -> Any:
    path = _cleared(path)
    with opened(path) as archive:
        contents = contents_of(archive, path)
        with paused(opt):
            if rename:
                contents = _renamed(path, contents, rename)
            if not strict:
                archive.verify(path, progress)
                return _match_into(opt, archive, path, contents)
            _check_fit(path, opt, contents)
            archive.verify(path, progress)
            return read_into(opt, archive, path, contents, options, stacklevel=5)


def _renamed(path: Path, contents: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    _check_form(path, contents)
    try:
        names = matching.new_names([*contents["params"]], rename)
        return {
            **contents,
            "optimizer": matching.renamed(contents["optimizer"], rename),
            "params": {names[name]: param for name, param in contents["params"].items()},
        }
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _match_into(
    opt: Optimizer | Joint, archive: Archive, path: Path, contents: Mapping[str, Any]
) -> tuple[Any, matching.LoadReport]:
    _check_form(path, contents)
    extra = _extra(archive, path, contents)
    match = matching.Match(opt, contents["optimizer"], Stored, contents["params"])
    copy = _copier(opt, archive, path)
    why, fresh = f"a load of {path}", match.report.params_only
    whole.restore(opt, match.found, match.choice, why, copy, match.pairs, fresh)
    return extra, match.report


def _extra(archive: Archive, path: Path, contents: Mapping[str, Any]) -> Any:
    with sound(path):
        return from_json(contents["extra"], [*map(archive.array, contents["extra_arrays"])])


def _copier(opt: Optimizer | Joint, archive: Archive, path: Path) -> whole.Copy:
    def copy(live: Any, stored: Stored) -> None:
        with sound(path):
            if isinstance(live, np.ndarray):
                archive.copy(live, stored)
            else:  # other processes hold some of it
                opt._copy(live, archive.array(stored))

    return copy


def read_into(
    opt: Optimizer | Joint,
    archive: Archive,
    path: Path,
    contents: Mapping[str, Any],
    options: option.Whose,
    stacklevel: int,
) -> Any:
    """Load what is verified into an optimizer that is paused; returns ``extra``."""
    described = contents["optimizer"]
    _check_fit(path, opt, contents)
    extra = _extra(archive, path, contents)
    try:
        choice = whole.Choice(opt, described, options)
        choice.warn(str(path), stacklevel + 1)
        _check_fit(path, opt, contents)  # again: who hears warnings may be the caller's code
        pairs = [
            (np.asarray(param), contents["params"][name])
            for name, param in whole.params(opt).items()
        ]
        copy = _copier(opt, archive, path)
        whole.restore(opt, described, choice, f"a load of {path}", copy, pairs)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: does not fit the optimizer: {error}") from None
    return extra


def read_checkpoint(path: PathLike, *, progress: Progress | None = None) -> dict[str, Any]:
    """Verify a checkpoint and return its contents, without an optimizer.

    The result has ``params`` and, by the same names, ``state`` (the accumulator or velocity, and
    the step), ``groups`` (options), ``limits``, ``rule``, ``step_count``, ``version`` and
    ``extra``. Of a Joint the ``rule`` is "Joint", and ``optimizers`` has ``rule``, ``step_count``,
    ``groups``, ``limits`` and ``state`` of each.

    Raises CheckpointError for a file that is damaged, newer, or none; OSError if it cannot be read.
    """
    path = _cleared(path)
    with opened(path) as archive:
        contents = contents_of(archive, path)
        archive.verify(path, progress)
        with sound(path):
            described = whole.mapped(contents["optimizer"], archive.array)
            is_joint = "optimizers" in described
            made = {name: _told(each) for name, each in whole.parts(described).items()}
            params = {name: archive.array(a) for name, a in contents["params"].items()}
        told = {"optimizers": made, "limits": described["limits"]} if is_joint else made[""]
        return {
            "version": contents["version"],
            "rule": described["rule"],
            **told,
            "params": params,
            "extra": _extra(archive, path, contents),
        }


def _told(described: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("rule", "step_count", "groups", "limits")
    return {name: described[name] for name in kept} | {
        "state": {
            name: {key: value for key, value in each.items() if key != "group"}
            for name, each in described["arrays"].items()
        }
    }


def check_one(opt: Any) -> None:
    if not isinstance(opt, (Optimizer, Joint)):
        cure = (
            "; each has a file of its own, or a Joint of them goes into one: tw.Joint(a=..., b=...)"
            if isinstance(opt, (list, tuple, Mapping))
            else ""
        )
        raise TypeError(f"opt: expected an optimizer, received {type(opt).__name__}{cure}")


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
    if type(version) is not int or version not in READABLE:
        newer = type(version) is int and version > VERSION
        cure = "; it is newer: update thalweg" if newer else ""
        readable = " or ".join(map(str, READABLE))
        raise CheckpointError(
            f"{path}: expected version {readable} of the format, received {version!r}{cure}"
        )
    with sound(path):
        used: list[int] = []

        def entry(index: Any) -> Stored:
            if type(index) is not int or not 0 <= index < len(archive.entries):
                raise ValueError("an array that is not there")
            used.append(index)
            return archive.entries[index]

        saved = manifest["saved"] if version > 1 else UNCOUNTED
        if type(saved) is not int or saved < 0:
            raise ValueError("the number of a save that is none")
        described = whole.mapped(manifest["optimizer"], entry)
        contents = {
            "version": version,
            "saved": saved,
            "optimizer": whole.with_norms(described, lambda norm: from_json(norm, [])),
            "params": {name: entry(index) for name, index in manifest["params"].items()},
            "extra": manifest["extra"],
            "extra_arrays": [entry(index) for index in manifest["extra_arrays"]],
        }
        if sorted(used) != list(range(len(archive.entries))):
            raise ValueError("an array that belongs to nothing, or to two things")
    return contents


def _check_form(path: Path, contents: Mapping[str, Any]) -> None:
    wrong = [*whole.form_problems(contents["optimizer"])]
    if not wrong and set(contents["params"]) != {*matching.flattened(contents["optimizer"])}:
        wrong = ["params and arrays of state have other names"]
    if wrong:
        raise CheckpointError(f"{path}: is no checkpoint: {'; '.join(wrong)}")


def _check_fit(path: Path, opt: Optimizer | Joint, contents: Mapping[str, Any]) -> None:
    wrong = [*whole.problems(opt, contents["optimizer"], Stored)]
    # Once those are the same, the params' names are, too.
    wrong = wrong or [*_param_problems(opt, contents["params"])]
    if wrong:
        raise CheckpointError(f"{path}: does not fit the optimizer: {'; '.join(wrong)}")


def _param_problems(opt: Optimizer | Joint, params: Mapping[str, Stored]) -> Iterator[str]:
    live = whole.params(opt)
    if set(params) != set(live):
        names = ", ".join(sorted(set(params) ^ set(live)))
        yield f"params: not in both: {names}"
        return
    for name, param in live.items():
        yield from snapshot.fit(f"params[{name!r}]", param, params[name], Stored)
