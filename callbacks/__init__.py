"""Callbacks: what a fit shows of the composed model while it grows."""

from callbacks.attribution_matrix import AttributionMatrix
from callbacks.progress import PhaseProgressBar
from callbacks.sample_grid import SampleGrid

__all__ = ["AttributionMatrix", "PhaseProgressBar", "SampleGrid"]
