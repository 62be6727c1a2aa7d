"""The NumPy twin of every rule, which is installed with the package: what the bits must be."""

from thalweg._reference import *  # noqa: F403
