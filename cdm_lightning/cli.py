"""The commands: parse, link, dispatch. Commands that need neither torch nor lightning do not import them."""

import errno
import logging
import signal
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cdm_lightning.errors import BadInput, Interrupted, did_you_mean
from cdm_lightning.json_option import check_json, check_place, write_json

MAKE_ROOM = "make room and run the same command again, which goes on from what is finished"
UNWRITABLE = {
    errno.ENOSPC: f"the disk is full; {MAKE_ROOM}",
    errno.EDQUOT: f"the disk quota is used up; {MAKE_ROOM}",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.EACCES: "there is no permission to; choose another place, or change the permissions",
    errno.ENOTDIR: "a part of the path is a file; choose another place",
    errno.EPERM: "there is no permission to; choose another place, or change the permissions",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "a link leads back to itself; choose another place",
}
USAGE = """usage: python -m cdm_lightning COMMAND [options]

Compartmentalized diffusion models: one compartment per data owner, composed at sampling time.

commands:
  fit       train the backbone on public if there is none, then fit every source into the store
  continual fit sources one after another, forget some, and measure the composed model every time
  shards    write the images of every source as WebDataset tars
  sample    sample images from chosen sources of a store, with each image's credits
  restore   fill in unknown pixels of given images, or denoise them, with each image's credits
  attribute say to which sources given images are credited, and how sure that is
  validate  measure the composed model of chosen sources of a store, on held-out images
  evaluate  compare every way to sample from a store, and other stores, in one table
  report    write one page for people: what a store holds, makes and credits, and its history
  audit     does a store reproduce training images, and can one tell who was in it
  forget    remove every trace of a source from a store, and say what is out of reach
  verify-forgotten
            check that a source is gone from a store, as if it had never been there
  collateral
            what forgetting did to the other sources: samples from the same noise, before and after
  store     list and show what a store holds, check every byte of it, export its backbone, add a compartment

`python -m cdm_lightning COMMAND --help` lists the options of a command.
"""


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code: 0 done, 2 bad input, above 128 a signal; a fault of ours raises."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    commands = {
        "fit": run_fit,
        "continual": run_continual,
        "shards": run_shards,
        "sample": run_sample,
        "restore": run_restore,
        "attribute": run_attribute,
        "validate": run_validate,
        "evaluate": run_evaluate,
        "report": run_report,
        "audit": run_audit,
        "forget": run_forget,
        "verify-forgotten": run_verify_forgotten,
        "collateral": run_collateral,
        "store": run_store,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise BadInput(f"unknown command '{arguments[0]}'{_command_hint(arguments[0], commands)}")
        commands[arguments[0]](arguments[1:])
    except (KeyboardInterrupt, Interrupted) as signalled:
        print("cdm_lightning: interrupted; run the same command again to go on", file=sys.stderr)
        return 128 + (signalled.signal if isinstance(signalled, Interrupted) else signal.SIGINT)
    except BadInput as error:
        print(f"cdm_lightning: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(f"cdm_lightning: error: cannot write{where}: {UNWRITABLE[error.errno]}", file=sys.stderr)
        return 2
    return 0


def _command_hint(word: str, commands: Iterable[str]) -> str:
    return did_you_mean(word, commands) or f": expected one of {', '.join(commands)}"


def run_fit(arguments: list[str]) -> None:
    """`fit`: see `cdm_lightning.fitting.fit`."""
    from cdm_lightning.fit_command import ConfiguredRecipe, fit_parser
    from cdm_lightning.fitting import fit
    from cdm_lightning.ranks import is_rank_zero, share_threads

    _silence_libraries()
    if not is_rank_zero():
        logging.getLogger().setLevel(logging.ERROR)
    parser = fit_parser()
    config = parser.parse_args(arguments)
    recipe = ConfiguredRecipe(parser, config)
    share_threads(recipe.processes_here)
    store = fit(recipe, Path(config.store), config.refit)
    if is_rank_zero():
        print(f"store: {store.path} ({len(store.sources())} compartments); TensorBoard: {store.runs}")


def run_continual(arguments: list[str]) -> None:
    """`continual`: see `cdm_lightning.continual_command`."""
    from cdm_lightning.continual_command import continual, continual_parser, picture_of
    from cdm_lightning.continual_table import table

    _silence_libraries()
    config = continual_parser().parse_args(arguments)
    check_json(config.json)
    record = continual(config)
    print(table(record))
    print(f"the record is in {config.json}, its picture in {picture_of(Path(config.json))}")


def run_shards(arguments: list[str]) -> None:
    """`shards`: see `datamodules.writer.write_shards`."""
    from cdm_lightning.shards_command import shards_parser, write_from

    write_from(shards_parser().parse_args(arguments))


def run_sample(arguments: list[str]) -> None:
    """`sample`: see `cdm_lightning.sample_command`."""
    from cdm_lightning.sample_command import generate, sample_parser

    config = sample_parser().parse_args(arguments)
    check_json(config.json)
    report = generate(config)
    print(f"{config.n} images, grid.png and credits.json are in {config.out}")
    _write_report(config.json, report)


def run_restore(arguments: list[str]) -> None:
    """`restore`: see `cdm_lightning.restoration`."""
    from cdm_lightning.restore_command import restore_images, restore_parser

    config = restore_parser().parse_args(arguments)
    check_json(config.json)
    report = restore_images(config)
    print(f"{len(report['images'])} restored images, grid.png and credits.json are in {config.out}")
    _write_report(config.json, report)


def run_attribute(arguments: list[str]) -> None:
    """`attribute`: see `cdm_lightning.credit_methods`.

    Raises:
        BadInput: after all is done, if an image could not be used.
    """
    from cdm_lightning.attribute_command import attribute, attribute_parser
    from cdm_lightning.attribution_report import said

    config = attribute_parser().parse_args(arguments)
    check_json(config.json)
    report = attribute(config)
    _write_report(config.json, report)
    print(said(report))
    if refused := report["refused"]:
        reasons = "".join(f"\n  {reason}" for reason in refused.values())
        raise BadInput(f"{len(refused)} of the images could not be used:{reasons}")


def run_validate(arguments: list[str]) -> None:
    """`validate`: see `cdm_lightning.measurement`."""
    from cdm_lightning.validate_command import table, validate, validate_parser

    config = validate_parser().parse_args(arguments)
    check_json(config.json)
    report = validate(config)
    print(table(report))
    _write_report(config.json, report)


def run_evaluate(arguments: list[str]) -> None:
    """`evaluate`: see `cdm_lightning.comparison`."""
    from cdm_lightning.comparison_table import terminal
    from cdm_lightning.evaluate_command import evaluate, evaluate_parser, table_name

    config = evaluate_parser().parse_args(arguments)
    check_json(config.json)
    report = evaluate(config)
    print(terminal(report))
    table = table_name(config.extractor)
    print(f"{table}.md, {table}.json and samples.png are in {config.out}")
    _write_report(config.json, report)


def run_report(arguments: list[str]) -> None:
    """`report`: see `cdm_lightning.report`."""
    from cdm_lightning.report_command import report_parser, write_page

    _silence_libraries()
    config = report_parser().parse_args(arguments)
    write_page(config)
    print(f"the page is {config.out}")


def run_audit(arguments: list[str]) -> None:
    """`audit`: see `cdm_lightning.audit`."""
    from cdm_lightning.audit_command import PICTURE, REPORT, audit, audit_parser
    from cdm_lightning.audit_table import table

    config = audit_parser().parse_args(arguments)
    check_json(config.json)
    report = audit(config)
    print(table(report))
    if config.out is not None:
        print(f"{PICTURE} and {REPORT} are in {config.out}")
    _write_report(config.json, report)


def run_forget(arguments: list[str]) -> None:
    """`forget`: see `cdm_lightning.forgetting`; torch and lightning are only imported to fit a source again."""
    from cdm_lightning.forget_command import forget, forget_parser, receipt

    config = forget_parser().parse_args(arguments)
    if sum(word.split("=")[0] == "--source" for word in arguments) > 1:
        raise BadInput("--source is given more than once: forget one source at a time")
    check_json(config.json)
    if config.sample is None and config.list is None:
        report = forget(config)
        print(receipt(report))
    else:
        from cdm_lightning.forget_samples_command import forget_samples
        from cdm_lightning.sample_receipt import receipt_of_samples

        _silence_libraries()
        report = forget_samples(config)
        print(receipt_of_samples(report))
    write_json(config.json, report)


def run_verify_forgotten(arguments: list[str]) -> None:
    """`verify-forgotten`: see `cdm_lightning.verify_forgotten`; only `--retrain` imports torch."""
    from cdm_lightning.verify_forgotten import as_json
    from cdm_lightning.verify_forgotten_command import said, verify_forgotten, verify_forgotten_parser

    config = verify_forgotten_parser().parse_args(arguments)
    check_json(config.json)
    if config.retrain:
        _silence_libraries()
    checks = verify_forgotten(config)
    write_json(config.json, as_json(checks))
    print(said(checks, config.source))


def run_collateral(arguments: list[str]) -> None:
    """`collateral`: see `cdm_lightning.collateral`."""
    from cdm_lightning.collateral_command import collateral_parser, compare, verdict

    config = collateral_parser().parse_args(arguments)
    check_json(config.json)
    check_place("picture", config.picture)
    report = compare(config)
    _write_report(config.json, report)
    print(verdict(report))


def run_store(arguments: list[str]) -> None:
    """`store ACTION`: see `cdm_lightning.store_command`."""
    from cdm_lightning.store_command import run

    run(arguments)


def _write_report(path: str | None, report: dict[str, Any]) -> None:
    """Write a report of sources of a store, and note in the store where it is."""
    from cdm_lightning.outputs import note_output
    from cdm_lightning.store import RUNS

    if path is not None:
        note_output(Path(report["store"]) / RUNS, Path(path), report["sources"])
    write_json(path, report)


def _silence_libraries() -> None:
    """Keep Lightning's remarks on hardware, workers and its own products out of the output."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*have no `val_dataloader`.*",
        "Found .* in eval mode.*",
        "Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)
