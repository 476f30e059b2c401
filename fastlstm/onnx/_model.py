"""`OnnxModel`, a whole graph that can be called, and `OnnxStream`, which carries its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, NoReturn, Self

import numpy as np

from .. import _check
from ..modules import _Alone
from ._graph import Graph, Port
from ._plan import Named, Placement, Plan
from ._read import Array, narrow


class OnnxModel:
    """An ONNX graph: recurrent nodes on fastlstm, everything else on another engine; made by `from_onnx`.

    `outputs = model({"x": x})` or `model(x=x)` takes the graph's inputs by name and gives its outputs by
    name, in the graph's order. `inputs` and `outputs` describe them, `report` says where each node runs and
    why, `reason` why it is no plain model. Any number of threads may call one model at once.
    """

    def __init__(self, graph: Graph, engine: str, num_threads: int, reason: str) -> None:
        self._inputs, self._outputs, self._reason = graph.inputs, graph.outputs, reason
        self._required = graph.inputs.keys() - graph.defaults
        self._plan = Plan(graph, engine, num_threads)

    @property
    def inputs(self) -> dict[str, Port]:
        """The graph's inputs by name: dtype and shape, where a name or None stands for any number."""
        return dict(self._inputs)

    @property
    def outputs(self) -> dict[str, Port]:
        """The graph's outputs by name, as `inputs`."""
        return dict(self._outputs)

    @property
    def report(self) -> list[Placement]:
        """For each node, in order: its name, operator, the engine that runs it and the reason."""
        return list(self._plan.report)

    @property
    def reason(self) -> str:
        """Why this is no plain model."""
        return self._reason

    def __repr__(self) -> str:
        own = sum(p.engine == "fastlstm" for p in self._plan.report)
        return f"OnnxModel({own} of {len(self._plan.report)} nodes on fastlstm)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an OnnxModel cannot be pickled or copied: keep the ONNX file that it is made from")

    def __call__(self, inputs: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, Any]:
        """Run the graph.

        inputs: array-likes by the graph's names, here or as keywords. Real numbers are converted to the
            declared dtype of a float input, integers to that of an integer input. Those with a default in
            the graph may be left out.

        Returns the outputs by name. Raises TypeError or ValueError naming the input, ValueError with the
        engine's words if it fails.
        """
        return self._plan.run(_checked(_joined(inputs, named), self._inputs, self._required))

    def stream(
        self,
        state: Mapping[str, str],
        initial: Mapping[str, Any] | None = None,
        *,
        batch_size: int = 1,
    ) -> OnnxStream:
        """An `OnnxStream`: it gives the graph its own state outputs as state inputs at the next step.

        state: for each state input the output that holds its next value: {"h_in": "h_out", ..}.
        initial: what a state input begins with; zeros where it is missing, of the declared shape, whose one
            open axis, if any, is batch_size long.

        Raises TypeError or ValueError naming the argument.
        """
        return OnnxStream(self, state, initial, batch_size)


