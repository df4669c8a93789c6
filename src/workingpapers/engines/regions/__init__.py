"""Where a piecewise-linear network is affine: the exact partition of polygons and of lines of inputs.

>>> import torch
>>> from workingpapers.engines.regions import box, region_set
>>> model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.ReLU())
>>> _ = torch.nn.init.constant_(model[0].weight, 1.0), torch.nn.init.zeros_(model[0].bias)
>>> found = region_set(model, box(-1.0, 1.0))
>>> len(found), found.areas.tolist()
(2, [2.0, 2.0])
"""

from workingpapers.engines.regions.boundary import Segments
from workingpapers.engines.regions.lines import Breakpoints, along_line, along_path
from workingpapers.engines.regions.partition import joined, partition, region_set
from workingpapers.engines.regions.plane import Plane, box
from workingpapers.engines.regions.program import Program, perceptron, program
from workingpapers.engines.regions.regionset import RegionSet
from workingpapers.engines.regions.statistics import Statistics, statistics

__all__ = [
    "Breakpoints",
    "Plane",
    "Program",
    "RegionSet",
    "Segments",
    "Statistics",
    "along_line",
    "along_path",
    "box",
    "joined",
    "partition",
    "perceptron",
    "program",
    "region_set",
    "statistics",
]
