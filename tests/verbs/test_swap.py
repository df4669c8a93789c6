"""The verb: which places, the dry run, sizes by channel, and models that are compiled, wrapped or traced."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typer.testing import CliRunner

from workingpapers import make, swap, undo
from workingpapers.cli import app
from workingpapers.errors import WorkingPapersError

GOLU = make("golu")


class Block(nn.Module):
    """A layer and its activation, called and held."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(width, out, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.relu(self.conv(x)) - 0.1)


def net() -> nn.Module:
    """Return two blocks and a head."""
    head = nn.Sequential(
        nn.Flatten(), nn.Linear(24, 8), nn.Dropout(0.1), nn.ReLU(inplace=True), nn.Linear(8, 3)
    )
    return nn.Sequential(Block(3, 4), Block(4, 6), head).eval()


def names(model: nn.Module, **options: Any) -> list[str]:
    return [f"{p.name} {p.how}" for p in swap(model, "relu", "golu", dry_run=True, **options)]


EVERY = ["0.act module", "0 call", "1.act module", "1 call", "2.3 module"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, EVERY),
        ("1*", EVERY[2:4]),
        (["0.*", "2.*"], [EVERY[0], EVERY[4]]),
        (Block, EVERY[:4]),
        (nn.Linear, None),
        (0, EVERY[:1]),
        (-1, EVERY[4:]),
        ([0, 3], [EVERY[0], EVERY[3]]),
        (slice(1, None, 2), [EVERY[1], EVERY[3]]),
        (lambda place: place.how == "call", [EVERY[1], EVERY[3]]),
    ],
)
def test_places_are_chosen_by_pattern_class_position_and_function(
    where: Any, expected: list[str] | None
) -> None:
    if expected is None:
        with pytest.raises(WorkingPapersError, match="chooses none of the 5 places"):
            names(net(), where=where)
    else:
        assert names(net(), where=where) == expected


def test_a_dry_run_changes_nothing_and_reads_well() -> None:
    model = net()
    before = str(model)
    plan = swap(model, "relu", "prelu_he_init", channels="auto", inputs=torch.randn(1, 3, 2, 2), dry_run=True)
    assert str(model) == before
    lines = str(plan).splitlines()
    assert lines[0] == "0.act: relu, module, ReLU(), channels 4"
    assert lines[1].startswith("0: relu, call, Block.forward calls relu (test_swap.py:")
    assert lines[1].endswith("channels 4")
    assert [p.channels for p in plan] == [(4,), (4,), (6,), (6,), (8,)]


