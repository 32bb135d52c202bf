"""The frozen backbone with the compartments that were opened: D_i for each source, many sources in one batch."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from cdm_lightning.backbone import Backbone
from cdm_lightning.compartment import Compartment
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.denoiser import Network, Preconditioning, denoise, guided_denoise, single
from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.evidence import GaussianEvidence
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.merging import groups_for, groups_of, images_behind, images_in, merged, union_of
from cdm_lightning.prompts import Prompt, averaged, unlike
from cdm_lightning.public import Public
from cdm_lightning.strategy import Strategy

AT_ONCE = 128  # rows of one pass: with more, the features of a wide network leave the cache of a CPU


class Compartments(Mapping[str, "SourceDenoiser"]):
    """The denoisers D_i by source: the closed form at and above `sigma_switch`, the network below it.

    Args:
        backbone: the frozen network.
        compartments: by source; their order is the order of `rows`.
        public: what was fitted on `public`.
        guided: whether the network finishes drafts, or denoises alone.
        sigma_switch: inf turns the closed-form start off.
        preconditioning: what the network was trained with.

    Attributes:
        closed_forms: G_i by source; with `public`'s share, where a prompt was trained on a mixture with it.
        evaluations: network evaluations so far, counted per image.
    """

    def __init__(
        self,
        backbone: Backbone,
        compartments: Mapping[str, Compartment],
        public: Public,
        guided: bool,
        sigma_switch: float,
        preconditioning: Preconditioning,
    ) -> None:
        self.backbone, self.compartments, self.public = backbone, dict(compartments), public
        self.guided, self.sigma_switch, self.preconditioning = guided, single(sigma_switch), preconditioning
        self.closed_forms = {source: own.target(public.closed_form) for source, own in self.compartments.items()}
        self.evaluations = 0

    def under(self, label: str) -> "Compartments":
        """Return the compartments of the sources that have this class, each under it.

        Then priors are shares of the class, p(i | c), evidence and denoisers are those of the class in each source.

        Raises:
            BadInput: no source has it.
        """
        known = sorted({name for compartment in self.compartments.values() for name in compartment.classes})
        if label not in known:
            names = ", ".join(known) or "none: fit with model.class_labels true"
            raise BadInput(f"no chosen source has the class '{label}'; there are {names}{did_you_mean(label, known)}")
        chosen = {source: own.under(label) for source, own in self.compartments.items() if label in own.classes}
        return self.with_sources(chosen)

    def with_sources(self, compartments: Mapping[str, Compartment]) -> "Compartments":
        """Return other compartments on the same backbone, with the same settings."""
        return Compartments(
            self.backbone, compartments, self.public, self.guided, self.sigma_switch, self.preconditioning
        )

    def composed(self, strategy: Strategy) -> ComposedDenoiser:
        """Return the composed denoiser of these sources, with the closed forms' evidence."""
        law = self.law_above(strategy)
        owner = self.owner_in_mixture() if law is not None and strategy == "routed" else None
        return ComposedDenoiser(self, self.evidence(), self.prior(), strategy, self.sigma_switch, law, owner)

    def credited(self) -> ComposedDenoiser:
        """Return the model whose weights credit images: the same whatever `sigma_switch` they were sampled with.

        Evidence is tempered up to the switch that `public` was fitted for at least, so credits at the floor are too.
        """
        switch = max(self.sigma_switch, self.public.sigma_switch)
        evidence = {source: replace(one, sigma_switch=switch) for source, one in self.evidence().items()}
        return ComposedDenoiser(self, evidence, self.prior(), "posterior", switch)

    def law_above(self, strategy: Strategy) -> Gaussians | None:
        """Return the mixture that a strategy samples from above the switch, if it is one."""
        if strategy == "draft":
            return self.union
        return self.mixture if strategy in ("routed", "posterior") else None

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
            source: GaussianEvidence(closed_form, self.public.calibration, self.sigma_switch)
            for source, closed_form in self.closed_forms.items()
        }

    def rows(self, x: Tensor, sigma: Tensor, source: Tensor) -> Tensor:
        """Return D_source(x; sigma) row by row: x [row, ...], sigma [row], source [row] (index in order)."""
        denoised = torch.empty_like(x)
        above = sigma >= self.sigma_switch
        denoised[above] = self.drafts(x[above], sigma[above], source[above])
        group = self._groups().to(source.device)[source]
        for number in group[~above].unique().tolist():
            mine = (~above & (group == number)).nonzero()[:, 0]
            for some in mine.split(AT_ONCE if x.device.type == "cpu" else len(x)):
                denoised[some] = self._network_rows(x[some], sigma[some], source[some])
        return denoised

    def _groups(self) -> Tensor:
        """Return a number [source] that is equal where rows can go through the network together."""
        keys: list[Hashable] = [None if own.prompt is None else own.prompt.batch_key for own in self._parts()]
        return torch.tensor([keys.index(key) for key in keys])

    def _network_rows(self, x: Tensor, sigma: Tensor, source: Tensor) -> Tensor:
        """Return `rows` of sources of one group, by one pass of the network."""
        network = self._network(source)
        self.evaluations += len(x)
        if not self.guided:
            return denoise(self.preconditioning, network, x, sigma)
        n = torch.tensor([own.n for own in self._parts()], device=source.device)[source]
        draft, error = self.drafts(x, sigma, source), self.public.error.at(sigma, n)
        return guided_denoise(self.preconditioning, network, x, sigma, draft, error)

    def _network(self, source: Tensor) -> Network:
        """Return F in which every row has its own source's prompt and label; the sources are of one group."""
        chosen, row = source.unique(return_inverse=True)
        parts = [self._parts()[i] for i in chosen.tolist()]
        prompts = [own.prompt for own in parts if own.prompt is not None]
        if not prompts:
            return self.backbone
        label = torch.tensor([own.label for own in parts], device=source.device)[row]
        network: Network = type(prompts[0]).network(self.backbone, prompts, row, label)
        return network

    def _parts(self) -> list[Compartment]:
        return list(self.compartments.values())

    def drafts(self, x: Tensor, sigma: Tensor, source: Tensor) -> Tensor:
        """Return the closed form G_source(x; sigma) row by row."""
        draft, closed_forms = torch.empty_like(x), list(self.closed_forms.values())
        for i in source.unique().tolist():
            mine = source == i
            draft[mine] = closed_forms[i].denoise(x[mine], sigma[mine])
        return draft

    @property
    def obstacle(self) -> str | None:
        """What keeps one pass of the network from finishing the draft of all sources, in words; None if it can.

        It can if the backbone is guided, and either no source has a prompt or all have prompts that can be averaged.
        """
        if not self.guided:
            return "the backbone is not guided"
        return self.unlike_prompts if any(own.prompt is not None for own in self._parts()) else None

    @cached_property
    def unlike_prompts(self) -> str | None:
        """What keeps the prompts of the sources from being averaged; see `unlike`."""
        prompts = {source: own.prompt for source, own in self.compartments.items()}
        return unlike(prompts, {source: list(own.classes) for source, own in self.compartments.items()})

    @cached_property
    def union(self) -> Gaussians:
        """The closed form of all images of these sources, merged from those of each as if they were one source's.

        With `public`'s share, where prompts were trained on a mixture with it.
        """
        own, (fine, group) = self._parts(), self._together
        total, mixed = sum(part.n for part in own), sum(part.n * part.public_mix for part in own)
        public = self.public.closed_form.to(fine.mean.device)
        images = images_in([part.fine for part in own], [part.n for part in own], group) if mixed else total
        closed_form = merged(fine, images, group, public, self.public.strength)
        return closed_form.mixed_with(public, mixed / total) if mixed else closed_form

    @cached_property
    def mixture(self) -> Gaussians:
        """The exact mixture of the closed forms, sum_i lambda_i G_i; nothing in it is merged."""
        return union_of(list(self.closed_forms.values()), [own.n for own in self._parts()])

    def owner_in_mixture(self) -> Tensor:
        """Return the index [cluster] of the source that each cluster of `mixture` is of."""
        clusters = torch.tensor([len(form.mean) for form in self.closed_forms.values()])
        return torch.arange(len(clusters)).repeat_interleave(clusters)

    @cached_property
    def _images_behind(self) -> tuple[Tensor, Tensor]:
        """Numbers of images behind `union`, and the share [group, number] of each group that has so many."""
        own, device = self._parts(), self.union.mean.device
        numbers, share = images_behind([part.fine for part in own], [part.n for part in own], self._together[1])
        return numbers.to(device), share.to(device, self.union.mean.dtype)

    @cached_property
    def _together(self) -> tuple[Gaussians, Tensor]:
        """The fine clusters of all sources, without `public`'s share, and the group of `union` that each belongs to."""
        own = self._parts()
        fine = union_of([part.fine for part in own], [part.n * (1 - part.public_mix) for part in own])
        return fine, groups_of(fine, groups_for([part.n for part in own]))

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D guided by the draft of the union, for one sigma for all; at and above the switch the draft."""
        log_joint, draft = self.union.explain(x, sigma)
        if float(sigma[0]) >= self.sigma_switch:
            return draft
        self.evaluations += len(x)
        error = self._error_of_union(log_joint, sigma)
        return guided_denoise(self.preconditioning, self.finisher(len(x)), x, sigma, draft, error)

    def _error_of_union(self, log_joint: Tensor, sigma: Tensor) -> Tensor:
        """Return the error [batch] of the union's draft: the root of the mean square over the images behind it."""
        numbers, share = self._images_behind
        weight = share.T @ log_joint[: len(share)].softmax(0)
        errors = torch.stack([self.public.error.at(sigma, n.expand_as(sigma)) for n in numbers])
        return (weight * errors.square()).sum(0).sqrt()

    def finisher(self, rows: int) -> Network:
        """Return the network that finishes the union's draft of `rows` images: with the average of the prompts."""
        if self.average is None:
            return self.backbone
        first = torch.zeros(rows, dtype=torch.long, device=self.union.mean.device)
        label = torch.full_like(first, self._parts()[0].label)
        network: Network = type(self.average).network(self.backbone, [self.average], first, label)
        return network

    @cached_property
    def average(self) -> Prompt | None:
        """The prompt sum_i lambda_i prompt_i, if the sources have prompts."""
        prompts = [own.prompt for own in self._parts() if own.prompt is not None]
        return averaged(self.backbone, prompts, list(self.prior().values())) if prompts else None


@dataclass(frozen=True)
class SourceDenoiser:
    """D_i of one source, as a callable."""

    compartments: Compartments
    index: int

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D_i(x; sigma), shaped as x [batch, ...], for sigma [batch]."""
        return self.compartments.rows(x, sigma, torch.full((len(x),), self.index, device=x.device))
