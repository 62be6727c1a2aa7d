"""thalweg.mpi on 1 to 4 ranks: the cases of tools/ranks_*.py, one job for each number of ranks."""

import re
import subprocess
import sys

import pytest

from conftest import TOOLS
from launching import environment, find_mpiexec

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install '.[test]'")

SCRIPT = TOOLS / "run_ranks.py"
CASES = [
    name
    for file in sorted(TOOLS.glob("ranks_*.py"))
    for name in re.findall(r"^@case\ndef (\w+)", file.read_text(), re.MULTILINE)
]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """What each job has printed, by its number of ranks; the first one saves for the others."""
    folder = tmp_path_factory.mktemp("ranks")
    done = {}

    def run(ranks):
        if ranks not in done:
            mpiexec = find_mpiexec()
            command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", str(SCRIPT)]
            try:
                ended = subprocess.run(
                    command,
                    env=environment(THALWEG_TEST_FOLDER=str(folder)),
                    capture_output=True,
                    text=True,
                    timeout=300,
                    cwd=folder,
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
