"""A folder elsewhere, behind a few verbs: on a shared disk, or in an object store by its URI.

What is written appears whole or not at all. Everything goes through pyarrow's file systems
(``s3://``, ``gs://``, ``abfs://``, ``file://``), which find credentials where their clouds' own
tools do, and which give up on a store that does not answer by themselves, after some tries. Locks
there are none: what two processes write to one name, the last one has written.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from kdtune.errors import RunError, UserError

COPY_BLOCK_BYTES = 1 << 22
"""Bytes that are copied at once."""


class StorageError(RunError):
    """A storage did not do what it was asked to; it may at another time."""


class Storage:
    """A folder in a storage.

    Args:
        uri: of a storage's folder, or a path.
        below: path of this folder below that one.

    Raises:
        UserError: nothing that is known has such a URI.
    """

    def __init__(self, uri: str, relative_path: str = ""):
        if re.match(r"\w+://[^/@]*:[^/@]*@", uri):
            raise UserError(
                "A storage's URI is kept in logs, so no keys may stand in it: give them as the "
                "tools of its cloud have them, e.g. as AWS_SECRET_ACCESS_KEY."
            )
        self.uri = uri if "://" in uri else os.path.abspath(Path(uri).expanduser())
        self.relative_path = relative_path
        try:
            if not self._filesystem_and_path[1].strip("."):
                raise ValueError("it names no folder")
        except Exception as error:  # pyarrow raises its own, ValueError, OSError, KeyError
            raise UserError(
                f"The storage {uri} cannot be used: {_short_message(error)}."
            ) from None

    def __reduce__(self) -> tuple[type["Storage"], tuple[str, str]]:
        return Storage, (self.uri, self.relative_path)

    def __str__(self) -> str:
        base_uri = self.uri.partition("?")[0].rstrip("/")
        return f"{base_uri}/{self.relative_path}" if self.relative_path else base_uri

    @cached_property
    def _filesystem_and_path(self) -> tuple[FileSystem, str]:
        filesystem, path = FileSystem.from_uri(self.uri)
        return filesystem, path.rstrip("/")

    @property
    def local_folder(self) -> Path | None:
        """Where it is on a disk; None in an object store."""
        filesystem, _ = self._filesystem_and_path
        return Path(self._full_path("")) if isinstance(filesystem, LocalFileSystem) else None

    def subfolder(self, name: str) -> "Storage":
        """A folder in this one."""
        return Storage(self.uri, str(PurePosixPath(self.relative_path, name)))

    def _full_path(self, name: str) -> str:
        return str(PurePosixPath(self._filesystem_and_path[1], self.relative_path, name))

    def list_files(self) -> list[str]:
        """Every file in it, at any depth, as a path from here; hidden ones are left out.

        Raises:
            StorageError: it cannot be listed.
        """
        with self._wrap_errors("listed"):
            selector = FileSelector(self._full_path(""), allow_not_found=True, recursive=True)
            paths = [
                i.path
                for i in self._filesystem_and_path[0].get_file_info(selector)
                if i.type == FileType.File
            ]
        prefix_length = len(self._full_path("").rstrip("/")) + 1
        names = sorted(path[prefix_length:] for path in paths)
        return [n for n in names if not any(p.startswith(".") for p in PurePosixPath(n).parts)]

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none of that name.

        Raises:
            StorageError: it cannot be read.
        """
        with self._wrap_errors("read"):
            try:
                with self._filesystem_and_path[0].open_input_stream(
                    self._full_path(name)
                ) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file.

        Raises:
            StorageError: it cannot be written.
        """
        with self._wrap_errors("written"), self._open_output(name) as stream:
            stream.write(content)

    def upload(self, path: Path, name: str) -> None:
        """Write a file from one on the disk.

        Raises:
            FileNotFoundError: there is none on the disk.
            StorageError: it cannot be written.
        """
        with (
            open(path, "rb") as file,
            self._wrap_errors("written"),
            self._open_output(name) as stream,
        ):
            while block := file.read(COPY_BLOCK_BYTES):
                stream.write(block)

    def download(self, name: str, path: Path) -> None:
        """Bring a file to the disk.

        Raises:
            StorageError: it cannot be read, or is not there.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                self._wrap_errors("read"),
                self._filesystem_and_path[0].open_input_stream(self._full_path(name)) as stream,
                open(temporary, "wb") as file,
            ):
                while block := stream.read(COPY_BLOCK_BYTES):
                    file.write(block)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def remove_file(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            StorageError: it cannot be removed.
        """
        with self._wrap_errors("cleared"):
            if (
                self._filesystem_and_path[0].get_file_info(self._full_path(name)).type
                == FileType.File
            ):
                self._filesystem_and_path[0].delete_file(self._full_path(name))

    def remove_folder(self) -> None:
        """Remove the folder with all that is in it, if it is there.

        Raises:
            StorageError: it cannot be removed.
        """
        with self._wrap_errors("cleared"):
            if (
                self._filesystem_and_path[0].get_file_info(self._full_path("")).type
                == FileType.Directory
            ):
                self._filesystem_and_path[0].delete_dir(self._full_path(""))

    @contextmanager
    def _open_output(self, name: str) -> Iterator:
        """A stream to a file that appears when all was written."""
        filesystem, path = self._filesystem_and_path[0], self._full_path(name)
        if self.local_folder is None:  # an object appears when it is complete, by itself
            with filesystem.open_output_stream(path) as stream:
                yield stream
            return
        temporary = str(PurePosixPath(path).with_name(f".{Path(path).name}.{os.getpid()}"))
        filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)
        try:
            with filesystem.open_output_stream(temporary) as stream:
                yield stream
            filesystem.move(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    @contextmanager
    def _wrap_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ArrowException) as error:
            raise StorageError(f"{self} cannot be {action}: {_short_message(error)}") from error


def _short_message(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
