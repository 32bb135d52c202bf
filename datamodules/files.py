"""Images in files: all below a folder, or those that a CSV file lists."""

import csv
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePath

from PIL import Image, ImageOps

from cdm_lightning.errors import BadInput
from cdm_lightning.images import open_image
from datamodules.names import check_label, sample_key, slug
from datamodules.records import Collection, Record

SUFFIXES = (".png", ".jpg", ".jpeg")
COLUMNS = ("path", "source", "label")


def folder(input: str) -> Collection:
    """Return the PNG and JPEG images below a folder; the first folder below it is the source, the last one the label.

    Raises:
        BadInput: there are no images, one lies directly in `input`, or two folders would name one source.
    """
    root = Path(input)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise BadInput(f"'{input}' is no folder with {', '.join(SUFFIXES)} images in it")
    records = [_in_folder(root, PurePath(path)) for path in paths]
    _check_sources_distinct(root, {PurePath(path).parts[0] for path in paths})
    return Collection(records, sorted({record.label for record in records}))


def _in_folder(root: Path, path: PurePath) -> Record:
    if len(path.parts) == 1:
        raise BadInput(f"{root / path} lies directly in '{root}': put it in a folder that names its source or class")
    label = check_label(path.parent.name, str(root / path))
    key = sample_key(path.with_suffix("").as_posix())
    return Record(key, label, slug(path.parts[0]), path.as_posix(), partial(load_file, root / path))


def _check_sources_distinct(root: Path, names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in sorted(names):
        if slug(name) in seen:
            raise BadInput(
                f"folders '{seen[slug(name)]}' and '{name}' in '{root}' both name '{slug(name)}': rename one"
            )
        seen[slug(name)] = name


def list_(input: str) -> Collection:
    """Return the images that a CSV file `path,source,label` lists; relative paths start at the file's folder.

    Raises:
        BadInput: the file is missing, malformed or empty, or a relative path leaves its folder.
    """
    records = [_in_list(Path(input), number, row) for number, row in _rows(Path(input))]
    if not records:
        raise BadInput(f"'{input}' lists no image")
    return Collection(records, sorted({record.label for record in records}))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line and its columns, all of them there and not empty."""
    if not path.is_file():
        raise BadInput(f"'{path}' is no CSV file")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if sorted(reader.fieldnames or ()) != sorted(COLUMNS):
            raise BadInput(f"'{path}' must start with the line {','.join(COLUMNS)}")
        for row in reader:
            if None in row or not all(row.values()):
                raise BadInput(f"'{path}', line {reader.line_num}: {','.join(COLUMNS)} must be three texts, none empty")
            yield reader.line_num, row


def _in_list(file: Path, number: int, row: dict[str, str]) -> Record:
    where = f"'{file}', line {number}"
    path = os.path.normpath(row["path"])
    if PurePath(path).parts[0] == os.pardir:
        raise BadInput(f"{where}: {row['path']} leaves the folder of the list: move the file or give the absolute path")
    key = sample_key(PurePath(path.lstrip(os.sep)).with_suffix("").as_posix())
    label = check_label(row["label"], where)
    return Record(key, label, slug(row["source"]), row["path"], partial(load_file, file.parent / path))


def load_file(path: Path) -> Image.Image:
    """Decode a PNG or JPEG file.

    Raises:
        BadInput: the file cannot be read or decoded.
    """
    try:
        return ImageOps.exif_transpose(open_image(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be used: {error}") from error
