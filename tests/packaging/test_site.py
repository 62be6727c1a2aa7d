"""What the site is made with: tables out of the code, the search for dead links, the pictures."""

import importlib
import re
from pathlib import Path

import pytest

import thalweg as tw

DOCS = Path(__file__).parents[2] / "docs"
if not DOCS.exists():
    pytest.skip("needs the sources: docs/ is not beside tests/", allow_module_level=True)


def load(name, monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_site")
    return importlib.import_module(name)


@pytest.mark.parametrize(
    ("rule", "row"),
    [
        ("SGD", "| thalweg | 1e-3 | 0 | off | heavy_ball | off | 1e-6 |"),
        ("SGD", "| sklearn | 1e-3 | 0.9 | on | classic | off | 1e-6 |"),
        ("SGD", "| openai_es | no default | 0.9 | off | ema | off | 1e-6 |"),
        ("Adagrad", "| thalweg | 0.01 | 1e-8 | inside | 0 | off | 1e-6 |"),
        ("Adagrad", "| keras | 1e-3 | 1e-7 | inside | 0.1 | on | 0 |"),
    ],
)
def test_the_tables_of_defaults(rule, row, monkeypatch):
    table = "\n".join(load("defaults", monkeypatch).defaults(rule))
    assert row in table
    assert "`max_norm` off" in table


def test_dead_links_are_found(tmp_path, monkeypatch):
    links = load("links", monkeypatch)
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there"><a href="#here"><a href="#"><a href="https://x.org/y">'
        '<a href="b.html#nowhere"><img src="c.png"><a href="../beyond.html"><a href="#gone">'
    )
    (tmp_path / "b.html").write_text('<h1 id="there"><a href="a.html">')
    (tmp_path.parent / "beyond.html").touch()
    assert sorted(links.dead(tmp_path)) == [
        "a.html: #gone",
        "a.html: ../beyond.html",
        "a.html: b.html#nowhere",
        "a.html: c.png",
    ]


@pytest.mark.parametrize(
    "page", [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda p: p.stem
)
def test_pictures_are_described_there_and_small(page):
    for words, picture in re.findall(r"!\[(.*?)\]\((.+?)\)", page.read_text(encoding="utf-8")):
        assert len(words) > 10
        assert 2_000 < (page.parent / picture).stat().st_size < 120_000


def test_every_public_name_is_in_the_reference():
    shown = set(re.findall(r"auto\w+:: (?:thalweg\.)?([\w.]+)", (DOCS / "api.rst").read_text()))
    package = DOCS.parent / "python" / "thalweg"
    for adapter in [*package.glob("*.py"), *package.glob("[a-z]*/__init__.py")]:
        name = adapter.parent.name if adapter.stem == "__init__" else adapter.stem
        if name == "thalweg":
            wanted = {*tw.__all__} - {"__version__"}
        elif name in {"torch", "mpi", "sklearn", "keras", "thinc", "flower"}:
            names = re.search(r"^__all__ = \[(.*?)\]", adapter.read_text(), re.M | re.S)[1]
            wanted = {f"{name}.{word}" for word in re.findall(r'"(\w+)"', names)}
        else:
            continue
        assert wanted <= shown
