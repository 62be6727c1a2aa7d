"""What the optimizers share: construction, groups, pickling."""

import copyreg
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np

from thalweg import _core
from thalweg._optimizer.averages import Averages
from thalweg._optimizer.copies import paused, put_state, state_of
from thalweg._optimizer.groups import LIMITS, Group, Grouping, State, check_names, is_grouped
from thalweg._optimizer.spelling import hint
from thalweg._optimizer.telling import described
from thalweg._optimizer.tree import Flat, fill, matched
from thalweg.presets import check_kept, preset

# Stands for the kernel of a group whose state the caller gives, before there is one.
GIVEN = "given"

Result = TypeVar("Result")


def _plain(value: Any) -> Any:
    """A flag or a word as Python's own, not as NumPy's."""
    return bool(value) if isinstance(value, np.bool_) else value


class Optimizer(_core.Optimizer):
    """What SGD and Adagrad have in common; ``step`` is native and inherited.

    A rule is a subclass with ``_slot``, the name of its state; ``_fixed``, the options that choose
    the kernel and so stay as they were made; and ``_kernel``, which checks how options combine and
    names the kernel.
    """

    _slot: ClassVar[str]
    _fixed: ClassVar[tuple[str, ...]]
    _presets: ClassVar[dict[str, dict[str, Any]]]

    @staticmethod
    def _kernel(options: Mapping[str, Any], kernel: str = "") -> str:
        """Refuse options that exclude each other; ``kernel`` is the one already chosen, if any."""
        raise TypeError("Optimizer: expected SGD or Adagrad, received the base class")

    def __init__(
        self,
        params: Any,
        options: dict[str, Any],
        grads: Any = None,
        state: Any = None,
        watch: bool = True,
        zero_grads: bool = False,
        **limits: Any,
    ) -> None:
        if not isinstance(watch, (bool, np.bool_)):
            raise TypeError(f"watch: expected True or False, received {watch!r}")
        options = options | {"frozen": False}
        made = Grouping(params, options)
        layout = made.grouped, made.trees, made.arrays, made.group_of
        forms = made.trees if made.grouped else made.trees[0]
        given = [*matched(forms, state, "state")]
        # A velocity that is given takes part, whatever the momentum.
        kernels = [""] * len(made.options)
        for group, array in zip(made.group_of, given, strict=True):
            if array is not None:
                kernels[group] = GIVEN
        self._build(*layout, made.options, options, grads, kernels, given)
        self._watching = bool(watch)
        if watch:
            self._watch(made.containers, grads)
        self.zero_grads = zero_grads
        for name, value in limits.items():
            setattr(self, name, value)

    def _build(
        self,
        grouped: bool,
        trees: list[Any],
        arrays: dict[str, Any],
        group_of: list[int],
        options: list[dict[str, Any]],
        defaults: dict[str, Any],
        grads: Any,
        kernels: list[str],
        given: list[Any],
    ) -> None:
        if "_kernels" in vars(self):
            raise TypeError("__init__: this optimizer holds arrays already; make a new one")
        self._grouped, self._trees, self._group_of = grouped, list(trees), list(group_of)
        self._defaults = defaults
        # The group of each tree, by its place in param_groups; a pattern's group has no tree.
        self._bodies = list(range(len(trees)))
        self._arrays = arrays
        # A copy of an optimizer whose momentum was set to 0 has a velocity all the same.
        made = list(map(self._kernel, options, kernels))
        self._options = list(map(self._kept, options))
        leaves = [
            (*leaf, group, state)
            for leaf, group, state in zip(arrays.items(), group_of, given, strict=True)
        ]
        plans = list(map(self._plan, made, options))
        super().__init__(trees if grouped else trees[0], leaves, plans, grads)
        self._kernels, self._given = made, given

    def add_group(self, group: Mapping[str, Any]) -> None:
        """Take in more arrays: a mapping with "params" and options, as in the list of groups.

        Options that it does not name have the values the constructor was given; the patterns
        ("match") beside those do not reach it. Its gradients are one more item of the list that
        ``step`` takes.

        Raises ValueError or TypeError, with nothing changed, if the group does not fit, if the
        optimizer was not made with groups (then ``step`` takes a tree, not a list of trees) or if
        its gradients are bound.

        Example
        -------
        >>> import numpy as np, thalweg as tw
        >>> opt = tw.SGD([{"params": np.zeros(2)}], lr=0.1)
        >>> opt.add_group({"params": np.ones(3), "lr": 0.01})
        >>> opt.step([np.ones(2), np.ones(3)])
        True
        """
        if not self._grouped:
            raise ValueError(
                "add_group: expected an optimizer made with groups, received one made with a tree; "
                'make it with a list: [{"params": ...}]'
            )
        if not isinstance(group, Mapping) or "params" not in group:
            received = list(group) if isinstance(group, Mapping) else type(group).__name__
            raise TypeError(
                f'add_group: expected a mapping with "params" and options, received {received}; '
                'patterns ("match") stand beside the params that the optimizer is made with'
            )
        if not is_grouped([group], self._defaults, len(self._trees)):
            unknown = next(k for k in group if k not in ("params", "name", *self._defaults))
            raise TypeError(
                f"add_group: expected the options {', '.join(self._defaults)}, received {unknown!r}"
                f"{hint(unknown, self._defaults)}"
            )
        if "name" in group:
            check_names([group["name"]], [each.name for each in self.param_groups if each.name])
        given = group["params"]
        options = self._defaults | {key: x for key, x in group.items() if key != "params"}
        # Those of other threads have other numbers.
        with paused(self):
            flat = Flat(self._arrays)
            first, index = len(flat.leaves), len(self.param_groups)
            tree = flat.add(given, str(len(self._trees)))
            added = list(flat.leaves.items())[first:]
            if not added:
                raise ValueError("params: expected at least one array, received none")
            kernel = self._kernel(options)
            leaves = [(name, array, index) for name, array in added]
            watched = given if self._watching else None
            self._add_group(tree, leaves, self._plan(kernel, options), watched)
            self._arrays = flat.leaves
            self._trees.append(tree)
            self._bodies.append(index)
            self._group_of += [index] * len(added)
            self._given += [None] * len(added)
            self._options.append(self._kept(options))
            self._kernels.append(kernel)  # last: it makes the group seen

    @classmethod
    def _numbers(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that the core keeps; it knows their ranges."""
        fixed = (*cls._fixed, "name")
        return {name: value for name, value in options.items() if name not in fixed}

    @classmethod
    def _kept(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those that stay as they were made, and the name of the group if it has one."""
        fixed = {name: _plain(options[name]) for name in cls._fixed}
        return fixed | ({"name": options["name"]} if options.get("name") else {})

    @classmethod
    def _plan(cls, kernel: str, options: Mapping[str, Any]) -> tuple[Any, ...]:
        """A group as the core takes it."""
        return kernel, cls._numbers(options), options.get("name") or ""

    def replace(self, name: str, array: Any, state: Any = None) -> None:
        """Step another array in the place of this one: longer or shorter along its first axis.

        Rows that both have keep their state, new rows start as at construction. Counters and
        options stay; the values are the new array's own. It belongs at that place of the container
        from then on: put it there, too. All or nothing.

        Parameters
        ----------
        name : str
            As in ``opt.state``.
        array : array
            Of the same dtype and, but for its length, shape.
        state : array or None
            Only where the caller gave the state (``state=...``): the one for the new array, used as
            it is. Given in place of one of ours, it is the caller's from then on.

        Raises
        ------
        KeyError, TypeError, ValueError
            There is no such array, or the new one does not fit; the optimizer's gradients are
            bound.
        RuntimeError
            Within a step.

        Example
        -------
        >>> import numpy as np, thalweg as tw
        >>> params = {"emb": np.zeros((2, 3))}
        >>> opt = tw.Adagrad(params, lr=0.1)
        >>> opt.step({"emb": np.ones((2, 3))})
        True
        >>> params["emb"] = np.concatenate([params["emb"], np.zeros((1, 3))])
        >>> opt.replace("emb", params["emb"])
        >>> opt.state["emb"]["accumulator"][:, 0]
        array([1., 1., 0.])
        """
        with paused(self):
            names = list(self._arrays)
            if not isinstance(name, str) or name not in self._arrays:
                some = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
                raise KeyError(f"replace: expected one of {some}, received {name!r}")
            i = names.index(name)
            self._replace(i, array, state)
            self._arrays = {**self._arrays, name: array}
            self._given = [*self._given[:i], state, *self._given[i + 1 :]]

    @classmethod
    def like(cls, source: str, params: Any, **overrides: Any) -> Self:
        """Make an optimizer with the defaults of another library or book.

        The sources are the keys of ``thalweg.presets``; any option may be overridden except form
        and eps_placement, which make a source what it is.

        Example
        -------
        >>> import numpy as np, thalweg as tw
        >>> tw.Adagrad.like("keras", np.zeros(3), lr=0.01).param_groups[0]["eps"]
        1e-07
        """
        opt = cls(params, **preset(cls._presets, source, overrides))
        for group in opt.param_groups:
            check_kept(cls._presets, source, group)
        return opt

    @property
    def params(self) -> Any:
        """The arrays that ``step`` changes, in the structure they were given in.

        With groups it is a list with one structure for each "params", as ``step`` takes the
        gradients; ``add_group`` puts one more behind them. Dicts, lists and tuples are new at each
        call, other mappings come as dicts; the arrays are the live ones. Whoever unpickles or loads
        an optimizer reads them here: copies that joblib made of a model and its optimizer share no
        arrays.

        Example
        -------
        >>> import numpy as np, thalweg as tw
        >>> opt = tw.SGD({"w": np.ones(2)}, lr=0.5)
        >>> opt.step({"w": np.ones(2)})
        True
        >>> opt.params
        {'w': array([0.5, 0.5])}
        """
        trees = list(self._trees)  # first: a group that is added brings its arrays before its tree
        arrays = list(self._arrays.values())
        params = [fill(tree, arrays) for tree in trees]
        params = params if self._grouped else params[0]
        if self._watching and not self._is_watching:
            self._watch(params)
        return params

    @property
    def param_groups(self) -> tuple[Group, ...]:
        """The groups, as mappings of their options."""
        # Made anew: kept, they and the optimizer would hold each other and the state.
        return tuple(Group(self, i) for i in range(len(self._kernels)))

    @property
    def state(self) -> Mapping[str, Mapping[str, Any]]:
        """By name of the array: views of its live state, and "step", the steps it has taken."""
        return State(self)

    @property
    def averages(self) -> Mapping[str, Any]:
        """By name of the array: a view of the live average of its weights.

        Before the array's first step with ``weight_average`` it is what the param is. Empty where
        weights are not averaged.
        """
        return Averages(self)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of all but the params: plain dicts of names, numbers and copies of arrays.

        Schedules of ``thalweg.schedules`` are dicts of their name and fields, other callables the
        word "callable". ``load_state_dict`` puts it back; ``thalweg.save_checkpoint`` writes it and
        the params into a file.

        Example
        -------
        >>> import numpy as np, thalweg as tw
        >>> opt = tw.SGD({"w": np.ones(2)}, momentum=0.9)
        >>> opt.state_dict()["arrays"]
        {'w': {'group': 0, 'step': 0, 'velocity': array([0., 0.])}}
        """
        from thalweg._optimizer import whole

        with paused(self):
            return whole.taken(self)

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        *,
        options: Literal["file", "live"] | None = None,
        strict: bool = True,
        rename: Mapping[str, str] | None = None,
    ) -> Any:
        """Put a ``state_dict`` back into the live state; params stay as they are.

        Arrays are matched by name and copied; they keep their dtype. The rule, form, nesterov,
        dampening, eps, eps_placement and accumulator must be this optimizer's. Of the other
        ``options`` the state_dict's hold ("file"; without a word a UserWarning first says where
        they differ), or the live ones stay ("live"). A callable that is no schedule of
        ``thalweg.schedules`` stays as it is. Raises ValueError, with all that does not fit in one
        message and nothing changed.

        With ``strict=False`` what fits by name, shape and rule is loaded, the rest and the options
        stay, and a ``thalweg.LoadReport`` says which is which. ``rename={"old": "new"}`` names
        arrays of the state_dict, or all that is below a name, as they are called here:
        ``rename={"": "0"}`` turns a tree into the first group.
        """
        from thalweg._optimizer import matching
        from thalweg._optimizer import options as option

        option.check_whose(options)
        matching.check_words(strict, options, rename)
        with paused(self):
            return matching.load_state_dict(self, state_dict, options, strict, rename)

    def _members(self) -> dict[str, "Optimizer"]:
        return {"": self}

    def _by_writer(self, act: Callable[[], Result], changes: bool = False) -> Result:
        """Where several processes hold one optimizer, the one that reads and writes files acts."""
        return act()

    @staticmethod
    def _copy(live: Any, other: Any) -> None:
        np.copyto(live, other)

    def _refuse_attribute(self, name: str) -> None:
        """A name that no attribute has; a class derived from a rule's may have its own."""
        if type(self).__base__ is Optimizer:
            known = ("lr", *LIMITS, "zero_grads")
            raise AttributeError(
                f"{name}: expected one of what can be set, {', '.join(known)}, received a name "
                f"that no step would read{hint(name, (*known, *self._defaults))}; an option of a "
                "group is opt.param_groups[i][...], and a subclass may have attributes of its own"
            )

    def __repr__(self) -> str:
        return described(self)

    def __copy__(self) -> Self:
        raise TypeError(
            "copy.copy: two optimizers cannot share one state; "
            "use copy.deepcopy((params, opt)), which keeps their arrays together"
        )

    def _check_whole(self) -> None:
        """Refuse to hand on what a load that failed has left."""
        if self._refusal:
            raise RuntimeError(self._refusal)

    def __reduce__(self) -> tuple[Any, ...]:
        # All of it is state, none an argument: a schedule that holds this optimizer must find its
        # copy made when it is copied itself.
        with paused(self):
            self._check_whole()
            return copyreg.__newobj__, (type(self),), state_of(self)  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        put_state(self, state)
