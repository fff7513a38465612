"""A skill bundle read from disk: skill_info + schemas + templates. The server knows a model only through its bundle.

Read are this project's own files and folders of NVIDIA's skill bank, whose schemas are converted on the way in.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, SchemaError

from mask2former_mcp import data_source, dialect
from mask2former_mcp.data_source import DataSource
from mask2former_mcp.errors import BundleError, NotFound

_PACKAGE = Path(__file__).resolve().parent
_YAML: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
REGENERATE = "Run scripts/generate in a checkout, reinstall the package, or point skill_dir at a complete skill folder."


@dataclass(frozen=True)
class Bundle:
    """A bundle. What is read later (schemas, templates) is read fresh each time: callers may change what they get."""

    name: str
    network_arch: str
    directory: Path
    automl_enabled: bool
    digest: str
    actions: tuple[str, ...]
    shorthand: Mapping[str, str]
    presets: Mapping[str, Mapping[str, Any]]
    formats: tuple[str, ...]
    metric: str | None
    deploy: "Bundle | None"
    notes: tuple[str, ...]
    _info: Mapping[str, Any] = field(repr=False)
    _sources: Mapping[str, tuple[DataSource, ...]] = field(repr=False)
    _home: Path = field(repr=False)
    """The folder that skill_info lies in: template paths start there."""

    def data_sources(self, action: str) -> tuple[DataSource, ...]:
        """The action's rows, in the table's order; none for an action without data."""
        return self._sources.get(self._known(action), ())

    def spec_params(self, action: str) -> Mapping[str, str | Mapping[str, str]]:
        """Spec key -> inference function (`parent_model`, ...), or {link, destination_path}."""
        params = self._of_action("spec_params", action)
        if not params and self.deploy is not None and action in self.deploy.actions:
            return self.deploy.spec_params(action)
        return params

    def template(self, action: str) -> dict[str, Any]:
        """The action's defaults, nested. BundleError, naming file and cause, when missing or not a mapping."""
        path = self._template_path(self._known(action))
        if not path.is_file() and self.deploy is not None and action in self.deploy.actions:
            return self.deploy.template(action)
        return _mapping(path, _read_yaml(path))

    def schema(self, action: str) -> dict[str, Any]:
        """The action's spec as standard JSON Schema 2020-12. BundleError when missing, broken, or another network's."""
        path = self.directory / "schemas" / f"{self._known(action)}.schema.json"
        schema = _mapping(path, _read_json(path))
        if not isinstance(schema.get("properties"), dict):
            raise _broken(path, "it has no `properties`, so it describes no spec")
        arch = schema.get("x_tao_schema", {}).get("network_arch", self.network_arch)
        if arch != self.network_arch:
            raise _broken(path, f"it is made for network '{arch}', this bundle for '{self.network_arch}'")
        return _checked(path, schema if dialect.is_standard(schema) else dialect.standard(schema))

    def automl_runnable(self) -> str | None:
        """None when the train schema and template exist and parse; otherwise the reason why a search cannot run."""
        try:
            self.schema("train")
            self.template("train")
        except (BundleError, NotFound) as reason:
            return reason.message
        return None

    def image(self, action: str, runtime: str) -> str | None:
        """The container image; None where the bundle names none for this runtime. `tao` is NVIDIA's."""
        described = self._of_action("actions", action)
        named = {**self._info.get("images", {}), **described.get("images", {})}.get(runtime)
        if named is None and runtime == "tao":
            if not described and self.deploy is not None:
                return self.deploy.image(action, runtime)
            named = described.get("container_image", self._info.get("container_image"))
        return str(named) if named else None

    def command(self, action: str) -> tuple[str, ...]:
        """The command line in words, with `{config_path}` where the spec file goes."""
        described = self._of_action("actions", action)
        if not described and self.deploy is not None and action in self.deploy.actions:
            return self.deploy.command(action)
        return tuple(str(described.get("command", f"{self.network_arch} {action} -e {{config_path}}")).split())

    def _known(self, action: str) -> str:
        if action not in self.actions:
            raise NotFound(
                f"bundle '{self.name}' has no action '{action}'", fix=f"Choose one of: {', '.join(self.actions)}."
            )
        return action

    def _of_action(self, table: str, action: str) -> Mapping[str, Any]:
        found = self._info.get(table, {}).get(self._known(action), {})
        return found if isinstance(found, Mapping) else {}

    def _template_path(self, action: str) -> Path:
        named = self._info.get("spec_templates", {}).get(action)
        if named is None:
            return self.directory / "references" / f"spec_template_{action}.yaml"
        path = (self._home / str(named)).resolve()
        if not path.is_relative_to(self.directory):
            raise _broken(self._home, f"the template path '{named}' of '{action}' leads out of the bundle")
        if not path.is_file() and (beside := self.directory / "references" / path.name).is_file():
            return beside
        return path


