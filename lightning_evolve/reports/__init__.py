"""What a run leaves for people to read: tables and pictures."""

from lightning_evolve.reports.plot import plot_curves as plot_curves
from lightning_evolve.reports.table import print_results as print_results

__all__ = ["plot_curves", "print_results"]
