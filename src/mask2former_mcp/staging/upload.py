"""One file to one object: in parts where it is large, with the encryption key taken out. Nothing is ever deleted."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from mask2former_mcp.errors import NotAvailable, NotFound
from mask2former_mcp.staging import s3
from mask2former_mcp.staging.uri import Uri

PART = 16 << 20
MASK = b"***"
_TEXT = frozenset({".json", ".jsonl", ".yaml", ".yml", ".txt", ".log", ".csv", ".html", ".md"})
_PIECE = 1 << 20
# `classic`, because boto3's other client ignores the endpoint: it would send the file, and a signature, elsewhere.
_CONFIG = TransferConfig(
    multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4, preferred_transfer_client="classic"
)


def put(content: bytes, uri: Uri) -> None:
    """Small content as one object; the store compares its MD5 with what arrived."""
    digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    with s3.explained(uri, "s3:PutObject"):
        s3.client().put_object(Bucket=uri.bucket, Key=uri.key, Body=content, ContentMD5=digest)


def written(secret: str) -> tuple[bytes, ...]:
    """How a secret may stand in a file: as it is, or as JSON writes it."""
    texts = {secret, *(json.dumps(secret, ensure_ascii=ascii)[1:-1] for ascii in (True, False))}
    return tuple(sorted((text.encode() for text in texts), key=len, reverse=True))


def masked(content: bytes, secrets: Sequence[bytes]) -> bytes:
    for secret in secrets:
        content = content.replace(secret, MASK)
    return content


def send(file: Path, uri: Uri, secrets: Sequence[bytes] = ()) -> bool:
    """The file as an object; in a text file secrets become ***. False: a file that holds one otherwise is not sent.

    OSError when the file cannot be read; NotAvailable and the like from the store.
    """
    if secrets and _holds(file, secrets):
        if file.suffix.lower() not in _TEXT:
            return False
        put(masked(file.read_bytes(), secrets), uri)
    elif file.stat().st_size <= PART:
        put(file.read_bytes(), uri)
    else:
        _send_in_parts(file, uri)
    return True


def _send_in_parts(file: Path, uri: Uri) -> None:
    with s3.explained(uri, "s3:PutObject"):
        try:
            s3.client().upload_file(str(file), uri.bucket, uri.key, Config=_CONFIG)
        except Boto3Error as wrapped:  # boto3 puts what went wrong into an error of its own
            if isinstance(wrapped.__context__, ClientError):
                raise wrapped.__context__ from wrapped
            raise NotAvailable(f"{uri} was not written: {wrapped}", fix="Try again; see the store's log.") from wrapped


def read_json(uri: Uri) -> Any | None:
    """A small object of JSON; None where there is none, or something else."""
    try:
        with s3.explained(uri, "s3:GetObject"):
            body = s3.client().get_object(Bucket=uri.bucket, Key=uri.key)["Body"].read(1 << 20)
        return json.loads(body)
    except (NotFound, ValueError):
        return None


def is_empty(prefix: Uri) -> bool:
    """Whether nothing lies below the prefix."""
    return next(s3.listing(prefix), None) is None


def _holds(file: Path, secrets: Sequence[bytes]) -> bool:
    """Read in pieces that overlap by the length of the longest."""
    longest = max(map(len, secrets))
    with file.open("rb") as stream:
        rest = b""
        while piece := stream.read(_PIECE):
            seen = rest + piece
            if any(secret in seen for secret in secrets):
                return True
            rest = seen[-longest:]
    return False
