"""torch's SGD and Adagrad, stepped by thalweg: the training loop stays as it is.

Dense float32 and float64 params on the CPU are stepped natively, with the formulas' exact bits;
whatever else torch's optimizers take is stepped by torch's own code, in the same step.

Example
-------
>>> import torch, thalweg.torch
>>> net = torch.nn.Linear(5, 1)
>>> trainer = thalweg.torch.SGD(net.parameters(), lr=0.1, momentum=0.9)
>>> net(torch.ones(2, 5)).sum().backward()
>>> trainer.step()
>>> trainer.zero_grad()
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch.optim import adagrad, sgd
from torch.optim.optimizer import Optimizer

from thalweg import _core

__all__ = ["SGD", "Adagrad"]

# What a step does where the option is not given.
_SHARED = {
    "max_norm": None,
    "norm_eps": 1e-6,
    "max_value": None,
    "on_nonfinite": "propagate",
    "decoupled": False,
}


def _without_hooks(step: Any) -> Callable[..., Any]:
    """torch's own function; its class may have been patched by the first optimizer made."""
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    return step  # type: ignore[no-any-return]


class _Stepped(Optimizer):
    """What SGD and Adagrad share: who steps which param."""

    _rule: ClassVar[str]
    _ours: ClassVar[dict[str, Any]]
    _step_of_torch: ClassVar[Callable[..., Any]]
    _stepper: _core.TorchStepper

    def _begin(self, options: dict[str, Any]) -> None:
        """The rest of the constructor: options of ours stand only where they were given."""
        for name in options:
            if name not in self._ours and name != "capturable":
                raise TypeError(
                    f"{type(self).__name__}.__init__() got an unexpected keyword argument {name!r}"
                )
        self.defaults.update(options)
        self._stepper = _core.TorchStepper(self._rule)
        self._complete_groups()
        if any(self._given(group) for group in self.param_groups):
            self._stepper.check(self)

    def _complete_groups(self) -> None:
        for group in self.param_groups:
            for name in (*self._ours, "capturable"):
                if name in self.defaults:
                    group.setdefault(name, self.defaults[name])

    def _given(self, group: dict[str, Any]) -> list[str]:
        return [name for name, off in self._ours.items() if group.get(name, off) not in (off, None)]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_stepper" not in self.__dict__:
            self._stepper = _core.TorchStepper(self._rule)
        self._complete_groups()

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Perform a single optimization step.

        closure: reevaluates the model and returns the loss, which is then returned; optional.

        Raises what torch raises, ValueError where an option of thalweg's meets a param that
        torch's own code must step, FloatingPointError with on_nonfinite="raise"; nothing has
        changed by the native steps then.
        """
        if not args and not kwargs:
            done = self._stepper.step(self)
            if done is True:
                return None
            if done is not None:
                return self._step_rest(done)
        # A subclass's own step, which leads here, has been wrapped by torch and has run the hooks.
        outermost = type(self).step
        if outermost is not _Stepped.step and getattr(outermost, "hooked", False):
            return self._step_unseen(*args, **kwargs)
        return _step_seen(self, *args, **kwargs)

    step.hooked = True  # type: ignore[attr-defined]  # torch leaves it unwrapped: 10 us less
    step._torchdynamo_disable = True  # type: ignore[attr-defined]
    step.__signature__ = inspect.signature(sgd.SGD.step)  # type: ignore[attr-defined]

    def _step_unseen(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_rest(self._stepper.step_rest(self, set()))
        return loss

    def _step_rest(self, found: Any) -> None:
        """Steps by torch's own code what was found to be for it, and then all else natively."""
        left_out: set[tuple[int, int]] = set()
        while found is not True:
            for group, index, why in found:
                if given := self._given(self.param_groups[group]):
                    raise ValueError(
                        f"{self._name(group, index)}: expected a param that thalweg steps, "
                        f"because {given[0]} is given, which torch does not know; received {why}; "
                        f"leave {given[0]} out, or put the param into another optimizer"
                    )
            if self._is_to_be_skipped():
                return
            # torch's code would notice once the first of them has changed.
            for group, index, why in found:
                if why == "an inference tensor" and not torch.is_inference_mode_enabled():
                    raise RuntimeError(
                        "Inplace update to inference tensor outside InferenceMode is not allowed: "
                        f"{self._name(group, index)}; make it outside torch.inference_mode()"
                    )
            chosen = {(group, index) for group, index, _ in found}
            self._step_by_torch(chosen)
            left_out |= chosen
            found = self._stepper.step_rest(self, left_out)

    def _name(self, group: int, index: int) -> str:
        names = self.param_groups[group].get("param_names")
        named = f" ({names[index]})" if names else ""
        return f'param_groups[{group}]["params"][{index}]{named}'

    def _is_to_be_skipped(self) -> bool:
        """A GradScaler found an infinity: not even a buffer is made."""
        found_inf = getattr(self, "found_inf", None)
        fused = all(group["fused"] for group in self.param_groups)
        return fused and found_inf is not None and bool(found_inf.item())

    def _step_by_torch(self, chosen: set[tuple[int, int]]) -> None:
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.param_groups = []
        for g, group in enumerate(self.param_groups):
            params = [p for k, p in enumerate(group["params"]) if (g, k) in chosen]
            if params:
                part.param_groups.append({**group, "params": params})
        type(self)._step_of_torch(part)
        for name in part.__dict__.keys() & {"_need_device_dtype_check_for_fused"}:
            self.__dict__[name] = part.__dict__[name]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of all gradients, or set them to zero."""
        if not set_to_none or not self._stepper.zero_grad(self):
            super().zero_grad(set_to_none)

    zero_grad._torchdynamo_disable = True  # type: ignore[attr-defined]

    @property
    def skipped_steps(self) -> int:
        """Steps left out because of ``on_nonfinite="skip"``."""
        return self._stepper.skipped_steps

    @property
    def grad_norm(self) -> float | None:
        """The global norm of the last step with ``max_norm``, before clipping; None before."""
        return self._stepper.grad_norm

    def describe(self) -> str:
        """Which params are stepped natively, and which by torch's own code and why."""
        lines = []
        counts = {"thalweg": 0, "torch": 0, "nobody": 0}
        for g, k, why in self._stepper.explain(self):
            by = "thalweg" if why is None else "torch" if why else "nobody"
            counts[by] += 1
            because = {"thalweg": "", "torch": f": {why}", "nobody": ": it has no gradient"}[by]
            lines.append(f"  {self._name(g, k)} by {by}{because}")
        total = ", ".join(f"{count} by {by}" for by, count in counts.items() if count)
        return "\n".join([f"{type(self).__name__} steps {len(lines)} params: {total}", *lines])


