"""sparsify: what it measures against independent counts, real decoders, the sweep's front, the shell, refusals."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from tests.surgery.real_models import hf
from torch import Tensor, nn
from torch.nn import functional as F

import workingpapers as wp
from workingpapers.cli import main
from workingpapers.errors import WorkingPapersError
from workingpapers.verbs import _sparse_measures
from workingpapers.verbs._sparse_measures import decoding_speed, quality, skipped
from workingpapers.verbs._tradeoff import Tradeoff, sweep
from workingpapers.verbs.sparsify import METHODS, Sparsified, sparsify

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def llama() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)).eval()  # type: ignore[no-any-return]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 30), nn.Linear(6, 30), nn.Linear(30, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", METHODS)
def test_decoders_are_changed_and_measured(method: str) -> None:
    model, text = llama(), torch.randint(1, 50, (6, 12))
    before = copy.deepcopy(model.state_dict())
    options = {"alpha": 0.9} if method == "r_sparse" else {}
    sparse, found = sparsify(model, method, 0.5, text, rounds=2, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert found.measure.startswith("perplexity")
    with torch.no_grad():
        losses = F.cross_entropy(model(text).logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
    if method != "coreinfer":  # which reads prompts in full
        assert found.before == pytest.approx(math.exp(losses), rel=1e-4)
    assert found.rise[1] <= found.rise[0] <= found.rise[2]
    assert found.after / found.before - 1 == pytest.approx(found.rise[0], rel=1e-3, abs=1e-6)
    assert 0.4 < found.sparsity < 0.6
    assert found.predicted > 1.1
    assert found.changes
    said = sparse.generate(text[:1, :4], max_new_tokens=4, do_sample=False)  # type: ignore[operator]
    assert said.shape == (1, 8)
    json.dumps(found.as_dict())


def test_a_target_of_zero_changes_nothing() -> None:
    model, text = llama(), torch.randint(1, 50, (6, 12))
    for method, options in (("cats", {}), ("r_sparse", {"alpha": 1.0}), ("coreinfer", {})):
        sparse, found = wp.sparsify(model, method, 0, text, rounds=2, **options)
        with torch.no_grad():
            assert torch.equal(sparse(text).logits, model(text).logits)
        assert found.before == found.after


@torch.no_grad()
def test_what_is_read_by_counting() -> None:
    model, x = Gated(), torch.randn(40, 6)
    sparse, found = sparsify(model, "cats", 0.6, x, rounds=2)
    gate = F.silu(model.gate(x))
    active = int((gate.abs() >= sparse.skip_below).sum())  # type: ignore[operator]
    whole = 30 * 6 * 2 + 30 * 5
    read = (40 * 30 * 6 + active * (6 + 5)) / (40 * whole)
    assert found.layers[0].read == pytest.approx(read)
    assert found.predicted == pytest.approx(1 / read)
    exact = model.down(torch.where(gate.abs() >= sparse.skip_below, gate, 0.0) * model.up(x))  # type: ignore[operator]
    shares = [
        float((exact[i : i + 8] - model(x[i : i + 8])).norm() / model(x[i : i + 8]).norm())
        for i in range(0, 40, 8)
    ]
    assert found.measure == "relative error"
    assert found.after == pytest.approx(sum(shares) / 5, rel=1e-4)


def test_quality_leaves_padding_out() -> None:
    model, text = llama(), torch.randint(1, 50, (4, 9))
    padded = torch.cat([text, torch.zeros(4, 3, dtype=torch.long)], 1)
    batch = {"input_ids": padded, "attention_mask": (padded > 0).long()}
    assert quality(model, model, batch, 0.0)[1] == pytest.approx(
        quality(model, model, text, 0.0)[1], rel=1e-5
    )


def test_speed_is_a_ratio_of_times_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [[4.0, 6.0, 5.0, 5.0, 4.0], [2.0, 2.0, 2.5, 1.0, 1.0]]
    monkeypatch.setattr(_sparse_measures, "seconds_by_turns", lambda runs, count, warm: rounds)
    model = llama()
    middle, low, high = decoding_speed(model, model, torch.ones(2, 3).long(), 5)
    assert middle == 3.0
    assert 2.0 <= low < middle < high <= 5.0


def point(method: str, after: float, speed: float) -> Sparsified:
    return Sparsified(
        method, 0.5, (), "perplexity", 1.0, after, (after - 1, 0.0, 1.0), 2.0, (speed, 0.9, 3.0), ()
    )


def test_the_front_of_a_sweep(tmp_path: Path) -> None:
    a, b, c, d = (
        point("cats", 1.2, 1.5),
        point("cats", 1.1, 1.4),
        point("r_sparse", 1.3, 1.4),
        point("x", 1.5, 2.0),
    )
    found = Tradeoff((a, b, c, d))
    assert found.front == (b, a, d)
    found.plot(str(tmp_path / "front.svg"))
    assert (tmp_path / "front.svg").stat().st_size > 5000
    assert [p["front"] for p in found.as_dict()["points"]] == [True, True, False, True]


def test_a_sweep_measures_each_point() -> None:
    model, x, told = Gated(), torch.randn(40, 6), []
    found = sweep(model, x, methods=["cats"], targets=[0.2, 0.8], rounds=2, watch=told.append)
    assert [(p.method, p.target) for p in found.points] == [("cats", 0.2), ("cats", 0.8)]
    assert found.points[0].after < found.points[1].after
    assert told == ["cats at 20%", "cats at 80%"]
    with pytest.raises(WorkingPapersError, match="at least one method and one target"):
        sweep(model, x, methods=[])


def test_layers_that_nothing_went_through_are_not_counted() -> None:
    model, x = Gated(), torch.randn(20, 6)
    sparse, _ = sparsify(model, "cats", 0.5, x, rounds=2)
    held = nn.ModuleDict({"used": sparse, "idle": copy.deepcopy(sparse)})
    held.forward = lambda x: held["used"](x)  # type: ignore[method-assign]
    layers, _ = skipped(held, x)
    assert [layer.name for layer in layers] == ["used"]


CASE = """
import torch
from torch import nn
def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.GELU(), nn.Linear(30, 5))
    return model, torch.randn(50, 6), torch.randn(20, 6)
