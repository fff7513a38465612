"""skill_info.yaml of the skill and of its deploy twin, built from the tables."""

from collections.abc import Mapping
from typing import Any

from mask2former_mcp.formats.names import FORMATS
from mask2former_mcp.spec import deploy, tables
from mask2former_mcp.spec.experiment import ACTIONS
from mask2former_mcp.spec.presets import PRESETS


def skill_info() -> dict[str, Any]:
    """The whole of references/skill_info.yaml. `images`, `formats`, `metric` and `presets` are this project's keys."""
    return {
        "name": tables.NAME,
        "network_arch": tables.NETWORK_ARCH,
        "automl_enabled": True,
        "metric": tables.METRIC,
        "container_image": tables.PYTORCH_IMAGE,
        "images": {"tao": tables.PYTORCH_IMAGE},
        "data_format": FORMATS[0],
        "formats": list(FORMATS),
        "gpu_spec_key": tables.GPU_KEY,
        "actions": {action: _action(action) for action in ACTIONS},
        "data_sources": _sources(tables.DATA_SOURCES),
        "spec_params": {action: dict(params) for action, params in tables.SPEC_PARAMS.items()},
        "key_defaults": {},
        "spec_shorthand_keys": dict(tables.SHORTHAND),
        "presets": {name: dict(values) for name, values in PRESETS.items()},
        "spec_templates": {action: f"spec_template_{action}.yaml" for action in ACTIONS},
    }


def deploy_skill_info() -> dict[str, Any]:
    """The whole of references/skill_info_deploy.yaml."""
    return {
        "name": deploy.NAME,
        "type": "model",
        "network_arch": tables.NETWORK_ARCH,
        "container_image": deploy.IMAGE,
        "images": {"tao": deploy.IMAGE},
        "data_format": FORMATS[0],
        "actions": {
            action: _block(
                action,
                inputs=(*deploy.INPUTS[action], *_keys(deploy.DATA_SOURCES, action)),
                outputs=deploy.OUTPUTS.get(action, ()),
            )
            for action in deploy.TEMPLATES
        },
        "data_sources": _sources(deploy.DATA_SOURCES),
        "spec_params": {action: dict(params) for action, params in deploy.SPEC_PARAMS.items()},
        "spec_shorthand_keys": dict(deploy.SHORTHAND),
        "spec_templates": {action: f"spec_template_deploy_{action}.yaml" for action in deploy.TEMPLATES},
    }


def _sources(rows: Mapping[str, tuple[tables.Row, ...]]) -> dict[str, Any]:
    return {action: {row.key: row.entry(action) for row in of_action} for action, of_action in rows.items()}


def _keys(rows: Mapping[str, tuple[tables.Row, ...]], action: str) -> tuple[str, ...]:
    return tuple(row.key for row in rows.get(action, ()))


def _action(action: str) -> dict[str, Any]:
    block = _block(
        action,
        inputs=(*tables.EXTRA_INPUTS[action], *_keys(tables.DATA_SOURCES, action)),
        optional=tables.OPTIONAL_INPUTS.get(action, ()),
        outputs=tables.EXTRA_OUTPUTS.get(action, ()),
    )
    # TAO's PyTorch image has no such verb: the engine is built in the deploy image.
    return {**block, "images": {"tao": tables.DEPLOY_IMAGE}} if action == "gen_trt_engine" else block


def _block(
    action: str, *, inputs: tuple[str, ...], outputs: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """One action: its command line, and which keys hold what it reads and writes."""
    read: dict[str, Any] = {key: {"type": _kind(key)} for key in inputs}
    read.update({key: {"type": _kind(key), "optional": True} for key in optional})
    return {
        "command": f"mask2former {action} -e {{config_path}}",
        "config_format": "yaml",
        "mode": "config",
        "inputs": read,
        "outputs": {"results_dir": {"type": "folder"}, **{key: {"type": _kind(key)} for key in outputs}},
        "upload_excludes": ["inputs/"],
    }


def _kind(key: str) -> str:
    return "folder" if key.endswith("_dir") else "file"
