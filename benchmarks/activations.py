"""How fast every elementwise activation of the registry is, against torch's GELU, torch.compile and eager.

    python benchmarks/activations.py [golu mish ...] [--device cuda] [--dtype bfloat16] [--save]

All contenders are timed in turns in one run; a ratio is the other's time over ours, with its quartiles.  `--save`
writes the figures, with machine and date, under benchmarks/results/.
"""

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from workingpapers.catalog import available, load, record
from workingpapers.verbs.bench import Timing, bench

SIZES = {"cpu": (2**10, 2**22), "cuda": (2**14, 2**28)}


def elementwise() -> list[str]:
    """Return the names of all elementwise activations of papers."""
    ids = [id for id in available() if record(id).kind in ("activation", "layer")]
    return [
        c.name
        for id in ids
        for c in load(id).values()
        if c.kind == "activation" and c.properties.get("elementwise", True) and "example" not in c.properties
    ]


def machine(device: str) -> str:
    """Name what was measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} x {os.cpu_count()}"
    return f"{name}, torch {torch.__version__}"


def line(name: str, t: Timing, own: Timing) -> str:
    """Return one contender at one size and pass as a line of the table."""
    ratio = "" if t is own else f"{t.ratio:6.2f} [{t.low:.2f}, {t.high:.2f}]"
    measured = f"{t.seconds * 1e6:12.1f}  {t.bandwidth:6.0%}  {ratio}"
    return f"{name:<24}{t.what:<18}{t.size:>12,}  {t.contender:<24}{measured}"


def main() -> None:
    """Time what was named, or all, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="cpu", choices=SIZES)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--save", action="store_true")
    chosen = parser.parse_args()
    print(
        f"{'activation':<24}{'pass':<18}{'elements':>12}  {'contender':<24}{'microseconds':>12}  copy    times ours"
    )
    found: list[dict[str, Any]] = []
    for name in chosen.names or elementwise():
        result = bench(name, device=chosen.device, dtype=chosen.dtype, sizes=SIZES[chosen.device])
        own = {(t.what, t.size): t for t in result.timings if t.contender == name}
        for t in result.timings:
            print(line(name, t, own[t.what, t.size]), flush=True)
        found.append(result.as_dict())
    if chosen.save:
        now = datetime.now(UTC)
        folder = Path(__file__).with_name("results")
        folder.mkdir(exist_ok=True)
        path = folder / f"activations-{chosen.device}-{chosen.dtype}-{now:%Y-%m-%d}.json"
        content = {
            "machine": machine(chosen.device),
            "finished": now.isoformat(timespec="seconds"),
            "bench": found,
        }
        path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        print(f"saved: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
