"""`data.public_mix`: a share of public in each source's training. Oracles: analytic mixtures, slow streams, bytes."""

import math
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdm_lightning.card import model_card
from cdm_lightning.cli import main
from cdm_lightning.drafts import MixedDrafts
from cdm_lightning.errors import StoreError
from cdm_lightning.gaussians import MOST_CLUSTERS, Gaussians
from cdm_lightning.packing import open_compartments
from cdm_lightning.pseudo_sources import PseudoSources
from cdm_lightning.public import Public
from cdm_lightning.source_forms import drafts_of_source
from cdm_lightning.store import Store
from datamodules import ShardDataModule
from datamodules.stages import mixed_stream
from tests.conftest import Fit
from tests.test_resume import Killed, compartment, kill_at, only_backbone, prompt

MIX = ("--data.public_mix", "0.3")
SHORT = ("--model.compartment", "tokens", "--model.tokens", "2", "--trainer.max_steps", "30")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The stream.


@given(st.integers(0, 60), st.integers(0, 19))
@settings(deadline=None, derandomize=True)
def test_places_of_public_are_those_of_the_exact_fraction(start: int, twentieths: int) -> None:
    """Oracle: whole numbers. The k-th place is public where floor(k share) grows; both streams go on without a gap."""

    def count_from(name: str):  # type: ignore[no-untyped-def]
        return lambda first: ((name, k) for k in range(first, 10_000))

    mixed = mixed_stream(count_from("own"), count_from("public"), twentieths / 20, start)
    expected, own, public = [], 0, 0
    for k in range(start + 40):
        if (k + 1) * twentieths // 20 > public:
            expected.append(("public", public))
            public += 1
        else:
            expected.append(("own", own))
            own += 1
    assert list(islice(mixed, 40)) == expected[start:]


def batches(
    root: Path,
    source: str,
    share: float,
    count: int,
    *,
    rank: int = 0,
    world: int = 1,
    first: int = 0,
    workers: int = 0,
) -> list[list[str]]:
    data = ShardDataModule(str(root), batch_size=10, seed=3, public_mix=share, num_workers=workers)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
    data.open(source, first)
    return [batch["key"] for batch in islice(iter(data.train_dataloader()), count)]


@pytest.fixture
def shards(workplace: Path, store: Path) -> Path:
    return workplace / "shards"


def test_every_batch_has_its_share_of_public_and_else_the_source_in_its_order(shards: Path) -> None:
    data = ShardDataModule(str(shards))
    mine, everybodys = set(data.used("digit3", "train")), set(data.used("public", "train"))
    mixed = batches(shards, "digit3", 0.3, 40)
    assert [sum(key in everybodys for key in batch) for batch in mixed] == [3] * 40
    own = [key for batch in mixed for key in batch if key in mine]
    plain = [key for batch in batches(shards, "digit3", 0.0, 28) for key in batch]
    assert own == plain
    public = [key for batch in mixed for key in batch if key in everybodys]
    assert len(set(public)) == 120, "none twice before all were drawn"
    others = [key for batch in batches(shards, "digit4", 0.3, 40) for key in batch if key in everybodys]
    assert public != others, "each source has an order of its own"
    assert batches(shards, "public", 0.3, 3) == batches(shards, "public", 0.0, 3), "the backbone's is left alone"


def test_ranks_workers_and_resumed_runs_see_one_sequence(shards: Path) -> None:
    together = batches(shards, "digit3", 0.35, 16)
    for rank in range(2):
        alone = batches(shards, "digit3", 0.35, 5, rank=rank, world=2, first=3, workers=2 * rank)
        assert alone == together[rank::2][3:]


# What a compartment stands for.


def gaussian(mean: float, variance: float, rest: float, angle: float) -> Gaussians:
    basis = torch.tensor([[[math.cos(angle)], [math.sin(angle)]]], dtype=torch.float64)
    parts = (torch.tensor(some, dtype=torch.float64) for some in ([0.0], [[mean, -mean]], [[variance]], [rest]))
    log_share, centre, along, outside = parts
    return Gaussians(log_share, centre, basis, along, outside, (2, 1, 1))


