"""Replacing modules of a user's own model in a copy of it."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from workingpapers.surgery.changes import note_changes
from workingpapers.surgery.choose import Modules, choose


def replace_modules(
    model: nn.Module, modules: Modules, build: Callable[[nn.Module], nn.Module | None]
) -> nn.Module:
    """Return a deep copy of `model` with the chosen modules replaced by what `build` makes of each.

    A module that stands in several places is replaced once, by one module in all of them.  What is built
    gets the training mode of the old module and moves to the device of its parameters (of the model's, where
    it has none); where `build` returns None the old one stays.  The copy notes what was changed (see
    `changes`).  The chosen modules must not contain one another.

    Raises:
        WorkingPapersError: where a name is unknown or no module is of the chosen sort.
    """
    changed = copy.deepcopy(model)
    done: dict[nn.Module, nn.Module] = {}
    sentences: list[str] = []
    for name, old in choose(changed, modules):
        new = build(old)
        if new is None:
            continue
        done[old] = new.train(old.training).to(_device(old) or _device(changed))
        sentences.append(
            f"{name or 'The model'} is {type(new).__name__} now, in place of {type(old).__name__}."
        )
    for parent in list(changed.modules()):
        for child, module in parent._modules.items():
            if module in done:
                parent._modules[child] = done[module]
    root: nn.Module = note_changes(done.get(changed, changed), sentences)
    return root


def _device(module: nn.Module) -> torch.device | None:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else None
