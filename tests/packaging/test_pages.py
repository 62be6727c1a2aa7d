"""Every Python block of every page runs, and prints what it says it prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pages

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
if not README.exists():
    pytest.skip("needs the sources: README.md is not beside tests/", allow_module_level=True)

PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
WITH_PYTHON = [page for page in PAGES if any(part.kind == "python" for part in pages.read(page))]
LANGUAGES = {"", "python", "sh", "json", "{toctree}", "{include}", "{defaults}"}


def run(page, folder):
    command = [sys.executable, "-W", "error", pages.__file__, str(page)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_a_page_runs(page, tmp_path):
    done = run(page, tmp_path)
    if done.returncode == pages.LEFT_OUT:
        pytest.skip(f"{done.stdout.strip()}: not installed; the blocks that need none of it ran")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_block_hides_behind_another_word(page):
    fences = re.findall(r"^ *(?:```|~~~)(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert {fence.split(" ")[0] for fence in fences[::2]} <= LANGUAGES
    assert {*fences[1::2]} <= {""}
    shown = sum(part.kind == "python" for part in pages.read(page))
    assert shown == fences.count("python")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\nprint(1 + 1)  # 3\n```\n", "line 2 prints '2', and says '3'"),
        ("# A page\n\n```python\nx = 1\n```\n\n```python\ny = x.z\n```\n", 'page.md", line 8'),
        ("```python\nimport warnings\nwarnings.warn('old')\n```\n", "UserWarning: old"),
        ("<!-- given\nx = 1\n-->\n```python\nassert x == 2\n```\n", "AssertionError"),
    ],
)
def test_what_goes_wrong_is_named(text, complaint, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    done = run(page, tmp_path)
    assert done.returncode == 1
    assert complaint in done.stderr


def test_what_is_not_installed_is_named_and_all_else_runs(tmp_path):
    page = tmp_path / "page.md"
    block = "```python\nopen({!r}, 'w').close()\n```\n"
    parts = ["before", "nosuch", "left out", "json", "behind"]
    page.write_text(
        "".join(
            f"<!-- needs {part} -->\n" if part in ("nosuch", "json") else block.format(part)
            for part in parts
        )
    )
    done = run(page, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (pages.LEFT_OUT, "nosuch")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "behind", "page.md"]
