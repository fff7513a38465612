"""An S3-speaking store through boto3: what lies under a prefix, and errors that say what to change.

Credentials, profile, region and endpoint come from boto3's own chain (AWS_PROFILE, AWS_ENDPOINT_URL, roles, ...).
boto3's `crt` transfer client is never used: it ignores the endpoint, and would send data to another store.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from mask2former_mcp.errors import DatasetError, Mask2FormerError, NotAvailable, NotFound, NotReady
from mask2former_mcp.staging.uri import Uri

THREADS = 10  # ranges of one large object at once
OBJECTS = 24  # small objects at once: each mostly waits for an answer, also on a fast network
_ATTEMPTS = 5  # of one request, with backoff, on throttling and 5xx: a dead store is told within a tool call's time
_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchVersion"}
_DENIED = {"403", "AccessDenied", "AllAccessDisabled", "AccountProblem"}
_IDENTITY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "429", "503"}
_CHECK_BUCKET = "Check the bucket's name and AWS_ENDPOINT_URL."
_CHANGED = {"412", "PreconditionFailed"}


@dataclass(frozen=True, slots=True)
class Object:
    """One object as it is now. `etag` without quotes."""

    uri: Uri
    etag: str
    size: int
    version: str | None = None


@cache
def client() -> Any:
    """One client for the process; boto3's clients may be used by several threads."""
    config = Config(
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=2 * THREADS + OBJECTS,
        connect_timeout=5,
        read_timeout=30,
        # Stores other than AWS do not know the newer checksum trailers; transfers are verified here, by ETag.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with explained("s3", "any"):
        return boto3.session.Session().client("s3", config=config)


def look(uri: Uri) -> Object:
    """The object itself. NotFound when it does not exist, NotAvailable when it may not be read."""
    try:
        with explained(uri, "s3:GetObject"):
            answer = client().head_object(Bucket=uri.bucket, Key=uri.key)
    except NotFound:
        _require_bucket(uri)  # an answer without a body does not say which of the two is missing
        raise
    version = answer.get("VersionId")
    etag = answer["ETag"].strip('"')
    return Object(uri, etag, answer["ContentLength"], None if version == "null" else version)


def exactly(source: Object) -> dict[str, str]:
    """Arguments of a request for this state of the object, and no other."""
    state = {"VersionId": source.version} if source.version else {"IfMatch": f'"{source.etag}"'}
    return {"Bucket": source.uri.bucket, "Key": source.uri.key, **state}


def find(uri: Uri) -> Object | None:
    """The object, or None where there is none, or none that may be seen."""
    try:
        return look(uri)
    except NotFound:
        return None
    except NotAvailable as cause:
        # Without s3:ListBucket a store answers 403 for what does not exist.
        if "permission" in cause.details:
            return None
        raise


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
                yield Object(uri, entry["ETag"].strip('"'), entry["Size"])
        if not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]


def _require_bucket(uri: Uri) -> None:
    try:
        client().head_bucket(Bucket=uri.bucket)
    except ClientError as cause:
        if cause.response.get("Error", {}).get("Code") in (*_MISSING, "NoSuchBucket"):
            raise NotFound(f"{uri}: the bucket does not exist", fix=_CHECK_BUCKET) from cause


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
    except (HTTPClientError, EndpointConnectionError) as cause:
        raise NotAvailable(
            f"{uri}: the S3 store does not answer: {cause}",
            fix="Check the network, AWS_ENDPOINT_URL and AWS_REGION.",
            details={"retry": True},
        ) from cause
    except BotoCoreError as cause:
        raise NotAvailable(
            f"{uri}: S3 cannot be used: {cause}", fix="Check AWS_PROFILE, AWS_REGION and AWS_ENDPOINT_URL."
        ) from cause


def _refusal(uri: Uri | str, permission: str, cause: ClientError) -> Mask2FormerError:
    code = str(cause.response.get("Error", {}).get("Code", ""))
    if code == "NoSuchBucket":
        return NotFound(f"{uri}: the bucket does not exist", fix=_CHECK_BUCKET)
    if code in _MISSING:
        return NotFound(f"{uri} does not exist", fix="Check bucket and key; S3 keys are case-sensitive.")
    if code in _DENIED:
        return NotAvailable(
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
    if code in _BUSY or cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
        return NotReady(
            f"{uri}: the store is busy or broken ({code}), also after {_ATTEMPTS} attempts",
            fix="Try again in a moment.",
        )
    return NotAvailable(f"{uri}: the store answers {code}: {message}", fix="Try again; see the store's own log.")
