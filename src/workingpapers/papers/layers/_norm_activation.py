"""Finding each batch normalisation of a network with the activation behind it, and replacing both by one layer."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import fx, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery import changes, note_changes

Make = Callable[
    [nn.BatchNorm2d, bool], nn.Module | None
]  # (old, activation behind it?) -> new, None keeps it


class _Tracer(fx.Tracer):
    """Looks only into modules that hold a batch normalisation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether the module is one node of the graph."""
        return isinstance(m, nn.BatchNorm2d) or not any(isinstance(p, nn.BatchNorm2d) for p in m.modules())


def _activates(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU | nn.SiLU)
    return node.target in (F.relu, F.silu, torch.relu, "relu", "relu_")


def _traced(model: nn.Module) -> fx.GraphModule:
    try:
        return fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:  # the model's own code raises whatever it likes on a proxy
        raise WorkingPapersError(f"{type(model).__name__} cannot be traced by torch.fx: {error}") from error


def replace_norm_activation(model: nn.Module, make: Make) -> nn.Module:
    """Return a copy of a network with what `make` gives for each BatchNorm2d and the ReLU or SiLU behind it.

    The copy is an `fx.GraphModule` with the old names, and notes its changes.  An activation counts where
    nothing else uses the normalisation's output.

    Raises:
        WorkingPapersError: where the network cannot be traced, or one BatchNorm2d stands in unlike places.
    """
    whole = copy.deepcopy(model)
    modules, sentences, done = dict(whole.named_modules()), [], dict[str, bool]()
    if not any(isinstance(m, nn.BatchNorm2d) for m in modules.values()):
        return whole
    traced = _traced(whole)
    for node in list(traced.graph.nodes):
        name, users = str(node.target), list(node.users)
        old = modules.get(name) if node.op == "call_module" else None
        if not isinstance(old, nn.BatchNorm2d):
            continue
        active = len(users) == 1 and _activates(users[0], modules)
        first = name not in done
        if done.setdefault(name, active) != active:
            raise WorkingPapersError(f"{name} stands before an activation in one place and alone in another")
        new = make(old, active)
        if new is None:
            continue
        if active:
            users[0].replace_all_uses_with(node)
            traced.graph.erase_node(users[0])
        if first:
            like = next(
                (t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()), torch.ones(())
            )
            traced.add_submodule(name, new.train(old.training).to(like.device, like.dtype))
            what = "it and its activation" if active else "it"
            sentences.append(f"{name} is {type(new).__name__} now, in place of {type(old).__name__}: {what}.")
    traced.delete_all_unused_submodules()
    traced.recompile()  # type: ignore[no-untyped-call]
    traced.training = model.training
    found: nn.Module = note_changes(traced, [*changes(model), *sentences])
    return found
