"""Mutants of cpp/kernel, cpp/step and cpp/bind: one place of the source is changed, the core
built at -O1, and the tests run until one fails. A mutant that none of them notices wants a test, or
stands below with the reason why none can.

``python mutate.py --results FILE`` of an environment with the tests' requirements, and with torch
if it is to reach ``torch_*``. What FILE holds is not tried again: a run that was ended goes on.
"""

import argparse
import contextlib
import filecmp
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ROOMS = ("kernel", "step", "bind")

# First those that notice most in the shortest time, then whole rooms.
FIRST = {
    "kernel": "bits/test_bits.py bits/test_array_norm.py bits/test_overflow.py rows/test_rows.py",
    "step": "bits/test_layouts.py bits/test_whole_step.py bits/test_averages.py rows/test_rows.py",
    "bind": "api/test_core_abuse.py api/test_functional.py api/test_groups.py api/test_views.py",
    "torch": "adapters/test_torch_bits.py adapters/test_torch_routes.py",
}
WHOLE = {
    "kernel": "bits rows api/test_functional_bits.py",
    "step": "bits rows threads/test_threads.py threads/test_concurrency.py api",
    "bind": "api rows threads/test_failures.py threads/test_concurrency.py bits",
    "torch": "adapters api/test_core_abuse.py",
}
# Long, and about what is not in these rooms.
LEFT_OUT = (
    "adapters/test_sklearn.py adapters/test_thinc.py adapters/test_torch_world.py "
    "api/test_identify.py api/test_presets_recorded.py "
    "api/test_functional.py::test_memory_given_back_and_taken_again"
)

# Mutated lines, as they stand in the file, and why no test can tell them from the source.
EQUIVALENT: dict[tuple[str, str], str] = {}

