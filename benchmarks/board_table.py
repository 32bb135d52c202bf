"""The scores that a fit logged to TensorBoard, as tables: over the training of the backbone, and by number of sources.

python -m benchmarks.board_table --store stores/cifar
"""

import argparse
from collections import defaultdict
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cdm_lightning.text_tables import markdown

GROUPS = {"backbone": ("in_training",), "composed": ("composed", "newest_source")}


def logged(run: Path, group: str) -> dict[str, dict[int, float]]:
    """Return every score of a group by name, {step: value}; of a step that was logged twice, the later one."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(f"{group}/")]
    return {tag.removeprefix(f"{group}/"): {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


def table(scores: dict[str, dict[int, float]]) -> str:
    """Return scores as Markdown: a column per extractor and number of images, KID with its deviation."""
    cells: dict[str, dict[int, str]] = defaultdict(dict)
    for name, values in scores.items():
        metric, seen_by = name.split("@")
        for step, value in values.items():
            if metric == "kid":
                deviation = scores[f"kid_deviation@{seen_by}"][step]
                cells[f"KID@{seen_by}"][step] = f"{value:.4f} ± {deviation:.4f}"
            elif metric in ("frechet", "fid"):
                title = "FID" if metric == "fid" else "Frechet"
                cells[f"{title}@{seen_by}"][step] = f"{value:.1f}"
            elif metric in ("precision", "recall"):
                cells[f"{metric}@{seen_by}"][step] = f"{value:.2f}"
    lines = [["step", *cells]]
    for step in sorted({step for column in cells.values() for step in column}):
        lines.append([str(step), *(column.get(step, "") for column in cells.values())])
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    store: Path = parser.parse_args().store
    for run, groups in GROUPS.items():
        for group in groups:
            scores = logged(store / "runs" / run, group) if (store / "runs" / run).is_dir() else {}
            if scores:
                print(f"{run}, {group}\n\n{table(scores)}\n")


if __name__ == "__main__":
    main()
