"""`report`, by command line. Oracles: what other commands say of the same store, the ledger, and the page read back."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cdm_lightning import ledger
from cdm_lightning.cli import main
from cdm_lightning.report_page import paragraph, table
from cdm_lightning.store import LEDGER, Store
from cdm_lightning.store_commands import details_data, listing_data
from datamodules import ShardDataModule
from tests.conftest import Fit

SHORT = ("--n", "6", "--steps", "4")


def percent(text: str) -> float:
    """Return the share that a page gives in percent."""
    assert text.endswith("%")
    return float(text[:-1]) / 100


class Page(HTMLParser):
    """What a page holds: its tables as rows of cells, its text, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.anchors: set[str] = set()
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attributes if name in ("src", "href")]
        self.anchors |= {value or "" for name, value in attributes if name == "id"}
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)


def written(store: Path, out: Path, *options: str) -> Page:
    assert main(["report", "--store", str(store), "--out", str(out), *SHORT, *options]) == 0
    return Page(out.read_text())


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """Return a copy of the store, and the page about all of it."""
    folder = tmp_path_factory.mktemp("report")
    place = Path(shutil.copytree(store, folder / "store"))
    return place, written(place, folder / "page.html", "--sources", "all")


def test_the_page_holds_all_that_it_shows(whole: tuple[Path, Page]) -> None:
    page = whole[1]
    pictures = [reference for reference in page.references if not reference.startswith("#")]
    assert len(pictures) == 6
    assert all(picture.startswith("data:image/png;base64,") for picture in pictures)
    assert {reference[1:] for reference in page.references if reference.startswith("#")} == page.anchors
    assert not page.tags & {"script", "link", "iframe", "object", "form"}


def test_what_it_says_of_sources_is_what_the_store_says(whole: tuple[Path, Page]) -> None:
    store, page = Store.open(whole[0]), whole[1]
    listed = listing_data(store)
    assert [row[:5] for row in page.tables[0][1:-1]] == [
        [row["source"], str(row["n"]), row["compartment"], str(row["steps"]), f"{row['bytes']:,}"] for row in listed
    ]
    assert [row[7] for row in page.tables[0][1:-1]] == [
        details_data(store, row["source"])["sha256"][:12] for row in listed
    ]
    total = sum(row["n"] for row in listed)
    assert page.tables[0][-1][:2] == ["all", f"{total:,}"]
    assert f"{len(listed)} owners with {total:,} images." in page.text
    assert "Every file is as it was made" in page.text


def test_shares_are_those_of_the_samples(whole: tuple[Path, Page], tmp_path: Path) -> None:
    store, page = whole
    options = ("--sources", "all", "--out", str(tmp_path / "samples"), *SHORT)
    assert main(["sample", "--store", str(store), *options]) == 0
    images = json.loads((tmp_path / "samples" / "credits.json").read_text())["images"]
    sources = Store.open(store).sources()
    prior = [Store.open(store).read_card(source).n for source in sources]
    for row, source, n in zip(page.tables[1][1:-1], sources, prior, strict=True):
        assert row[0] == source
        assert percent(row[2]) == pytest.approx(sum(image["credits"][source] for image in images) / 6, abs=6e-4)
        assert percent(row[4]) == pytest.approx(n / sum(prior), abs=6e-4)
    assert sum(percent(row[2]) for row in page.tables[1][1:-1]) == pytest.approx(1, abs=2e-3)
    assert page.tables[1][-1] == ["all", "", "100.0%", "", "100.0%", f"{sum(prior):,}"]


