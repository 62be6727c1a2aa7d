"""The Python of a Markdown page, run from top to bottom in one namespace, as its reader would.

``python pages.py PAGE``. What a page does not show stands in comments, which no reader sees:

    <!-- needs torch -->     where it is not installed, the blocks up to the next such line are
                             left out
    <!-- given
    params = ...             what the next blocks take for granted
    -->

What a line ``print(...)  # this`` says it prints, it must print.
"""

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path

LEFT_OUT = 77  # the exit code where something is needed that is not installed
PART = re.compile(
    r"^```python\n(?P<python>.*?)^```$|^<!-- given\n(?P<given>.*?)^-->$"
    r"|^<!-- needs (?P<needs>\w+) -->$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Part:
    kind: str  # python, given or needs
    text: str
    line: int  # of the page, before the text's first


def read(page):
    """Everything of a page that is run, in order."""
    text = Path(page).read_text(encoding="utf-8")
    for found in PART.finditer(text):
        kind = found.lastgroup
        yield Part(kind, found[kind], text.count("\n", 0, found.start(kind)))


def run(page):
    """Run a page; the names of what is missing."""
    lines = Path(page).read_text(encoding="utf-8").splitlines()

    def checked_print(*values):
        shown = " ".join(map(str, values))
        number = sys._getframe(1).f_lineno
        said = re.search(r"\)  # (.*)$", lines[number - 1])
        if said and shown != said[1]:
            raise AssertionError(f"line {number} prints {shown!r}, and says {said[1]!r}")

    names = {"__name__": "__main__", "print": checked_print}
    missing, left_out = [], False
    for part in read(page):
        if part.kind == "needs":
            left_out = importlib.util.find_spec(part.text) is None
            missing += [part.text] * left_out
        elif not left_out:
            exec(compile("\n" * part.line + part.text, str(page), "exec"), names)
    return missing


if __name__ == "__main__":
    missing = run(sys.argv[1])
    if missing:
        print(" and ".join(missing))
        sys.exit(LEFT_OUT)
