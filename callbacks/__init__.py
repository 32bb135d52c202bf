"""Callbacks: what a fit shows of the composed model while it grows."""

from callbacks.attribution import Attribution
from callbacks.dashboard import Dashboard
from callbacks.forgetting import Forgetting
from callbacks.progress import PhaseProgressBar
from callbacks.quality import Quality
from callbacks.sample_grid import SampleGrid
from callbacks.training_monitor import TrainingMonitor

__all__ = ["Attribution", "Dashboard", "Forgetting", "PhaseProgressBar", "Quality", "SampleGrid", "TrainingMonitor"]
