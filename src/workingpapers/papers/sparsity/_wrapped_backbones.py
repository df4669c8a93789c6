"""Dynamic Perceiver around backbones of torchvision and timm."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._dual_branch import DualBranch
from workingpapers.surgery.running import call


def wrap(
    backbone: nn.Module,
    inputs: Tensor,
    stages: Sequence[str | Sequence[str]] = ("layer1", "layer2", "layer3", "layer4"),
    stem: Sequence[str] | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> DualBranch:
    """Return a backbone of torchvision or timm, copied with its weights, beside a branch of latent tokens.

    Args:
        backbone: runs its stem and its stages one after the other.
        inputs: an example (B, C, H, W).
        stages: names of the modules of the four stages; several names for one stage run in order.
        stem: names of those before; by default what is registered before the first stage, in its parent and in the
            parents above.
        num_classes: by default the outputs of the backbone's last linear layer, which becomes the third exit's.
        options: `num_latents`, `dim`, `depths`, `heads` and `pool` of `DualBranch`.

    Raises:
        WorkingPapersError: where stem and stages do not give what the last stage gives inside the backbone.
    """
    own = copy.deepcopy(backbone)
    modules = dict(own.named_modules())
    groups = [[s] if isinstance(s, str) else list(s) for s in stages]
    before = _before(own, groups[0][0]) if stem is None else list(stem)
    if odd := next((n for g in [before, *groups] for n in g if n not in modules), None):
        raise WorkingPapersError(f"{type(backbone).__name__} has no module {odd!r} for its stem or a stage")
    parts = [nn.Sequential(*(modules[n] for n in g)) for g in [before, *groups]]
    seen: list[Tensor] = []
    handle = modules[groups[-1][-1]].register_forward_hook(lambda _, args, output: seen.append(output))
    modes = {m: m.training for m in own.modules()}
    with torch.no_grad():
        call(own.eval(), inputs)
        handle.remove()
        maps = _maps(parts, inputs)
    for module, mode in modes.items():
        module.training = mode
    if len(seen) != 1 or maps is None or not torch.equal(seen[0], maps[-1]):
        raise WorkingPapersError(
            f"{type(backbone).__name__} does not run the stem {before} and the stages {groups} one after the other"
        )
    widths = [m.shape[1] for m in maps]
    linear = [m for m in own.modules() if isinstance(m, nn.Linear)]
    fits = [m for m in linear[-1:] if m.in_features == widths[-1] and num_classes in (None, m.out_features)]
    if num_classes is None and not fits:
        raise WorkingPapersError(
            f"{type(backbone).__name__} does not tell how many classes; give num_classes"
        )
    classes = num_classes or fits[0].out_features
    wrapped = DualBranch(parts[0], parts[1:], widths, classes, **options)
    if fits:
        wrapped.heads[2] = fits[0]
    return wrapped.to(inputs.device).train(backbone.training)


def _maps(parts: Sequence[nn.Module], x: Tensor) -> list[Tensor] | None:
    """Return what each part gives of the one before, None where they do not fit."""
    found = []
    try:
        for part in parts:
            x = call(part.eval(), x)
            found.append(x)
    except WorkingPapersError:
        return None
    return found


def _before(model: nn.Module, name: str) -> list[str]:
    """Return the names of what is registered before a module, in its parent and in the parents above."""
    found: list[str] = []
    path = name.split(".")
    for i, part in enumerate(path):
        above_it = ".".join(path[:i])
        for child, _ in model.get_submodule(above_it).named_children():
            if child == part:
                break
            found.append(f"{above_it}.{child}".lstrip("."))
    return found
