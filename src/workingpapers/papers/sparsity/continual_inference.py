"""Continual inference: networks trained on clips run frame by frame, with the same outputs and weights.

    y_t = sum_i w_i x_{t-i}                                  convolutions keep sums of outputs under way
    d <- d - exp(q k_old) + exp(q k_new), likewise A V       attention over a window is updated, not repeated
    W' = (W + B A) * rows * columns                          adapters are pruned with the channels that they change

Nothing is computed twice that was computed for an earlier frame.  The machinery is `workingpapers.engines.streams`:
one step a frame, with the state in and out.  An encoder of one layer, or whose layers each attend to the last n
tokens up to their own (`attention="band"`), costs one token a step.  One that sees whole windows in two layers or
more must run its later layers on all n tokens again, since each of them has changed.

Part two, structured pruning adapters, adapts one pretrained network to many tasks: `splora` and `splopa`.

Paper: "Efficient Online Processing with Deep Neural Networks" (2023), a thesis on Continual 3D CNNs, Continual
ST-GCNs, Continual Transformers and Structured Pruning Adapters.
"""

import statistics
import timeit
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.engines.streams import Stream, convert, multiply_adds
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.sparsity._pruning_adapters import (
    adapted,
    importance,
    prunable_units,
    prune,
    with_adapters,
)
from workingpapers.surgery import changes, note_changes
from workingpapers.tasks import Budget, fit, initialise


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv1d(5, 4, 3, padding=2, dilation=2))
    for p in net.parameters():
        nn.init.uniform_(p, -0.5, 0.5, generator=generator)
    clip = torch.randn(2, 3, 9, generator=generator)
    return net, clip, clip.clone()


@paper("continual_inference", example=_example, preserves=1e-6)
def continual(
    model: nn.Module,
    example: Tensor,
    time: int = 2,
    padding: str = "keep",
    window: int | None = None,
    attention: str = "window",
    outputs: str = "newest",
) -> Stream:
    """Return a copy of `model` with `step(frame, state) -> (output, state)`; called on clips it is as before.

    Where the conversion finds no way to give the outputs of the model on clips, it says so.

    Args:
        model: any traceable network over time; its weights keep their names, under `model.`.
        example: a clip; its length is that of windows.
        time: its axis of time: 2 for (B, C, T, ...), 1 for tokens (B, T, D).
        padding: over time: "keep" (the stream is one clip that has it at both ends) or "drop".
        window: tokens that an encoder sees, by default the example's.
        attention: "window" or "band".
        outputs: of an encoder: the "newest" token's, or "all" of the window.
    """
    before = [] if isinstance(model, Stream) else changes(model)
    stream = convert(
        model, example, time=time, padding=padding, window=window, attention=attention, outputs=outputs
    )
    said = f"The network takes steps of one frame; the first output comes with frame {stream.warmup}."
    note_changes(stream, [*before, said])
    return stream


def _layers(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))
    for p in net.parameters():
        nn.init.uniform_(p, -0.5, 0.5, generator=generator)
    return net, torch.randn(4, 1, 5, 5, generator=generator)


@paper("continual_inference", part="splora", kind="transform", example=_layers, preserves=1e-5)
def splora(model: nn.Module, rank: int = 8, seed: int = 0) -> nn.Module:
    """Return a copy of `model` with frozen weights in its linear layers and convolutions, and low-rank changes.

    Channels are pruned by `_pruning_adapters.prune`, and `fuse` makes a small plain network in the end.
    """
    return with_adapters(model, "splora", rank, seed=seed)


@paper("continual_inference", part="splopa", kind="transform", example=_layers, preserves=1e-5)
def splopa(model: nn.Module, prototypes: int = 8, block: int = 8, seed: int = 0) -> nn.Module:
    """Return a copy of `model` with frozen weights in its linear layers and convolutions, and sums of blocks.

    There are `prototypes` blocks of `block` rows and columns in each layer, each with a factor for each place.
    """
    return with_adapters(model, "splopa", prototypes, block, seed)


