"""Activation functions drawn on [-4, 4]: the function and its derivative, one small drawing each."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from workingpapers.experiments.comparison import Comparison
from workingpapers.report.measured import Numbers
from workingpapers.report.numbers import plain
from workingpapers.report.svg import Scale, axis_across, axis_up, canvas, drawing, element, line_path

LOW, HIGH, POINTS = -4.0, 4.0, 161  # an odd number, so that 0, where many have a corner, is a point
HEIGHT = 150


@dataclass(frozen=True)
class Shape:
    """One drawn activation, or the reason why it could not be drawn."""

    label: str
    svg: Markup | None
    why_not: str = ""


def shapes(comparison: Comparison, activations: Mapping[str, Callable[..., Any]], name: str) -> list[Shape]:
    """Draw those of `activations` that the comparison's variants name under 'activation', in their ranking.

    All share their height, so that they can be compared.
    """
    wanted = [v for row in comparison.rows if isinstance(v := row.variant.get("activation"), str)]
    found: dict[str, tuple[Numbers, Numbers]] = {}
    failed: dict[str, str] = {}
    for label in dict.fromkeys(wanted):
        if label in activations:
            try:
                found[label] = sampled(activations[label])
            except Exception as error:  # any callable of the user's may come here; the reason is shown
                failed[label] = f"not drawn: {type(error).__name__}"
    heights = np.concatenate([np.concatenate(pair) for pair in found.values()]) if found else np.zeros(0)
    heights = heights[np.isfinite(heights)]
    up = Scale.fitting([float(v) for v in np.clip(heights, LOW, HIGH)])
    drawn = {k: _shape(k, *v, up, f"{name}-{i}") for i, (k, v) in enumerate(found.items())}
    return [
        Shape(label, drawn.get(label), failed.get(label, ""))
        for label in dict.fromkeys(wanted)
        if label in activations
    ]


def sampled(activation: Callable[..., Any]) -> tuple[Numbers, Numbers]:
    """Return the function's and the derivative's values at the drawn points; the callable is left as it was."""
    import torch

    function = copy.deepcopy(activation)
    if isinstance(function, torch.nn.Module):
        function = function.eval().cpu()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        x = torch.linspace(LOW, HIGH, POINTS).reshape(-1, 1).requires_grad_()
        y = function(x)
        if y.shape != x.shape:
            raise ValueError("an activation keeps its input's shape")
        (slope,) = torch.autograd.grad(y.sum(), x) if y.requires_grad else (torch.zeros_like(x),)
    return y.detach().double().numpy()[:, 0], slope.double().numpy()[:, 0]


def _shape(label: str, function: Numbers, slope: Numbers, up: Scale, name: str) -> Markup:
    x = np.linspace(LOW, HIGH, POINTS)
    across = Scale(LOW, HIGH)
    zero = f"{100 - 100 * up.fraction(0.0):.2f}%" if up.shows(0.0) else None
    axes = [element("line", x1="50%", x2="50%", y1=0, y2="100%", class_="zero")]
    axes += [element("line", x1=0, x2="100%", y1=zero, y2=zero, class_="zero")] if zero else []
    paths = canvas(
        element("path", d=line_path(x, slope, across, up), class_="line slope", stroke_dasharray="5 3"),
        element("path", d=line_path(x, function, across, up), class_="line function"),
    )
    told = f"It is {plain(float(function[0]), 3)} at -4, {plain(float(function[-1]), 3)} at 4"
    title = f"{label} and its derivative on [-4, 4]"
    return drawing(name, title, told, HEIGHT, axis_up(up, 3), axis_across(across, HEIGHT, 4), *axes, paths)
