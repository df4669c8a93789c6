"""Code that coverage need not see: tracing costs as much again as what runs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def untraced() -> Iterator[None]:
    """Take this thread's trace function off for a block; `no_cover` has no effect in xdist's workers."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