# What is no code of ours to change: comments, texts, the preprocessor's lines, static_assert.
NO_CODE = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"\((?:.|\n)*?\)"|"(?:\\.|[^"\\\n])*"'
    r"|(?<![\w'])'(?:\\.|[^'\\\n])+'|^[ ]*#(?:\\\n|[^\n])*|\bstatic_assert\([^;]*;",
    re.MULTILINE | re.DOTALL,
)
PAIRS = "< <=", "> >=", "== !=", "+ -", "* /", "&& ||", "+= -=", "*= /="
SWAPS = {f" {a} ": f" {b} " for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
SWAPS |= {"true": "false", "false": "true"}
SWAP = re.compile(r" (?:[<>=!]=|[<>]|[-+*/]=?|&&|\|\|)(?= )|\b(?:true|false)\b")
NUMBER = re.compile(r"(?<![\w.'])(?:0|[1-9]\d*)(?=U?\b(?![.']))")
NEGATION = re.compile(r"!(?=[\w(])")
CONDITION = re.compile(r"\bif \((?=[^;{]*\) (?:return|throw|continue|break|\{))")
# A call, an assignment or a throw that stands alone in its line.
STATEMENT = re.compile(
    r"(?<=[;{}:)\n]\n)[ ]+"
    r"((?:throw [^;\n]*|[\w.>\-\[\]*:]+(?:\(.*\)| [-+*/|&^]?= [^;{\n]*)|\+\+\S+);)$",
    re.MULTILINE,
)


class Mutant(NamedTuple):
    file: str
    begin: int
    end: int
    after: str

    def apply(self, text):
        return text[: self.begin] + self.after + text[self.end :]

    def told(self):
        """Where it is, the line before and the line after."""
        text = (ROOT / self.file).read_text()
        number = text.count("\n", 0, self.begin)
        before, after = (t.split("\n")[number].strip() for t in (text, self.apply(text)))
        return f"{self.file}:{number + 1}", before, after


def mutants_of(file):
    """Every change that we know of in one file."""
    text = (ROOT / file).read_text()
    code = NO_CODE.sub(lambda found: re.sub(r"[^\n]", "\0", found[0]), text)
    changes = []
    for found in SWAP.finditer(code):
        operator = found[0] + " " * found[0].startswith(" ")
        line = code[code.rfind("\n", 0, found.start()) + 1 : found.end()]
        if "template" not in line and "using" not in line:
            changes.append((found.start(), found.start() + len(operator), SWAPS[operator]))
    changes += [(*found.span(), str(int(found[0]) + 1)) for found in NUMBER.finditer(code)]
    changes += [(*found.span(), "") for found in NEGATION.finditer(code)]
    changes += [(*found.span(1), ";") for found in STATEMENT.finditer(code)]
    for found in CONDITION.finditer(code):
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        if " = " not in code[found.end() : end]:
            changes.append((found.end(), end, f"!({text[found.end() : end - 1]}))"))
    return [Mutant(file, *change) for change in sorted(changes)]


def in_order(room, seed):
    """Mutants of a room, each once: files by their length, places in a file alike."""
    files = {}
    for path in sorted((ROOT / "cpp" / room).rglob("*.[ch]pp")):
        if "torch" not in path.name or find_spec("torch"):
            files[path.relative_to(ROOT).as_posix()] = path.read_text().count("\n")
    left = {file: mutants_of(file) for file in files}
    chosen = random.Random(f"{seed} {room}")
    while files := {file: length for file, length in files.items() if left[file]}:
        file = chosen.choices(list(files), list(files.values()))[0]
        yield left[file].pop(chosen.randrange(len(left[file])))


def run(command, seconds, **options):
    """Its exit code, or "timeout", and what it printed. Whatever it started is ended with it."""
    limit = (resource.RLIMIT_AS, (12 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=lambda: resource.setrlimit(*limit), **options,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = "timeout"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return code, log.read()


class Tree:
    """A private copy of the sources, built anew after each change."""

    def __init__(self, folder):
        self.folder, self.build, self.package = (folder / n for n in ("tree", "build", "package"))
        self.original = folder / "original"
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
        if self.original.exists():
            shutil.copytree(self.original, self.build, dirs_exist_ok=True)
        lists = self.folder / "CMakeLists.txt"
        text = lists.read_text().replace("-O3", "-O1")
        # Python's headers are most of what a file of cpp/bind takes.
        text += "target_precompile_headers(_core PRIVATE <pybind11/pybind11.h>)\n"
        lists.write_text(text)
        pybind11 = [sys.executable, "-m", "pybind11", "--cmakedir"]
        found = subprocess.run(pybind11, check=True, capture_output=True, text=True).stdout.strip()
        options = {
            "CMAKE_BUILD_TYPE": "None", "CMAKE_CXX_FLAGS": "-O1", "SKBUILD_PROJECT_VERSION": "0",
            "CMAKE_INTERPROCEDURAL_OPTIMIZATION": "OFF", "pybind11_DIR": found,
            "Python_EXECUTABLE": sys.executable,
        }  # fmt: skip
        defined = [f"-D{name}={value}" for name, value in options.items()]
        cmake = ["cmake", "-S", self.folder, "-B", self.build, "-G", "Ninja", *defined]
        subprocess.run(cmake, check=True, stdout=subprocess.DEVNULL)
        self.make()
        (self.core,) = self.build.glob("_core*.so")
        shutil.rmtree(self.package, ignore_errors=True)
        (self.package / "thalweg").mkdir(parents=True)
        for source in (*(self.folder / "python" / "thalweg").iterdir(), self.core):
            (self.package / "thalweg" / source.name).symlink_to(source)
        unchanging = shutil.ignore_patterns("*.gch")
        shutil.copytree(self.build, self.original, ignore=unchanging, dirs_exist_ok=True)

    def make(self):
        code, said = run(["cmake", "--build", self.build, "-j", "1"], 1200)
        if code != 0 and "error:" not in said and "undefined" not in said:
            raise RuntimeError(said)
        return code == 0

    def test(self, names, seconds):
        """None where all pass; else the first failure, or how it ended."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
        command += [f"--deselect=tests/{name}" for name in LEFT_OUT.split()]
        command += [f"tests/{name}" for name in names.split()]
        if names in FIRST.values():
            command += ["-k", "not avx"]  # at one level
        env = {**os.environ, "PYTHONPATH": str(self.package), "PYTHONDONTWRITEBYTECODE": "1"}
        code, said = run(command, seconds, cwd=self.folder, env=env)
        if code == 0:
            return None
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        last = re.findall(r"tests/\S+\.py", said)
        return failed[1] if failed else f"{code} in {last[-1] if last else 'the beginning'}"

    def limit(self, names):
        """Seconds that the tests may take, once they have passed with the source as it is."""
        begun = time.monotonic()
        if failed := self.test(names, 3600):
            raise RuntimeError(f"without a mutant, {failed} fails")
        return 60 + 4 * (time.monotonic() - begun)

    def tried(self, mutant, suite, seconds):
        path = self.folder / mutant.file
        path.write_text(mutant.apply(path.read_text()))
        try:
            if not self.make():
                return "does not compile"
            if filecmp.cmp(self.core, self.original / self.core.name, shallow=False):
                return "same machine code"
            by = self.test(suite, seconds)
            return f"killed by {by}" if by else "survived"
        finally:
            # With their times, so that nothing is built again.
            shutil.copy2(ROOT / mutant.file, path)
            shutil.copytree(self.original, self.build, dirs_exist_ok=True)


class Session:
    """What is known so far, and kept in a file."""

    def __init__(self, path, folder):
        self.path, self.folder, self.tree = path, folder, None
        self.known = json.loads(path.read_text()) if path.exists() else {}

    def keep(self, key, value):
        self.known[key] = value
        self.path.write_text(json.dumps(self.known, indent=1) + "\n")
        return value

    def outcome(self, key, mutant, suites):
        """Of tests that are named by room, unless it is known."""
        room = "torch" if "/torch_" in mutant.file else mutant.file.split("/")[1]
        suite = suites[room]
        if (known := self.known.get(key)) and not (known == "survived" and suites is WHOLE):
            return known
        self.tree = self.tree or Tree(self.folder)
        if suite not in self.known:
            self.keep(suite, self.tree.limit(suite))
        end = self.tree.tried(mutant, suite, self.known[suite])
        return self.keep(key, "survived all" if end == "survived" and suites is WHOLE else end)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="mutants whose machine code differs")
    parser.add_argument("--results", type=Path, default="mutants.json", help="of one commit")
    parser.add_argument("--tree", type=Path, default="mutants", help="the folder to build in")
    chosen = parser.parse_args()
    session = Session(chosen.results, chosen.tree.absolute())
    mutants, ends = {}, Counter()
    for at, room in enumerate(ROOMS):
        wanted = (chosen.count + len(ROOMS) - 1 - at) // len(ROOMS)
        for mutant in in_order(room, chosen.seed):
            if wanted == 0:
                break
            where, before, after = mutant.told()
            key = f"{where}: {before}  ->  {after}"
            end = session.outcome(key, mutant, FIRST)
            print(f"{key}: {end}", flush=True)
            mutants[key] = mutant
            wanted -= end not in ("does not compile", "same machine code")
    print("\nThose that are left, with more tests:")
    for key, mutant in mutants.items():
        end = session.outcome(key, mutant, WHOLE)
        if end == "survived all":
            reason = EQUIVALENT.get((mutant.file, mutant.told()[2]))
            end = f"equivalent: {reason}" if reason else end
            print(f"{key}: {end}", flush=True)
        ends[re.split(" by |:", end)[0]] += 1
    print(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    return 1 if ends["survived all"] else 0


if __name__ == "__main__":
    sys.exit(main())
