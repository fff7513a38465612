"""Which platform a job belongs to, by name."""

import os
from collections.abc import Mapping

import psutil

from mask2former_mcp.platforms.local import LocalPlatform
from mask2former_mcp.platforms.protocol import Platform
from mask2former_mcp.settings import Settings

_SHARE = 0.9  # of this machine's memory, where the operator sets no limit
_LEAST_SECRET = 4


def platform_for(
    name: str, settings: Settings, secrets: tuple[str, ...], environ: Mapping[str, str] = os.environ
) -> Platform:
    """The platform that runs, or ran, a job whose Plan says `name`. `secrets`: what its log may hold and must not."""
    if name == "docker":
        # Imported here, because the docker SDK costs a quarter of a second at each start of a supervisor.
        from mask2former_mcp.platforms.docker import DockerPlatform, Limits
        from mask2former_mcp.platforms.docker_daemon import Daemon
        from mask2former_mcp.platforms.docker_image import logins

        memory = settings.container_memory_gb or _SHARE * psutil.virtual_memory().total / 2**30
        limits = Limits(
            memory_gb=memory,
            cpus=settings.container_cpus,
            pids=settings.container_pids,
            shm_gb=settings.container_shm_gb,
            network=settings.container_network,
        )
        masked = tuple(secret for secret in secrets if len(secret) >= _LEAST_SECRET)
        return DockerPlatform(settings.home, limits, Daemon(environ.get("DOCKER_HOST")), masked, logins(environ))
    return LocalPlatform(settings.home, settings.engine)
