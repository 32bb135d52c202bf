"""Images in files: all below a folder, or those that a CSV file lists."""

import csv
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import NoReturn

from PIL import Image

from cdm_lightning.errors import BadInput
from cdm_lightning.images import open_image
from datamodules.names import checked_slug, sample_key
from datamodules.records import Collection, Record

SUFFIXES = (".png", ".jpg", ".jpeg")
MACOS = "__MACOSX"  # of its archives: a file of attributes, named like an image, beside each image
COLUMNS = ("path", "source", "label")


def folder(input: str) -> Collection:
    """Return the PNG and JPEG images below a folder; the first folder below it is the source, the last one the label.

    Symbolic links are refused wherever they lead: one owner's folder must not be able to point at another's files.

    Raises:
        BadInput: there are no images, one lies directly in `input` or is a link, a name is none for a source or
            class, or two folders would name one source.
    """
    root = Path(input)
    paths = sorted(path.relative_to(root).as_posix() for path in _images_below(root)) if root.is_dir() else []
    if not paths:
        raise BadInput(f"'{input}' is no folder with {', '.join(SUFFIXES)} images in it")
    records = [_in_folder(root, PurePath(path)) for path in paths]
    _check_sources_distinct((PurePath(path).parts[0], f"folder '{root / PurePath(path).parts[0]}'") for path in paths)
    return Collection(records, sorted({record.label for record in records}))


def _images_below(root: Path) -> Iterator[Path]:
    """Yield the images in a folder and inside it; what is hidden (`.thumbnails`, `._cat.png`) is nobody's image."""
    for place, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name != MACOS]
        images = [name for name in names if PurePath(name).suffix.lower() in SUFFIXES and not name.startswith(".")]
        for name in (*folders, *images):
            if Path(place, name).is_symlink():
                raise BadInput(
                    f"{Path(place, name)} is a symbolic link: put the files themselves there, or name them in a list "
                    "(from list)"
                )
        yield from (Path(place, name) for name in images)


def _refuse(error: OSError) -> NoReturn:
    raise BadInput(f"{error.filename} cannot be read ({error.strerror}): make it readable") from error


def _in_folder(root: Path, path: PurePath) -> Record:
    if len(path.parts) == 1:
        raise BadInput(f"{root / path} lies directly in '{root}': put it in a folder that names its source or class")
    source = checked_slug(path.parts[0], "source", str(root / path))
    label = checked_slug(path.parent.name, "class", str(root / path))
    key = sample_key(path.with_suffix("").as_posix())
    return Record(key, label, source, path.as_posix(), partial(load_file, root / path))


def _check_sources_distinct(named: Iterable[tuple[str, str]]) -> None:
    """Raise BadInput if two names, each with the place where it stands, name one source: two owners must not merge."""
    seen: dict[str, tuple[str, str]] = {}
    for name, place in named:
        other, other_place = seen.setdefault(checked_slug(name, "source", place), (name, place))
        if other != name:
            raise BadInput(
                f"{other_place} and {place} both name source '{checked_slug(name, 'source', place)}', as '{other}' and "
                f"'{name}': write one owner's name in one way, or rename one"
            )


def list_(input: str) -> Collection:
    """Return the images that a CSV file `path,source,label` lists; relative paths start at the file's folder.

    Raises:
        BadInput: the file is missing, malformed or empty, a relative path leaves its folder (by .. or through a
            symbolic link), a name is none for a source or class, or one source is written in two ways.
    """
    rows = list(_rows(Path(input)))
    if not rows:
        raise BadInput(f"'{input}' lists no image")
    records = [_in_list(Path(input), number, row) for number, row in rows]
    _check_sources_distinct((row["source"], f"'{input}', line {number}") for number, row in rows)
    return Collection(records, sorted({record.label for record in records}))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line and its columns, all of them there and not empty."""
    if not path.is_file():
        raise BadInput(f"'{path}' is no CSV file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from _checked_rows(csv.DictReader(file), path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"'{path}' cannot be read ({error}): it must be a CSV file in UTF-8") from error


def _checked_rows(reader: "csv.DictReader[str]", path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    if sorted(reader.fieldnames or ()) != sorted(COLUMNS):
        raise BadInput(f"'{path}' must start with the line {','.join(COLUMNS)}")
    for row in reader:
        if None in row or not all(row.values()):
            raise BadInput(f"'{path}', line {reader.line_num}: {','.join(COLUMNS)} must be three texts, none empty")
        yield reader.line_num, row


def _in_list(file: Path, number: int, row: dict[str, str]) -> Record:
    where = f"'{file}', line {number}"
    path = _listed_path(file, row["path"], where)
    source = checked_slug(row["source"], "source", where)
    label = checked_slug(row["label"], "class", where)
    key = sample_key(PurePath(path.lstrip(os.sep)).with_suffix("").as_posix())
    return Record(key, label, source, row["path"], partial(load_file, file.parent / path))


def _listed_path(file: Path, text: str, where: str) -> str:
    """Return a path of a list, normalized; a relative one leads to a file below the list's folder."""
    path = os.path.normpath(text)
    if "\0" in path or not PurePath(path).name:
        raise BadInput(f"{where}: {text!r} names no file")
    root = os.path.realpath(file.parent)
    if not os.path.isabs(path) and os.path.commonpath([root, os.path.realpath(file.parent / path)]) != root:
        raise BadInput(f"{where}: {text} leaves the folder of the list: move the file or give the absolute path")
    return path


def load_file(path: Path) -> Image.Image:
    """Decode a PNG or JPEG file and turn it upright, as its EXIF data says.

    Raises:
        BadInput: it is no file, or cannot be read or decoded.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        with path.open("rb") as file:
            return open_image(file)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be used: {error}") from error
