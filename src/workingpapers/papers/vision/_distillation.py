"""Learning from a teacher: distillation from another network's logits, and self-distillation without labels."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import unknown


def distillation_loss(
    outputs: Tensor,
    targets: Tensor,
    teacher: Tensor,
    kind: str = "hard",
    alpha: float = 0.5,
    tau: float = 1.0,
) -> Tensor:
    """Return (1 - alpha) * cross-entropy with the labels + alpha * that with the teacher.

    outputs, teacher: logits (B, K); targets: (B,).  A "hard" teacher gives its most likely label, a "soft" one
    its distribution at temperature `tau`, whose divergence is multiplied by tau^2 (Touvron et al., 2021).
    """
    if kind not in ("hard", "soft"):
        raise unknown("kind of distillation", kind, ("hard", "soft"))
    if kind == "hard":
        taught = F.cross_entropy(outputs, teacher.argmax(1))
    else:
        student, truth = (logits.div(tau).log_softmax(1) for logits in (outputs, teacher))
        taught = F.kl_div(student, truth, reduction="batchmean", log_target=True) * tau**2
    return (1 - alpha) * F.cross_entropy(outputs, targets) + alpha * taught


class SelfDistillation(nn.Module):
    """Train a network without labels, as DINO does: views of one image shall agree with a slow copy of the network.

    Args:
        student: module, images -> vectors (B, K); its slow copy is the teacher.
        num_outputs: K.
        momentum: of the teacher's weights; center_momentum: of the mean that keeps its outputs from collapsing.
        student_tau, teacher_tau: temperatures of the two softmaxes (Caron et al., 2021).
    """

    center: Tensor

    def __init__(
        self,
        student: nn.Module,
        num_outputs: int,
        momentum: float = 0.996,
        center_momentum: float = 0.9,
        student_tau: float = 0.1,
        teacher_tau: float = 0.04,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False)
        self.momentum, self.center_momentum = momentum, center_momentum
        self.student_tau, self.teacher_tau = student_tau, teacher_tau
        self.register_buffer("center", torch.zeros(num_outputs))

    def forward(self, views: Sequence[Tensor], global_views: int = 2) -> Tensor:
        """Return the mean cross-entropy of each view's prediction with the teacher's of each other global view.

        The first `global_views` are global.  In training the centre moves towards the teacher's mean output.
        """
        with torch.no_grad():
            outputs = [self.teacher(view) for view in views[:global_views]]
            truths = [((output - self.center) / self.teacher_tau).softmax(1) for output in outputs]
            if self.training:
                self.center.lerp_(torch.cat(outputs).mean(0), 1 - self.center_momentum)
        guesses = [(self.student(view) / self.student_tau).log_softmax(1) for view in views]
        losses = [
            -(truth * guess).sum(1).mean()
            for i, truth in enumerate(truths)
            for j, guess in enumerate(guesses)
            if i != j
        ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def follow(self) -> None:
        """Move the teacher towards the student; call it after every optimizer step."""
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)
