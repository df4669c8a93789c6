"""Collecting what flows through the modules of a user's own model, by hooks that are gone afterwards."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.surgery.choose import Modules, choose


@torch.no_grad()
def collect(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    modules: Modules | None = None,
    *,
    side: str = "output",
    keep: Callable[[nn.Module, Tensor], Tensor] | None = None,
    batch: int = 1000,
) -> dict[str, Tensor]:
    """Run `model` on `inputs` in evaluation mode and return what the chosen modules gave, by their names.

    Args:
        model: any model; its modes, hooks and weights are as before afterwards.
        inputs: a tensor (N, ...) or a tuple of such; they run through in slices of `batch`.
        modules: a class or a tuple of classes, names as in `named_modules`, or a function of name and module;
            by default every module without parts of its own.
        side: "output", or "input" for the first input of each module.
        keep: reduces each tensor (n, ...) as it comes, given its module, such as `lambda m, z: z > 0`.

    Returns tensors (N, ...) in the order in which the modules ran.  Further runs of one module within a pass
    go under its name with "#2", "#3" and so on.

    Raises:
        WorkingPapersError: where a module gives no tensor, none is chosen, or none of the chosen ones ran.
    """
    if side not in ("output", "input"):
        raise unknown("side of a module", side, ("output", "input"))
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    parts: dict[str, list[Tensor]] = {}
    runs: Counter[str] = Counter()

    def note(name: str, module: nn.Module, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise WorkingPapersError(
                f"the {side} of {name!r} is a {type(value).__name__}, and only tensors can be collected"
            )
        runs[name] += 1
        key = name if runs[name] == 1 else f"{name}#{runs[name]}"
        # a later operation may write into the tensor in place, so it is copied
        parts.setdefault(key, []).append(
            value.detach().clone() if keep is None else keep(module, value.detach())
        )

    handles = [_hook(module, name, note, side) for name, module in choose(model, modules)]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for piece in zip(*(x.split(batch) for x in inputs), strict=True):
            runs.clear()
            model(*piece)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if not parts:
        raise WorkingPapersError("none of the chosen modules ran")
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def _hook(module: nn.Module, name: str, note: Callable[[str, nn.Module, Any], None], side: str) -> Any:
    if side == "input":
        return module.register_forward_pre_hook(lambda m, args: note(name, m, args[0] if args else None))
    return module.register_forward_hook(lambda m, args, output: note(name, m, output))
