"""Wide & Deep: Adagrad for the tables, momentum for the layers
============================================================

The task of sparse_text.py, which module of the standard library a line is from, with a model after
Cheng et al., Wide & Deep Learning, 2016: a linear part on hashed words, and embeddings of the same
words, averaged, under two dense layers. A tw.Joint clips both by one norm. Each rule gets its best
rate of a grid; the Joint takes Adagrad's for the tables and searches the layers' own.
"""

import argparse
import sys
import sysconfig
from pathlib import Path

import numpy as np
from sparse_text import BUCKETS, STYLES, compared, hashed, read, split, with_rare_word

import thalweg as tw

BATCH, WIDTH, HIDDEN = 32, 16, 64
MAX_NORM = 1.0
MIDDLE = {"momentum 0.9": 0.4, "Adagrad": 0.8, "Joint": 0.1}  # of the grids


def model(classes, rng):
    """Tables and layers."""
    normal = rng.standard_normal
    tables = {
        "wide": np.zeros((BUCKETS, classes), np.float32),
        "deep": 0.1 * normal((BUCKETS, WIDTH), np.float32),
    }
    layers = {
        "W1": normal((WIDTH, HIDDEN), np.float32) * np.float32((2 / WIDTH) ** 0.5),
        "b1": np.zeros(HIDDEN, np.float32),
        "W2": normal((HIDDEN, classes), np.float32) * np.float32((1 / HIDDEN) ** 0.5),
        "b2": np.zeros(classes, np.float32),
    }
    return {"emb": tables, "head": layers}


def forward(params, lines):
    """The row of each word, the words of each line, means, hidden units, log probabilities."""
    tables, layers = params["emb"], params["head"]
    rows, counts = np.concatenate(lines), np.array([len(line) for line in lines])
    starts = np.cumsum(counts) - counts
    means = np.add.reduceat(tables["deep"][rows], starts) / counts[:, None].astype(np.float32)
    hidden = np.maximum(means @ layers["W1"] + layers["b1"], 0)
    scores = np.add.reduceat(tables["wide"][rows], starts) + hidden @ layers["W2"] + layers["b2"]
    scores -= scores.max(1, keepdims=True)
    return rows, counts, means, hidden, scores - np.log(np.exp(scores).sum(1, keepdims=True))


def gradient(params, lines, labels):
    """That of the mean cross-entropy, in the structure of params; rows for the tables."""
    rows, counts, means, hidden, log_p = forward(params, lines)
    error = np.exp(log_p)
    error[np.arange(len(lines)), labels] -= 1
    error /= len(lines)
    below = (error @ params["head"]["W2"].T) * (hidden > 0)
    of_mean = below @ params["head"]["W1"].T / counts[:, None].astype(np.float32)
    tables = {
        "wide": tw.RowGrad(rows, np.repeat(error, counts, axis=0)),
        "deep": tw.RowGrad(rows, np.repeat(of_mean, counts, axis=0)),
    }
    layers = {
        "W1": means.T @ below,
        "b1": below.sum(0),
        "W2": hidden.T @ error,
        "b2": error.sum(0),
    }
    return {"emb": tables, "head": layers}


def alone(rule, lr):
    """One rule for all of the model."""

    def make(params):
        if rule == "Adagrad":
            return tw.Adagrad(params, lr, max_norm=MAX_NORM)
        return tw.SGD(params, lr, 0.9, max_norm=MAX_NORM)

    return make


def joined(table_lr, layer_lr):
    """Adagrad for the tables, momentum for the layers."""

    def make(params):
        emb = tw.Adagrad(params["emb"], table_lr)
        head = tw.SGD(params["head"], layer_lr, 0.9)
        return tw.Joint(emb=emb, head=head, max_norm=MAX_NORM)

    return make


def train(make_optimizer, lines, labels, parts, epochs, seed):
    """After each epoch: which lines it got right, for validation and held out."""
    rng = np.random.default_rng(seed)
    params = model(labels.max() + 1, rng)
    opt = make_optimizer(params)
    hits = []
    for _ in range(epochs):
        order = rng.permutation(parts[0])
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            opt.step(gradient(params, [lines[i] for i in batch], labels[batch]))
        guesses = [forward(params, [lines[i] for i in part])[4].argmax(1) for part in parts[1:]]
        hits.append([guess == labels[part] for guess, part in zip(guesses, parts[1:], strict=True)])
    return [np.array(part) for part in zip(*hits, strict=True)]


