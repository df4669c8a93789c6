"""The gallery: an activation's function, derivative and properties, and what its parameters do."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from workingpapers.catalog.registry import component, load, make
from workingpapers.engines.curves import Curve, measured
from workingpapers.engines.curves.properties import evaluated
from workingpapers.verbs._draw import Line, chart

LOW, HIGH, POINTS = -4.0, 4.0, 401
FACTORS = (0.5, 2.0)  # what a parameter's default is multiplied by, to show what it does


@dataclass(frozen=True)
class Portrait:
    """An activation drawn: its curve's properties, its function and derivative on [-4, 4], and its variants.

    `variants` has, by option and value, the function with that option changed.
    """

    name: str
    curve: Curve
    function: Line
    derivative: Line
    variants: dict[str, dict[str, Line]]

    def lines(self) -> list[str]:
        """Return the properties as plain lines of text."""
        c = self.curve
        zeros = ", ".join(f"{z:.4g}" for z in c.zeros) or "none"
        lowest = f"{c.minimum[1]:.5g} at x = {c.minimum[0]:.5g}" if c.minimum else "none"
        words = " and ".join(w for w, so in (("monotone", c.monotone), ("smooth", c.smooth)) if so)
        return [
            f"  Range      {c.low:.5g} to {c.high:.5g};  zeros: {zeros};  minimum: {lowest}",
            f"  Slope      at most {c.lipschitz:.5g} in size;  {words or 'neither monotone nor smooth'}",
            f"  Gain       {c.gain:.5g}, which keeps the second moment of normal inputs",
        ]

    def drawing(self) -> list[str]:
        """Return function and derivative as lines of text."""
        function = chart({f"{self.name}(x)": self.function}, height=9)
        return [*function, "", *chart({"its derivative": self.derivative}, height=6)]

    def figure(self) -> Any:
        """Draw function and derivative, and one panel a parameter, as a matplotlib figure."""
        from matplotlib.figure import Figure

        panels = 1 + len(self.variants)
        figure = Figure(figsize=(4.2 * panels, 3.2), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        axes[0].plot(*self.function, label=f"{self.name}(x)")
        axes[0].plot(*self.derivative, linestyle="--", label="derivative")
        for axis, (parameter, drawn) in zip(axes[1:], self.variants.items(), strict=True):
            axis.set_title(parameter)
            for value, line in drawn.items():
                axis.plot(*line, label=value)
        for axis in axes:
            axis.axhline(0, color="0.7", linewidth=0.8)
            axis.axvline(0, color="0.7", linewidth=0.8)
            axis.legend(frameon=False)
        return figure


def portraits(id: str) -> list[Portrait]:
    """Draw the elementwise activations among the components of the paper `id`, the paper's own first."""
    found = load(id).values()
    return [
        portrait(c.name) for c in found if c.kind == "activation" and c.properties.get("elementwise", True)
    ]


def portrait(name: str) -> Portrait:
    """Draw the elementwise activation called `name` as `make` builds it."""
    found = component(name)
    fixed = dict(found.properties.get("options", {}))  # what an activation without defaults needs
    activation = make(name, **fixed)
    x = torch.linspace(LOW, HIGH, POINTS, dtype=torch.float64)
    y, slope = evaluated(activation, x)
    variants = {
        option: {f"{value:g}": _line(make(name, **{**fixed, option: value}), x) for value in values}
        for option, values in _numbers(found.target).items()
    }
    points = x.tolist()
    return Portrait(name, measured(activation), (points, y.tolist()), (points, slope.tolist()), variants)


def _numbers(target: Callable[..., Any]) -> dict[str, list[float]]:
    """Return the options whose default is a decimal number, with the values that show what they do."""
    defaults = {n: p.default for n, p in inspect.signature(target).parameters.items()}
    return {
        n: sorted({d, *(f * d for f in FACTORS)}) for n, d in defaults.items() if isinstance(d, float) and d
    }


def _line(activation: Callable[..., Any], x: torch.Tensor) -> Line:
    return x.tolist(), evaluated(activation, x)[0].tolist()
