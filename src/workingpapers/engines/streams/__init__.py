"""Trained networks on streams: step by step the outputs that they give on clips, from the same weights."""

from workingpapers.engines.streams.attention import attend, retroactive, single_output
from workingpapers.engines.streams.encoders import RecyclingPositions
from workingpapers.engines.streams.stream import State, Stream, convert, multiply_adds

__all__ = [
    "RecyclingPositions",
    "State",
    "Stream",
    "attend",
    "convert",
    "multiply_adds",
    "retroactive",
    "single_output",
]
