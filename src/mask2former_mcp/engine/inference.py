"""Inference: every image of a folder segmented. `result_files` tells what is written; beside it unreadable.json names
the images that were passed over, and why."""

from collections.abc import Sequence
from pathlib import Path

from lightning_fabric import Fabric

from mask2former_mcp.engine import classes as class_table
from mask2former_mcp.engine import device, fast, forward_graph, loader, photos, pictures, result_files, trained, usable
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.loader import Normalize
from mask2former_mcp.engine.photos import Batches, Photos
from mask2former_mcp.engine.pictures import Pictures
from mask2former_mcp.engine.progress import Progress
from mask2former_mcp.engine.result_files import Writer
from mask2former_mcp.engine.segmenting import Segmenter
from mask2former_mcp.engine.status import StatusLog
from mask2former_mcp.engine.usable import Usable
from mask2former_mcp.spec.experiment import Experiment


def run(spec: Experiment, results_dir: Path) -> None:
    """Segments the images of `dataset.test.img_dir`. Raises ValueError when there is none, or none can be read."""
    status = StatusLog(results_dir)
    known = usable.open_model(spec, spec.inference.checkpoint, trt_engine=spec.inference.trt_engine)
    labels = class_table.read_labels(spec.dataset.label_map)
    classes = known.classes or trained.classes_from_labels(labels, spec)
    paths = photos.find_images(spec.dataset.test.img_dir, without=results_dir)
    if (asked := spec.inference.num_gpus * spec.inference.num_nodes) > 1:
        print(f"inference uses one process, not {asked}: num_gpus and num_nodes are for train and evaluate", flush=True)
    # Early, where a fork costs little. What runs in these processes touches neither torch nor CUDA (worker_pool.py).
    kept = kept_pictures(spec, len(paths))
    with result_files.writing(result_files.image_files(results_dir, paths, classes, spec, kept)) as writer:
        progress = Progress(status, len(paths), message="Inference in progress", unit="image")
        unreadable = _segment(prepare(spec, known, paths, classes, kept), paths, writer, progress)
    result_files.write_json(results_dir / "unreadable.json", unreadable)
    told = f", {len(unreadable)} could not be read and were passed over" if unreadable else ""
    status.running(f"Segmented {len(paths) - len(unreadable)} images{told}.", unreadable=len(unreadable))
    each = progress.recent_seconds_per_step()
    pace = f", {1 / each:.1f} images/s" if each else ""
    print(f"segmented {len(paths) - len(unreadable)} images{told}{pace}", flush=True)


def _segment(
    prepared: tuple[Segmenter, Batches], paths: Sequence[Path], writer: Writer, progress: Progress
) -> list[str]:
    """All images through the network and to the writer; returns why those that could not be read could not."""
    segmenter, batches = prepared
    unreadable: dict[int, str] = {}
    for shots, outcomes in segmenter(batches):
        for each in shots.unreadable:
            unreadable[each.index] = each.reason
            progress.status.skipped(each.reason)
            print(f"skipped: {each.reason}", flush=True)
        writer.add(list(zip(shots.indices, outcomes, shots.kept, strict=True)))
        last = max([*shots.indices, *(each.index for each in shots.unreadable)])
        progress.step(paths[last].name, count=len(shots.indices) + len(shots.unreadable))
    reasons = [unreadable[index] for index in sorted(unreadable)]
    if len(reasons) == len(paths):
        raise ValueError(f"none of the {len(paths)} images could be read; the first: {reasons[0]}")
    return reasons


def kept_pictures(spec: Experiment, count: int) -> Pictures:
    """Where pictures wait for what is drawn on them: as many as are read, segmented, handed on and written at once."""
    read = (photos.batches_under_way(spec.dataset.test.num_workers) + 1) * batch_size(spec)
    return pictures.room_for(min(count, read + result_files.images_under_way(count)))


def prepare(
    spec: Experiment, known: Usable, paths: Sequence[Path], classes: Classes, kept: Pictures
) -> tuple[Segmenter, Batches]:
    """What segments the images, and what it is given: they are read in processes that start with the first batch."""
    split, batch = spec.dataset.test, batch_size(spec)
    fabric = device_for(spec, known)
    folder = Photos(paths, spec.dataset.augmentation, loader.pair(split.target_size), known.size, kept)
    graphs = not known.size and forward_graph.possible(known.model, fabric.device)
    groups = folder.groups(batch, grain=photos.GRAIN if batch > 1 or graphs else 1)
    model = known.model
    if not known.size:
        model, said = forward_graph.over(model, fabric, rooms=[group.room for group in groups], batch=batch)
        if said:
            print(said, flush=True)
    normalize = Normalize(spec.dataset.pixel_mean, spec.dataset.pixel_std)
    interpret = known.interpreter(spec, classes, fabric.device, min_score=least_score(spec))
    fill = batch if graphs else 0
    batches = photos.batches(folder, groups, split.num_workers, fill=fill, pin=spec.dataset.pin_memory)
    return Segmenter(model, interpret, normalize, fabric.device), batches


def device_for(spec: Experiment, known: Usable) -> Fabric:
    """The device, and the network made ready for it: with the kernels that fit. On the fast path with weights in half
    precision, where that is the spec's precision and with these kernels harms nothing. fp32, the default, stays what it
    says, so that what is seen is what `evaluate` has measured."""
    fabric = device.single(spec.inference.gpu_ids, spec.train.precision)
    if known.size:
        return fabric
    fast.accelerate(known.model, fabric.device)
    if not forward_graph.possible(known.model, fabric.device):
        return fabric
    half = fast.allows_half_weights(known.model)
    return device.single(spec.inference.gpu_ids, spec.train.precision, half_weights=half)


def least_score(spec: Experiment) -> float:
    """The score below which an instance is neither listed nor drawn."""
    return min(spec.inference.min_score, spec.model.object_mask_threshold)


def batch_size(spec: Experiment) -> int:
    """Images that are segmented together."""
    return spec.inference.batch_size if spec.inference.batch_size > 0 else spec.dataset.test.batch_size
