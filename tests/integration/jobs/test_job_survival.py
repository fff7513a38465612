"""kill -9 of whatever there is to kill: nothing is lost, and there are never two trainers."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import NotAvailable
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.jobs.spawn import spawn
from mask2former_mcp.jobs.supervisor import Supervisor
from mask2former_mcp.platforms.local import LocalPlatform
from mask2former_mcp.platforms.locks import ProcessLock
from mask2former_mcp.platforms.process import identify, labelled
from mask2former_mcp.platforms.protocol import Handle, Report, Task, silent

pytestmark = pytest.mark.timeout(60)

SUBMIT_AND_HANG = """
import sys, time
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.settings import Settings
jobs = Jobs(Settings.load())
print(jobs.submit(Plan.model_validate_json(sys.argv[1])).id, flush=True)
time.sleep(600)
"""


def record(bench: Any, job: Any, attempt: int = 1) -> dict[str, Any]:
    path = bench.job_dir(job) / "run" / str(attempt) / "process.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_server_killed_with_its_whole_process_group_does_not_take_the_job_along(bench: Any) -> None:
    plan = bench.plan(epochs=4, fake={"epoch_s": 0.3})
    source = Path(__file__).parents[3] / "src"
    environ = bench.settings.environment(bench.environ) | {"PYTHONPATH": str(source)}
    server = subprocess.Popen(
        [sys.executable, "-c", SUBMIT_AND_HANG, plan.model_dump_json()],
        env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert server.stdout is not None
    job_id = server.stdout.readline().strip()
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    server.stdout.close()
    jobs = bench.jobs()
    ended = bench.finish(jobs, jobs.get(job_id))
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
    assert len(bench.starts(jobs, ended)) == 1


def test_a_killed_supervisor_is_replaced_and_its_child_adopted_with_the_exit_code(bench: Any, jobs: Jobs) -> None:
    job = jobs.submit(bench.plan(epochs=5, fake={"epoch_s": 0.25, "exit": 7, "no_done": True}))
    bench.until(lambda: bench.starts(jobs, job), "the engine to run")
    bench.kill(bench.supervisor(jobs, job))
    assert bench.jobs().get(job.id).attempt == 1
    ended = bench.finish(jobs, job)
    assert (ended.state, ended.attempt) == (JobState.FAILED, 1)
    assert jobs.attempts(job.id)[0].exit_code == 7
    assert len(bench.starts(jobs, job)) == 1
    assert len(jobs.metrics(job.id)["mIoU"]) == 5


def test_a_child_that_ended_while_nobody_looked_is_judged_by_its_recorded_code(bench: Any, jobs: Jobs) -> None:
    job = jobs.submit(bench.plan(epochs=1, fake={"epoch_s": 0.4}))
    bench.until(lambda: bench.starts(jobs, job), "the engine to run")
    bench.kill(bench.supervisor(jobs, job))
    bench.until((bench.job_dir(job) / "run/1/exit_status.json").exists, "the launcher to record the end")
    ended = bench.finish(jobs, job)
    assert (ended.state, ended.attempt, len(bench.starts(jobs, job))) == (JobState.SUCCEEDED, 1, 1)


def test_supervisor_launcher_and_child_killed_together_go_on_from_the_last_checkpoint(bench: Any, jobs: Jobs) -> None:
    job = bench.hang(jobs, epochs=4)
    processes = record(bench, job)
    bench.kill(bench.supervisor(jobs, job), processes["launcher"]["pid"], processes["command"]["pid"])
    ended = bench.finish(jobs, job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    assert jobs.attempts(job.id)[1].resumed_from == "model_epoch_001_step_00019.pth"
    assert [attempt.state for attempt in jobs.attempts(job.id)] == [JobState.LOST, JobState.SUCCEEDED]
    assert [point[0] for point in jobs.metrics(job.id)["mIoU"]] == [0, 1, 2, 3]
    assert bench.never_two(jobs, job)


def test_a_killed_launcher_leaves_its_child_in_peace_and_an_unknown_exit_code_is_not_success(
    bench: Any, jobs: Jobs
) -> None:
    job = jobs.submit(bench.plan(epochs=3, fake={"epoch_s": 0.3}))
    bench.until(lambda: bench.starts(jobs, job), "the engine to run")
    bench.kill(record(bench, job)["launcher"]["pid"])
    ended = bench.finish(jobs, job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    assert jobs.attempts(job.id)[0].exit_code is None
    assert jobs.attempts(job.id)[1].resume_epoch == 2  # the first attempt had written all of its checkpoints
    assert bench.never_two(jobs, job)


def test_automatic_restarts_are_bounded_and_then_the_job_is_lost_with_the_reason(bench: Any) -> None:
    jobs = bench.jobs(max_restarts=0)
    job = bench.hang(jobs)
    processes = record(bench, job)
    bench.kill(processes["launcher"]["pid"], processes["command"]["pid"])
    ended = bench.finish(jobs, job)
    assert (ended.state, ended.error_code) == (JobState.LOST, "lost")
    assert "nobody recorded an exit code" in ended.message
    assert jobs.store.get(job.id).handle is not None
    resumed = bench.finish(jobs, jobs.resume(job.id))
    assert (resumed.state, resumed.attempt) == (JobState.SUCCEEDED, 2)


def test_two_supervisors_at_once_start_one_trainer(bench: Any, jobs: Jobs) -> None:
    job = jobs.submit(bench.plan(epochs=3, fake={"epoch_s": 0.2}))
    threads = [
        threading.Thread(target=spawn, args=(jobs.settings, jobs.store, job, jobs.environ)) for _ in range(3)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = bench.finish(jobs, job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
    assert len(bench.starts(jobs, job)) == 1
    assert bench.never_two(jobs, job)


def test_a_pid_that_now_belongs_to_somebody_else_is_not_taken_for_the_child(bench: Any, jobs: Jobs) -> None:
    job = bench.hang(jobs)
    processes = record(bench, job)
    bench.kill(bench.supervisor(jobs, job), processes["launcher"]["pid"], processes["command"]["pid"])
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    reused = {name: {**identity, "pid": stranger.pid} for name, identity in processes.items()}
    (bench.job_dir(job) / "run/1/process.json").write_text(json.dumps(reused))
    try:
        ended = bench.finish(jobs, job)
        assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
        assert bench.runs(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


def test_a_supervisor_killed_while_stopping_is_replaced_and_the_stop_completed(bench: Any) -> None:
    jobs = bench.jobs(cancel_grace_s=1.0)
    job = bench.hang(jobs, fake={"ignore_term": True})
    jobs.cancel(job.id)
    bench.kill(bench.supervisor(jobs, job))
    assert jobs.store.get(job.id).state is JobState.STOPPING
    ended = bench.finish(jobs, job)
    assert ended.state is JobState.CANCELLED
    assert not bench.runs(bench.starts(jobs, job)[0])


def test_a_queued_job_survives_its_supervisor_and_a_waiting_one_revives_who_is_before_it(
    bench: Any, jobs: Jobs
) -> None:
    first = bench.hang(jobs, epochs=3)
    second = jobs.submit(bench.plan(epochs=1))
    bench.until(lambda: jobs.store.get(second.id).phase.startswith("waiting"), "the second job to wait")
    processes = record(bench, first)
    bench.kill(bench.supervisor(jobs, first), processes["launcher"]["pid"], processes["command"]["pid"])
    # Nobody asks about either job through a service: the waiting supervisor notices by itself.
    assert bench.reach(jobs, second, JobState.SUCCEEDED).state is JobState.SUCCEEDED
    assert jobs.store.get(first.id).state is JobState.SUCCEEDED
    third = jobs.submit(bench.plan(epochs=1, fake={"epoch_s": 0.2}))
    bench.kill(bench.supervisor(jobs, third))
    assert bench.finish(jobs, third).state is JobState.SUCCEEDED


def test_a_job_whose_folder_is_gone_is_lost_with_the_reason(bench: Any, jobs: Jobs, tmp_path: Path) -> None:
    job = bench.hang(jobs)
    processes = record(bench, job)
    bench.kill(bench.supervisor(jobs, job), processes["launcher"]["pid"], processes["command"]["pid"])
    bench.job_dir(job).rename(tmp_path / "elsewhere")
    ended = bench.finish(jobs, job)
    assert ended.state is JobState.LOST
    assert "is gone" in ended.message


def test_a_dead_supervisor_that_nobody_reaped_is_a_zombie_and_is_replaced(bench: Any, jobs: Jobs) -> None:
    job = bench.unfollowed(jobs, epochs=1)
    dying = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    jobs.store.note_supervisor(job.id, dict(identify(dying.pid) or {}), spawned=True)
    assert jobs.reconcile() == []
    dying.kill()
    bench.until(lambda: not bench.runs(dying.pid), "it to be a zombie")
    assert jobs.reconcile() == [job.id]
    assert bench.finish(jobs, job).state is JobState.SUCCEEDED
    dying.communicate()


def test_of_servers_that_share_a_home_one_at_a_time_revives_jobs(bench: Any, jobs: Jobs) -> None:
    other, job = bench.jobs(), bench.unfollowed(jobs, epochs=1)
    with ProcessLock(jobs.store.home / "reconcile.lock") as held_by_a_third:
        assert held_by_a_third.acquire()
        assert jobs.reconcile() == other.reconcile() == []
        assert jobs.store.get(job.id).supervisor is None
    together = threading.Barrier(2)

    def revived(server: Jobs) -> Sequence[str]:
        together.wait()
        return server.reconcile()

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(revived, (jobs, other)), key=len) == [[], [job.id]]
    ended = bench.finish(jobs, job)
    assert (ended.state, len(bench.starts(jobs, job))) == (JobState.SUCCEEDED, 1)


class Forgetful(LocalPlatform):
    """Starts the command, and says that it could not."""

    def submit(self, task: Task, report: Report = silent) -> Handle:
        super().submit(task, report)
        raise NotAvailable("it answers nonsense", fix="Repair it.")


def test_what_a_failed_start_left_is_ended_before_its_devices_are_given_back(bench: Any, jobs: Jobs) -> None:
    job = bench.unfollowed(jobs, fake={"start_s": 600})
    platform = Forgetful(jobs.settings.home, jobs.settings.engine)
    Supervisor(jobs.settings, jobs.store, platform, jobs.environ).run(job.id)
    ended = jobs.store.get(job.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "not_available")
    assert not labelled("M2F_RUN", str(bench.job_dir(job) / "run/1"))
