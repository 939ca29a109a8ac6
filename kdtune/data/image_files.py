"""Image files below a folder, without hidden ones; what is left out is counted."""

import os
from collections import Counter
from pathlib import Path

from kdtune.data.image_formats import is_image, missing_reader
from kdtune.errors import UserError
from kdtune.runtime.console import printable_path

_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")
"""Folders that archives of macOS and Synology's servers add, with copies of images in them."""


def is_hidden(name: str) -> bool:
    """Return True for files and folders that a system or an editor made, such as ``._1.jpg``."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def list_folders(folder: Path) -> list[Path]:
    """Return the folders directly below a folder, in order, without hidden ones."""
    return sorted(f for f in folder.iterdir() if f.is_dir() and not is_hidden(f.name))


def list_images(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Return all images below a folder, at any depth, in order of their paths.

    Links are followed, but not in circles.

    Args:
        folder: to look in.
        left_out: gets what is left out, with counts.
    """

    def raise_unreadable(error: OSError) -> None:
        shown = printable_path(error.filename)
        raise UserError(f"The folder {shown} cannot be read: {error.strerror}.")

    files = []
    tree = os.walk(folder, followlinks=True, onerror=raise_unreadable)
    for directory, subfolders, names in tree:
        left_out["hidden folders"] += sum(map(is_hidden, subfolders))
        subfolders[:] = [name for name in subfolders if not is_hidden(name)]
        ancestors = {os.path.realpath(p) for p in (Path(directory), *Path(directory).parents)}
        targets = {name: os.path.realpath(os.path.join(directory, name)) for name in subfolders}
        subfolders[:] = [name for name in subfolders if targets[name] not in ancestors]
        files += [(directory, name) for name in take_images(names, left_out)]
    return [Path(directory, name) for directory, name in sorted(files)]


def take_images(names: list[str], left_out: Counter[str]) -> list[str]:
    """Return the names of images.

    Args:
        names: of files.
        left_out: gets the numbers of the others, by suffix.
    """
    taken = []
    for name in names:
        if is_hidden(name):
            left_out["hidden images"] += is_image(name)
        elif is_image(name):
            taken.append(name)
        else:
            left_out[describe_suffix(name)] += 1
    return taken


def describe_suffix(name: str) -> str:
    """Return the kind of a file that is no image.

    >>> describe_suffix("notes.TXT"), describe_suffix("README")
    ('files ending in .txt', 'files without a suffix')
    """
    suffix = Path(name).suffix.lower()
    if not suffix:
        return "files without a suffix"
    package = missing_reader(suffix)
    return f"files ending in {printable_path(suffix)}" + (f" (need {package})" if package else "")
