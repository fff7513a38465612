"""What a prepared task becomes when a container runs it: the paths inside, the mounts, the user, the environment.

Inside, results are at /results, the container's own copy of the spec and its HOME at /job (both writable, both owned by
the user inside), and every file or folder that the spec names at /data/<number>/<name>, read-only. The copy of the spec
lies outside the results, because it may hold the encryption key and results are shown and shared.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.plan import Mount
from mask2former_mcp.platforms.protocol import Bind, Task

RESULTS, INSIDE = "/results", "/job"
_READABLE = ("results", "holdout", "derived")  # of any job: a trial reads what its study staged
UNPRIVILEGED = 65532  # who a container is where the caller is root
# Its entry point reports every run to NVIDIA otherwise. JOB_ID and WORLD_SIZE must stay unset: the one wants a log
# folder that nobody makes, the other makes it rewrite the spec.
_TAO: Mapping[str, str] = {"TELEMETRY_OPT_OUT": "yes"}
# Where NVIDIA's runtime is Docker's default, an image that asks for all GPUs would get them without a lease.
_NO_GPU: Mapping[str, str] = {"NVIDIA_VISIBLE_DEVICES": "void"}
_MOUNTS_FILE = "mounts.json"  # of an attempt: path inside -> path on this machine
_ALLOWED = re.compile(r"TZ|LANG|LC_[A-Z]+|OMP_NUM_THREADS|NCCL_[A-Z0-9_]+|CUBLAS_WORKSPACE_CONFIG|PYTORCH_[A-Z0-9_]+")
SYSTEM = tuple(
    map(Path, ("/proc", "/sys", "/dev", "/run", "/var/run", "/etc", "/boot", "/var/lib/docker", "/root/.ssh"))
)


def contained(task: Task, spec: Mapping[str, Any], folders: Folders, digest: str, *, is_tao: bool = False) -> Task:
    """The task for a container; writes its copy of the spec and gives the user inside its folders.

    InvalidRequest: the spec names a path that no container may see, or that its user cannot read.
    """
    is_root = os.getuid() == 0
    user = (UNPRIVILEGED, UNPRIVILEGED) if is_root else (os.getuid(), os.getgid())
    groups = () if is_root else tuple(sorted({*os.getgroups()} - {user[1]}))
    own = folders.job / "run" / str(task.attempt) / "inside"
    (own / "home").mkdir(parents=True, exist_ok=True)
    own.chmod(0o700)
    mounts = _Mounts(folders)
    inner = mounts.translated(dict(spec))
    for bind in mounts.binds:
        _must_be_readable(bind.source, user[0], {user[1], *groups})
        _must_be_whole(bind.source)
    text = yaml.safe_dump(inner, sort_keys=False, allow_unicode=True)
    descriptor = os.open(own / "spec.yaml", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    if is_root:
        _give(own, user)
        _give(folders.results, user)
    writable = (Bind(folders.results, RESULTS, read_only=False), Bind(own, INSIDE, read_only=False))
    binds = (*writable, *mounts.binds)
    temporary = own.parent / f".{_MOUNTS_FILE}"
    temporary.write_text(json.dumps({bind.target: str(bind.source) for bind in binds}))
    temporary.replace(own.parent / _MOUNTS_FILE)
    at = task.command.index(str(folders.spec))
    return replace(
        task,
        command=(*task.command[:at], f"{INSIDE}/spec.yaml", *task.command[at + 1 :]),
        environment={**environment(task.environment), **({} if task.devices else _NO_GPU), **(_TAO if is_tao else {})},
        digest=digest,
        binds=binds,
        user=user,
        groups=groups,
        is_foreign=is_tao,
    )


def planned(spec: Mapping[str, Any]) -> tuple[Mount, ...]:
    """The mounts of a Plan whose spec still holds placeholders, as `contained` will make them for the first attempt."""
    targets: dict[str, str] = {}
    for text in _texts(spec):
        if text.startswith(("{home}/", "{job_dir}/")) or (text.startswith("/") and os.path.exists(text)):
            source = text if text.startswith("{") else str(Path(text).resolve())
            targets.setdefault(source, _target(len(targets), text))
    writable = (("{results_dir}", RESULTS), ("{job_dir}/run/1/inside", INSIDE))
    return (
        *(Mount(source=source, target=target, read_only=False) for source, target in writable),
        *(Mount(source=source, target=target) for source, target in targets.items()),
    )


def as_outside(text: str, folders: Folders, attempt: int) -> str:
    """What a container said, with the paths of this machine where it names those inside."""
    try:
        mounts = json.loads((folders.job / "run" / str(attempt) / _MOUNTS_FILE).read_text())
    except (OSError, ValueError):  # a local process has none; a full disk or a crash may have taken it
        return text
    inside = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, mounts))})(?![\w-])")
    return inside.sub(lambda match: mounts[match[0]], text)


def environment(outside: Mapping[str, str]) -> dict[str, str]:
    """By allow-list and by name, and no secret at all: `docker inspect` shows it to everybody in the docker group."""
    home = f"{INSIDE}/home"
    return {
        **{name: value for name, value in outside.items() if _ALLOWED.fullmatch(name)},
        # A uid without a name and without a home breaks torch's import and every cache below ~.
        "HOME": home,
        "USER": "mask2former",
        "LOGNAME": "mask2former",
        "XDG_CACHE_HOME": f"{home}/.cache",
        "TORCH_HOME": f"{home}/.cache/torch",
        "HF_HOME": f"{home}/.cache/huggingface",
        "TRITON_CACHE_DIR": f"{home}/.cache/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{home}/.cache/inductor",
        "MPLCONFIGDIR": f"{home}/.cache/matplotlib",
        "PYTHONUNBUFFERED": "1",
    }


def _target(number: int, path: str) -> str:
    return f"/data/{number}/{os.path.basename(os.path.normpath(path))}"


def _texts(value: Any) -> Iterator[str]:
    """The texts of a spec, in its order, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


