"""The hot core: tensors in, tensors out. Knows no model, no tokenizer and no file.

>>> import torch
>>> zeros = torch.zeros(1, 1, dtype=torch.float64)
>>> step = torch.full((1, 1), 3.0, dtype=torch.float64).log()
>>> head = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
>>> round(lens_transport(torch.stack([zeros, step]), head).angle.item(), 10)  # pi / 6
0.5235987756
"""

from .attribution import token_attribution, token_attribution_from_hidden, token_tilt
from .exponents import (
    AutoWindow,
    ClausetFit,
    alpha_lambda_pdf,
    alpha_lambda_rank,
    auto_window,
    clauset_pdf_exponent,
)
from .information import information_pass, token_information, token_information_from_hidden
from .lens import LensDistance, LensTransport, lens_distance, lens_transport
from .logprobs import SequenceLogProbs, sequence_log_probs
from .outliers import outlier_columns, without_top
from .power_law import PowerLawFit, corrected_exponent, fit_power_law
from .ranks import effective_rank, participation_ratio, rankme, spectral_entropy_rank, stable_rank
from .spectrum import SpectrumAccumulator
from .token_pass import InformationPass
from .token_readings import TokenAttribution, TokenInformation, TokenTilt

__all__ = [
    "AutoWindow",
    "ClausetFit",
    "InformationPass",
    "LensDistance",
    "LensTransport",
    "PowerLawFit",
    "SequenceLogProbs",
    "SpectrumAccumulator",
    "TokenAttribution",
    "TokenInformation",
    "TokenTilt",
    "alpha_lambda_pdf",
    "alpha_lambda_rank",
    "auto_window",
    "clauset_pdf_exponent",
    "corrected_exponent",
    "effective_rank",
    "fit_power_law",
    "information_pass",
    "lens_distance",
    "lens_transport",
    "outlier_columns",
    "participation_ratio",
    "rankme",
    "sequence_log_probs",
    "spectral_entropy_rank",
    "stable_rank",
    "token_attribution",
    "token_attribution_from_hidden",
    "token_information",
    "token_information_from_hidden",
    "token_tilt",
    "without_top",
]
