"""The site. ``.ci/site FOLDER`` builds it, from a copy: the gallery writes among the sources."""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_site"))

import stand_ins  # noqa: E402
import thalweg  # noqa: E402
from gallery import RUN, Arguments, Pictures  # noqa: E402

# Adapters are shown where their libraries are not installed.
MISSING = [
    name
    for name in ("torch", "mpi4py", "threadpoolctl", "sklearn", "thinc", "flwr", "keras")
    if importlib.util.find_spec(name) is None
]
if "torch" in MISSING:
    stand_ins.torch()  # a mock has no signatures

project = "thalweg"
author = "the authors of thalweg"
release = version = thalweg.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "facts",
]
exclude_patterns = ["_site", "sg_execution_times.rst", "gallery/sg_execution_times.rst"]

highlight_language = "none"  # of a fence without a word: equations, output

# Pages are plain Markdown, which reads as well where the sources are shown.
myst_heading_anchors = 3

html_theme = "furo"
pygments_dark_style = "monokai"
html_title = "thalweg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_copy_source = html_show_sourcelink = False

# What a docstring calls a type is prose ("array of float32 or float64"): no links are made of it.
napoleon_use_param = napoleon_use_rtype = napoleon_google_docstring = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_mock_imports = [name for name in MISSING if name != "torch"]
python_maximum_signature_line_length = 88
nitpicky = True
nitpick_ignore = [("py:class", "path")]  # prose: an attribute that is a "path or None"

sphinx_gallery_conf = {
    "examples_dirs": str(HERE.parent / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": RUN,
    "reset_argv": Arguments(),
    "image_scrapers": (Pictures(),),
    "capture_repr": (),
    "abort_on_example_error": True,
    "write_computation_times": False,
    "min_reported_time": 1e9,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "within_subsection_order": "FileNameSortKey",
}