class _Mounts:
    """Collects a read-only mount for each path of this machine that a spec names."""

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self._targets: dict[Path, str] = {}

    @property
    def binds(self) -> tuple[Bind, ...]:
        return tuple(Bind(source, target) for source, target in self._targets.items())

    def translated(self, value: Any) -> Any:
        """The value with paths of this machine replaced by those inside, in texts however deep."""
        if isinstance(value, str):
            return self._path(value) if value.startswith("/") else value
        if isinstance(value, dict):
            return {key: self.translated(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.translated(inner) for inner in value]
        return value

    def _path(self, text: str) -> str:
        named = Path(os.path.normpath(text))
        if named.is_relative_to(self.folders.results):
            rest = named.relative_to(self.folders.results)
            return RESULTS if rest == Path() else f"{RESULTS}/{rest}"
        if not named.exists():
            return text
        source = named.resolve()
        self._must_be_allowed(text, named, source)
        return self._targets.setdefault(source, _target(len(self._targets), named.name))

    def _must_be_allowed(self, text: str, named: Path, source: Path) -> None:
        home = self.folders.home.resolve()
        why = ""
        if named.is_relative_to(self.folders.home) and not source.is_relative_to(home):
            why = "a link there leads out of the server's folder"  # a container may have left it
        elif source == Path("/") or home.is_relative_to(source):
            why = "it holds the server's own files"
        elif any(source.is_relative_to(place) for place in SYSTEM):
            why = "it belongs to the system"
        elif held := next((place for place in SYSTEM if place.is_relative_to(source)), None):
            why = f"it holds {held}, which belongs to the system"
        elif source.is_relative_to(home):
            below = source.relative_to(home).parts
            of_job = below[0] == "jobs" and len(below) > 3 and below[2] in _READABLE
            why = "" if below[0] == "cache" or of_job else "it is the server's own file"
        if why:
            raise InvalidRequest(
                f"{text} cannot be given to a container: {why}", fix="Put the data into a folder of its own."
            )


def _must_be_readable(source: Path, uid: int, groups: Set[int]) -> None:
    """What the permissions of the mount itself allow; deeper files show when they are opened."""
    found = source.stat()
    shift = 6 if found.st_uid == uid else 3 if found.st_gid in groups else 0
    needed = 0o5 if source.is_dir() else 0o4
    if (found.st_mode >> shift) & needed != needed:
        raise InvalidRequest(
            f"{source} cannot be read by uid {uid}, who runs the container",
            fix=f"chmod -R o+rX {source}, or run the server as its owner.",
        )


def _must_be_whole(source: Path) -> None:
    """Only the folder is mounted: a link in it that leads elsewhere would lead nowhere inside. Only the first level is
    looked at: to walk through a large dataset takes long, and deeper links show when they are opened."""
    if not source.is_dir():
        return
    with os.scandir(source) as entries:
        for entry in entries:
            target = Path(os.path.realpath(entry.path)) if entry.is_symlink() else source
            if not target.is_relative_to(source) and target.exists():
                raise InvalidRequest(
                    f"{entry.path} is a link to {target}, outside of the folder that a container sees",
                    fix="Copy the files there instead of linking them (cp -rL does), or use platform=local. Only its "
                    "first level was looked at: check the folders in it, too.",
                )


def _give(folder: Path, user: tuple[int, int]) -> None:
    """Links are given, never followed."""
    os.lchown(folder, *user)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.lchown(Path(parent, name), *user)
