"""A user's network as a list of operations, with the axis of time in each value.

The axis is found by running the network on a clip and on one twice as long: it is the one that has grown.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves

from workingpapers.engines.streams.encoders import RecyclingPositions
from workingpapers.engines.streams.operations import FUNCTIONS, Operation, Ref
from workingpapers.errors import WorkingPapersError

LEAVES = (nn.TransformerEncoder, nn.TransformerEncoderLayer, RecyclingPositions)


@dataclass(frozen=True)
class Traced:
    """An operation, those that it refers to, and what its value is.

    Attributes:
        operation: what is done.
        needs: names of the operations it refers to.
        streams: whether the value depends on the network's input.
        tensor: whether it holds a tensor.
        axis: the axis of time; None where there is none.
        shape: of the value on the example, where that is a tensor.
    """

    operation: Operation
    needs: tuple[str, ...]
    streams: bool
    tensor: bool
    axis: int | None
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The operation's name."""
        return self.operation.name


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES) or super().is_leaf_module(m, module_qualified_name)


class _Watch(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n.name] = super().run_node(n)
        return self.seen[n.name]


def trace(model: nn.Module, clip: Tensor, time: int) -> tuple[list[Traced], str, str]:
    """Return the operations of `model` in order, and the names of its input and of its output.

    Raises:
        WorkingPapersError: where the model cannot be traced, or a value has no single axis of time.
    """
    name, bare = type(model).__name__, _bare(model)
    whole = nn.Sequential(model) if bare else model
    rest = list(inspect.signature(model.forward).parameters.values())[1:]
    fixed = {p.name: p.default for p in rest if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if not bare and any(value is inspect.Parameter.empty for value in fixed.values()):
        raise WorkingPapersError(
            f"a network on a stream takes one input; {name} needs {', '.join(fixed)} too"
        )
    try:
        graph = _Tracer().trace(whole, concrete_args=None if bare else fixed or None)
    except Exception as problem:
        raise WorkingPapersError(
            f"{name} cannot be put on a stream: its operations depend on its inputs' values ({first_line(problem)})"
        ) from problem
    short, long = _run(whole, graph, clip), _run(whole, graph, torch.cat([clip, clip], time))
    traced: dict[str, Traced] = {}
    entrance, exit = "", ""
    for node in graph.nodes:
        if node.op == "output":
            exit = node.args[0].name if isinstance(node.args[0], fx.Node) else ""
            continue
        entrance = entrance or node.name
        if node.op == "placeholder":
            if node.name == entrance:
                own = Operation(node.name, "input", None, (), {})
                traced[node.name] = Traced(own, (), True, True, time, tuple(clip.shape))
            continue
        if bare:
            node.target = ""  # the model itself
        traced[node.name] = _read(node, traced, short[node.name], long[node.name])
    if not exit or not isinstance(short[exit], Tensor):
        raise WorkingPapersError(f"a network on a stream gives one tensor; {name} gives something else")
    return list(traced.values()), entrance, exit


def first_line(problem: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(problem).splitlines() or [type(problem).__name__])[0]


def _bare(model: nn.Module) -> bool:
    """Tell whether the model is itself one operation."""
    own = type(model).__module__.startswith("torch.nn") and not isinstance(model, nn.Sequential)
    return own or isinstance(model, LEAVES)


def _run(model: nn.Module, graph: fx.Graph, clip: Tensor) -> dict[str, Any]:
    watch = _Watch(fx.GraphModule(model, graph))
    rest = [n for n in graph.nodes if n.op == "placeholder"][1:]
    try:
        watch.run(clip, *[None for _ in rest])
    except Exception as problem:
        raise WorkingPapersError(
            f"{type(model).__name__} does not run on a clip of the shape {tuple(clip.shape)}, and clips of any "
            f"length are needed to find its axis of time ({first_line(problem)})"
        ) from problem
    return watch.seen


def _ref(arg: Any) -> Any:
    return Ref(arg.name) if isinstance(arg, fx.Node) else arg


def _read(node: fx.Node, before: dict[str, Traced], short: Any, long: Any) -> Traced:
    refs: Any = map_aggregate(node.args, _ref)
    named: Any = map_aggregate(node.kwargs, _ref)
    target = FUNCTIONS.get(node.target, node.target) if node.op == "call_function" else node.target
    needs = tuple(n.name for n in node.all_input_nodes if n.name in before)
    tensors = [
        (a, b)
        for a, b in zip(tree_leaves(short), tree_leaves(long), strict=False)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    ]
    grown = {i for a, b in tensors for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=False)) if m != n}
    if len(grown) > 1:
        raise WorkingPapersError(
            f"{node.name!r} relates every frame to every other; of such operations only "
            "nn.TransformerEncoder and nn.TransformerEncoderLayer run on a stream"
        )
    return Traced(
        Operation(node.name, node.op, target, tuple(refs), dict(named)),
        needs,
        any(before[n].streams for n in needs),
        bool(tensors),
        grown.pop() if grown else None,
        tuple(tensors[0][0].shape) if tensors else (),
    )
