"""Python without what only Unix has, and with the rules of Windows, for this project's code and tests.

Python loads this module at start when its folder is on PYTHONPATH, also in processes that it starts. Libraries keep
what they need on the system that they run on.
"""

import builtins
import errno
import fcntl
import importlib
import io
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType, ModuleType

HIDDEN: dict[ModuleType, str] = {
    os: "fork forkpty setpgid setpgrp setsid getpgid getpgrp killpg getuid geteuid getgid getegid chown lchown mkfifo "
    "mknod nice wait uname sysconf statvfs fstatvfs sched_getaffinity sched_setaffinity sendfile lockf pread pwrite "
    "getloadavg fchmod fchdir chroot O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_NONBLOCK",
    signal: "SIGALRM SIGUSR1 SIGUSR2 SIGCHLD SIGHUP SIGKILL SIGSTOP SIGCONT SIGPIPE SIGQUIT alarm setitimer "
    "ITIMER_REAL pthread_sigmask sigwait pause",
}
HIDDEN_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline"}
HIDDEN_FOLDERS = ("/dev/shm", "/proc")
INVALID = re.compile(r'[<>:"|?*\x00-\x1f\\]|[ .]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
ROOT = str(Path(__file__).parents[3])
OURS = re.compile(re.escape(ROOT) + "/(joytag|data_prep|scripts|tests)/")
STANDARD = os.path.dirname(os.__file__)  # noqa: PTH120, pathlib needs what is replaced here

list_directory, read_link, real_path, real_open = os.listdir, os.readlink, os.path.realpath, io.open


def _caller() -> FrameType:
    """Return the nearest frame outside this file and the standard library's files."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        inside = name == __file__ or name.startswith("<") or (name.startswith(STANDARD) and "-packages" not in name)
        if not inside:
            break
        frame = frame.f_back
    return frame


def _is_ours(frame: FrameType) -> bool:
    return OURS.match(frame.f_code.co_filename) is not None


def _hide(module: ModuleType, names: str) -> None:
    """Take attributes of a module away from this project's code."""
    hidden = {name: vars(module).pop(name) for name in names.split() if hasattr(module, name)}

    def find(name: str) -> object:
        if name not in hidden or _is_ours(sys._getframe(1)):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return hidden[name]

    module.__getattr__ = find  # type: ignore[method-assign]


def _is_open(path: object) -> bool:
    """Whether this process has a file open or mapped, so that Windows neither moves nor removes it."""
    target = real_path(os.fspath(path))  # type: ignore[call-overload]
    for descriptor in list_directory("/proc/self/fd"):
        try:
            if read_link(f"/proc/self/fd/{descriptor}") == target:
                return True
        except OSError:
            continue
    with real_open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return any(line.rstrip("\n").endswith(f" {target}") for line in maps)


def _replace(module: ModuleType, name: str, paths: int = 1, new: int | None = None) -> None:
    """Let a function of `os` refuse open files among its first `paths` arguments, and an invalid name at `new`."""
    before = getattr(module, name)

    def after(*arguments: object, **options: object) -> object:
        if _is_ours(_caller()):
            for path in arguments[:paths]:
                # filelock removes its file in another way on Windows; multiprocessing has other files there.
                is_exempt = os.fspath(path).endswith("/.lock") or os.fspath(path).startswith(HIDDEN_FOLDERS)  # type: ignore[call-overload]
                if not is_exempt and _is_open(path):
                    raise PermissionError(errno.EACCES, "is being used by another process", path)
            if new is not None:
                _check_name(arguments[new])
        return before(*arguments, **options)

    setattr(module, name, after)


def _check_name(path: object) -> None:
    text = os.fsdecode(path)  # type: ignore[arg-type]
    if INVALID.search(text.rpartition("/")[2]):
        raise OSError(errno.EINVAL, "Invalid argument", text)


def _open(file: object, mode: str = "r", buffering: int = -1, encoding: str | None = None, *rest: object, **options):
    """Open a file: by default with the encoding and the line breaks of Windows."""
    if not isinstance(file, int) and _is_ours(_caller()):
        if any(letter in mode for letter in "wax"):
            _check_name(file)
        if os.fspath(file).startswith(HIDDEN_FOLDERS):  # type: ignore[call-overload]
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", file)
        if "b" not in mode:
            encoding = "cp1252" if encoding in (None, "locale") else encoding
            if any(letter in mode for letter in "wax+"):
                if len(rest) > 1:
                    rest = (rest[0], "\r\n" if rest[1] is None else rest[1], *rest[2:])
                elif options.get("newline") is None:
                    options["newline"] = "\r\n"
    return real_open(file, mode, buffering, encoding, *rest, **options)  # type: ignore[call-overload]


def _os_open(path: object, flags: int, *rest: int, before=os.open, **options: object) -> int:
    if _is_ours(_caller()) and Path(path).is_dir():  # type: ignore[arg-type]
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return before(path, flags, *rest, **options)


def _fsync(descriptor: int, before=os.fsync) -> None:
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if _is_ours(_caller()) and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    before(descriptor)


def _stat(path: object, *rest: object, before=os.stat, **options: object) -> os.stat_result:
    if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(HIDDEN_FOLDERS) and _is_ours(_caller()):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
    return before(path, *rest, **options)


def _refuse(name: str) -> None:
    """Raise ModuleNotFoundError for a hidden module, if this project's code or `pytest.importorskip` imports it."""
    frame = sys._getframe(1).f_back  # None while Python starts
    if name in HIDDEN_MODULES and frame and (_is_ours(frame) or frame.f_code.co_name == "importorskip"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _import(name: str, *rest: object, before=builtins.__import__, **options: object):
    _refuse(name)
    return before(name, *rest, **options)


def _import_module(name: str, *rest: object, before=importlib.import_module, **options: object):
    _refuse(name)
    return before(name, *rest, **options)


def _get_context(method: str | None = None, before=multiprocessing.get_context):
    if method in ("fork", "forkserver") and _is_ours(sys._getframe(1)):
        raise ValueError(f"cannot find context for {method!r}")
    return before(method)


def apply() -> None:
    """Replace everything."""
    import shutil

    for module, names in HIDDEN.items():
        _hide(module, names)
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    for name, paths, new in (("replace", 2, 1), ("rename", 2, 1), ("unlink", 1, None), ("remove", 1, None)):
        _replace(os, name, paths, new)
    _replace(os, "mkdir", 0, 0)
    functions = (
        (os, "open", _os_open),
        (os, "fsync", _fsync),
        (os, "stat", _stat),
        (io, "open", _open),
        (builtins, "open", _open),
        (builtins, "__import__", _import),
        (importlib, "import_module", _import_module),
        (multiprocessing, "get_context", _get_context),
    )
    for owner, name, function in functions:
        setattr(owner, name, function)
    multiprocessing.set_start_method("spawn")


apply()
