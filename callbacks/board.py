"""What is given to the loggers: scalars to all of them, figures and tables to TensorBoard."""

from collections.abc import Mapping, Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cdm_lightning.text_tables import markdown

Layout = dict[str, dict[str, list[str | list[str]]]]


def boards(trainer: Trainer) -> list[SummaryWriter]:
    """Return the writer of every TensorBoard logger; of the first process alone, as the others have none."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def log_scalars(trainer: Trainer, group: str, values: Mapping[str, float], step: int) -> None:
    """Give `group/name` of every value to every logger."""
    for logger in trainer.loggers:
        logger.log_metrics({f"{group}/{name}": value for name, value in values.items()}, step=step)


def log_figure(trainer: Trainer, tag: str, figure: Figure, step: int) -> None:
    """Give a figure to every TensorBoard logger."""
    for board in boards(trainer):
        board.add_figure(tag, figure, step)


def log_text(trainer: Trainer, tag: str, markdown: str, step: int) -> None:
    """Give a text in Markdown to every TensorBoard logger."""
    for board in boards(trainer):
        board.add_text(tag, markdown, step)


def log_layout(trainer: Trainer, layout: Layout) -> None:
    """Give a layout of curves, {page: {chart: [kind, tags]}}, to every TensorBoard logger."""
    for board in boards(trainer):
        board.add_custom_scalars(layout)


def log_hyperparameters(
    trainer: Trainer, values: Mapping[str, str | int | float | bool], metrics: Sequence[str]
) -> None:
    """Give hyperparameters to every TensorBoard logger, beside the tags of the scalars that they shall explain."""
    for board in boards(trainer):
        assert board.file_writer is not None
        for summary in hparams(dict(values), dict.fromkeys(metrics, 0.0)):
            board.file_writer.add_summary(summary)


def log_table(trainer: Trainer, tag: str, corner: str, values: Tensor, names: Sequence[str], step: int) -> None:
    """Give a square matrix of numbers as a table, one row and one column per name."""
    rows = [[name, *(f"{value:.3f}" for value in row)] for name, row in zip(names, values.tolist(), strict=True)]
    log_text(trainer, tag, markdown([[corner, *names], *rows]), step)
