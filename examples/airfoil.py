"""Linear regression: SGD with momentum beside Adagrad
===================================================

The training loop of "Dive into Deep Learning", chapter 12 (train_concise_ch11), in NumPy, on NASA's
airfoil noise data. Data: Brooks, Pope and Marcolini, UCI 291, CC BY 4.0.
"""

# sphinx_gallery_thumbnail_path = "airfoil.png"

import argparse
import time

import matplotlib.pyplot as plt
import numpy as np

import thalweg as tw

URL = "http://d2l-data.s3-accelerate.amazonaws.com/airfoil_self_noise.dat"
SHA256 = "74c75fd71783f1e6b71f8a622b993dc592897a97cd689c5090a07147a1b097b3"

BATCH, EXAMPLES = 10, 1500
OPTIMIZERS = {
    "SGD, lr 0.005, momentum 0.9": lambda params: tw.SGD(params, lr=0.005, momentum=0.9),
    "Adagrad, lr 0.1": lambda params: tw.Adagrad(params, lr=0.1),
}


def fetch():
    """Path of the data, downloaded once and checked."""
    try:
        import pooch

        return pooch.retrieve(URL, known_hash=f"sha256:{SHA256}")
    except ImportError:
        reason = "pooch is not installed"
    except ValueError:
        reason = "what came is another file"
    except OSError as error:
        reason = f"the download failed: {type(error).__name__}"
    raise SystemExit(
        f"airfoil: could not fetch the data ({reason}); "
        f"download it elsewhere from\n{URL}\nand pass its place with --data PATH"
    )


def read(path):
    """Five standardised features and the standardised sound pressure level."""
    try:
        table = np.loadtxt(path, delimiter="\t", ndmin=2)
    except (OSError, ValueError) as error:
        raise SystemExit(f"airfoil: {path} could not be read: {error}") from None
    if table.shape[1] != 6:
        raise SystemExit(f"airfoil: {path}: expected 6 columns, received {table.shape[1]}")
    table = ((table - table.mean(0)) / table.std(0))[:EXAMPLES]
    return table[:, :-1], table[:, -1]


def half_mse(params, X, y):
    return np.mean((X @ params["w"] + params["b"] - y) ** 2) / 2


def gradients(params, X, y, rows):
    """Of the mean squared error: D2L leaves the loss's half out of it."""
    error = X[rows] @ params["w"] + params["b"] - y[rows]
    return {"w": 2 / len(rows) * (X[rows].T @ error), "b": 2 * error.mean(keepdims=True)}


def train(make_optimizer, X, y, epochs, seed=0):
    """Epochs at which the loss was taken, these losses, and seconds per epoch of training."""
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(0, 0.01, X.shape[1]), "b": np.zeros(1)}
    opt = make_optimizer(params)
    batches_per_epoch = len(X) // BATCH
    at, losses, seconds = [0.0], [half_mse(params, X, y)], 0.0
    for epoch in range(epochs):
        order = rng.permutation(len(X))
        for i in range(batches_per_epoch):
            start = time.perf_counter()
            rows = order[i * BATCH : (i + 1) * BATCH]
            opt.step(gradients(params, X, y, rows))
            seconds += time.perf_counter() - start
            if (i + 1) % 10 == 0:
                at.append(epoch + (i + 1) / batches_per_epoch)
                losses.append(half_mse(params, X, y))
    return at, losses, seconds / epochs


def least_squares(X, y):
    """The loss that no linear model gets below."""
    A = np.column_stack([X, np.ones(len(X))])
    return np.mean((A @ np.linalg.lstsq(A, y, rcond=None)[0] - y) ** 2) / 2


def draw(curves, floor, output):
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for (name, (at, losses, _)), colour, dash in zip(
        curves.items(), ("#0072b2", "#d55e00"), ("-", "--"), strict=True
    ):
        axes.plot(at, losses, dash, color=colour, lw=2, label=name)
    axes.axhline(floor, color="black", lw=1.2, ls=":", label=f"least squares, {floor:.4f}")
    axes.set(xlabel="epoch", ylabel="loss: mean squared error / 2")
    axes.set(xlim=(0, at[-1]), ylim=(floor - 0.01, None))
    axes.set_title("Linear regression on airfoil noise, batches of 10", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="the file, if it is not to be downloaded")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--output", default="airfoil.png", help="the picture to write")
    chosen = parser.parse_args(arguments)
    if chosen.epochs < 1:
        parser.error(f"argument --epochs: expected 1 or more, received {chosen.epochs}")
    X, y = read(chosen.data or fetch())
    floor = least_squares(X, y)
    curves = {}
    for name, make_optimizer in OPTIMIZERS.items():
        curves[name] = train(make_optimizer, X, y, chosen.epochs)
        _, losses, seconds = curves[name]
        print(f"{name:<28} loss {losses[-1]:.6f}, {seconds:.4f} sec/epoch")
    print(f"{'least squares':<28} loss {floor:.6f}")
    draw(curves, floor, chosen.output)
    print(f"loss against epoch: {chosen.output}")


if __name__ == "__main__":
    main()
