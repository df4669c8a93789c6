"""Speech, pictures, a connectome and verification problems: readers without further ado."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workingpapers.data.store import locate, locate_folder
from workingpapers.errors import unknown

SUPERRES = {"Set5": 5, "Set14": 14}
CONNECTOMES = (
    "aconnectome_white_1986_whole",
    "aconnectome_white_1986_A",
    "aconnectome_white_1986_L4",
    "herm_full_edgelist",
)
VNNCOMP = ("acasxu", "mnist_fc", "lsnc", "ml4acopf", "vit", "cgan")


@dataclass(frozen=True)
class Speech:
    """Spoken digits: `audio[i]` is a float32 waveform in [-1, 1) at `rate` samples a second.

    digit, speaker, take: int64 (N,).  is_test: bool (N,), the official test set (takes 0 to 4).
    """

    audio: list[Tensor]
    digit: Tensor
    speaker: Tensor
    take: Tensor
    is_test: Tensor
    speakers: list[str]
    rate: int


def fsdd() -> Speech:
    """Load 1,200 takes of the Free Spoken Digit Dataset: 6 speakers, 10 digits, takes 0 to 19."""
    with np.load(locate("fsdd/fsdd_1200.npz")) as z:
        samples = torch.from_numpy(z["audio"]).float() / 32768.0
        audio = [samples[o : o + n] for o, n in zip(z["offset"].tolist(), z["length"].tolist(), strict=True)]
        digit, speaker, take = (torch.from_numpy(z[k].astype(np.int64)) for k in ("digit", "speaker", "take"))
        return Speech(audio, digit, speaker, take, take < 5, z["speaker_names"].tolist(), int(z["rate"]))


def superres(name: str = "Set5") -> list[NDArray[np.uint8]]:
    """Load the high-resolution pictures of "Set5" or "Set14", each (H, W, 3) uint8; a grey one is (H, W)."""
    from matplotlib.image import imread

    if name not in SUPERRES:
        raise unknown("super-resolution set", name, SUPERRES)
    files = [locate(f"superres/{name}/img_{i:03d}_SRF_2_HR.png") for i in range(1, SUPERRES[name] + 1)]
    return [np.asarray(np.rint(imread(file) * 255), np.uint8) for file in files]


@dataclass(frozen=True)
class Retina:
    """Fundus pictures x, float32 (14, 3, 480, 499) in [0, 1], and their vessels y, uint8 (14, 480, 499), 0 or 1."""

    x: Tensor
    y: Tensor
    names: list[str]


def retina_chase() -> Retina:
    """Load 14 pictures of CHASE_DB1 at half size with the first observer's vessel masks."""
    with np.load(locate("retina_chase/chase_db1_14_half.npz")) as z:
        x = torch.from_numpy(z["x"]).permute(0, 3, 1, 2).float() / 255.0
        return Retina(x, torch.from_numpy(z["y"]), z["names"].tolist())


@dataclass(frozen=True)
class Connection:
    """A connection between two cells: how many synapses (or the weight), chemical or electrical."""

    source: str
    target: str
    weight: float
    kind: str


def celegans(name: str = "herm_full_edgelist") -> list[Connection]:
    """Load a connectome of C. elegans: "herm_full_edgelist" (7,379 connections) or one of White et al. (1986)."""
    if name not in CONNECTOMES:
        raise unknown("connectome", name, CONNECTOMES)
    lines = locate(f"celegans/{name}.csv").read_text("utf-8").splitlines()[1:]
    rows = [[cell.strip() for cell in re.split("[,\t]", line)] for line in lines]
    if name == "herm_full_edgelist":
        return [Connection(source, target, float(weight), kind) for source, target, weight, kind in rows]
    return [Connection(source, target, float(weight), kind) for source, target, kind, weight in rows]


@dataclass(frozen=True)
class Instance:
    """A verification problem: a network (onnx.gz), a property (vnnlib.gz) and the seconds allowed."""

    network: Path
    specification: Path
    seconds: float


def vnncomp(benchmark: str) -> list[Instance]:
    """List the instances of a VNN-COMP benchmark: acasxu, mnist_fc, lsnc, ml4acopf, vit or cgan."""
    if benchmark not in VNNCOMP:
        raise unknown("VNN-COMP benchmark", benchmark, VNNCOMP)
    folder = locate_folder(f"vnncomp/{benchmark}")
    with (folder / "instances.csv").open(encoding="utf-8", newline="") as stream:
        return [
            Instance(
                folder / f"{network.removeprefix('./')}.gz",
                folder / f"{spec.removeprefix('./')}.gz",
                float(seconds),
            )
            for network, spec, seconds in csv.reader(stream)
        ]
