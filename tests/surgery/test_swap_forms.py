"""Swapping in every form in which a model has an activation; what cannot be swapped is named."""

import copy
import functools
import pickle
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workingpapers import make, swap, undo
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.surgery import changes

GOLU = make("golu")


def keeping(function: Any) -> Any:
    """A decorator such as libraries put on `forward`."""

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


def helper(x: Tensor) -> Tensor:
    return torch.relu(x)


class Doubling:
    """A callable that is no module."""

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * F.relu(x)


def thrown_away(self: Any, x: Tensor) -> Tensor:
    x = self.fc(x)
    x.relu_()
    return x


WAYS = {
    "F.relu": lambda self, x: F.relu(self.fc(x)),
    "in place": lambda self, x: F.relu(self.fc(x), inplace=True),
    "by name": lambda self, x: F.relu(input=self.fc(x)),
    "torch.relu": lambda self, x: torch.relu(self.fc(x)),
    "x.relu": lambda self, x: self.fc(x).relu(),
    "x.relu_": thrown_away,
    "helper": lambda self, x: helper(self.fc(x)),
    "list": lambda self, x: self.listed[0](self.fc(x)),
    "lambda": lambda self, x: self.held(self.fc(x)),
    "object": lambda self, x: self.object(self.fc(x)) / 2,
    "method": lambda self, x: self.deeper(self.fc(x)),
    "aten": lambda self, x: torch.ops.aten.relu(self.fc(x)),
    "comprehension": lambda self, x: torch.cat([F.relu(y) for y in (self.fc(x),)]),
    "decorated": keeping(lambda self, x: F.relu(self.fc(x))),
}


class Calling(nn.Module):
    """Has what the ways of calling ReLU need."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.listed, self.held, self.object = [F.relu], lambda x: x.relu(), Doubling()

    def deeper(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def calling(way: str) -> Any:
    """Return a module that calls ReLU once, in this way."""
    return type("Calls", (Calling,), {"forward": WAYS[way]})()


class Inner(nn.Module):
    """Calls ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(x))


class Above(Inner):
    """Calls ReLU in the class below."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class Nested(nn.Module):
    """Calls ReLU itself, around a module that calls it and one that is it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act = Inner(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x) - 0.1) + self.act(x - 0.2)


