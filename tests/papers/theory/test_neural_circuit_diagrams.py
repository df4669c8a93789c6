"""Circuit diagrams: types, laws of composition and broadcasting, linear maps, backpropagation, costs, drawings."""

import random

import pytest
import torch
from matplotlib import pyplot
from torch import Tensor, nn

from workingpapers.catalog import claims, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._drawing import draw
from workingpapers.papers.theory._gallery import gallery, residual
from workingpapers.papers.theory._primitives import einsum, elementwise, view
from workingpapers.papers.theory._reverse import chain, reverse
from workingpapers.papers.theory._terms import (
    Broadcast,
    Op,
    Term,
    Wires,
    arrays,
    columns,
    compose,
    identity,
    numbers_in,
    over,
    written,
)
from workingpapers.papers.theory._tracing import alive, counted, measured_peak, traced
from workingpapers.papers.theory.neural_circuit_diagrams import (
    check_inputs,
    evaluate,
    neural_circuit_diagrams,
    perceptron,
)
from workingpapers.tasks import mlp

AB = arrays("a:3 b:4")


def random_inputs(term: Term, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn([size for _, size in array], generator=generator, dtype=torch.float64)
        for array in term.source
    ]


def same(one: Term, other: Term) -> None:
    assert one.source == other.source
    assert one.target == other.target
    found, wanted = (t.run(random_inputs(t)) for t in (one, other))
    assert len(found) == len(wanted)
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w)


def a_term(draw: random.Random) -> Term:
    """Return a random term from AB | AB to itself."""
    two = AB * 2
    kind = draw.randrange(4)
    if kind == 0:
        return Wires(two, draw.choice([(1, 0), (0, 0), (1, 1), (0, 1)]))
    if kind == 1:
        return elementwise("tanh", torch.tanh, AB) @ elementwise("square", torch.square, AB)
    if kind == 2:
        first = einsum("a:3 b:4 | a:3 b:4", "a:3 b:4")
        return compose(Wires(two, (0, 1, 0)), first @ identity(AB))
    return over(elementwise("cumsum", lambda x: x.cumsum(0), arrays("b:4")), ("a", 3)) @ identity(AB)


# types and laws


def test_types_are_read_and_written() -> None:
    kind = arrays("n:8 d:16 | | d:16")
    assert kind == ((("n", 8), ("d", 16)), (), (("d", 16),))
    assert arrays(written(kind)) == kind
    assert numbers_in(kind) == 128 + 1 + 16
    with pytest.raises(WorkingPapersError, match="written as in"):
        arrays("n:eight")


@pytest.mark.parametrize("seed", range(6))
def test_composition_is_associative_and_the_identity_neutral(seed: int) -> None:
    drawn = random.Random(seed)
    f, g, h = (a_term(drawn) for _ in range(3))
    same((f >> g) >> h, f >> (g >> h))
    same(compose(f, g, h), f >> g >> h)
    same(identity(f.source) >> f, f)
    same(f >> identity(f.target), f)
    assert ((f >> g) >> h).flops == (f >> (g >> h)).flops
    assert ((f >> g) >> h).peak == (f >> (g >> h)).peak
    assert len(columns((f >> g) >> h)) == len(columns(f >> (g >> h)))


@pytest.mark.parametrize("seed", range(4))
def test_broadcasting_a_composition_composes_broadcasts(seed: int) -> None:
    drawn = random.Random(seed)
    f, g, axis = a_term(drawn), a_term(drawn), ("n", 5)
    whole = Broadcast(f >> g, axis)
    same(whole, Broadcast(f, axis) >> Broadcast(g, axis))
    by_hand = [torch.stack(parts) for parts in zip(*[
        (f >> g).run([x[k] for x in random_inputs(whole)]) for k in range(5)
    ], strict=True)]  # fmt: skip
    for found, wanted in zip(whole.run(random_inputs(whole)), by_hand, strict=True):
        torch.testing.assert_close(found, wanted)
    assert whole.flops == 5 * (f >> g).flops


def test_products_interchange_with_composition() -> None:
    f, g = (elementwise(n, t, AB) for n, t in (("sin", torch.sin), ("exp", torch.exp)))
    same((f @ g) >> (g @ f), (f >> g) @ (g >> f))
    swap = Wires(AB * 2, (1, 0))
    same((f @ g) >> swap, swap >> (g @ f))


def test_linear_maps_move_past_broadcasts_over_other_axes() -> None:
    summed = einsum("b:4", "")
    same(over(summed, ("a", 3)), einsum("a:3 b:4", "a:3"))
    swapped = view("t", lambda x: x.T, "a:3 b:4", "b:4 a:3")
    same(swapped >> over(einsum("a:3", ""), ("b", 4)), einsum("a:3 b:4", "b:4"))
    matrix = einsum("a:3 b:4 | b:4 c:5", "a:3 c:5")
    left = einsum("a:3 | a:3 c:5", "c:5")
    one = compose(identity(arrays("a:3")) @ matrix, left)  # w (X Y) = (w X) Y
    other = compose(
        einsum("a:3 | a:3 b:4", "b:4") @ identity(arrays("b:4 c:5")), einsum("b:4 | b:4 c:5", "c:5")
    )
    same(one, other)


