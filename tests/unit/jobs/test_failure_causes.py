"""The table of known causes: each is recognised, the first root wins over what follows, only machines are retried."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former_mcp.jobs.causes import CAUSES
from mask2former_mcp.jobs.failure import explain
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.status import Run
from mask2former_mcp.jobs.verdict import judge

# One line of each cause, as a program or a driver writes it.
LINES = {
    "gpu_fault": "NVRM: Xid (PCI:0000:3b:00): 79, pid=7, GPU has fallen off the bus.",
    "device_assert": "RuntimeError: CUDA error: device-side assert triggered",
    "out_of_memory": "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "shared_memory_full": "RuntimeError: unable to write to file </torch_77_12>: No space left on device (28)",
    "disk_full": "OSError: [Errno 28] No space left on device",
    "storage_failed": "OSError: [Errno 116] Stale file handle: '/data/0/images/7.jpg'",
    "gpu_driver": "RuntimeError: Found no NVIDIA driver on your system.",
    "engine_missing": "ModuleNotFoundError: No module named 'torch'",
    "checkpoint_mismatch": "RuntimeError: Error(s) in loading state_dict: size mismatch for model.class_embed.weight",
    "format_mismatch": "KeyError: 'segments_info'",
    "output_exists": "AssertionError: Default onnx file /results/export/model.onnx already exists",
    "export_size": "RuntimeError: minus_one_pos != -1 INTERNAL ASSERT FAILED",
    "image_bug": "TypeError: Mask2formerPlModule.__init__() missing 1 required positional argument: 'cfg'",
    "engine_incompatible": "RuntimeError: 6: Version tag does not match. Current Version: 239, Serialized Engine: 236",
    "bad_image": "PIL.UnidentifiedImageError: cannot identify image file '/data/0/images/7.jpg'",
    "bad_checkpoint": "Parameter validation error: /w.pth is no checkpoint, or holds objects that cannot be read",
    "invalid_spec": "omegaconf.errors.ConfigKeyError: Key 'type' not in 'DatasetConfig'",
    "missing_file": "FileNotFoundError: [Errno 2] No such file or directory: '/data/0/label_map.json'",
    "permission_denied": "PermissionError: [Errno 13] Permission denied: '/results'",
    "not_available": "NotImplementedError: Feature not implemented: SGD",
    "worker_died": "RuntimeError: DataLoader worker (pid(s) 7) exited unexpectedly",
    "communication_failed": "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970",
    "interrupted": "KeyboardInterrupt",
}
RETRIED = {"gpu_fault", "storage_failed", "communication_failed"}
NOISE = (
    "[rank3]:[E1124 ProcessGroupNCCL.cpp:629] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)",
    "torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error",
    "RuntimeError: DataLoader worker (pid(s) 7) exited unexpectedly",
    "Traceback (most recent call last):",
    '  File "train.py", line 7, in main',
    "KeyboardInterrupt",
    "Execution status: FAIL",
    "epoch 3: train_loss 0.7",
)

UNKNOWN = (
    "ValueError: too many values to unpack (expected 2)",
    "KeyError: 77",
    "ZeroDivisionError: division by zero",
    "RuntimeError: shape '[2, 3]' is invalid for input of size 7",
    "AssertionError",
    "hydra.errors.InstantiationException: Error in call to target",
)


def test_every_cause_of_the_table_is_recognised_and_advises() -> None:
    assert {cause.code for cause in CAUSES} == LINES.keys()
    for code, line in LINES.items():
        found = explain(1, None, ["epoch 3", line])
        assert found.code == code, line
        assert found.is_retried == (code in RETRIED), code
        assert len(found.message) > len(line) + 20, code


@settings(max_examples=200, deadline=None)
@given(
    code=st.sampled_from([cause.code for cause in CAUSES if not cause.is_symptom]),
    rank=st.sampled_from(["", "[rank0]: ", "[rank11]: "]),
    before=st.lists(st.sampled_from(NOISE[3:5] + NOISE[7:]), max_size=50),
    after=st.lists(st.sampled_from(NOISE), max_size=400),
)
def test_the_first_root_cause_wins_over_any_noise_that_follows(
    code: str, rank: str, before: list[str], after: list[str]
) -> None:
    found = explain(1, None, [*before, rank + LINES[code], *after])
    assert found.code == code
    assert found.is_retried == (code in RETRIED)


@settings(max_examples=200, deadline=None)
@given(
    error=st.sampled_from(UNKNOWN),
    rank=st.sampled_from(["", "[rank0]: ", "[rank11]: "]),
    failure=st.sampled_from([None, "NCCL error: remote process exited", "User/System interruption"]),
    before=st.lists(st.sampled_from(NOISE[3:5] + NOISE[7:]), max_size=50),
    after=st.lists(st.sampled_from(NOISE), max_size=400),
)
def test_an_error_that_nobody_knows_is_the_programs_whatever_it_drags_along(
    error: str, rank: str, failure: str | None, before: list[str], after: list[str]
) -> None:
    found = explain(1, failure, [*before, rank + error, *after])
    assert (found.code, found.is_retried) == ("program_error", False)
    assert error in found.message


def test_what_the_program_says_in_its_status_counts_before_the_symptoms_in_its_log() -> None:
    found = explain(1, "Train failed: ValueError: x must be y", NOISE)
    assert (found.code, found.is_retried) == ("program_error", False)


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ((NOISE[0], "KeyError: 77"), "communication_failed"),  # it stands behind the symptom
        (("RuntimeError: [pair.cc:553] Connection closed by peer", NOISE[0]), "communication_failed"),
        (("ConnectionResetError: [Errno 104] Connection reset by peer", NOISE[2]), "worker_died"),
        (("UserWarning: the loader is slow", NOISE[1]), "communication_failed"),
    ],
)
def test_who_only_misses_another_process_is_no_cause(lines: tuple[str, ...], code: str) -> None:
    assert explain(1, None, lines).code == code


@settings(max_examples=100, deadline=None)
@given(
    first=st.sampled_from(["out_of_memory", "disk_full", "checkpoint_mismatch", "bad_image"]),
    second=st.sampled_from(["missing_file", "out_of_memory", "disk_full", "permission_denied"]),
)
def test_of_two_root_causes_the_earlier_one_is_told(first: str, second: str) -> None:
    assert explain(1, None, [LINES[first], "Traceback (most recent call last):", LINES[second]]).code == first


def test_the_programs_memory_is_not_the_machines_fault_whatever_nccl_says() -> None:
    lines = [LINES["out_of_memory"], *NOISE[:2] * 100]
    verdict = judge(1, Run(), (), lines)
    assert (verdict.state, verdict.error_code, verdict.is_retried) == (JobState.FAILED, "out_of_memory", False)
    assert judge(1, Run(), (), NOISE[:2]).is_retried
    assert not judge(1, Run(), (), NOISE[:2], stopping=True).is_retried
    assert not judge(137, Run(), (), NOISE[:2], out_of_memory=True).is_retried


@pytest.mark.parametrize("number", [13, 31, 43, 45])
def test_xids_that_a_program_causes_are_not_the_gpus_fault(number: int) -> None:
    lines = [f"NVRM: Xid (PCI:0000:3b:00): {number}, pid=7", "RuntimeError: CUDA error: an illegal memory access was"]
    assert explain(1, None, lines).code == "device_assert"


def test_taos_words_for_an_interruption_are_understood_although_it_ends_with_zero() -> None:
    verdict = judge(0, Run(failure="User/System interruption"), (), ["Execution status: PASS"])
    assert (verdict.state, verdict.error_code) == (JobState.FAILED, "interrupted")


def test_the_published_advice_for_memory_is_given() -> None:
    message = explain(1, None, [LINES["out_of_memory"]]).message
    assert all(word in message for word in ("batch_size", "crop_size", "backbone"))
