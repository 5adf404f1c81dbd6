"""Detectors of change, one a file: of errors where labels are known, of windows where none are.

Nothing here imports torch or Lightning.
"""

from lightning_evolve.evolution.detectors.adwin import ADWIN
from lightning_evolve.evolution.detectors.base import Detector
from lightning_evolve.evolution.detectors.ddm import DDM
from lightning_evolve.evolution.detectors.page_hinkley import PageHinkley
from lightning_evolve.evolution.detectors.windows import Shift, Windows

__all__ = ["ADWIN", "DDM", "Detector", "PageHinkley", "Shift", "Windows"]
