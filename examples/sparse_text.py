"""Rare words: SGD, momentum and Adagrad
=====================================

Which module of the standard library is a line from? Softmax regression on hashed words, in NumPy.
A batch names some hundred of 65536 rows of the weights: their gradient is a RowGrad. "Dive into
Deep Learning" 11.7 says that such features want a learning rate for each parameter; every rule gets
its best rate of a grid before it is compared.
"""

import argparse
import re
import sys
import sysconfig
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

import thalweg as tw
from thalweg.schedules import Cosine

BUCKETS, BATCH = 2**16, 16
FEWEST_WORDS = 3  # a line with fewer says too little
RARE = 5  # a rare word is in the training lines, but fewer times than this

# The middle of the grid, and the optimizer for a rate and a number of steps.
RULES = {
    "SGD": (4.0, lambda params, lr, steps: tw.SGD(params, lr=lr)),
    "SGD with cosine": (4.0, lambda params, lr, steps: tw.SGD(params, lr=Cosine(lr, steps))),
    "momentum 0.9": (0.4, lambda params, lr, steps: tw.SGD(params, lr=lr, momentum=0.9)),
    "Adagrad": (0.4, lambda params, lr, steps: tw.Adagrad(params, lr=lr)),
    "Adagrad by row": (
        0.2,
        lambda params, lr, steps: tw.Adagrad(params, lr=lr, accumulator="row"),
    ),
}
# Okabe and Ito's colours, told apart by colour-blind readers too; dashes say it once more.
STYLES = [
    ("#0072b2", "-"),
    ("#56b4e9", "--"),
    ("#cc79a7", ":"),
    ("#d55e00", "-"),
    ("#009e73", "-."),
]


def read(folder, modules, limit, rng):
    """The words of lines from the largest modules, no line twice in one, and their labels."""
    sources = [(p.stat().st_size, p.name, p) for p in folder.glob("[a-zA-Z]*.py")]
    sources = [path for *_, path in sorted(sources, key=lambda s: (-s[0], s[1]))[:modules]]
    words, labels = [], []
    for label, path in enumerate(sources):
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = dict.fromkeys(tuple(re.findall(r"\w+", line)) for line in text.splitlines())
        lines = [line for line in lines if len(line) >= FEWEST_WORDS]
        chosen = rng.permutation(len(lines))[:limit]
        words += [lines[i] for i in chosen]
        labels += [label] * len(chosen)
    return words, np.array(labels, np.int64)


