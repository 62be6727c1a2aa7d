"""Words that MSVC or Windows does not know stand where they are not read there."""

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "cpp"
if not SOURCES.exists():
    pytest.skip("needs the sources: cpp/ is not beside tests/", allow_module_level=True)

GNU = re.compile(
    r"\[\[gnu::|\[\[clang::|__attribute__|__builtin_|\basm\b|__asm__|__restrict__|\b(__)?typeof|"
    r"__int128|__thread\b|__extension__|__PRETTY_FUNCTION__|# *pragma +(GCC|clang)|_Pragma|"
    r"(?<![\w>\])])\s*\(\{|<(cpuid|x86intrin|cxxabi|bits/|ext/)[^>]*>"
)
POSIX = re.compile(
    r"<(sys/|linux/|pthread|unistd|dlfcn|sched|fcntl|signal|poll|semaphore|strings|dirent)[^>]*>|"
    r"\bpthread_|\bsigset_t\b|\bsig(fillset|emptyset|addset|action|procmask)\(|(?<!:)\bssize_t\b|"
    r"\bm(map|unmap|advise|protect|lock)\(|\bv?fork\(\)|\bsysconf\(|\bget(pid|ppid|uid|pagesize)\(|"
    r"\bposix_\w+\(|\baligned_alloc\(|\bsched_\w+\(|\bdl(open|sym|addr)\(|\b(nano|u)sleep\(|"
    r"\bclock_gettime\(|\bgettimeofday\(|\bsyscall\("
)
# What MSVC defines; all else it does not, but what Python's headers say may be either.
MSVC = {
    "x64": {"_MSC_VER", "_WIN32", "_M_X64", "THALWEG_X86"},
    "arm64": {"_MSC_VER", "_WIN32", "_M_ARM64"},
}


def holds(condition, defined):
    """True, False, or None where it depends on more than the compiler."""
    words = re.sub(rf"__has_include\(({POSIX.pattern})\)", "False", condition)
    words = re.sub(r"\bdefined\b", "", words)
    if re.search(r"\bPy|[<>=]|\b\d", words):
        return None
    words = words.replace("&&", " and ").replace("||", " or ").replace("!", " not ")
    logic = {"and", "or", "not", "False"}
    words = re.sub(r"\w+", lambda m: m[0] if m[0] in logic else str(m[0] in defined), words)
    return eval(words.strip())


def read(text, defined):
    """The lines that a compiler reads that defines these names; comments and strings aside."""
    reads, done, outer = True, False, []
    for number, line in enumerate(text.splitlines(), 1):
        code = re.sub(r"""'"'|"[^"]*"|//.*""", "", line)
        if not (found := re.match(r"\s*#\s*(ifdef|ifndef|if|elif|else|endif)\b(.*)", code)):
            if reads:
                yield number, code
            continue
        word, condition = found[1], found[2].strip()
        if word == "endif":
            reads, done = outer.pop()
            continue
        if word.startswith("if"):
            outer.append((reads, done))
            done = not reads
        if word in ("ifdef", "ifndef"):
            condition = f"{'!' * (word == 'ifndef')}defined({condition})"
        taken = word == "else" or holds(condition, defined)
        reads = not done and taken is not False
        done = done or taken is True


def unguarded(text, words, defined):
    """Lines that are read although they have one of the words."""
    return [
        f"{number}: {line.strip()}" for number, line in read(text, defined) if words.search(line)
    ]


@pytest.mark.parametrize("defined", MSVC.values(), ids=MSVC)
@pytest.mark.parametrize("words", [GNU, POSIX], ids=["gnu", "posix"])
def test_words_of_some_compilers_and_systems_are_asked_for(words, defined):
    files = sorted(SOURCES.rglob("*.[ch]pp"))
    assert files
    found = {file.name: unguarded(file.read_text(), words, defined) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


GUARD = "#ifdef {}\n{}\n#endif"
SEEN = {
    "attribute": (GNU, "[[gnu::noinline]] void f();"),
    "old attribute": (GNU, "__attribute__((noinline)) void f();"),
    "expression": (GNU, "const int x = ({ int y = 1; y; });"),
    "pragma": (GNU, "#pragma GCC unroll 4"),
    "typeof": (GNU, "typeof(1) x;"),
    "for another compiler": (GNU, GUARD.format("_WIN32", "asm volatile(0);")),
    "in the wrong branch": (GNU, "#ifdef _MSC_VER\n#else\n#endif\n__builtin_expect(0, 0);"),
    "header": (POSIX, "#include <sys/mman.h>"),
    "call": (POSIX, "#ifdef X\n#endif\nauto* p = mmap(0);"),
    "for who does not know it": (POSIX, GUARD.format("_MSC_VER", "const auto id = getpid();")),
    "always": (POSIX, "#if 1\nconst auto id = getpid();\n#endif"),
    "for some versions": (POSIX, "#if _MSC_VER < 1950\nusleep(1);\n#endif"),
    "between quotes": (POSIX, """f('"'); usleep(1); f('"');"""),
    "for either": (POSIX, "#if PY_VERSION_HEX >= 1\n#else\nusleep(1);\n#endif"),
}
UNREAD = {
    "asked for": (POSIX, GUARD.format("__linux__", "#include <sys/mman.h>") + "\n// mmap()"),
    "asked not to be": (POSIX, "#ifndef _WIN32\nfork();\n#endif"),
    "in the other branch": (
        GNU,
        "#ifdef _WIN32\n#elif X\nasm(0);\n#else\n__builtin_trap();\n#endif",
    ),
    "nested": (GNU, "#ifdef X\n#ifdef _WIN32\n__int128 x;\n#else\n__int128 x;\n#endif\n#endif"),
    "no expression": (GNU, "f({1, 2}); g<int>({3});"),
}


@pytest.mark.parametrize("case", SEEN)
def test_a_word_that_is_read_is_seen(case):
    words, text = SEEN[case]
    assert unguarded(text, words, MSVC["x64"])


@pytest.mark.parametrize("case", UNREAD)
def test_a_word_that_is_not_read_is_none(case):
    words, text = UNREAD[case]
    assert not unguarded(text, words, MSVC["x64"])
