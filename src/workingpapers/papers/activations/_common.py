"""What several activation papers measure: variance on a photograph, accuracy lost under weight noise."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workingpapers.data.split import Split
from workingpapers.errors import WorkingPapersError


def astronaut() -> Tensor:
    """Return scikit-image's photograph of an astronaut as (1, 3, 512, 512) float32 in [0, 1]."""
    try:
        from skimage import data
    except ImportError:
        raise WorkingPapersError(
            "this claim is measured on a photograph of scikit-image: pip install 'workingpapers[images]'"
        ) from None
    return torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the share of test examples that `model` classifies right, in eval mode."""
    was_training = model.training
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(split.x_test.split(500), split.y_test.split(500), strict=True)
    )
    model.train(was_training)
    return right / len(split.y_test)


@torch.no_grad()
def noise_drop(
    model: nn.Module, split: Split, *, sigmas: Sequence[float], draws: int = 5, seed: int = 0
) -> float:
    """Return the mean accuracy lost when every weight w becomes w * (1 + sigma * normal), over sigmas and draws."""
    clean, drops = accuracy(model, split), []
    generator = torch.Generator().manual_seed(seed)
    for sigma in sigmas:
        for _ in range(draws):
            noisy = copy.deepcopy(model)
            for parameter in noisy.parameters():
                parameter.mul_(1 + sigma * torch.randn(parameter.shape, generator=generator))
            drops.append(clean - accuracy(noisy, split))
    return sum(drops) / len(drops)
