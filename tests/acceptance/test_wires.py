"""One server, every way in: both wire eras over stdio, in memory and Streamable HTTP."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client

from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services

ROOT = Path(__file__).resolve().parents[2]
ERAS = {"legacy": "2025-11-25", "auto": "2026-07-28"}


@contextlib.asynccontextmanager
async def connected(way: str, era: str, stdio: Any, environ: dict[str, str]) -> AsyncIterator[Client]:
    if way == "stdio":
        async with Client(stdio, mode=era) as client:
            yield client
    elif way == "memory":
        async with Client(build(Services(environ), reconcile=False), mode=era) as client:
            yield client
    else:
        async with http_server(environ) as url, Client(url, mode=era) as client:
            yield client


@contextlib.asynccontextmanager
async def http_server(environ: dict[str, str]) -> AsyncIterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "server.py"), "--http", "--port", str(port)]
    server = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    try:
        await _listening(port, server)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


async def _listening(port: int, server: subprocess.Popen[bytes]) -> None:
    with anyio.fail_after(30):
        while True:
            assert server.poll() is None, "the HTTP server ended at once"
            try:
                stream = await anyio.connect_tcp("127.0.0.1", port)
            except OSError:
                await anyio.sleep(0.05)
            else:
                await stream.aclose()
                return


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("way", ["stdio", "memory", "http"])
def test_handshake_list_and_plan(way, era, stdio, environ, tiny_training, processes):
    async def ask() -> None:
        async with connected(way, era, stdio, environ) as client:
            assert client.protocol_version == ERAS[era]
            assert "check_dataset" in (client.instructions or "")
            assert len((await client.list_tools()).tools) == 18
            result = await client.call_tool("train", {**tiny_training, "dry_run": True})
            assert not result.is_error, result.content
            assert result.structured_content["action"] == "train"
            assert result.structured_content["digest"]

    anyio.run(ask)


def test_http_listens_on_the_loopback_and_refuses_another_host_name(environ, processes):
    async def ask() -> None:
        async with http_server(environ) as url:
            async with httpx2.AsyncClient() as web:
                answer = await web.post(url, json={}, headers={"Host": "evil.example"})
            assert answer.status_code in (403, 421)

    anyio.run(ask)


def test_the_plan_is_the_same_whichever_way_it_was_asked_for(stdio, environ, tiny_training, processes):
    async def digest(way: str) -> str:
        async with connected(way, "auto", stdio, environ) as client:
            plan = await client.call_tool("train", {**tiny_training, "dry_run": True})
            return plan.structured_content["digest"]

    assert anyio.run(digest, "stdio") == anyio.run(digest, "memory")