def test_an_axis_of_size_one_is_unsqueezed() -> None:
    f = elementwise("cumsum", lambda x: x.cumsum(0), arrays("b:4"))
    x = torch.randn(1, 4)
    assert torch.equal(evaluate(over(f, ("n", 1)), x), evaluate(f, x[0])[None])


def test_types_that_do_not_fit_are_refused() -> None:
    f = elementwise("id", torch.clone, AB)
    for call, match in (
        (
            lambda: f >> elementwise("id", torch.clone, arrays("a:3 b:5")),
            r"got \(a:3 b:4\) before \(a:3 b:5\)",
        ),
        (lambda: f >> elementwise("id", torch.clone, arrays("a:3 c:4")), "types are the same"),
        (lambda: Wires(AB, (1,)), "pick among 1 arrays"),
        (lambda: einsum("a:3 b:4 | b:5", "a:3"), "one size"),
        (lambda: einsum("a:3", "b:3"), "come from the arguments"),
        (lambda: view("v", torch.clone, "a:3", "a:4"), "keeps the numbers"),
        (lambda: check_inputs(f, (torch.zeros(4, 3),)), r"\[\(3, 4\)\]; got \[\(4, 3\)\]"),
    ):
        with pytest.raises(WorkingPapersError, match=match):
            call()


# linear maps and costs


def test_einsum_against_loops() -> None:
    term = einsum("n:2 e:3 | m:4 e:3", "n:2 m:4", scale=0.5)
    q, k = random_inputs(term)
    wanted = [[0.5 * sum(float(q[i, e] * k[j, e]) for e in range(3)) for j in range(4)] for i in range(2)]
    torch.testing.assert_close(evaluate(term, q, k), torch.tensor(wanted, dtype=torch.float64))
    assert term.flops == 2 * 2 * 3 * 4
    assert einsum("a:3 b:4", "b:4 a:3").flops == 0


def test_memory_column_by_column() -> None:
    f = elementwise("relu", torch.relu, arrays("a:10"))
    wide = Op("repeat", lambda x: x.repeat(5), arrays("a:10"), arrays("a:50"))
    narrow = Op("sum", torch.sum, arrays("a:50"), ((),))
    assert (f.peak, wide.peak, narrow.peak) == (20, 60, 51)
    assert compose(f, wide, narrow).peak == 60
    assert (f @ wide).peak == 10 + 60  # 20 beside 10, then the result 10 beside 60
    assert over(wide, ("n", 3)).peak == 180
    term = compose(f, wide, narrow)
    assert measured_peak(term) == pytest.approx(60)
    assert measured_peak(residual(compose(f, f))) == residual(compose(f, f)).peak == 30


def test_memory_of_parameters_is_not_counted_and_freed_memory_is_free() -> None:
    weight = torch.randn(50, 50)
    assert alive(lambda: weight.t() @ torch.ones(50)) == 4 * 100

    def run() -> None:
        for _ in range(5):
            torch.ones(100).add(1)

    assert alive(run) == 4 * 200


@pytest.mark.parametrize("name", gallery())
def test_architectures_equal_torch_and_are_counted_right(name: str) -> None:
    piece = gallery(seed=3)[name]
    x = torch.randn(2, *piece.shape())
    with torch.no_grad():
        wanted = piece.module.eval()(x)
        found = torch.stack([evaluate(piece.diagram, one) for one in x])  # type: ignore[misc]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert float(wanted.std()) > 1e-3
    with torch.no_grad():
        seen = counted(lambda: piece.diagram.run([x[0].clone()]))
        read = getattr(
            piece.module, "read", None
        )  # torch does not count the product of a matrix and one vector
        assert piece.diagram.flops == seen + (2 * read.weight.numel() if read is not None else 0)
        measured = measured_peak(piece.diagram)
    assert 0.5 * measured < piece.diagram.peak < 2 * measured
    assert piece.diagram.flops > 0


def test_a_perceptron_by_hand() -> None:
    term = perceptron(7, (3, 20, 2))
    assert term.flops == 2 * 7 * (3 * 20 + 20 * 2)
    assert term.peak == 7 * 40
    assert measured_peak(term) == 7 * 40


# backpropagation