def split(n, rng):
    """Which lines are for training, for the choice of the rate, and held out."""
    return np.split(rng.permutation(n), [n * 70 // 100, n * 85 // 100])


def with_rare_word(words, train, held_out):
    seen = Counter(word for i in train for word in words[i])
    return np.array([any(0 < seen[word] < RARE for word in words[i]) for i in held_out], bool)


def hashed(words):
    # Not hash(): that of a string is another one in every process.
    return [np.array([zlib.crc32(word.encode()) % BUCKETS for word in line]) for line in words]


def predict(params, lines):
    """The row of each word, the words of each line, and log probabilities."""
    rows, counts = np.concatenate(lines), np.array([len(line) for line in lines])
    scores = np.add.reduceat(params["W"][rows], np.cumsum(counts) - counts) + params["b"]
    scores -= scores.max(1, keepdims=True)
    return rows, counts, scores - np.log(np.exp(scores).sum(1, keepdims=True))


def gradient(params, lines, labels):
    """That of the mean cross-entropy. A word that comes twice names its row twice."""
    rows, counts, log_p = predict(params, lines)
    error = np.exp(log_p)
    error[np.arange(len(lines)), labels] -= 1
    error /= len(lines)
    return {"W": tw.RowGrad(rows, np.repeat(error, counts, axis=0)), "b": error.sum(0)}


def train(make_optimizer, lr, lines, labels, parts, epochs, seed):
    """After each epoch: which lines it got right, for validation and held out."""
    rng = np.random.default_rng(seed)
    classes = labels.max() + 1
    params = {"W": np.zeros((BUCKETS, classes), np.float32), "b": np.zeros(classes, np.float32)}
    opt = make_optimizer(params, lr, epochs * -(-len(parts[0]) // BATCH))
    hits = []
    for _ in range(epochs):
        order = rng.permutation(parts[0])
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            opt.step(gradient(params, [lines[i] for i in batch], labels[batch]))
        guesses = [predict(params, [lines[i] for i in part])[2].argmax(1) for part in parts[1:]]
        hits.append([guess == labels[part] for guess, part in zip(guesses, parts[1:], strict=True)])
    return [np.array(part) for part in zip(*hits, strict=True)]


def best_of_grid(rule, rates, *task):
    """The rate that ends best on validation, whether it is the grid's edge, and its ``train``."""
    middle, make_optimizer = RULES[rule]
    grid = [middle * 2.0 ** (i - rates // 2) for i in range(rates)]
    runs = []
    for lr in grid:
        if sys.stderr.isatty():
            print(f"\r{rule}, lr {lr:g}".ljust(40), end="", file=sys.stderr, flush=True)
        runs.append(train(make_optimizer, lr, *task))
    if sys.stderr.isatty():
        print("\r".ljust(40), end="\r", file=sys.stderr, flush=True)
    best = max(range(rates), key=lambda i: runs[i][0][-1].mean())
    return grid[best], best in (0, rates - 1), *runs[best]


def compared(ours, theirs):
    """How far the first are ahead on the same lines, in words."""
    points = 100 * (ours.astype(float) - theirs)
    ahead, error = points.mean(), points.std() / np.sqrt(len(points))
    word = "no clear difference:" if abs(ahead) <= 2 * error else "ahead" if ahead > 0 else "BEHIND"
    return f"{word} {ahead:+.1f} points, standard error {error:.1f}"


def draw(results, kinds, classes, output):
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(10, 4), sharey=True, layout="constrained")
    for axes, (kind, chosen) in zip(panels, kinds.items(), strict=True):
        for (rule, (lr, _, _, hits)), (colour, dash) in zip(results.items(), STYLES, strict=True):
            accuracy = 100 * hits[:, chosen].mean(1)
            label = f"{rule}, lr {lr:g}"
            epochs = np.arange(1, len(hits) + 1)
            axes.plot(epochs, accuracy, dash, color=colour, lw=2, label=label)
        axes.set_title(f"{kind} ({chosen.sum()})", loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#e4e4e4", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"right of {classes} modules, %")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
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
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--rates", type=int, default=6, help="to choose from, a factor 2 apart (6)")
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
            f"sparse_text: {chosen.library}: expected the sources of two modules or more, with "
            f"rare words and without, received {len(words)} lines; name others with --library"
        )
    kinds = {"all lines": rare | True, "with a rare word": rare, "without": ~rare}
    print(
        f"Python {sys.version.split()[0]}: {len(words)} lines of {len(set(labels))} modules, "
        f"{len(parts[0])} to train on, {len(rare)} held out; right of these, in %:"
    )
    print(f"{'':<16} {'lr':>7}" + "".join(f"{kind:>18}" for kind in kinds))
    results, task = {}, (hashed(words), labels, parts, chosen.epochs, chosen.seed)
    for rule in RULES:
        results[rule] = lr, edge, _, hits = best_of_grid(rule, chosen.rates, *task)
        shares = "".join(f"{100 * hits[-1, kind].mean():18.1f}" for kind in kinds.values())
        note = "  (at the edge of its grid)" if edge else ""
        print(f"{rule:<16} {lr:7g}{shares}{note}", flush=True)

    # What is compared with what is chosen on validation too.
    scores = {rule: results[rule][2][-1].mean() for rule in RULES}
    other = max((rule for rule in RULES if "Adagrad" not in rule), key=scores.get)
    for rule in (rule for rule in RULES if "Adagrad" in rule):
        print(f"{rule}, against {other}:")
        for kind, lines in kinds.items():
            ours, theirs = (results[name][3][-1, lines] for name in (rule, other))
            print(f"  {kind:<17} {compared(ours, theirs)}")
    if chosen.output:
        draw(results, kinds, len(set(labels)), chosen.output)
        print(f"written: {chosen.output}")


if __name__ == "__main__":
    main()
