"""Dynamic token pruning: limits that are exact, and a pass over shortened sequences written out."""

import pytest
import torch
from torch import nn

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.vision._segmentation import HEADS, MaskHead, Segmentation, mean_iou, scenes
from workingpapers.papers.vision.dtop import DToP, leaving, measured, rank_correlation
from workingpapers.tasks import vit

IMAGES = (3, 1, 16, 16)


def segmenter(p0: float = 0.5, k: int = 2, head: str = "fcn") -> DToP:
    plain = vit(1, 16, 4, 4, dim=8, depth=4, heads=2)
    model: DToP = make("dtop", exits=(1, 3), classes=4, p0=p0, k=k, head=head)(plain)
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.7)
    return model.eval().requires_grad_(False)


def test_every_claim_of_the_record_is_measured() -> None:
    assert {c.says for c in claims("dtop").values()} == {c["says"] for c in record("dtop").claims}


@pytest.mark.parametrize("head", ["fcn", "atm"])
def test_nothing_leaves_at_certainty(head: str) -> None:
    model, x = segmenter(1.0, head=head), torch.randn(IMAGES)
    found = model.pruned(x)
    one_by_one = torch.cat([model.every_head(image[None])[-1] for image in x])
    assert torch.equal(found.logits, one_by_one)
    torch.testing.assert_close(found.logits, model.every_head(x)[-1], rtol=0, atol=1e-5)
    assert bool((found.exits == 2).all())
    assert bool((found.tokens == 16).all())
    assert found.flops.tolist() == [4 * (12 * 16 * 64 + 2 * 16**2 * 8)] * 3


@pytest.mark.parametrize("head", ["fcn", "atm"])
def test_everything_leaves_at_once(head: str) -> None:
    model, x = segmenter(0.0, 0, head), torch.randn(IMAGES)
    found = model.pruned(x)
    torch.testing.assert_close(found.logits, model.every_head(x)[0], rtol=0, atol=1e-5)
    assert bool((found.exits == 0).all())
    assert found.tokens.tolist() == [[16, 0, 0]] * 3


def test_a_pass_written_out() -> None:
    """Blocks see what is left only; a final token keeps the scores it was final with."""
    model, x = segmenter(0.6, 1), torch.randn(1, 1, 16, 16)
    found = model.pruned(x)
    net, heads = model.backbone, model.heads
    tokens = net.embed(x).flatten(2).transpose(1, 2) + net.positions
    alive, scores, exits = list(range(16)), {}, {}
    for stage, blocks in enumerate(([0], [1, 2], [3])):
        for i in blocks:
            tokens = net.blocks[i](tokens)
        logits = heads[stage](net.norm(tokens) if stage == 2 else tokens)[0]
        chance = logits.softmax(-1)
        best: dict[int, tuple[float, int]] = {}
        for row, name in enumerate(alive):
            if float(chance[row].max()) > 0.6 or stage == 2:
                scores.setdefault(name, logits[row])
                exits.setdefault(name, stage)
            if name in scores:
                c = int(chance[row].argmax())
                best[c] = max(best.get(c, (0.0, -1)), (float(chance[row].max()), name))
        stay = [n for n in alive if n not in scores or n in [name for _, name in best.values()]]
        assert len([n for n in stay if n in scores]) <= 4 or stage == 2
        tokens = tokens[:, [alive.index(n) for n in stay]]
        alive = stay
    wanted = torch.stack([scores[n] for n in range(16)]).T.view(1, 4, 4, 4)
    torch.testing.assert_close(found.logits, wanted, rtol=0, atol=1e-5)
    assert found.exits.flatten().tolist() == [exits[n] for n in range(16)]


@pytest.mark.parametrize("k", [0, 1, 5])
def test_at_most_k_final_tokens_of_a_class_stay(k: int) -> None:
    logits, before = 4 * torch.randn(200, 3), torch.rand(200) < 0.2
    final, out = leaving(logits, before, 0.8, k)
    confidence, classes = logits.softmax(-1).max(-1)
    assert torch.equal(final, before | (confidence > 0.8))
    assert not bool((out & ~final).any())
    for c in range(3):
        own = final & (classes == c)
        stays = own & ~out
        assert int(stays.sum()) == min(k, int(own.sum()))
        if 0 < k < int(own.sum()):
            assert float(confidence[stays].min()) >= float(confidence[own & out].max())


def test_images_leave_nothing_to_each_other() -> None:
    model, x = segmenter(0.6), torch.randn(IMAGES)
    both, single = model.pruned(x), model.pruned(x[1:2])
    torch.testing.assert_close(both.logits[1:2], single.logits, rtol=0, atol=1e-5)
    assert both.flops[1] == single.flops[0]
    n, blocks = both.tokens.double(), torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(both.flops, ((12 * n * 64 + 16 * n * n) * blocks).sum(1))


