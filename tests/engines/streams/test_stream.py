"""Networks on streams: what steps give is held against the network on clips, for all that it may be made of."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.streams import Stream, convert, multiply_adds
from workingpapers.errors import WorkingPapersError


class Residual(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv1d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.b = nn.Conv1d(width, width, 5, stride, padding=2)
        self.short = nn.Conv1d(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(self.norm(self.a(x)).relu()) + self.short(x))


class Mean(nn.Module):
    """The mean of features over time, read out."""

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features, self.head = features, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x).mean(2))
        return out


def lively(model: nn.Module) -> nn.Module:
    """Give batch norms something to do."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return model.eval()


def run(stream: Stream, clip: Tensor, end: bool = True) -> Tensor:
    with torch.no_grad():
        found, _ = stream.steps(clip, end=end)
    assert found is not None
    return found


def close(a: Tensor, b: Tensor, gap: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=gap)


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    pad=st.integers(0, 8),
    groups=st.sampled_from([1, 2]),
    length=st.integers(13, 22),
    pool=st.sampled_from(["none", "max", "mean"]),
)
def test_convolutions_and_pools_of_every_shape(
    kernel: int, stride: int, dilation: int, pad: int, groups: int, length: int, pool: str
) -> None:
    torch.manual_seed(kernel + 7 * stride + 31 * dilation + pad + length)
    pad = min(pad, dilation * (kernel - 1))
    last: dict[str, nn.Module] = {
        "none": nn.Identity(),
        "max": nn.MaxPool1d(3, 2, 1),
        "mean": nn.AvgPool1d(2, 1, 1),
    }
    net = nn.Sequential(
        nn.Conv1d(4, 6, kernel, stride, pad, dilation, groups), nn.Tanh(), last[pool], nn.Conv1d(6, 2, 1)
    ).eval()
    if kernel == stride == 1 and pool == "none":
        return
    if (
        13 + 2 * pad < dilation * (kernel - 1) + 2 * stride + 1
    ):  # too short a clip for the kernel and the pool
        return
    stream = convert(net, torch.randn(2, 4, 13))
    clip = torch.randn(2, 4, length)
    close(run(stream, clip), net(clip).detach())


def test_residual_networks_over_a_thousand_steps() -> None:
    net = lively(nn.Sequential(Residual(3, 8), Residual(8, 6, 2), nn.Conv1d(6, 4, 3, padding=2, dilation=2)))
    clip = torch.randn(1, 3, 1000)
    stream = convert(net, torch.randn(1, 3, 16))
    close(run(stream, clip), net(clip).detach())


def test_steps_by_hand() -> None:
    """y_t = b + w_0 x_{t-2} + w_1 x_t."""
    conv = nn.Conv1d(1, 1, 2, dilation=2).requires_grad_(False)
    x = torch.randn(7)
    stream = convert(conv, torch.randn(1, 1, 5))
    assert stream.warmup == 3
    state = None
    for t in range(7):
        y, state = stream.step(x[t].view(1, 1), state)
        if t < 2:
            assert y is None
        else:
            wanted = conv.weight[0, 0, 0] * x[t - 2] + conv.weight[0, 0, 1] * x[t] + conv.bias[0]
            assert float(y) == pytest.approx(float(wanted), abs=1e-6)


def test_a_state_can_be_gone_on_from_twice() -> None:
    net = lively(nn.Sequential(Residual(3, 4), nn.MaxPool1d(3, 1)))
    stream, clip = convert(net, torch.randn(1, 3, 9)), torch.randn(1, 3, 20)
    whole = run(stream, clip, end=False)
    with torch.no_grad():
        first, state = stream.steps(clip[:, :, :11])
        pieces = [stream.steps(clip[:, :, 11:], state)[0] for _ in range(2)]
    for second in pieces:
        close(torch.cat([first, second], 2), whole, 0.0)


def test_dropped_padding_gives_the_middle_of_the_padded_outputs() -> None:
    net = lively(nn.Sequential(Residual(3, 5), Residual(5, 4)))
    clip = torch.randn(2, 3, 40)
    stream = convert(net, clip[:, :, :20], padding="drop")
    close(run(stream, clip, end=False), net(clip)[:, :, 6:-6].detach())
    close(stream(clip).detach(), net(clip)[:, :, 6:-6].detach())
    assert stream.warmup == 13


