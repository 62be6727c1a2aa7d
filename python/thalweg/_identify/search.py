"""The search: ask, fit the formulas, round the numbers, and let the bits decide."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from thalweg._identify import candidates, formula
from thalweg._identify.call import Call, Comparison, compared
from thalweg._identify.fit import (
    LIMIT,
    Answers,
    Fit,
    best,
    distances,
    fitted,
    is_round,
    rounded_all,
    roundest,
)
from thalweg._identify.identity import Identity
from thalweg._identify.layout import Layout
from thalweg._identify.mistakes import mistakes, twice
from thalweg._identify.probe import LARGE, LEAST, SMALL, STEPS, Caller, Record, ask, caller
from thalweg._identify.spelling import spelled

KNOWN_STEPS = SMALL + LARGE
CLIPPED = {
    "decayed": "it clips after the decay is added; here gradients are clipped first",
    "update": "it clips the step, not the gradient",
}


def identify(
    update: Any, params: Any = None, *, set_lr: Callable[[float], Any] | None = None
) -> Identity:
    """Find out which call an update of your own is: same bits, nearly, or none and why.

    The update is run on chosen gradients, from its first step on: small ones of many magnitudes,
    larger and larger ones, and, where its rate can be set, some at another rate. From its answers
    follow lr, momentum, eps, decay and its kind, a schedule, the initial accumulator and clipping;
    then the real optimizers are run on the same and every bit is compared.

    Parameters
    ----------
    update : callable, (params, grads) -> None or params; or an object
        Changes arrays in place, puts new ones into its dict or list, or returns new ones. Of an
        object, ``step``, ``update`` or ``update_params`` is called; if it takes gradients alone,
        hand in the params it holds. Hand in a fresh one: it is used up.
    params : array of float32 or float64, or a list, tuple or mapping of arrays
        What it is called with: structure, shapes and dtypes count, values do not. Without, a list
        of two float64 arrays, a dict, an array are tried.
    set_lr : callable, float -> anything
        Sets the update's rate from its next step on. Without, a parameter or attribute of the name
        lr, learning_rate, eta or step_size is set.

    Raises
    ------
    TypeError, ValueError
        It cannot be called so; and whatever it raises itself.

    Example
    -------
    >>> import thalweg as tw
    >>> memory = {}
    >>> def update(params, grads):
    ...     for k in params:
    ...         memory[k] = memory.get(k, 0.0) + grads[k] ** 2
    ...         params[k] -= 0.1 * grads[k] / (memory[k] ** 0.5 + 1e-10)
    >>> import numpy as np
    >>> tw.identify(update, {"W": np.zeros((4, 3)), "b": np.zeros(3)})
    tw.Adagrad(params, lr=0.1, eps=1e-10, eps_placement='outside'): same bits
      asked: 44 steps of 15 elements in 2 arrays, float64
    """
    call = caller(update, set_lr)
    if params is not None:
        return _searched(call, ask(call, params))
    failures = []
    W, b = np.zeros((6, 8)), np.zeros(8)
    for usual in [W, b], {"W": W, "b": b}, W:
        try:
            record = ask(call, usual)
        except Exception as error:
            failures.append(f"with {type(usual).__name__}: {type(error).__name__}: {error}")
            continue
        return _searched(call, record)
    raise ValueError(
        "update: expected one that takes a list, a dict or an array, received one that fails with "
        f"each; hand in params. It raised {'; '.join(failures)}"
    )


@np.errstate(all="ignore")
def _searched(update: Caller, record: Record) -> Identity:
    """Numbers that are far off overflow on the way."""
    return _Search(update, record).found()


class _Search:
    def __init__(self, update: Caller, record: Record) -> None:
        self.update, self.record, self.eps = update, record, record.eps
        moved = [
            any(not np.array_equal(row[i], record.params[0][i]) for row in record.params)
            for i in range(len(record.shapes))
        ]
        self.moved = moved
        x = np.array([record.flat(row) for row in record.params])
        g = np.array([record.flat(row) for row in record.grads])
        self.layout = Layout(record.shapes)
        self.answers = Answers.of(x, g, self.layout, self.eps)
        self.hints = formula.hints(x, g, record.roles, self.eps)
        self.finite = bool(np.isfinite(x).all())
        self.near: tuple[Call, Comparison] | None = None

    # ---- what comes out ----

    def found(self) -> Identity:
        if not any(self.moved):
            return self.identity(
                "none",
                None,
                "nothing changes: p = p - ... gives the loop's own name another array; write "
                "p -= ... or p[...] = ..., or return the new ones",
            )
        if not all(self.moved):
            still = [str(i) for i, moves in enumerate(self.moved) if not moves]
            return self.identity(
                "none", None, f"of the arrays in the order of params, {', '.join(still)} never move"
            )
        if self.finite:
            for fit in self.fits():
                if identity := self.judged(fit):
                    return identity
        known = np.isfinite(self.answers.noise).all(axis=0).sum()
        for fit in self.mistaken() if known >= LEAST // 2 else ():
            return self.diagnosed(fit)
        if self.near is None and self.finite:
            self.nearest_of_all()
        reason = "none of the usual mistakes"
        if not self.finite:
            reason = "params become NaN or infinite; no usual mistake does it so"
        if self.near is None:
            return self.identity("none", None, reason)
        return self.identity("none", self.near[0], reason, self.near[1])

    def identity(
        self, verdict: Any, call: Call | None, reason: str = "", seen: Comparison | None = None
    ) -> Identity:
        record = self.record
        unknown: list[str] = []
        if verdict == "close" and call is not None:
            unknown += self.untold(call)
        if verdict != "none" and call is not None:
            if "max_norm" in call.options and len(record.shapes) == 1:
                unknown.append("whether max_norm is over all arrays or each one's: it had one")
            if call.rule == "Adagrad" and all(len(shape) < 2 for shape in record.shapes):
                unknown.append("whether rows share an accumulator: no array had rows")
        size = sum(int(np.prod(shape)) for shape in record.shapes)
        many = f"{len(record.shapes)} array{'s' if len(record.shapes) > 1 else ''}"
        dtypes = " and ".join(sorted({str(dtype) for dtype in record.dtypes}))
        asked = f"{STEPS} steps of {size} elements in {many}, {dtypes}"
        if record.rate is not None:
            asked += f", the last {STEPS - KNOWN_STEPS} at lr={record.rate}"
        eps = 0.0 if seen is None else seen.eps
        first = None if seen is None else seen.first
        notes = (*record.notes, *self.notes)
        return Identity(verdict, call, reason, eps, first, asked, tuple(unknown), notes)

    notes: tuple[str, ...] = ()

    def untold(self, call: Call) -> Iterator[str]:
        has = call.options
        if self.record.rate is None and has.get("momentum"):
            yield (
                "whether the rate is in the velocity or outside it: at one constant rate the "
                "forms are the same; hand in set_lr"
            )
        start = has.get("initial_accumulator_value")
        if start and has.get("eps_placement") != "outside":
            yield "eps and the initial accumulator apart: only their sum counts"
        elif call.rule == "Adagrad" and has["eps"] > 1e-4:
            yield "whether an eps as large as this is an initial accumulator: it does the same"

    # ---- formulas ----

    def fits(self) -> Iterator[Fit]:
        """The rules that the small gradients leave, with all numbers and limits."""
        first = "SGD" if self.hints.linear else "Adagrad"
        small: list[tuple[int, Fit]] = []
        rules = formula.rules()
        for i in sorted(range(len(rules)), key=lambda i: rules[i].rule != first):
            each = rules[i]
            if self.hints.decays is not None and self.hints.decays != ("wd" in each.numbers):
                continue
            fit = best(each, each.starts(self.hints), self.answers, SMALL)
            if not fit.fits:
                continue
            small.append((i, fit))
            # Small gradients leave eps open where an accumulator starts far above it.
            usual = candidates.USUAL_EPS if "s0" in fit.numbers else ()
            starts = [fit.numbers, *(fit.numbers | {"eps": near} for near in usual)]
            whole = best(each, starts, self.answers, KNOWN_STEPS)
            if whole.fits:
                yield whole
            else:
                yield from (other for other in self.clipped(fit, "") if other.fits)
        for clip in CLIPPED:
            clipping = formula.rules(clip)
            for i, fit in small:
                changed = replace(fit, formula=clipping[i], clip=clip)
                for other in self.clipped(changed, clip):
                    if other.fits:
                        yield replace(other, clip=clip)
        for _, fit in small:
            self.remember(fit)

    def clipped(self, small: Fit, clip: str) -> Iterator[Fit]:
        """With one of the limits, begun where the first answer is out of line."""
        each = small.formula
        away = distances(each, small.numbers, self.answers, KNOWN_STEPS)
        away = np.abs(away).reshape(KNOWN_STEPS, -1).max(axis=1)
        late = np.flatnonzero(away[SMALL:] > 16 * LIMIT)
        if not late.size:
            return
        t = SMALL + int(late[0])
        g = np.abs(self.answers.g)
        if clip == "update":
            g = np.abs(np.diff(self.answers.x, axis=0)) / (1 + 1e-9)
        norms = np.sqrt((g * g).sum(axis=1))
        array = [np.sqrt(self.layout.over_array(row * row)).max() for row in g]
        for name, sizes in (
            ("max_value", g.max(axis=1)),
            ("max_norm", norms),
            ("max_array_norm", array),
        ):
            low = max(sizes[:t])
            start = sizes[t] if clip == "update" else np.sqrt(max(low, sizes[t] / 64) * sizes[t])
            more = {"norm_eps": 0.0} if name != "max_value" else {}
            yield fitted(
                each, small.numbers | {name: float(start)} | more, self.answers, KNOWN_STEPS
            )

    def remember(self, fit: Fit) -> None:
        """A call that has the first steps, if nothing better is found."""
        numbers = next(rounded_all(fit, self.eps))
        if candidates.wrong(numbers):
            return
        each = fit.formula
        for call in candidates.calls(each.rule, each.traits, numbers, self.eps):
            self.consider(call)

    def consider(self, call: Call) -> None:
        try:
            seen = compared(call.run(self.record, self.record.rate), self.record, LIMIT)
        except ValueError:  # numbers out of their ranges
            return
        key = seen.first or STEPS + 1
        if self.near is None or key > (self.near[1].first or STEPS + 1):
            self.near = call, seen

    def judged(self, fit: Fit) -> Identity | None:
        """What the optimizers make of it; None if they do not come near."""
        each, numbers = fit.formula, next(rounded_all(fit, self.eps))
        wrong = candidates.wrong(numbers) or CLIPPED.get(fit.clip, "")
        if wrong:
            right = {k: v for k, v in numbers.items() if k in ("lr", "mu", "eps", "s0")}
            right |= {k: abs(v) for k, v in numbers.items() if k in ("wd", "mu")}
            if fit.clip:
                right |= {k: v for k, v in numbers.items() if k.startswith(("max_", "norm_"))}
            self.near = None
            right = {k: min(v, 1.0) if k == "mu" else v for k, v in right.items()}
            for call in candidates.calls(each.rule, each.traits, right, self.eps):
                self.consider(call)
            near = self.near or (None, None)
            return self.identity("none", near[0], wrong, near[1])
        tried: list[tuple[Call, Comparison]] = []
        for chosen in rounded_all(fit, self.eps):
            for call in candidates.calls(each.rule, each.traits, chosen, self.eps):
                for rate in self.rates(call):
                    try:
                        seen = compared(call.run(self.record, rate), self.record, LIMIT)
                    except ValueError:
                        continue
                    tried.append((call, seen))
            if any(seen.same for _, seen in tried):
                break
        same = [call for call, seen in tried if seen.same]
        if same:
            self.doubt(same)
            return self.identity("same", same[0], "", Comparison(True, 0.0, None))
        close = [(seen.eps, i) for i, (_, seen) in enumerate(tried) if seen.eps <= LIMIT]
        if close and (doubled := self.doubled(tried[min(close)[1]][0])):
            return doubled
        if close:
            return self.near_to(tried, close)
        return self.other_rate(fit, [call for call, _ in tried])

    def doubled(self, call: Call) -> Identity | None:
        """Squares that count twice make another rate of it, one that is no round number."""
        lr, root = call.options["lr"], float(np.sqrt(2.0))
        if call.rule != "Adagrad" or callable(lr) or is_round(lr, self.eps):
            return None
        outside = call.options.get("eps_placement") == "outside"
        eps = call.options["eps"] * (root if outside else 2.0)
        meant = {"lr": roundest(lr * root, self.eps), "eps": roundest(eps, self.eps)}
        if not is_round(lr * root, self.eps):
            return None
        right = Call("Adagrad", call.options | meant)
        seen = compared(right.run(self.record, self.record.rate), self.record, LIMIT)
        self.notes += (f"what it does is, to rounding errors, {call}",)
        cause = "every square counts twice, which divides the rate by the root of 2"
        return self.identity("none", right, cause, seen)

    def rates(self, call: Call) -> Iterator[float | None]:
        """What the last steps' rate may mean to the call: as set, or times what the update does to
        its gradients."""
        rate, before = self.record.rate, self.update.before
        yield rate
        lr = call.options["lr"]
        if rate is not None and before and not callable(lr) and lr != before:
            yield rate * (lr / before)

    def near_to(
        self, tried: list[tuple[Call, Comparison]], close: list[tuple[float, int]]
    ) -> Identity:
        for _, i in close:
            if reason := spelled(tried[i][0], self.record):
                return self.identity("close", tried[i][0], reason, tried[i][1])
        least = min(close)[0]
        # Between those that are as near, the order of preference.
        call, seen = tried[next(i for eps, i in close if eps <= 2 * least + 2)]
        reason = "it is the same formula in another order of operations"
        if any(name.startswith("max_") and name != "max_value" for name in call.options):
            reason = "norms are summed in another order, or all of it is"
        return self.identity("close", call, reason, seen)

    def doubt(self, same: list[Call]) -> None:
        others = [call for call in same[1:] if str(call) != str(same[0])]
        for other in dict.fromkeys(map(str, others)):
            self.notes += (f"{other} has the same bits here",)

    def other_rate(self, fit: Fit, calls: list[Call]) -> Identity | None:
        """Right up to the change of the rate."""
        rate = self.record.rate
        if rate is None:
            return None
        self.near, cause = None, "it follows its rate in another way after a change"
        for call in calls:
            self.consider(call)
            lr = call.options["lr"]
            if callable(lr):
                continue
            if compared(call.run(self.record, lr), self.record, LIMIT).eps <= LIMIT:
                cause = "setting the rate changes nothing"
        if self.near is None:
            return None
        lr = abs(fit.numbers["lr"])
        if fit.formula.rule == "SGD" and self.near_with(twice(fit.formula, lr**0.5, rate), fit):
            cause = "the rate counts twice: in the velocity and in the step"
        return self.identity("none", self.near[0], cause, self.near[1])

    def near_with(self, each: formula.Formula, fit: Fit) -> bool:
        away = distances(each, fit.numbers, self.answers, STEPS)
        return bool(np.abs(away).max() <= LIMIT)

    # ---- mistakes ----

    def mistaken(self) -> Iterator[Fit]:
        for each in mistakes(self.hints.decays):
            small = best(each, each.starts(self.hints), self.answers, SMALL)
            if small.fits:
                fit = fitted(each, small.numbers, self.answers, KNOWN_STEPS)
                if fit.fits:
                    yield fit

    def diagnosed(self, fit: Fit) -> Identity:
        each, numbers = fit.formula, next(rounded_all(fit, self.eps))
        assert each.nearest is not None
        call = Call(each.rule, each.nearest(numbers))
        try:
            seen = compared(call.run(self.record, self.record.rate), self.record, LIMIT)
        except ValueError:
            return self.identity("none", None, each.cause)
        return self.identity("none", call, each.cause, seen)

    def nearest_of_all(self) -> None:
        for each in formula.rules():
            if each.traits["schedule"] or "wd" in each.numbers:
                continue
            fit = best(each, each.starts(self.hints)[:1], self.answers, 3)
            self.remember(fit)
