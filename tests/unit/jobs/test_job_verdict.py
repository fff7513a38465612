import pytest

from mask2former_mcp.jobs.failure import explain
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.status import Run
from mask2former_mcp.jobs.verdict import judge

DONE = Run(segments=1, done=True)


def test_success_takes_exit_code_done_line_and_artifacts_together() -> None:
    assert judge(0, DONE, (), ()).state is JobState.SUCCEEDED
    assert judge(1, DONE, (), ()).state is JobState.FAILED
    assert judge(0, Run(segments=1), (), ()).error_code == "not_finished"
    assert judge(0, Run(failure="boom"), (), ()).state is JobState.FAILED
    assert judge(0, DONE, ("train/*.pth",), ()).error_code == "artifact_missing"


def test_what_finished_before_the_stop_reached_it_has_succeeded_and_the_rest_is_cancelled() -> None:
    assert judge(0, DONE, (), (), stopping=True).state is JobState.SUCCEEDED
    assert judge(143, Run(failure="interrupted"), (), (), stopping=True).state is JobState.CANCELLED
    assert judge(0, DONE, ("x",), (), stopping=True).state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("code", "failure", "log", "expected"),
    [
        (1, None, ["torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"], "out_of_memory"),
        (1, None, ["RuntimeError: CUDA error: device-side assert triggered", "ncclSystemError: ..."], "device_assert"),
        (1, None, ["NVRM: Xid (PCI:0): 79, GPU has fallen off the bus", "RuntimeError: CUDA error"], "gpu_fault"),
        (1, "File system error: [Errno 28] No space left on device", [], "disk_full"),
        (1, "Configuration error: Key 'foo' not in 'Config'", [], "invalid_spec"),
        (2, "Parameter validation error: train.num_epochs must be > 0", [], "invalid_spec"),
        (1, None, ["NCCL INFO Bootstrap", "Permission denied", *["step"] * 30, "KeyError: 3"], "program_error"),
        (1, None, ["FileNotFoundError: [Errno 2] No such file or directory: '/a.json'"], "missing_file"),
        (1, None, ["ModuleNotFoundError: No module named 'torch'"], "engine_missing"),
        (1, None, ["PIL.UnidentifiedImageError: cannot identify image file 'x.jpg'"], "bad_image"),
        (1, None, ["RuntimeError: Error(s) in loading state_dict: size mismatch for model.x"], "checkpoint_mismatch"),
        (-7, None, ["Bus error (core dumped)"], "shared_memory_full"),
        (-9, None, [], "killed"),
        (-9, None, ["UserWarning: [Errno 2] No such file or directory: 'cache'"], "killed"),
        (-9, None, ["torch.cuda.OutOfMemoryError: CUDA out of memory"], "out_of_memory"),
        (1, None, ["RuntimeError: DataLoader worker (pid(s) 7) exited unexpectedly"], "worker_died"),
        (1, None, ["RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error."], "shared_memory_full"),
        (137, None, [], "killed"),
        (143, "Train interrupted by SIGTERM.", [], "interrupted"),
        (-11, None, [], "crashed"),
        (1, None, ["Traceback (most recent call last):", "ValueError: x must be y", "cleanup"], "program_error"),
        (1, None, [], "program_error"),
    ],
)  # fmt: skip
def test_a_failure_is_named_by_its_root_cause(code: int, failure: str | None, log: list[str], expected: str) -> None:
    found = explain(code, failure, log)
    assert found.code == expected
    assert len(found.message) > 20


def test_a_line_that_advises_already_is_not_advised_again() -> None:
    line = "Out of memory: 9 GB. What helps, best first: a smaller dataset.train.batch_size."
    assert explain(1, line, []).message == line


def test_the_message_quotes_the_cause_and_is_bounded() -> None:
    assert "ValueError: x must be y" in explain(1, None, ["Traceback", "ValueError: x must be y", "bye"]).message
    assert len(explain(1, "x" * 5000, []).message) < 500


def test_a_kill_is_told_by_its_signal_its_likely_cause_and_how_to_go_on() -> None:
    message = explain(-9, None, ["epoch 3"]).message
    assert all(words in message for words in ("signal 9", "memory", "batch_size", "resume_job"))
