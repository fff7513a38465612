"""What a spec becomes inside a container: paths, mounts, user, environment."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.contained import as_outside, contained, environment
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.platforms.protocol import Bind, Task


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    job = tmp_path / "home" / "jobs" / "train-1"
    (job / "results").mkdir(parents=True)
    return Folders(home=tmp_path / "home", job=job, results=job / "results")


def in_container(folders: Folders, spec: dict[str, Any]) -> Task:
    task = Task(
        job_id="train-1",
        attempt=1,
        command=("mask2former", "train", "-e", str(folders.spec)),
        job_dir=folders.job,
        results_dir=folders.results,
        log_file=folders.log,
        devices=(),
    )
    return contained(task, spec, folders, "digest")


def test_paths_become_read_only_mounts_and_the_spec_says_where(folders: Folders, tmp_path: Path) -> None:
    data = tmp_path / "belt" / "images"
    data.mkdir(parents=True)
    data.chmod(0o755)
    spec = {"results_dir": str(folders.results), "dataset": {"train": {"img_dir": str(data)}, "val": [str(data)]}}
    spec["export"] = {"onnx_file": f"{folders.results}/export/model.onnx", "note": "/no/such/file"}
    task = in_container(folders, spec)
    own = folders.job / "run" / "1" / "inside"
    assert task.command == ("mask2former", "train", "-e", "/job/spec.yaml")
    assert task.binds == (Bind(folders.results, "/results", False), Bind(own, "/job", False),
                          Bind(data, "/data/0/images"))  # fmt: skip
    assert yaml.safe_load((own / "spec.yaml").read_text()) == {
        "results_dir": "/results",
        "dataset": {"train": {"img_dir": "/data/0/images"}, "val": ["/data/0/images"]},
        "export": {"onnx_file": "/results/export/model.onnx", "note": "/no/such/file"},
    }
    assert (own / "spec.yaml").stat().st_mode & 0o777 == 0o600
    assert task.user is not None
    assert task.user[0] != 0
    assert (own / "spec.yaml").stat().st_uid == folders.results.stat().st_uid == task.user[0]


@pytest.mark.parametrize(
    "path", ["/", "/etc", "/etc/passwd", "/proc/self/environ", "/dev/null", "/run", "/var", "/var/lib", "{home}",
             "{home}/config.toml",
             "{home}/jobs/train-2/spec.yaml", "{home}/..", "{link}"],
)  # fmt: skip
def test_what_is_not_data_is_never_mounted(folders: Folders, tmp_path: Path, path: str) -> None:
    (folders.home / "config.toml").touch()
    (folders.home / "jobs" / "train-2").mkdir()
    (folders.home / "jobs" / "train-2" / "spec.yaml").touch()
    link = tmp_path / "innocent"
    link.symlink_to("/etc")
    named = path.format(home=folders.home, link=link)
    with pytest.raises(InvalidRequest, match="cannot be given to a container"):
        in_container(folders, {"dataset": {"train": {"img_dir": named}}})


def test_results_of_another_job_and_the_cache_may_be_read(folders: Folders) -> None:
    checkpoint = folders.home / "jobs" / "train-0" / "results" / "train" / "model_epoch_000_step_00003.pth"
    archive = folders.home / "cache" / "archives" / "0f" / "images"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch(0o644)
    archive.mkdir(parents=True)
    held_out = folders.home / "jobs" / "train-0" / "holdout" / "0f"  # the study's, for each of its trials
    held_out.mkdir(parents=True)
    task = in_container(folders, {"a": str(checkpoint), "b": str(archive), "c": str(held_out)})
    assert [bind.source for bind in task.binds[2:]] == [checkpoint, archive, held_out]
    assert all(bind.read_only for bind in task.binds[2:])


def test_a_link_that_a_container_left_in_its_results_opens_nothing_else(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("word")
    planted = folders.home / "jobs" / "export-0" / "results" / "export" / "model.onnx"
    planted.parent.mkdir(parents=True)
    planted.symlink_to(tmp_path / "private.txt")
    with pytest.raises(InvalidRequest, match="leads out of the server's folder"):
        in_container(folders, {"a": str(planted)})


@pytest.mark.skipif(os.getuid() != 0, reason="another uid than the caller's runs the container only where that is root")
def test_a_folder_that_the_user_inside_cannot_read_is_named(folders: Folders, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(InvalidRequest, match="cannot be read by uid") as raised:
        in_container(folders, {"a": str(private)})
    assert str(private) in raised.value.message


def test_groups_of_the_caller_go_along_and_let_it_read(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o750)
    shared.chmod(0o750)
    monkeypatch.setattr(os, "getuid", lambda: 4000)
    monkeypatch.setattr(os, "getgid", lambda: 4001)
    monkeypatch.setattr(os, "getgroups", lambda: [4001, 4003])
    with pytest.raises(InvalidRequest, match="cannot be read by uid 4000"):
        in_container(folders, {"a": str(shared)})
    monkeypatch.setattr(os, "getgroups", lambda: [4001, 4003, shared.stat().st_gid])
    task = in_container(folders, {"a": str(shared)})
    assert task.user == (4000, 4001)
    assert set(task.groups) == {4003, shared.stat().st_gid}


def test_a_link_that_leads_out_of_a_mounted_folder_is_refused_by_name(folders: Folders, tmp_path: Path) -> None:
    images, elsewhere = tmp_path / "images", tmp_path / "nas" / "0007.jpg"
    for folder in (images, elsewhere.parent):
        folder.mkdir()
        folder.chmod(0o755)
    elsewhere.touch()
    (images / "0001.jpg").touch()
    (images / "copy.jpg").symlink_to("0001.jpg")
    (images / "nowhere.jpg").symlink_to("/no/such/file")
    (images / "itself.jpg").symlink_to("itself.jpg")
    whole = tmp_path / "whole"  # the folder itself may be a link
    whole.symlink_to(images)
    assert in_container(folders, {"img_dir": str(whole)}).binds[2] == Bind(images, "/data/0/whole")
    (images / "0007.jpg").symlink_to(elsewhere)
    with pytest.raises(InvalidRequest, match="a link to") as raised:
        in_container(folders, {"img_dir": str(images)})
    assert str(images / "0007.jpg") in raised.value.message
    assert str(elsewhere) in raised.value.message


def test_what_a_container_says_of_its_files_is_told_with_the_paths_outside(folders: Folders, tmp_path: Path) -> None:
    names = [tmp_path / name / "images" for name in "ab"]
    for folder in names:
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    in_container(folders, {"a": str(names[0]), "b": str(names[1])})
    said = "No such file: '/data/1/images/7.jpg' (/data/0/images), written to /results/train. /srv/results stays."
    assert as_outside(said, folders, 1) == (
        f"No such file: '{names[1]}/7.jpg' ({names[0]}), written to {folders.results}/train. /srv/results stays."
    )
    assert as_outside(said, folders, 2) == said  # of a local process, or never started
    record = folders.job / "run" / "1" / "mounts.json"
    record.write_text(record.read_text()[:-9])
    assert as_outside(said, folders, 1) == said  # torn: no reason to lose the job


def test_without_a_lease_a_container_is_shown_no_gpu(folders: Folders) -> None:
    task = in_container(folders, {})
    assert task.environment["NVIDIA_VISIBLE_DEVICES"] == "void"
    leased = replace(task, command=("mask2former", "train", "-e", str(folders.spec)), devices=("GPU-1f",))
    assert "NVIDIA_VISIBLE_DEVICES" not in contained(leased, {}, folders, "digest").environment


def test_no_secret_and_nothing_of_the_hosts_layout_enters_the_environment() -> None:
    outside = {
        "PATH": "/opt/bin", "HOME": "/root", "PYTHONPATH": "/src", "WANDB_API_KEY": "k", "AWS_SECRET_ACCESS_KEY": "k",
        "NGC_API_KEY": "k", "http_proxy": "http://user:word@proxy", "OMP_NUM_THREADS": "2", "NCCL_DEBUG": "INFO",
    }  # fmt: skip
    inside = environment(outside)
    assert inside["OMP_NUM_THREADS"] == "2"
    assert inside["NCCL_DEBUG"] == "INFO"
    assert inside["HOME"] == "/job/home"
    assert not {"PATH", "PYTHONPATH", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "NGC_API_KEY", "http_proxy"} & set(
        inside
    )


def test_tao_gets_its_own_entry_point_no_telemetry_and_none_of_the_variables_that_change_what_it_does(
    folders: Folders,
) -> None:
    outside = {"JOB_ID": "7", "WORLD_SIZE": "2", "NODE_RANK": "0", "CLOUD_BASED": "True", "NGC_API_KEY": "k"}
    task = Task(
        job_id="train-1",
        attempt=1,
        command=("mask2former", "train", "-e", str(folders.spec)),
        job_dir=folders.job,
        results_dir=folders.results,
        log_file=folders.log,
        devices=("GPU-1f",),
        environment=outside,
    )
    ours, tao = (contained(task, {}, folders, "digest", is_tao=is_tao) for is_tao in (False, True))
    assert (ours.is_foreign, tao.is_foreign) == (False, True)
    assert tao.environment == {**ours.environment, "TELEMETRY_OPT_OUT": "yes"}
    assert not outside.keys() & tao.environment.keys()
    assert {"HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "TORCH_HOME", "MPLCONFIGDIR"} <= tao.environment.keys()


def test_a_later_attempt_under_tao_writes_below_the_results_and_reads_the_earlier_ones(folders: Folders) -> None:
    own = replace(folders, own="attempt-2")
    checkpoint = folders.results / "train" / "model_epoch_000_step_00003.pth"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    spec = own.fill({"results_dir": "{results_dir}", "train": {"resume_training_checkpoint_path": str(checkpoint)}})
    in_container(own, spec)
    inside = yaml.safe_load((folders.job / "run" / "1" / "inside" / "spec.yaml").read_text())
    assert inside == {
        "results_dir": "/results/attempt-2",
        "train": {"resume_training_checkpoint_path": "/results/train/model_epoch_000_step_00003.pth"},
    }
