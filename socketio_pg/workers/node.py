"""The node: the workers of one gunicorn, their private directory, their slots, and the lock of the one that leads.

    master: prepare() ─ fork ─► worker: join() claims a slot ─► Peers connects it to the others ─► lead() in one of them

Locks of files elect and count: the kernel releases them when a process ends, however it ends.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
import uuid
from pathlib import Path

from socketio_pg.core.errors import ConfigurationError
from socketio_pg.workers.loads import MAX_WORKERS, Loads

logger = logging.getLogger("socketio_pg.workers")

_PREFIX = "socketio-pg-"
#: The digits that a session's id has, after base64: 14 random bytes and the sealed name of its worker.
_RANDOM, _NAME = 14, 4
#: The file with the loads of the workers.
_LOADS = "loads"


class Node:
    """The node of this process. ``wanted`` workers are expected. Made by the master, joined by each worker.

    The directory belongs to the user of the workers, and no other user may enter it: what arrives over the sockets in
    it comes from a worker. If something removes it, the workers end (`ending.py`), and their successors make it again.
    """

    #: Seconds between two signs that the files are in use, for programs that remove old ones.
    touch_interval = 3600.0

    def __init__(self, directory: Path, key: bytes) -> None:
        self.directory = directory
        self._key = key
        #: The process id of the master, which makes this object.
        self.master = os.getpid()
        #: The id of the node among those of the database.
        self.id = uuid.UUID(bytes=hashlib.blake2s(b"id", key=key, digest_size=16).digest())
        #: This worker's slot; -1 in the master. A successor of a worker that has ended gets its slot.
        self.slot = -1
        #: The name of this worker, which differs from that of its predecessors in the slot.
        self.name = b""
        #: The number of this worker's term while it leads: each is one higher than the last.
        self.term = 0
        #: Descriptors of the directory and of the file of the slot.
        self._locks: list[int] = []
        self._touched = 0.0
        self._leading: int | None = None
        #: The loads of all workers.
        self.loads = Loads(directory / _LOADS)

    # -- in the master -------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, uid: int, gid: int) -> "Node":
        """Make the directory, for workers of this user and group. Removes those of masters that have been killed."""
        _remove_stale()
        # Not in TMPDIR, which may be too long for the address of a Unix socket (108 bytes).
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
        node = cls(directory, secrets.token_bytes(32))
        # Held as long as the master or one of its workers lives. systemd-tmpfiles, which removes old files from /tmp,
        # leaves out a locked directory with all that is in it.
        node._locks.append(_lock(directory, _DIRECTORY))
        node.loads.create()
        for path in (directory, directory / _LOADS):
            os.chown(path, uid, gid)
        return node

    def remove(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def wanted(self) -> int:
        """The number of workers that gunicorn's master wants."""
        return self.loads.wanted

    @wanted.setter
    def wanted(self, workers: int) -> None:
        self.loads.wanted = workers

    # -- in a worker ---------------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Claim the lowest free slot. Call it after the fork.

        Raises :class:`ConfigurationError` when all are taken, and OSError when its files cannot be made.
        """
        if not self._is_there():
            self._make_again()
        for slot in range(MAX_WORKERS):
            with contextlib.suppress(BlockingIOError):
                self._locks.append(_lock(self.directory / f"{slot}.lock"))
                break
        else:
            raise ConfigurationError(f"a gunicorn may have at most {MAX_WORKERS} workers")
        self.slot = slot
        self.name = secrets.token_bytes(_NAME)
        self.loads.join(slot, self.name)

    def _is_there(self) -> bool:
        """Return whether the directory is still that of the master."""
        try:
            inode = self.directory.stat().st_ino
        except FileNotFoundError:
            return False
        return not self._locks or os.fstat(self._locks[0]).st_ino == inode

    def _make_again(self) -> None:
        while self._locks:
            os.close(self._locks.pop())
        with contextlib.suppress(FileExistsError):  # another worker was faster
            self.directory.mkdir(0o700)
        descriptor = os.open(self.directory, _DIRECTORY)
        self._locks.append(descriptor)
        found = os.fstat(descriptor)
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{self.directory} belongs to another user, or others may enter it")
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # each worker: the master has locked the one that was removed
        (self.directory / _LOADS).touch()

    @property
    def intact(self) -> bool:
        """Whether this worker's files are still where the others look for them. Keeps them from looking old.

        True before it has joined: with MESSAGE_QUEUE it reads the cluster key first.
        """
        if self.slot < 0:
            return True
        held = [*self._locks, *([] if self._leading is None else [self._leading])]
        if not all(os.fstat(descriptor).st_nlink for descriptor in held):
            return False
        if time.monotonic() - self._touched > self.touch_interval:
            self._touched = time.monotonic()
            for path in (self.directory, *self.directory.iterdir()):
                with contextlib.suppress(OSError):
                    os.utime(path, follow_symlinks=False)
        return Path(self.socket_path(self.slot)).exists()

    def leave(self) -> None:
        """Release the slot, for tests: the kernel does it when a process ends."""
        if self.slot >= 0:
            self.loads.tell(None)
        self.stop_leading()
        while self._locks:
            os.close(self._locks.pop())

    def try_lead(self) -> bool:
        """Lead, unless another worker does. Returns whether this worker leads."""
        if self._leading is None:
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                self._leading = _lock(self.directory / "leader")
                self.term = 1 + int(os.pread(self._leading, 20, 0) or b"0")
                os.pwrite(self._leading, b"%d" % self.term, 0)
        return self._leading is not None

    def stop_leading(self) -> None:
        """Let another worker lead."""
        if self._leading is not None:
            os.close(self._leading)
            self._leading = None

    def is_first_to_refuse(self) -> bool:
        """Return whether no other worker has refused to start, as this one does now."""
        try:
            (self.directory / "refused").open("xb").close()
        except FileExistsError:
            return False
        return True

    def socket_path(self, slot: int) -> str:
        """Return the address of the Unix socket of a worker."""
        return str(self.directory / f"{slot}.socket")

    def slots_with_sockets(self) -> list[int]:
        """Return the slots of the workers that have, or had, a Unix socket."""
        with contextlib.suppress(OSError):
            return sorted(int(path.stem) for path in self.directory.glob("*.socket"))
        return []

    # -- names in the ids of sessions ----------------------------------------------------------------------------------

    def new_session_id(self) -> bytes:
        """Return the bytes of a session's id. They look random; with the node's key they name this worker."""
        random = secrets.token_bytes(_RANDOM)
        return random + self._veiled(random, self.name)

    def worker_of(self, session_id: bytes) -> bytes:
        """Return the name of the worker that has made this id; random bytes if none has, none if it is too long."""
        return (
            b""
            if len(session_id) > _RANDOM + _NAME
            else self._veiled(session_id[:_RANDOM], session_id[_RANDOM : _RANDOM + _NAME])
        )

    def _veiled(self, random: bytes, name: bytes) -> bytes:
        veil = hashlib.blake2s(random, key=self._key, digest_size=_NAME).digest()
        return bytes(one ^ other for one, other in zip(name, veil, strict=False))


_current: Node | None = None


def prepare(node: Node) -> None:
    """Make ``node`` that of this process and of those that are forked from it."""
    global _current
    _current = node


def current() -> Node | None:
    """Return the node of this process; None when it is the only one."""
    return _current


def refusal() -> str | None:
    """Return why this system cannot have several workers; None if it can."""
    if hasattr(socket, "SOCK_SEQPACKET") and os.uname().sysname == "Linux":
        return None
    return "several workers need Linux, whose Unix sockets carry connections from worker to worker"


#: Flags for a directory, which must be no link.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def _lock(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Lock a file and return its descriptor. Raises BlockingIOError when another process has locked it."""
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_stale() -> None:
    """Remove the directories of masters that no longer live. The superuser's may belong to another user."""
    for directory in Path("/tmp").glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = _lock(directory, _DIRECTORY)
            # Without the file it is being made.
            if os.getuid() in (0, os.fstat(descriptor).st_uid) and (directory / _LOADS).exists():
                shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)