class Held(nn.Module):
    """Holds functions as attributes, one of them called with a further argument."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = F.relu, functools.partial(F.gelu, approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x, inplace=False) + self.second(x)


@pytest.mark.parametrize("way", WAYS)
def test_calls_inside_forward(way: str) -> None:
    model, x = calling(way), torch.randn(5, 4)
    swapped = swap(model, "relu", "golu")
    assert torch.equal(swapped(x), GOLU(model.fc(x)))
    assert torch.equal(model(x), F.relu(model.fc(x)))
    for twin in (copy.deepcopy(swapped), undo(swapped)):
        expected = F.relu if twin is swapped else GOLU
        assert torch.equal(twin(x), expected(model.fc(x)))
    assert type(swapped) is type(model)
    assert swapped.__dict__.keys() - {"workingpapers_changes", "workingpapers_edits"} == model.__dict__.keys()


def test_calls_by_way_of_super() -> None:
    model, x = Above(), torch.randn(5, 4)
    assert torch.equal(swap(model, "relu", "golu")(x), -GOLU(model.fc(x)))


@pytest.mark.parametrize("way", ["F.relu", "x.relu_"])
def test_gradients_are_those_of_the_new_function(way: str) -> None:
    model, x = calling(way).double(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    swapped = swap(model, "relu", "golu")
    assert torch.autograd.gradcheck(swapped, (x,))
    (found,) = torch.autograd.grad(swapped(x).sum(), x)
    (expected,) = torch.autograd.grad(GOLU(model.fc(x)).sum(), x)
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("chosen", [c for c in product([False, True], repeat=3) if any(c)])
def test_each_place_is_swapped_alone(chosen: tuple[bool, bool, bool]) -> None:
    """The new activation calls ReLU itself: what encloses it must leave it alone."""
    model, x = Nested(), torch.randn(5, 4)
    names = [name for name, yes in zip(("", "inner", "act"), chosen, strict=True) if yes]
    swapped = swap(model, "relu", "relu2", where=lambda place: place.name in names)
    outer, inner, act = (make("relu2") if yes else F.relu for yes in chosen)
    expected = outer(inner(model.inner.fc(x)) - 0.1) + act(x - 0.2)
    assert torch.equal(swapped(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(swapped))(x), expected)
    assert torch.equal(torch.compile(swapped, backend="eager", fullgraph=True)(x), expected)
    assert torch.equal(undo(swapped)(x), model(x))
    assert [type(m) for m in swapped.modules()] == [type(m) for m in model.modules()]


def test_swaps_go_on_from_one_another_and_back() -> None:
    model, x = Nested(), torch.randn(5, 4)
    first = swap(model, "relu", "relu2", where="inner")
    second = swap(first, "relu", "golu")
    third = swap(second, ["golu", "relu2"], nn.Tanh)
    expected = torch.tanh(torch.tanh(model.inner.fc(x)) - 0.1) + torch.tanh(x - 0.2)
    assert torch.equal(third(x), expected)
    assert torch.equal(undo(third)(x), second(x))
    assert torch.equal(undo(third)(x), first(x))
    assert torch.equal(undo(third)(x), model(x))
    with pytest.raises(WorkingPapersError, match="nothing was swapped in this Nested"):
        undo(third)


def test_functions_held_as_attributes() -> None:
    model, x = Held(), torch.randn(5)
    assert torch.equal(swap(model, "relu", "golu")(x), GOLU(x) + F.gelu(x, approximate="tanh"))
    assert torch.equal(swap(model, "gelu_tanh", "golu")(x), F.relu(x) + GOLU(x))
    assert torch.equal(swap(model, F.relu, torch.sin)(x), torch.sin(x) + model.second(x))
    swapped = swap(model, "relu", "snake", trainable=True)
    assert [n for n, _ in swapped.named_parameters()] == ["first.log_a"]
    assert undo(swapped).first is F.relu
    with pytest.raises(
        WorkingPapersError, match=r"Held has no gelu; its activations are relu \(1 place\), gelu_t"
    ):
        swap(model, "gelu", "golu")


def test_shared_modules_stay_shared_and_the_old_object_comes_back() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), act, nn.ModuleDict({"a": nn.Sequential(act)})["a"], nn.ReLU())
    swap(model, "relu", "snake", inplace=True, trainable=True)
    assert model[1] is model[2][0]
    assert model[1] is not model[3]
    assert changes(model)[0] == "1 is snake now, in place of relu."
    undo(model)
    assert model[1] is act
    assert model[2][0] is act


def test_hooks_mode_device_and_dtype_are_kept() -> None:
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).double().eval(), []
    handle = model[1].register_forward_hook(lambda module, args, output: seen.append(output))
    swap(model, "relu", "snake", inplace=True, trainable=True)
    y = model(torch.randn(3, 2, dtype=torch.float64))
    assert seen[0] is y
    assert model[1].log_a.dtype == torch.float64
    assert not model[1].training
    handle.remove()
    model(torch.randn(3, 2, dtype=torch.float64))
    assert len(seen) == 1
    assert undo(model.train())[1].training


class ReadsAgain(nn.Module):
    """Reads what an in-place ReLU has written into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.fc(x)
        return self.act(kept) + kept.sin()


