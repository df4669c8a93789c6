"""ReMoE: a mixture of experts whose router is a ReLU, kept sparse by an L1 penalty that adapts.

    R(x) = relu(x W_r),   y = sum over e of R(x)_e FFN_e(x)
    L_reg = 1 / (L T) sum over layers, tokens, e of f_le R(x_t)_e,   f_le = E / (k T) (tokens of e), no gradient
    lambda <- 1.2 lambda where the share S of zero gates is below 1 - k/E, else lambda / 1.2;  at first 1e-8

The loss is L_LM + lambda L_reg.  Training goes through a dense, a sparsifying and a stable stage.

Paper: "ReMoE: Fully Differentiable Mixture-of-Experts with ReLU Routing" (2024), Sections 3.1 to 3.4.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.engines.experts import Dense, Experts, as_experts, feed_forwards, with_layers
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, above, all_of, at_least, at_most, below
from workingpapers.papers.sparsity._expert_layers import (
    MoE,
    Router,
    TrainingWatch,
)
from workingpapers.papers.sparsity._moe_runs import Size, held_out, trained
from workingpapers.papers.sparsity._routing import routing
from workingpapers.papers.sparsity._small_decoders import decoder
from workingpapers.papers.sparsity._topk_moe import Balance, TopKMoE
from workingpapers.surgery import note_changes
from workingpapers.tasks import Budget, initialise

__all__ = ["ReMoE", "ReMoEController", "TopKMoE", "convert", "regulariser", "routing"]


def _example(batch: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch, 3, 6, generator=generator)


@paper(
    "remoe",
    arguments=(6, 4, 2, 8),
    example=_example,
    variants=[{"granularity": 2, "gated": False, "activation": nn.GELU, "evaluation": "union"}],
)
class ReMoE(MoE):
    """Experts weighted by ReLU gates, those of gate 0 not computed: (..., dim) -> (..., dim).

    Args:
        dim: width in and out.
        num_experts: how many experts of full width.
        k: how many of them a token is to use on average.
        width: hidden units of an expert of full width (default 4 dim).
        granularity: cuts each expert into so many; there are num_experts * granularity, of width / granularity.
        gated: SwiGLU experts; else two layers.
        activation: factory of the experts' activation.
        evaluation: "grouped", "union" or "dense", see `engines.experts`.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int = 8,
        k: int = 1,
        width: int | None = None,
        granularity: int = 1,
        gated: bool = True,
        activation: Callable[[], nn.Module] = nn.SiLU,
        evaluation: str = "grouped",
    ) -> None:
        super().__init__()
        width = width or 4 * dim
        if not 1 <= k <= num_experts:
            raise WorkingPapersError(f"a token uses 1 to {num_experts} of {num_experts} experts; got k={k}")
        if granularity < 1 or width % granularity:
            raise WorkingPapersError(f"experts of width {width} cannot be cut into {granularity} equal ones")
        self.k, self.granularity = k * granularity, granularity
        num = num_experts * granularity
        self.router = Router(dim, num)
        self.experts = Experts(num, dim, width // granularity, activation, gated, evaluation=evaluation)

    def gates(self, logits: Tensor) -> Tensor:
        """Return relu(logits)."""
        return logits.relu()

    def extra_repr(self) -> str:
        """Name the options."""
        return f"k={self.k}, granularity={self.granularity}"


def regulariser(gates: Tensor, k: int, balanced: bool = True) -> Tensor:
    """Return the penalty of one layer's gates (..., E): mean over tokens of sum over e of f_e R_e.

    f_e is E / k times the share of tokens that use the expert, without gradient; 1 for all where not `balanced`.
    """
    gates = gates.reshape(-1, gates.shape[-1])
    mean = gates.mean(0)
    if not balanced:
        return mean.sum()
    share = (gates > 0).to(gates.dtype).mean(0)
    return gates.shape[1] / k * (share * mean).sum()


class ReMoEController:
    """Penalises the gates of a model's ReMoE layers and adapts the penalty to reach 1 - k/E zeros.

    In every step of training: forward, add `loss()` to the loss, backward, step the optimizer, `step()`.  With
    gradient accumulation `loss()` is asked for after each pass and `step()` called once.

    Args:
        model: has ReMoE layers; the target is the mean over them.
        balanced: weigh each expert's gates by its load.
        alpha: factor by which the coefficient changes.
        start: the coefficient at first.
    """

    def __init__(
        self, model: nn.Module, balanced: bool = True, alpha: float = 1.2, start: float = 1e-8
    ) -> None:
        if alpha <= 1 or start <= 0:
            raise WorkingPapersError(
                f"the coefficient starts above 0 and its factor is above 1; got start={start}, alpha={alpha}"
            )
        self.watch, self.balanced, self.alpha, self.coefficient = (
            TrainingWatch(model, ReMoE),
            balanced,
            alpha,
            start,
        )
        layers = self.watch.layers.values()
        used = [float(m.k) / m.router.out_features for m in layers]  # type: ignore[arg-type]
        self.target = 1 - sum(used) / len(used)
        self._zeros: list[float] = []

    def loss(self) -> Tensor:
        """Return lambda L_reg of the passes since it was last asked, and note how many gates were 0."""
        parts = []
        for name, layer in self.watch.layers.items():
            for logits in self.watch.logits[name]:
                gates = layer.gates(logits)
                parts.append(regulariser(gates, layer.k, self.balanced))  # type: ignore[arg-type]
                self._zeros.append(float((gates.detach() == 0).double().mean()))
        self.watch.clear()
        return self.coefficient * torch.stack(parts).mean() if parts else torch.zeros(())

    def step(self) -> float:
        """Adapt the coefficient; return the share of zeros since the last step."""
        if not self._zeros:
            raise WorkingPapersError("the controller steps after a forward pass in training mode and loss()")
        sparsity = sum(self._zeros) / len(self._zeros)
        self.coefficient *= self.alpha if sparsity < self.target else 1 / self.alpha
        self._zeros.clear()
        return sparsity

    def close(self) -> None:
        """Take the hooks off the model."""
        self.watch.close()

    def state_dict(self) -> dict[str, float]:
        """Return what a later run needs to go on."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from `state_dict`."""
        self.coefficient = float(state["coefficient"])


def _decoder(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    model = decoder(7, 6, 8, 1, 12, nn.SiLU)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return model, torch.randint(7, (3, 6), generator=generator)


@paper("remoe", part="convert", kind="transform", example=_decoder, preserves=None)
def convert(
    model: nn.Module, num_experts: int = 4, k: int = 1, way: str = "copy", seed: int = 0
) -> nn.Module:
    """Return a copy of a decoder whose dense feed-forward layers became ReMoE layers, to be trained on.

    Args:
        model: a Hugging Face decoder (Llama, Mistral, Qwen2, GPT-2, OPT) or one of this package.
        num_experts: how many experts a layer becomes.
        k: how many a token is to use on average.
        way: "copy" gives each expert the whole layer, "split" the next share of its hidden units.
        seed: of the routers' weights.
    """

    def build(dense: Dense) -> nn.Module:
        layer = ReMoE(dense.up.shape[1], num_experts, k, 1, gated=dense.gate is not None)
        layer.experts = as_experts(dense, num_experts, way)
        return layer.to(dense.up)

    if not feed_forwards(model) and any(isinstance(m, ReMoE) for m in model.modules()):
        return note_changes(copy.deepcopy(model), [])  # type: ignore[no-any-return]
    return initialise(partial(with_layers, model, build), seed)


def size_of(budget: Budget) -> Size:
    """Return the sizes of the claims' runs."""
    return budget.pick(quick=Size(48, 96, 32, 16, 400), full=Size(128, 256, 64, 32, 700, 50_000))


def trained_remoe(size: Size, count: int, seed: int, balanced: bool = True) -> tuple[nn.Module, float, float]:
    """Train a decoder with one active expert of `count`.

    Returns it, its test loss, and the mean share of zero gates in the last quarter of the steps.
    """
    zeros: list[float] = []

    def attach(model: nn.Module) -> Callable[[], Tensor]:
        controller = ReMoEController(model, balanced)

        def penalty() -> Tensor:
            found = controller.loss()
            zeros.append(controller.step())
            return found

        return penalty

    model, loss = trained(size, seed, partial(ReMoE, size.dim, count, 1, size.width), attach)
    last = zeros[-(size.steps // 4) :]
    return model, loss, sum(last) / len(last)


@claim(
    "remoe",
    "ReLU routing is continuous and consistently beats top-k routing over model sizes, expert counts and "
    "granularities, with better scaling in the number of experts.",
    seeds=5,
    holds=all_of(
        at_most(0.005, of="over_topk"),
        below(0.0, of="over_dense"),
        at_least(0.0, of="gain_over_counts"),
        at_most(0.03, of="sparsity_error"),
    ),
)
def better_than_topk(budget: Budget, seed: int) -> Evidence:
    """Test loss of character decoders with one active expert of 8, over top-k's and over a dense layer's.

    `gain_over_counts` is top-k's loss less ReMoE's, mean over 4 and 8 (full: and 16) experts; `sparsity_error` how
    far the share of zero gates in the last quarter of the steps is from 1 - k/E, at most over them.
    """
    size, gains, errors, over = size_of(budget), [], [], 0.0
    dense = trained(size, seed)[1]
    for count in budget.pick(quick=(4, 8), full=(4, 8, 16)):
        _, own, zeros = trained_remoe(size, count, seed)
        layer = partial(TopKMoE, size.dim, count, 1, size.width)
        other = trained(size, seed, layer, lambda model: Balance(model).loss)[1]
        gains.append(other - own)
        errors.append(abs(zeros - (1 - 1 / count)))
        if count == 8:
            over, over_dense = own - other, own - dense
    return Evidence(
        over_topk=over,
        over_dense=over_dense,
        gain_over_counts=sum(gains) / len(gains),
        sparsity_error=max(errors),
    )


@claim(
    "remoe",
    "The regulariser controls sparsity while balancing load, and compute is then allotted flexibly over tokens and "
    "layers, with experts specialising by domain.",
    seeds=5,
    holds=all_of(
        at_most(0.0, of="dead_over_plain"), at_least(0.02, of="entropy_gain"), above(0.2, of="spread")
    ),
)
def balanced_and_flexible(budget: Budget, seed: int) -> Evidence:
    """One of 8 experts active: dead experts and entropy of loads with the balanced penalty and with plain L1.

    `spread` is the standard deviation over tokens of how many experts are active, mean over layers.
    """
    size, found = size_of(budget), []
    for balanced in (True, False):
        model, _, zeros = trained_remoe(size, 8, seed, balanced)
        found.append({**routing(model, held_out(size)).numbers, "zeros": zeros})
    own, plain = found
    return Evidence(
        dead_over_plain=own["dead"] - plain["dead"],
        entropy_gain=own["entropy"] - plain["entropy"],
        spread=own["spread"],
        sparsity=own["zeros"],
        dead=own["dead"],
    )