class OnnxStream:
    """A graph that is fed step by step and keeps its state; made by `model.stream(state, initial)`.

    For one thread at a time (a concurrent step raises RuntimeError); streams are independent. It cannot be
    pickled.
    """

    def __init__(
        self, model: OnnxModel, state: Mapping[str, str], initial: Mapping[str, Any] | None, batch_size: int
    ) -> None:
        self._model, self._names = model, _state_names(model, state)
        batch = _check.integer("batch_size", batch_size, 1, 2**31 - 1)
        given = dict(initial or {})
        if unknown := given.keys() - self._names.keys():
            raise ValueError(
                f"initial must be of {', '.join(self._names)}, got {', '.join(map(str, unknown))}"
            )
        ports = model.inputs
        self._initial = {
            name: _value(name, given[name], ports[name]).copy()
            if name in given
            else _zeros(ports[name], batch)
            for name in self._names
        }
        self._ports = {name: port for name, port in ports.items() if name not in self._names}
        self._required = model._required & self._ports.keys()
        begun, places = model._plan.begun(), model._plan.places
        # A default holds for each step that is not given another value, so it is written each time.
        self._usual = {n: begun[places[n]] for n in self._ports.keys() - model._required if n in places}
        self._outputs = [name for name in model._plan.outputs if name not in self._names.values()]
        self._alone = _Alone()
        self._begin(self._initial)

    def _begin(self, state: Named) -> None:
        """With values of one's own, in which the state has its places."""
        self._values = self._model._plan.begun()
        for name, value in state.items():
            self._values[self._model._plan.places[name]] = value

    @property
    def _state(self) -> Named:
        return {name: self._values[self._model._plan.places[name]] for name in self._names}

    def step(self, inputs: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, Any]:
        """One call of the graph: its other inputs, as in a call of the model, to its other outputs.

        If anything is wrong the state stays. Raises as the model's call, RuntimeError if another thread is
        using this stream.
        """
        with self._alone:
            return self._step(_joined(inputs, named))

    def _step(self, given: Named) -> dict[str, Any]:
        plan, values = self._model._plan, self._values
        for name, value in {**self._usual, **_checked(given, self._ports, self._required)}.items():
            values[plan.places[name]] = value
        plan.follow(values)
        new = {name: plan.output(source, values) for name, source in self._names.items()}
        for name, value in new.items():
            old = values[plan.places[name]]
            if value.shape != old.shape or value.dtype != old.dtype:
                raise ValueError(
                    f"state: {self._names[name]} gives {value.dtype} {value.shape} for {name}, "
                    f"which is {old.dtype} {old.shape}"
                )
        outputs = {name: plan.output(name, values) for name in self._outputs}
        for name, value in new.items():
            values[plan.places[name]] = value
        return outputs

    def run(self, frames: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A step for each of the frames, inputs by name; the outputs of each."""
        return [self.step(frame) for frame in frames]

    @property
    def state(self) -> dict[str, Array]:
        """Copies of the state by the names of its inputs. Can be assigned, all of it or some: `reset` goes
        back to what was assigned last."""
        with self._alone:
            return {name: np.array(value) for name, value in self._state.items()}

    @state.setter
    def state(self, value: Mapping[str, Any]) -> None:
        if unknown := value.keys() - self._names.keys():
            raise ValueError(f"state must be of {', '.join(self._names)}, got {', '.join(map(str, unknown))}")
        ports = self._model.inputs
        new = {name: np.array(_value(name, v, ports[name])) for name, v in value.items()}
        with self._alone:
            now = self._state
            for name, array in new.items():
                if array.shape != now[name].shape:
                    raise ValueError(f"{name} must have shape {now[name].shape}, got {array.shape}")
            self._initial = now | new
            self._begin(self._initial)

    def reset(self) -> None:
        """Go back to the state of the beginning, or the one last assigned."""
        with self._alone:
            self._begin(self._initial)

    def copy(self) -> Self:
        """An independent stream of the same model in the same state."""
        twin = type(self).__new__(type(self))
        twin.__dict__ |= self.__dict__
        twin._alone = _Alone()
        with self._alone:
            twin._begin(self._state)
        return twin

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be pickled: keep its state, for model.stream(names, state)")


def fixed_inputs(graph: Graph, given: Any) -> Named:
    """Inputs that become constants, as the graph declares them."""
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"fixed must map names of inputs to arrays, got {type(given).__name__}")
    ports = {name: port for name, port in graph.inputs.items() if port.dtype is not None}
    if unknown := [name for name in given or {} if name not in ports]:
        raise ValueError(f"fixed must be of {', '.join(ports)}, got {', '.join(map(str, unknown))!s:.500}")
    return {name: np.asarray(_value(name, value, ports[name])) for name, value in (given or {}).items()}


def _joined(inputs: Any, named: Named) -> Named:
    """Inputs from a mapping and from keywords."""
    if inputs is None:
        return named
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs must map names to arrays, or be keywords, got {type(inputs).__name__}")
    return {**inputs, **named}


def _checked(given: Mapping[str, Any], ports: Mapping[str, Port], required: Set[str]) -> Named:
    """Inputs of these names, converted."""
    if not given.keys() <= ports.keys():
        wrong = ", ".join(map(str, given.keys() - ports.keys()))
        raise ValueError(f"inputs must be of {', '.join(ports)}, got {wrong:.500}")
    if not required <= given.keys():
        raise ValueError(f"inputs lack {', '.join(sorted(required - given.keys()))}")
    return {name: _value(name, value, ports[name]) for name, value in given.items()}


def _value(name: str, value: Any, port: Port) -> Any:
    """An input of the graph in its declared dtype and shape."""
    if port.dtype is None:
        return value  # a sequence or the like: the engine knows
    if type(value) is np.ndarray and value.dtype == port.dtype:
        array = value
    else:
        array = _converted(name, value, port.dtype)
    if port.shape is not None and array.shape != port.shape and not _fits(array.shape, port.shape):
        raise ValueError(f"{name} must have shape {_dims(port)}, got {array.shape}")
    return array


def _fits(shape: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
    """Whether a shape is one that a port declares, whose names and None are any numbers."""
    return len(shape) == len(wanted) and all(
        type(w) is not int or n == w for n, w in zip(shape, wanted, strict=True)
    )


def _dims(port: Port) -> str:
    return f"[{', '.join('any' if d is None else str(d) for d in port.shape or ())}]"


def _converted(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    if dtype.kind not in "fiu" and not narrow(dtype):
        array = np.asarray(value)
        if array.dtype.kind != dtype.kind:
            raise TypeError(f"{name} must be {dtype}, got {array.dtype}")
        return array.astype(dtype)
    array = _check.real_array(name, value)
    if dtype.kind in "iu":
        if array.dtype.kind not in "iu" or not np.can_cast(array.dtype, dtype) and (
            array.size and not np.iinfo(dtype).min <= array.min() <= array.max() <= np.iinfo(dtype).max
        ):  # fmt: skip
            raise TypeError(f"{name} must be integers that {dtype} holds, got {array.dtype}")
    return array.astype(dtype)


def _zeros(port: Port, batch: int) -> Array:
    shape = port.shape
    if shape is None or sum(type(d) is not int for d in shape) > 1:
        raise ValueError(
            f"initial must have {port.name}: its shape {_dims(port)} leaves more than one axis open"
        )
    return np.zeros([d if type(d) is int else batch for d in shape], port.dtype)


def _state_names(model: OnnxModel, state: Any) -> dict[str, str]:
    """The outputs by state input, checked."""
    if not isinstance(state, Mapping) or not state:
        raise TypeError(f"state must map names of inputs to names of outputs, got {state!r:.200}")
    inputs, outputs = model.inputs, model.outputs
    for source, target in state.items():
        if source not in inputs:
            raise ValueError(f"state: the graph has no input {source!r:.200}, only {', '.join(inputs)}")
        if target not in outputs:
            raise ValueError(f"state: the graph has no output {target!r:.200}, only {', '.join(outputs)}")
        if inputs[source].dtype is None or inputs[source].dtype != outputs[target].dtype:
            raise ValueError(
                f"state: {source} and {target} must be tensors of one dtype, "
                f"got {inputs[source].dtype} and {outputs[target].dtype}"
            )
    if len(set(state.values())) != len(state):
        raise ValueError("state must name each output once")
    return dict(state)
