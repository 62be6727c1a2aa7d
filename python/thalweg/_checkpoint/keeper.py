"""The last few checkpoints of a run, in a folder of its own."""

import gc
import operator
import re
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

from thalweg._checkpoint.archive import Archive, CheckpointError, Progress, opened, sound
from thalweg._checkpoint.claim import Claim
from thalweg._checkpoint.file import UNCOUNTED, PathLike, check_one, contents_of, read_into, write
from thalweg._checkpoint.replacing import clear
from thalweg._optimizer import options as option
from thalweg._optimizer.base import Optimizer
from thalweg._optimizer.copies import paused
from thalweg.joint import Joint

NAME = re.compile(r"step-[0-9]{9,18}\.npz")

Age = tuple[int, int]  # which save it was, and after which step


class CheckpointKeeper:
    """The last few checkpoints of a run, in a folder of its own.

    ::

        keeper = tw.CheckpointKeeper("runs/a", keep=3, every=1000)
        extra = keeper.restore(opt)             # None in a first run
        while opt.step_count < 100_000:
            opt.step(gradients())
            keeper.save(opt, extra={...})       # every 1000 steps; else returns at once

    From its first ``save`` on the folder is this keeper's, and another one's ``save``, in whatever
    process of the machine, is refused; until ``close``, or the end of a ``with``, or as long as the
    keeper and its process live.

    Parameters
    ----------
    folder : str or path
        Made if it is not there. Files are called ``step-000001000.npz``.
    keep : int >= 1
        Older ones are deleted after a save.
    every : int >= 1
        Steps between saves.
    progress : as for ``save_checkpoint``

    Attributes
    ----------
    restored : path or None
        What the last ``restore`` has read; None: nothing was there.
    """

    def __init__(
        self, folder: PathLike, keep: int = 3, every: int = 1, *, progress: Progress | None = None
    ) -> None:
        self.folder, self.progress = Path(folder), progress
        self.keep, self.every = _whole("keep", keep), _whole("every", every)
        self.restored: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(
                error.errno, "expected a folder, received a file; name another", str(folder)
            ) from None
        self._forget()

    def _forget(self) -> None:
        self._claim: Claim | None = None
        # Who saves here: the first one that did, and whoever has been restored from here.
        self._owners: weakref.WeakSet[Optimizer | Joint] = weakref.WeakSet()
        self._owner: Callable[[], object] = object  # who did so last: nobody
        self._loaded: list[int] | None = None  # the last load that is known of
        self._last = 0  # the step count at the last save, or at that load
        self._saved = UNCOUNTED

    def save(self, opt: Optimizer | Joint, extra: Any = None, *, force: bool = False) -> bool:
        """Save if a multiple of ``every`` has been reached since the last save, or if forced.

        Returns whether it did. ``extra`` may be a callable without arguments, asked only then.

        Raises BlockingIOError, whether it would save or not, if another keeper saves into the
        folder, and ValueError if this one saves another optimizer that is still there.
        """
        check_one(opt)
        return opt._by_writer(lambda: self._save(opt, extra, force))

    def _save(self, opt: Optimizer | Joint, extra: Any, force: bool) -> bool:
        if not (self._owner() is opt and self._claim and self._claim.is_open):
            self._take(opt)
        count = opt.step_count
        loaded = getattr(opt, "_loaded", None)
        if loaded is not self._loaded:
            self._loaded, self._last = loaded, loaded[0] if loaded else 0
        if count < self._last:  # it went back in another way
            self._last = max(count - 1, 0)
        if not force and count // self.every <= self._last // self.every:
            return False
        if self._claim and not self._claim.holds(self.folder):
            self._claim = None  # the folder is another one now
            self._take(opt)
        made = extra() if callable(extra) else extra
        write(self._path(count), opt, made, self.progress, self._saved + 1)
        self._saved += 1
        self._last = count
        for left in self.folder.glob(".step-*.npz.partial"):
            with suppress(OSError):  # of runs that were killed: this folder is ours
                clear(left)
        # Those that are ahead are of another run, which this one has gone back behind.
        behind = [each for each in self._named() if _step_of(each) <= count]
        for old in behind[: -self.keep]:
            old.unlink(missing_ok=True)
        return True

    def _take(self, opt: Optimizer | Joint) -> None:
        """The folder, and the optimizer as the one that is saved."""
        if not (self._claim and self._claim.is_open):
            # A folder that is not there, or may not be entered, says so when it is written into.
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                self._claim = Claim(self.folder)
            ages = [age for age in self._ages().values() if isinstance(age, tuple)]
            self._saved = max((saved for saved, _ in ages), default=UNCOUNTED)
        check_one(opt)
        if self._owners and opt not in self._owners:
            gc.collect()  # it may be garbage that is not collected yet
        if self._owners and opt not in self._owners:
            raise ValueError(
                "save: this keeper saves another optimizer, which is still there; give each a "
                "keeper and a folder of its own, or restore(opt) or close() first to go on with "
                "this one"
            )
        if opt not in self._owners:
            self._last = 0
        self._owners.add(opt)
        self._owner = weakref.ref(opt)

    def restore(
        self, opt: Optimizer | Joint, *, options: Literal["file", "live"] | None = None
    ) -> Any:
        """Load the newest checkpoint that verifies; returns its ``extra``, or None without one.

        ``restored`` is its path then, or None if there is none. ``options`` says whose options
        hold, as for ``load_checkpoint``. A damaged one is skipped, with a RuntimeWarning; one that
        is sound but does not fit raises. It only reads, whoever saves into the folder.
        """
        option.check_whose(options)
        check_one(opt)
        self.restored = None
        self.restored, extra = opt._by_writer(lambda: self._restore(opt, options), changes=True)
        return extra

    def _restore(self, opt: Optimizer | Joint, options: option.Whose) -> tuple[Path | None, Any]:
        found = self._open_newest(self.progress, stacklevel=6)
        if found is None:
            return None, None
        path, archive, contents = found
        try:
            with paused(opt):
                extra = read_into(opt, archive, path, contents, options, stacklevel=5)
        finally:
            archive.close()
        self._owners.add(opt)
        return path, extra

    def latest(self) -> Path | None:
        """The newest checkpoint that verifies. A damaged one is reported in a RuntimeWarning."""
        found = self._open_newest()
        if found is None:
            return None
        found[1].close()
        return found[0]

    def paths(self) -> list[Path]:
        """The checkpoints that are there, the oldest first.

        Each save in the folder has a number, one above all before it: who goes back some steps and
        saves again has made a newer one. By step where that says nothing: files of thalweg's first
        format have no number.
        """
        ages = self._ages()
        return sorted(ages, key=lambda path: _rank(path, ages[path]))

    def close(self) -> None:
        """Let others save into the folder. A later ``save`` takes it again, if it can."""
        if self._claim:
            self._claim.close()
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("folder", "keep", "every", "progress", "restored")
        return {name: value for name, value in vars(self).items() if name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _path(self, count: int) -> Path:
        return self.folder / f"step-{count:09}.npz"

    def _named(self) -> list[Path]:
        named = self.folder.glob("step-*.npz")
        return sorted((path for path in named if NAME.fullmatch(path.name)), key=_step_of)

    def _ages(self) -> dict[Path, Age | Exception]:
        """What each manifest says, or what is wrong with it."""
        found: dict[Path, Age | Exception] = {}
        for path in self._named():
            try:
                with opened(path) as archive:
                    found[path] = contents_of(archive, path)["saved"], _step_of(path)
            except FileNotFoundError:
                continue  # whoever saves here has deleted it
            except (CheckpointError, OSError) as error:
                found[path] = error
        return found

    def _open_newest(
        self, progress: Progress | None = None, stacklevel: int = 3
    ) -> tuple[Path, Archive, dict[str, Any]] | None:
        """The newest one that verifies; whoever asks closes it."""
        while True:
            ages, gone = self._ages(), False
            ranked = sorted(ages, key=lambda path: _rank(path, ages[path]), reverse=True)
            # Those of unknown age first: they may be newer, and are reported.
            for path in sorted(ranked, key=lambda path: not isinstance(ages[path], Exception)):
                age = ages[path]
                archive = None
                try:
                    if isinstance(age, Exception):
                        raise age
                    with sound(path):
                        archive = Archive(path)
                    contents = contents_of(archive, path)
                    archive.verify(path, progress)
                except BaseException as error:
                    if archive:
                        archive.close()
                    gone = gone or isinstance(error, FileNotFoundError)
                    if isinstance(error, (CheckpointError, IsADirectoryError)):
                        warnings.warn(f"skipped: {error}", RuntimeWarning, stacklevel=stacklevel)
                    elif not isinstance(error, FileNotFoundError):
                        raise
                else:
                    return path, archive, contents
            if not gone:  # else by who saves here, and has newer ones
                return None


def _whole(name: str, value: Any) -> int:
    with suppress(TypeError):
        whole = operator.index(value)
        if whole >= 1 and not isinstance(value, bool):
            return whole
    raise ValueError(f"{name}: expected a whole number >= 1, received {value!r}")


def _rank(path: Path, age: Age | Exception) -> Age:
    return (-1, _step_of(path)) if isinstance(age, Exception) else age


def _step_of(path: Path) -> int:
    return int(path.stem[5:])
