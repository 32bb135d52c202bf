"""Per-image denoising errors of a composed model, its parts and opponents, on the same noised images; differences.

The distance of the composed model's error from a monolith's is cut in two, as `cdm_lightning.distance` cuts the bound
|D - D*| <= sum_i w_i |D_i - D_i*| + |sum_i (w_i - w_i*) D_i*|. The ideal pairs of real images are not known; in their
place stands the image's true source k, whose weight is 1:

    posterior - monolith = (posterior - own) + (own - monolith)

The first part is the weights' half: D_k is replaced by sum_i w_i D_i. The second is the compartments' half: one
source's D_k against the monolith's D. At high noise even ideal weights are not 1 at the true source, so the weights'
half holds more than the fault of the weights: also what it costs not to know the source, which the monolith pays too.
How much that is, `closed_form_of_union - closed_form` tells above the switch, where weights and parts are one model.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.denoiser import per_image
from cdm_lightning.evaluation import BATCH
from cdm_lightning.evidence import GaussianEvidence
from cdm_lightning.intervals import mean_interval

KNOWN = ("closed_form", "own")
UNKNOWN = ("posterior", "draft", "uniform", "closed_form_of_union")
Rows = Mapping[str, Tensor]


@dataclass(frozen=True)
class Group:
    """Held-out images of one source, of one class of it or of all, and their noise.

    Attributes:
        source: the true source.
        label: the class under which everything is evaluated, or None.
        x_0: [n, channel, height, width] in [-1, 1].
        noise: of deviation 1, shaped as x_0; the same for every row and level.
    """

    source: str
    label: str | None
    x_0: Tensor
    noise: Tensor


def under(compartments: Compartments, label: str | None) -> Compartments:
    """Return the compartments under a class, or as they are."""
    return compartments if label is None else compartments.under(label)


def composed(compartments: Compartments) -> ComposedDenoiser:
    """Return the composed model whose evidence is tempered below the store's own switch, wherever D_i has its own."""
    evidence = {
        source: GaussianEvidence(form, compartments.public.calibration, compartments.public.sigma_switch)
        for source, form in compartments.closed_forms.items()
    }
    return ComposedDenoiser(compartments, evidence, compartments.prior(), "posterior", compartments.sigma_switch)


def denoised(model: ComposedDenoiser, own: Compartments, source: str, x: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Return what each row but the opponents makes of noised images x of a source, shaped as x."""
    weights = model.weights(x, sigma)
    parts = torch.stack([denoise(x, sigma) for denoise in own.values()])
    forms = torch.stack([form.denoise(x, sigma) for form in own.closed_forms.values()])
    true = model.sources.index(source)
    rows = {
        "closed_form": forms[true],
        "own": parts[true],
        "posterior": torch.einsum("sb,sb...->b...", weights, parts),
        "uniform": parts.mean(0),
        "closed_form_of_union": torch.einsum("sb,sb...->b...", weights, forms),
    }
    return rows | ({"draft": own.finish(x, sigma)} if own.obstacle is None else {})


def errors(group: Group, store: Compartments, opponents: Mapping[str, Compartments], sigmas: tuple[float, ...]) -> Rows:
    """Return the mean square error of every image [level, image] by row; an opponent's row has its label as name."""
    own = under(store, group.label)
    model = composed(own)
    single = {name: next(iter(under(opponent, group.label).values())) for name, opponent in opponents.items()}
    found: dict[str, list[Tensor]] = {}
    for sigma in sigmas:
        parts: dict[str, list[Tensor]] = {}
        for clean, noise in zip(group.x_0.split(BATCH), group.noise.split(BATCH), strict=True):
            level = clean.new_full((len(clean),), sigma)
            x = clean + per_image(level, clean) * noise
            rows = denoised(model, own, group.source, x, level)
            rows |= {name: denoise(x, level) for name, denoise in single.items()}
            for name, images in rows.items():
                parts.setdefault(name, []).append((images - clean).square().flatten(1).mean(1))
        for name, some in parts.items():
            found.setdefault(name, []).append(torch.cat(some))
    return {name: torch.stack(levels) for name, levels in found.items()}


def joined(groups: list[Rows]) -> Rows:
    """Return the errors [level, image] of the images of all groups, in the rows that every group has."""
    return {name: torch.cat([rows[name] for rows in groups], 1) for name in groups[0] if all(name in r for r in groups)}


def differences(rows: Rows, opponents: list[str]) -> dict[str, list[dict[str, float]]]:
    """Return mean paired differences by level, with intervals of 95 %, by images; without opponents the first one.

    The monolith is at each level the opponent of the least mean error there, which favours the monolith.
    """
    pairs = {"weights: posterior - own": (rows["posterior"], rows["own"])}
    if opponents:
        all_of_them = torch.stack([rows[name] for name in opponents])
        best = all_of_them.mean(2).argmin(0)
        monolith = all_of_them[best, torch.arange(len(best))]
        pairs["compartments: own - monolith"] = rows["own"], monolith
        pairs["posterior - monolith"] = rows["posterior"], monolith
    return {
        name: [asdict(mean_interval(difference)) for difference in one - other] for name, (one, other) in pairs.items()
    }
