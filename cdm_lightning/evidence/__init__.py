"""Evidence log p_i(x; sigma): how well compartment i alone explains a noised image."""

from cdm_lightning.evidence.calibration import Calibration
from cdm_lightning.evidence.closed_form import GaussianEvidence
from cdm_lightning.evidence.features import BackboneFeatures, Featured
from cdm_lightning.evidence.network import NetworkEvidence
from cdm_lightning.evidence.path import path_log_density
from cdm_lightning.evidence.protocol import Evidence
from cdm_lightning.evidence.ratio import Features, NoisedFeatures, RatioEvidence, RatioHead, Whitening

__all__ = [
    "BackboneFeatures",
    "Calibration",
    "Evidence",
    "Featured",
    "Features",
    "GaussianEvidence",
    "NetworkEvidence",
    "NoisedFeatures",
    "RatioEvidence",
    "RatioHead",
    "Whitening",
    "path_log_density",
]