def test_the_writing_of_in_place_activations_is_kept_where_an_output_depends_on_it() -> None:
    model, x = ReadsAgain(), torch.randn(3, 4)
    y = GOLU(model.fc(x))
    swapped = swap(model, "relu", "golu", inputs=x)
    assert torch.equal(swapped(x), y + y.sin())
    (found,) = torch.autograd.grad(swapped(x).sum(), swapped.fc.bias)
    (expected,) = torch.autograd.grad((y + y.sin()).sum(), model.fc.bias)
    assert torch.allclose(found, expected)
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    assert type(swap(plain, "relu", "golu", inputs=x)[1]) is type(GOLU)
    assert plain[1].inplace


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_fused_path_of_transformers_does_not_bypass_the_new_one(activation: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 5, 8)
    by_hand = copy.deepcopy(model)
    for block in by_hand.layers:
        block.activation, block.activation_relu_or_gelu = GOLU, 0
    with torch.no_grad():
        before = model(x)
        swapped = swap(model, activation, "golu")
        assert torch.equal(swapped(x), by_hand(x))
        padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
        assert swapped(x, src_key_padding_mask=padding).isfinite().all()
        assert torch.equal(undo(swapped)(x), before)
    assert swapped.use_nested_tensor
    assert swapped.layers[0].activation_relu_or_gelu == model.layers[0].activation_relu_or_gelu > 0


class OddReLU(nn.Module):
    """Has the name of an activation, and computes another function."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.3 * x.abs())


class OwnReLU(nn.Module):
    """Has a name of its own, and computes ReLU without calling it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x))


def test_what_cannot_be_swapped_is_named() -> None:
    model = nn.Sequential(nn.ReLU(), OddReLU(), nn.RNN(2, 2, nonlinearity="relu"), OwnReLU())
    with pytest.warns(
        UserWarning, match="2 of the places stay as they are: 1: OddReLU has the name.*2: RNN comp"
    ):
        swapped = swap(model, "relu", "golu")
    assert type(swapped[0]) is type(GOLU)
    assert type(swapped[3]) is type(GOLU)
    assert type(swapped[1]) is OddReLU
    assert "2 stays: RNN computes it inside a kernel." in changes(swapped)
    with pytest.raises(WorkingPapersError, match="relu cannot be swapped here: 0: OddReLU has the name"):
        swap(nn.Sequential(OddReLU()), "relu", "golu")
    with pytest.raises(WorkingPapersError, match="LSTM computes it inside a kernel"):
        swap(nn.Sequential(nn.LSTM(2, 2)), "tanh", "golu")


def test_a_class_means_modules_and_a_function_means_calls() -> None:
    model = Nested()
    assert [p.how for p in swap(model, nn.ReLU, "golu", dry_run=True)] == ["module"]
    assert [p.how for p in swap(model, torch.relu, "golu", dry_run=True)] == ["call", "call"]
    assert len(swap(model, "relu", "golu", dry_run=True)) == 3
    assert len(swap(nn.Sequential(nn.ReLU6(), nn.Hardtanh()), nn.Hardtanh, "golu", dry_run=True)) == 1
    assert isinstance(swap(nn.Sequential(OddReLU()), OddReLU, "golu")[0], type(GOLU))


def test_unknown_names_and_wrong_arguments_are_one_sentence() -> None:
    model = nn.Sequential(nn.ReLU())
    for arguments, options, words in [
        (("rleu", "golu"), {}, "no activation is named 'rleu'; the nearest"),
        (("relu", "gollu"), {}, "'gollu'; the nearest names are 'golu'"),
        (("relu", "golu"), {"betta": 1}, "no option of 'golu' is named 'betta'"),
        (("relu", "repvgg"), {}, "swap puts in activations, and 'repvgg' is a transform"),
        (("relu", 3), {}, "what is put in is a name, a module"),
        ((3, "golu"), {}, "what is swapped is an activation's name"),
        (("relu", "golu"), {"where": "x.*"}, "chooses none of the 1 places of relu, such as 0"),
        (("relu", "golu"), {"where": 2.5}, "where is a name pattern"),
        (("relu", "golu"), {"channels": "auto"}, "golu has no parameters by channel"),
        (("relu", "snake"), {"channels": "some"}, "channels is a number, 'auto'"),
        (("relu", "golu"), {"inputs": (1, 2, 3)}, "Sequential does not run on these inputs"),
        (("relu", lambda: 3), {}, "builds a int, and no activation module"),
    ]:
        with pytest.raises(WorkingPapersError, match=words):
            swap(model, *arguments, **options)
    assert isinstance(model[0], nn.ReLU)
    with pytest.raises(UnknownName):
        swap(model, "rleu", "golu")
