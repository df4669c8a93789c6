"""KArAt's vision transformers: sizes of the published ones, tokens, sharing; loss slices and attention maps."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.attention.karat import (
    KArAt,
    KArAtViT,
    ScoreOperator,
    SoftmaxAttention,
    attention_maps,
    layer_weights,
    loss_slice,
    spectrum,
)


def count(**options) -> int:
    return sum(p.numel() for p in KArAtViT(**options).parameters())


def small(**options) -> KArAtViT:
    return KArAtViT(**{**KArAtViT.presets["tiny"], **options})


def test_plain_transformers_have_the_parameters_of_deit():
    assert count(attention="softmax") == 5_717_416
    assert count(attention="softmax", num_classes=10) == 5_526_346  # 5.53 million on the project page
    assert count(attention="softmax", dim=384, heads=6) == 22_050_664


def test_functions_add_what_they_should():
    tiny, each = {**KArAtViT.presets["vit_tiny"], "depth": 2}, 3 * 197 * 12 * (2 * 3 + 1)
    plain = count(**tiny, attention="softmax")
    assert count(**tiny) == plain + 2 * each
    assert count(**tiny, attention="universal") == plain + each


def test_presets_are_the_transformers_of_the_paper():
    small_images = KArAtViT(**KArAtViT.presets["vit_tiny_32"])
    assert small_images.positions.shape == (65, 192)
    assert [block.mixer.tokens for block in small_images.blocks] == [65] * 12
    assert all(block.mixer.heads == 3 for block in small_images.blocks)
    base = KArAtViT(**{**KArAtViT.presets["vit_base"], "depth": 1})
    assert base.blocks[0].mixer.phi.coefficients.shape == (12, 197, 2 * 1, 12)
    assert base.blocks[0].expand.weight.shape == (4 * 768, 768)


def test_the_class_token_is_what_is_read():
    model, x = small(), torch.randn(2, 3, 16, 16)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 16, 48)
    tokens = patches @ model.embed.weight.flatten(1).T + model.embed.bias
    tokens = torch.cat([model.class_token.expand(2, 1, -1), tokens], 1) + model.positions
    for block in model.blocks:
        tokens = block(tokens)
    assert torch.allclose(model(x), model.head(model.norm(tokens))[:, 0], atol=1e-5)


def test_universal_blocks_share_and_others_do_not():
    one, two = (b.mixer.phi for b in small(attention="universal").blocks)
    assert one is two
    one, two = (b.mixer.phi for b in small().blocks)
    assert one is not two
    assert not torch.equal(one.coefficients, two.coefficients)
    assert {type(b.mixer) for b in small(attention="softmax").blocks} == {SoftmaxAttention}


def test_options_reach_the_functions():
    model = small(attention="universal", basis="rational", rank=None, size=4)
    phi = model.blocks[1].mixer.phi
    assert phi.coefficients.shape == (3, 17, 4, 17)
    assert phi.basis.b.shape == (17, 3)
    assert phi.up is None


def test_rational_functions_of_scores_are_those_of_the_paper():
    phi = ScoreOperator(1, 2, None, 3, "rational", "identity").double()
    a = torch.tensor([0.7, -1.4], dtype=torch.float64)
    c, b, base = (t.detach() for t in (phi.coefficients[0], phi.basis.b, phi.base_weight[0]))
    for k in range(2):
        wanted = sum(
            (c[p, 0, k] + c[p, 1, k] * a[p] + c[p, 2, k] * a[p] ** 2)
            / (1 + abs(b[p, 0] * a[p] + b[p, 1] * a[p] ** 2))
            + base[p, k] * a[p]
            for p in range(2)
        )
        assert float(phi(a[None, None, None])[0, 0, 0, k].detach()) == pytest.approx(float(wanted))


def test_a_layers_weights_are_those_it_mixes_with():
    model, x = small(), torch.randn(2, 3, 16, 16)
    inputs = []
    hook = model.blocks[0].mixer.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    model(x)
    hook.remove()
    assert torch.allclose(layer_weights(model, x, 0), model.blocks[0].mixer.attention(inputs[0]), atol=1e-6)
    assert torch.equal(layer_weights(model, x, 1), layer_weights(model, x))
    with pytest.raises(WorkingPapersError, match="has 2 layers with attention; got layer=2"):
        layer_weights(model, x, 2)


def test_the_centre_is_the_models_loss_and_the_curvature_the_hessians():
    model = small(dim=12, depth=1).double()
    x, y = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4)
    found = loss_slice(model, x, y, points=3, radius=1e-3, seed=5)
    assert found.numbers["centre"] == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-12)
    parameters = dict(model.named_parameters())
    generator, curvature = torch.Generator().manual_seed(5), 0.0
    spans = {"coefficients": (1, 2), "up": (2,)}
    for _ in range(2):
        direction = []
        for name, p in parameters.items():
            if p.ndim == 1:
                direction.append(torch.zeros_like(p))
                continue
            drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            dims = spans.get(name.split(".")[-1], tuple(range(1, p.ndim)))
            norms = [t.detach().square().sum(dims, keepdim=True).sqrt() for t in (p, drawn)]
            direction.append(drawn * norms[0] / norms[1])
        loss = F.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        twice = torch.autograd.grad(slope, list(parameters.values()), allow_unused=True)
        curvature += (
            sum(float((t * d).sum()) for t, d in zip(twice, direction, strict=True) if t is not None) / 2
        )
    assert found.numbers["curvature"] == pytest.approx(curvature, rel=1e-3, abs=1e-6)


def test_the_loss_of_a_linear_model_is_convex_and_slices_follow_their_seed():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randn(20, 3, 2, 2), torch.arange(20) % 3
    one, same, other = (loss_slice(model, x, y, points=5, seed=s) for s in (0, 0, 1))
    assert one.numbers["concave"] == 0
    assert one.numbers["least"] <= one.numbers["centre"] < one.numbers["largest"]
    assert one.numbers == same.numbers
    assert one.numbers != other.numbers
    assert one.details["slice"].shape == (5, 5)
    for points, radius, message in ((4, 1.0, "at least 3; got 4"), (5, 0.0, "above 0; got 0")):
        with pytest.raises(WorkingPapersError, match=message):
            loss_slice(model, x, y, points=points, radius=radius)


class Fixed(nn.Module):
    """Attention that is given."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = weights

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights.expand(len(x), *self.weights.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_maps_of_given_attention():
    rows = torch.eye(5)
    rows[0] = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    even = torch.full((5, 5), -0.2)
    found = attention_maps(Fixed(torch.stack([rows, even])), torch.rand(2, 1, 4, 4))
    assert found.details["maps"].shape == (2, 2, 2, 2)
    assert found.details["maps"][1, 0].tolist() == [[1, 2], [3, 4]]
    assert found.numbers["head_1_entropy"] == pytest.approx(1.0)
    share = [0.1, 0.2, 0.3, 0.4]
    assert found.numbers["head_0_entropy"] == pytest.approx(
        -sum(p * math.log(p) for p in share) / math.log(5) / 5
    )
    assert found.numbers["negative"] == pytest.approx(5 / (5 + 14))
    assert found.numbers["agreement"] == pytest.approx(-10 / math.sqrt(4 * 30))


def test_maps_without_class_token_are_means_over_the_rows():
    weights = torch.rand(1, 4, 4)
    found = attention_maps(Fixed(weights), torch.rand(1, 3, 4, 4))
    assert torch.allclose(found.details["maps"][0, 0].float(), weights[0].mean(0).view(2, 2))
    assert "agreement" not in found.numbers
    with pytest.raises(WorkingPapersError, match="square of patches, with or without a class token; got 6"):
        attention_maps(Fixed(torch.rand(1, 6, 6)), torch.rand(1, 3, 4, 4))


def test_softmax_has_no_negative_weight_and_nothing_learned_has_no_weight_at_all():
    x = torch.randn(3, 3, 16, 16)
    assert attention_maps(small(attention="softmax"), x).numbers["negative"] == 0
    model = small()
    for module in model.modules():
        if isinstance(module, KArAt):
            module.phi.coefficients.data.zero_()
    assert set(attention_maps(model, x).numbers.values()) == {0.0}


def test_the_figures_show_what_was_found():
    x = torch.randn(6, 3, 16, 16)
    found = attention_maps(small(), x)
    panels = found.figure().axes
    assert len(panels) == 4 * (1 + 3)  # four images, each beside its three heads
    assert torch.equal(torch.tensor(panels[6].images[0].get_array()), found.details["maps"][1, 1])
    low, high = panels[6].images[0].get_clim()
    assert low == -high
    drawn = loss_slice(small(), x, torch.arange(6) % 4, points=3).figure()
    assert len(drawn.axes) == 2
    values = spectrum(torch.eye(3)[None, None]).figure().axes[0].lines[0].get_ydata()
    assert list(values) == [1, 1, 1]


def test_models_that_cannot_be_are_refused():
    with pytest.raises(UnknownName, match="nearest name is 'universal'"):
        small(attention="univesal")
    with pytest.raises(WorkingPapersError, match="patches of 5x5 do not tile a 16x16 image"):
        small(patch_size=5)
    with pytest.raises(WorkingPapersError, match="softmax attention has no options; got rank"):
        small(attention="softmax", rank=3)
    with pytest.raises(WorkingPapersError, match=r"takes images \(B, C, 16, 16\); got \(2, 3, 8, 8\)"):
        small()(torch.randn(2, 3, 8, 8))
