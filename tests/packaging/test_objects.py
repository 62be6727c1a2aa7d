"""What is in the objects: no fused multiply-add, full vectors, nothing for the linker to mix up."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEVELS = ("baseline", "avx2", "avx512")
VECTOR = {"baseline": "xmm", "avx2": "ymm", "avx512": "zmm"}

# What a compiler may call by itself; std::sqrt in this list would mean scalar roots.
MAY_CALL = {"memcpy", "memmove", "memset", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}

FUSED = re.compile(r"vfn?m(add|sub)|fn?m(add|sub)$|fml[as]")
APPROXIMATE = re.compile(r"v?r(sqrt|cp)(14|28)?[ps][sd]|fr(sqrt|ecp)e")

# Each line is one way to break what the linker relies on.
LEAKY = """
#include <string>
inline float shared(float x) { return x * 2; }
float (*address)(float) = &shared;
std::string text = std::string(address(1) > 0 ? 100 : 200, 'x');
"""


def tool(name):
    """The path of a program, this Python's environment first; skips where there is none."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if not found:
        pytest.skip(f"needs {name}, which is not on the path")
    return found


def run(*command, cwd=None, env=None):
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}{result.stderr}"
    return result.stdout


CROSS = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
COMPILERS = {"c++": [], "clang++": [], "aarch64-linux-gnu-g++": CROSS}
AARCH64 = 183  # in the head of an ELF file


def configure(build, compiler, *options):
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("needs the sources: CMakeLists.txt is not beside tests/")
    run(
        tool("cmake"),
        *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        f"-DCMAKE_CXX_COMPILER={tool(compiler)}",
        *("-DSKBUILD_PROJECT_VERSION=0", "-DCMAKE_BUILD_TYPE=Release", *COMPILERS[compiler]),
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        *options,
    )
    return json.loads((build / "compile_commands.json").read_text())


class Build:
    """The kernel objects of one compiler, by level."""

    def __init__(self, folder, compiler):
        self.commands = {}
        for entry in configure(folder, compiler, "-DTHALWEG_KERNELS_ONLY=ON"):
            level = re.search(r"-DTHALWEG_LEVEL=(\w+)", entry["command"])[1]
            self.commands[level] = entry
        run(tool("cmake"), "--build", str(folder))
        self.objects = {
            level: next(folder.rglob(f"kernels_{level}.dir/**/*.o")) for level in self.commands
        }

    def recompile(self, level, target, *, source=None, swap=()):
        """Compile once more, with another source or with one flag swapped for another."""
        words = shlex.split(self.commands[level]["command"])
        words[words.index("-o") + 1] = str(target)
        if source:
            words[words.index("-c") + 1] = str(source)
        if swap:
            words[words.index(swap[0])] = swap[1]
        run(*words, cwd=self.commands[level]["directory"])
        return target


@pytest.fixture(scope="session", params=COMPILERS)
def build(request, tmp_path_factory):
    if not sys.platform.startswith("linux"):
        pytest.skip("reads ELF objects, which this platform does not have")
    for reader in ("nm", "objdump"):
        tool(reader)
    return Build(tmp_path_factory.mktemp("objects"), request.param)


@pytest.fixture(params=LEVELS)
def level(request, build):
    if request.param not in build.objects:
        pytest.skip(f"this platform has no level {request.param}")
    return request.param


def read_symbols(path):
    """nm's letter -> names."""
    found = {}
    for line in run(tool("nm"), "-P", str(path)).splitlines():
        name, letter, *_ = line.split()
        found.setdefault(letter, set()).add(name)
    return found


def outside(path, level):
    """Defined symbols that a linker merges or exports and that are not in the level's namespace."""
    namespace = re.compile(rf"_Z[A-Z]*NK?7thalweg{len(level)}{level}")
    shared = {
        x for letter, names in read_symbols(path).items() if letter in "WVuTDBRC" for x in names
    }
    return {name for name in shared if not namespace.match(name)}


def undefined(path):
    return read_symbols(path).get("U", set()) - MAY_CALL