_step_seen = Optimizer.profile_hook_step(_Stepped._step_unseen)


class SGD(_Stepped, sgd.SGD):
    r"""``torch.optim.SGD``, stepped by thalweg.

    ::

        g <- g + weight_decay*w
        v <- momentum*v + (1-dampening)*g      (first step: v <- g)
        u <- v   or   g + momentum*v           (nesterov)
        w <- w - lr*u

    every operator one rounding, where torch's kernels fuse some of them. Arguments, defaults,
    ``state``, hooks and errors are torch's. Beside them, by keyword, each off unless given:
    ``form`` (``"classic"`` or ``"ema"``), ``decoupled``, ``max_norm``, ``norm_eps``,
    ``max_value`` and ``on_nonfinite``, as in `thalweg.SGD`.

    Example
    -------
    >>> import torch, thalweg.torch
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> trainer = thalweg.torch.SGD([w], lr=0.5, momentum=0.9)
    >>> w.grad = torch.tensor([1.0, -1.0])
    >>> trainer.step()
    >>> w.tolist()
    [0.5, 2.5]
    """

    _rule = "sgd"
    _ours: ClassVar = {"form": "heavy_ball", **_SHARED}
    _step_of_torch = _without_hooks(sgd.SGD.step)

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: Any = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self._begin(options)

    def _fresh_state(self, param: Any, group: dict[str, Any]) -> dict[str, Any]:
        return {"momentum_buffer": torch.zeros_like(param)}


class Adagrad(_Stepped, adagrad.Adagrad):
    r"""``torch.optim.Adagrad``, stepped by thalweg.

    ::

        g <- g + weight_decay*w
        s <- s + g*g
        w <- w - (clr*g) / (sqrt(s) + eps)     clr = lr / (1 + step*lr_decay)

    every operator one rounding, where torch's kernels fuse some of them. Arguments, defaults,
    ``state``, hooks and errors are torch's. Beside them, by keyword, each off unless given:
    ``eps_placement`` (``"inside"``), ``decoupled``, ``max_norm``, ``norm_eps``,
    ``max_value`` and ``on_nonfinite``, as in `thalweg.Adagrad`.

    Example
    -------
    >>> import torch, thalweg.torch
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> trainer = thalweg.torch.Adagrad([w], lr=0.5)
    >>> w.grad = torch.tensor([1.0, -1.0])
    >>> trainer.step()
    >>> w.tolist()
    [0.5, 2.5]
    """

    _rule = "adagrad"
    _ours: ClassVar = {"eps_placement": "outside", **_SHARED}
    _step_of_torch = _without_hooks(adagrad.Adagrad.step)

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            lr,
            lr_decay,
            weight_decay,
            initial_accumulator_value,
            eps,
            foreach,
            maximize=maximize,
            differentiable=differentiable,
            fused=fused,
        )
        self._begin(options)

    def _fresh_state(self, param: Any, group: dict[str, Any]) -> dict[str, Any]:
        wide = not group["fused"] and torch.get_default_dtype() == torch.float64
        count = torch.zeros((), dtype=torch.float64 if wide else torch.float32, device="cpu")
        value = self.defaults["initial_accumulator_value"]
        return {"step": count, "sum": torch.full_like(param, value)}
