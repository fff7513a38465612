"""The environment of a job's process: an allow-list, so that a secret of the server never reaches it by accident."""

import os
import re
from collections.abc import Mapping, Sequence

_ALLOWED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR|PYTHON[A-Z]*|VIRTUAL_ENV|LD_LIBRARY_PATH"
    r"|CUDA_[A-Z0-9_]+|NVIDIA_[A-Z0-9_]+|NCCL_[A-Z0-9_]+|GLOO_[A-Z0-9_]+|CUBLAS_[A-Z0-9_]+"
    r"|OMP_[A-Z0-9_]+|GOMP_[A-Z0-9_]+|KMP_[A-Z0-9_]+|MKL_[A-Z0-9_]+|OPENBLAS_[A-Z0-9_]+|TORCH[A-Z0-9_]*|PYTORCH_[A-Z0-9_]+|TRITON_[A-Z0-9_]+"
    r"|XDG_[A-Z_]+|MPLCONFIGDIR|WANDB_(API_KEY|BASE_URL|MODE|ENTITY|PROJECT|DIR)"
    r"|(?i:http_proxy|https_proxy|no_proxy|all_proxy)|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
)
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
# How often a waiting OpenMP thread (PyTorch's CPU wheels bring libgomp) looks before it sleeps: about 0.1 ms instead of
# 3 ms. Where another process has a core, threads of a training step that wait for each other burn the share that they
# wait for; see benchmarks/engine_cpu.md.
_SPINS = "10000"
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # what a user may have said about it
_LEAST_SECRET = 4  # characters; masking shorter values would only garble the log


def child_environment(environ: Mapping[str, str], *, devices: Sequence[str], cpu_share: int | None) -> dict[str, str]:
    """What a job's process sees: allowed variables, only its own GPUs, and its share of the cores.

    `devices` are GPU UUIDs (none: the CPU). `cpu_share` is how many jobs share the cores, None for all of them alone.
    """
    result = {name: value for name, value in environ.items() if _ALLOWED.fullmatch(name)}
    result["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    result["PYTHONUNBUFFERED"] = "1"
    if cpu_share is not None and cpu_share > 1 and "OMP_NUM_THREADS" not in result:
        result["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // cpu_share, 1))
    if cpu_share is not None and not any(name in result for name in _WAITING):
        result["GOMP_SPINCOUNT"] = _SPINS
    return result


def secrets_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Values that must not appear in a log."""
    found = {value for name, value in environment.items() if _SECRET_NAME.search(name) and len(value) >= _LEAST_SECRET}
    return tuple(sorted(found))