def test_strides_without_padding() -> None:
    net = lively(nn.Sequential(Residual(3, 5, 2), nn.MaxPool1d(3, 3, 1), Residual(5, 4)))
    clip = torch.randn(1, 3, 90)
    stream = convert(net, clip, padding="drop")
    found, wanted = run(stream, clip, end=False), net(clip).detach()
    gaps = [float((wanted[:, :, i : i + found.shape[2]] - found).abs().max()) for i in range(8)]
    assert min(gaps) < 1e-5


def test_causal_padding_by_cuts_and_by_zeros() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 3, 3, padding=4, dilation=2), nn.Conv1d(3, 3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(F.pad(self.a(x)[:, :, :-4].tanh(), (3, 0)))

    net, clip = Causal().eval(), torch.randn(2, 3, 17)
    stream = convert(net, torch.randn(2, 3, 9))
    assert stream.warmup == 1
    close(run(stream, clip), net(clip).detach())


def windows(net: nn.Module, clip: Tensor, length: int) -> Tensor:
    with torch.no_grad():
        return net(clip[0].unfold(1, length, 1).transpose(0, 1))[:, None]  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["mean", "pool", "max", "flatten"])
def test_readings_of_a_window(how: str) -> None:
    """A thousand windows of each way to take the time away; running sums do not drift."""
    last: dict[str, nn.Module] = {
        "pool": nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        "max": nn.Sequential(nn.AdaptiveMaxPool1d(1), nn.Flatten()),
        "flatten": nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten()),
    }
    features = nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 5, 3, dilation=2))
    net = lively(Mean(features, 5) if how == "mean" else nn.Sequential(features, last[how]))
    clip, length = torch.randn(1, 2, 1000 if how == "mean" else 60), 18
    stream = convert(net, torch.randn(1, 2, length))
    assert stream.warmup == length
    close(run(stream, clip, end=False), windows(net, clip, length))
    if how == "mean":
        state = stream.steps(clip)[1]
        dense = multiply_adds(lambda: net(clip[:, :, :length]))
        assert dense >= 5 * multiply_adds(lambda: stream.step(clip[:, :, 0], state))


