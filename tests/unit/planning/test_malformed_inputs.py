"""Malformed requests over all six actions: each is one clear error that names the value, the rule and the fix."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mask2former_mcp.errors import Mask2FormerError
from mask2former_mcp.planning.request import REQUESTS

ACTIONS = tuple(REQUESTS)

# What each action needs to be a sound request; a case below spoils exactly one thing of it.
SOUND: dict[str, dict[str, Any]] = {
    "train": {"train_dataset": "{data}/shop"},
    "evaluate": {"parent_job_id": "train-aaaa1111"},
    "export": {"parent_job_id": "train-aaaa1111"},
    "quantize": {"parent_job_id": "train-aaaa1111"},
    "inference": {"parent_job_id": "train-aaaa1111"},
    "gen_trt_engine": {"parent_job_id": "export-bbbb2222"},
}

# (arguments, a text that the error must hold), for every action
EVERYWHERE: list[tuple[dict[str, Any], str]] = [
    # top-level arguments
    ({"trainn_dataset": "/data"}, "trainn_dataset"),
    ({"platform": "mars"}, "platform"),
    ({"platform": "kubernetes"}, "platform"),
    ({"runtime": "docker"}, "runtime"),
    ({"num_gpus": 0}, "num_gpus"),
    ({"num_gpus": -1}, "num_gpus"),
    ({"num_gpus": "1"}, "num_gpus"),
    ({"num_gpus": True}, "num_gpus"),
    ({"num_gpus": 1.5}, "num_gpus"),
    ({"num_gpus": 9999}, "num_gpus=9999"),
    ({"num_gpus": 2}, "num_gpus=2"),
    ({"num_nodes": 3}, "num_nodes=3"),
    ({"num_nodes": 0}, "num_nodes"),
    ({"run_name": "Has Capitals"}, "run_name"),
    ({"run_name": "-starts-with-a-dash"}, "run_name"),
    ({"run_name": "a" * 64}, "run_name"),
    ({"run_name": "dots.are.out"}, "run_name"),
    ({"run_name": ""}, "run_name"),
    ({"dry_run": "yes"}, "dry_run"),
    ({"dry_run": 1}, "dry_run"),
    ({"dataset_format": "voc"}, "dataset_format"),
    ({"dataset_format": ["coco"]}, "dataset_format"),
    ({"overrides": ["train.num_epochs"]}, "overrides"),
    ({"overrides": "train.num_epochs=3"}, "overrides"),
    ({"image": "ubuntu:latest"}, "image='ubuntu:latest'"),
    ({"image": "ubuntu:latest", "runtime": "tao"}, "allow-list"),
    ({"image": ""}, "image"),
    ({"results_dir": "relative/folder"}, "not an absolute path"),
    ({"results_dir": "/"}, "results_dir='/'"),
    ({"results_dir": "{data}/file.txt"}, "is a file"),
    ({"results_dir": "{data}/shop"}, "not empty"),
    ({"results_dir": "{home}/jobs/train-aaaa1111"}, "server's own folder"),
    ({"results_dir": "https://example.com/results"}, "s3://"),
    ({"results_dir": "/tmp/new\x00folder"}, "control characters"),
    ({"results_dir": "${HOME}/results"}, "interpolation"),
    ({"results_dir": "s3://B_AD/out"}, "bucket"),
    ({"results_dir": "s3://bucket"}, "whole bucket"),
    ({"results_dir": "s3://bucket/../out"}, ".."),
    # overrides: keys
    ({"overrides": {"train.num_epoch": 3}}, "train.num_epoch"),
    ({"overrides": {"trian": {"num_epochs": 3}}}, "trian.num_epochs"),
    ({"overrides": {"lerning_rate": 0.1}}, "lerning_rate"),
    ({"overrides": {"model": 5}}, "model is a block"),
    ({"overrides": {"dataset.train": "x"}}, "dataset.train is a block"),
    ({"overrides": {"train.gpu_ids[0]": 1}}, "train.gpu_ids"),
    ({"overrides": {"model.backbone.swin.depths.0": 1}}, "depths"),
    ({"overrides": {"": 1}}, "non-empty"),
    ({"overrides": {"   ": 1}}, "non-empty"),
    ({"overrides": {"train": {"": 1}}}, "non-empty"),
    ({"overrides": {"train..num_epochs": 1}}, "train..num_epochs"),
    ({"overrides": {"num_classes": 3, "model.sem_seg_head.num_classes": 4}}, "twice"),
    ({"overrides": {"model": {"mode": "panoptic"}, "mode": "instance"}}, "twice"),
    # overrides: the server's keys
    ({"overrides": {"results_dir": "/tmp/x"}}, "results folders are the server's"),
    ({"overrides": {"train": {"results_dir": "/tmp/x"}}}, "results folders are the server's"),
    ({"overrides": {"quantize.results_dir": "/tmp/x"}}, "results folders are the server's"),
    ({"overrides": {"encryption_key": "tlt_encode"}}, "secret"),
    ({"overrides": {"train.resume_training_checkpoint_path": "/a.pth"}}, "resumed in its own folder"),
    ({"overrides": {"resume_checkpoint": "/a.pth"}}, "resumed in its own folder"),
    # overrides: values
    ({"overrides": {"model_name": "${oc.env:HOME}"}}, "interpolation"),
    ({"overrides": {"wandb": {"tags": ["a", "${b}"]}}}, "interpolation"),
    ({"overrides": {"model_name": "???"}}, "missing"),
    ({"overrides": {"model_name": "a\x00b"}}, "NUL"),
    ({"overrides": {"model_name": 5}}, 'model_name=5 must be a text'),
    ({"overrides": {"train.num_epochs": "ten"}}, 'train.num_epochs="ten" must be a whole number'),
    ({"overrides": {"train.num_epochs": 0}}, "train.num_epochs=0 must be at least 1"),
    ({"overrides": {"train.num_epochs": 2.5}}, "train.num_epochs=2.5 must be a whole number"),
    ({"overrides": {"train.num_epochs": None}}, "train.num_epochs=null"),
    ({"overrides": {"train.num_epochs": [3]}}, "train.num_epochs=[3]"),
    ({"overrides": {"train.num_epochs": {"a": 1}}}, "train.num_epochs"),
    ({"overrides": {"train.optim.lr": -0.1}}, "train.optim.lr=-0.1"),
    ({"overrides": {"train.optim.lr": 2}}, "train.optim.lr=2 must be at most 1"),
    ({"overrides": {"train.optim.lr": float("nan")}}, "not a finite number"),
    ({"overrides": {"train.optim.lr": float("inf")}}, "not a finite number"),
    ({"overrides": {"train.optim.type": "SGD"}}, "train.optim.type"),
    ({"overrides": {"train.precision": "int8"}}, 'train.precision="int8" must be one of'),
    ({"overrides": {"dataset.train.batch_size": 0}}, "dataset.train.batch_size=0"),
    ({"overrides": {"dataset.pixel_mean": [0.5, 0.5]}}, "dataset.pixel_mean"),
    ({"overrides": {"dataset.augmentation.train_crop_size": [640]}}, "train_crop_size"),
    ({"overrides": {"dataset.val.target_size": "640x640"}}, "target_size"),
    ({"overrides": {"model.mode": "everything"}}, 'model.mode="everything" must be one of'),
    ({"overrides": {"model.mask_former.dec_layers": 51}}, "must be at most 50"),
    ({"overrides": {"model.mask_former.hidden_dim": 100000}}, "must be at most 1024"),
    ({"overrides": {"model.backbone.swin.type": "huge"}}, "model.backbone.swin.type"),
    ({"overrides": {"model.export": "no"}}, "must be true or false"),
    ({"overrides": {"quantize.device": "tpu"}}, "quantize.device"),
]  # fmt: skip

TRAIN: list[tuple[dict[str, Any], str]] = [
    ({"overrides": {"export.opset_version": 17}}, "belongs to export"),
    ({"overrides": {"export": {"opset_version": 17}}}, "belongs to export"),
    ({"overrides": {"input_width": 640}}, "input_width=640 belongs to export"),
    ({"overrides": {"gen_trt_engine": 5}}, "belongs to gen_trt_engine"),
    ({"overrides": {"model.backbone.swin.patch_size": 8}}, "patch_size=8: the engine builds 4 only"),
    ({"overrides": {"model.backbone.swin.out_indices": [1, 2, 3]}}, "out_indices=[1, 2, 3]"),
    ({"overrides": {"model.backbone.swin.out_features": ["res5"]}}, 'out_features=["res5"]'),
    ({"backbone": "efficientvit_b0", "overrides": {"model.backbone.efficientvit.out_features": []}}, "out_features=[]"),
    ({"overrides": {"model.backbone.swin.window_size": 65}}, "window_size=65 is more than 64"),
    ({"overrides": {"model.backbone.swin.window_size": 10**9}}, "window_size=1000000000 is more than 64"),
    ({"train_dataset": None}, "train needs train_dataset"),
    ({"train_dataset": ""}, "train_dataset"),
    ({"train_dataset": 5}, "train_dataset"),
    ({"train_dataset": "/no/such/folder"}, "does not exist"),
    ({"train_dataset": "{data}/file.txt"}, "is a file"),
    ({"train_dataset": "{data}/empty"}, "no annotation file"),
    ({"train_dataset": "{data}/pictures"}, "no annotation file"),
    ({"train_dataset": "https://example.com/data"}, "https"),
    ({"train_dataset": "gs://bucket/data"}, "gs"),
    ({"train_dataset": "s3://B_AD"}, "bucket"),
    ({"train_dataset": "s3://bucket/data"}, "no S3 credentials were found"),
    ({"train_dataset": "/data\x00/x"}, "control characters"),
    ({"train_dataset": "${DATA}"}, "interpolation"),
    ({"eval_dataset": "/no/such/folder"}, "does not exist"),
    ({"eval_dataset": "{data}/other"}, "differ at position 0"),
    ({"eval_dataset": "{data}/swapped"}, "differ at position 0"),
    ({"dataset_format": "coco"}, "annotations.json"),
    ({"dataset_format": "ade"}, "annotations.jsonl"),
    ({"preset": "maxi"}, "preset='maxi' does not exist"),
    ({"preset": ""}, "preset"),
    ({"preset": 3}, "preset"),
    ({"mode": "everything"}, "mode"),
    ({"train_dataset": "{data}/coco", "mode": "panoptic"}, "do not go together"),
    ({"train_dataset": "{data}/ade", "mode": "instance"}, "do not go together"),
    ({"train_dataset": "{data}/ade", "mode": "panoptic"}, "do not go together"),
    ({"mode": "semantic", "overrides": {"model.mode": "instance"}}, "disagree"),
    ({"backbone": "resnet50"}, "backbone"),
    ({"backbone": "swin_base", "overrides": {"model.backbone.swin.type": "tiny"}}, "disagree"),
    ({"num_classes": 0}, "num_classes"),
    ({"num_classes": 90}, "num_classes=90 does not fit"),
    ({"num_classes": 2}, "num_classes=2 does not fit"),
    ({"num_classes": "3"}, "num_classes"),
    ({"num_classes": 3, "overrides": {"num_classes": 4}}, "disagree"),
    ({"contiguous_id": "yes"}, "contiguous_id"),
    ({"contiguous_id": 1}, "contiguous_id"),
    ({"contiguous_id": False, "num_classes": 5}, "largest category id, 11"),
    ({"num_epochs": 0}, "num_epochs"),
    ({"num_epochs": 2.5}, "num_epochs"),
    ({"num_epochs": 5, "overrides": {"train": {"num_epochs": 6}}}, "num_epochs=5 and overrides train.num_epochs=6"),
    ({"batch_size": 0}, "batch_size"),
    ({"batch_size": 21}, "less than one step of 21"),
    ({"batch_size": 4, "overrides": {"dataset.train.batch_size": 2}}, "disagree"),
    ({"overrides": {"dataset.val.batch_size": 4}}, "dataset.val.target_size"),
    ({"overrides": {"dataset.val.batch_size": 6, "dataset.val.target_size": [64, 64]}}, "less than one batch of 6"),
    ({"learning_rate": 0}, "learning_rate"),
    ({"learning_rate": 1.5}, "learning_rate"),
    ({"learning_rate": "2e-4"}, "learning_rate"),
    ({"learning_rate": float("nan")}, "learning_rate"),
    ({"pretrained_weights": "/no/swin_tiny.pth"}, "does not exist"),
    ({"pretrained_weights": "{data}/file.txt"}, "does not end in"),
    ({"pretrained_weights": "https://example.com/swin.pth"}, "absolute path"),
    ({"pretrained_weights": "swin.pth"}, "absolute path"),
    ({"parent_job_id": "train-none0000"}, "no job"),
    ({"parent_job_id": "export-bbbb2222"}, "is an export job"),
    ({"parent_job_id": ""}, "parent_job_id"),
    ({"checkpoint": "best"}, "no parent_job_id"),
    ({"checkpoint": "epoch=2"}, "no parent_job_id"),
    ({"checkpoint": "/no/model.pth"}, "does not exist"),
    ({"checkpoint": "{data}/shop"}, "is a folder, but its config.json cannot be read"),
    ({"checkpoint": "{data}/file.txt"}, "does not end in"),
    ({"parent_job_id": "train-aaaa1111", "checkpoint": "epoch=9"}, "no checkpoint epoch=9"),
    ({"parent_job_id": "train-aaaa1111", "checkpoint": "epoch=one"}, "epoch=one"),
    ({"parent_job_id": "train-aaaa1111", "overrides": {"model.mask_former.dec_layers": 9}}, "does not fit the weights"),
    ({"automl_policy": "maybe"}, "automl_policy"),
    ({"automl_policy": True}, "automl_policy"),
    ({"automl": {"max_trials": 0}}, "max_trials"),
    ({"automl": {"reduction_factor": 1}}, "reduction_factor"),
    ({"automl": {"budget": 5}}, "budget"),
    ({"automl": {"time_budget_minutes": -1.0}}, "time_budget_minutes"),
    ({"automl": {"metric": "loss"}}, "metric"),
    ({"automl": "bayesian"}, "automl"),
    ({"request": 5}, "request"),
    ({"overrides": {"train.distributed_strategy": "deepspeed"}}, "distributed_strategy"),
    ({"overrides": {"train.precision": "fp16"}}, "does not train on a CPU"),
    ({"runtime": "tao", "overrides": {"train.precision": "bf16"}}, "bf16 is our engine's"),
    ({"runtime": "tao", "overrides": {"train.accumulate_grad_batches": 2}}, "accumulate_grad_batches is our engine's"),
    ({"batch_size": 5, "overrides": {"train.accumulate_grad_batches": 5}}, "less than one step of 25"),
    ({"overrides": {"train.accumulate_grad_batches": 0}}, "accumulate_grad_batches"),
    ({"runtime": "tao", "preset": "mini"}, "type wins silently"),
    ({"runtime": "tao", "dry_run": False}, "starts no containers"),
    ({"overrides": {"model.backbone.type": "vit"}}, "model.backbone.type"),
    ({"overrides": {"model.backbone.swin.num_heads": [5, 6, 12, 24]}}, "do not divide"),
    ({"overrides": {"model.mask_former.nheads": 7}}, "not a multiple of nheads"),
    ({"overrides": {"model.sem_seg_head.convs_dim": 100}}, "multiples of 32"),
    ({"overrides": {"dataset.augmentation.test_min_size": 900}}, "test_max_size"),
    ({"overrides": {"train.gpu_ids": [0, 1]}}, "num_gpus=2"),
    ({"num_gpus": 1, "overrides": {"train.gpu_ids": [0, 1]}}, "disagree"),
    ({"overrides": {"dataset.train.type": "coco", "dataset.val.type": "ade"}}, "disagree"),
    ({"dataset_format": "coco_panoptic", "overrides": {"dataset.val.type": "coco"}}, "disagree"),
    ({"overrides": {"dataset.train.img_dir": "/elsewhere/images"}}, "lies in /elsewhere"),
    ({"overrides": {"dataset.train.img_dir": "/elsewhere/pictures"}}, "images.tar.gz"),
    ({"overrides": {"dataset.train.img_dir": 5}}, "is not a path"),
    ({"overrides": {"dataset.label_map": {"coco_panoptic": 5}}}, "dataset.label_map"),
    ({"overrides": {"dataset.label_map": []}}, "is not a path"),
]  # fmt: skip

EVALUATE: list[tuple[dict[str, Any], str]] = [
    ({"parent_job_id": None}, "no parent job and no file"),
    ({"parent_job_id": "train-none0000"}, "no job"),
    ({"parent_job_id": "export-bbbb2222", "overrides": {"model.mode": "semantic"}}, "a graph has one mode"),
    ({"eval_dataset": "/no/such/folder"}, "does not exist"),
    ({"eval_dataset": "{data}/other"}, "have 3"),
    ({"checkpoint": "newest"}, "newest"),
    ({"checkpoint": "epoch=-1"}, "epoch=-1"),
    ({"checkpoint": "epoch=1,step=11"}, "no checkpoint epoch=1,step=11"),
    ({"checkpoint": "/no/model.pth"}, "does not exist"),
    ({"checkpoint": "best", "overrides": {"evaluate.checkpoint": "latest"}}, "disagree"),
    ({"overrides": {"evaluate.checkpoint": 5}}, "evaluate.checkpoint"),
    ({"trt_engine": "/no/model.engine"}, "does not exist"),
    ({"trt_engine": "{data}/file.txt"}, "does not end in"),
    ({"trt_engine": "/a.engine", "checkpoint": "best"}, "two models"),
    ({"overrides": {"evaluate.batch_size": 2}}, "dataset.val.target_size"),
    ({"overrides": {"evaluate.batch_size": -2}}, "evaluate.batch_size=-2"),
    ({"overrides": {"num_classes": 90}}, "num_classes=90 does not fit the weights: train-aaaa1111"),
    ({"overrides": {"contiguous_id": False}}, "does not fit the weights"),
    ({"mode": "semantic"}, "mode"),
    ({"automl_policy": "off"}, "automl_policy"),
]

EXPORT: list[tuple[dict[str, Any], str]] = [
    ({"parent_job_id": None}, "no parent job and no file"),
    ({"train_dataset": "{data}/shop"}, "train_dataset"),
    ({"format": "tensorflow"}, "format"),
    ({"format": "transformers", "runtime": "tao"}, "transformers"),
    ({"mode": "all"}, "mode"),
    ({"input_width": 0}, "input_width"),
    ({"input_width": 16}, "export.input_width=16 must be at least 32"),
    ({"input_height": "544"}, "input_height"),
    ({"input_height": 544, "overrides": {"export": {"input_height": 545}}}, "disagree"),
    ({"batch_size": -2}, "batch_size"),
    ({"batch_size": 0}, "export.batch_size=0 must not be 0"),
    ({"opset_version": 0}, "opset_version"),
    ({"overrides": {"export.onnx_file": "/tmp/model.onnx"}}, "plain file name"),
    ({"overrides": {"export.onnx_file": "../model.onnx"}}, "plain file name"),
    ({"overrides": {"export.onnx_file": "model.pb"}}, "does not end in .onnx"),
    ({"overrides": {"export.onnx_file": ""}}, "plain file name"),
    ({"overrides": {"model.backbone.swin.embed_dim": 96}}, "does not fit the weights"),
    ({"overrides": {"num_classes": 200}}, "3"),
    ({"checkpoint": "latest", "parent_job_id": None}, "no parent_job_id"),
]

QUANTIZE: list[tuple[dict[str, Any], str]] = [
    ({"parent_job_id": None}, "no parent job and no file"),
    ({"model_path": "/no/model.pth"}, "does not exist"),
    ({"model_path": "model.pth"}, "absolute path"),
    ({"model_path": "{data}/file.txt"}, "does not end in"),
    ({"backend": "bitsandbytes"}, "backend"),
    ({"quantize_mode": "qat"}, "quantize_mode"),
    ({"quantize_mode": "static_ptq"}, "no combination"),
    ({"algorithm": "gptq"}, "quantize.algorithm"),
    ({"algorithm": "max"}, "no combination"),
    ({"backend": "modelopt.pytorch", "quantize_mode": "weight_only_ptq"}, "no combination"),
    ({"backend": "modelopt.pytorch", "algorithm": "entropy"}, "no combination"),
    ({"overrides": {"train.num_epochs": 3, "export.format": "onnx"}}, "belongs to export"),
    ({"backend": "modelopt.onnx", "quantize_mode": "static_ptq", "algorithm": "max"}, "train-aaaa1111 is a train job"),
    ({"backend": "torchao", "overrides": {"quantize.backend": "modelopt.onnx"}}, "disagree"),
    ({"overrides": {"quantize.model_path": "/other.pth"}, "model_path": "/one.pth"}, "disagree"),
    ({"overrides": {"quantize.layers": "all"}}, "quantize.layers"),
    ({"train_dataset": "{data}/coco", "eval_dataset": "{data}/coco_val"}, "mode=panoptic and dataset_format=coco"),
    ({"overrides": {"dataset.val.batch_size": 2}}, "dataset.val.batch_size=2 needs dataset.val.target_size"),
    ({"overrides": {"dataset.val": {"batch_size": 8, "target_size": [64, 64]}}}, "less than one batch of 8"),
]

INFERENCE: list[tuple[dict[str, Any], str]] = [
    ({"parent_job_id": None}, "no parent job and no file"),
    ({"inference_dataset": "/no/such/folder"}, "does not exist"),
    ({"inference_dataset": "{data}/empty"}, "images"),
    ({"inference_dataset": "{data}/file.txt"}, "is a file"),
    ({"inference_dataset": "ftp://host/images"}, "ftp"),
    ({"threshold": 1.5}, "threshold"),
    ({"threshold": "0.5"}, "threshold"),
    ({"threshold": 0.5, "overrides": {"model.object_mask_threshold": 0.6}}, "threshold=0.5"),
    ({"mode": "all"}, "mode"),
    ({"trt_engine": "/no/model.engine"}, "does not exist"),
    ({"overrides": {"dataset.test.batch_size": 3}}, "dataset.test.target_size"),
    ({"overrides": {"inference.batch_size": 0}}, "inference.batch_size"),
]

GEN_TRT_ENGINE: list[tuple[dict[str, Any], str]] = [
    ({"parent_job_id": None}, "no parent job and no file"),
    ({"parent_job_id": "train-aaaa1111"}, "takes a file of an export job"),
    ({"onnx_file": "/no/model.onnx"}, "does not exist"),
    ({"onnx_file": "{data}/file.txt"}, "does not end in .onnx"),
    ({"data_type": "INT8"}, "data_type"),
    ({"data_type": "fp16"}, "data_type"),
    ({"overrides": {"gen_trt_engine.tensorrt.data_type": "INT8"}}, "INT8 is not supported"),
    ({"overrides": {"gen_trt_engine": {"tensorrt": {"data_type": "int8"}}}}, "INT8 is not supported"),
    ({"min_batch_size": 0}, "min_batch_size"),
    ({"min_batch_size": 4, "max_batch_size": 2, "opt_batch_size": 3}, "not in order"),
    ({"opt_batch_size": 8}, "not in order"),
    ({"workspace_size": 0}, "workspace_size"),
    ({"workspace_size": 1024.5}, "workspace_size"),
    ({"overrides": {"gen_trt_engine.trt_engine": "/tmp/model.engine"}}, "plain file name"),
    ({"overrides": {"gen_trt_engine.trt_engine": "model.onnx"}}, "does not end in .engine"),
    ({"checkpoint": "best"}, "checkpoint"),
]

CASES = [
    *((action, arguments, text) for arguments, text in EVERYWHERE for action in ACTIONS),
    *(("train", arguments, text) for arguments, text in TRAIN),
    *(("evaluate", arguments, text) for arguments, text in EVALUATE),
    *(("export", arguments, text) for arguments, text in EXPORT),
    *(("quantize", arguments, text) for arguments, text in QUANTIZE),
    *(("inference", arguments, text) for arguments, text in INFERENCE),
    *(("gen_trt_engine", arguments, text) for arguments, text in GEN_TRT_ENGINE),
]


def filled(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace(name, place)
    if isinstance(value, dict):
        return {key: filled(inner, places) for key, inner in value.items()}
    return value


@pytest.mark.parametrize("action", ACTIONS)
def test_the_sound_requests_are_sound(workshop: Any, data: Path, action: str) -> None:
    places = {"{data}": str(data), "{home}": str(workshop.home)}
    assert workshop.plan(action, **filled(SOUND[action], places)).action == action


@pytest.mark.parametrize(
    ("action", "spoiled", "text"), CASES, ids=[f"{action}-{number}" for number, (action, _, _) in enumerate(CASES)]
)
def test_a_malformed_request_is_a_clear_error(
    workshop: Any, data: Path, action: str, spoiled: dict[str, Any], text: str
) -> None:
    places = {"{data}": str(data), "{home}": str(workshop.home)}
    arguments = filled({"dry_run": True, **SOUND[action], **spoiled}, places)
    files = {path for path in workshop.home.rglob("*") if "cache" not in path.parts}
    with pytest.raises((ValidationError, Mask2FormerError)) as caught:
        workshop.planner.plan(REQUESTS[action].model_validate(arguments))
    error = caught.value
    if isinstance(error, ValidationError):
        assert text.split("=")[0] in str(error)
        assert all(problem["msg"] for problem in error.errors())
    else:
        assert text in error.message
        assert error.fix.strip()
        assert not error.started
        assert len(error.message) < 1500
    assert {path for path in workshop.home.rglob("*") if "cache" not in path.parts} == files


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 200
    assert {action for action, _, _ in CASES} == set(ACTIONS)