def gradients(term: Term) -> None:
    inputs = random_inputs(term)
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = term.run(list(leaves))
    grads = [torch.randn_like(o) for o in out]
    wanted = torch.autograd.grad(out, leaves, grads, allow_unused=True)
    found = reverse(term).run([*inputs, *grads])
    assert reverse(term).source == term.source + term.target
    assert reverse(term).target == term.source
    for f, w, x in zip(found, wanted, inputs, strict=True):
        torch.testing.assert_close(f, torch.zeros_like(x) if w is None else w)


@pytest.mark.parametrize("seed", range(5))
def test_reverses_of_random_terms_are_gradients(seed: int) -> None:
    drawn = random.Random(seed)
    f, g = a_term(drawn), a_term(drawn)
    gradients(f >> g)
    gradients(Broadcast(f >> g, ("n", 3)))
    gradients(f @ g)


def test_reverses_of_linear_maps() -> None:
    gradients(einsum("n:2 e:3 | m:4 e:3", "n:2 m:4", scale=0.5))
    gradients(einsum("a:3 b:4 | a:3", "a:3"))  # b is summed away
    gradients(residual(elementwise("sin", torch.sin, AB)))
    gradients(Wires(AB * 2, (1, 1, 1)))


def test_a_chain_costs_at_most_three_times_as_much_backwards() -> None:
    """Each product has two transposed ones; all but the last layer run forward once again."""
    batch, width = 8, 16
    layer, relu = 2 * batch * width**2, batch * width
    for depth in (1, 2, 5, 32):
        term = chain(depth, batch, width)
        assert term.flops == depth * (layer + relu)
        again = depth * (layer + relu) - relu  # the last part's value is not needed
        assert reverse(term).flops == again + depth * (2 * layer + relu)
    gradients(chain(3))


def test_the_bracketing_does_not_change_the_cost_of_the_reverse() -> None:
    parts = columns(chain(4))
    left = parts[0]
    for part in parts[1:]:
        left = left >> part
    assert reverse(left).flops == reverse(compose(*parts)).flops


# models of one's own


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        z = torch.relu(self.two(y)) + x
        return self.scale * z.flatten(1) + y


def test_a_traced_model_is_the_model() -> None:
    model, x = Branches(), torch.randn(5, 4)
    term = traced(model, x)
    torch.testing.assert_close(evaluate(term, x), model(x).detach())
    other = torch.randn(5, 4)
    torch.testing.assert_close(evaluate(term, other), model(other).detach())
    assert term.flops == 2 * 2 * 5 * 16
    found = neural_circuit_diagrams(model, x).numbers
    assert found["differs"] == 0
    assert found["parameters"] == 41
    assert found["learned"] == 3


def test_traces_of_images_and_refusals() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(32, 3)
    )
    numbers = neural_circuit_diagrams(model.train(), torch.randn(2, 1, 6, 6)).numbers
    assert numbers["flops"] == 2 * 2 * (2 * 16 * 9 + 32 * 3)
    assert numbers["operations"] == 6
    assert all(m.training for m in model.modules())

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(WorkingPapersError, match="cannot follow Looks"):
        traced(Looks(), torch.ones(2))


def test_drawings_have_a_box_for_each_operation() -> None:
    term = traced(mlp([4, 3, 2]), torch.randn(2, 4))
    figure = draw(term, "perceptron")
    texts = {t.get_text() for t in figure.axes[0].texts}
    assert {"Flatten", "Linear", "ReLU"} <= texts
    bold = [p.get_linewidth() for p in figure.axes[0].patches]
    assert sorted(bold) == [1, 1, 2.2, 2.2]
    pyplot.close(figure)
    figure = draw(gallery()["multi-head attention"].diagram)
    assert any("over n" in t.get_text() for t in figure.axes[0].texts)
    assert any(line.get_linestyle() == "--" for line in figure.axes[0].lines)
    pyplot.close(figure)


def test_softmax_rows_of_a_head_sum_to_one() -> None:
    """With equal keys every query takes the mean of the values."""
    from workingpapers.papers.theory._gallery import head

    term = head(5, 3)
    q, _, v = random_inputs(term)
    found = evaluate(term, q, torch.ones(5, 3, dtype=torch.float64), v)
    torch.testing.assert_close(found, v.mean(0).expand(5, 3))
    sharp = evaluate(
        term, 1e3 * torch.eye(5, 3, dtype=torch.float64), torch.eye(5, 3, dtype=torch.float64), v
    )
    torch.testing.assert_close(sharp[:3], v[:3])  # type: ignore[index]
    assert term.flops == 2 * 2 * 5 * 5 * 3
    assert term.peak == max(2 * 15 + 25 + 15, 25 + 25 + 15)  # scores from q and k, or softmax; v beside


def test_claims_say_what_the_record_says() -> None:
    said = {c["says"] if isinstance(c, dict) else c.says for c in record("neural_circuit_diagrams").claims}
    assert {c.says for c in claims("neural_circuit_diagrams").values()} == said