class Joints(nn.Module):
    """A spatio-temporal graph convolution as in ST-GCN: (N, C, T, V)."""

    def __init__(self, channels: int, width: int, joints: int, stride: int = 1) -> None:
        super().__init__()
        self.graph = nn.Parameter(torch.rand(2, joints, joints))
        self.importance = nn.Parameter(torch.rand(2, joints, joints))
        self.mix = nn.Conv2d(channels, 2 * width, 1)
        self.over_time = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, (5, 1), (stride, 1), (2, 0))
        )
        self.short = nn.Conv2d(channels, width, 1, (stride, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        n, c, t, v = y.size()
        y = torch.einsum("nkctv,kvw->nctw", y.view(n, 2, c // 2, t, v), self.graph * self.importance)
        return F.relu(self.over_time(y) + self.short(x))


class Skeleton(nn.Module):
    """ST-GCN: persons are folded into the batch, and the pool's size is that of what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3 * 5)
        self.a, self.b = Joints(3, 4, 5), Joints(4, 6, 5, 2)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, v, m = x.size()
        x = self.norm(x.permute(0, 4, 3, 1, 2).contiguous().view(n * m, v * c, t))
        x = x.view(n, m, v, c, t).permute(0, 1, 3, 4, 2).contiguous().view(n * m, c, t, v)
        x = self.b(self.a(x))
        x = F.avg_pool2d(x, x.size()[2:]).view(n, m, -1, 1, 1).mean(dim=1)
        return self.head(x).view(n, -1)


def test_graph_convolutions() -> None:
    """The steps' outputs are the means over the last ten frames of what the network gives inside a long clip."""
    net = lively(Skeleton()).requires_grad_(False)
    clip = torch.randn(2, 3, 60, 5, 2)
    with pytest.raises(WorkingPapersError, match="padding='drop'"):
        convert(net, clip[:, :, :20])
    stream = convert(net, clip[:, :, :20], padding="drop")
    found = run(stream, clip, end=False)
    features = []
    net.b.register_forward_hook(lambda m, args, out: features.append(out))
    net(clip)
    # padding reaches 6 of 60 frames at each end, which are 3 of 30 behind the stride
    inside = features[0].view(2, 2, 6, 30, 5).mean((1, 4))[:, :, 2:-2]
    wanted = inside.unfold(2, 10, 1).mean(-1)
    logits = torch.einsum("oc,nct->tno", net.head.weight[:, :, 0, 0], wanted) + net.head.bias
    gaps = [
        float((logits[i : i + len(found)] - found).abs().max()) for i in range(len(logits) - len(found) + 1)
    ]
    assert min(gaps) < 1e-5


def test_video() -> None:
    net = lively(
        nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=(1, 1, 1), groups=1),
            nn.BatchNorm3d(4),
            nn.AvgPool3d((2, 2, 2), (2, 2, 2)),
            nn.Conv3d(4, 6, (3, 3, 2), (1, 2, 1), padding="valid"),
            nn.Conv3d(6, 4, (3, 1, 3), padding="same", groups=2),
            nn.MaxPool3d((2, 1, 1), 1),
        )
    )
    clip = torch.randn(2, 1, 26, 9, 8)
    stream = convert(net, torch.randn(2, 1, 16, 9, 8))
    close(run(stream, clip), net(clip).detach())
    dropped = convert(net, torch.randn(2, 1, 16, 9, 8), padding="drop")
    found = run(dropped, clip, end=False)
    close(found, net(clip)[:, :, 2 : 2 + found.shape[2]].detach())


def test_the_network_stays_what_it_was() -> None:
    net = nn.Sequential(Residual(3, 4), nn.Dropout(0.5))
    before = copy.deepcopy(net.state_dict())
    stream = convert(net, torch.randn(1, 3, 9))
    assert net.training
    assert stream.training
    assert list(stream.state_dict()) == [f"model.{k}" for k in before]
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    again = pickle.loads(pickle.dumps(stream)).eval()
    clip = torch.randn(1, 3, 12)
    close(run(again, clip), run(stream.eval(), clip), 0.0)


def test_double_precision_and_batches() -> None:
    net = lively(nn.Sequential(Residual(3, 4))).double()
    clip = torch.randn(5, 3, 12, dtype=torch.float64)
    close(run(convert(net, clip[:2, :, :8]), clip), net(clip).detach(), 1e-12)


class Positions(nn.Module):
    """Codes that count from the window's start."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(2, 100))
        self.over = nn.Conv1d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.over(x + self.codes[:, : x.shape[2]])
        return out


class Softmax(nn.Module):
    """Weights that all frames share."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x, 2, 1) * x.softmax(2)[:, :, 1:]


class Outer(nn.Module):
    """Every frame with every other."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ (x.transpose(1, 2) @ x)


class Branch(nn.Module):
    """Looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (Positions(), "relates frames"),
        (Outer(), "relates every frame to every other"),
        (Branch(), "depend on its inputs' values"),
        (nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU()), "no operation over time"),
        (nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), nn.AdaptiveAvgPool1d(1)), "padding='drop'"),
        (nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"), "padding over time must be by zeros"),
        (nn.Conv1d(2, 2, 1, padding=2, stride=2), "beyond the kernel's reach"),
        (nn.AvgPool1d(3, 1, 1, ceil_mode=True), "ceil_mode=False"),
        (nn.Sequential(nn.Conv1d(2, 2, 3), nn.InstanceNorm1d(2)), "frames"),
        (nn.Linear(5, 2), "does not run on a clip"),
    ],
)
def test_what_does_not_run_on_a_stream(net: nn.Module, sentence: str) -> None:
    with pytest.raises(WorkingPapersError, match=sentence):
        convert(net, torch.randn(1, 2, 9))


def test_unknown_wishes() -> None:
    net, clip = nn.Conv1d(2, 2, 3), torch.randn(1, 2, 9)
    with pytest.raises(WorkingPapersError, match="'drop'"):
        convert(net, clip, padding="crop")
    with pytest.raises(WorkingPapersError, match="at least 1"):
        convert(net, clip, window=0)


def test_multiply_adds_are_counted() -> None:
    conv, x = nn.Conv1d(3, 5, 4), torch.randn(2, 3, 10)
    assert multiply_adds(lambda: conv(x)) == 2 * 7 * 5 * 3 * 4
    stream = convert(conv, x)
    state = stream.steps(x)[1]
    assert multiply_adds(lambda: stream.step(x[:, :, 0], state)) == 2 * 5 * 3 * 4