def log_normal(part: Gaussians, x: Tensor, sigma: float) -> Tensor:
    basis = part.basis[0]
    covariance = basis @ basis.T * (part.variance[0] - part.rest[0]) + (part.rest[0] + sigma**2) * torch.eye(2).double()
    return torch.distributions.MultivariateNormal(part.mean[0], covariance).log_prob(x)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.95])
@pytest.mark.parametrize("sigma", [0.02, 0.5, 4.0, 80.0])
def test_the_mixture_is_the_analytic_one(share: float, sigma: float) -> None:
    """Oracle: full covariance matrices; the denoiser is x + sigma^2 grad log density (Tweedie's formula)."""
    own, public = gaussian(0.6, 0.4, 0.05, 0.7), gaussian(-0.8, 0.9, 0.2, 2.0)
    x = (sigma + 1) * torch.randn(30, 2, generator=generator(0), dtype=torch.float64)
    x.requires_grad_()
    logs = [math.log(1 - share) + log_normal(own, x, sigma), math.log(share) + log_normal(public, x, sigma)]
    expected = torch.stack(logs).logsumexp(0)
    slope = torch.autograd.grad(expected.sum(), x)[0]
    image, level = x.detach().reshape(-1, 2, 1, 1), torch.full((30,), sigma, dtype=torch.float64)
    log_density, denoised = own.mixed_with(public, share).posterior(image, level)
    torch.testing.assert_close(log_density, expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(denoised.flatten(1), x.detach() + sigma**2 * slope, rtol=1e-7, atol=1e-8)


@pytest.fixture(scope="module")
def mixed(store: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of two sources whose prompts saw three public images in ten."""
    path = only_backbone(store, tmp_path_factory.mktemp("mixed") / "store")
    assert fit(path, "[digit0, digit1]", *SHORT, *MIX) == 0
    return path


def test_evidence_denoiser_and_prior_of_a_mixed_compartment(mixed: Path) -> None:
    """Oracle: the two closed forms, weighed by hand; at the switch and above the compartment is their mixture."""
    compartments = open_compartments(Store.open(mixed), "all", sigma_switch=None, device="cpu")
    own, public = compartments.compartments["digit0"].closed_form, compartments.public.closed_form
    x, level = 2 * torch.randn(9, 1, 8, 8, generator=generator(1)), torch.tensor([3.0, 5.0, 30.0]).repeat(3)
    logs = torch.stack([math.log(0.7) + own.log_density(x, level), math.log(0.3) + public.log_density(x, level)])
    share = logs.softmax(0)[:, :, None, None, None]
    expected = share[0] * own.denoise(x, level) + share[1] * public.denoise(x, level)
    torch.testing.assert_close(compartments["digit0"](x, level), expected, rtol=1e-4, atol=1e-5)
    evidence = compartments.evidence()["digit0"].log_density(x, level)
    torch.testing.assert_close(evidence, logs.logsumexp(0), rtol=1e-5, atol=1e-3)
    counts = {source: Store.open(mixed).read_card(source).n for source in ("digit0", "digit1")}
    assert compartments.prior() == {source: n / sum(counts.values()) for source, n in counts.items()}
    assert set(compartments.composed("routed").sources) == {"digit0", "digit1"}, (
        "public is no source and gets no credit"
    )


def test_drafts_in_training_are_the_mixture_without_the_fold_of_the_image(mixed: Path) -> None:
    """Oracle: the other folds' images of the source, fitted here, weighed against public's closed form by hand."""
    public: Public = open_compartments(Store.open(mixed), "all", sigma_switch=None, device="cpu").public
    x_0 = torch.rand(60, 1, 8, 8, generator=generator(2)) * 2 - 1
    keys = [f"image-{k}" for k in range(60)]
    drafts = drafts_of_source(x_0, keys, [], public, MOST_CLUSTERS, 0.3)
    assert isinstance(drafts, MixedDrafts)
    named = [*keys[:5], "somebody's", "nobody's"]
    x, sigma = torch.randn(7, 1, 8, 8, generator=generator(3)), torch.linspace(0.2, 1.5, 7)
    draft, n = drafts.guide(named, torch.zeros(7, dtype=torch.bool), x, sigma, generator(0))
    folds, pseudo = PseudoSources.whole(x[:, :0], named).fold, PseudoSources.whole(x_0, keys)
    for k, fold in enumerate(folds.tolist()):
        one, level = x[k : k + 1], sigma[k : k + 1]
        own = Gaussians.fit(
            x_0[pseudo.fold != fold], seed=0, public=public.closed_form, strength=public.strength, rank=16
        )
        odds = math.log(0.7 / 0.3) + own.log_density(one, level) - public.closed_form.log_density(one, level)
        share = odds.sigmoid()[:, None, None, None]
        expected = share * own.denoise(one, level) + (1 - share) * public.closed_form.denoise(one, level)
        torch.testing.assert_close(draft[k : k + 1], expected, rtol=1e-3, atol=1e-4)
    assert n.unique().tolist() == [max(int((pseudo.fold != fold).sum()) for fold in range(4))]


# Fits.


def test_a_mixed_compartment_does_not_depend_on_its_company(mixed: Path, store: Path, fit: Fit, tmp_path: Path) -> None:
    both = Path(shutil.copytree(mixed, tmp_path / "both"))
    shutil.rmtree(both / "compartments" / "digit1")
    alone, plain = (only_backbone(store, tmp_path / name) for name in ("alone", "plain"))
    assert fit(alone, "[digit0]", *SHORT, *MIX) == 0
    assert fit(plain, "[digit0]", *SHORT) == 0
    assert [path.name for path in (both / "compartments").iterdir()] == ["digit0"]
    assert compartment(both, "digit0") == compartment(alone, "digit0")
    tensors = [Store.open(path).read_compartment("digit0")[0] for path in (alone, plain)]
    assert tensors[0].keys() == tensors[1].keys(), "public's closed form is not stored again"
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]) == name.startswith("fine")


def test_a_mixed_fit_goes_on_where_it_was_killed(
    store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, disturbed = (only_backbone(store, tmp_path / name) for name in ("undisturbed", "disturbed"))
    assert fit(undisturbed, "[digit3]", *prompt("tokens"), *MIX) == 0
    with monkeypatch.context() as patch:
        kill_at(8, patch)
        with pytest.raises(Killed):
            fit(disturbed, "[digit3]", *prompt("tokens"), *MIX)
    begun = kill_at(-1, monkeypatch)
    assert fit(disturbed, "[digit3]", *prompt("tokens"), *MIX) == 0
    assert begun == list(range(6, 14))
    assert compartment(disturbed, "digit3") == compartment(undisturbed, "digit3")


def test_card_and_store_show_tell_the_share(mixed: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = Store.open(mixed).read_card("digit0")
    assert card.public_mix == card.settings["public_mix"] == 0.3
    assert "A share of 0.3 of its training images was drawn from `public`" in model_card(card)
    assert "public_mix" not in Store.open(store).read_card("digit0").settings
    assert main(["store", "show", "digit0", "--store", str(mixed)]) == 0
    assert "settings.public_mix" in capsys.readouterr().out


@pytest.mark.parametrize("share", [1.0, -0.5, math.nan, "0.3", None])
def test_a_share_that_is_none_is_refused(share: float | str | None, mixed: Path) -> None:
    card = Store.open(mixed).read_card("digit0")
    with pytest.raises(StoreError, match="the card of source 'digit0' is damaged: its public_mix is"):
        print(replace(card, settings={"public_mix": share}).public_mix)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (MIX, "data.public_mix is 0.3, the share of public in the training of a prompt: choose model.compartment"),
        ((*SHORT, *MIX, "--model.class_labels", "true"), "leave it 0 with model.class_labels"),
        (("--data.public_mix", "1"), "public_mix must be at least 0 and below 1, but is 1.0"),
        (("--data.public_mix", "-0.1"), "public_mix must be at least 0 and below 1, but is -0.1"),
    ],
)
def test_bad_input(
    options: tuple[str, ...], said: str, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "store", "[digit0]", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_store_that_grows_needs_public_to_mix_it_in(
    store: Path, shards: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = only_backbone(store, tmp_path / "grown")
    shutil.copytree(shards / "digit0", tmp_path / "shards" / "digit0")
    assert fit(grown, "[digit0]", *SHORT, *MIX, "--data.root", str(tmp_path / "shards")) == 2
    assert "no public source" in capsys.readouterr().err
