"""What coalitions of sources are really worth to images: the denoising error of models that credit has no part in.

Two of them, in nats as in `cdm_lightning.coalitions`, over the same noise. `monoliths`: the closed form of a coalition
is fitted anew to the union of its images, and finished by the guided backbone; nothing is composed. `ratio`: the
sources' networks, composed by the weights of heads on backbone features (`cdm_lightning.evidence.RatioEvidence`), which
know nothing of closed forms; where there are no heads, above their highest knot, by the closed forms.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.evidence_ratios import KNOTS, PASSES, Ratios
from cdm_lightning.coalitions import ErrorGame
from cdm_lightning.compartment import Compartment
from cdm_lightning.compartments import Compartments
from cdm_lightning.contenders import backbone_alone
from cdm_lightning.denoiser import SIGMA_MAX
from cdm_lightning.evidence import RatioHead
from cdm_lightning.gaussians import MOST_CLUSTERS
from cdm_lightning.seeding import generator
from cdm_lightning.source_forms import fit_untrained

LOWEST, LEVELS, DRAWS = 0.1, 16, 4  # 64 draws of level and noise
RIDGE = 1e-2


@dataclass(frozen=True)
class Truth:
    """The worth of coalitions of fitted sources to images x_0 [image, channel, height, width].

    Attributes:
        opened: gives the backbone and all that was fitted on `public`.
        train: training images in [-1, 1] by source.
        x_0: the images, of no source's training images.
        seed: of the noise and the fits.
    """

    opened: Compartments
    train: Mapping[str, Tensor]
    x_0: Tensor
    seed: int

    def fitted(self, name: str, images: Tensor, clusters: int) -> Compartment:
        """Return a compartment of images, without a prompt."""
        return fit_untrained(images, self.opened.public, clusters, self.seed, name)

    def of(self, parts: Mapping[str, Compartment]) -> Compartments:
        """Return compartments on the backbone."""
        return self.opened.with_sources(parts)

    def sources(self) -> Compartments:
        """Return the sources."""
        return self.of({name: self.fitted(name, images, MOST_CLUSTERS) for name, images in self.train.items()})

    def monoliths(self, members: Tensor) -> Tensor:
        """Return the worth [coalition, image] of the monolith of each coalition [coalition, source]; of nobody: public.

        The closed form of a union has as many clusters at most as its sources have together.
        """
        values = []
        for row in members.tolist():
            names = [name for name, there in zip(self.train, row, strict=True) if there]
            if not names:
                values.append(self.worth(backbone_alone(self.opened, None, "cpu")))
                continue
            union = torch.cat([self.train[name] for name in names])
            values.append(
                self.worth(self.of({"union": self.fitted("+".join(names), union, MOST_CLUSTERS * len(names))}))
            )
        return torch.stack(values)

    def worth(self, alone: Compartments) -> Tensor:
        """Return minus the error of one denoiser in nats [image]."""
        width, total = math.log(SIGMA_MAX / LOWEST) / LEVELS, torch.zeros(len(self.x_0))
        (denoise,) = alone.values()
        for sigma, x, _ in self.noised():
            error = (denoise(x, sigma) - self.x_0).flatten(1).square().sum(1)
            total -= width * error / sigma.square() / DRAWS
        return total

    def noised(self) -> list[tuple[Tensor, Tensor, int]]:
        """Return (sigma [image], images at this level, number of the level) of all draws, those of `ErrorGame.of`."""
        width, found = math.log(SIGMA_MAX / LOWEST) / LEVELS, []
        for number in range(LEVELS):
            sigma = LOWEST * math.exp((number + 0.5) * width)
            for draw in range(DRAWS):
                noise = torch.randn(self.x_0.shape[1:], generator=generator(self.seed, "coalitions", number, draw))
                found.append((self.x_0.new_full((len(self.x_0),), sigma), self.x_0 + sigma * noise, number))
        return found

    def composed_by_ratio(self, sources: Compartments, public: Tensor, head_images: int) -> ErrorGame:
        """Return the game of the composed model with the weights of heads, trained on images of the source and public.

        Args:
            sources: the sources.
            public: training images of `public`.
            head_images: images of each source that its head is trained on.
        """
        alone = backbone_alone(self.opened, None, "cpu")
        game = ErrorGame.of(sources, alone, self.x_0, LOWEST, DRAWS, self.seed, LEVELS)
        ratios = Ratios(sources, public, head_images, self.seed)
        heads = [self._head(ratios, name, images[:head_images]) for name, images in self.train.items()]
        log_prior = torch.tensor(list(sources.prior().values())).log()[:, None]
        logit = game.logit.clone()
        for k, (sigma, x, number) in enumerate(self.noised()):
            if float(sigma[0]) <= float(KNOTS[-1]):
                seen = ratios.whitening(ratios.bare(x, sigma))
                logit[number, :-1, k % DRAWS] = torch.stack([head.logit(seen) for head in heads]) + log_prior
        return replace(game, logit=logit)

    @staticmethod
    def _head(ratios: Ratios, name: str, images: Tensor) -> RatioHead:
        own, public = ratios.whitening(ratios.noised(images, name, PASSES)), ratios.public
        with torch.inference_mode(False), torch.enable_grad():
            mine, other = (replace(one, value=one.value.clone(), sigma=one.sigma.clone()) for one in (own, public))
            return RatioHead.fit(mine, other, KNOTS, RIDGE)
