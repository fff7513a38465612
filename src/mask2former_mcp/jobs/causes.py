"""Known causes of failures, as data: how each shows in a log, whose fault it is, what to do about it.

Advice is NVIDIA's published error patterns where it has one, and ours. A cause that a rule names is asked for in the
order of this table where one line shows several.
"""

import re
from dataclasses import dataclass

_RESUME = "resume_job goes on from the last checkpoint"


@dataclass(frozen=True, slots=True)
class Cause:
    """`code` is stable; `pattern` is searched in single lines, case ignored.

    `by_machine`: the infrastructure's fault, so that another attempt may succeed. `anywhere`: the line explains the
    failure wherever it stands, also among harmless ones. `is_symptom`: it mostly follows from something else, so it
    counts only where nothing else is found.
    """

    code: str
    pattern: re.Pattern[str]
    advice: str
    by_machine: bool = False
    anywhere: bool = False
    is_symptom: bool = False


def _cause(code: str, pattern: str, advice: str, **kind: bool) -> Cause:
    return Cause(code, re.compile(pattern, re.IGNORECASE), advice, **kind)


CAUSES = (
    _cause(
        "gpu_fault",
        # Xids 13, 31, 43 and 45 are the program's doing; these are the hardware's.
        r"\bXid\b(?: \([^)]*\))?:? (?:48|6[1-4]|74|79|92|94|95|119|120|140)\b"
        r"|uncorrectable ECC|fallen off the bus|GPU is lost",
        f"The GPU itself failed. {_RESUME}; leave this GPU out (setting `gpus`).",
        by_machine=True,
        anywhere=True,
    ),
    _cause(
        "device_assert",
        r"device-side assert|an illegal memory access|Target \d+ is out of bounds",
        "Most often a class id outside the range: run check_dataset and compare its num_classes with the spec's.",
        anywhere=True,
    ),
    _cause(
        "out_of_memory",
        r"out of memory|OutOfMemoryError|DefaultCPUAllocator|\bMemoryError\b|can('t|not) allocate memory",
        "Use a smaller batch_size (1 is the least), smaller images (dataset.augmentation.train_crop_size), "
        "train.activation_checkpoint=true, train.precision=fp16, or a smaller backbone.",
    ),
    _cause(
        "shared_memory_full",
        r"Bus error|insufficient shared memory|shared memory \(shm\)|unable to \w+ (?:to )?file </torch_",
        "Give more shared memory (container_shm_gb in config.toml), or set dataset.train.num_workers=0.",
    ),
    _cause(
        "disk_full",
        r"No space left on device|Disk quota exceeded|Errno 28",
        "Free space (delete_job removes a job's folder), or keep fewer checkpoints with train.checkpoint_interval.",
    ),
    _cause(
        "storage_failed",
        r"Input/output error|Stale file handle|Transport endpoint is not connected|Errno (?:5|107|116)\b",
        f"The disk or the network file system failed. Look at the mount; {_RESUME}.",
        by_machine=True,
    ),
    _cause(
        "gpu_driver",  # not retried: the next attempt would meet the same driver
        r"Found no NVIDIA driver|CUDA driver version is insufficient|no CUDA-capable device|forward compatibility was"
        r" attempted|libcuda\.so\.1: cannot open|No CUDA GPUs are available",
        "This machine's NVIDIA driver is missing or too old for the program: update it, or take another image.",
    ),
    _cause(
        "engine_missing",
        r"No module named '?(torch|mask2former_mcp|lightning_fabric|onnx\w*|pycocotools|cv2|scipy|yaml)",
        "Install the engine's packages (extra `engine`) into the Python that runs jobs; doctor names them and how.",
    ),
    _cause(
        "checkpoint_mismatch",
        r"size mismatch for|Missing key\(s\) in state_dict|Unexpected key\(s\) in state_dict",
        "The weights belong to another network: use parent_job_id, which carries the architecture, or the same keys.",
    ),
    _cause(
        "format_mismatch",
        r"KeyError: '(?:segments_info|segmentation|isthing|iscrowd|panoptic_\w+|file_name)'",
        "The annotations are of another format than dataset.*.type and model.mode say: panoptic annotations for"
        " coco_panoptic, instances for coco. check_dataset finds out which they are.",
    ),
    _cause(
        "output_exists",
        r"AssertionError.*\bonnx\b.*\bexists?\b|\bonnx file\b.*already exists",
        "TAO's export refuses to write over a file: resume_job gives it a fresh folder.",
    ),
    _cause(
        "export_size",
        r"minus_one_pos != -1",
        "TAO's exporter cannot trace this input size: keep 960 x 544 (input_width, input_height), or use"
        " runtime='engine'.",
    ),
    _cause(
        "image_bug",
        r"load_from_checkpoint\(\) got an unexpected|missing 1 required positional argument: 'cfg'",
        "A known bug of older TAO images: use the pinned one (leave image out), or runtime='engine'.",
    ),
    _cause(
        "engine_incompatible",
        r"MultiscaleDeformableAttnPlugin|Version tag does not match|deserialize.* engine|incompatible.*(?:engine|plan)",
        "An engine runs only where it was built, and a graph from TAO's export needs the deploy image's plugin: run"
        " gen_trt_engine again on this machine with the same runtime.",
    ),
    _cause(
        "bad_image",
        r"UnidentifiedImageError|cannot identify image file|image file is truncated|broken data stream",
        "Repair or remove the file; check_dataset (role='inference' for images alone) names every such file.",
    ),
    _cause(
        "bad_checkpoint",
        r"is no checkpoint, or holds objects that cannot be read",
        "Name another file, or parent_job_id for the one that a job has made: a resume would meet the same file again.",
    ),
    _cause(
        "invalid_spec",
        r"Configuration error|Schema validation error|Parameter validation error|ConfigAttributeError|ConfigKeyError"
        r"|ConfigTypeError|Cannot convert 'DictConfig'|AssertionError.*(?:checkpoint|validation)_interval",
        "Correct the value; search_spec shows what each key accepts.",
    ),
    _cause(
        "missing_file",
        r"FileNotFoundError|No such file or directory|NotADirectoryError",
        "Check that the file exists and that this user may read it; check_dataset lists what a data set lacks.",
    ),
    _cause("permission_denied", r"PermissionError|Permission denied", "Give this user access to the path."),
    _cause("not_available", r"Feature not implemented", "Choose another value; search_spec shows what there is."),
    _cause(
        "worker_died",
        r"DataLoader worker .*(killed by signal|exited unexpectedly)",
        f"Most often for want of memory: set dataset.train.num_workers=0 or a smaller batch_size; {_RESUME}.",
        is_symptom=True,
    ),
    _cause(
        "communication_failed",
        r"NCCL (error|timeout)|nccl\w+Error|Watchdog caught collective|\bgloo\b.*(timeout|connect)",
        f"{_RESUME}; NCCL_DEBUG=INFO in the server's environment says more.",
        by_machine=True,
        is_symptom=True,
    ),
    _cause(
        "interrupted",
        r"User/System interruption|interrupted by SIG|^KeyboardInterrupt",
        f"Ended from outside. {_RESUME}.",
        is_symptom=True,
    ),
)
