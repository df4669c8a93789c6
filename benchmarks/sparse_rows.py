"""Products that read only active rows, against torch's dense ones, at the shape of a 7B decoder's layer.

    python benchmarks/sparse_rows.py [--rounds N] [--save FOLDER]

Every round draws new active neurons, so that none are in a cache from the last one; dense and sparse take turns.
"""

import argparse
import json
import platform
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import linear

from workingpapers.kernels.rows import gated_rows, weighted_rows
from workingpapers.kernels.timing import seconds_by_turns

IN, NEURONS = 4096, 11008
SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.97)


@torch.no_grad()
def measure(dtype: torch.dtype, sparsity: float, rounds: int) -> dict[str, float]:
    """Return the ratios dense over sparse, of the down projection alone and of up and down together."""
    up, down = torch.randn(NEURONS, IN).to(dtype), torch.randn(NEURONS, IN).to(dtype)
    by_outputs, x = down.t().contiguous(), torch.randn(1, IN).to(dtype)
    draws = []
    for _ in range(rounds + 5):
        a = torch.randn(1, NEURONS)
        a[:, torch.randperm(NEURONS)[: round(sparsity * NEURONS)]] = 0
        draws.append(a.to(dtype))
    turns = [iter(draws) for _ in range(4)]
    runs = [
        lambda: linear(next(turns[0]), by_outputs),
        lambda: weighted_rows(next(turns[1]), down),
        lambda: linear(linear(x, up) * next(turns[2]), by_outputs),
        lambda: gated_rows(next(turns[3]), up, down, x),
    ]
    times = [median(taken) for taken in seconds_by_turns(runs, rounds, warm=5)]
    ideal = 1 / (1 - sparsity)
    found = {"down": times[0] / times[1], "up and down": times[2] / times[3]}
    return {
        **found,
        **{f"{name}, of ideal": ratio / ideal for name, ratio in found.items()},
        "dense ms": 1e3 * times[2],
    }


def main() -> None:
    """Print a line for each dtype and sparsity; keep them on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for dtype in (torch.float32, torch.bfloat16):
        for sparsity in SPARSITIES:
            rows.append(
                {"dtype": str(dtype)[6:], "sparsity": sparsity, **measure(dtype, sparsity, given.rounds)}
            )
            print(
                "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items())
            )
    if given.save:
        machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        content = {"date": str(date.today()), "machine": machine, "torch": torch.__version__, "rows": rows}
        (given.save / f"sparse-rows-{date.today()}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
