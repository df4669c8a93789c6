"""Augmentation inside a model, so that every training loop has it and evaluation does not."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ShiftAndFlip(nn.Module):
    """A model whose training images are shifted by up to `reach` pixels and, half of them, mirrored.

    Zeros come in at the edges; in evaluation mode images are left alone.
    """

    def __init__(self, model: nn.Module, reach: int = 2) -> None:
        super().__init__()
        self.model, self.reach = model, reach

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's output for images (B, C, H, W)."""
        out: Tensor = self.model(self.augment(x) if self.training else x)
        return out

    def augment(self, x: Tensor) -> Tensor:
        """Return shifted and mirrored images (B, C, H, W)."""
        batch, _, height, width = x.shape
        padded = F.pad(x, (self.reach,) * 4)
        down, right = torch.randint(2 * self.reach + 1, (2, batch, 1), device=x.device)
        rows = down + torch.arange(height, device=x.device)
        columns = right + torch.arange(width, device=x.device)
        columns = torch.where(torch.rand(batch, 1, device=x.device) < 0.5, columns.flip(1), columns)
        which = torch.arange(batch, device=x.device)[:, None, None]
        return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
