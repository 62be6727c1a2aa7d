"""torch's own loop with its optimizer exchanged
=============================================

torch.optim beside thalweg.torch: the concise loop of "Dive into Deep Learning", chapter 12
(train_concise_ch11). The optimizer's class is an argument, and nothing else changes.
Data: Brooks, Pope and Marcolini, UCI 291, CC BY 4.0.
"""

# sphinx_gallery_thumbnail_path = "torch_airfoil.png"

import argparse
import time

import matplotlib.pyplot as plt
import torch
from airfoil import BATCH, fetch, least_squares, read
from torch import nn

import thalweg.torch

SETTINGS = {
    "SGD": {"lr": 0.005, "momentum": 0.9},
    "Adagrad": {"lr": 0.1},
}
MODULES = {"torch.optim": torch.optim, "thalweg.torch": thalweg.torch}


def train_concise(trainer_fn, hyperparams, data_iter, num_epochs=4, seed=0):
    """Epochs at which the loss was taken, these losses, and seconds per epoch of training."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 1))
    nn.init.normal_(net[0].weight, std=0.01)
    nn.init.zeros_(net[0].bias)
    trainer = trainer_fn(net.parameters(), **hyperparams)
    loss = nn.MSELoss()
    features, labels = data_iter.dataset.tensors

    def evaluate():
        with torch.no_grad():
            return loss(net(features), labels).item() / 2

    at, losses, seconds = [0.0], [evaluate()], 0.0
    for epoch in range(num_epochs):
        start = time.perf_counter()
        for i, (X, y) in enumerate(data_iter, 1):
            trainer.zero_grad()
            loss(net(X), y).backward()
            trainer.step()
            if i % 20 == 0:
                seconds += time.perf_counter() - start
                at.append(epoch + i / len(data_iter))
                losses.append(evaluate())
                start = time.perf_counter()
        seconds += time.perf_counter() - start
    return at, losses, seconds / num_epochs


def batches(X, y):
    """The lecture's data_iter: batches of 10 in an order of their own each epoch."""
    tensors = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None]
    dataset = torch.utils.data.TensorDataset(*tensors)
    return torch.utils.data.DataLoader(dataset, BATCH, shuffle=True)


def draw(curves, floor, output):
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), sharey=True, layout="constrained")
    for panel, rule in zip(axes, SETTINGS, strict=True):
        for name, colour, dash, width in (
            ("torch.optim", "#d55e00", "-", 4),
            ("thalweg.torch", "#0072b2", "--", 1.8),
        ):
            at, losses, seconds = curves[rule, name]
            label = f"{name}.{rule}, {seconds * 1e3:.0f} ms/epoch"
            panel.plot(at, losses, dash, color=colour, lw=width, label=label)
        panel.axhline(floor, color="black", lw=1.2, ls=":", label=f"least squares, {floor:.4f}")
        given = ", ".join(f"{key} {value}" for key, value in SETTINGS[rule].items())
        panel.set_title(f"{rule}, {given}", loc="left", fontsize=10)
        panel.set(xlabel="epoch", xlim=(0, at[-1]))
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("loss: mean squared error / 2")
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="the file, if it is not to be downloaded")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--output", default="torch_airfoil.png", help="the picture to write")
    chosen = parser.parse_args(arguments)
    if chosen.epochs < 1:
        parser.error(f"argument --epochs: expected 1 or more, received {chosen.epochs}")
    torch.set_num_threads(1)
    X, y = read(chosen.data or fetch())
    floor = least_squares(X, y)
    data_iter = batches(X, y)
    curves = {}
    for rule, hyperparams in SETTINGS.items():
        for name, module in MODULES.items():
            trainer = getattr(module, rule)
            curves[rule, name] = train_concise(trainer, hyperparams, data_iter, chosen.epochs)
            _, losses, seconds = curves[rule, name]
            print(f"{name + '.' + rule:<22} loss {losses[-1]:.6f}, {seconds:.4f} sec/epoch")
    print(f"{'least squares':<22} loss {floor:.6f}")
    draw(curves, floor, chosen.output)
    print(f"loss against epoch: {chosen.output}")


if __name__ == "__main__":
    main()
