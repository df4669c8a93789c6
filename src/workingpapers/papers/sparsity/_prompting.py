"""Visual prompts: an image in a learnt frame for a frozen classifier whose classes are mapped to others."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown

SQUASHES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "clamp": lambda p: p.clamp(0, 1),
}
Mapper = Callable[[Tensor], Tensor]


class VisualPrompt(nn.Module):
    """Puts images into a learnt frame: (B, channels, h, w) in [0, 1] -> (B, channels, canvas, canvas), normalised.

    Args:
        size: what images are resized to; they stand in the middle of the canvas.
        canvas: side of what the classifier takes.
        channels: of the images.
        squash: keeps the frame in [0, 1]: "sigmoid" of the parameters (which start at 0: grey), or "clamp" (black).
        additive: instead add parameters, which start at 0, to the whole image resized to the canvas.
        mean: subtracted at the end, one number or one for each channel.
        std: divided by at the end.
    """

    def __init__(
        self,
        size: int,
        canvas: int,
        channels: int = 1,
        squash: str = "sigmoid",
        additive: bool = False,
        mean: float | Tensor = 0.0,
        std: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        if not 1 <= size <= canvas:
            raise WorkingPapersError(f"an image of side {size} does not stand in a canvas of side {canvas}")
        if squash not in SQUASHES:
            raise unknown("way to keep the frame in [0, 1]", squash, SQUASHES)
        self.squash, self.additive = squash, additive
        self.size, self.canvas = (canvas if additive else size), canvas
        self.frame = nn.Parameter(torch.zeros(channels, canvas, canvas))
        near, far = (canvas - size + 1) // 2, (canvas - size) // 2
        self.sides = (0, 0, 0, 0) if additive else (near, far, near, far)
        inner = torch.zeros(self.size, self.size)
        self.register_buffer(
            "mask", torch.ones(canvas, canvas) if additive else F.pad(inner, self.sides, value=1.0)
        )
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    mask: Tensor
    mean: Tensor
    std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the prompted images."""
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        frame = self.frame if self.additive else SQUASHES[self.squash](self.frame)
        return (F.pad(x, self.sides) + frame * self.mask - self.mean) / self.std


def frequencies(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return how often each target class (rows) is predicted as each source class: (classes, source classes)."""
    counts = torch.zeros(classes, logits.shape[1], dtype=torch.long)
    pairs = torch.stack([labels.cpu(), logits.argmax(1).cpu()])
    return counts.index_put_(tuple(pairs), torch.ones(len(labels), dtype=torch.long), accumulate=True)


def greedy(counts: Tensor) -> Tensor:
    """Return for each target class a source class of its own (classes,): the most frequent pair first."""
    left, found = counts.clone(), torch.full((len(counts),), -1)
    for _ in range(len(counts)):
        target, source = divmod(int(left.argmax()), counts.shape[1])
        found[target] = source
        left[target], left[:, source] = -1, -1
    return found


def assigned(counts: Tensor) -> Tensor:
    """Return the one-to-one map (classes,) with the largest total of frequencies."""
    from scipy.optimize import linear_sum_assignment

    return torch.as_tensor(linear_sum_assignment(counts.numpy(), maximize=True)[1])


MAPPINGS: dict[str, Mapper] = {"greedy": greedy, "assignment": assigned}


class Prompted(nn.Module):
    """A frozen classifier behind a prompt, its logits those of the source classes mapped to."""

    def __init__(self, model: nn.Module, prompt: VisualPrompt, mapping: Tensor) -> None:
        super().__init__()
        self.model, self.prompt = copy.deepcopy(model).eval().requires_grad_(False), prompt
        self.register_buffer("mapping", mapping)

    mapping: Tensor

    def source(self, x: Tensor) -> Tensor:
        """Return the logits of all source classes."""
        logits: Tensor = self.model(self.prompt(x))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, target classes)."""
        return self.source(x)[:, self.mapping]


def decayed(done: float) -> float:
    """Return the factor of the learning rate: a tenth after half the training, a hundredth after 72 %."""
    return 1.0 if done < 0.5 else 0.1 if done < 0.72 else 0.01


def fit_prompt(
    model: nn.Module,
    prompt: VisualPrompt,
    x: Tensor,
    y: Tensor,
    classes: int,
    epochs: int = 100,
    lr: float = 0.01,
    mapping: str = "greedy",
    seed: int = 0,
) -> Prompted:
    """Train a prompt by iterative label mapping: the map is made anew from predictions before every epoch.

    Args:
        model: the frozen classifier; it stays as it is.
        prompt: is trained in place.
        x: images (N, channels, h, w) in [0, 1].
        y: labels (N,).
        classes: how many targets there are, at most as many as source classes.
        epochs: of Adam in batches of 128, its rate decayed at 50 % and 72 %.
        lr: learning rate.
        mapping: "greedy" or "assignment".
        seed: of the order.
    """
    if mapping not in MAPPINGS:
        raise unknown("label mapping", mapping, MAPPINGS)
    found = Prompted(model, prompt, torch.arange(classes)).to(x.device)
    adam = torch.optim.Adam([prompt.frame], lr)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        remap(found, x, y, classes, mapping)
        adam.param_groups[0]["lr"] = lr * decayed(epoch / epochs)
        for chosen in torch.randperm(len(x), generator=generator).split(128):
            adam.zero_grad()
            F.cross_entropy(found(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
            adam.step()
    return found


@torch.no_grad()
def remap(found: Prompted, x: Tensor, y: Tensor, classes: int, mapping: str) -> None:
    """Map the target classes by the predictions on examples, in place."""
    logits = torch.cat([found.source(part) for part in x.split(512)])
    if classes > logits.shape[1]:
        raise WorkingPapersError(
            f"{classes} classes cannot each have one of the model's {logits.shape[1]} classes of its own"
        )
    found.mapping.copy_(MAPPINGS[mapping](frequencies(logits, y, classes)))