def initialisers(path):
    """Sections and functions that run when the library is loaded."""
    sections = re.findall(r"\.(?:init_array|ctors)\S*", run(tool("objdump"), "-h", str(path)))
    names = {x for names in read_symbols(path).values() for x in names}
    return {*sections, *(x for x in names if x.startswith(("_GLOBAL__", "__cxx_global_var_init")))}


def is_for(machine, path):
    return path.read_bytes()[18] == machine


def functions(path):
    """Demangled name -> [(mnemonic, operands)]."""
    body, found = [], {}
    native = not is_for(AARCH64, path) or platform.machine() == "aarch64"
    objdump = tool("objdump" if native else "aarch64-linux-gnu-objdump")
    for line in run(objdump, "-d", "-C", "--no-show-raw-insn", str(path)).splitlines():
        if head := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            body = found.setdefault(head[1], [])
        elif instruction := re.match(r"\s+[0-9a-f]+:\s+(\S+)\s*(.*)", line):
            body.append(instruction.groups())
    return found


def mnemonics(path, pattern):
    """How often each instruction that matches is there."""
    return Counter(
        name for body in functions(path).values() for name, _ in body if pattern.match(name)
    )


def test_all_levels_of_the_platform_are_built(build):
    is_aarch64 = is_for(AARCH64, build.objects["baseline"])
    assert set(build.objects) == set(LEVELS[:1] if is_aarch64 else LEVELS)


def test_no_shared_symbol_leaves_the_namespace_of_its_level(build, level):
    assert read_symbols(build.objects[level])["W"]
    assert outside(build.objects[level], level) == set()


def test_kernels_need_next_to_nothing(build, level):
    assert undefined(build.objects[level]) == set()


def test_no_code_runs_at_load(build, level):
    assert initialisers(build.objects[level]) == set()


def test_symbol_checks_notice_a_leak(build, tmp_path):
    source = tmp_path / "leaky.cpp"
    source.write_text(LEAKY)
    leaky = build.recompile("baseline", tmp_path / "leaky.o", source=source)
    assert "_Z6sharedf" in outside(leaky, "baseline")
    assert undefined(leaky)
    assert initialisers(leaky)


def test_no_fused_multiply_add_and_no_approximation(build, level):
    assert mnemonics(build.objects[level], FUSED) == {}
    assert mnemonics(build.objects[level], APPROXIMATE) == {}


def test_instruction_check_notices_contraction(build, tmp_path):
    # The baseline of x86-64 has no fused multiply-add.
    level = "baseline" if is_for(AARCH64, build.objects["baseline"]) else "avx2"
    swap = ("-ffp-contract=off", "-ffp-contract=fast")
    contracted = build.recompile(level, tmp_path / "contracted.o", swap=swap)
    assert mnemonics(contracted, FUSED).total() > 10


def packed(body, operation, suffix, register):
    """Whether the operation is there on whole vectors."""
    return any(
        re.fullmatch(rf"v?{operation}{suffix}", name) and register in operands
        for name, operands in body
    )


def packed_in_neon(body, operation, suffix):
    # A minimum that gives NaN way as std::min does is a comparison and a choice there.
    name = "fcmg[te]" if operation == "min" else f"f{operation}"
    return packed(body, name, "", {"ps": ".4s", "pd": ".2d"}[suffix])


def test_every_rule_uses_full_vectors(build, level):
    is_aarch64 = is_for(AARCH64, build.objects[level])
    listed = re.findall(
        r"^ +X\((\w+), \w+\)", (ROOT / "cpp/kernel/contract.hpp").read_text(), re.MULTILINE
    )
    bodies = functions(build.objects[level])
    starts = f"thalweg::{level}::loop<", f"thalweg::{level}::row_loop<"
    loops = {name: body for name, body in bodies.items() if any(x in name for x in starts)}
    assert len(loops) == 2 * len(listed) > 0
    for name, body in loops.items():
        suffix = "ps" if "<float" in name else "pd"
        operations = ["mul", "sqrt", "div"] if "Adagrad" in name else ["mul"]
        if "AdagradRow" in name:
            operations.remove("sqrt")  # one for the row
        if "Limit" in name:
            operations = ["min"]
        for operation in operations:
            whole = (
                packed_in_neon(body, operation, suffix)
                if is_aarch64
                else packed(body, operation, suffix, VECTOR[level])
            )
            assert whole, f"{operation} in {name}"


