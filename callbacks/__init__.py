"""Callbacks: what a fit shows of the composed model while it grows."""

from callbacks.attribution import Attribution
from callbacks.forgetting import Forgetting
from callbacks.progress import PhaseProgressBar
from callbacks.quality import Quality
from callbacks.sample_grid import SampleGrid

__all__ = ["Attribution", "Forgetting", "PhaseProgressBar", "Quality", "SampleGrid"]
