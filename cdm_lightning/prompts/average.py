"""The average of prompts: one network for all sources (Diffusion Soup, Biggs et al. 2024, arXiv 2406.08431).

It is not the denoiser of the mixture, so it is not exact; but it costs one network pass whatever the number of sources,
and is made anew of those that are chosen, so that a source can be left out of it.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cdm_lightning.backbone import Backbone, freeze
from cdm_lightning.prompts.full import Full
from cdm_lightning.prompts.head import Head
from cdm_lightning.prompts.lora import LoRA
from cdm_lightning.prompts.prompt import Prompt
from cdm_lightning.prompts.tokens import Tokens

State = Mapping[str, Tensor]
LABELS = "labels"  # the name of a prompt's label tokens


def unlike(prompts: Mapping[str, Prompt | None], classes: Mapping[str, Sequence[str]]) -> str | None:
    """Return in words what keeps the prompts of sources from being averaged; None if they can be.

    Args:
        prompts: by source, of at least one.
        classes: the class labels of each source.
    """
    there = {source: prompt for source, prompt in prompts.items() if prompt is not None}
    without = [source for source in prompts if source not in there]
    if without:
        return f"source '{without[0]}' has no prompt"
    kinds = sorted({prompt.kind for prompt in there.values()})
    if len(kinds) > 1:
        return f"the prompts are of kinds that cannot be averaged: {' and '.join(kinds)}"
    first, *others = there
    for other in others:
        if sorted(classes[other]) != sorted(classes[first]):
            mine, theirs = (", ".join(sorted(classes[source])) or "none" for source in (first, other))
            return f"classes are averaged one by one, but source '{first}' has {mine} and source '{other}' has {theirs}"
        if AVERAGES[type(there[first])] is mean and shapes(there[other]) != shapes(there[first]):
            return f"the prompts of the sources '{first}' and '{other}' are of different sizes"
    return None


def shapes(prompt: Prompt) -> dict[str, torch.Size]:
    """Return the shape of every parameter by name."""
    return {name: tensor.shape for name, tensor in prompt.state_dict().items()}


def averaged(backbone: Backbone, prompts: Sequence[Prompt], shares: Sequence[float]) -> Prompt:
    """Return the frozen prompt sum_i lambda_i prompt_i, of at least one and not `unlike`, for the shares lambda_i.

    LoRA: the addition sum_i lambda_i up_i down_i, exactly, as a LoRA of all ranks one after the other. Full copies
    and heads: the mean of every parameter. Tokens: the mean of every token, in place of its own.
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
    """Return sum_i lambda_i of every tensor, summed in float64."""
    found = {}
    for name, first in states[0].items():
        weighted = [share * state[name].double() for share, state in zip(shares, states, strict=True)]
        found[name] = torch.stack(weighted).sum(0).to(first.dtype)
    return found


AVERAGES: Mapping[type[Prompt], Callable[[Sequence[State], Sequence[float]], dict[str, Tensor]]] = {
    LoRA: joined_ranks,
    Full: mean,
    Head: mean,
    Tokens: mean,
}
