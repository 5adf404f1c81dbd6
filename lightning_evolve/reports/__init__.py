"""What a run leaves for people to read: tables and pictures."""

from lightning_evolve.reports.files import free as free
from lightning_evolve.reports.files import replacing as replacing
from lightning_evolve.reports.files import write_json as write_json
from lightning_evolve.reports.plot import plot_curves as plot_curves
from lightning_evolve.reports.table import print_results as print_results

__all__ = ["free", "plot_curves", "print_results", "replacing", "write_json"]
