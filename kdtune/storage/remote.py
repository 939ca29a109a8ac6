"""Access to a folder on a shared disk or in an object store."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from kdtune.errors import DiskFullError, RunError, UserError
from kdtune.storage.files import atomic_write


class StorageError(RunError):
    """A failure of a storage, which may be temporary; methods of `Storage` raise it."""


@dataclass(eq=False)
class Storage:
    """A folder in a storage; a file appears when it is complete, and its last writer wins."""

    uri: str  # may be a path
    relative_path: str = ""

    def __post_init__(self) -> None:
        uri = self.uri
        if re.match(r"\w+://[^/@]*:[^/@]*@", uri):
            raise UserError(
                "The URI of a storage is written to logs, so it must not contain keys: give them "
                "as the tools of its cloud expect them, e.g. as AWS_SECRET_ACCESS_KEY."
            )
        self.uri = uri if "://" in uri else os.path.abspath(Path(uri).expanduser())
        try:
            self._filesystem, base = FileSystem.from_uri(self.uri)
            if not base.strip("./"):
                raise ValueError("it names no folder")
        except Exception as error:  # pyarrow raises its own, ValueError, OSError, KeyError
            message = f"The storage {uri} cannot be used: {_short_message(error)}."
            raise UserError(message) from None
        self._path = str(PurePosixPath(base, self.relative_path))
        is_local = isinstance(self._filesystem, LocalFileSystem)
        self.local_folder = Path(self._path) if is_local else None

    def __reduce__(self) -> tuple[type["Storage"], tuple[str, str]]:
        return Storage, (self.uri, self.relative_path)

    def __str__(self) -> str:
        base_uri = self.uri.partition("?")[0].rstrip("/")
        return f"{base_uri}/{self.relative_path}" if self.relative_path else base_uri

    def subfolder(self, name: str) -> "Storage":
        return Storage(self.uri, str(PurePosixPath(self.relative_path, name)))

    def list_files(self) -> list[str]:
        """Return the relative paths of all files, at any depth, without hidden ones."""
        selector = FileSelector(self._path, allow_not_found=True, recursive=True)
        with self._wrap_errors("listed"):
            files = self._filesystem.get_file_info(selector)
        names = sorted(f.path[len(self._path) + 1 :] for f in files if f.type == FileType.File)
        return [name for name in names if "/." not in f"/{name}" and "//" not in f"/{name}"]

    def read(self, name: str) -> bytes | None:
        with self._wrap_errors("read"):
            try:
                with self._filesystem.open_input_stream(f"{self._path}/{name}") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file.

        Args:
            name: relative path.
            content: all bytes of the file.
        """
        with self._replacing(name) as target, self._filesystem.open_output_stream(target) as file:
            file.write(content)

    def upload(self, path: Path, name: str) -> None:
        """Copy a file from the disk.

        Args:
            path: of the source on the disk.
            name: relative path of the copy.
        """
        with self._replacing(name) as target:
            copy_files(str(path), target, LocalFileSystem(), self._filesystem)

    def download(self, name: str, path: Path) -> None:
        """Copy a file to the disk.

        Args:
            name: relative path of the source.
            path: of the copy on the disk.
        """
        with self._wrap_errors("read"), atomic_write(path, sync=False) as temporary:
            source = f"{self._path}/{name}"
            copy_files(source, str(temporary), self._filesystem, LocalFileSystem())

    def remove_file(self, name: str) -> None:
        path = f"{self._path}/{name}"
        with self._wrap_errors("cleared"):
            if self._filesystem.get_file_info(path).type == FileType.File:
                self._filesystem.delete_file(path)

    def remove_folder(self) -> None:
        with self._wrap_errors("cleared"):
            if self._filesystem.get_file_info(self._path).type == FileType.Directory:
                self._filesystem.delete_dir(self._path)

    @contextmanager
    def _replacing(self, name: str) -> Iterator[str]:
        path = f"{self._path}/{name}"
        with self._wrap_errors("written"):
            if self.local_folder is None:  # objects appear when they are complete
                yield path
            else:
                with atomic_write(Path(path), sync=False) as temporary:
                    yield str(temporary)

    @contextmanager
    def _wrap_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ArrowException, DiskFullError) as error:
            raise StorageError(f"{self} cannot be {action}: {_short_message(error)}") from error


def _short_message(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
