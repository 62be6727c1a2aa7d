"""Mutants of cpp/kernel, cpp/step and cpp/bind: one place of the source is changed, the core
built at -O1, and the tests run until one fails. A mutant that none of them notices wants a test, or
stands in ``mutants_equivalent.txt`` with the reason why none can.

``python mutate.py FOLDER``, outside of the repository, of an environment with the tests'
requirements, and with torch if it is to reach ``torch_*``. What FOLDER/results.json holds, of one
commit, is not tried again: a run that was ended goes on.
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
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CI = ROOT / ".ci"
ROOMS = ("kernel", "step", "bind")
# A line each: file: before  ->  after  #  reason.
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.txt")

# First, of all mutants, those that notice most in the shortest time, at one level; then, of what is
# left, whole rooms.
FIRST = {
    "kernel": "bits/test_bits.py bits/test_array_norm.py bits/test_overflow.py rows/test_rows.py",
    "step": "bits/test_layouts.py bits/test_whole_step.py bits/test_averages.py rows/test_rows.py",
    "bind": "api/test_core_abuse.py api/test_functional.py api/test_groups.py api/test_views.py",
    "torch": "adapters/test_torch_bits.py adapters/test_torch_routes.py",
}
WHOLE = {
    "kernel": "bits rows api/test_functional_bits.py threads/test_small_stacks.py",
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
NO_MUTANT = ("does not compile", "same machine code")

# What is no code of ours to change: comments, texts, the preprocessor's lines, static_assert.
NO_CODE = re.compile(
    r'//[^\n]*|R"\((?:.|\n)*?\)"|"(?:\\.|[^"\\\n])*"|(?<![\w\'])\'(?:\\.|[^\'\\\n])+\''
    r"|^[ ]*#(?:\\\n|[^\n])*|\bstatic_assert\([^;]*;",
    re.MULTILINE,
)
PAIRS = "< <=", "> >=", "== !=", "+ -", "* /", "&& ||", "+= -=", "*= /="
SWAPS = {f" {a} ": f" {b} " for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
SWAPS |= {"true": "false", "false": "true"}
# With spaces around it, < is no bracket.
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
    paths = [p for p in sorted((ROOT / "cpp" / room).rglob("*.[ch]pp")) if is_tried(p.name)]
    lengths = {path.relative_to(ROOT).as_posix(): path.read_text().count("\n") for path in paths}
    left = {file: mutants_of(file) for file in lengths}
    chosen = random.Random(f"{seed} {room}")
    while files := [file for file in lengths if left[file]]:
        file = chosen.choices(files, [lengths[file] for file in files])[0]
        yield left[file].pop(chosen.randrange(len(left[file])))


def is_tried(name):
    return "torch" not in name or find_spec("torch") is not None


def run(command, seconds, **options):
    """Its exit code and what it printed. So long on the CPU, whatever else the machine does.
    Whatever it started is ended with it."""
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: 12 << 30}

    def begin():
        for limit, most in limits.items():
            resource.setrlimit(limit, (most, resource.getrlimit(limit)[1]))

    options |= {"stdin": subprocess.DEVNULL, "start_new_session": True, "preexec_fn": begin}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        try:
            code = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return code, log.read()


class Tree:
    """A copy of the sources, built after each change. A folder that is there is used again."""

    def __init__(self, folder):
        self.folder, self.build = folder / "tree", folder / "build"
        self.package, self.original = folder / "package", folder / "original"
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
        alone = re.search(r"^by_themselves='(.*)'$", (CI / "common").read_text(), re.MULTILINE)[1]
        options = f"""-DCMAKE_PROJECT_thalweg_INCLUDE={CI / "together.cmake"}
        -DTHALWEG_ALONE={alone} -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1
        -DSKBUILD_PROJECT_VERSION=0 -DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF
        -Dpybind11_DIR={found} -DPython_EXECUTABLE={sys.executable}"""
        cmake = ["cmake", "-S", self.folder, "-B", self.build, "-G", "Ninja", *options.split()]
        subprocess.run(cmake, check=True, stdout=subprocess.DEVNULL)
        if not self.make():
            raise RuntimeError("without a mutant, it does not compile")
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

    def test(self, suite, seconds):
        """None where all pass; else the first failure, or how it ended."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=900"]
        command += [f"--deselect=tests/{name}" for name in LEFT_OUT.split()]
        command += [f"tests/{name}" for name in suite.split()]
        if suite in FIRST.values():
            command += ["-k", "not avx"]
        env = {**os.environ, "PYTHONPATH": str(self.package), "PYTHONDONTWRITEBYTECODE": "1"}
        code, said = run(command, seconds, cwd=self.folder, env=env)
        if code == 0:
            return None
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        crashed = re.search(r'File ".*/(tests/\S+)", line \d+ in test', said)
        return failed[1] if failed else f"{code} in {crashed[1] if crashed else 'some test'}"

    def limit(self, suite):
        """Seconds that the tests may take, once they have passed with the source as it is."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        if failed := self.test(suite, 3600):
            raise RuntimeError(f"without a mutant, {failed} fails")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return round(30 + 3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime))

    def tried(self, mutant, suite, seconds):
        path = self.folder / mutant.file
        path.write_text(mutant.apply(path.read_text()))
        try:
            if not self.make():
                return NO_MUTANT[0]
            if filecmp.cmp(self.core, self.original / self.core.name, shallow=False):
                return NO_MUTANT[1]
            by = self.test(suite, seconds)
            return f"killed by {by}" if by else "survived"
        finally:
            # With their times, so that nothing is built again.
            shutil.copy2(ROOT / mutant.file, path)
            shutil.copytree(self.original, self.build, dirs_exist_ok=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="mutants whose machine code differs")
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    results = chosen.folder / "results.json"
    known = json.loads(results.read_text()) if results.exists() else {}
    trees, mutants, ends = [], {}, Counter()

    def keep(key, value):
        known[key] = value
        results.write_text(json.dumps(known, indent=1) + "\n")

    def try_out(key, mutant, suites):
        suite = suites["torch" if "/torch_" in mutant.file else mutant.file.split("/")[1]]
        trees[:] = trees or [Tree(chosen.folder.absolute())]
        if suite not in known:
            keep(suite, trees[0].limit(suite))
        keep(key, trees[0].tried(mutant, suite, known[suite]))

    for at, room in enumerate(ROOMS):
        wanted = (chosen.count + len(ROOMS) - 1 - at) // len(ROOMS)
        for mutant in in_order(room, chosen.seed):
            if wanted == 0:
                break
            where, before, after = mutant.told()
            key = f"{where}: {before}  ->  {after}"
            if key not in known:
                try_out(key, mutant, FIRST)
            print(f"{key}: {known[key]}", flush=True)
            mutants[key] = mutant
            wanted -= known[key] not in NO_MUTANT
    reasons = dict(line.split("  #  ") for line in EQUIVALENT.read_text().splitlines())
    print("\nThose that are left, with more tests:")
    for key, mutant in mutants.items():
        if known[key] == "survived":
            try_out(key, mutant, WHOLE)
            if known[key] == "survived":
                keep(key, "survived all")
        end = known[key]
        if end == "survived all":
            reason = reasons.get(re.sub(r":\d+:", ":", key, count=1))
            end = f"equivalent: {reason}" if reason else end
            print(f"{key}: {end}", flush=True)
        ends[re.split(" by |:", end)[0]] += 1
    print(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    return 1 if ends["survived all"] else 0


if __name__ == "__main__":
    sys.exit(main())
