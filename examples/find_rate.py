"""Which rate? A range test, and what it finds
===========================================

SGD with momentum on NASA's airfoil noise data. The data and its reader are those of airfoil.py.
"""

# sphinx_gallery_thumbnail_path = "find_rate.png"

import argparse

import airfoil
import matplotlib.pyplot as plt
import numpy as np

import thalweg as tw


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="the file, if it is not to be downloaded")
    parser.add_argument("--output", default="find_rate.png", help="the picture to write")
    chosen = parser.parse_args(arguments)
    X, y = airfoil.read(chosen.data or airfoil.fetch())
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(0, 0.01, X.shape[1]), "b": np.zeros(1)}
    opt = tw.SGD(params, momentum=0.9)

    def loss_and_grads():
        rows = rng.integers(0, len(X), airfoil.BATCH)
        return airfoil.half_mse(params, X[rows], y[rows]), airfoil.gradients(params, X, y, rows)

    found = tw.find_rate(opt, loss_and_grads, rng=rng)
    print(found)
    axes = found.plot()
    axes.set_title("Linear regression on airfoil noise, batches of 10", loc="left", fontsize=11)
    axes.figure.savefig(chosen.output, dpi=100)
    plt.close(axes.figure)
    print(f"loss against rate: {chosen.output}")


if __name__ == "__main__":
    main()
