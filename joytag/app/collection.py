"""The images of a folder or a dataset by sha256, and their scores, which are computed in the background and kept."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from joytag.app.scores import Scores
from joytag.core import jsonl
from joytag.core.errors import describe
from joytag.data import folders
from joytag.data.dataset import SPLITS, Dataset
from joytag.tagging.tagger import Tagger

STATE = ".joytag"  # the folder within the images' folder to which everything is written
STOP_FIRST = "stop it first, with Ctrl-C"  # when another process writes there
IMAGES = "images.jsonl"  # in it: the sha256 of each file that was read


class File(NamedTuple):
    """A file as it was when it was read: `size` in bytes, `mtime` in nanoseconds, and why it is no image, if so."""

    name: str
    size: int
    mtime: int
    sha256: str
    error: str = ""


class Collection:
    """The images below a folder, or those of a dataset directory, by the lower-case hex sha256 of the original file.

    Opening lists names only, relative to the folder. A folder's files are read in the background, once, unless their
    size or time changes; a dataset's are named by their sha256. Equal files are one image. Threads may share an object.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / STATE
        self.dataset = Dataset.open(root) if (root / "dataset.json").exists() else None
        self.failure = ""  # why the background work has ended early
        self.names: list[str] = []
        self._known: dict[str, File] = {}
        self._names: dict[str, dict[str, None]] = {}  # by sha256; of files that may have changed since
        self._stop, self._thread = threading.Event(), threading.Thread()
        self.refresh()

    def refresh(self) -> None:
        """List the names again: those that are new are read by the next `start`, those that are gone are dropped."""
        if self.dataset is not None:
            self.names = [row.tobytes().hex() for split in SPLITS for row in self.dataset.posts(split).hashes]
            rows = {sha256: File(sha256, 0, 0, sha256) for sha256 in self.names}
        else:
            self.names = [path.relative_to(self.root).as_posix() for path in folders.find_images(self.root).images]
            rows, file_of = {}, TypeAdapter(File).validate_python
            for row in jsonl.read(self.state / IMAGES):
                with suppress(ValidationError):  # a damaged one is written again
                    rows[row["name"]] = file_of(row)
        self._known = {name: rows[name] for name in self.names if name in rows}
        for name, file in self._known.items():
            self._names.setdefault(file.sha256, {})[name] = None

    def path(self, name: str) -> Path:
        """Return the path of a name: in a dataset, that of the resized copy."""
        return self.root / name if self.dataset is None else self.dataset.image_path(bytes.fromhex(name))

    def find(self, sha256: str) -> list[str]:
        """Return the names of an image, [] if it is not in the collection."""
        names = list(self._names.get(sha256, ()))
        return [name for name in names if (file := self._known.get(name)) and file.sha256 == sha256]

    def files(self) -> list[File]:
        """Return what was read, in the order of names."""
        return [file for name in self.names if (file := self._known.get(name)) is not None]

    def read(self, sha256: str) -> bytes | None:
        """Return the file of an image, None if it is gone or has changed."""
        for name in self.find(sha256):
            with suppress(OSError):
                file, data = self._read(name)
                if file.sha256 == sha256:
                    return data
        return None

    def _read(self, name: str) -> tuple[File, bytes]:
        """Read a file, and record what is new about it. Raises OSError, and forgets it."""
        path, known = self.path(name), self._known.get(name)
        try:
            if self.dataset is not None and known is not None:
                return known, path.read_bytes()
            if not path.resolve().is_relative_to(self.root.resolve()):
                raise PermissionError(errno.EACCES, "link out of the folder", str(path))
            status = path.stat()  # before its content: a file that changes in between is read again
            data = path.read_bytes()
        except OSError:
            self._known.pop(name, None)
            raise
        file = File(name, status.st_size, status.st_mtime_ns, hashlib.sha256(data).hexdigest())
        if known is None or known[:-1] != file[:-1]:
            known = self._record(file)
        return known, data

    def _record(self, file: File) -> File:
        self._known[file.name] = file
        self._names.setdefault(file.sha256, {})[file.name] = None
        jsonl.append(self.state / IMAGES, file._asdict())
        return file

    def _unchanged(self, name: str) -> File | None:
        """Return what is known of a file if it has not changed since, else None. Raises OSError."""
        known = self._known.get(name)
        if known is not None and self.dataset is None:
            status = self.path(name).stat()
            return known if (known.size, known.mtime) == (status.st_size, status.st_mtime_ns) else None
        return known

    def identify(self) -> None:
        """Read all files that are new or have changed, now."""
        for name in self.names:
            with suppress(OSError):
                if self._unchanged(name) is None:
                    self._read(name)

    def start(self, tagger: Tagger, scores: Scores) -> None:
        """List the names again, and score what has no scores yet, in the background; ends what was started before."""
        self.stop()
        self._stop.clear()
        self.failure = ""
        self._thread = threading.Thread(target=self._work, args=(tagger, scores), daemon=True)
        self._thread.start()

    @property
    def is_working(self) -> bool:
        """Whether images are being scored."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the background work; what is computed is kept."""
        self._stop.set()
        if self.is_working:
            self._thread.join()

    def _work(self, tagger: Tagger, scores: Scores) -> None:
        waiting: deque[File] = deque()
        try:
            self.refresh()
            with closing(tagger.stream(self._unscored(scores, waiting))) as results:
                for result in results:
                    file = waiting.popleft()
                    if not result.error:
                        scores.add(file.sha256, result.scores)
                    elif self._known.get(file.name) == file:
                        self._record(file._replace(error=result.error))
                    if self._stop.is_set():
                        break
        except Exception as error:  # a device may fail in any way
            reason = describe(error) if isinstance(error, OSError) else str(error)
            self.failure = " ".join(reason.split()) or type(error).__name__

    def _unscored(self, scores: Scores, waiting: deque[File]) -> Iterator[bytes]:
        """Yield the content of each image without scores; put its file into `waiting`."""
        for name in self.names:
            if self._stop.is_set():
                return
            with suppress(OSError):  # it is gone, or cannot be read
                file = self._unchanged(name)
                if file is None or not (file.error or file.sha256 in scores):
                    file, data = self._read(name)
                    if not (file.error or file.sha256 in scores):
                        waiting.append(file)
                        yield data
