"""Reports: comparisons and verdicts as one HTML file, and their drawings as matplotlib figures.

>>> from workingpapers.report import plot_differences, write_report
>>> write_report("report.html", comparisons=[comparison])  # doctest: +SKIP
>>> plot_differences(comparison).savefig("differences.pdf")  # doctest: +SKIP
"""

from workingpapers.report.figures import plot_curves, plot_differences
from workingpapers.report.page import write_report

__all__ = ["plot_curves", "plot_differences", "write_report"]
