"""How the gallery runs the examples: which, with what arguments, and where their pictures are."""

import importlib.util
import os
import shutil
from pathlib import Path

from sphinx_gallery.scrapers import figure_rst

AIRFOIL = os.environ.get("THALWEG_AIRFOIL")
# Smaller than by default where the whole takes minutes; the page of each says so.
SMALL = ["--lines", "200", "--rates", "3", "--epochs", "8", "--output", "accuracy.png"]
ARGUMENTS = {
    "valley": [],
    "schedules": [],
    "sparse_text": SMALL,
    "wide_and_deep": SMALL,
}
if AIRFOIL:  # else they would be downloaded
    ARGUMENTS["airfoil"] = ARGUMENTS["find_rate"] = ["--data", AIRFOIL]
    if importlib.util.find_spec("torch"):
        ARGUMENTS["torch_airfoil"] = ["--data", AIRFOIL]
RUN = rf"[/\\]({'|'.join(ARGUMENTS)})\.py$"


class Arguments:
    """What stands behind the script's name on its command line."""

    def __repr__(self):
        return "Arguments"

    def __call__(self, gallery_conf, script_vars):
        return ARGUMENTS.get(Path(script_vars["src_file"]).stem, [])


class Pictures:
    """The files that a script has written: the examples save their figures and close them."""

    def __repr__(self):
        return "Pictures"

    def __call__(self, block, block_vars, gallery_conf):
        paths = []
        for picture in sorted(Path(block_vars["src_file"]).parent.glob("*.png")):
            paths.append(next(block_vars["image_path_iterator"]))
            shutil.move(picture, paths[-1])
        return figure_rst(paths, gallery_conf["src_dir"])
