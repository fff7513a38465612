"""A model file that lies in S3: named in a request, found by name while planning, fetched when the job is prepared."""

from pathlib import Path

from mask2former_mcp import lineage
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.lineage import Chosen
from mask2former_mcp.staging.uri import SCHEME, Uri


def is_stored(text: str) -> bool:
    return text.lower().startswith(SCHEME)


def find(argument: str, text: str, suffixes: tuple[str, ...], home: Path, left_s: float) -> Chosen:
    """The file in its mirror, where only the spec beside it can be read yet.

    InvalidRequest for a malformed URI (nobody is asked), NotFound and NotAvailable from the store.
    """
    try:
        uri = Uri.parse(text)
    except ValueError as cause:
        raise InvalidRequest(f"{argument}={text[:200]!r}: {cause}", fix="Pass s3://bucket/key of the file.") from cause
    lineage.require_suffix(argument, text, suffixes)
    # Imported here: boto3 takes a quarter of a second to import, and only files in S3 need it.
    from mask2former_mcp.staging import mirror

    place = mirror.outline(uri.parent, home, only=(uri.name, lineage.SIDECAR), deadline_s=left_s)
    epoch, step = lineage.named_position(uri.name)
    reason = f"the file named by {argument}, {uri}"
    return Chosen(place / uri.name, "", reason, epoch, step, uri=str(uri), state=place.name)
