"""What docs/adapters.md says is run."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/adapters.md"
if not PAGE.exists():
    pytest.skip("needs the sources: docs/ is not beside tests/", allow_module_level=True)

SECTIONS = dict(
    re.findall(r"^## `thalweg\.(\w+)`\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
)


@pytest.mark.filterwarnings("ignore")  # of their libraries
@pytest.mark.parametrize("library", SECTIONS)
def test_the_blocks_run(library, tmp_path, monkeypatch):
    pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", SECTIONS[library], re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(block, names)
