"""The files of the local engine: one folder for each deployment."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path

from fanfare.engine import errors, moves

# SQLite's WAL needs memory and locks that all processes share: these do not give them to several machines.
NETWORK_FILE_SYSTEMS = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "ocfs2",
        "gfs2",
        "beegfs",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.rclone",
        "davfs",
    ]
)

# sun_path is 108 bytes on Linux with its closing zero, 104 on macOS.
SOCKET_PATH_BYTES = 103

SIDE_FILES = ("-wal", "-shm")  # SQLite keeps them beside a database

# A damaged log is kept for a person to look at. With more than these the disk is at fault, and would only be filled.
DAMAGED = ".damaged-"
MAX_SET_ASIDE = 3

MARK_BYTES = 4_096  # a log is larger than a mark

_MOUNTS = Path("/proc/self/mounts")


class LogPaths:
    """The paths of one log. Nothing is touched before `prepare`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log.sqlite3"
        self.write_lock = folder / "log.lock"  # writers of all processes queue here; it holds no data
        self.high_water = folder / "log.top"  # the newest id, outside of the database
        self.reserve = folder / "log.reserve"  # space that is given back when the disk is full
        self.leases = folder / "leases"
        self.workers = folder / "workers"  # one lock file for each live worker
        self.sockets = folder / "sockets"  # may move, see prepare
        self._log = os.fspath(self.log)

    def prepare(self) -> None:
        """Create the folders. Raises EngineMisconfigured where the log can never be, and EngineUnavailable where that
        may pass."""
        kind = file_system(self.folder)
        if kind in NETWORK_FILE_SYSTEMS:
            raise errors.EngineMisconfigured(
                f"The log's folder {self.folder} is on a network file system ({kind}), where SQLite loses data: "
                "set FANFARE_DATA_DIR to a local disk."
            )
        try:
            # Parents of a `mkdir` get the default mode, and the data folder is private too.
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.mkdir(exist_ok=True, mode=0o700)
            self.workers.mkdir(exist_ok=True, mode=0o700)
            self.sockets = self._socket_folder()
        except OSError as error:
            raise self._refusal(error) from error
        for path in (self.folder, self.log):
            self._check_access(path)

    def worker_lock(self, worker: str) -> Path:
        return self.workers / f"{worker}.lock"

    def identity(self) -> tuple[int, int] | None:
        """(device, inode) of the log, or None if there is none. `stat`, because opening and closing the file would drop
        SQLite's locks."""
        try:
            found = os.stat(self._log)  # noqa: PTH116 - for each read and commit; half the cost of a Path's
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def mark(self) -> moves.Mark | None:
        """The mark of a move in the place of the log. A log is not opened here: closing it would drop SQLite's
        locks."""
        try:
            if not 0 < self.log.stat().st_size < MARK_BYTES:
                return None
            return moves.Mark.parse(self.log.read_bytes())
        except (OSError, ValueError, TypeError):
            return None

    def refuse_if_moved(self) -> None:
        """Raises EngineMoved, EngineUnavailable where a mark is in the place of the log."""
        mark = self.mark()
        if mark is not None:
            mark.refuse_write(f"local ({self.folder})")

    def files(self) -> list[Path]:
        """The log and what SQLite keeps beside it, whether they exist or not."""
        return [self.log.with_name(self.log.name + suffix) for suffix in ("", *SIDE_FILES)]

    def size(self) -> int:
        """Bytes of the log and of the files that SQLite keeps beside it."""
        total = 0
        for path in self.files():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def remove_side_files(self) -> None:
        """The log is gone: its WAL must not be taken for a part of the next one."""
        for path in self.files()[1:]:
            path.unlink(missing_ok=True)

    def set_aside(self) -> Path:
        """Move a damaged log away with its side files; answers where to. Only while holding the write lock.

        Raises EngineUnavailable if this happened too often, OSError.
        """
        before = [path for path in self.folder.glob(f"{self.log.name}{DAMAGED}*") if not path.name.endswith(SIDE_FILES)]
        if len(before) >= MAX_SET_ASIDE:
            raise errors.EngineUnavailable(
                f"The log is damaged, as were {len(before)} logs before it, which are kept as {before[0].name} and so "
                "on: check the disk, then move them away."
            )
        aside = self.log.with_name(f"{self.log.name}{DAMAGED}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        # The log first: the other workers notice by its absence, and the write lock keeps them from making a new one.
        for path in self.files():
            with contextlib.suppress(FileNotFoundError):
                path.rename(aside.with_name(path.name.replace(self.log.name, aside.name, 1)))
        return aside

    def _refusal(self, error: OSError) -> errors.EngineError:
        """A folder of another user stays closed until a person acts; everything else may pass: a full disk, one that
        was made read-only, permissions that are about to be changed back."""
        message = f"The log's folder {self.folder} cannot be used: {error.strerror}."
        if error.errno in (errno.EACCES, errno.EPERM) and not self._is_own():
            return errors.EngineMisconfigured(
                f"{message} Run every worker as the user that owns it, or set FANFARE_DATA_DIR to another folder."
            )
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG):
            return errors.EngineMisconfigured(f"{message} Set FANFARE_DATA_DIR to a folder.")
        return errors.EngineUnavailable(message)

    def _is_own(self) -> bool:
        """Whether the nearest folder that exists belongs to this user."""
        for path in (self.folder, *self.folder.parents):
            try:
                return path.stat().st_uid == os.geteuid()
            except FileNotFoundError:
                continue
            except OSError:  # a folder above it cannot be entered: look at that one
                continue
        return False

    def _check_access(self, path: Path) -> None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refusal(error) from error
        if os.access(path, os.R_OK | os.W_OK):
            return
        mode = stat.filemode(found.st_mode)
        if found.st_uid == os.geteuid():  # a disk that was made read-only after an error can be written again later
            raise errors.EngineUnavailable(f"{path} (mode {mode}) cannot be written: it, or its disk, is read-only.")
        raise errors.EngineMisconfigured(
            f"{path} belongs to user {found.st_uid} (mode {mode}) and cannot be written by user {os.geteuid()}: run "
            "every worker as one user, or give it the folder."
        )

    def _socket_folder(self) -> Path:
        """Beside the log, or a folder with a short name of its own where the path would be too long for a socket."""
        beside = self.folder / "sockets"
        if len(os.fsencode(beside)) + len("/0123456789abcdef.sock") <= SOCKET_PATH_BYTES:
            beside.mkdir(exist_ok=True, mode=0o700)
            return beside
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        digest = hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:16]
        hashed = runtime / f"fanfare-{os.geteuid()}-{digest}"
        with contextlib.suppress(FileExistsError):
            hashed.mkdir(mode=0o700)
        if hashed.stat().st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, f"{hashed} belongs to another user")
        return hashed


def file_system(folder: Path) -> str:
    """The type of the file system that `folder` is (or would be) on, "" where the system does not tell."""
    try:
        mounts = _MOUNTS.read_text()
    except OSError:
        return ""
    target = os.fspath(folder.absolute())
    best, kind = "", ""
    for line in mounts.splitlines():
        _, point, name, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind
