"""Class labels: a compartment's own classes, asked for by name."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor

from cdm_lightning.cli import main
from cdm_lightning.drafts import Drafts, LabelledDrafts
from cdm_lightning.gaussians import Gaussians, Strength
from cdm_lightning.packing import open_compartments
from cdm_lightning.prompts import NO_LABEL
from cdm_lightning.pseudo_sources import FOLDS, PseudoSources
from cdm_lightning.store import Store
from tests.conftest import Fit
from tests.decoding import decode_image

SHAPE = (1, 4, 4)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled_drafts(n: int = 60) -> tuple[LabelledDrafts, Tensor, list[str], list[str], Gaussians]:
    labels = ["cat" if k % 3 else "dog" for k in range(n)]
    x_0 = (
        0.3 * torch.randn(n, *SHAPE, generator=generator(0))
        + torch.tensor([float(k % 3 > 0) for k in range(n)])[:, None, None, None]
    )
    keys = [f"image-{k}" for k in range(n)]
    public = Gaussians.fit(torch.randn(80, *SHAPE, generator=generator(1)), seed=0, rank=4)
    whole, by_class = PseudoSources.whole(x_0, keys), PseudoSources.by_label(x_0, keys, labels)
    fitted = [
        Drafts.fit(pseudo, [public] * len(pseudo.groups()), Strength(), 4, [max(pseudo.sizes())])
        for pseudo in (whole, by_class)
    ]
    return LabelledDrafts(fitted[0], fitted[1]), x_0, keys, labels, public


def test_a_labelled_image_is_guided_by_its_class_without_its_own_fold() -> None:
    """Oracle: the closed form of the other folds' images of the class (of all classes without a label), fitted here."""
    drafts, x_0, keys, labels, public = labelled_drafts()
    rows = torch.tensor([0, 1, 2, 3, 10, 30])
    labelled, sigma = torch.tensor([True, True, False, True, False, True]), torch.linspace(0.1, 0.9, 6)
    x = x_0[rows] + sigma[:, None, None, None] * torch.randn(6, *SHAPE, generator=generator(2))
    draft, n = drafts.guide([keys[int(row)] for row in rows], labelled, x, sigma, generator(3))
    fold = drafts.whole.pseudo.fold
    for k, row in enumerate(rows.tolist()):
        others = [j for j in range(len(keys)) if fold[j] != fold[row] and (not labelled[k] or labels[j] == labels[row])]
        own = Gaussians.fit(x_0[others], seed=0, public=public, strength=Strength(), rank=4)
        expected = own.denoise(x[k : k + 1], sigma[k : k + 1])[0]
        torch.testing.assert_close(draft[k], expected, rtol=1e-4, atol=1e-5)
        if labelled[k]:
            assert int(n[k]) == len(others)
        else:
            assert int(n[k]) == max(int((fold != f).sum()) for f in range(FOLDS))


def test_closed_forms_of_classes_are_those_of_their_images_alone(parts: Path) -> None:
    compartments = open_compartments(Store.open(parts), "all", sigma_switch=None, device="cpu")
    for source, compartment in compartments.compartments.items():
        counts = Store.open(parts).read_card(source).class_counts
        assert {label: form.n for label, form in compartment.classes.items()} == counts
        assert len(counts) == 10
    under = compartments.under("digit3")
    total = sum(Store.open(parts).read_card(source).class_counts["digit3"] for source in compartments)
    assert under.prior() == {
        source: Store.open(parts).read_card(source).class_counts["digit3"] / total for source in compartments
    }


def test_a_digit_that_is_asked_for_is_what_is_sampled(parts: Path, tmp_path: Path) -> None:
    """Oracle: a support vector machine that was trained on the real digits."""
    digits = load_digits()
    judge = SVC().fit(digits.data, digits.target)
    for digit in (3, 7):
        out = tmp_path / str(digit)
        command = ["sample", "--store", str(parts), "--sources", "all", "--label", f"digit{digit}", "--n", "50"]
        assert main([*command, "--out", str(out)]) == 0
        images = [
            decode_image(path.read_bytes(), (1, 8, 8)).flatten().numpy() for path in sorted(out.glob("[0-9]*.png"))
        ]
        judged = judge.predict(np.stack(images).astype(float) * 16 / 255)
        assert (judged == digit).mean() >= 0.8
        assert json.loads((out / "credits.json").read_text())["label"] == f"digit{digit}"


def test_a_class_that_nobody_has_is_told(parts: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--sources", "all", "--label", "digit33", "--out", os.devnull + "/x"]
    assert main(["sample", "--store", str(parts), *command]) == 2
    assert "no chosen source has the class 'digit33'" in capsys.readouterr().err
    assert main(["sample", "--store", str(store), *command]) == 2
    assert "there are none: fit with model.class_labels true" in capsys.readouterr().err


def test_labels_are_dropped_as_often_as_asked_and_named_as_the_prompt_names_them(workplace: Path, store: Path) -> None:
    from cdm_lightning.fit_command import ConfiguredRecipe, fit_parser

    parser = fit_parser()
    options = ["--model.class_labels", "true", "--model.label_dropout", "0.25"]
    module = ConfiguredRecipe(parser, parser.parse_args(["--config", str(workplace / "tiny.yaml"), *options])).module()
    assert module.draw_labels(["b", "a"], generator(0)).tolist() == [NO_LABEL, NO_LABEL], "without classes no labels"
    module.classes = ["a", "b"]
    drawn = module.draw_labels(["a", "b"] * 2000, generator(0))
    dropped = drawn == NO_LABEL
    assert abs(float(dropped.float().mean()) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert drawn[::2].unique().tolist() == [NO_LABEL, 1]
    assert drawn[1::2].unique().tolist() == [NO_LABEL, 2]


@pytest.mark.parametrize("kind", ["tokens", "lora", "head", "full"])
def test_label_tokens_are_trained_and_kept(kind: str, workplace: Path, fit: Fit, tmp_path: Path) -> None:
    options = ("--data.split", "random:2", "--data.root", str(tmp_path / "shards"), "--model.class_labels", "true")
    prompt = ("--model.compartment", kind, "--trainer.max_steps")
    labels = []
    for steps in ("1", "12"):
        assert fit(tmp_path / "store", "[part0]", *options, *prompt, steps) == 0
        labels.append(Store.open(tmp_path / "store").read_compartment("part0")[0]["prompt.labels"])
    assert labels[0].shape == (11, 3, 1, 16)
    assert (labels[1] - labels[0]).abs().amax((1, 2, 3)).min() > 0, "12 steps of 16 images tell every label"
    compartments = open_compartments(Store.open(tmp_path / "store"), "all", sigma_switch=None, device="cpu")
    x, sigma = torch.randn(2, 1, 8, 8, generator=generator(0)), torch.full((2,), 0.3)
    with torch.inference_mode():
        denoised = [c["part0"](x, sigma) for c in (compartments, *(compartments.under(f"digit{k}") for k in (1, 2)))]
    assert min(float((a - b).abs().max()) for a, b in zip(denoised, denoised[1:] + denoised[:1], strict=True)) > 1e-3
