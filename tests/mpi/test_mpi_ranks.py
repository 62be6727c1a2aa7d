"""thalweg.mpi on 1 to 4 ranks: the cases of tools/ranks_*.py, one job for each number of ranks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TOOLS

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install '.[test]'")

SCRIPT = TOOLS / "run_ranks.py"
CASES = [
    name
    for file in sorted(TOOLS.glob("ranks_*.py"))
    for name in re.findall(r"^@case\ndef (\w+)", file.read_text(), re.MULTILINE)
]


@pytest.fixture(scope="module")
def mpiexec():
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not found:
        pytest.skip("no mpiexec: pip install mpich brings one")
    return found


@pytest.fixture(scope="module")
def jobs(mpiexec, tmp_path_factory):
    """What each job has printed, by its number of ranks; the first one saves for the others."""
    folder = tmp_path_factory.mktemp("ranks")
    done = {}

    def run(ranks):
        if ranks not in done:
            paths = [str(TOOLS), str(TOOLS.parent), os.environ.get("PYTHONPATH", "")]
            env = os.environ | {
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "THALWEG_NUM_THREADS": "1",
                "THALWEG_TEST_FOLDER": str(folder),
                "PYTHONWARNINGS": "error",
                # MPICH's ranks wait by looking; there are more of them than cores.
                "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
                "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
            }
            command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", str(SCRIPT)]
            try:
                ended = subprocess.run(
                    command, env=env, capture_output=True, text=True, timeout=300, cwd=folder
                )
                done[ranks] = ended.stdout + ended.stderr
            except subprocess.TimeoutExpired as late:
                done[ranks] = f"{late.stdout}{late.stderr}\nnot done in {late.timeout} s"
        return done[ranks]

    return run


@pytest.mark.parametrize("ranks", [4, 3, 2, 1])
@pytest.mark.parametrize("case", CASES)
def test_ranks(jobs, ranks, case):
    told = jobs(ranks)
    assert f"passed {case}\n" in told, told[-4000:]


def test_without_mpi4py_the_import_says_what_to_install():
    code = "import sys; sys.modules['mpi4py'] = None; import thalweg.mpi"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'thalweg[mpi]'" in ended.stderr


def test_thalweg_alone_imports_no_mpi4py():
    code = "import sys, thalweg; sys.exit('mpi4py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
