"""`s3://bucket/key`, taken apart and judged without asking anybody."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

SCHEME = "s3://"
_URI = re.compile(r"s3://(?P<bucket>[a-z0-9](?:[a-z0-9-]|\.(?!\.)){1,61}[a-z0-9])(?:/(?P<key>.*))?", re.DOTALL)
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")  # no bucket may look like one
_KEY_LIMIT = 1024  # bytes, of S3 itself
_NAME_LIMIT = 255  # bytes, of one name in a file system


@dataclass(frozen=True, slots=True)
class Uri:
    """`s3://bucket/key`; the key may be empty (the whole bucket) and has no slash at its ends."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> "Uri":
        """Raises ValueError with the rule that was broken."""
        found = _URI.fullmatch(text)
        if found is None or _ADDRESS.fullmatch(found["bucket"]):
            raise ValueError("not s3://bucket/key with a bucket of 3 to 63 lower-case letters, digits, dots and dashes")
        key = (found["key"] or "").removesuffix("/")
        if len(key.encode("utf-8", "surrogatepass")) > _KEY_LIMIT:
            raise ValueError(f"the key is longer than {_KEY_LIMIT} bytes")
        if key and not is_plain(key):
            raise ValueError("the key has an empty part, a part . or .., a backslash or a control character")
        return cls(found["bucket"], key)

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "Uri":
        return Uri(self.bucket, self.key.rpartition("/")[0])

    def child(self, name: str) -> "Uri":
        return Uri(self.bucket, f"{self.key}/{name}" if self.key else name)

    def holds(self, other: "Uri") -> bool:
        """Whether the other one is this one or lies below it."""
        inside = not self.key or other.key == self.key or other.key.startswith(f"{self.key}/")
        return self.bucket == other.bucket and inside

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}" if self.key else f"{SCHEME}{self.bucket}"


def is_plain(key: str) -> bool:
    """Whether a key is a relative path that stays where it is put, in every file system."""
    parts = key.split("/")
    return not (
        any(part in ("", ".", "..") or len(part.encode("utf-8", "surrogatepass")) > _NAME_LIMIT for part in parts)
        or "\\" in key
        or any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in key)
        or PurePosixPath(key).is_absolute()
    )