def wrong():
    return 3
"""


def test_in_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.py").write_text(CASE)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["workingpapers", "sparsify", *words])
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(main())
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err  # type: ignore[arg-type]

    code, out, _ = run("my.py:case", "--rounds", "2", "--json")
    assert code == 0
    assert json.loads(out)["method"] == "cats"
    code, out, _ = run("my.py:case", "--sweep", "--target", "0.3,0.6", "--rounds", "2", "--plot", "p.svg")
    assert code == 0
    assert out.count("cats") == 2
    assert (tmp_path / "p.svg").exists()
    for words, sentence in [
        (("my.py:wrong",), "expected my.py:wrong to return (model, calibration)"),
        (("my.py:case", "--target", "half"), "expected a target as a number"),
        (("my.py:case", "--target", "7"), "a target lies between 0 and 1; got 7"),
        (
            ("my.py:case", "--method", "catz"),
            "no method of sparsify is named 'catz'; the nearest name is 'cats'",
        ),
        (("my.py:case", "--rounds", "2", "--out", "kept"), "Sequential is no Hugging Face model"),
    ]:
        code, _, err = run(*words)
        assert code == 2
        assert sentence in err


def test_what_it_refuses() -> None:
    model, text = llama(), torch.randint(1, 50, (6, 12))
    with pytest.raises(WorkingPapersError, match="expected a torch module to sparsify; got int"):
        sparsify(3, calibration=text)  # type: ignore[arg-type]
    with pytest.raises(WorkingPapersError, match="sparsify needs calibration data"):
        sparsify(model)
    with pytest.raises(WorkingPapersError, match="a target lies between 0 and 1; got True"):
        sparsify(model, target=True, calibration=text)
    with pytest.raises(WorkingPapersError, match="sparsity of cats is the target; give it as target=0.3"):
        sparsify(model, calibration=text, sparsity=0.3)
    with pytest.raises(WorkingPapersError, match="calibration needs at least 8 tokens"):
        sparsify(model, calibration=text[:1, :1])
    with pytest.raises(WorkingPapersError, match="'scalled'"):
        sparsify(model, "r_sparse", calibration=text, scalled=True)
