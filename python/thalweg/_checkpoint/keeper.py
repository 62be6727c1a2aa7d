"""The last few checkpoints of a run, in a folder of its own."""

import re
import warnings
from pathlib import Path
from typing import Any

from thalweg._checkpoint.archive import CheckpointError, Progress, opened
from thalweg._checkpoint.file import PathLike, contents_of, load_checkpoint, save_checkpoint
from thalweg._optimizer.base import Optimizer

NAME = re.compile(r"step-[0-9]{9,18}\.npz")


class CheckpointKeeper:
    """The last few checkpoints of a run, in a folder of its own.

    ::

        keeper = tw.CheckpointKeeper("runs/a", keep=3, every=1000)
        extra = keeper.restore(opt)             # None in a first run
        while opt.step_count < 100_000:
            opt.step(gradients())
            keeper.save(opt, extra={...})       # every 1000 steps; else returns at once

    Parameters
    ----------
    folder : str or path
        Made if it is not there. Files are called ``step-000001000.npz``.
    keep : int >= 1
        Older ones are deleted after a save.
    every : int >= 1
        Steps between saves.
    progress : as for ``save_checkpoint``
    """

    def __init__(
        self, folder: PathLike, keep: int = 3, every: int = 1, *, progress: Progress | None = None
    ) -> None:
        for name, value in (("keep", keep), ("every", every)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, received {value!r}")
        self.folder, self.keep, self.every, self.progress = Path(folder), keep, every, progress
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(
                error.errno, "expected a folder, received a file; name another", str(folder)
            ) from None

    def save(self, opt: Optimizer, extra: Any = None, *, force: bool = False) -> bool:
        """Save if the optimizer's step count is a multiple of ``every``, or if forced.

        Returns whether it did. ``extra`` may be a callable without arguments, asked only then.
        """
        if not force and (opt.step_count == 0 or opt.step_count % self.every):
            return False
        made = extra() if callable(extra) else extra
        path = self.folder / f"step-{opt.step_count:09}.npz"
        save_checkpoint(path, opt, made, progress=self.progress)
        # Those that are ahead are of another run, which this one has gone back behind.
        behind = [each for each in self.paths() if _step_of(each) <= opt.step_count]
        for old in behind[: -self.keep]:
            old.unlink(missing_ok=True)
        return True

    def restore(self, opt: Optimizer) -> Any:
        """Load the newest checkpoint that verifies; returns its ``extra``, or None without one.

        A damaged one is skipped, with a RuntimeWarning; one that is sound but does not fit raises.
        """
        path = self.latest()
        return None if path is None else load_checkpoint(path, opt, progress=self.progress)

    def latest(self) -> Path | None:
        """The newest checkpoint that verifies. A damaged one is reported in a RuntimeWarning."""
        # By time: who goes back some steps and saves again has left those ahead behind.
        for path in sorted(self.paths(), key=lambda path: path.lstat().st_mtime_ns, reverse=True):
            try:
                with opened(path) as archive:
                    contents_of(archive, path)
                    archive.verify(path)
            except (CheckpointError, FileNotFoundError, IsADirectoryError) as error:
                warnings.warn(f"skipped: {error}", RuntimeWarning, stacklevel=2)
            else:
                return path
        return None

    def paths(self) -> list[Path]:
        """The checkpoints that are there, the oldest first."""
        named = self.folder.glob("step-*.npz")
        return sorted((path for path in named if NAME.fullmatch(path.name)), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.stem[5:])
