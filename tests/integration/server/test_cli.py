"""The command line for people: the same services, readable output, truthful exit codes."""

import json

import pytest

from mask2former_mcp import cli
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.planning.request import TrainRequest
from mask2former_mcp.server.services import Services


@pytest.fixture(autouse=True)
def _own_environment(environ, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def test_version_is_one_line(capsys):
    assert cli.main(["version"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_doctor_prints_every_check_with_its_verdict(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "[ok] skill bundle" in out
    assert "[warning] engine" in out


def test_check_prints_the_report_and_fails_for_unfit_data(capsys, belt, tmp_path):
    assert cli.main(["check", str(belt / "train"), "--sample", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["derived"]["num_classes"] == 9
    assert cli.main(["check", str(tmp_path)]) == 1
    assert "Fix:" in capsys.readouterr().err


def test_jobs_and_logs_show_what_the_store_holds(capsys, environ, tiny_training):
    services = Services(environ)
    plan = services.planner.plan(TrainRequest(**tiny_training))
    services.jobs.store.insert(
        Job(id="train-7f3k9q2d", action="train", state=JobState.QUEUED, plan=plan, created_at=1.0, results_dir="r")
    )
    services.jobs.store.transition("train-7f3k9q2d", JobState.FAILED, expect=(JobState.QUEUED,), text="made to fail")
    folder = services.settings.home / "jobs" / "train-7f3k9q2d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text("first\n\x1b[31msecond\x1b[0m\n")
    assert cli.main(["jobs"]) == 0
    told = capsys.readouterr().out
    assert told.split("\t")[:3] == ["train-7f3k9q2d", "1970-01-01T00:00:01+00:00", "failed"]
    assert cli.main(["logs", "train-7f3k9q2d", "--tail", "1"]) == 0
    assert capsys.readouterr().out == "second\n"


def test_an_unknown_job_is_an_error_with_its_fix(capsys):
    assert cli.main(["logs", "train-00000000"]) == 1
    assert "not_found" in capsys.readouterr().err


def test_generate_writes_a_skill_folder_that_the_server_can_read(capsys, tmp_path, monkeypatch):
    assert cli.main(["generate", "--bundle", str(tmp_path / "skills")]) == 0
    folder = capsys.readouterr().out.strip()
    monkeypatch.setenv("M2F_SKILL_DIR", folder)
    assert cli.main(["doctor"]) == 0
    assert "[ok] skill bundle" in capsys.readouterr().out


def test_wrong_usage_exits_with_2():
    with pytest.raises(SystemExit) as ended:
        cli.main(["fly"])
    assert ended.value.code == 2
