"""Diagrams of a user's own model by torch.fx, and what torch itself counts: FLOPs, and memory that is alive."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._terms import Array, Op, Term, Type, Wires, compose, identity


def counted(run: Callable[[], Any]) -> int:
    """Return the FLOPs that torch's own counter sees in a run: matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


class _Alive(TorchDispatchMode):
    """Follows the bytes of all storages that come into being, and their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()
        self.older: set[int] = set()  # storages that were there before, such as parameters
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        self.older |= {leaf.untyped_storage()._cdata for leaf in given} - self.seen
        found = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self.note(leaf.untyped_storage())
        self.most = max(self.most, self.now)
        return found

    def note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen and key not in self.older:
            self.seen.add(key)
            self.now += size
            weakref.finalize(storage, self.freed, key, size)

    def freed(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def alive(run: Callable[[], Any]) -> int:
    """Return the most bytes of tensors made during a run that were alive at one time."""
    watched = _Alive()
    with torch.no_grad(), watched:
        run()
    return watched.most


def measured_peak(term: Term, seed: int = 0) -> float:
    """Return the numbers alive at the widest place of a diagram's run, its inputs included, by watching torch."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [[size for _, size in array] for array in term.source]

    def run() -> None:
        term.run([torch.randn(shape, generator=generator) for shape in shapes])

    return alive(run) / torch.get_default_dtype().itemsize


def traced(model: nn.Module, x: Tensor) -> Term:
    """Return the diagram of a model on an input, a column for each operation that torch.fx finds in it.

    Shapes are those of `x`; the term runs the model's own modules, in evaluation mode, with its parameters.

    Raises:
        WorkingPapersError: where torch.fx cannot follow the model.
    """
    try:
        graph = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
        raise WorkingPapersError(f"torch.fx cannot follow {type(model).__name__}: {error}") from error
    values: dict[fx.Node, Any] = {}
    live: list[fx.Node] = []
    terms: list[Term] = []
    interpreter = fx.Interpreter(graph)
    interpreter.env = values
    nodes = list(graph.graph.nodes)
    with torch.no_grad():
        for number, node in enumerate(nodes):
            if node.op == "placeholder":
                values[node] = x
                live.append(node)
            elif node.op == "output":
                terms.append(_picked(live, list(node.all_input_nodes), values))
            else:
                with FlopCounterMode(display=False) as counter:
                    values[node] = interpreter.run_node(node)
                cost = counter.get_total_flops()
                if isinstance(values[node], Tensor):
                    after = {n for later in nodes[number + 1 :] for n in later.all_input_nodes}
                    terms += _column(graph, node, values, live, after, cost)
    return compose(*terms)


def _type_of(value: Tensor) -> Array:
    """Return the axes of a value: n for the batch, then d, or t d, or c y x, or numbered ones."""
    names = {2: "nd", 3: "ntd", 4: "ncyx"}.get(value.ndim)
    letters = list(names) if names else [f"a{k}" for k in range(value.ndim)]
    return tuple(zip(letters, value.shape, strict=True))


def _kind(nodes: list[fx.Node], values: dict[fx.Node, Any]) -> Type:
    return tuple(_type_of(values[n]) for n in nodes)


def _picked(live: list[fx.Node], wanted: list[fx.Node], values: dict[fx.Node, Any]) -> Wires:
    return Wires(_kind(live, values), tuple(live.index(n) for n in wanted))


def _column(
    graph: fx.GraphModule,
    node: fx.Node,
    values: dict[fx.Node, Any],
    live: list[fx.Node],
    after: set[fx.Node],
    cost: int,
) -> list[Term]:
    """Return the wires to an operation, and its column beside what is needed later; update `live`."""
    inputs = [n for n in node.all_input_nodes if isinstance(values[n], Tensor) and n in live]
    kept = [n for n in live if n in after]
    wires = _picked(live, inputs + kept, values)
    constants = {n: values[n] for n in node.all_input_nodes if n not in inputs}

    def function(*given: Tensor) -> Any:
        runner = fx.Interpreter(graph)
        runner.env = {**constants, **dict(zip(inputs, given, strict=True))}
        return runner.run_node(node)

    learned = node.op == "get_attr" or (
        node.op == "call_module" and any(True for _ in graph.get_submodule(str(node.target)).parameters())
    )
    shared = any(values[n].data_ptr() == values[node].data_ptr() for n in inputs)
    name = type(graph.get_submodule(str(node.target))).__name__ if node.op == "call_module" else node.name
    op = Op(name, function, _kind(inputs, values), _kind([node], values), cost, view=shared, learned=learned)
    live[:] = [node, *kept]
    return [wires, op @ identity(_kind(kept, values)) if kept else op]
