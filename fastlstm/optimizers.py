"""Optimizers, clipping and learning-rate schedules, with PyTorch's names, defaults and numerics.

    optimizer = fastlstm.Adam(module, lr=1e-3)
    gradients, norm = fastlstm.clip_grad_norm(tape.backward(d_output).parameters, 1.0)
    optimizer.lr = schedule(step)
    optimizer.step(gradients)

A module is what has `state_dict` and `load_state_dict`: a layer or a Sequential. All arithmetic is NumPy's
element-wise one in the parameters' dtype, so its bits depend on no number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _check

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "clip_grad_norm",
    "constant_schedule",
    "cosine_schedule",
    "warmup_schedule",
]

Array: TypeAlias = npt.NDArray[Any]
Schedule: TypeAlias = Callable[[int], float]


class Module(Protocol):
    """What an optimizer asks of a module."""

    def state_dict(self) -> dict[str, Array]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> Any: ...


class _Optimizer:
    """What the optimizers have in common: settings, each parameter's state, the step around `_update`."""

    _settings: ClassVar[tuple[str, ...]]  # the attributes that `state_dict` keeps, all numbers
    # What is kept for each parameter, beginning as zeros; under a setting's name, only if that is not 0.
    _slots: ClassVar[dict[str, str | None]]

    def __init__(self, module: Module, lr: float, weight_decay: float) -> None:
        self._module: Module = _check.trainable("module", module)
        self.lr = lr
        self._weight_decay = _check.number("weight_decay", weight_decay, 0.0, math.inf)
        self._states: dict[str, dict[str, Any]] = {}  # by parameter: "step" and the slots

    @property
    def lr(self) -> float:
        """The learning rate of the next step; can be assigned."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = _check.number("lr", value, 0.0, math.inf)

    def _check_settings(self, settings: Mapping[str, float]) -> None:
        """Refuse settings that the constructor would."""

    def _update(self, parameter: Array, gradient: Array, state: dict[str, Any]) -> None:
        """Change the parameter and its state in place. The gradient may be the caller's own array."""
        raise NotImplementedError

    def step(self, gradients: Mapping[str, npt.ArrayLike]) -> None:
        """Take one step: the module gets new parameters.

        gradients: the loss's by parameter, names and shapes those of `module.state_dict()`, as
            `tape.backward(..).parameters`; converted to the parameters' dtype. A parameter without a gradient
            stays as it is, as PyTorch's.

        Raises TypeError or ValueError, before anything has changed, for names or shapes that do not fit.
        """
        parameters = self._module.state_dict()
        checked = _check.gradients("gradients", gradients, parameters)
        with np.errstate(all="ignore"):  # inf and NaN are values like any other
            for name, gradient in checked.items():
                state = self._states.get(name)
                if state is None:
                    slots = (s for s, on in self._slots.items() if on is None or getattr(self, f"_{on}"))
                    state = {"step": 0} | {slot: np.zeros_like(gradient) for slot in slots}
                    self._states[name] = state
                state["step"] += 1
                self._update(parameters[name], gradient, state)
        self._module.load_state_dict(parameters)

    def state_dict(self) -> dict[str, Any]:
        """Settings and state: numbers and copies of arrays, flat, "exp_avg/weight_ih_l0" and the like.

        `load_state_dict` of an optimizer of the same kind on a module with the same parameters goes on from
        it with the same bits.
        """
        entries: dict[str, Any] = {name: getattr(self, f"_{name}") for name in self._settings}
        for name, state in self._states.items():
            entries |= {f"{key}/{name}": np.copy(v) if key != "step" else v for key, v in state.items()}
        return entries

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take settings and state of `state_dict()`; the module's parameters are not part of it.

        Raises ValueError listing what is missing or unexpected, TypeError or ValueError for what is no number
        or has the wrong shape; nothing changes then.
        """
        settings, states = _check.optimizer_state(
            "state_dict", state_dict, self._settings, self._slots, self._module.state_dict()
        )
        self._check_settings(settings)
        for name, value in settings.items():
            setattr(self, f"_{name}", value)
        self._states = states


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum.

        d = dp + weight_decay p;  m' = momentum m + (1 - dampening) d (m' = d in the first step);
        p' = p - lr m', or p - lr (d + momentum m') with nesterov

    module: what has `state_dict` and `load_state_dict`.
    lr, momentum, dampening, weight_decay: numbers of at least 0. lr can be assigned later.
    nesterov: needs a momentum and no dampening.

    Raises TypeError or ValueError naming the argument. Sutskever et al. 2013, "On the importance of
    initialization and momentum in deep learning"; the form is `torch.optim.SGD`'s.
    """

    _settings = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    _slots = {"momentum_buffer": "momentum"}

    def __init__(
        self,
        module: Module,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(module, lr, weight_decay)
        self._momentum = _check.number("momentum", momentum, 0.0, math.inf)
        self._dampening = _check.number("dampening", dampening, 0.0, math.inf)
        self._nesterov = float(_check.flag("nesterov", nesterov))
        if nesterov:
            _check.nesterov(self._momentum, self._dampening)

    def _check_settings(self, settings: Mapping[str, float]) -> None:
        if settings["nesterov"]:
            _check.nesterov(settings["momentum"], settings["dampening"])

    def _update(self, parameter: Array, gradient: Array, state: dict[str, Any]) -> None:
        if self._weight_decay:
            gradient = gradient + self._weight_decay * parameter
        if self._momentum:
            buffer = state["momentum_buffer"]
            if state["step"] == 1:
                buffer[...] = gradient
            else:
                buffer *= self._momentum
                buffer += (1 - self._dampening) * gradient
            gradient = gradient + self._momentum * buffer if self._nesterov else buffer
        parameter -= self._lr * gradient


class Adam(_Optimizer):
    """Adam: steps scaled by running means of the gradient and of its square.

        m' = β1 m + (1 - β1) d;  v' = β2 v + (1 - β2) d²;
        p' = p - lr m' / (1 - β1^t) / (√(v' / (1 - β2^t)) + eps)

    with d = dp + weight_decay p and t the number of the step.

    module: what has `state_dict` and `load_state_dict`.
    lr, eps, weight_decay: numbers of at least 0. lr can be assigned later.
    betas: (β1, β2), each at least 0 and below 1.
    amsgrad: v' is replaced by the largest v' so far.

    Raises TypeError or ValueError naming the argument. Kingma & Ba 2015, "Adam: a method for stochastic
    optimization"; Reddi, Kale & Kumar 2018, "On the convergence of Adam and beyond" (amsgrad); the form is
    `torch.optim.Adam`'s.
    """

    _settings = ("lr", "beta1", "beta2", "eps", "weight_decay", "amsgrad")
    _slots = {"exp_avg": None, "exp_avg_sq": None, "max_exp_avg_sq": "amsgrad"}
    _decoupled: ClassVar[bool] = False  # whether weight decay acts on the parameter, not on the gradient

    def __init__(
        self,
        module: Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(module, lr, weight_decay)
        self._beta1, self._beta2 = _check.betas("betas", betas)
        self._eps = _check.number("eps", eps, 0.0, math.inf)
        self._amsgrad = float(_check.flag("amsgrad", amsgrad))

    def _check_settings(self, settings: Mapping[str, float]) -> None:
        _check.betas("betas", (settings["beta1"], settings["beta2"]))

    def _update(self, parameter: Array, gradient: Array, state: dict[str, Any]) -> None:
        if self._weight_decay and self._decoupled:
            parameter *= 1 - self._lr * self._weight_decay
        elif self._weight_decay:
            gradient = gradient + self._weight_decay * parameter
        mean, square, scratch = state["exp_avg"], state["exp_avg_sq"], np.subtract(gradient, state["exp_avg"])
        if self._beta1 > 0.5:  # as torch.lerp: from the nearer end
            scratch *= 1 - self._beta1
            mean += scratch
        else:
            scratch *= self._beta1
            np.subtract(gradient, scratch, out=mean)
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1 - self._beta2
        square *= self._beta2
        square += scratch
        if self._amsgrad:
            square = np.maximum(state["max_exp_avg_sq"], square, out=state["max_exp_avg_sq"])
        correction1 = 1 - self._beta1 ** state["step"]
        correction2 = 1 - self._beta2 ** state["step"]
        np.sqrt(square, out=scratch)
        scratch /= math.sqrt(correction2)
        scratch += self._eps
        np.divide(mean, scratch, out=scratch)
        scratch *= self._lr / correction1
        parameter -= scratch


class AdamW(Adam):
    """Adam whose weight decay acts on the parameters, p (1 - lr weight_decay), not through the gradient.

    Arguments, shapes and errors are `Adam`'s; only the default of weight_decay differs. Loshchilov & Hutter
    2019, "Decoupled weight decay regularization"; the form is `torch.optim.AdamW`'s.
    """

    _decoupled = True

    def __init__(
        self,
        module: Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(module, lr, betas, eps, weight_decay, amsgrad)


def clip_grad_norm(gradients: Mapping[str, npt.ArrayLike], max_norm: float) -> tuple[dict[str, Array], float]:
    """Scale gradients so that the Euclidean norm of all of them together is at most max_norm.

    gradients: arrays by name, as `tape.backward(..).parameters`; max_norm: a number above 0.

    Returns (gradients, norm): the arrays given, if the norm (summed in float64) is below max_norm, or fresh
    ones times max_norm / (norm + 1e-6), as `torch.nn.utils.clip_grad_norm_` has it; and the norm before. A
    norm that is no number makes no number of all of them: look at it. Raises TypeError or ValueError naming
    the argument. Pascanu, Mikolov & Bengio 2013, "On the difficulty of training recurrent neural networks".
    """
    max_norm = _check.positive("max_norm", max_norm)
    arrays = _check.gradients("gradients", gradients)
    with np.errstate(all="ignore"):
        squares = (float(np.square(a, dtype=np.float64).sum()) for a in arrays.values())
        norm = math.sqrt(sum(squares))
        scale = max_norm / (norm + 1e-6)
        if scale >= 1:
            return arrays, norm
        return {name: np.asarray(a * scale, a.dtype) for name, a in arrays.items()}, norm


def constant_schedule(lr: float) -> Schedule:
    """The same learning rate at every step. Raises TypeError or ValueError unless lr is at least 0."""
    lr = _check.number("lr", lr, 0.0, math.inf)
    return lambda step: lr


def cosine_schedule(lr: float, steps: int, minimum: float = 0.0) -> Schedule:
    """From lr at step 0 along half a cosine to the minimum at step `steps`, where it stays.

    Raises TypeError or ValueError naming the argument: 0 ≤ minimum ≤ lr, steps at least 1. Loshchilov &
    Hutter 2017, "SGDR: stochastic gradient descent with warm restarts".
    """
    lr = _check.number("lr", lr, 0.0, math.inf)
    steps, minimum = _check.integer("steps", steps, 1), _check.number("minimum", minimum, 0.0, lr)
    return lambda step: minimum + (lr - minimum) * (1 + math.cos(math.pi * min(step, steps) / steps)) / 2


def warmup_schedule(schedule: Schedule, steps: int) -> Schedule:
    """Another schedule, times (step + 1) / steps in the first `steps` steps.

    Raises TypeError or ValueError naming the argument: steps at least 0, where 0 is no warm-up.
    """
    schedule = _check.function("schedule", schedule)
    steps = _check.integer("steps", steps, 0)
    return lambda step: schedule(step) * (min(1.0, (step + 1) / steps) if steps else 1.0)
