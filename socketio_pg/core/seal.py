"""Seals the texts that nodes send each other, so that others can neither read, forge nor repeat them. Pure, no I/O.

A sealed text is ASCII: ``sealed1 <identity> <key id> <base64>``. The identity names the installation (database cluster
and database), the key id the cluster key. The binary part has the sender (16 random bytes for each process), a counter
(8 bytes), the time in ms (8 bytes), and the text encrypted with AES-256-GCM (NIST SP 800-38D) and its tag. Everything
in front of the encrypted text is authenticated, as is the channel. No nonce occurs twice with one key: each sender has
a key of its own, derived with HKDF-SHA256 (RFC 5869), and the nonce is the sender's counter.
"""

import itertools
import os
import re
import time
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pybase64
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from socketio_pg.core.errors import ClusterKeyError

_NAME = "sealed1"
_SENDER_BYTES, _NUMBER_BYTES, _TAG_BYTES = 16, 8, 16
_HEADER_BYTES = _SENDER_BYTES + 2 * _NUMBER_BYTES
#: The maximum lengths of an identity (two numbers, at most) and of a key id.
MAX_IDENTITY = 40
MAX_KEY_ID = 16
#: The maximum size in bytes of a text that fits into one NOTIFY (7,999 bytes) when sealed.
MAX_TEXT_BYTES = (7_999 - len(_NAME) - 1 - MAX_IDENTITY - MAX_KEY_ID - 2) // 4 * 3 - _HEADER_BYTES - _TAG_BYTES
#: Seconds by which the time of a text may differ from this machine's clock.
MAX_CLOCK_DIFFERENCE = 60.0
#: Seconds by which a text may be older than the first key of this process: a process that has just started cannot
#: know which texts have been delivered before.
MAX_AGE_AT_START = 2.0
#: The number of a sender's texts after which an older text of the channel is refused. The parts of the longest emit
#: (`cluster.chunks`) are fewer: those of two threads may arrive in another order than they were sealed.
WINDOW = 16_384
#: Senders that are remembered; beyond it the one that has been silent for longest is forgotten.
MAX_SENDERS = 10_000
#: Why a text cannot be opened: see :class:`SealError`.
REASONS = ("unsealed", "foreign", "unknown_key", "forged", "stale", "replayed")


