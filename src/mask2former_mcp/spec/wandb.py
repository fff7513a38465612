"""Weights & Biases: used only where WANDB_API_KEY is in the environment of the job."""

from mask2former_mcp.spec.field import Section, Texts, spec_field


class Wandb(Section):
    enable: bool = spec_field(
        True, "Log the run to Weights & Biases. Without WANDB_API_KEY in the job's environment nothing is sent."
    )
    project: str = spec_field("TAO Toolkit", "Project that the run is filed under.")
    entity: str = spec_field("", "User or team that owns the project; empty: the key's default.")
    group: str = spec_field("", "Name that ties several runs together, such as the trials of one study.")
    tags: Texts = spec_field(("tao-toolkit",), "Labels of the run.")
    reinit: bool = spec_field(False, "Allow a second run in the same process.")
    sync_tensorboard: bool = spec_field(False, "Copy the TensorBoard events to the run as well.")
    save_code: bool = spec_field(False, "Upload the program's source with the run.")
    name: str = spec_field("TAO Toolkit Training", "Display name of the run.")
    run_id: str = spec_field("", "Continue the run with this id; empty: a new run.")
