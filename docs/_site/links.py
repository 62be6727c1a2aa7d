"""Finds dead links in a built site: pages, files and anchors. ``python links.py FOLDER``."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to and what it can be linked to by."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = set(), {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value is not None:
                self.links.add(value)


def dead(folder):
    """Links that lead nowhere inside the folder, as "page: link"; those beyond it are left."""
    folder = Path(folder).resolve()
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    for path, page in sorted(pages.items()):
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            found = target.exists() and target.is_relative_to(folder)
            if found and target in pages:
                found = unquote(parts.fragment) in pages[target].anchors
            if not found:
                yield f"{path.relative_to(folder)}: {link}"


if __name__ == "__main__":
    found = [*dead(sys.argv[1])]
    print(*(f"dead link in {line}" for line in found), sep="\n", end="\n" if found else "")
    pages = len([*Path(sys.argv[1]).rglob("*.html")])
    sys.exit(1 if found or not pages else None)