class SealError(Exception):
    """A text cannot be opened. ``reason`` is one of :data:`REASONS`:

    - ``unsealed``: it is not a sealed text.
    - ``foreign``: it comes from another installation. ``detail`` is its identity.
    - ``unknown_key``: it was sealed with a key that this process does not have.
    - ``forged``: it was not sealed with the key that it names, or for another channel, or is damaged.
    - ``stale``: its time differs too much from the clock, or it is older than this process.
    - ``replayed``: it has been opened before, or it is older than :data:`WINDOW` later ones.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def _derive(secret: bytes, purpose: bytes, length: int = 32) -> bytes:
    return HKDF(SHA256(), length, None, b"socketio_pg " + purpose).derive(secret)


@dataclass(frozen=True, slots=True)
class Key:
    """A cluster key. Its id follows from it, so that all processes name it alike."""

    id: str
    secret: bytes = field(repr=False)

    @classmethod
    def from_bytes(cls, secret: bytes) -> "Key":
        """Return the key whose 32 random bytes are ``secret``."""
        return cls(_derive(secret, b"key id", 6).hex(), secret)

    @classmethod
    def from_text(cls, text: str) -> "Key":
        """Return the key that is derived from one text of the setting CLUSTER_KEY."""
        return cls.from_bytes(_derive(text.encode(), b"CLUSTER_KEY"))


class _Window:
    """The counters of one sender and channel that have been seen: a sliding window as in RFC 6479."""

    __slots__ = ("_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        # A ring of blocks of 64 bits. One block more than the window has, since the newest one is only partly used.
        self._seen = array("Q", bytes(8 * _BLOCKS))

    def take(self, counter: int) -> bool:
        """Note ``counter``. Return False if it has been seen before or is too old to tell."""
        if counter + WINDOW <= self._newest:
            return False
        block, newest_block = counter // 64, self._newest // 64
        for new in range(max(newest_block, block - _BLOCKS) + 1, block + 1):
            self._seen[new % _BLOCKS] = 0
        self._newest = max(self._newest, counter)
        bit = 1 << counter % 64
        if self._seen[block % _BLOCKS] & bit:
            return False
        self._seen[block % _BLOCKS] |= bit
        return True


_BLOCKS = WINDOW // 64 + 1


@dataclass(slots=True)
class _Sender:
    """A sender of which a text has been opened: its cipher, and the state against repeated texts."""

    key: Key
    cipher: AESGCM
    #: The time of its newest text, in ms.
    newest: int = 0
    windows: dict[str, _Window] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Own:
    """This process as a sender, with one key."""

    process: int
    header: str
    sender: bytes
    cipher: AESGCM
    counter: Iterator[int]


class Seal:
    """Seals and opens texts with the keys of one installation. :meth:`use` sets them.

    Any thread may seal, one at a time may open. A process that was forked becomes a sender of its own.
    """

    def __init__(self) -> None:
        self._identity = ""
        self._keys: dict[str, Key] = {}
        self._sealing: Key | None = None
        self._own: _Own | None = None
        #: Senders in the order of their last text; and the time in ms up to which all texts are refused.
        self._senders: OrderedDict[tuple[str, bytes], _Sender] = OrderedDict()
        self._floor = 0

    @property
    def ready(self) -> bool:
        """True once there is a key."""
        return self._sealing is not None

    @property
    def identity(self) -> str:
        """The identity of the installation; empty before :meth:`use`."""
        return self._identity

    def use(self, identity: str, keys: Sequence[Key]) -> None:
        """Use ``keys`` from now on: the first one seals, all of them open. ``identity`` names the installation."""
        if not re.fullmatch(rf"[!-~]{{1,{MAX_IDENTITY}}}", identity):
            raise ValueError(f"an identity has 1 to {MAX_IDENTITY} characters of printable ASCII, without spaces")
        if not self._floor:
            self._floor = _start(_now())
        if (identity, keys[:1]) != (self._identity, [self._sealing]):
            self._own = None
        self._identity, self._keys, self._sealing = identity, {key.id: key for key in keys}, keys[0] if keys else None
        for name in [name for name, sender in self._senders.items() if sender.key not in keys]:
            del self._senders[name]

    def seal(self, channel: str, text: str) -> str:
        """Return ``text`` sealed for ``channel``. Raises :class:`ClusterKeyError` while there is no key."""
        own = self._own
        if own is None or own.process != os.getpid():
            own = self._become_sender()
        binary = own.sender + next(own.counter).to_bytes(_NUMBER_BYTES, "big") + _now().to_bytes(_NUMBER_BYTES, "big")
        nonce = b"\0\0\0\0" + binary[_SENDER_BYTES : _SENDER_BYTES + _NUMBER_BYTES]
        associated = f"{own.header}{channel}\0".encode() + binary
        encrypted = own.cipher.encrypt(nonce, text.encode(), associated)
        return own.header + pybase64.b64encode_as_string(binary + encrypted)

    def open(self, channel: str, text: str, *, replayable: bool = False, reader: int = 0) -> str:
        """Return the text that was sealed for ``channel``. Raises :class:`SealError`.

        ``replayable``: the caller has its own protection against repeated and old texts. ``reader``: one of several
        that get the channel's texts; each may open a text once.
        """
        words = text.split(" ", 3)
        if len(words) != 4 or words[0] != _NAME:
            raise SealError("unsealed")
        _, identity, key_id, encoded = words
        if not self._keys:
            raise SealError("unknown_key")
        if identity != self._identity:
            raise SealError("foreign", identity[:MAX_IDENTITY])
        key = self._keys.get(key_id)
        if key is None:
            raise SealError("unknown_key")
        try:
            binary = pybase64.b64decode(encoded, validate=True)
        except ValueError:
            raise SealError("forged") from None
        if len(binary) < _HEADER_BYTES + _TAG_BYTES:
            raise SealError("forged")
        start, encrypted = binary[:_HEADER_BYTES], binary[_HEADER_BYTES:]
        name = (key_id, start[:_SENDER_BYTES])
        sender = self._senders.get(name)
        cipher = AESGCM(_derive(key.secret, b"sender " + name[1])) if sender is None else sender.cipher
        nonce = b"\0\0\0\0" + start[_SENDER_BYTES : _SENDER_BYTES + _NUMBER_BYTES]
        associated = f"{_NAME} {identity} {key_id} {channel}\0".encode() + start
        try:
            opened = cipher.decrypt(nonce, encrypted, associated).decode()
        except (InvalidTag, UnicodeDecodeError):
            raise SealError("forged") from None
        counter = int.from_bytes(nonce, "big")
        window = f"{channel}\0{reader}" if reader else channel
        self._admit(name, key, cipher, window, counter, int.from_bytes(start[-_NUMBER_BYTES:], "big"), replayable)
        return opened

    def sealed(self, key_id: str, encoded: str) -> str:
        """Return the sealed text of this installation with these parts."""
        return f"{_NAME} {self._identity} {key_id} {encoded}"

    # -- senders -------------------------------------------------------------------------------------------------------

    def _become_sender(self) -> _Own:
        key = self._sealing
        if key is None:
            raise ClusterKeyError("the cluster key has not been read from the database yet")
        sender = os.urandom(_SENDER_BYTES)
        cipher = AESGCM(_derive(key.secret, b"sender " + sender))
        header = f"{_NAME} {self._identity} {key.id} "
        self._own = own = _Own(os.getpid(), header, sender, cipher, itertools.count())
        return own

    def _admit(
        self, name: tuple[str, bytes], key: Key, cipher: AESGCM, of: str, counter: int, sent: int, replayable: bool
    ) -> None:
        """Refuse a genuine text that is too old or has been opened before; remember its sender otherwise."""
        now = _now()
        sender = self._senders.get(name)
        if self._floor > now + MAX_CLOCK_DIFFERENCE * 1000:
            self._floor = _start(now)  # this machine's clock was ahead, and was set back
        if not replayable and (abs(now - sent) > MAX_CLOCK_DIFFERENCE * 1000 or sent < self._floor):
            raise SealError("stale")
        if sender is None:
            sender = self._senders[name] = _Sender(key, cipher)
            self._forget(now)
        self._senders.move_to_end(name)
        if not replayable:
            window = sender.windows.get(of)
            if window is None:
                window = sender.windows[of] = _Window()
            if not window.take(counter):
                raise SealError("replayed")
            sender.newest = max(sender.newest, sent)

    def _forget(self, now: int) -> None:
        """Forget senders whose texts are all too old by now, and the oldest beyond :data:`MAX_SENDERS`.

        Texts as old as theirs are refused from then on.
        """
        while self._senders:
            name, oldest = next(iter(self._senders.items()))
            expired = oldest.newest < now - 2 * MAX_CLOCK_DIFFERENCE * 1000
            if (not expired or name == next(reversed(self._senders))) and len(self._senders) <= MAX_SENDERS:
                return
            # Also for expired ones: the clock may be set back.
            self._floor = max(self._floor, oldest.newest + 1)
            del self._senders[name]


def _now() -> int:
    return time.time_ns() // 1_000_000


def _start(now: int) -> int:
    """Return the time before which a process that starts ``now`` refuses texts."""
    return now - round(MAX_AGE_AT_START * 1000)