def best_of_grid(rule, makers, *task):
    """The rate that is best on validation in its best epoch, and how it did on held-out lines."""
    runs = {}
    for lr, make_optimizer in makers.items():
        if sys.stderr.isatty():
            print(f"\r{rule}, lr {lr:g}".ljust(40), end="", file=sys.stderr, flush=True)
        runs[lr] = train(make_optimizer, *task)
    if sys.stderr.isatty():
        print("\r".ljust(40), end="\r", file=sys.stderr, flush=True)
    best = max(runs, key=lambda lr: runs[lr][0].mean(1).max())
    return best, best in (min(runs), max(runs)), *runs[best]


def grid(middle, rates):
    return [middle * 2.0 ** (i - rates // 2) for i in range(rates)]


def draw(results, kinds, classes, output):
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(10, 4), sharey=True, layout="constrained")
    for axes, (kind, chosen) in zip(panels, kinds.items(), strict=True):
        for (rule, (_, _, hits)), (colour, dash) in zip(
            results.items(), STYLES[::-1], strict=False
        ):
            accuracy = 100 * hits[:, chosen].mean(1)
            axes.plot(np.arange(1, len(hits) + 1), accuracy, dash, color=colour, lw=2, label=rule)
        axes.set_title(f"{kind} ({chosen.sum()})", loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#e4e4e4", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"right of {classes} modules, %")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=90)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    library = Path(sysconfig.get_paths()["stdlib"])
    parser.add_argument("--library", type=Path, default=library, help="another folder of modules")
    parser.add_argument("--modules", type=int, default=30, help="so many, the largest (30)")
    parser.add_argument("--lines", type=int, default=1000, help="of each at most (1000)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rates", type=int, default=7, help="to choose from, a factor 2 apart (7)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a picture to draw; needs matplotlib")
    chosen = parser.parse_args(arguments)
    for name in ("modules", "lines", "epochs", "rates"):
        if getattr(chosen, name) < 1:
            parser.error(f"argument --{name}: expected 1 or more, received {getattr(chosen, name)}")

    rng = np.random.default_rng(chosen.seed)
    words, labels = read(chosen.library, chosen.modules, chosen.lines, rng)
    parts = split(len(words), rng)
    rare = with_rare_word(words, parts[0], parts[2])
    if len(set(labels)) < 2 or rare.all() or not rare.any():
        raise SystemExit(
            f"wide_and_deep: {chosen.library}: expected the sources of two modules or more, with "
            f"rare words and without, received {len(words)} lines; name others with --library"
        )
    kinds = {"all lines": rare | True, "with a rare word": rare, "without": ~rare}
    print(
        f"Python {sys.version.split()[0]}: {len(words)} lines of {len(set(labels))} modules, "
        f"{len(parts[0])} to train on, {len(rare)} held out; right of these in the best epoch on "
        "validation, in %:"
    )
    print(f"{'':<32}" + "".join(f"{kind:>18}" for kind in kinds))
    task = hashed(words), labels, parts, chosen.epochs, chosen.seed
    results, ends, table_lr = {}, {}, 0.0
    for rule, middle in MIDDLE.items():
        makers = {
            lr: joined(table_lr, lr) if rule == "Joint" else alone(rule, lr)
            for lr in grid(middle, chosen.rates)
        }
        lr, edge, validation, hits = best_of_grid(rule, makers, *task)
        if rule == "Adagrad":
            table_lr = lr
        rates = f"lr {table_lr:g} and {lr:g}" if rule == "Joint" else f"lr {lr:g}"
        results[f"{rule}, {rates}"] = edge, validation, hits
        ends[rule] = hits[validation.mean(1).argmax()]
        shares = "".join(f"{100 * ends[rule][kind].mean():18.1f}" for kind in kinds.values())
        note = "  (at the edge of its grid)" if edge else ""
        print(f"{rule + ', ' + rates:<32}{shares}{note}", flush=True)
    for other in ("momentum 0.9", "Adagrad"):
        print(f"Joint, against {other}:")
        for kind, lines in kinds.items():
            print(f"  {kind:<17} {compared(ends['Joint'][lines], ends[other][lines])}")
    if chosen.output:
        draw(results, kinds, len(set(labels)), chosen.output)
        print(f"written: {chosen.output}")


if __name__ == "__main__":
    main()
