"""What `fastlstm inspect` tells of a graph that is no plain model: nothing is run for it."""

from __future__ import annotations

from typing import Any

from .._files import row
from . import _node
from ._graph import Graph, Port, name_of
from ._read import Proto

WEIGHTS = {"W": 1, "R": 2, "B": 3, "P": 7}  # inputs of a recurrent node


def details(graph: Graph) -> dict[str, Any]:
    """Inputs, outputs, the recurrent nodes of the main graph, and their weights."""
    nodes = [node for node in graph.nodes if _node.is_recurrent(node)]
    return {
        "inputs": [_port(port) for port in graph.inputs.values()],
        "outputs": [_port(port) for port in graph.outputs.values()],
        "layers": [_layer(graph, node) for node in nodes],
        "parameters": [parameter for node in nodes for parameter in _parameters(graph, node)],
    }


def _port(port: Port) -> dict[str, Any]:
    shape = None if port.shape is None else ["any" if d is None else d for d in port.shape]
    return {"name": port.name, "dtype": str(port.dtype or "no tensor"), "shape": shape}


def _layer(graph: Graph, node: Proto) -> dict[str, Any]:
    try:
        options = {k: v for k, v in _node.recipe(node, graph.opset)._asdict().items() if k != "op"}
    except ValueError as error:  # a node that stays with the engine
        options = {"refused": str(error)}
    given = {name: node.input[k] for name, k in WEIGHTS.items() if k < len(node.input) and node.input[k]}
    options |= {name: f"computed, {own}" for name, own in given.items() if not _held(graph, own)}
    return {"name": name_of(node), "class": node.op_type, "options": options}


def _parameters(graph: Graph, node: Proto) -> list[dict[str, Any]]:
    given = {name: node.input[k] for name, k in WEIGHTS.items() if k < len(node.input)}
    held = {name: own for name, own in given.items() if _held(graph, own)}
    return [row(f"{name_of(node)}/{name}", graph.array(own), own) for name, own in held.items()]


def _held(graph: Graph, name: str) -> bool:
    return name in graph.tensors or name in graph.literals
