"""Chains of layers: blocks by hand, decoders of Hugging Face, the tree's counts, and analyses by hand."""

import math
import random
from typing import Any

import pytest
import torch
from tests.surgery.real_models import T5, TINY, hf
from torch import Tensor, nn

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._chain_samples import Searched, log_chance
from workingpapers.papers.sparsity._chain_search import Node, Tree, Trial, distance, score
from workingpapers.papers.sparsity.cola_layers import (
    ChainRunner,
    ChainSpace,
    LastToken,
    Sample,
    analyse,
    best_static,
    chain_analysis,
    questions,
    random_chains,
    right,
    search,
    search_sample,
    transfer,
)
from workingpapers.tasks import char_gpt


def tokens() -> Tensor:
    return torch.randint(0, 9, (2, 5))


def small() -> Any:
    return char_gpt(9, 8, 3, 2, 8)


def llama(**options: Any) -> Any:
    shape: Any = {**TINY, "num_hidden_layers": 3}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**shape, num_key_value_heads=2, **options)).eval()


SHAPE: Any = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
}
DECODERS: dict[str, Any] = {
    "llama": llama,
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(n_embd=16, n_layer=3, n_head=2, n_positions=32, vocab_size=50, bos_token_id=0, eos_token_id=0)
    ),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=8, sliding_window=2)
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, ffn_dim=24, vocab_size=50,
            word_embed_proj_dim=16, max_position_embeddings=32,
        )
    ),
}  # fmt: skip


def test_the_chain_of_all_layers_is_the_model() -> None:
    model, x = small().train(), tokens()
    runner = ChainRunner(model, x)
    assert runner.original == (0, 1, 2)
    assert torch.equal(runner(x, runner.original), model(x))
    assert model.training
    assert [type(b).__name__ for b in model.blocks] == ["Block"] * 3


def test_a_chain_by_hand() -> None:
    model, x = small(), tokens()
    h = model.tokens(x) + model.positions[:5]
    for i in (2, 0, 0, 1):
        h = model.blocks[i](h)
    torch.testing.assert_close(ChainRunner(model, x)(x, (2, 0, 0, 1)), model.head(model.norm(h)))


