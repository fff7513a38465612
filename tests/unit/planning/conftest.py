"""A planner on the packaged bundle, tiny datasets on disk, and finished jobs to inherit from."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mask2former_mcp import bundle
from mask2former_mcp.errors import NotFound
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.lineage import Earlier, Parent
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.settings import Settings

CPU = Machine(gpus=0, gpu_memory_gb=None, cpus=2, memory_gb=16.0)
GPUS = Machine(gpus=4, gpu_memory_gb=80.0, cpus=16, memory_gb=128.0)
CATEGORIES = [(7, "belt", 0), (3, "box", 1), (11, "can", 1)]


@dataclass
class Shelf:
    """Finished jobs by id: what the job store answers."""

    jobs: dict[str, Parent] = field(default_factory=dict)
    history: list[Earlier] = field(default_factory=list)

    def parent(self, job_id: str) -> Parent:
        if job_id not in self.jobs:
            raise NotFound(f"there is no job {job_id!r}", fix="list_jobs shows the ids.")
        return self.jobs[job_id]

    def earlier(self, action: str) -> Sequence[Earlier]:
        return self.history


def write_dataset(
    folder: Path,
    dataset_format: str = "coco_panoptic",
    images: int = 20,
    categories: Sequence[tuple[int, str, int]] = CATEGORIES,
    first: int = 0,
) -> Path:
    """A dataset with 8 x 8 pixel images that the annotations describe truthfully."""
    (folder / "images").mkdir(parents=True)
    names = [f"{first + index:04d}" for index in range(images)]
    for name in names:
        Image.new("RGB", (8, 8), (90, 120, 60)).save(folder / "images" / f"{name}.png")
    entries = [
        {"id": index + 1, "file_name": f"{name}.png", "height": 8, "width": 8} for index, name in enumerate(names)
    ]
    listed = [{"id": id_, "name": name, "isthing": thing} for id_, name, thing in categories]
    label_map = [{**entry, "color": [9 * entry["id"], 20, 200]} for entry in listed]
    if dataset_format == "ade":
        (folder / "masks").mkdir()
        for name in names:
            Image.new("L", (8, 8), categories[0][0]).save(folder / "masks" / f"{name}.png")
        lines = [json.dumps({"img": f"images/{name}.png", "segm": f"masks/{name}.png"}) for name in names]
        (folder / "annotations.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "label_map.json").write_text(json.dumps(label_map))
        return folder
    if dataset_format == "coco_panoptic":
        (folder / "images_panoptic").mkdir()
        annotations = []
        for entry, name in zip(entries, names, strict=True):
            Image.new("RGB", (8, 8), (5, 0, 0)).save(folder / "images_panoptic" / f"{name}.png")
            segments = [{"id": 5, "category_id": categories[0][0], "iscrowd": 0, "area": 64, "bbox": [0, 0, 8, 8]}]
            annotations.append({"image_id": entry["id"], "file_name": f"{name}.png", "segments_info": segments})
        document = {"images": entries, "annotations": annotations, "categories": listed}
        (folder / "annotations_panoptic.json").write_text(json.dumps(document))
        (folder / "label_map_panoptic.json").write_text(json.dumps(label_map))
        return folder
    annotations = [
        {
            "id": entry["id"], "image_id": entry["id"], "category_id": categories[0][0], "iscrowd": 0, "area": 16,
            "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]],
        }
        for entry in entries
    ]  # fmt: skip
    document = {"images": entries, "annotations": annotations, "categories": listed}
    (folder / "annotations.json").write_text(json.dumps(document))
    (folder / "label_map.json").write_text(json.dumps(label_map))
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train`, `val` (COCO panoptic), `coco`, `coco_val`, `ade`, `pictures` (images only), `empty`."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "shop" / "train", images=20)
    write_dataset(root / "shop" / "val", images=5, first=100)
    write_dataset(root / "alone", images=20)
    write_dataset(root / "coco", "coco", images=12)
    write_dataset(root / "coco_val", "coco", images=4, first=100)
    write_dataset(root / "ade", "ade", images=12)
    write_dataset(root / "other", images=5, categories=[(1, "cat", 1), (2, "dog", 1)])
    write_dataset(root / "swapped", images=5, categories=[CATEGORIES[1], CATEGORIES[0], CATEGORIES[2]])
    write_dataset(root / "renamed", images=5, categories=[CATEGORIES[0], (3, "bottle", 1), CATEGORIES[2]])
    write_dataset(root / "numbered", images=5, categories=[(1, "belt", 0), (2, "box", 1), (3, "can", 1)])
    (root / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(root / "pictures" / "one.png")
    (root / "empty").mkdir()
    (root / "file.txt").write_text("no dataset")
    return root


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


MakePlanner = Callable[..., Planner]
MakePlan = Callable[..., Plan]


@pytest.fixture
def make_planner(home: Path, shelf: Shelf) -> MakePlanner:
    def make(*, machine: Machine = CPU, environ: dict[str, str] | None = None, **settings: Any) -> Planner:
        chosen = bundle.load(settings.get("skill_dir"))
        return Planner(chosen, Settings(home=home, **settings), shelf, machine, environ or {})

    return make


@pytest.fixture
def plan(make_planner: MakePlanner) -> MakePlan:
    """plan("train", train_dataset=...) with dry_run, on a machine without a GPU unless `machine` says otherwise."""

    def make(action: str, *, machine: Machine = CPU, **arguments: Any) -> Plan:
        request = REQUESTS[action].model_validate({"dry_run": True, **arguments})
        return make_planner(machine=machine).plan(request)

    return make


def write_trained(plan: MakePlan, shelf: Shelf, home: Path, data: Path) -> Parent:
    made = plan("train", train_dataset=str(data / "shop"), preset="mini", num_epochs=3)
    results = home / "jobs" / "train-aaaa1111" / "results"
    (results / "train").mkdir(parents=True)
    for epoch in range(3):
        (results / "train" / f"model_epoch_{epoch:03d}_step_{(epoch + 1) * 5:05d}.pth").write_bytes(
            b"weights%d" % epoch
        )
    latest = results / "train" / "mask2former_model_latest.pth"
    latest.symlink_to("model_epoch_002_step_00015.pth")
    metrics = {0: {"mIoU": 0.31, "PQ": 0.2}, 1: {"mIoU": 0.55}, 2: {"mIoU": 0.41}}
    parent = Parent("train-aaaa1111", "train", made.spec, results, metrics, "succeeded", made.datasets)
    shelf.jobs[parent.job_id] = parent
    return parent


@pytest.fixture
def trained(plan: MakePlan, shelf: Shelf, home: Path, data: Path) -> Parent:
    """`train-aaaa1111`: three epochs of a `mini` network, the second one the best."""
    return write_trained(plan, shelf, home, data)


def finished(shelf: Shelf, home: Path, made: Plan, job_id: str, artifact: str) -> Parent:
    """Put a job that ran `made` and wrote one file on the shelf."""
    results = home / "jobs" / job_id / "results"
    (results / artifact).parent.mkdir(parents=True)
    (results / artifact).write_bytes(job_id.encode())
    parent = Parent(
        job_id, made.action, made.spec, results, {}, "succeeded", made.datasets, parent_job_id=made.parent_job_id
    )
    shelf.jobs[job_id] = parent
    return parent


@pytest.fixture
def exported(plan: MakePlan, shelf: Shelf, home: Path, trained: Parent) -> Parent:
    """`export-bbbb2222`: the panoptic export of `trained`."""
    made = plan("export", parent_job_id=trained.job_id)
    return finished(shelf, home, made, "export-bbbb2222", "export/model.onnx")


@dataclass
class Workshop:
    """One planner with a trained and an exported job on its shelf, for tests that change nothing."""

    planner: Planner
    home: Path

    def plan(self, action: str, **arguments: Any) -> Plan:
        return self.planner.plan(REQUESTS[action].model_validate({"dry_run": True, **arguments}))


@pytest.fixture
def ended(shelf: Shelf, home: Path) -> Callable[[Plan, str, str], Parent]:
    """Makes a plan, with a job id and the file that it wrote, a finished job."""
    return partial(finished, shelf, home)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Workshop:
    home, shelf = tmp_path_factory.mktemp("workshop"), Shelf()
    made = Workshop(Planner(bundle.load(), Settings(home=home), shelf, CPU, {}), home)
    trained = write_trained(made.plan, shelf, home, data)
    finished(shelf, home, made.plan("export", parent_job_id=trained.job_id), "export-bbbb2222", "export/model.onnx")
    return made


@pytest.fixture
def engine(plan: MakePlan, shelf: Shelf, home: Path, trained: Parent) -> Parent:
    """`gen_trt_engine-dddd4444`: an engine of a semantic export."""
    semantic = plan("export", parent_job_id=trained.job_id, mode="semantic")
    onnx = finished(shelf, home, semantic, "export-cccc3333", "export/model.onnx")
    made = plan("gen_trt_engine", parent_job_id=onnx.job_id)
    return finished(shelf, home, made, "gen_trt_engine-dddd4444", "gen_trt_engine/model.engine")
