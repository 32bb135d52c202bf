"""The closed forms of one source: of the whole, of its classes, and out of fold for the training of its prompt."""

import torch
from torch import Tensor

from cdm_lightning.compartment import ClassForm, Compartment
from cdm_lightning.drafts import Drafts, LabelledDrafts, MixedDrafts
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.merging import groups_for, groups_of, merged
from cdm_lightning.pseudo_sources import PseudoSources
from cdm_lightning.public import Public
from cdm_lightning.seeding import stable_hash

IMAGES_PER_FINE_CLUSTER = 50


def fit_fine(x_0: Tensor, rank: int, clusters: int, *seed: str | int) -> Gaussians:
    """Fit clamp(n // 50, 1, clusters) Gaussians to a source, or to a class of it, by maximum likelihood.

    Args:
        x_0: [n, channel, height, width] in [-1, 1].
        rank: directions that a cluster keeps.
        clusters: at most.
        seed: names the draw behind k-means.
    """
    named, many = stable_hash(*seed, "closed form"), IMAGES_PER_FINE_CLUSTER
    return Gaussians.fit(x_0, seed=named, rank=rank, clusters=clusters, images_per_cluster=many)


def closed_form_of(fine: Gaussians, n: int, public: Public) -> Gaussians:
    """Return the closed form of n images from the Gaussians of their small clusters."""
    return merged(fine, n, groups_of(fine, groups_for([n])), public.closed_form, public.strength)


def class_form(fine: Gaussians, n: int, public: Public) -> ClassForm:
    """Return what is known of a class of n images from the Gaussians of its small clusters."""
    return ClassForm(n, closed_form_of(fine, n, public), fine)


def fit_untrained(x_0: Tensor, public: Public, clusters: int, *seed: str | int) -> Compartment:
    """Return the compartment of these images, without a prompt and without classes; see `fit_fine`."""
    fine = fit_fine(x_0, public.rank, clusters, *seed)
    return Compartment(len(x_0), closed_form_of(fine, len(x_0), public), fine)


def fit_classes(
    x_0: Tensor, labels: list[str], public: Public, clusters: int, seed: int, source: str
) -> dict[str, ClassForm]:
    """Fit the Gaussians of every class, at most `clusters` each; without labels there is none."""
    classes = {}
    for label in sorted(set(labels)):
        own = x_0[torch.tensor([name == label for name in labels])]
        classes[label] = class_form(fit_fine(own, public.rank, clusters, seed, source, label), len(own), public)
    return classes


def drafts_of_source(
    x_0: Tensor, keys: list[str], labels: list[str], public: Public, clusters: int, public_mix: float
) -> Drafts | LabelledDrafts | MixedDrafts:
    """Return out-of-fold drafts of one source's own images: a prompt must not learn to trust drafts that saw them.

    With `public_mix` above 0 they are drafts of the mixture with `public`; then there are no labels.
    """
    whole = _out_of_fold(PseudoSources.whole(x_0, keys), public, clusters)
    if public_mix:
        return MixedDrafts.of(whole, public.closed_form, public_mix)
    if not labels:
        return whole
    return LabelledDrafts(whole, _out_of_fold(PseudoSources.by_label(x_0, keys, labels), public, clusters))


def _out_of_fold(pseudo: PseudoSources, public: Public, clusters: int) -> Drafts:
    priors = [public.closed_form] * len(pseudo.groups())
    return Drafts.fit(pseudo, priors, public.strength, public.rank, [max(pseudo.sizes())], clusters)
