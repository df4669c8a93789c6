"""Skeletons of a paper's file and its test, one for each kind of component."""

from collections.abc import Mapping
from typing import Any

PLUGIN = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{package}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["workingpapers"]

[project.entry-points."workingpapers.papers"]
{package} = "{package}"

[tool.hatch.build.targets.wheel]
packages = ["src/{package}"]
"""

HEAD = '''"""{name}: what it is, in a sentence.

    the equation, in plain ASCII

Paper: "{title}" ({year}), the section that defines it.
"""

'''

CLAIM = '''

@claim("{id}", "What the paper claims, in a sentence.", seeds=5, holds=at_least(0.0, of="gain"))
def gain(budget: Budget, seed: int) -> Evidence:
    """Say what is measured: against which baseline, on which data, in which unit."""
    raise NotImplementedError("measure the claim on this seed and return Evidence(gain=...)")
'''

IMPORTS = """from workingpapers.catalog import claim, paper
from workingpapers.experiments import {names}
from workingpapers.tasks import {tasks}
"""

TORCH = "from torch import Tensor, nn\n\n"

BODIES = {
    "activation": (
        "from workingpapers.kernels import pointwise",
        TORCH,
        '''

@pointwise
def {id}(x: Tensor) -> Tensor:
    """Say what is done to `x` (any shape, floating); same shape out."""
    raise NotImplementedError("write the paper's formula in torch operations")


@paper("{id}", smooth=True)
class {name}(nn.Module):
    """Apply `{id}` to a tensor of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return {id}(x)
''',
    ),
    "layer": (
        "",
        TORCH,
        '''

@paper("{id}", replaces="Linear")
class {name}(nn.Module):
    """Stand in for `nn.Linear(in_features, out_features, bias)`: (..., in) -> (..., out)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        raise NotImplementedError("create the parameters")

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("write the paper's formula")
''',
    ),
    "mixer": (
        "",
        TORCH,
        '''

@paper("{id}", causal="option")
class {name}(nn.Module):
    """Mix tokens: (batch, tokens, dim) -> the same; `mask` (batch, tokens) is True for real tokens."""

    def __init__(self, dim: int, causal: bool = False) -> None:
        super().__init__()
        raise NotImplementedError("create the parameters")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        raise NotImplementedError("write the paper's formula")
''',
    ),
    "model": (
        "",
        TORCH,
        '''

@paper("{id}", example=examples.vectors(features=8, outputs=3))
class {name}(nn.Module):
    """Say what goes in and what comes out, with shapes."""

    presets = {{"tiny": {{"width": 16}}}}

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        raise NotImplementedError("create the layers")

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("write the paper's architecture")
''',
    ),
}

FUNCTIONS = {
    "transform": (
        "model: nn.Module",
        "nn.Module",
        "a changed copy of `model`; the model given stays as it is",
        "nn",
        "example=lambda generator: (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), None)",
    ),
    "trainer": (
        "outputs: Tensor, targets: Tensor",
        "Tensor",
        "the loss, a scalar",
        "Tensor",
        'trains="loss"',
    ),
    "initializer": ("model: nn.Module", "nn.Module", "`model`, initialised in place", "nn", ""),
    "analysis": ("model: nn.Module, x: Tensor", "Finding", "what the analysis finds", "Tensor, nn", ""),
    "study": ("seed: int = 0", "Finding", "what the study finds", "", ""),
    "search": (
        "space: Any, objective: Any, budget: int, seed: int = 0, trials: Any = None",
        "list[Any]",
        "the trials, each with `.point` and `.value`; larger values are better",
        "Any",
        "",
    ),
}

CLASSES = {
    "benchmark": '''

@paper("{id}")
class {name}:
    """Say what is asked and how answers are scored."""

    def items(self, seed: int, n: int) -> list[Any]:
        """Return `n` items, each with `.question` and `.answer`; the same for the same seed."""
        raise NotImplementedError("generate the items")

    def score(self, item: Any, answer: Any) -> float:
        """Return a score from 0 to 1; the true answer scores 1."""
        raise NotImplementedError("score the answer")
''',
    "survey": '''

@paper("{id}")
class {name}:
    """Say what the survey maps."""

    branches: dict[str, list[str]] = {{}}  # branch -> ids of the papers that stand for it
''',
}


def code(values: Mapping[str, Any]) -> str:
    """Return the skeleton of a paper's file; `values` has id, name, kind, title and year."""
    kind = values["kind"]
    names = "Evidence, Finding, at_least" if kind in ("analysis", "study") else "Evidence, at_least"
    tasks = "Budget, examples" if kind == "model" else "Budget"
    extra, before, body = _body(kind)
    imports = sorted([*IMPORTS.format(names=names, tasks=tasks).splitlines(), *([extra] if extra else [])])
    text = HEAD + before + "\n".join(imports) + "\n" + body
    return (text + CLAIM).format(**values)


def _body(kind: str) -> tuple[str, str, str]:
    if kind in BODIES:
        return BODIES[kind]
    if kind in CLASSES:
        return "", "from typing import Any\n\n" if kind == "benchmark" else "", CLASSES[kind]
    arguments, returns, says, needs, properties = FUNCTIONS[kind]
    torch = {
        "nn": "from torch import nn\n\n",
        "Tensor": "from torch import Tensor\n\n",
        "Tensor, nn": TORCH,
        "Any": "from typing import Any\n\n",
        "": "",
    }[needs]
    decorator = f'@paper("{{id}}", {properties})' if properties else '@paper("{id}")'
    body = (
        f'\n\n{decorator}\ndef {{id}}({arguments}) -> {returns}:\n    """Return {says}."""\n'
        '    raise NotImplementedError("write the method")\n'
    )
    return "", torch, body


def test(values: Mapping[str, Any]) -> str:
    """Return the skeleton of a paper's test file: the contract, and room for the paper's exact facts."""
    return '''"""Exact facts of {id}: closed forms, invariances, limits."""

from workingpapers.contracts import check_contract


def test_contract() -> None:
    check_contract("{id}").raise_for_failure()


def test_a_fact_of_the_paper() -> None:
    """Hold the component against something that is true by the paper's mathematics."""
    raise NotImplementedError("compute the fact independently and compare")
'''.format(**values)
