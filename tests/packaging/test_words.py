"""Words that only some compilers or systems know stand inside an #if that asks for them."""

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "cpp"
if not SOURCES.exists():
    pytest.skip("needs the sources: cpp/ is not beside tests/", allow_module_level=True)

GNU = re.compile(r"\[\[gnu::|__attribute__|__builtin_|\basm\b|__asm__|__restrict__|__typeof__")
POSIX = re.compile(
    r"<(sys/|pthread|unistd|dlfcn|sched|fcntl|signal)[^>]*>|\bpthread_|\bsigset_t\b|\bmmap\(|"
    r"\bmunmap\(|\bmadvise\(|\bmprotect\(|\bfork\(\)|\bsysconf\(|\bgetpid\(|\bposix_memalign\(|"
    r"\baligned_alloc\(|\bsched_yield\("
)


def unguarded(text, words):
    """Lines outside every #if that have one of the words; comments and strings aside."""
    depth, found = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        code = re.sub(r'"[^"]*"|//.*', "", line)
        if re.match(r"\s*#\s*if", code):
            depth += 1
        elif re.match(r"\s*#\s*endif", code):
            depth -= 1
        elif depth == 0 and words.search(code):
            found.append(f"{number}: {line.strip()}")
    return found


@pytest.mark.parametrize("words", [GNU, POSIX], ids=["gnu", "posix"])
def test_words_of_some_compilers_and_systems_are_asked_for(words):
    files = sorted(SOURCES.rglob("*.[ch]pp"))
    assert files
    found = {file.name: unguarded(file.read_text(), words) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_check_notices():
    assert unguarded("[[gnu::noinline]] void f();", GNU)
    assert unguarded("#include <sys/mman.h>\n", POSIX)
    assert unguarded("#ifdef X\n#endif\nauto* p = mmap(0);", POSIX)
    assert not unguarded("#ifdef __linux__\n#include <sys/mman.h>\n#endif\n// mmap()", POSIX)
