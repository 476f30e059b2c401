"""Which of fastlstm's modules computes what a module of torch.nn computes, and the other way round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastlstm

from .. import _check
from . import _engine, _modules

# --- from PyTorch -------------------------------------------------------------------------------------------


class Unsupported(ValueError):
    """Names the part that fastlstm has nothing for."""


def array(name: str, tensor: Tensor) -> Any:
    """A parameter's numbers; float16 and bfloat16 are widened."""
    if tensor.device.type == "meta":
        raise Unsupported(f"{name} is on the device meta and has no numbers")
    if not tensor.dtype.is_floating_point:
        raise Unsupported(f"{name} is {tensor.dtype}, wanted a floating-point type")
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype in _engine.DTYPES else tensor.float()).numpy()


def dtype_of(module: nn.Module) -> str:
    """float64 if a parameter is, else float32."""
    return "float64" if any(p.dtype == torch.float64 for p in module.parameters()) else "float32"


def leaf(path: str, module: nn.Module) -> Any:
    """fastlstm's module; None for one that does nothing. ValueError that names what is not supported."""
    make = LEAVES.get(type(module))
    if make is None:
        raise Unsupported(no_leaf(path, module))
    plain(path, module)
    try:
        made = make(module)
    except Unsupported as error:
        raise Unsupported(f"{path}: {error}") from None
    if made is not None and made._options.shapes():
        named = {_renamed(module, name): array(name, p) for name, p in module.named_parameters()}
        made.load_state_dict(named)
    return made


def no_leaf(path: str, module: nn.Module) -> str:
    return f"{path} is a {type(module).__name__}, which fastlstm has nothing for"


def plain(path: str, module: nn.Module) -> None:
    """ValueError if something besides its forward changes what a module computes."""
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        if getattr(module, kind):
            raise Unsupported(f"{path} has forward hooks, which fastlstm would not run: remove them")
    if "forward" in vars(module):
        raise Unsupported(f"{path}: its forward was replaced")


def _renamed(module: nn.Module, name: str) -> str:
    return f"{name}_l0" if isinstance(module, nn.RNNCellBase) else name


def _need(truth: bool, what: str) -> None:
    if not truth:
        raise Unsupported(what)


def _stack(module: Any) -> Any:
    sizes = {
        name: getattr(module, name)
        for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional")
    }
    dropout = module.dropout if module.num_layers > 1 else 0.0  # which does nothing, and would warn
    return _recurrent(
        module.mode, dtype_of(module), **sizes, dropout=dropout, **_projection(module.mode, module.proj_size)
    )


def _projection(mode: str, proj_size: int) -> dict[str, int]:
    return {"proj_size": proj_size} if mode == "LSTM" else {}


def _cell(module: Any) -> Any:
    mode = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}.get(_base(module))
    mode = mode or f"RNN_{module.nonlinearity.upper()}"
    sizes = {"input_size": module.input_size, "hidden_size": module.hidden_size, "bias": module.bias}
    return _recurrent(mode, dtype_of(module), **sizes)


def _base(module: nn.Module) -> type[Any]:
    return next(cls for cls in type(module).__mro__ if cls.__module__ == "torch.nn.modules.rnn")


def _recurrent(mode: str, dtype: str, **options: Any) -> Any:
    cls = {"LSTM": fastlstm.LSTM, "GRU": fastlstm.GRU}.get(mode, fastlstm.RNN)
    extra = {"nonlinearity": mode[4:].lower()} if cls is fastlstm.RNN else {}
    return cls(**options, **extra, dtype=dtype)


def _embedding(module: Any) -> Any:
    _need(module.max_norm is None, f"max_norm={module.max_norm} changes the weight as it is read")
    return fastlstm.Embedding(
        module.num_embeddings, module.embedding_dim, module.padding_idx, dtype=dtype_of(module)
    )


def _linear(module: Any) -> Any:
    return fastlstm.Linear(
        module.in_features, module.out_features, module.bias is not None, dtype=dtype_of(module)
    )


def _layer_norm(module: Any) -> Any:
    shape = tuple(module.normalized_shape)
    _need(len(shape) == 1, f"normalized_shape={shape} has more than the last axis")
    return fastlstm.LayerNorm(
        shape[0],
        module.eps,
        module.elementwise_affine,
        module.bias is not None or not module.elementwise_affine,
        dtype=dtype_of(module),
    )


def last_axis(dim: int | None) -> None:
    """ValueError unless a softmax goes over the last axis."""
    _need(dim == -1, f"dim={dim}: fastlstm's softmax goes over the last axis, dim=-1")


def softplus(beta: float, threshold: float) -> Any:
    _need(beta == 1, f"softplus with beta={beta}: wanted 1")
    _need(threshold >= 20, f"softplus with threshold={threshold}: wanted at least 20")
    return fastlstm.Activation("softplus")


def _softmax(name: str) -> Callable[[Any], Any]:
    def make(module: Any) -> Any:
        last_axis(module.dim)
        return fastlstm.Activation(name)

    return make


