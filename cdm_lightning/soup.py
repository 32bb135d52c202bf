"""Diffusion Soup (Biggs et al. 2024, arXiv 2406.08431): the prompts of all sources averaged into one. A baseline.

The average of networks is not the denoiser of the mixture, so it is not exact; but it costs one network pass whatever
the number of sources, and a source can be left out of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from cdm_lightning.backbone import Backbone, freeze
from cdm_lightning.compartment import Compartment
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.denoiser import Network, denoise
from cdm_lightning.errors import BadInput
from cdm_lightning.prompts import Full, LoRA, Prompt, Tokens
from cdm_lightning.strategy import Strategy

State = Mapping[str, Tensor]
LABELS = "labels"  # the name of a prompt's label tokens


class Soup(Compartments):
    """Compartments whose network, below the switch, is one for all: the backbone with the average of the prompts.

    Strategy `draft`. On a guided backbone the network finishes the draft of the union; on a plain one there is no
    draft below the switch. At and above the switch D is the closed form of the union.

    Attributes:
        prompt: sum_i lambda_i prompt_i; see `averaged`.
    """

    prompt: Prompt

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
        prompts = checked(opened.compartments)
        soup.prompt = averaged(opened.backbone, prompts, list(opened.prior().values()))
        return soup

    def under(self, label: str) -> "Soup":
        """Return the soup under a class, weighed by the sources' numbers of images of it; see `Compartments.under`."""
        return Soup.of(super().under(label))

    @property
    def can_finish(self) -> bool:
        """Whether one pass of the network is D: it is, guided or not."""
        return True

    def composed(self, strategy: Strategy) -> ComposedDenoiser:
        """Return the denoiser of the soup; `strategy` is `draft`."""
        return SoupDenoiser(
            self, self.evidence(), self.prior(), strategy, self.sigma_switch, closed_form=self.law_above(strategy)
        )

    def finisher(self, rows: int) -> Network:
        """Return the network of `rows` images: the backbone with the averaged prompt."""
        first = torch.zeros(rows, dtype=torch.long, device=next(self.prompt.parameters()).device)
        label = torch.full_like(first, next(iter(self.compartments.values())).label)
        return type(self.prompt).network(self.backbone, [self.prompt], first, label)

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


def checked(compartments: Mapping[str, Compartment]) -> list[Prompt]:
    """Return the prompts, in their order.

    Raises:
        BadInput: not all sources have one, or they differ in kind or in their classes.
    """
    there = [own.prompt for own in compartments.values() if own.prompt is not None]
    without = [source for source, own in compartments.items() if own.prompt is None]
    if without:
        raise BadInput(
            f"the row 'soup' averages prompts, but source '{without[0]}' has none: leave out the row, or fit with "
            "model.compartment lora, full or tokens"
        )
    if len(kinds := sorted({prompt.kind for prompt in there})) > 1:
        raise BadInput(f"the row 'soup' averages prompts of one kind, but there are {' and '.join(kinds)}")
    classes = {source: sorted(own.classes) for source, own in compartments.items()}
    first, *others = classes
    other = next((source for source in others if classes[source] != classes[first]), None)
    if other is not None:
        raise BadInput(
            f"the row 'soup' averages class by class, but source '{first}' has {', '.join(classes[first]) or 'none'} "
            f"and source '{other}' has {', '.join(classes[other]) or 'none'}: leave out the row"
        )
    return there


def averaged(backbone: Backbone, prompts: Sequence[Prompt], shares: Sequence[float]) -> Prompt:
    """Return the frozen prompt sum_i lambda_i prompt_i, of at least one, for the shares lambda_i.

    LoRA: the addition sum_i lambda_i up_i down_i, exactly, as a LoRA of all ranks one after the other. Full copies: the
    mean of every parameter. Tokens: the mean of every token, in place of its own.

    Raises:
        BadInput: the prompts have different numbers of tokens.
    """
    kind, states = type(prompts[0]), [prompt.state_dict() for prompt in prompts]
    tensors = AVERAGES[kind](states, shares)
    prompt = kind.like(backbone, tensors)
    prompt.load_state_dict(tensors)
    freeze(prompt)
    return prompt.to(next(iter(tensors.values())).device)


def joined_ranks(states: Sequence[State], shares: Sequence[float]) -> dict[str, Tensor]:
    """Return `down` [sum of ranks, in] and lambda_i `up` [out, sum of ranks] by layer, and the mean of the labels."""
    joined: dict[str, Tensor] = {}
    for name in states[0]:
        matrices = [state[name] for state in states]
        if name == LABELS:
            joined |= mean([{LABELS: table} for table in matrices], shares)
        elif name.startswith("down."):
            joined[name] = torch.cat(matrices)
        else:
            joined[name] = torch.cat([share * up for share, up in zip(shares, matrices, strict=True)], dim=1)
    return joined


def mean(states: Sequence[State], shares: Sequence[float]) -> dict[str, Tensor]:
    """Return sum_i lambda_i of every tensor, summed in float64.

    Raises:
        BadInput: they are not of one shape.
    """
    found = {}
    for name, first in states[0].items():
        tensors = [state[name] for state in states]
        if any(tensor.shape != first.shape for tensor in tensors):
            raise BadInput("the row 'soup' averages token by token, but the prompts have different numbers of tokens")
        weighted = [share * tensor.double() for share, tensor in zip(shares, tensors, strict=True)]
        found[name] = torch.stack(weighted).sum(0).to(first.dtype)
    return found


AVERAGES: Mapping[type[Prompt], Callable[[Sequence[State], Sequence[float]], dict[str, Tensor]]] = {
    LoRA: joined_ranks,
    Full: mean,
    Tokens: mean,
}
