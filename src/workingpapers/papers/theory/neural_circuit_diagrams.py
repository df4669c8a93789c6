"""Neural circuit diagrams: architectures as typed terms that are drawn, run as torch code, and counted.

    broadcast_a(f ; g) = broadcast_a(f) ; broadcast_a(g),      R(f ; g) = (x, c) -> R(f)(x, R(g)(f(x), c))

A diagram's columns are what runs one after another, its wires are axes of arrays; FLOPs add up over columns, and
the widest column is the memory.  The language is in `_terms`, backpropagation in `_reverse`, architectures in
`_gallery`.

Paper: "Neural Circuit Diagrams" (2024), arXiv 2402.05424.  Drawing conventions are reconstructed.
"""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most
from workingpapers.papers.theory._drawing import draw
from workingpapers.papers.theory._gallery import gallery, linear
from workingpapers.papers.theory._primitives import elementwise
from workingpapers.papers.theory._reverse import chain, reverse
from workingpapers.papers.theory._terms import Beside, Op, Term, arrays, columns, compose
from workingpapers.papers.theory._tracing import counted, measured_peak, traced
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, mlp


def check_inputs(term: Term, values: tuple[Tensor, ...]) -> None:
    """Raise one sentence unless tensors have the shapes of a term's source."""
    wanted = [tuple(size for _, size in array) for array in term.source]
    given = [tuple(v.shape) for v in values]
    if wanted != given:
        raise WorkingPapersError(f"the diagram takes arrays of the shapes {wanted}; got {given}")


def evaluate(term: Term, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Run a diagram on tensors; one result comes alone, several as a tuple."""
    check_inputs(term, values)
    found = term.run(list(values))
    return found[0] if len(found) == 1 else tuple(found)


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = mlp([6, 5, 3])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model, torch.randn(4, 6, generator=generator)


@paper(
    "neural_circuit_diagrams",
    example=_example,
    invariances={"values of the input": lambda model, x: (model, 2 * x)},
)
def neural_circuit_diagrams(model: nn.Module, x: Tensor) -> Finding:
    """Draw a model as a circuit diagram of its operations on `x`, and read off what it costs.

    Args:
        model: any module of one tensor that torch.fx can follow.
        x: an input, with its batch.

    The numbers: `flops` (matrix products and convolutions), `peak`, the most numbers alive at one time, `columns`,
    `operations`, `learned` ones, `parameters`, and `differs`: whether the diagram's result is off the model's by
    more than 1e-5 of its size.  `details["diagram"]` is the term.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        term = traced(model, x)
        with torch.no_grad():
            found = evaluate(term, x)
    finally:
        for module, mode in modes.items():
            module.training = mode
    wanted = collect(model, x, [""])[""]
    if not isinstance(found, Tensor):
        raise WorkingPapersError("a model with one tensor as its result can be drawn; this one has several")
    ops = [p for p in (_inner(part) for part in columns(term)) if p is not None]
    numbers = {
        "flops": float(term.flops),
        "peak": float(term.peak),
        "columns": float(len(columns(term))),
        "operations": float(len(ops)),
        "learned": float(sum(op.learned for op in ops)),
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "differs": float(not torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))),
    }
    return Finding(
        numbers,
        f"The model runs {len(ops)} operations of {term.flops:,} FLOPs, and at its widest place {term.peak:,} "
        "numbers are alive.",
        lambda: draw(term, type(model).__name__),
        {"diagram": term},
    )


def _inner(part: Term) -> Op | None:
    """Return the operation of a column, also where it stands beside what is kept."""
    own = part.first if isinstance(part, Beside) else part
    return own if isinstance(own, Op) else None


def perceptron(n: int, sizes: tuple[int, ...]) -> Term:
    """Return a perceptron with ReLU on `n` inputs as a diagram with new weights."""
    terms: list[Term] = []
    for k, (a, b) in enumerate(pairwise(sizes)):
        terms.append(linear(nn.Linear(a, b), f"a{k}", f"a{k + 1}", ("n", n)))
        if k + 2 < len(sizes):
            terms.append(elementwise("relu", torch.relu, arrays(f"n:{n} a{k + 1}:{b}")))
    return compose(*terms)