HARD_SIGMOID = ("hard_sigmoid", 1 / 6, 0.5)  # as PyTorch defines it

LEAVES: dict[type[Any], Callable[[Any], Any]] = {
    **{cls: _stack for cls in (nn.LSTM, nn.GRU, nn.RNN, _modules.LSTM, _modules.GRU, _modules.RNN)},
    **{cls: _cell for cls in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)},
    **{cls: _cell for cls in (_modules.LSTMCell, _modules.GRUCell, _modules.RNNCell)},
    nn.Embedding: _embedding,
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Dropout: lambda module: fastlstm.Dropout(module.p),
    nn.Identity: lambda module: None,
    nn.ReLU: lambda module: fastlstm.Activation("relu"),
    nn.Tanh: lambda module: fastlstm.Activation("tanh"),
    nn.Sigmoid: lambda module: fastlstm.Activation("sigmoid"),
    nn.Softsign: lambda module: fastlstm.Activation("softsign"),
    nn.Hardsigmoid: lambda module: fastlstm.Activation(HARD_SIGMOID),
    nn.LeakyReLU: lambda module: fastlstm.Activation(("leaky_relu", module.negative_slope)),
    nn.ELU: lambda module: fastlstm.Activation(("elu", module.alpha)),
    nn.Softplus: lambda module: softplus(module.beta, module.threshold),
    nn.Softmax: _softmax("softmax"),
    nn.LogSoftmax: _softmax("log_softmax"),
}

RECURRENT = tuple(cls for cls, make in LEAVES.items() if make is _stack)


# --- to PyTorch ---------------------------------------------------------------------------------------------


def module_of(part: Any) -> nn.Module:
    """torch.nn's module with copies of the parameters. ValueError naming what PyTorch has none for."""
    options = part._options
    made = _stack_of(options) if isinstance(options, _check.Options) else _module_of(options)
    if options.dtype == "float64":
        made = made.double()
    tensors = {name: torch.from_numpy(np.array(v)) for name, v in part.state_dict().items()}
    made.load_state_dict(tensors)
    return made


def _stack_of(o: _check.Options) -> nn.Module:
    default = _check.Options(o.cell, o.input_size, o.hidden_size)
    for name in (
        "peepholes",
        "forget_gate",
        "coupled_gates",
        "reset_after",
        "reverse",
        "clip",
        "weight_dtype",
    ):
        _need(
            getattr(o, name) == getattr(default, name),
            f"{o!r}: torch.nn has no {name}={getattr(o, name)!r}",
        )
    _need(o.cell != "gated_rnn", f"{o!r}: torch.nn has no gated RNN")
    sizes: dict[str, Any] = {
        name: getattr(o, name)
        for name in (
            "input_size",
            "hidden_size",
            "num_layers",
            "bias",
            "batch_first",
            "dropout",
            "bidirectional",
        )
    }
    if o.cell == "rnn":
        names: dict[Any, str] = {("tanh",): "tanh", ("relu",): "relu"}
        sizes["nonlinearity"] = o.nonlinearity if o.activations is None else names.get(o.activations)
        _need(sizes["nonlinearity"] is not None, f"{o!r}: torch.nn has no activations={o.activations!r}")
    else:
        _need(o.core()["activations"] is None, f"{o!r}: torch.nn has no activations={o.activations!r}")
    if o.cell == "lstm":
        sizes["proj_size"] = o.proj_size
    cls = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[o.cell]
    return cls(**sizes)


def _module_of(o: Any) -> nn.Module:
    if isinstance(o, _check.ActivationOptions):
        return _activation_of(o)
    makers: dict[type[Any], Callable[[], nn.Module]] = {
        _check.EmbeddingOptions: lambda: nn.Embedding(o.num_embeddings, o.embedding_dim, o.padding_idx),
        _check.LinearOptions: lambda: nn.Linear(o.in_features, o.out_features, o.bias),
        _check.DropoutOptions: lambda: nn.Dropout(o.p),
        _check.LayerNormOptions: lambda: nn.LayerNorm(
            o.normalized_shape, o.eps, o.elementwise_affine, o.bias and o.elementwise_affine
        ),
    }
    make = makers.get(type(o))
    if make is None:
        raise Unsupported(f"{o!r}: torch.nn has no such module")
    return make()


def _activation_of(o: _check.ActivationOptions) -> nn.Module:
    if isinstance(o.activation, str) and o.activation in ("softmax", "log_softmax"):
        return nn.Softmax(-1) if o.activation == "softmax" else nn.LogSoftmax(-1)
    name, alpha, beta = o.core
    if name == "hard_sigmoid" and (alpha, beta) == HARD_SIGMOID[1:]:
        return nn.Hardsigmoid()
    makers: dict[str, Callable[[], nn.Module]] = {
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "relu": nn.ReLU,
        "softsign": nn.Softsign,
        "softplus": nn.Softplus,
        "leaky_relu": lambda: nn.LeakyReLU(alpha),
        "elu": lambda: nn.ELU(alpha),
    }
    if name not in makers:
        raise Unsupported(f"{o!r}: torch.nn has no such activation")
    return makers[name]()
