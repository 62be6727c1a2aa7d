"""Checkpoints: one file, whole or not at all, and a folder of them."""

from thalweg._checkpoint.archive import CheckpointError
from thalweg._checkpoint.file import load_checkpoint, read_checkpoint, save_checkpoint
from thalweg._checkpoint.keeper import CheckpointKeeper

__all__ = [
    "CheckpointError",
    "CheckpointKeeper",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
]
