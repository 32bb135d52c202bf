"""The frozen backbone with the compartments that were opened: D_i for each source, many sources in one batch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.denoiser import Network, edm_denoise, guided_denoise, per_image, single
from cdm_lightning.evidence import GaussianEvidence
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.prompts import Tokens
from cdm_lightning.public import Public


@dataclass(frozen=True)
class Compartment:
    """All that exists because of one source.

    Attributes:
        n: distinct training images.
        closed_form: their Gaussians.
        prompt: what was trained, if anything was.
    """

    n: int
    closed_form: Gaussians
    prompt: Tokens | None = None

    def to(self, device: torch.device | str) -> "Compartment":
        """Return the same compartment on another device."""
        prompt = None if self.prompt is None else self.prompt.to(device)
        return Compartment(self.n, self.closed_form.to(device), prompt)


class Compartments(Mapping[str, "SourceDenoiser"]):
    """The denoisers D_i by source: the closed form at and above `sigma_switch`, the network below it.

    Args:
        network: the frozen backbone.
        compartments: by source; their order is the order of `rows`.
        public: what was fitted on `public`.
        guided: whether the network finishes drafts, or denoises alone.
        sigma_switch: inf turns the closed-form start off.

    Attributes:
        evaluations: network evaluations so far, counted per image.
    """

    def __init__(
        self,
        network: Network,
        compartments: Mapping[str, Compartment],
        public: Public,
        guided: bool,
        sigma_switch: float,
    ) -> None:
        self.network, self.compartments, self.public = network, dict(compartments), public
        self.guided, self.sigma_switch = guided, single(sigma_switch)
        self.evaluations = 0

    def __getitem__(self, source: str) -> "SourceDenoiser":
        return SourceDenoiser(self, list(self.compartments).index(source))

    def __iter__(self) -> Iterator[str]:
        return iter(self.compartments)

    def __len__(self) -> int:
        return len(self.compartments)

    def prior(self) -> dict[str, float]:
        """Return lambda_i = n_i / n by source."""
        total = sum(compartment.n for compartment in self.compartments.values())
        return {source: compartment.n / total for source, compartment in self.compartments.items()}

    def evidence(self) -> dict[str, GaussianEvidence]:
        """Return the closed forms' evidence by source."""
        return {
            source: GaussianEvidence(compartment.closed_form, self.public.calibration, self.sigma_switch)
            for source, compartment in self.compartments.items()
        }

    def rows(self, x: Tensor, sigma: Tensor, source: Tensor) -> Tensor:
        """Return D_source(x; sigma) row by row: x [row, ...], sigma [row], source [row] (index in order)."""
        denoised = torch.empty_like(x)
        above = sigma >= self.sigma_switch
        denoised[above] = self.drafts(x[above], sigma[above], source[above])
        tokens = torch.where(above, -1, self._numbers(self._token_count, source))
        for count in tokens[~above].unique().tolist():
            mine = tokens == count
            denoised[mine] = self._network_rows(x[mine], sigma[mine], source[mine])
        return denoised

    def _network_rows(self, x: Tensor, sigma: Tensor, source: Tensor) -> Tensor:
        """Return `rows` by one pass of the network; the sources have prompts of one shape, or none."""
        prompts = [compartment.prompt for compartment in self.compartments.values()]
        chosen = [prompt.tokens for prompt in (prompts[i] for i in source.tolist()) if prompt is not None]
        prompt = torch.stack(chosen) if chosen else None
        self.evaluations += len(x)
        if not self.guided:
            return edm_denoise(self.network, x, sigma, prompt=prompt)
        error = self.public.error.at(sigma, self._numbers(lambda compartment: compartment.n, source))
        return guided_denoise(self.network, x, sigma, self.drafts(x, sigma, source), error, prompt=prompt)

    def drafts(self, x: Tensor, sigma: Tensor, source: Tensor) -> Tensor:
        """Return the closed form G_source(x; sigma) row by row."""
        draft = torch.empty_like(x)
        for i, compartment in enumerate(self.compartments.values()):
            mine = source == i
            if mine.any():
                draft[mine] = compartment.closed_form.denoise(x[mine], sigma[mine])
        return draft

    @property
    def can_finish(self) -> bool:
        """Whether one pass of the network can finish a mixture of drafts: it is guided, and no source has a prompt."""
        return self.guided and all(compartment.prompt is None for compartment in self.compartments.values())

    def finish(self, x: Tensor, sigma: Tensor, weights: Tensor) -> Tensor:
        """Return D guided by the draft sum_i w_i G_i, for weights [source, batch] and one sigma for all.

        The draft's error is the root of the weighted mean square error; above the switch the draft itself is returned.
        """
        draft, square = torch.zeros_like(x), torch.zeros_like(sigma)
        for weight, compartment in zip(weights, self.compartments.values(), strict=True):
            draft = draft + per_image(weight, x) * compartment.closed_form.denoise(x, sigma)
            square = square + weight * self.public.error.at(sigma, torch.full_like(sigma, compartment.n)).square()
        if float(sigma[0]) >= self.sigma_switch:
            return draft
        self.evaluations += len(x)
        return guided_denoise(self.network, x, sigma, draft, square.sqrt())

    def _numbers(self, number: Callable[[Compartment], int], source: Tensor) -> Tensor:
        """Return number(compartment) of each row's source: [row]."""
        numbers = [number(compartment) for compartment in self.compartments.values()]
        return torch.tensor(numbers, device=source.device)[source]

    @staticmethod
    def _token_count(compartment: Compartment) -> int:
        return 0 if compartment.prompt is None else compartment.prompt.tokens.shape[1]


@dataclass(frozen=True)
class SourceDenoiser:
    """D_i of one source, as a callable."""

    compartments: Compartments
    index: int

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D_i(x; sigma), shaped as x [batch, ...], for sigma [batch]."""
        return self.compartments.rows(x, sigma, torch.full((len(x),), self.index, device=x.device))
