"""The bytes of a store's answer, piece by piece."""

import http.client
from collections.abc import Iterator
from typing import Any

SIZE = 512 << 10


def pieces(body: Any, length: int) -> Iterator[memoryview]:
    """The first `length` bytes of boto3's `body`, fewer where the connection ends before; each piece until the next.

    Neither botocore nor urllib3 fills memory that is there already, which saves a tenth of a large transfer. So the
    answer of http.client is asked, which both keep where they always did; where it is not, they are asked themselves.
    """
    response = getattr(body, "_raw_stream", None)
    answer = getattr(response, "_fp", None)
    if not isinstance(answer, http.client.HTTPResponse) or answer.chunked:
        while length and (piece := body.read(min(SIZE, length))):
            yield memoryview(piece)
            length -= len(piece)
        return
    room = memoryview(bytearray(min(SIZE, length)))
    while length and (arrived := answer.readinto(room[:length])):
        yield room[:arrived]
        length -= arrived
    if answer.isclosed():
        response.release_conn()  # type: ignore[union-attr]  # it has an answer, so it is there; the connection is free