def test_attribution_is_that_of_validate(whole: tuple[Path, Page], tmp_path: Path) -> None:
    store, page = whole
    options = ("--sources", "all", "--extractor", "none", "--json", str(tmp_path / "found.json"))
    assert main(["validate", "--store", str(store), *options]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["attribution"]
    for place, row in enumerate(page.tables[2][1:]):
        assert float(row[4]) == pytest.approx(found["matrix"][place][place], abs=6e-4)
        assert percent(row[2]) == pytest.approx(found["accuracy_by_source"][place], abs=6e-4)
    assert f"{found['accuracy']:.1%} are credited most to their own" in page.text
    assert f"{found['cross_entropy']:.3f} nats" in page.text


def test_the_history_is_the_ledger(whole: tuple[Path, Page]) -> None:
    store, page = whole
    entries = ledger.read(store / LEDGER)
    assert [row[3] for row in page.tables[3][1:]] == [(entry.after or "")[:12] for entry in entries]
    assert [row[2] for row in page.tables[3][2:]] == [entry.source for entry in entries[1:]]
    assert "chain of hashes holds" in page.text


def test_the_same_arguments_give_the_same_bytes(whole: tuple[Path, Page], tmp_path: Path) -> None:
    for name in ("one", "other"):
        written(whole[0], tmp_path / name, "--sources", "[digit0, digit2]")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_forgotten_source_is_history_alone_and_old_pages_are_listed(
    whole: tuple[Path, Page], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copytree(whole[0], tmp_path / "store"))
    written(store, tmp_path / "before.html", "--sources", "all")
    assert main(["forget", "--store", str(store), "--source", "digit1"]) == 0
    assert str(tmp_path / "before.html") in capsys.readouterr().out
    page = written(store, tmp_path / "after.html", "--sources", "all")
    assert "digit1" not in [row[0] for table in page.tables[:2] for row in table]
    assert ["forgotten", "digit1"] in [row[1:3] for row in page.tables[3]]


def test_what_a_policy_does_not_grant_is_not_named(whole: tuple[Path, Page], tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("users: {ann: {allow: [digit0, digit2]}}\n")
    page = written(whole[0], tmp_path / "page.html", "--user", "ann", "--policy", str(policy))
    assert "digit1" not in (tmp_path / "page.html").read_text()
    assert "was not checked" in page.text


def test_an_audit_is_shown_and_must_be_of_these_compartments(
    whole: tuple[Path, Page], fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, audit = whole[0], tmp_path / "audit.json"
    few = ("--n", "4", "--members", "20", "--draws", "1", "--steps", "4", "--extractor", "none", "--json", str(audit))
    assert main(["audit", "--store", str(store), "--sources", "all", *few]) == 0
    page = written(store, tmp_path / "page.html", "--sources", "all", "--audit", str(audit))
    said = json.loads(audit.read_text())["rows"][0]["groups"]["composed"]["membership"]["auc"]["value"]
    routed = page.tables[4]
    assert routed[1][0] == "composed"
    assert routed[1][routed[0].index("AUC")].startswith(f"{said:.2f}")
    assert len(page.tables) == 4 + len(json.loads(audit.read_text())["rows"])
    good = json.loads(audit.read_text())
    canary = {"source": "digit0", "epsilon_at_least": 12.0, "closed_form": 8.0, "stated": 8.0, "delta": 1e-4}
    audit.write_text(json.dumps(good | {"canaries": [canary | {"releases": 40, "images": 20}]}))
    text = written(store, tmp_path / "page.html", "--sources", "all", "--audit", str(audit)).text
    assert text.count("stated is 8 at delta 0.0001; MORE than that, so something is wrong") == 2, "at the top too"
    capsys.readouterr()
    where = ["report", "--store", str(store), "--out", str(tmp_path / "other.html"), *SHORT]
    for damage in ({"verdict": 3}, {"groups": {}}, {"groups": {"composed": {}}}):
        audit.write_text(json.dumps(good | {"rows": [good["rows"][0] | damage]}))
        assert main([*where, "--sources", "all", "--audit", str(audit)]) == 2
        assert "is no report of `audit`" in capsys.readouterr().err
    audit.write_text(json.dumps(good))
    assert main([*where, "--sources", "[digit0]", "--audit", str(audit)]) == 2
    assert "is of other compartments than digit0" in capsys.readouterr().err
    audit.write_text("[]")
    assert main([*where, "--sources", "all", "--audit", str(audit)]) == 2
    assert "is no report of `audit`" in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()


def test_one_owner_is_credited_with_everything(whole: tuple[Path, Page], tmp_path: Path) -> None:
    text = written(whole[0], tmp_path / "page.html", "--sources", "[digit2]").text
    assert "1 owner with" in text
    assert text.count("There is one owner, who is credited with everything.") == 2
    assert "NO more than nothing" not in text


def test_owners_without_held_out_images_are_named(whole: tuple[Path, Page], workplace: Path, tmp_path: Path) -> None:
    keys = ShardDataModule(str(workplace / "shards")).used("digit1", "heldout")
    (tmp_path / "excluded").write_text("\n".join(keys))
    where = ["--root", str(workplace / "shards"), "--exclude", str(tmp_path / "excluded")]
    text = written(whole[0], tmp_path / "page.html", "--sources", "all", *where).text
    assert "Not measured: there are no held-out images of digit1; leave such owners out" in text


def test_without_a_switch_no_line_is_spoken_of(workplace: Path, fit: Fit, tmp_path: Path) -> None:
    options = ("--model.sigma_switch", "inf", "--model.backbone_steps", "2")
    assert fit(tmp_path / "store", "[digit0, digit1]", *options) == 0
    assert "red line" not in written(tmp_path / "store", tmp_path / "page.html", "--sources", "all").text


def test_what_is_no_html_is_shown_as_it_is() -> None:
    hostile = "<script>alert('x')</script> & \"y\""
    assert Page(paragraph(hostile)).text == hostile
    assert Page(paragraph(hostile)).tags == {"p"}
    assert Page(table(["a"], [["1"]], numbers=(0,))).tables == [[["a"], ["1"]]]


def test_a_broken_chain_and_faults_are_said(whole: tuple[Path, Page], tmp_path: Path) -> None:
    store = Path(shutil.copytree(whole[0], tmp_path / "store"))
    lines = (store / LEDGER).read_bytes().splitlines(keepends=True)
    (store / LEDGER).write_bytes(b"".join([*lines[:1], *lines[2:]]))
    page = written(store, tmp_path / "page.html", "--sources", "[digit2]")
    assert "the chain is broken" in page.text
    assert "Not everything is as it was made" in page.text