@torch.no_grad()
def test_a_layer_without_output_may_be_repeated_or_skipped() -> None:
    model, x = small(), tokens()
    for linear in (model.blocks[1].contract, model.blocks[1].mixer.out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    runner = ChainRunner(model, x)
    for chain in ((0, 1, 1, 1, 2), (0, 2)):
        torch.testing.assert_close(runner(x, chain), model(x))


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_decoders_of_hugging_face(name: str) -> None:
    model = DECODERS[name]().eval()
    x, padded = tokens(), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    runner = ChainRunner(model, x)
    torch.testing.assert_close(runner(x, runner.original).logits, model(x).logits, atol=1e-5, rtol=1e-5)
    given = {"input_ids": x, "attention_mask": padded}
    wanted = model(**given, use_cache=False).logits[:, 2:]
    torch.testing.assert_close(runner(given, runner.original).logits[:, 2:], wanted, atol=1e-5, rtol=1e-5)
    long = runner(x, runner.original * 3).logits
    assert bool(long.isfinite().all())
    swapped = runner(x, (1, 0, *runner.original[2:])).logits
    assert not torch.allclose(swapped, model(x).logits, atol=1e-5)
    later = x.clone()
    later[:, 3:] = 3
    torch.testing.assert_close(runner(later, (1, 0, 1)).logits[:, :3], runner(x, (1, 0, 1)).logits[:, :3])


@torch.no_grad()
def test_repeated_llama_layers_by_hand() -> None:
    model, x = llama(), tokens()
    inner = model.model
    h = inner.embed_tokens(x)
    position = torch.arange(5)[None]
    rotary = inner.rotary_emb(h, position_ids=position)
    mask = torch.full((5, 5), -torch.inf).triu(1)[None, None]
    for i in (0, 1, 1, 2, 1):
        h = inner.layers[i](h, attention_mask=mask, position_ids=position, position_embeddings=rotary)
    wanted = model.lm_head(inner.norm(h))
    torch.testing.assert_close(ChainRunner(model, x)(x, (0, 1, 1, 2, 1)).logits, wanted, atol=1e-5, rtol=1e-4)


class Hidden(nn.Module):
    """Blocks under an unusual name that give tuples, beside a list that is not run in order."""

    def __init__(self) -> None:
        super().__init__()
        self.pile = nn.ModuleList(Pair() for _ in range(4))
        self.others = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.pile:
            x = part(x)[0]
        return self.others[1](self.others[0](x) + 1)  # type: ignore[no-any-return]


class Pair(nn.Module):
    """A linear layer that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        return self.linear(hidden), None


def test_blocks_are_found_by_what_they_do() -> None:
    model, x = Hidden(), torch.randn(2, 3)
    runner = ChainRunner(model, x)
    assert (runner.blocks, runner.tuples) == ("pile", True)
    h = x
    for i in (3, 1):
        h = model.pile[i].linear(h)  # type: ignore[union-attr,operator]
    torch.testing.assert_close(runner(x, [3, 1]), model.others[1](model.others[0](h) + 1))


def test_errors() -> None:
    x = tokens()
    runner = ChainRunner(small(), x)
    for chain in ((), (0, 3)):
        with pytest.raises(WorkingPapersError, match="blocks from 0 to 2, at least one"):
            runner(x, chain)
    with pytest.raises(WorkingPapersError, match="it has none; name it"):
        ChainRunner(nn.Linear(3, 2), torch.randn(2, 3))
    with pytest.raises(WorkingPapersError, match="'others' is no list of blocks"):
        ChainRunner(Hidden(), torch.randn(2, 3), "others")
    shape: Any = T5
    model = hf.T5ForConditionalGeneration(hf.T5Config(**shape, decoder_start_token_id=0))
    with pytest.raises(WorkingPapersError, match=r"it has several: .*; name one"):
        ChainRunner(model, {"input_ids": x, "decoder_input_ids": x})
    cached = llama()
    runner = ChainRunner(cached, x)
    with pytest.raises(WorkingPapersError, match="without a key-value cache"):
        runner({"input_ids": x, "use_cache": True}, runner.original)
    assert len(cached.model.layers) == 3
    with pytest.raises(WorkingPapersError, match="nearest name is 'length'"):
        search(ChainSpace(3), len, mode="lenght")


def test_moves_are_legal_and_reach_skips_and_repeats() -> None:
    space, chance = ChainSpace(4, 1.5), random.Random(0)
    seen = set()
    for _ in range(300):
        chain = space.root
        for _ in range(chance.randint(1, 8)):
            before, chain = chain, space.move(chain, chance)
            assert 1 <= len(chain) <= 6
            if len(chain) < len(before):
                cuts = [before[:i] + before[i + len(before) - len(chain) :] for i in range(len(before))]
                assert chain in cuts
            seen.add(chain)
    assert {(0, 1, 2), (3,), (0, 1, 0, 1, 2, 3), (0, 1, 2, 3, 3, 3)} <= seen
    assert all(len(space.sample(seed)) <= 6 for seed in range(50))
    with pytest.raises(WorkingPapersError, match="no move is legal"):
        ChainSpace(1, 1.0).move((0,), chance)


def test_scores_by_hand() -> None:
    parent = Node((0, 1, 2, 3), visits=9)
    node = Node((0, 3), parent, visits=4, total=3.0)
    assert score(node, 4, 1.8, 0.5) == pytest.approx(0.75 + 1.8 * math.sqrt(math.log(9) / 4) - 0.25)


def test_visits_add_up_and_no_chain_is_tried_twice() -> None:
    space = ChainSpace(4)
    tree = Tree(space, lambda c: float(len(c) % 2), 3, 1.8, 1.0)
    for _ in range(70):
        tree.simulate()
    nodes, todo = [], [tree.root]
    while todo:
        node = todo.pop()
        nodes.append(node)
        todo += node.children
        assert node.visits == node.ended + sum(child.visits for child in node.children)
    assert tree.root.visits == sum(node.ended for node in nodes) == 70
    assert len({node.chain for node in nodes}) == len(nodes) == len(tree.trials)
    assert tree.trials[0].point == space.root
    assert all(1 <= len(node.chain) <= 8 for node in nodes)
    assert tree.root.total == pytest.approx(sum(n.ended * (len(n.chain) % 2) for n in nodes))
    tried = random_chains(space, len, 30)
    assert len({t.point for t in tried}) == len(tried) == 30


def test_length_mode_finds_shorter_chains() -> None:
    space = ChainSpace(8)
    both = [search(space, lambda c: 1.0, 60, seed=1, mode=mode) for mode in ("length", "accuracy")]
    means = [sum(len(t.point) for t in trials) / 60 for trials in both]
    assert means[0] < means[1]


def test_distance() -> None:
    assert [distance((0, 1, 2), c) for c in ((0, 1, 2), (0, 2), (0, 1, 1, 2), (3, 1, 2), ())] == [
        0,
        1,
        1,
        1,
        3,
    ]


def test_answers_right_by_options_and_by_tokens() -> None:
    model, x = small(), tokens()
    runner = ChainRunner(model, x)
    with torch.no_grad():
        order = model(x[:1])[0, -1].argsort(descending=True).tolist()
        chances = model(x[:1])[0, -1].log_softmax(0)
    assert right(runner, Sample(x[0], order[0]), runner.original)
    assert not right(runner, Sample(x[0], order[1]), runner.original)
    assert right(runner, Sample(x[0], order[1], (order[4], order[1], order[2])), runner.original)
    assert log_chance(runner, Sample(x[0], order[2]), runner.original) == pytest.approx(
        float(chances[order[2]])
    )
    two = chances[order[:2]].log_softmax(0)
    found = log_chance(runner, Sample(x[0], order[1], (order[0], order[1])), runner.original)
    assert found == pytest.approx(float(two[1]), abs=1e-5)
    text = x[0]
    for _ in range(2):
        text = torch.cat([text, model(text[None])[0, -1].argmax()[None]])
    assert right(runner, Sample(x[0], text[5:]), runner.original)
    other = text[5:].clone()
    other[1] = (other[1] + 1) % 9
    assert not right(runner, Sample(x[0], other), runner.original)
    assert log_chance(runner, Sample(x[0], text[5:]), runner.original) < 0


def test_searching_a_sample() -> None:
    model, x = small(), tokens()
    runner = ChainRunner(model, x)
    answer = int(model(x[:1])[0, -1].argmax())
    for soft in (False, True):
        found = search_sample(runner, Sample(x[0], answer), 20, soft=soft)
        assert found.correct
        assert len(found.trials) == 20
        for chain in found.chains:
            assert right(runner, Sample(x[0], answer), chain)
        assert found.shortest == min(len(c) for c in found.chains) <= 3
    chain = (1, 1)
    every = [Sample(q, int(runner(q[None], chain)[0, -1].argmax())) for q in x]
    assert transfer(runner, chain, every) == 1.0
    assert best_static(runner, [chain, (0, 1, 2), chain], every)[1] == 1.0


def test_analysis_by_hand() -> None:
    found = [
        Searched(3, True, [Trial((0, 1, 2), 1.0), Trial((0, 2), 1.0), Trial((1,), 0.0)]),
        Searched(3, True, [Trial((0, 1, 2), 1.0), Trial((2,), 0.0)]),
        Searched(3, False, [Trial((0, 1, 2), 0.0), Trial((0, 0, 2, 2), 1.0)]),
        Searched(3, False, [Trial((0, 1, 2), 0.0)]),
    ]
    numbers = analyse(found).numbers
    wanted = {"correct": 0.5, "shorter": 0.5, "rescued": 0.5, "length": 3.0}
    wanted |= {
        "skipped 0": 0.0,
        "skipped 1": 2 / 3,
        "repeated 0": 1 / 3,
        "repeated 1": 0.0,
        "repeated 2": 1 / 3,
    }
    assert {name: numbers[name] for name in wanted} == pytest.approx(wanted)
    common = dict(analyse(found).details["common"])
    assert common[0, 2] == 2
    assert common[0, 0, 2] == 1
    assert (0, 1) not in common
    assert found[0].pareto == [(True, 2, (0, 2)), (False, 1, (1,))]
    assert found[2].pareto == [(True, 4, (0, 0, 2, 2)), (False, 3, (0, 1, 2))]
    assert found[3].shortest is None
    with pytest.raises(WorkingPapersError, match="nothing to analyse"):
        analyse([])


def test_the_three_tasks() -> None:
    x, y = questions(500, 0)
    for row, answer in zip(x.tolist(), y.tolist(), strict=True):
        task, digits, place = row[0] - 10, row[1:5], row[5] - 13
        assert answer == [(digits[0] + digits[1]) % 10, digits[place], sorted(digits)[place]][task]
    assert set(x[:, 0].tolist()) == {10, 11, 12}
    assert LastToken(8, 2)(x[:3]).shape == (3, 10)


def test_claims_are_those_of_the_record_and_parts_are_made_by_name() -> None:
    assert {c.says for c in claims("cola_layers").values()} == {
        c["says"] for c in record("cola_layers").claims
    }
    assert make("cola_layers", exploration=0.5)(ChainSpace(3), len, 5)[0].value == 3.0
    found = chain_analysis(small(), tokens(), torch.tensor([[1, 2], [3, 4]]), 4)
    found.figure()  # type: ignore[misc]
    assert 0 <= found.numbers["correct"] <= 1
