"""The twelve kinds of component and the properties that a component of each kind may declare."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workingpapers.errors import WorkingPapersError, unknown

COMMON = {
    "options": "options of the small instance that the checks build (default: the component's own defaults)",
    "variants": "list of further options, each on top of `options`, whose instances are held to the same checks",
    "deterministic": "the same input gives the same output, whatever the global seed (default True)",
    "known_failures": "{check: one sentence why it fails}; a listed check that passes is an error too",
}

_MODULE = {
    "batched": "the first dimension of inputs and outputs is the batch (default True)",
    "batch_independent": "in evaluation mode an output depends on its own example alone (default True)",
    "surrogate_gradient": "the backward pass is, on purpose, not the derivative (default False)",
}

_FINDING = {
    "example": "function(generator) -> tuple of the arguments of one small run",
    "invariances": "{name: function(*arguments) -> tuple of other arguments that must give the same numbers}",
}


@dataclass(frozen=True)
class Kind:
    """What `make` gives for this kind, the question that it answers, and the properties it may declare."""

    name: str
    makes: str
    properties: Mapping[str, str]

    def check_properties(self, component: str, properties: Mapping[str, Any]) -> None:
        """Raise one sentence if `properties` has a name that components of this kind do not declare."""
        for name in properties:
            if name not in self.properties and name not in COMMON:
                raise unknown(
                    f"property of {self.name} components ({component})", name, [*self.properties, *COMMON]
                )


_ALL = [
    Kind(
        "activation",
        "nn.Module: tensor of any shape -> tensor of the same shape",
        {
            "smooth": "continuously differentiable",
            "monotone": "never decreases",
            "odd": "f(-x) = -f(x)",
            "even": "f(-x) = f(x)",
            "bounded": "(low, high) that every output lies in, or False where outputs grow without end",
            "lipschitz": "largest slope, or False where there is none",
            "positively_homogeneous": "f(c x) = c f(x) for c > 0",
            "zero_at_zero": "f(0) = 0",
            "elementwise": "each output depends on its own input alone (default True)",
            "inverse": "method `inverse` undoes it",
            "example": "function(batch, generator) -> input (default: 7 features, 8 if not elementwise)",
            **_MODULE,
        },
    ),
    Kind(
        "layer",
        "nn.Module in place of a named torch.nn layer",
        {
            "replaces": "name of the torch.nn layer whose arguments and shapes it shares, such as 'Linear'",
            "arguments": "positional arguments of the small instance (default: by the layer that it replaces)",
            "example": "function(batch, generator) -> inputs (default: by the layer that it replaces)",
            **_MODULE,
        },
    ),
    Kind(
        "mixer",
        "nn.Module: (B, T, D) -> (B, T, D)",
        {
            "dim": "width of the small instance, the constructor's first argument (default 16)",
            "causal": "True always, False never, 'option' when the constructor takes causal= (default False)",
            "mask": "forward takes mask=, (B, T) bool, True for real tokens (default True)",
            "step": "method `step(x, state) -> (y, state)`, x and y (B, D), state None at first, gives the "
            "outputs of the parallel form one token at a time",
            **_MODULE,
        },
    ),
    Kind(
        "model",
        "nn.Module with a `tiny` preset",
        {
            "example": "function(batch, generator) -> Example(inputs, targets, loss) that the tiny preset takes",
            "loss_floor": "the least loss that there is on the example (default 0)",
            **_MODULE,
        },
    ),
    Kind(
        "transform",
        "callable: model (and data) -> model",
        {
            "example": "function(generator) -> (model, input or tuple of inputs of the model, further arguments "
            "of the transform, ...)",
            "preserves": "largest difference between the outputs before and after; None where they may change",
            "target": "of what makes models sparse from (model, calibration data): the option that says how sparse",
        },
    ),
    Kind(
        "trainer",
        "optimizer, loss, or object with fit",
        {
            "trains": "'optimizer', 'loss' or 'fit': which of the three the component is",
            "example": "for 'fit': function(generator) -> tuple of the arguments of one small fit; for 'loss': "
            "function(generator) -> (outputs, targets, perfect outputs)",
            "steps": "steps of the small run that lowers the loss (default 20 for 'fit', 500 for 'optimizer')",
        },
    ),
    Kind(
        "initializer",
        "callable on a model",
        {
            "example": "function(generator) -> (model, further arguments of the initializer, ...)",
            "promise": "function(model, *arguments) -> {statistic: (value, low, high)}",
        },
    ),
    Kind("analysis", "callable -> Finding", _FINDING),
    Kind("study", "callable -> Finding", _FINDING),
    Kind(
        "search",
        "callable: space, objective, budget -> trials",
        {
            "example": "function() -> (space, objective, best value), a space with a known optimum",
            "budget": "evaluations in the small run (default 40)",
        },
    ),
    Kind("benchmark", "generator of items and scorer of answers", {}),
    Kind("survey", "map of other entries", {}),
]

KINDS = {kind.name: kind for kind in _ALL}


def kind_named(name: str) -> Kind:
    """Return the kind called `name`, or raise with the nearest valid names."""
    if not isinstance(name, str):
        raise WorkingPapersError(f"a kind is given by its name, one of {', '.join(KINDS)}; got {name!r}")
    if name not in KINDS:
        raise unknown("kind", name, KINDS)
    return KINDS[name]
