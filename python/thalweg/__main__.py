"""``python -m thalweg info | selftest | bench | demo``."""

import argparse
import math
import os
import sys

from thalweg._command.bench import bench
from thalweg._command.demo import demo
from thalweg._command.info import show_config
from thalweg._command.selftest import selftest


def positive(text: str) -> float:
    value = float(text)
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"expected a finite number > 0, received {text}")
    return value


def natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, received {text}")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the result is the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m thalweg", description="Momentum and Adagrad for NumPy training loops."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "info", help="version, NumPy, ISA levels: compiled, supported, in use; threads"
    )
    commands.add_parser("selftest", help="check the bits of every rule at every ISA level")
    measure = commands.add_parser(
        "bench", help="this machine's figures against NumPy, the memory and torch"
    )
    measure.add_argument(
        "--seconds", type=positive, default=12.0, help="time in all, about (default: 12)"
    )
    learn = commands.add_parser("demo", help="a character RNN in NumPy learns English")
    learn.add_argument("--seconds", type=positive, default=30.0, help="time in all (default: 30)")
    learn.add_argument("--seed", type=natural, default=0)
    learn.add_argument("--checkpoint", metavar="FOLDER", help="save there, and resume from there")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "demo":
            return demo(chosen.seconds, chosen.seed, chosen.checkpoint)
        if chosen.command == "selftest":
            return selftest()
        if chosen.command == "bench":
            return bench(chosen.seconds)
        show_config()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # python -m thalweg demo | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