def test_random_leaving_takes_as_many() -> None:
    model, x = segmenter(0.6, 1), torch.randn(IMAGES)
    own = model.pruned(x)
    model.random = torch.Generator().manual_seed(0)
    other = model.pruned(x)
    assert torch.equal(own.tokens[:, :2], other.tokens[:, :2])
    assert not torch.equal(own.exits, other.exits)


def test_training_gives_all_heads_and_reaches_all() -> None:
    model = segmenter().requires_grad_(True).train()
    x, y = torch.randn(2, 1, 16, 16), torch.randint(4, (2, 16, 16))
    logits = model(x)
    assert logits.shape == (3, 2, 4, 16, 16)
    problem = Segmentation(scenes(4, 16, "train", 0), scenes(4, 16, "test", 0))
    problem.loss(model, (x, y)).backward()
    unread = "backbone.head"  # that of classification
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith(unread))
    for one, other in zip(model.every_head(x), logits, strict=True):
        torch.testing.assert_close(nn.functional.interpolate(one, size=(16, 16), mode="bilinear"), other)
    pruned = make("dtop", exits=(1, 3), classes=4, p0=0.6, k=1, prune_in_training=True)(model)
    found = pruned(x)
    torch.testing.assert_close(found[0], pruned.eval()(x), rtol=0, atol=1e-5)


def test_masks_times_presence() -> None:
    head, tokens = MaskHead(6, 3), torch.randn(2, 5, 6)
    inner = head.norm(tokens)
    masks = torch.einsum("cd,bnd->bcn", head.query(head.queries), head.key(inner)) / 6**0.5
    found = head.queries + torch.einsum("bcn,bnd->bcd", masks.softmax(-1), head.value(inner))
    wanted = masks.sigmoid() * head.there(found).sigmoid()
    torch.testing.assert_close(head(tokens).exp().detach(), wanted.transpose(1, 2).detach())
    assert set(HEADS) == {"fcn", "atm"}


def test_scenes_and_scores() -> None:
    found = scenes(40, 32, "test", 3)
    assert found.x.shape == (40, 1, 32, 32)
    assert set(found.digits.tolist()) <= set(range(1, 7))
    ink = found.x[:, 0][found.y != 10].mean() - found.x[:, 0][found.y == 10].mean()
    assert float(ink) > 0.2
    covered = (found.y != 10).double().mean((1, 2))
    assert rank_correlation(covered, found.digits.double()) > 0.4
    guesses = torch.tensor([0, 0, 1, 1, 2])
    labels = torch.tensor([0, 1, 1, 1, 0])
    assert mean_iou(guesses, labels, 4) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 10, 11])) == pytest.approx(1.0)
    assert rank_correlation(torch.ones(3), torch.arange(3.0)) == 0.0
    model = segmenter(1.0)
    x, y = torch.randn(60, 1, 16, 16), torch.randint(4, (60, 16, 16))
    score, flops = measured(model, x, y)
    assert score == pytest.approx(mean_iou(model(x).argmax(1), y, 4))
    assert flops.shape == (60,)


def test_heads_stay_where_only_options_change() -> None:
    model = segmenter(0.5)
    other = make("dtop", exits=(1, 3), classes=4, p0=0.9, k=0)(model)
    assert (other.p0, other.k) == (0.9, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    fresh: DToP = make("dtop", exits=(2,), classes=4)(model)
    assert len(fresh.heads) == 2
    assert torch.equal(fresh.backbone.positions, model.backbone.positions)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"exits": (4,)}, "blocks 1 to 3"),
        ({"exits": (3, 1)}, "in order"),
        ({"exits": ()}, "blocks 1 to 3"),
        ({"exits": (1,), "p0": 1.5}, "probability"),
        ({"exits": (1,), "head": "fnc"}, "'fcn'"),
    ],
)
def test_bad_options(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(WorkingPapersError, match=sentence):
        make("dtop", classes=4, **options)(vit(1, 16, 4, 4, dim=8, depth=4, heads=2))


def test_models_that_are_no_vision_transformers() -> None:
    model: nn.Module = nn.Linear(2, 2)
    with pytest.raises(WorkingPapersError, match="plain vision transformer"):
        make("dtop", classes=4)(model)


def test_square_is_not_needed() -> None:
    """The grid of patches follows the image where the positions fit."""
    model = segmenter(1.0)
    wide = torch.randn(1, 1, 8, 32)
    assert model(wide).shape == (1, 4, 8, 32)
