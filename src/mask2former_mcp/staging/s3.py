"""An S3-speaking store through boto3: what lies under a prefix, and errors that say what to change.

Credentials, profile, region and endpoint come from boto3's own chain (AWS_PROFILE, AWS_ENDPOINT_URL, roles, ...).
boto3's `crt` transfer client is never used: it ignores the endpoint, and would send data to another store.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from mask2former_mcp.errors import DatasetError, NotAvailable

THREADS = 10  # transfers at once: more saturate a core with request signing before they saturate a link
_URI = re.compile(r"s3://(?P<bucket>[a-z0-9](?:[a-z0-9-]|\.(?!\.)){1,61}[a-z0-9])(?:/(?P<key>.*))?", re.DOTALL)
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")  # no bucket may look like one
_KEY_LIMIT = 1024  # bytes, of S3 itself
_ATTEMPTS = 8  # of one request, with backoff, on throttling and 5xx
_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchVersion"}
_DENIED = {"403", "AccessDenied", "AllAccessDisabled", "AccountProblem"}
_IDENTITY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_CHANGED = {"412", "PreconditionFailed"}


@dataclass(frozen=True, slots=True)
class Uri:
    """`s3://bucket/key`; the key may be empty (the whole bucket) and has no slash at its ends."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> "Uri":
        """Raises ValueError with the rule that was broken. Asks nobody."""
        found = _URI.fullmatch(text)
        if found is None or _ADDRESS.fullmatch(found["bucket"]):
            raise ValueError("not s3://bucket/key with a bucket of 3 to 63 lower-case letters, digits, dots and dashes")
        key = (found["key"] or "").rstrip("/")
        if len(key.encode("utf-8", "surrogatepass")) > _KEY_LIMIT:
            raise ValueError(f"the key is longer than {_KEY_LIMIT} bytes")
        if key and not is_plain(key):
            raise ValueError("the key has an empty part, a part . or .., a backslash or a control character")
        return cls(found["bucket"], key)

    def child(self, name: str) -> "Uri":
        return Uri(self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}" if self.key else f"s3://{self.bucket}"


@dataclass(frozen=True, slots=True)
class Object:
    """One object as it is now. `etag` without quotes; `modified` in seconds since the epoch."""

    uri: Uri
    etag: str
    size: int
    modified: float
    version: str | None = None


def is_plain(key: str) -> bool:
    """Whether a key is a relative path that stays where it is put, in every file system."""
    parts = key.split("/")
    return not (
        any(part in ("", ".", "..") or len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts)
        or "\\" in key
        or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in key)
        or PurePosixPath(key).is_absolute()
    )


@cache
def client() -> Any:
    """One client for the process; boto3's clients may be used by several threads."""
    config = Config(
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=2 * THREADS,
        connect_timeout=10,
        read_timeout=60,
        # Stores other than AWS do not know the newer checksum trailers; transfers are verified here, by ETag.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with explained("s3", "any"):
        return boto3.session.Session().client("s3", config=config)


def look(uri: Uri) -> Object:
    """The object itself. DatasetError when it does not exist or may not be read."""
    with explained(uri, "s3:GetObject"):
        answer = client().head_object(Bucket=uri.bucket, Key=uri.key)
    version = answer.get("VersionId")
    return Object(
        uri, answer["ETag"].strip('"'), answer["ContentLength"], answer["LastModified"].timestamp(),
        None if version == "null" else version,
    )  # fmt: skip


def listing(prefix: Uri) -> Iterator[Object]:
    """Every object below the prefix, a page of 1000 a request. Folder markers are left out."""
    below = f"{prefix.key}/" if prefix.key else ""
    arguments: dict[str, Any] = {"Bucket": prefix.bucket, "Prefix": below}
    while True:
        with explained(prefix, "s3:ListBucket"):
            page = client().list_objects_v2(**arguments)
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                uri = Uri(prefix.bucket, entry["Key"])
                yield Object(uri, entry["ETag"].strip('"'), entry["Size"], entry["LastModified"].timestamp())
        if not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]


@contextmanager
def explained(uri: Uri | str, permission: str) -> Iterator[None]:
    """boto3's errors as ours: they name the URI, and the permission that the request needed."""
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as cause:
        raise NotAvailable(
            f"{uri}: no S3 credentials were found",
            fix="Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, where the server runs.",
        ) from cause
    except ClientError as cause:
        raise _refusal(uri, permission, cause) from cause
    except BotoCoreError as cause:
        raise NotAvailable(
            f"{uri}: the S3 store does not answer: {cause}", fix="Check the network, AWS_ENDPOINT_URL and AWS_REGION."
        ) from cause


def _refusal(uri: Uri | str, permission: str, cause: ClientError) -> DatasetError | NotAvailable:
    code = str(cause.response.get("Error", {}).get("Code", ""))
    if code == "NoSuchBucket":
        return DatasetError(f"{uri}: the bucket does not exist", fix="Check the bucket's name and AWS_ENDPOINT_URL.")
    if code in _MISSING:
        return DatasetError(f"{uri} does not exist", fix="Check bucket and key; S3 keys are case-sensitive.")
    if code in _DENIED:
        return DatasetError(
            f"{uri}: access denied; the credentials lack {permission}",
            fix=f"Grant {permission} on it, or choose other credentials with AWS_PROFILE.",
            details={"permission": permission},
        )
    if code in _IDENTITY:
        return NotAvailable(
            f"{uri}: the store does not accept the credentials ({code})",
            fix="Renew them, or check that AWS_PROFILE and AWS_ENDPOINT_URL belong together.",
        )
    if code in _CHANGED:
        return DatasetError(f"{uri} changed while it was read", fix="Call the same thing again.")
    message = cause.response.get("Error", {}).get("Message", "")
    return NotAvailable(f"{uri}: the store answers {code}: {message}", fix="Try again; see the store's own log.")
