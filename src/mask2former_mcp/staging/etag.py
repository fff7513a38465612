"""What an ETag says about an object's bytes: their MD5, or the MD5 of the MD5s of the parts that it was written in."""

import hashlib
import re
from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, ClientError

from mask2former_mcp.staging import s3
from mask2former_mcp.staging.s3 import Object

_MD5 = re.compile(r"[0-9a-f]{32}")
_OF_PARTS = re.compile(r"[0-9a-f]{32}-([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Parts:
    """The pieces that an ETag speaks of: all of one size but for the last one."""

    etag: str
    size: int
    is_certain: bool = True  # False: the store does not tell the size, and a likely one was taken

    def digests(self) -> "Digests":
        return Digests(self.size)

    def confirm(self, found: str | None) -> bool:
        """Whether parts with these MD5s, one hexadecimal text after the other, make the ETag. None: nobody can say."""
        if found is None:
            return True
        if "-" in self.etag:
            joined = hashlib.md5(bytes.fromhex(found), usedforsecurity=False).hexdigest()
            found = f"{joined}-{len(found) // 32}"
        return found == self.etag


class Digests:
    """The MD5 of each part, of bytes that come in order from a part's first one on."""

    def __init__(self, size: int) -> None:
        self._size, self._room = size, size
        self._earlier = ""
        self._digest = hashlib.md5(usedforsecurity=False)

    def update(self, piece: bytes | memoryview) -> None:
        view = memoryview(piece)
        while len(view) > self._room:
            self._digest.update(view[: self._room])
            view = view[self._room :]
            self._earlier += self._digest.hexdigest()
            self._digest, self._room = hashlib.md5(usedforsecurity=False), self._size
        self._digest.update(view)
        self._room -= len(view)

    def found(self) -> str:
        """One hexadecimal text after the other."""
        return self._earlier + self._digest.hexdigest()


def parts_of(source: Object) -> Parts | None:
    """None where the ETag is no digest of the bytes, or nobody knows of which parts."""
    if _MD5.fullmatch(source.etag):
        return Parts(source.etag, max(source.size, 1))
    written = _OF_PARTS.fullmatch(source.etag)
    if written is None:
        return None
    count = int(written[1])
    if count == 1:
        return Parts(source.etag, max(source.size, 1))
    if known := _told(source, count):
        return Parts(source.etag, known)
    likely = _likely(source.size, count)
    return Parts(source.etag, likely, is_certain=False) if likely else None


def _told(source: Object, count: int) -> int | None:
    """The store's answer, of the first part and of the last: not every store knows, and parts may be uneven."""
    try:
        first, last = (
            int(s3.client().head_object(**s3.exactly(source), PartNumber=number)["ContentLength"])
            for number in (1, count)
        )
    except (ClientError, BotoCoreError):
        return None  # it will be asked for the bytes as well, and then told what is wrong
    return first if 0 < last <= first and first * (count - 1) + last == source.size else None


def _likely(size: int, count: int) -> int | None:
    """The only number of whole MiB of which the object has so many parts: what most programs write."""
    found = [mib << 20 for mib in range(1, (size >> 20) + 2) if -(-size // (mib << 20)) == count]
    return found[0] if len(found) == 1 else None
