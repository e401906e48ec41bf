"""Where the log lives on disk: one folder, which is one world. Two folders never meet."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path

from fanfare.engine import errors

# SQLite's WAL needs shared memory and working locks between all processes; these do not give them to several machines.
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

# What is wrong with a disk today, and with no setting.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

REMAINS = ("-wal", "-shm")  # what SQLite keeps beside a file

# A damaged log is kept for a person to look at. More than these, and the disk is at fault: a person must act, and more
# copies would only fill it.
DAMAGED = ".damaged-"
SET_ASIDE_AT_MOST = 3

_MOUNTS = Path("/proc/self/mounts")


class Place:
    """The paths of one log. Nothing is touched before `prepare`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log.sqlite3"
        self._log_path = os.fspath(self.log)
        self.queue = folder / "log.lock"  # writers queue here; never holds data
        self.workers = folder / "workers"  # one lock file for each live worker
        self.sockets = folder / "sockets"  # may move, see prepare

    def prepare(self) -> None:
        """Make the folders, or say in one sentence why the log cannot live here. Raises EngineMisconfigured, or
        EngineUnavailable where that may pass by itself."""
        kind = file_system(self.folder)
        if kind in NETWORK_FILE_SYSTEMS:
            raise errors.EngineMisconfigured(
                f"The log's folder {self.folder} is on a network file system ({kind}), where SQLite loses data: "
                "set FANFARE_DATA_DIR to a local disk."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.workers.mkdir(exist_ok=True, mode=0o700)
            self.sockets = self._socket_folder()
        except OSError as error:
            refusal = errors.EngineUnavailable if error.errno in _PASSING else errors.EngineMisconfigured
            raise refusal(f"The log's folder {self.folder} cannot be made: {error.strerror}.") from error
        for path in (self.folder, self.log):
            self._check_access(path)

    def lock_of(self, worker: str) -> Path:
        return self.workers / f"{worker}.lock"

    def identity(self) -> tuple[int, int] | None:
        """(device, inode) of the log, or None if there is none. `stat`, because opening it would drop SQLite's own
        locks."""
        try:
            found = os.stat(self._log_path)  # noqa: PTH116 - asked for by each read and commit; half as much as a Path's
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def size(self) -> int:
        """Bytes of the log, with what SQLite keeps beside it."""
        total = 0
        for suffix in ("", *REMAINS):
            with contextlib.suppress(FileNotFoundError):
                total += self.log.with_name(self.log.name + suffix).stat().st_size
        return total

    def clear_remains(self) -> None:
        """The log is gone: what SQLite kept beside it must not be taken for a part of the next one."""
        for suffix in REMAINS:
            self.log.with_name(self.log.name + suffix).unlink(missing_ok=True)

    def set_aside(self) -> Path:
        """Move a damaged log out of the way, with what SQLite keeps beside it; where to. Under the writers' queue only.

        Raises EngineUnavailable where this has happened too often.
        """
        before = [path for path in self.folder.glob(f"{self.log.name}{DAMAGED}*") if not path.name.endswith(REMAINS)]
        if len(before) >= SET_ASIDE_AT_MOST:
            raise errors.EngineUnavailable(
                f"The log is damaged, and so were the {len(before)} before it, which are beside it as {before[0].name} "
                "and so on: check the disk, then move them away."
            )
        aside = self.log.with_name(f"{self.log.name}{DAMAGED}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        # The log itself first: the other workers tell by it, and none of them makes a new one before this is done.
        for suffix in ("", *REMAINS):
            with contextlib.suppress(FileNotFoundError):
                self.log.with_name(self.log.name + suffix).rename(aside.with_name(aside.name + suffix))
        return aside

    def _check_access(self, path: Path) -> None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return
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
            raise PermissionError(13, f"{hashed} belongs to somebody else")
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