@pytest.mark.parametrize(
    "function", ["element_rows<", "whole_rows<|update_rows<.*AdagradRow", "load"]
)
def test_rows_are_prefetched(build, function):
    """GCC drops the calls of a function that only prefetches, unless it is inlined early."""
    for path in build.objects.values():
        bodies = [body for name, body in functions(path).items() if re.search(function, name)]
        prefetches = [any(re.match("prefetch|prfm", line[0]) for line in body) for body in bodies]
        assert any(prefetches)


def test_vector_check_notices_scalar_roots(build, tmp_path):
    if is_for(AARCH64, build.objects["baseline"]):
        pytest.skip("the level avx2 is x86-64's")
    swap = ("-fno-math-errno", "-fmath-errno")
    scalar = build.recompile("avx2", tmp_path / "scalar.o", swap=swap)
    assert not any(packed(body, "sqrt", "p[sd]", "") for body in functions(scalar).values())
    assert undefined(scalar) == {"sqrt", "sqrtf"}


@pytest.mark.parametrize("compiler", ["c++", "clang++"])
def test_float_flags_reach_every_translation_unit(compiler, tmp_path):
    pybind11 = pytest.importorskip("pybind11", reason="needs pybind11 to configure the module")
    commands = configure(
        tmp_path,
        compiler,
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    sources = Counter(Path(entry["file"]).relative_to(ROOT).as_posix() for entry in commands)
    assert set(sources) == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "cpp").rglob("*.cpp")
    }
    for entry in commands:
        words = shlex.split(entry["command"])
        contraction = [word for word in words if word.startswith("-ffp-contract")]
        assert contraction[-1:] == ["-ffp-contract=off"], entry["file"]
    # The whole of it, because at link time these flags change the mode of the process.
    build_file = (tmp_path / "build.ninja").read_text()
    assert re.findall(r"-ffast-math|-Ofast|-funsafe-math\S*|-fassociative-math", build_file) == []


# Flushing results and flushing operands are two modes.
SUBNORMALS = """
import ctypes, sys
import numpy as np

def kept():
    small = [(np.float32, -126, -149), (np.float64, -1022, -1074)]
    results = [np.array([2.0**low], dtype) / dtype(2) for dtype, low, _ in small]
    operands = [np.array([2.0**least], dtype) * dtype(2.0**90) for dtype, _, least in small]
    return all(x[0] != 0 for x in results + operands)

before = kept()
if len(sys.argv) > 1:
    ctypes.CDLL(sys.argv[1]).flush()
else:
    import thalweg
    for dtype in (np.float32, np.float64):
        thalweg.adagrad_(np.ones(99, dtype), np.ones(99, dtype), np.zeros(99, dtype), lr=0.1)
print(before, kept())
"""

FLUSH = """
#include <xmmintrin.h>
extern "C" void flush() { _mm_setcsr(_mm_getcsr() | MODE); }
"""


def test_import_leaves_subnormals_alone():
    assert run(sys.executable, "-c", SUBNORMALS) == "True True\n"


@pytest.mark.parametrize("mode", ["0x8000", "0x0040"], ids=["results", "operands"])
def test_subnormal_check_notices_flushing(mode, tmp_path):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("sets the mode in the way of x86-64")
    source, library = tmp_path / "flush.cpp", tmp_path / "flush.so"
    source.write_text(FLUSH)
    run(tool("c++"), f"-DMODE={mode}", "-shared", "-fPIC", str(source), "-o", str(library))
    assert run(sys.executable, "-W", "ignore", "-c", SUBNORMALS, str(library)) == "True False\n"