def load(directory: Path | None = None) -> Bundle:
    """The bundle in a folder; None: the one that comes with this package.

    BundleError, naming file and cause, when skill_info is missing, does not parse or lacks what identifies a bundle.
    """
    root = (directory or packaged()).expanduser().resolve()
    found = [path for path in (root / "references" / "skill_info.yaml", root / "skill_info.yaml") if path.is_file()]
    if not found:
        raise BundleError(f"{root} is not a skill bundle: it has no references/skill_info.yaml", fix=REGENERATE)
    twins = sorted(path for path in found[0].parent.glob("*skill_info*.yaml") if "deploy" in path.name)
    digest = _digest(root)
    deploy = _bundle(root, twins[0], digest, deploy=None) if twins else None
    bundle = _bundle(root, found[0], digest, deploy=deploy)
    return bundle if root == packaged().resolve() else _with_known_formats(bundle, load())


def _with_known_formats(bundle: Bundle, own: Bundle) -> Bundle:
    """Which format reads which row, where a foreign bundle of the same network does not say it: as in our own."""
    if bundle.network_arch != own.network_arch:
        return bundle
    known = {(action, row.key): row.formats for action in own.actions for row in own.data_sources(action)}
    sources = {
        action: tuple(
            row if row.formats is not None else replace(row, formats=known.get((action, row.key))) for row in rows
        )
        for action, rows in bundle._sources.items()
    }
    return replace(bundle, _sources=sources)


def packaged() -> Path:
    """The folder of the bundle that comes with this package: inside a wheel, or the root of a checkout."""
    inside = _PACKAGE / "_bundle"
    return inside if inside.is_dir() else _PACKAGE.parent.parent


def _bundle(root: Path, info_path: Path, digest: str, *, deploy: Bundle | None) -> Bundle:
    info = _mapping(info_path, _read_yaml(info_path))
    for table in (
        "actions",
        "data_sources",
        "spec_params",
        "spec_shorthand_keys",
        "spec_templates",
        "presets",
        "images",
    ):
        if not isinstance(info.setdefault(table, {}) or {}, dict):
            raise _broken(info_path, f"`{table}` is not a mapping")
        info[table] = info[table] or {}
    if not info.get("network_arch") or not info["actions"]:
        raise _broken(info_path, "it names no `network_arch` or no `actions`")
    notes: list[str] = []
    sources = {
        action: tuple(row for key, entry in rows.items() if (row := data_source.read(action, key, entry, notes)))
        for action, rows in info["data_sources"].items()
    }
    actions = [*info["actions"], *(deploy.actions if deploy else ())]
    return Bundle(
        name=str(info.get("name") or root.name),
        network_arch=str(info["network_arch"]),
        directory=root,
        automl_enabled=info.get("automl_enabled") is True,
        digest=digest,
        actions=tuple(dict.fromkeys(actions)),
        shorthand=info["spec_shorthand_keys"],
        presets=info["presets"],
        formats=tuple(info.get("formats") or [info[k] for k in ("data_format",) if k in info]),
        metric=info.get("metric"),
        deploy=deploy,
        notes=tuple(notes),
        _info=info,
        _sources=sources,
        _home=info_path.parent,
    )


def _digest(root: Path) -> str:
    """sha256 over names and bytes of what decides a Plan: skill_info, schemas and templates. Guides do not count."""
    files = [root / "skill_info.yaml", *(root / "schemas").glob("*.json"), *(root / "references").glob("*.yaml")]
    total = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as cause:
        raise _broken(path, _one_line(cause)) from cause


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as cause:
        raise _broken(path, _one_line(cause)) from cause


def _mapping(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _broken(path, "it does not hold a mapping")
    return value


def _checked(path: Path, schema: dict[str, Any]) -> dict[str, Any]:
    try:
        # With the formats: a pattern that is no regular expression would only fail in the middle of a plan.
        Draft202012Validator.check_schema(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    except SchemaError as cause:
        raise _broken(path, f"it is no JSON Schema at {cause.json_path}: {cause.message}") from cause
    return schema


def _broken(path: Path, cause: str) -> BundleError:
    return BundleError(f"{path}: {cause}", fix=REGENERATE)


def _one_line(cause: Exception) -> str:
    if isinstance(cause, FileNotFoundError):
        return "the file does not exist"
    return " ".join(str(cause).split())
