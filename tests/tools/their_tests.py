"""Another library's own tests, run with an adapter in the place of what they test."""

import os
import re
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parent


def run_their_tests(plugin, folder, *arguments):
    """How many passed; the plugin is a module of tests/tools that puts the adapter there."""
    path = os.pathsep.join(filter(None, [str(TOOLS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", plugin, "-p", "no:cacheprovider", *arguments],
        cwd=folder,  # outside of ours, whose settings are not theirs
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"(\d+) passed", done.stdout)[1])
