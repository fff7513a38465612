"""One run of one verb: read the spec, open the results folder, run, and say truthfully how it ended."""

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mask2former_mcp.engine import launch, out_of_memory, processes
from mask2former_mcp.engine.interruption import Interrupted, immediate
from mask2former_mcp.engine.rank import Channel
from mask2former_mcp.engine.status import StatusLog
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import Experiment, load

EXIT_FAILED, EXIT_SPEC = 1, 2
MASK = "***"
SECRET = "encryption_key"


def run(action: str, spec_file: Path, overrides: Sequence[str]) -> int:
    """Runs `action` and returns the exit code; every failure leaves a FAILURE line where a results folder is known.

    Where several processes share the work, this one starts them, and each of them comes here with a Channel to it.
    """
    mapping: dict[str, Any] = {}
    try:
        mapping = processes.from_environment(action, read_spec(spec_file, overrides), os.environ)
        spec = load(action, mapping)
        folder = results_folder(action, spec)
        shared = processes.of(action, spec, os.environ)
    except (ValueError, OSError) as error:
        _tell(action, mapping, f"Configuration error: {error}")
        return EXIT_SPEC
    if shared.nodes > 1:  # maybe the spec alone has said so: who writes status.json is asked of the environment
        os.environ["WORLD_SIZE"] = str(shared.nodes)
    if shared.node > 0 and action not in processes.SHARED_VERBS:
        print(f"{action} runs on the first node alone: nothing to do on node {shared.node}", flush=True)
        return 0
    verb = partial(_verb, action, spec, folder)
    if processes.CHANNEL in os.environ:
        channel = Channel(os.environ)
        channel.leave(_attempt(action, channel, verb))

    def work() -> None:
        if shared.node == 0:
            write_spec(folder / "experiment.yaml", spec)
        if shared.total > 1 and action in processes.SHARED_VERBS:
            command = [sys.executable, "-m", "mask2former_mcp.engine", action, "-e", str(spec_file), *overrides]
            launch.run(shared, command)
        else:
            verb()

    return _attempt(action, StatusLog(folder), work)


def _verb(action: str, spec: Experiment, folder: Path) -> None:
    importlib.import_module(f"mask2former_mcp.engine.{action}").run(spec, folder)


def _attempt(action: str, status: StatusLog | Channel, work: Callable[[], None]) -> int:
    """Does the work, says how it ended, and returns the exit code."""
    status.started(f"Starting Mask2Former {action}.")
    try:
        with immediate():
            work()
    except Interrupted as error:
        status.failure(f"{action.capitalize()} {error}.")
        print(f"mask2former: {error}", file=sys.stderr)
        return 128 + error.signal_number
    except BaseException as error:  # noqa: BLE001 - the outermost frame: whoever watches must read of it, whatever it was
        message = explain(error)
        if not isinstance(error, launch.RunFailed):  # the process that failed has printed where
            traceback.print_exc()
        print(f"mask2former: {message}", file=sys.stderr)
        with contextlib.suppress(OSError):  # a full disk takes no line either; the exit code and stderr tell of it
            status.failure(message)
        return EXIT_FAILED
    status.success(f"{action.capitalize()} finished successfully.")
    return 0


def read_spec(spec_file: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The nested mapping of the YAML file with `key=value` overrides applied. Raises ValueError, OSError."""
    try:
        mapping = yaml.safe_load(spec_file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        # Its own text quotes the line, which may be that of a secret.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(
            f"{spec_file}{where}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}"
        ) from None
    if not isinstance(mapping, dict):
        raise ValueError(f"{spec_file} must hold a mapping of sections, found {type(mapping).__name__}")  # noqa: TRY004 - a file's content
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override {override!r} must be written key=value, for example train.num_epochs=20")
        plain = not value or key == SECRET  # a key of digits is text all the same
        mapping = dotted.with_value(mapping, key, value if plain else yaml.safe_load(value))
    return mapping


def results_folder(action: str, spec: Experiment) -> Path:
    """`<action>.results_dir` if set, else `<results_dir>/<action>`. Raises ValueError when neither is set."""
    own = getattr(getattr(spec, action), "results_dir", "")
    if not own and not spec.results_dir:
        raise ValueError(f"results_dir is empty: set results_dir, or {action}.results_dir, to a folder to write to")
    return Path(own) if own else Path(spec.results_dir) / action


def write_spec(path: Path, spec: Experiment) -> None:
    """The resolved spec, its encryption key masked."""
    content = spec.model_dump(mode="json")
    if content.get(SECRET):
        content[SECRET] = MASK
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def explain(error: BaseException) -> str:
    """The one line that a FAILURE carries."""
    text = str(error) or type(error).__name__
    if isinstance(error, launch.RunFailed):
        return text
    if out_of_memory.ran_out(error):
        return out_of_memory.explain(error)
    if "in DataLoader worker process" in text:  # it comes with the worker's whole traceback; the last line says it
        return f"Data error: {text.strip().splitlines()[-1].partition('Error: ')[2] or text.strip().splitlines()[-1]}"
    if isinstance(error, NotImplementedError):
        return f"Feature not implemented: {text}"
    if isinstance(error, ValueError):
        return f"Parameter validation error: {text}"
    if isinstance(error, OSError):
        return f"File system error: {text}"
    return f"{type(error).__name__}: {text}"


def _tell(action: str, mapping: dict[str, Any], message: str) -> None:
    """A spec that does not load still names a results folder most of the time: say there what is wrong with it."""
    if mapping.get(SECRET):  # the message may be about just that value
        message = message.replace(repr(mapping[SECRET]), MASK).replace(str(mapping[SECRET]), MASK)
    print(f"mask2former: {message}", file=sys.stderr)
    section = mapping.get(action)
    own = section.get("results_dir") if isinstance(section, dict) else None
    folder = Path(own) if own else Path(mapping["results_dir"]) / action if mapping.get("results_dir") else None
    if folder is not None and os.access(_existing(folder), os.W_OK):
        status = StatusLog(folder)
        status.started(f"Starting Mask2Former {action}.")
        status.failure(message)


def _existing(folder: Path) -> Path:
    return folder if folder.exists() or folder.parent == folder else _existing(folder.parent)
