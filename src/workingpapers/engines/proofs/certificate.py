"""Certificates of proofs by halving: the tree of boxes, and for each leaf what proves it, for `checker.py`.

A file holds, for each tree `t`, arrays named `t/...`:

- `rows` (rows, inputs + outputs), `offsets`, `groups` (groups, rows): what must not happen, as `Problem` has it;
- `parent` (boxes,), -1 for the root, and `lower`, `upper` (boxes, inputs): every box that was bounded;
- `tilt` (boxes, ...): a bit for every ReLU, packed: whether the line below it was z itself rather than 0;
- `joint_box`, `joint_group`, `joint_weights` (n, rows): several rows that exclude a group together;
- `leaf_box`, `leaf_open` (leaves, most): leaves answered piece by piece, and their open ReLUs in order, then -1;
- `piece_box`, `piece_pattern`, `piece_group`, `piece_weights` (n, rows + most): for each pattern of a leaf's signs
  (bit i is set where open ReLU i is on) and each group the weights of the rows and of the signs' inequalities.
"""

import os
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from workingpapers.engines.bounds.graph import Elementwise
from workingpapers.engines.bounds.propagate import Bounds, planes_of
from workingpapers.engines.bounds.region import Box
from workingpapers.engines.proofs.problem import Problem
from workingpapers.errors import WorkingPapersError

Arrays = dict[str, np.ndarray]

FILL = {"leaf_open": -1}  # what narrow arrays are filled with, if not 0


class Tree:
    """What a search by halving leaves behind of one problem, batch by batch."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.parts: dict[str, list[np.ndarray]] = {}
        self.lock = Lock()  # batches may come from several threads

    def _add(self, **arrays: Tensor | np.ndarray) -> None:
        with self.lock:
            for name, array in arrays.items():
                self.parts.setdefault(name, []).append(np.asarray(array))

    def boxes(self, numbers: Tensor, parents: Tensor, box: Box, found: Bounds) -> None:
        """Note boxes that were bounded, their numbers and those of the boxes that they were halved from."""
        tilts = [
            planes_of(found, place, node).below[0][:, 0].flatten(1) > 0.5
            for place, node in enumerate(self.problem.graph.nodes)
            if isinstance(node.operation, Elementwise)
        ]
        empty = torch.zeros(len(parents), 0, dtype=torch.bool)
        bits = np.packbits(torch.cat([empty, *tilts], 1).numpy(), axis=1)
        ends = {"lower": box.lower.flatten(1), "upper": box.upper.flatten(1)}
        self._add(number=numbers, parent=parents, tilt=bits, **ends)

    def together(self, boxes: Tensor, group: int, weights: Tensor) -> None:
        """Note weights (n, rows of the group) that exclude a group in boxes, by their numbers."""
        mask = self.problem.groups[group]
        whole = torch.zeros(len(boxes), len(mask), dtype=weights.dtype)
        whole[:, mask] = weights
        self._add(
            joint_box=boxes, joint_group=torch.full_like(boxes, group), joint_weights=whole.to(torch.float32)
        )

    def leaves(self, boxes: Tensor, open_ones: Tensor) -> None:
        """Note leaves answered piece by piece: the places of their open ReLUs among all, in order, then -1."""
        self._add(leaf_box=boxes, leaf_open=open_ones)

    def pieces(self, boxes: Tensor, patterns: Tensor, proofs: dict[int, Tensor]) -> None:
        """Note what proves pieces of leaves.

        Args:
            boxes: the leaf's number (pieces,).
            patterns: of signs (pieces,).
            proofs: by group, weights (pieces, rows of the group + most); all 0 where none are needed.
        """
        for group, weights in proofs.items():
            needed = (weights > 0).any(1)
            mask = self.problem.groups[group]
            most = weights.shape[1] - int(mask.sum())
            whole = torch.zeros(int(needed.sum()), len(mask) + most)
            signs = torch.arange(len(mask), len(mask) + most)
            whole[:, torch.cat([mask.nonzero().flatten(), signs])] = weights[needed].to(torch.float32)
            self._add(
                piece_box=boxes[needed],
                piece_pattern=patterns[needed],
                piece_group=torch.full_like(boxes[needed], group),
                piece_weights=whole,
            )

    def arrays(self) -> Arrays:
        """Return all that was noted, each array whole."""
        rows, offsets = _rows(self.problem)
        made = {
            name: np.concatenate([_widened(part, parts, FILL.get(name, 0)) for part in parts])
            for name, parts in self.parts.items()
        }
        order = made.pop("number").argsort()
        made |= {name: made[name][order] for name in ("parent", "lower", "upper", "tilt")}
        return {"rows": rows, "offsets": offsets, "groups": self.problem.groups.numpy(), **made}


def _widened(part: np.ndarray, parts: list[np.ndarray], fill: int) -> np.ndarray:
    """Return an array (n, ...) as wide as the widest of its name."""
    if part.ndim == 1:
        return part
    more = max(other.shape[1] for other in parts) - part.shape[1]
    return np.pad(part, ((0, 0), (0, more)), constant_values=fill)


def _rows(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (n, inputs + outputs) and offsets that the last node of a problem's graph computes."""
    graph = problem.graph
    last = graph.nodes[-1]
    eye = torch.eye(last.size, dtype=graph.dtype)[None]
    parts = [part.flatten(2)[0] for part in last.operation.backward(eye)]  # type: ignore[union-attr]
    if len(parts) == 1:
        parts.insert(0, torch.zeros(last.size, graph.nodes[0].size, dtype=graph.dtype))
    return torch.cat(parts, 1).numpy(), last.operation.offset.flatten().numpy()  # type: ignore[union-attr]


class Certificate:
    """The trees of all problems of one question."""

    def __init__(self) -> None:
        self.trees: list[Tree] = []

    def tree(self, problem: Problem) -> Tree:
        """Begin the tree of a problem."""
        self.trees.append(Tree(problem))
        return self.trees[-1]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            WorkingPapersError: where it cannot be written.
        """
        arrays = {
            f"{number}/{name}": array
            for number, tree in enumerate(self.trees)
            for name, array in tree.arrays().items()
        }
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as stream:
                np.savez_compressed(stream, trees=np.array(len(self.trees)), **arrays)  # type: ignore[arg-type]
            part.replace(path)
        except OSError as error:
            raise WorkingPapersError(f"cannot write {path}: {error.strerror or error}") from None
        finally:
            part.unlink(missing_ok=True)