def moving_digits(frames: int, size: int = 16, seed: int = 0) -> Tensor:
    """Return a stream (1, 1, frames, size, size) of a digit that bounces, another one each 40 frames."""
    generator = torch.Generator().manual_seed(seed)
    digits = images("digits", seed=seed, normalise=False).x_train[:, 0]
    span = size - digits.shape[-1]
    start, speed = torch.rand(2, 1, generator=generator), 0.2 + torch.rand(2, 1, generator=generator)
    path = (start * span + speed * torch.arange(frames)) % (2 * span)
    y, x = (span - (path - span).abs()).round().long()
    chosen = torch.randint(len(digits), (frames // 40 + 1,), generator=generator)
    stream = torch.zeros(1, 1, frames, size, size)
    for t in range(frames):
        digit = digits[chosen[t // 40]]
        stream[0, 0, t, y[t] : y[t] + digit.shape[0], x[t] : x[t] + digit.shape[1]] = digit
    return stream


class VideoNet(nn.Module):
    """Six 3D convolutions without padding over time, the mean over what is left, and a linear layer."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        sizes = [1, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for i in range(6):
            stride = (1, 2, 2) if i in (2, 4) else 1
            layers += [nn.Conv3d(sizes[i], sizes[i + 1], 3, stride, (0, 1, 1)), nn.BatchNorm3d(sizes[i + 1])]
            layers.append(nn.ReLU())
        self.features, self.head = nn.Sequential(*layers), nn.Linear(sizes[-1], classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Return the logits (B, classes) of clips (B, 1, T, H, W)."""
        logits: Tensor = self.head(self.features(clip).mean((2, 3, 4)))
        return logits


def encoder(dim: int, layers: int) -> nn.Module:
    """Return torch's transformer encoder for tokens (B, T, dim)."""
    layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def _seconds(run: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median times of two calls, taken in turns."""
    times = [[timeit.timeit(call, number=1) for call in (run, other)] for _ in range(rounds + 1)][1:]
    first, second = (statistics.median(t) for t in zip(*times, strict=True))
    return first, second


@torch.no_grad()
def compare_online(
    stream: Stream,
    clips: Callable[[Tensor], Tensor],
    frames: Tensor,
    window: int,
    rounds: int,
    seen: int | None = None,
) -> dict[str, float]:
    """Run a stream over `frames`; return its largest distance from `clips`, and how many times cheaper a step is.

    `clips` gives the output of a clip, of `window` frames for the cost; for the distance it gets the frames that an
    output depends on (`seen`, by default as many).
    """
    time, state, gap, length = stream.plan.time, None, 0.0, seen or window
    for t, frame in enumerate(frames.unbind(time)):
        y, state = stream.step(frame, state)
        if t >= length - 1 and y is not None and t % 7 == 0:
            gap = max(gap, float((y - clips(frames.narrow(time, t - length + 1, length))).abs().max()))
    clip, frame = frames.narrow(time, 0, window), frames.select(time, 0)
    runs = partial(clips, clip), partial(stream.step, frame, state)
    slow, fast = _seconds(*runs, rounds)
    return {
        "error": gap,
        "operations": multiply_adds(runs[0]) / multiply_adds(runs[1]),
        "time": slow / fast,
    }


@claim(
    "continual_inference",
    "Reorganising computation lets pre-trained clip models run frame by frame at a fraction of the cost.",
    figure="about an order of magnitude better online efficiency",
    seeds=5,
    holds=all_of(
        at_most(1e-4, of="error", by="every"),
        at_least(8.0, of="operations", by="every"),
        at_least(3.0, of="time"),
    ),
)
def frame_by_frame(budget: Budget, seed: int) -> Evidence:
    """A 3D CNN on clips of 32 frames, and a 2-layer encoder whose tokens attend to the last 64, over 200 frames.

    `operations` and `time` are those for a clip (of 64 tokens for the encoder) over those for a step, the smaller
    of the two networks'.  `whole_window` is the ratio of operations for the same encoder where both layers see one
    window of 64 tokens.
    """
    width, dim, rounds = budget.pick(quick=(8, 128, 25), full=(32, 512, 100))
    frames = moving_digits(200, seed=seed)
    video = initialise(partial(VideoNet, width), seed).eval()
    found = [compare_online(convert(video, frames[:, :, :32]), video, frames, 32, rounds)]
    project = initialise(lambda: nn.Linear(256, dim), seed)
    with torch.no_grad():
        tokens = project(frames[:, 0].flatten(2))  # (1, 200, dim)
    network = initialise(partial(encoder, dim, 2), seed).eval()
    band = convert(network, tokens[:, :64], time=1, attention="band")
    found.append(compare_online(band, lambda clip: band(clip)[:, -1], tokens, 64, rounds, seen=127))
    whole = convert(network, tokens[:, :64], time=1)
    windows = compare_online(whole, lambda clip: network(clip)[:, -1], tokens, 64, 3)
    return Evidence(
        error=max(windows["error"], *(f["error"] for f in found)),
        operations=min(f["operations"] for f in found),
        time=min(f["time"] for f in found),
        whole_window=windows["operations"],
    )


def small_cnn(width: int) -> nn.Sequential:
    """Return three convolutions with batch norms for images (B, 1, H, W), the mean over places, and 10 logits."""
    layers: list[nn.Module] = []
    for i, n in enumerate((1, width, width)):
        layers += [nn.Conv2d(n, width, 3, 2 if i else 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def adapt(model: nn.Module, how: str, split: Split, epochs: int, keep: float, seed: int) -> tuple[float, int]:
    """Adapt a pretrained network to `split` while its channels are pruned; return accuracy and learnt weights.

    The share of channels falls along a cubic curve in the first half of the epochs; `how` is "splora" (rank 8) or
    "fine-tuning".
    """
    units = prunable_units(model, split.x_train[:2])
    own = with_adapters(model, how, 8, seed=seed)
    stages = max(epochs // 2, 1)
    for stage in range(1, stages + 1):
        fit(own, split, epochs=1, lr=2e-3, batch=32, seed=seed + 1000 * stage)
        share = keep + (1 - keep) * (1 - stage / stages) ** 3
        prune(own, units, importance(own, split.x_train[:500], split.y_train[:500]), share)
    rest = max(epochs - stages, 1)
    last = fit(own, split, epochs=rest, lr=2e-3, batch=32, schedule="cosine", seed=seed)
    return last.metrics["accuracy"], sum(a.learnt() for a in adapted(own).values())


@claim(
    "continual_inference",
    "Structured pruning adapters keep superior accuracy under aggressive pruning with far fewer learned weights "
    "than fine-tuning.",
    seeds=5,
    calibrated="the rule is as it was; the quick sizes were chosen with looks at seed 1000.",
    holds=all_of(at_most(0.25, of="learnt_ratio", by="every"), at_least(-0.02, of="gain")),
)
def adapters(budget: Budget, seed: int) -> Evidence:
    """A CNN pretrained on MNIST goes to Fashion-MNIST with 30 % of its channels: SPLoRA less fine-tuning."""
    first, train, test, size, width, epochs = budget.pick(
        quick=(2000, 1500, 1000, 14, 160, 5), full=(20000, 5000, 5000, 28, 160, 30)
    )
    network = initialise(partial(small_cnn, width), seed)
    fit(network, images("mnist", train=first, test=200, size=size, seed=seed), epochs=2, lr=2e-3, seed=seed)
    split = images("fashion_mnist", train=train, test=test, size=size, seed=seed)
    (own, few), (tuned, many) = (
        adapt(network, how, split, epochs, 0.3, seed) for how in ("splora", "fine-tuning")
    )
    return Evidence(gain=own - tuned, learnt_ratio=few / many, accuracy=own, fine_tuned=tuned)
