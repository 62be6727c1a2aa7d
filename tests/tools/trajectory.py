"""``trajectory.py COMMAND...`` runs a program made of trajectory.cpp, which takes the trajectory of
the selftest, and prints its SHA-256 for each level."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from thalweg._command import selftest


def as_bits(values):
    """Numbers as a program of any system reads them alike."""
    return " ".join(f"{bits:x}" for bits in selftest.np.asarray(values, "f8").view("u8").flat)


def lines():
    """The steps, the number of ways and, for each: kernel, dtype, options, what it starts from,
    centre and slope."""
    bowls = list(selftest.bowls("baseline"))
    yield f"{selftest.STEPS} {len(bowls)}"
    for pair, centre, slope in bowls:
        options = pair.opt.param_groups[0].options()
        chosen = {name: x for name, x in options.items() if isinstance(x, float)}
        yield f"{pair.rule._kernel(options)} {centre.dtype} {len(chosen)}"
        for name, number in chosen.items():
            yield f"{name} {as_bits([number])}"
        yield f"{centre.size} {as_bits(pair.param)} {as_bits(centre)} {as_bits(slope)}"


def main(*command):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "input").write_text("\n".join(lines()))
        status = subprocess.run(command, cwd=folder).returncode
        left = sorted(Path(folder).glob("*.params"))
        for file in left:
            print(f"{file.stem:<10} {hashlib.sha256(file.read_bytes()).hexdigest()}")
    if status or not left:
        print(f"expected every level's params, found {len(left)}; exit code {status}")
    return status or not left


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
