"""What the operator decides: where the home is, what may run, how many jobs at once.

Each setting is a field here, a key of `config.toml` in the home, and a variable `M2F_<FIELD>`; the variable wins over
the file, the file over the default. `M2F_HOME` alone decides the home, because the file lives there.
"""

import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import platformdirs

from mask2former_mcp.errors import InvalidRequest

APP_NAME = "mask2former-mcp"
PREFIX = "M2F_"
# As Docker's own grammar of references; an image's id is one as well.
_IMAGE = re.compile(
    r"(?:[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*(?::\d+)?/)?"
    r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*"
    r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
KEY_VARIABLE = "M2F_ENCRYPTION_KEY"  # the `key` of TAO's specs; read when a job is prepared, never stored in Settings


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's choices. Durations are seconds."""

    home: Path
    skill_dir: Path | None = None  # a bundle folder; None: the packaged one
    platform: str = "local"
    runtime: str = "engine"
    images: tuple[str, ...] = ()  # container images that `image` may name
    engine_image: str = "mask2former-engine:latest"  # what platform=docker runs; scripts/build-image makes it
    container_memory_gb: float = 0.0  # of one container; 0: nine tenths of this machine's
    container_cpus: float = 0.0  # of one container; 0: all
    container_pids: int = 4096
    container_shm_gb: float = 8.0  # /dev/shm, where data loaders hand over batches
    container_network: str = "none"  # none | bridge | the name of a Docker network; never the host's
    python: str = sys.executable  # the interpreter that has the engine
    engine_command: tuple[str, ...] = ()  # stands for `mask2former`; empty: `python -m mask2former_mcp.engine`
    gpus: str = "auto"  # auto | none | UUIDs, comma-separated: what jobs may lease
    cpu_slots: int = 1  # jobs at once on a machine without a GPU
    s3_cache_gb: float = 200.0  # what was fetched from S3 and no live job needs is removed beyond this
    upload_every_s: float = 15.0  # how often results go to S3, where a job's results_dir is there
    keep_checkpoints: bool = False  # of all trials of a study; False: the best one of each finished trial
    require_digest: bool = False  # starting a job needs `expect_digest`
    max_restarts: int = 3  # automatic attempts after a lost process, per submission or resume
    cancel_grace_s: float = 60.0  # between SIGTERM and SIGKILL: time to write a checkpoint
    poll_s: float = 0.5  # how often a supervisor looks

    @property
    def engine(self) -> tuple[str, ...]:
        """The command that stands for `mask2former` on this machine."""
        return self.engine_command or (self.python, "-m", "mask2former_mcp.engine")

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read `M2F_*` and `<home>/config.toml`; InvalidRequest names the key, the value and the rule."""
        home = Path(environ.get(f"{PREFIX}HOME") or platformdirs.user_data_dir(APP_NAME)).expanduser().absolute()
        values: dict[str, Any] = {}
        for name, value in _file_values(home / "config.toml").items():
            values[name] = _parse(name, value, f"{home / 'config.toml'}: {name}")
        for name in _PARSERS:
            text = environ.get(PREFIX + name.upper())
            if text is not None and text != "":
                values[name] = _parse(name, text, PREFIX + name.upper())
        return cls(home=home, **values)

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """`environ` with these settings as `M2F_*` variables, so that a process started from here decides alike."""
        stale = {PREFIX + name.upper() for name in _PARSERS}
        result = {name: value for name, value in environ.items() if name not in stale}
        result[f"{PREFIX}HOME"] = str(self.home)
        for name in _PARSERS:
            value = getattr(self, name)
            if value is None or value == ():
                continue
            result[PREFIX + name.upper()] = json.dumps(value) if isinstance(value, tuple | bool) else str(value)
        return result


def _file_values(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            values = tomllib.load(stream)
    except FileNotFoundError:
        return {}
    except NotADirectoryError as error:
        raise InvalidRequest(
            f"the home {path.parent} is not a folder", fix=f"Set {PREFIX}HOME to a folder, or to one that can be made."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}", fix="Correct the file or move it away.") from error
    for name in values:
        if name not in _PARSERS:
            near = get_close_matches(name, list(_PARSERS), n=3)
            known = ", ".join(near or sorted(_PARSERS))
            raise InvalidRequest(f"{path}: unknown setting {name!r}", fix=f"Settings of that kind: {known}.")
    return values


def _parse(name: str, value: object, where: str) -> Any:
    try:
        return _PARSERS[name](value)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"{where} = {value!r}: {error}", fix=f"Correct {where}.") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004 - one error class for every bad value
    return value


def _path(value: object) -> Path:
    return Path(_text(value)).expanduser().absolute()


def _words(value: object) -> tuple[str, ...]:
    """A list, a JSON list, or words as a shell splits them."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else shlex.split(value)
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError("must be a list of texts")
    return tuple(value)


def _image(value: object) -> str:
    name = _text(value)
    if not _IMAGE.fullmatch(name):
        raise ValueError(
            f"{name!r} is no image: they are written [host[:port]/]name[:tag][@digest], the name in small letters"
        )
    return name


def _images(value: object) -> tuple[str, ...]:
    return tuple(_image(word) for word in _words(value))


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = _text(value).strip().lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ValueError("must be true or false")


def _whole(least: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        number = value if isinstance(value, int) and not isinstance(value, bool) else int(_text(value))
        if number < least:
            raise ValueError(f"must be at least {least}")
        return number

    return parse


def _seconds(value: object) -> float:
    number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else float("nan")
    if not 0 < number < 86_400:
        raise ValueError("must be a number of seconds above 0, below a day")
    return number


def _amount(value: object) -> float:
    number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else float("nan")
    if not 0 <= number < 1e6:
        raise ValueError("must be a number, 0 or more")
    return number


def _network(value: object) -> str:
    name = _text(value)
    if name == "host" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError("must be none, bridge or the name of a Docker network, and not the host's")
    return name


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return parse


_PARSERS: dict[str, Callable[[object], Any]] = {
    "skill_dir": _path,
    "platform": _one_of("local", "docker"),
    "runtime": _one_of("engine", "tao"),
    "images": _images,
    "engine_image": _image,
    "container_memory_gb": _amount,
    "container_cpus": _amount,
    "container_pids": _whole(16),
    "container_shm_gb": _amount,
    "container_network": _network,
    "python": _text,
    "engine_command": _words,
    "gpus": _text,
    "cpu_slots": _whole(1),
    "s3_cache_gb": _amount,
    "upload_every_s": _seconds,
    "keep_checkpoints": _flag,
    "require_digest": _flag,
    "max_restarts": _whole(0),
    "cancel_grace_s": _seconds,
    "poll_s": _seconds,
}
assert set(_PARSERS) == {field.name for field in fields(Settings)} - {"home"}
