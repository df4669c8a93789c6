"""Which activation stands behind each layer of a model: found in its graph, whatever the code looks like."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.training._deep import LAYERS

FUNCTIONS = {
    *("relu", "leaky_relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid"),
    *(
        "softplus",
        "softsign",
        "logsigmoid",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "tanhshrink",
        "sin",
        "prelu",
    ),
}
PASSED = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase),
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd),
    *(nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample),
)


class _Tracer(fx.Tracer):
    """Takes every module without layers of weights as a whole, so that activations are not looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, LAYERS):
            return True
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        return not isinstance(m, containers) and not any(isinstance(part, LAYERS) for part in m.modules())


def activations_behind(model: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return for each linear and convolution layer, by its name, the first activation behind it, if there is one.

    Normalisation, dropout, pooling, reshaping and sums are passed.  Where ways part, any way's activation counts,
    the first that is found.

    Raises:
        WorkingPapersError: where `torch.fx` cannot trace the model.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise WorkingPapersError(
            f"torch.fx cannot trace {type(model).__name__} ({str(error).splitlines()[0]}); give the activation"
        ) from error
    # a layer alone is traced into, for fx takes no root as a whole
    if isinstance(model, LAYERS):
        return {}
    modules, found = dict(model.named_modules()), {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], LAYERS) and node.target not in found:
            activation = _behind(node, modules)
            if activation is not None:
                found[node.target] = activation
    return found


def _behind(node: fx.Node, modules: dict[str, nn.Module]) -> Callable[[Tensor], Tensor] | None:
    """Follow the users of `node` breadth first to an activation, not through other layers."""
    queue, seen = list(node.users), set(node.users)
    while queue:
        user = queue.pop(0)
        if user.op == "call_module":
            module = modules[str(user.target)]
            if isinstance(module, LAYERS):
                continue
            if not isinstance(module, PASSED):
                return module
        else:
            activation = _function(user)
            if activation is not None:
                return activation
        queue += [following for following in user.users if following not in seen]
        seen.update(user.users)
    return None


def _function(node: fx.Node) -> Callable[[Tensor], Tensor] | None:
    """Return the activation that a call of a function or of a method is, its options bound; None for others."""
    target: Any = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if node.op not in ("call_function", "call_method") or name.rstrip("_") not in FUNCTIONS:
        return None
    call = getattr(torch.Tensor, name) if node.op == "call_method" else target
    options = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    if any(isinstance(value, fx.Node) for value in [*node.args[1:], *options.values()]):
        raise WorkingPapersError(f"the options of {name} come from other tensors; give the activation")
    return partial(_call, call, node.args[1:], options) if node.args[1:] or options else call  # type: ignore[no-any-return]


def _call(
    function: Callable[..., Tensor], rest: tuple[Any, ...], options: dict[str, Any], x: Tensor
) -> Tensor:
    return function(x, *rest, **options)