def test_channels_come_from_the_layer_before_or_from_the_first_run() -> None:
    model, x = net(), torch.randn(2, 3, 2, 2)
    with pytest.warns(UserWarning, match="4 places take their channels at the first run"):
        lazy = swap(model, "relu", "prelu_he_init", channels="auto")
    assert [n for n, _ in lazy.named_parameters() if "by_width" in n] == ["2.3.by_width.8.weight"]
    with pytest.raises(torch._dynamo.exc.Unsupported, match="run the model once before compiling"):
        torch.compile(lazy, backend="eager", fullgraph=True)(x)
    y = lazy(x)
    sized = swap(model, "relu", "prelu_he_init", channels="auto", inputs=x)
    assert {n: p.shape for n, p in lazy.named_parameters()} == {
        n: p.shape for n, p in sized.named_parameters()
    }
    assert torch.equal(sized(x), y)
    with pytest.raises(WorkingPapersError, match="is for 4 channels; got 5"):
        sized[0].act(torch.randn(1, 5, 2, 2))
    with torch.no_grad():
        sized[0].act.by_width["4"].weight.fill_(0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = swap(model, "relu", "prelu_he_init", channels="auto")
    other.load_state_dict(sized.state_dict())
    assert torch.equal(other(x), sized(x))
    four = swap(model, "relu", "prelu_he_init", channels=4, where="0.act")
    assert four[0].act.weight.shape == (4,)


def test_the_dimension_of_channels_can_be_said() -> None:
    model, x = nn.Sequential(nn.ReLU()), torch.randn(2, 5, 7)
    for channels, width in (("auto", 7), ("last", 7), ("first", 5)):
        found = swap(model, "relu", "prelu_he_init", channels=channels, inputs=x)
        assert found[0].widths == [width]
        assert torch.allclose(found(x), F.leaky_relu(x, 0.25))


def test_what_may_be_put_in() -> None:
    model, x = nn.Sequential(nn.ReLU()), torch.randn(9)
    bent = nn.LeakyReLU(0.3)
    for new in (bent, lambda: nn.LeakyReLU(0.3), lambda x: F.leaky_relu(x, 0.3)):
        assert torch.equal(swap(model, "relu", new)(x), bent(x))
    assert torch.equal(swap(model, "relu", nn.LeakyReLU, negative_slope=0.3)(x), bent(x))
    assert torch.equal(swap(model, "relu", F.leaky_relu, negative_slope=0.3)(x), bent(x))
    assert torch.equal(swap(model, "relu", torch.sin)(x), torch.sin(x))
    two = swap(nn.Sequential(nn.ReLU(), nn.ReLU()), "relu", bent)
    assert len({id(bent), id(two[0]), id(two[1])}) == 3
    whole = swap(model[0], "relu", "golu")
    assert torch.equal(whole(x), GOLU(x))
    assert isinstance(undo(whole), nn.ReLU)
    with pytest.raises(WorkingPapersError, match="the model itself is the activation"):
        swap(model[0], "relu", "golu", inplace=True)


def test_a_run_finds_calls_that_the_code_does_not_show() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = getattr(F, "re" + "lu")(x)
            return found

    model, x = nn.Sequential(Hidden()), torch.randn(7)
    with pytest.raises(WorkingPapersError, match="Sequential has no relu; its activations are none"):
        swap(model, "relu", "golu")
    assert torch.equal(swap(model, "relu", "golu", inputs=x)(x), GOLU(x))


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model, x = net(), torch.randn(2, 3, 2, 2)
    before, keys = model(x), [set(m.__dict__) for m in model.modules()]
    built: list[nn.Module] = []

    def third_time() -> nn.Module:
        built.append(nn.Tanh())
        if len(built) == 4:
            raise RuntimeError("no more")
        return built[-1]

    with pytest.raises(RuntimeError, match="no more"):
        swap(model, "relu", third_time, inplace=True)
    assert torch.equal(model(x), before)
    assert [set(m.__dict__) for m in model.modules()] == keys


def test_compiled_models_follow_without_a_graph_break() -> None:
    model, x = net(), torch.randn(2, 3, 2, 2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    before = compiled(x)
    expected = swap(model, "relu", "golu")(x)
    assert not torch.equal(before, expected)
    copied = swap(compiled, "relu", "golu", where="*")
    assert torch.equal(copied(x), expected)
    assert swap(compiled, "relu", "golu", inplace=True) is compiled
    assert torch.equal(compiled(x), expected)
    undo(compiled)
    assert torch.equal(compiled(x), before)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_swapped_models_export_and_traced_ones_are_swapped() -> None:
    model, x = net(), torch.randn(2, 3, 2, 2)
    swapped = swap(model, "relu", "golu")
    exported = torch.export.export(swapped, (x,)).module()
    assert torch.equal(exported(x), swapped(x))
    traced = torch.fx.symbolic_trace(model)
    for graph in (traced, torch.export.export(model, (x,)).module()):
        changed = swap(graph, "relu", "golu")
        assert torch.equal(changed(x), swapped(x))
        assert torch.equal(undo(changed)(x), model(x))
    assert torch.equal(
        torch.fx.symbolic_trace(swap(model, "relu", "silu"))(x), swap(model, "relu", "silu")(x)
    )

    class Thrown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            y.relu_()
            return y

    thrown = swap(torch.fx.symbolic_trace(Thrown()), "relu", "golu")
    assert torch.equal(thrown(x), GOLU(x + 1))

    class Method(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu()

    with pytest.raises(WorkingPapersError, match="trace the model first"):
        torch.fx.symbolic_trace(swap(nn.Sequential(Method()), "relu", "silu"))


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_distributed_models() -> None:
    x = torch.randn(2, 3, 2, 2)
    swapped = swap(net(), "relu", "snake", trainable=True)
    wrapped = DistributedDataParallel(swapped)
    wrapped(x).sum().backward()
    assert all(p.grad is not None for p in swapped.parameters())
    with pytest.raises(WorkingPapersError, match="swap in the model inside, and wrap again"):
        swap(wrapped, "snake", "golu", inplace=True)
    assert len(list(swapped.parameters())) == len(list(net().parameters())) + 5
    plain = DistributedDataParallel(net())
    swap(plain, "relu", "golu", inplace=True)
    assert torch.equal(plain(x), swap(undo(plain).module, "relu", "golu")(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:must run observer:UserWarning")
def test_quantisation_before_and_after() -> None:
    from torch.ao import quantization

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()).eval()
    fused = quantization.fuse_modules(model, [["0", "1"]])
    with pytest.warns(UserWarning, match=r"1 of the places stay as they are: 0.1: ConvReLU2d is fused"):
        swapped = swap(fused, "relu", "golu")
    x = torch.randn(1, 3, 2, 2)
    assert torch.equal(swapped(x), GOLU(model[2](model[1](model[0](x)))))
    after = quantization.fuse_modules(swap(model, "relu", "golu", where="3"), [["0", "1"]])
    assert torch.allclose(after(x), swapped(x))


def test_the_shell_prints_the_places(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())\n\n"
        "def other():\n    return 3\n"
    )
    runner, address = CliRunner(), f"{tmp_path}/own.py:build"
    done = runner.invoke(app, ["swap", address, "relu", "golu", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout) == [{"place": "1", "how": "module", "now": "ReLU()", "then": "golu"}]
    assert "golu" in runner.invoke(app, ["swap", address, "relu", "golu", "--where", "1"]).stdout
    with pytest.raises(WorkingPapersError, match="Sequential has no gelu; its activations are relu"):
        runner.invoke(app, ["swap", address, "gelu", "golu"], catch_exceptions=False)
    with pytest.raises(WorkingPapersError, match="builds a int, and no model"):
        runner.invoke(app, ["swap", f"{tmp_path}/own.py:other", "relu", "golu"], catch_exceptions=False)