@claim(
    "neural_circuit_diagrams",
    "Because diagrams compose like code, they correspond closely to implementations, shown for transformers, "
    "convolution, residual nets, U-Net and vision transformers.",
    seeds=3,
    holds=at_most(1e-5, of="largest_error", by="every"),
)
def diagrams_are_code(budget: Budget, seed: int) -> Evidence:
    """Seven architectures against torch modules with the same parameters, 20 random inputs each."""
    generator = torch.Generator().manual_seed(seed)
    errors = {}
    for name, piece in gallery(seed).items():
        x = torch.randn(20, *piece.shape(), generator=generator)
        wanted = collect(piece.module, x, [""])[""]
        with torch.no_grad():
            found = torch.stack([torch.as_tensor(evaluate(piece.diagram, one)) for one in x])
        errors[name.replace(" ", "_").replace("-", "_")] = float((found - wanted).abs().max())
    return Evidence(largest_error=max(errors.values()), **errors)


@claim(
    "neural_circuit_diagrams",
    "An algorithm's time and memory demands can be analysed from its diagram.",
    seeds=3,
    holds=all_of(at_most(0.02, of="flops_error", by="every"), at_most(0.1, of="memory_error", by="every")),
)
def costs_are_read_off(budget: Budget, seed: int) -> Evidence:
    """Attention, convolution and a perceptron: FLOPs by torch's counter, memory by the storages alive, the largest
    relative differences."""
    pieces = gallery(seed, side=16, n=64, d=32)
    terms = {
        "attention": pieces["multi-head attention"].diagram,
        "conv": pieces["convolution"].diagram,
        "mlp": perceptron(32, (20, 50, 50, 10)),
    }
    flops, memory = {}, {}
    for name, term in terms.items():
        shapes = [[size for _, size in array] for array in term.source]
        with torch.no_grad():
            real = counted(partial(term.run, [torch.zeros(s) for s in shapes]))
        flops[f"{name}_flops"] = abs(term.flops / real - 1)
        memory[f"{name}_memory"] = abs(term.peak / measured_peak(term, seed) - 1)
    return Evidence(flops_error=max(flops.values()), memory_error=max(memory.values()), **flops, **memory)


@claim(
    "neural_circuit_diagrams",
    "Expressing backpropagation in diagrams gives mathematical insight into its cost.",
    seeds=3,
    holds=all_of(at_least(1, of="least_ratio", by="every"), at_most(3.1, of="largest_ratio", by="every")),
)
def reverse_costs_a_factor(budget: Budget, seed: int) -> Evidence:
    """FLOPs of the reverse diagram over those of perceptrons of 2 to 32 layers, checked against torch's gradients.

    `gradient_error` is the largest difference from torch's own gradients, relative to the largest gradient.
    """
    generator, ratios, errors = torch.Generator().manual_seed(seed), {}, []
    for depth in (2, 4, 8, 16, 32):
        term = chain(depth)
        backward = reverse(term)
        ratios[f"ratio_{depth}"] = backward.flops / term.flops
        shapes = [[size for _, size in array] for array in term.source]
        inputs = [torch.randn(s, generator=generator) / math.sqrt(s[0] / 2) for s in shapes]
        grad = torch.randn([size for _, size in term.target[0]], generator=generator)
        leaves = [x.clone().requires_grad_() for x in inputs]
        wanted = torch.autograd.grad(term.run(list(leaves)), leaves, [grad])
        found = backward.run([*inputs, grad])
        most = max(float(w.abs().max()) for w in wanted)
        errors.append(max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True)) / most)
    return Evidence(
        least_ratio=min(ratios.values()),
        largest_ratio=max(ratios.values()),
        gradient_error=max(errors),
        **ratios,
    )
