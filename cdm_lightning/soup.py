"""Diffusion Soup (Biggs et al. 2024, arXiv 2406.08431) as a row of `evaluate`: one network of averaged prompts.

On a guided backbone that is what the strategy `draft` is; a plain backbone has no draft to finish, so there it is a
baseline of its own.
"""

from typing import Self

from torch import Tensor

from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.denoiser import denoise
from cdm_lightning.errors import BadInput
from cdm_lightning.strategy import Strategy


class Soup(Compartments):
    """Compartments with a prompt each, whose network, below the switch, is one for all: that of the averaged prompts.

    Strategy `draft`. At and above the switch D is the closed form of the union.
    """

    @classmethod
    def of(cls, opened: Compartments) -> Self:
        """Return the soup of opened compartments.

        Raises:
            BadInput: not all have a prompt, of one kind and with the same classes.
        """
        soup = cls(
            opened.backbone,
            opened.compartments,
            opened.public,
            opened.guided,
            opened.sigma_switch,
            opened.preconditioning,
        )
        if soup.obstacle is not None:
            raise BadInput(f"the row 'soup' averages prompts, but {soup.obstacle}: leave out the row")
        return soup

    def under(self, label: str) -> "Soup":
        """Return the soup under a class, weighed by the sources' numbers of images of it; see `Compartments.under`."""
        return Soup.of(super().under(label))

    @property
    def obstacle(self) -> str | None:
        """What keeps one pass of the network from being D: prompts that cannot be averaged, or none."""
        return self.unlike_prompts

    def composed(self, strategy: Strategy) -> ComposedDenoiser:
        """Return the denoiser of the soup; `strategy` is `draft`."""
        return SoupDenoiser(
            self, self.evidence(), self.prior(), strategy, self.sigma_switch, closed_form=self.law_above(strategy)
        )

    def without_draft(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x; sigma) of a plain backbone."""
        self.evaluations += len(x)
        return denoise(self.preconditioning, self.finisher(len(x)), x, sigma)


class SoupDenoiser(ComposedDenoiser):
    """`draft`, but for a plain backbone below the switch, where there is no draft and so nothing to weigh."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x; sigma), shaped as x, for sigma [batch]; one level for all."""
        soup = self.denoisers
        if isinstance(soup, Soup) and not soup.guided and float(sigma[0]) < self.sigma_switch:
            return soup.without_draft(x, sigma)
        return super().__call__(x, sigma)
