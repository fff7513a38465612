"""Plans for NVIDIA's TAO images: which image, which spec, which folders, and what their numbers are worth."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.lineage import Parent
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.spec import dotted

PYT, DEPLOY = "nvcr.io/nvidia/tao/tao-toolkit:7.1.0-pyt", "nvcr.io/nvidia/tao/tao-toolkit:7.1.0-deploy"
FIELDS = json.loads((Path(__file__).parents[2] / "facts" / "mask2former-spec-fields.json").read_text())["fields"]
GPUS = Machine(gpus=4, gpu_memory_gb=80.0, cpus=16, memory_gb=128.0)
TAO = {"platform": "docker", "runtime": "tao"}


def said(plan: Plan, words: str) -> bool:
    return any(words in warning for warning in plan.warnings)


@pytest.fixture
def tao(plan: Any) -> Any:
    return lambda action, **arguments: plan(action, machine=GPUS, **{**TAO, **arguments})


@pytest.fixture
def swin(plan: Any, shelf: Any, home: Path, data: Path, trained: Any) -> Any:
    """`trained`, but with a network that TAO has: Swin-T as published."""
    made = plan("train", train_dataset=str(data / "shop"), num_epochs=3, overrides={"dataset.val.num_workers": 0})
    shelf.jobs[trained.job_id] = type(trained)(
        trained.job_id, "train", made.spec, trained.results_dir, trained.epoch_metrics, "succeeded", made.datasets
    )
    return shelf.jobs[trained.job_id]


@pytest.fixture
def tao_engine(tao: Any, shelf: Any, home: Path, swin: Any) -> Any:
    """The way to an engine, all of it under TAO: a semantic export, then `gen_trt_engine-dddd4444`."""
    onnx = _finished(shelf, home, tao("export", parent_job_id=swin.job_id, mode="semantic"), "export-cccc3333",
                     "export/model.onnx")  # fmt: skip
    built = tao("gen_trt_engine", parent_job_id=onnx.job_id)
    engine = _finished(shelf, home, built, "gen_trt_engine-dddd4444", "gen_trt_engine/model.engine")
    return SimpleNamespace(onnx=onnx, engine=engine, built=built)


def _finished(shelf: Any, home: Path, made: Plan, job_id: str, artifact: str) -> Any:
    path = home / "jobs" / job_id / "results" / artifact
    path.parent.mkdir(parents=True)
    path.write_bytes(b"model")
    shelf.jobs[job_id] = Parent(
        job_id, made.action, made.spec, home / "jobs" / job_id / "results", {}, "succeeded", made.datasets,
        runtime="tao",
    )  # fmt: skip
    return shelf.jobs[job_id]


def test_each_action_gets_the_image_that_has_it(tao: Any, swin: Any, tao_engine: Any, data: Path) -> None:
    onnx, engine = tao_engine.onnx, tao_engine.engine
    plans = {
        "train": tao("train", train_dataset=str(data / "shop")),
        **{
            action: tao(action, parent_job_id=swin.job_id) for action in ("evaluate", "inference", "export", "quantize")
        },
    }
    assert {plan.image for plan in plans.values()} == {PYT}
    for action, parent in (("gen_trt_engine", onnx), ("evaluate", engine), ("inference", engine)):
        assert tao(action, parent_job_id=parent.job_id).image == DEPLOY, action
    assert not any(said(plan, "cannot start yet") for plan in plans.values())


def test_the_operators_configuration_makes_tao_the_default(make_planner: Any, data: Path) -> None:
    planner = make_planner(machine=GPUS, platform="docker", runtime="tao")
    made = planner.plan(REQUESTS["train"].model_validate({"dry_run": True, "train_dataset": str(data / "shop")}))
    assert (made.runtime, made.platform, made.image) == ("tao", "docker", PYT)
    other = make_planner(machine=GPUS, platform="docker")
    assert other.plan(
        REQUESTS["train"].model_validate({"dry_run": True, "train_dataset": str(data / "shop")})
    ).runtime == ("engine")


HOSTILE = (
    "ubuntu:latest", "--privileged", "-v/:/host", "mirror.local/tao:7.1.0-pyt ", " mirror.local/tao:7.1.0-pyt",
    "mirror.local/tao:7.1.0-pyt;id", "mirror.local/tao:7.1.0-pyt\n--privileged", "$(id)", "`id`", "../../etc/passwd",
    "mirror.local/tao", "mirror.local/tao:latest", "mirror.local/tao@sha256:" + "0" * 64, "MIRROR.local/tao:7.1.0-pyt",
    "mirror.local/tao:7.1.0-pyt/../x", "https://mirror.local/tao:7.1.0-pyt", "mirror.local/*", "", "\x00", "a" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("image", HOSTILE)
@pytest.mark.parametrize("runtime", ["engine", "tao"])
def test_no_image_but_those_of_the_operators_list_is_taken(
    make_planner: Any, data: Path, image: str, runtime: str
) -> None:
    planner = make_planner(machine=GPUS, images=("mirror.local/tao:7.1.0-pyt",))
    arguments = {"dry_run": True, "train_dataset": str(data / "shop"), "platform": "docker", "runtime": runtime}
    with pytest.raises(InvalidRequest, match="image"):
        planner.plan(REQUESTS["train"].model_validate({**arguments, "image": image}))
    listed = planner.plan(REQUESTS["train"].model_validate({**arguments, "image": "mirror.local/tao:7.1.0-pyt"}))
    assert listed.image == "mirror.local/tao:7.1.0-pyt"


def test_a_spec_for_tao_holds_only_keys_that_taos_config_knows(
    tao: Any, swin: Any, tao_engine: Any, data: Path
) -> None:
    def unknown(plan: Plan) -> Iterator[str]:
        own = ("results_dir",)
        return (key for key in dotted.flatten(plan.spec) if key not in FIELDS and key not in own)

    for action in ("evaluate", "inference", "export", "quantize"):
        assert not list(unknown(tao(action, parent_job_id=swin.job_id))), action
    assert not list(unknown(tao("train", train_dataset=str(data / "shop"))))
    assert "format" in tao("export", parent_job_id=swin.job_id, runtime="engine").spec["export"]
    assert "format" not in tao("export", parent_job_id=swin.job_id, format="onnx").spec["export"]
    with pytest.raises(InvalidRequest, match="format=transformers is our engine's"):
        tao("export", parent_job_id=swin.job_id, format="transformers")


def test_tensorrt_actions_are_planned_from_the_deploy_twin(tao: Any, tao_engine: Any, swin: Any, data: Path) -> None:
    built, engine = tao_engine.built, tao_engine.engine
    assert set(built.spec) == {"results_dir", "gen_trt_engine", "model", "dataset"}
    assert built.spec["model"] == {"mode": "semantic", "sem_seg_head": {"norm": "GN", "num_classes": 3}}
    assert built.spec["gen_trt_engine"]["tensorrt"]["data_type"] == "FP16"
    assert built.spec["gen_trt_engine"]["onnx_file"] == "{home}/jobs/export-cccc3333/results/export/model.onnx"
    assert built.artifacts == ("gen_trt_engine/model.engine",)

    run = tao("evaluate", parent_job_id=engine.job_id)
    assert set(run.spec) == {"results_dir", "dataset", "model", "evaluate"}
    assert run.spec["evaluate"] == {
        "trt_engine": "{home}/jobs/gen_trt_engine-dddd4444/results/gen_trt_engine/model.engine"
    }
    assert "train" not in run.spec["dataset"]
    assert run.spec["dataset"]["val"]["panoptic_json"] == str(data / "shop" / "val" / "annotations_panoptic.json")
    assert run.spec["dataset"]["label_map"] == str(data / "shop" / "val" / "label_map_panoptic.json")
    assert (run.spec["dataset"]["contiguous_id"], run.spec["model"]["sem_seg_head"]["num_classes"]) == (True, 3)
    assert run.artifacts == ("trt_evaluate/*",)
    assert run.command == ("mask2former", "evaluate", "-e", "{job_dir}/spec.yaml")

    pictures = tao("inference", parent_job_id=engine.job_id, inference_dataset=str(data / "pictures"))
    assert pictures.artifacts == ("trt_inference/*",)
    assert pictures.spec["dataset"]["test"]["img_dir"] == str(data / "pictures")
    assert pictures.spec["dataset"]["label_map"] == str(data / "shop" / "train" / "label_map_panoptic.json")


def test_the_published_overrides_pass_and_what_the_deploy_image_does_not_read_is_left_out(
    tao: Any, tao_engine: Any, data: Path
) -> None:
    train, val = data / "shop" / "train", data / "shop" / "val"
    made = tao(
        "evaluate",
        parent_job_id=tao_engine.engine.job_id,
        overrides={
            "model.sem_seg_head.num_classes": 3,
            "dataset.contiguous_id": True,
            "dataset.train.img_dir": f"{train}/images.tar.gz",
            "dataset.train.panoptic_json": f"{train}/annotations_panoptic.json",
            "dataset.val.img_dir": f"{val}/images.tar.gz",
            "dataset.val.panoptic_json": f"{val}/annotations_panoptic.json",
            "dataset.val.panoptic_dir": f"{val}/images_panoptic.tar.gz",
        },
    )
    assert "train" not in made.spec["dataset"]
    assert said(made, "left out, the image does not read it: dataset.train.img_dir, dataset.train.panoptic_json")


def test_a_number_that_an_image_is_known_to_report_wrongly_is_said_or_avoided(
    tao: Any, swin: Any, tao_engine: Any, data: Path
) -> None:
    assert said(tao("evaluate", parent_job_id=tao_engine.engine.job_id), "the mIoU will be wrong")
    alone = tao("evaluate", parent_job_id=swin.job_id, num_gpus=4)
    assert (alone.spec["evaluate"]["num_gpus"], alone.spec["evaluate"]["gpu_ids"]) == (1, [0])
    assert said(alone, "one GPU instead of 4")
    assert not said(tao("evaluate", parent_job_id=swin.job_id), "one GPU instead")
    assert said(tao("train", train_dataset=str(data / "shop"), num_gpus=2), "first GPU's share")
    engine = tao("evaluate", parent_job_id=swin.job_id, num_gpus=4, runtime="engine")
    assert engine.spec["evaluate"]["num_gpus"] == 4
    sized = {"dataset.val.batch_size": 2, "dataset.val.target_size": [64, 64]}
    assert said(tao("evaluate", parent_job_id=swin.job_id, overrides=sized), "1 of 5 validation images")
    sized = {"dataset.test.batch_size": 2, "dataset.test.target_size": [64, 64]}
    pictures = {"parent_job_id": swin.job_id, "inference_dataset": str(data / "pictures")}
    assert said(tao("inference", **pictures, overrides=sized), "1 of 1 inference images get no prediction")
    assert not said(tao("inference", **pictures), "TAO drops")


def test_the_pinned_image_may_be_named_and_another_only_where_the_operator_lists_it(
    tao: Any, plan: Any, data: Path
) -> None:
    shop = {"train_dataset": str(data / "shop")}
    assert tao("train", **shop, image=PYT).digest == tao("train", **shop).digest
    ours = plan("train", **shop, platform="docker", image="mask2former-engine:latest")
    assert ours.image == "mask2former-engine:latest"
    with pytest.raises(InvalidRequest, match="allow-list"):
        tao("train", **shop, image=DEPLOY)


def test_ids_that_are_positions_already_make_no_wrong_number(tao: Any, tao_engine: Any, data: Path) -> None:
    made = tao("evaluate", parent_job_id=tao_engine.engine.job_id, eval_dataset=str(data / "numbered"))
    assert not said(made, "the mIoU will be wrong")


def test_scratch_memory_is_whole_gigabytes_because_the_image_drops_the_rest(tao: Any, tao_engine: Any) -> None:
    for asked, planned in ((512, 1024), (1024, 1024), (1500, 2048)):
        made = tao("gen_trt_engine", parent_job_id=tao_engine.onnx.job_id, workspace_size=asked)
        assert made.spec["gen_trt_engine"]["tensorrt"]["workspace_size"] == planned


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_gpus": 2}, "one GPU"),
        ({"overrides": {"dataset.contiguous_id": False}}, "does not fit the weights"),
    ],
)
def test_what_the_deploy_image_cannot_do_is_refused(
    tao: Any, tao_engine: Any, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        tao("evaluate", parent_job_id=tao_engine.engine.job_id, **arguments)


def test_a_quantized_file_is_a_dead_end_under_tao(tao: Any, swin: Any, shelf: Any, home: Path) -> None:
    made = tao("quantize", parent_job_id=swin.job_id)
    assert said(made, "bare weights")
    _finished(shelf, home, made, "quantize-ffff6666", "quantize/quantized_model_torchao.pth")
    with pytest.raises(InvalidRequest, match="cannot read what quantize writes"):
        tao("evaluate", parent_job_id="quantize-ffff6666")


def test_a_search_under_tao_maximises_the_only_metric_there_is(tao: Any, data: Path) -> None:
    with pytest.raises(InvalidRequest, match="measure mIoU only"):
        tao("train", train_dataset=str(data / "shop"), automl_policy="on", automl={"metric": "PQ"})


def test_the_encryption_key_stays_here_because_taos_scripts_only_copy_it(make_planner: Any, data: Path) -> None:
    planner = make_planner(machine=GPUS, environ={"M2F_ENCRYPTION_KEY": "k3y"})
    arguments = {"dry_run": True, "train_dataset": str(data / "shop"), "platform": "docker"}
    tao = planner.plan(REQUESTS["train"].model_validate({**arguments, "runtime": "tao"}))
    assert not tao.key_from_environment
    assert said(tao, "M2F_ENCRYPTION_KEY is not handed on")
    assert planner.plan(REQUESTS["train"].model_validate({**arguments, "runtime": "engine"})).key_from_environment


def test_without_a_gpu_the_plan_stands_and_warns(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), **TAO)
    assert said(made, "NVIDIA GPU only")
    assert not said(made, "cannot start yet")
