"""What `inspect` costs on ResNet-18, random and trained, beside one plain forward and backward sweep.

    python -m benchmarks.inspect_models [--images 512] [--size 32] [--threads 2] [--train] [--json]

CIFAR-10's images, enlarged to `--size`; `--train` trains for an epoch over 5,000 of them first.  Memory is the
process's peak.  torchvision brings the network.
"""

import argparse
import json
import platform
import resource
import time

import torch
from torch import nn

from workingpapers.data import images
from workingpapers.verbs.inspect import inspect


def sweep(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int) -> float:
    """Return the seconds of one forward and backward sweep."""
    began = time.perf_counter()
    for part, labels in zip(x.split(batch), y.split(batch), strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(part), labels).backward()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    from tests.surgery.real_models import vision  # which torchvision needs beside a CPU build of torch

    model = vision.resnet18(num_classes=10)
    data = images("cifar10", train=5000, test=args.images)
    if args.train:
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for part, labels in zip(data.x_train.split(64), data.y_train.split(64), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(part), labels).backward()
            optimizer.step()
    x = nn.functional.interpolate(data.x_test, size=args.size) if args.size != 32 else data.x_test
    plain = sweep(model, x, data.y_test, 64)
    model.zero_grad()
    began = time.perf_counter()
    found = inspect(model, (x, data.y_test), loss="cross_entropy", lr=0.05)
    seconds = time.perf_counter() - began
    said = {
        "images": args.images,
        "size": args.size,
        "trained": args.train,
        "plain sweep, s": plain,
        "inspect, s": seconds,
        "of which its sweep, s": found.seconds["sweep"],
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "threads": args.threads,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(said, indent=1) if args.json else "\n".join(f"{k:<24} {v}" for k, v in said.items()))
    print(found.headline())


if __name__ == "__main__":
    main()
