"""The house: each room knows only those below it. Read from the includes and the imports."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RULE = (
    "each room includes or imports only rooms below it, files of one room stand in no circle, and "
    "nothing imports an adapter (CONTRIBUTING.md, The house)"
)

# From the ground up; those in one row know nothing of each other.
CPP = [{"kernel", "thread"}, {"step"}, {"bind"}]
PYTHON = [
    {"_types", "_threads", "_reference"},
    {"schedules", "presets"},
    {"_optimizer"},
    {"optimizers"},
    {"functional", "joint"},
    {"rows"},
    {"_checkpoint", "_identify", "_range_test"},
    {"checkpoint"},
    {"ADAPTERS"},
    {"_command"},
    {"__main__"},
    {"__init__"},
]
ADAPTERS = {"flower", "keras", "mpi", "sklearn", "thinc", "threadpoolctl", "torch"}


def room_of(file, adapters):
    """cpp/step/plan.hpp: step; thalweg/_optimizer/base.py: _optimizer; thalweg/rows.py: rows."""
    room = file.parts[0] if len(file.parts) > 1 else file.stem
    return "ADAPTERS" if room in adapters else room


def included(source, file, files):
    """The files that a C++ file includes with quotes."""
    for name in re.findall(r'^#include "(.+)"', source, re.MULTILINE):
        beside = file.parent / name
        yield beside if beside in files else Path(name)


def imported(source, file, files):
    """The files of the package that a Python file imports, wherever in it, or for types alone."""

    def module(*parts):
        as_file = Path(*parts).with_suffix(".py") if parts else Path("__init__.py")
        return as_file if as_file in files else Path(*parts, "__init__.py")

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") == "import_module"
            and isinstance(node.args[0], ast.Constant)
        ):
            names = [node.args[0].value]
        else:
            continue
        for name in names:
            first, *parts = name.split(".")
            if first != "thalweg" or parts[:1] == ["_core"]:
                continue
            while parts and module(*parts) not in files:
                parts.pop()
            yield module(*parts)


def problems(sources, arrows, rooms, adapters=frozenset()):
    """What breaks the rule: {file: text}, and which files a text leads to."""
    files = set(sources)
    below = {}
    heights = {room: height for height, row in enumerate(rooms) for room in row}
    for file, source in sources.items():
        below[file] = {to for to in arrows(source, file, files) if to in files and to != file}
        mine = room_of(file, adapters)
        if mine not in heights:
            yield f"{file}: stands in no room"
            continue
        for to in sorted(below[file]):
            other = room_of(to, adapters)
            if other == "ADAPTERS" and to.parts[0] != file.parts[0]:
                yield f"{file} takes in the adapter {to}"
            elif other != mine and other in heights and heights[other] >= heights[mine]:
                yield f"{file} takes in {to}, which is not below it"
    for file in sorted(files):
        seen, todo = set(), [*below.get(file, ())]
        while todo:
            to = todo.pop()
            if to not in seen:
                seen.add(to)
                todo += below.get(to, ())
        if file in seen:
            yield f"{file} comes back to itself through what it takes in"


def cpp():
    found = [path for path in (ROOT / "cpp").rglob("*") if path.suffix in (".hpp", ".cpp")]
    return {path.relative_to(ROOT / "cpp"): path.read_text() for path in found}


def python():
    package = ROOT / "python/thalweg"
    return {path.relative_to(package): path.read_text() for path in package.rglob("*.py")}


def check(found):
    assert not found, f"{RULE}\n" + "\n".join(found)


def test_includes_run_down():
    check([*problems(cpp(), included, CPP)])


def test_imports_run_down():
    check([*problems(python(), imported, PYTHON, ADAPTERS)])


def test_only_bind_knows_python():
    knowing = [
        str(file)
        for file, text in cpp().items()
        if re.search(r"pybind11|Python\.h|\bPy[A-Z]\w+", text) and file.parts[0] != "bind"
    ]
    assert not knowing, f"only cpp/bind knows Python: {knowing}"


def test_every_file_in_cpp_stands_in_a_room():
    assert {file.parts[0] for file in cpp()} == {room for row in CPP for room in row}


WRONG = {
    "upward include": (
        cpp,
        included,
        {"kernel/loop.hpp": '#include "step/plan.hpp"\n'},
        "kernel/loop.hpp takes in step/plan.hpp, which is not below it",
    ),
    "include of a neighbour": (
        cpp,
        included,
        {"thread/pool.hpp": '#include "kernel/contract.hpp"\n'},
        "thread/pool.hpp takes in kernel/contract.hpp, which is not below it",
    ),
    "circle of includes": (
        cpp,
        included,
        {"step/rows.hpp": '#include "plan.hpp"\n'},
        "step/rows.hpp comes back to itself",
    ),
    "upward import": (
        python,
        imported,
        {"_optimizer/tree.py": "def f():\n    from thalweg import optimizers\n"},
        "_optimizer/tree.py takes in optimizers.py, which is not below it",
    ),
    "import of the face": (
        python,
        imported,
        {"rows.py": "import thalweg as tw\n"},
        "rows.py takes in __init__.py, which is not below it",
    ),
    "circle of imports": (
        python,
        imported,
        {"_optimizer/tree.py": "from thalweg._optimizer.groups import Group\n"},
        "_optimizer/tree.py comes back to itself",
    ),
    "imported adapter": (
        python,
        imported,
        {"_command/info.py": "import thalweg.threadpoolctl\n"},
        "_command/info.py takes in the adapter threadpoolctl.py",
    ),
    "homeless file": (python, imported, {"loose.py": ""}, "loose.py: stands in no room"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_breaks_the_rule_is_seen(case):
    sources, arrows, added, expected = WRONG[case]
    files = sources()
    for name, text in added.items():
        files[Path(name)] = text + files.get(Path(name), "")
    rooms, adapters = (CPP, frozenset()) if sources is cpp else (PYTHON, ADAPTERS)
    found = [*problems(files, arrows, rooms, adapters)]
    assert any(line.startswith(expected) for line in found), found
