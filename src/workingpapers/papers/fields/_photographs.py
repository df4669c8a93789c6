"""Photographs that come with scikit-image, which is an extra."""

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError


def photograph(name: str, size: int) -> Tensor:
    """Return scikit-image's photograph `name`, such as "camera" or "astronaut", as (C, size, size) in [0, 1].

    Pixels are averaged down from 512x512.

    Raises:
        WorkingPapersError: where scikit-image is not installed, or `size` does not divide that of the photograph.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise WorkingPapersError(
            "the photographs come with scikit-image; `pip install workingpapers[images]` brings it"
        ) from error
    x = torch.from_numpy(getattr(data, name)().copy()).float() / 255
    x = x[None] if x.ndim == 2 else x.permute(2, 0, 1)
    if x.shape[-1] % size or x.shape[-2] % size:
        raise WorkingPapersError(f"the photograph has {tuple(x.shape[1:])} pixels, no multiple of {size}")
    return F.adaptive_avg_pool2d(x, size)
