"""Working Papers: neural-network papers that work.  Find one, use it, compare it, check its claim."""

__version__ = "0.1.0"
