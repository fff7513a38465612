"""`evaluate` and `inference` with one tiny trained network."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mask2former_mcp.engine import result_files, session
from mask2former_mcp.engine.classes import Classes, Entry
from mask2former_mcp.formats import panoptic
from mask2former_mcp.spec.experiment import load

Spec = Callable[..., dict[str, Any]]


def act(action: str, folder: Path, spec: dict[str, Any], *overrides: str) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return session.run(action, folder / "spec.yaml", [f"results_dir={folder}", *overrides])


def lines(folder: Path, action: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / action / "status.json").read_text().splitlines()]


def test_evaluate_repeats_the_validation_of_training(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    assert act("evaluate", tmp_path, tiny(), f"evaluate.checkpoint={weights}", "evaluate.batch_size=3") == 0
    content = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())
    trained = next(
        json.loads(line)["kpi"]
        for line in reversed((weights.parent / "status.json").read_text().splitlines())
        if "Eval metrics" in line
    )
    assert content["images"] == 4
    for name in ("mIoU", "PQ", "AP"):  # batches of another size: only rounding may differ
        assert content["overall"][name] == pytest.approx(trained[name], abs=0.02)
    told = lines(tmp_path, "evaluate")
    assert (
        next(x for x in told if x["message"] == "Test metrics generated.")["kpi"]["mIoU"] == content["overall"]["mIoU"]
    )
    assert told[-1]["message"] == "Evaluate finished successfully."
    names = {row["name"]: row for row in content["per_class"]}
    assert {"disc", "box", "ground"} <= set(names)
    assert names["ground"]["isthing"] is False
    assert names["ground"]["category_id"] == 9
    panels = sorted((tmp_path / "evaluate" / "panels").glob("*.png"))
    assert len(panels) == 4
    with Image.open(panels[0]) as panel:
        assert panel.width > 3 * 400  # input, ground truth, prediction


def test_evaluate_with_other_classes_says_the_right_number(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    spec = tiny(model__sem_seg_head__num_classes=7)
    assert act("evaluate", tmp_path, spec, f"evaluate.checkpoint={weights}") == 1
    assert "num_classes=3" in lines(tmp_path, "evaluate")[-1]["message"]


def test_inference_writes_pictures_and_structured_results_that_agree(
    tiny: Spec, weights: Path, tmp_path: Path, shapes: Path
) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(["a.png", "a.jpg", "b.PNG", "more/a.png"]):
        with Image.open(shapes / "val" / "images" / f"{i:03d}.png") as image:
            image.resize((64 + 20 * i, 64)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("no image")
    spec = tiny(dataset__test__img_dir=str(folder), dataset__test__batch_size=2)
    assert act("inference", tmp_path, spec, f"inference.checkpoint={weights}") == 0
    out = tmp_path / "inference"
    assert sorted(p.name for p in out.glob("*.jpg")) == ["a.jpg", "a_png.jpg", "b.jpg", "more_a_png.jpg"]
    told = lines(tmp_path, "inference")
    assert any(x["status"] == "SKIPPED" and "broken.jpg" in x["message"] for x in told)
    assert told[-2]["message"] == "Segmented 4 images, 1 could not be read and were passed over."
    assert told[-2]["unreadable"] == 1
    assert "broken.jpg" in json.loads((out / "unreadable.json").read_text())[0]
    assert [i["file_name"] for i in json.loads((out / "images.json").read_text())][-1] == "more/a.png"
    content = json.loads((out / "panoptic.json").read_text())
    assert {c["id"]: c["isthing"] for c in content["categories"]} == {3: 1, 5: 1, 9: 0}
    for row in content["annotations"]:
        ids = panoptic.read_ids(out / "panoptic" / row["file_name"])
        image = next(i for i in content["images"] if i["id"] == row["image_id"])
        assert ids.shape == (image["height"], image["width"])
        assert {s["id"] for s in row["segments_info"]} == set(np.unique(ids)) - {0}
        assert all(s["area"] == (ids == s["id"]).sum() for s in row["segments_info"])
    instances = json.loads((out / "instances.json").read_text())
    assert instances
    names = {c["id"]: c["name"] for c in json.loads((out / "categories.json").read_text())}
    assert set(names) == {3, 5, 9}
    for row in instances:
        image = next(i for i in content["images"] if i["id"] == row["image_id"])
        mask = coco_mask.decode(row["segmentation"])
        assert mask.shape == (image["height"], image["width"])
        assert names[row["category_id"]] == row["category"] in ("disc", "box")
        assert row["file_name"] == image["file_name"]
        assert 0.05 <= row["score"] <= 1
    with Image.open(out / "semantic" / "b.png") as semantic:
        assert set(np.unique(np.asarray(semantic))) <= {3, 5, 9}


def test_instances_can_be_read_without_the_training_and_keep_the_score_that_was_asked(
    tiny: Spec, weights: Path, tmp_path: Path, shapes: Path
) -> None:
    spec = tiny(model__mode="instance", dataset__test__img_dir=str(shapes / "val" / "images"))

    def found(folder: Path, *more: str) -> list[dict[str, Any]]:
        assert act("inference", folder, spec, f"inference.checkpoint={weights}", *more) == 0
        rows: list[dict[str, Any]] = json.loads((folder / "inference" / "instances.json").read_text())
        return rows

    every = found(tmp_path / "a")
    least = sorted(row["score"] for row in every)[len(every) // 2]
    surer = [row for row in every if row["score"] >= least]
    assert 0 < len(surer) < len(every)
    assert found(tmp_path / "b", f"inference.min_score={least - 1e-5}") == surer
    named = json.loads((tmp_path / "a" / "inference" / "categories.json").read_text())
    assert {entry["id"]: entry["name"] for entry in named}.items() >= {3: "disc", 5: "box"}.items()
    truth = COCO(str(shapes / "val" / "instances.json"))
    results = truth.loadRes([{**row, "image_id": truth.getImgIds()[0]} for row in every])
    assert len(results.getAnnIds()) == len(every)


def test_results_of_images_with_one_name_do_not_overwrite_each_other() -> None:
    paths = [Path("x/a.jpg"), Path("x/a.png"), Path("y/a.png"), Path("y/b.png"), Path("z/y/a.png")]
    assert result_files.unique_stems(paths) == ["a", "a_png", "y_a_png", "b", "y_a_png_4"]


@pytest.mark.parametrize(
    ("largest", "mode"), [(255, "L"), (256, "I;16"), (65535, "I;16"), (65536, "RGB"), (70_001, "RGB")]
)
def test_category_ids_of_any_size_come_back_from_the_semantic_png(tmp_path: Path, largest: int, mode: str) -> None:
    category_ids, class_map = np.array([0, 3, largest, 7]), np.array([[0, 1], [2, 3]], dtype=np.uint8)
    result_files.write_categories(tmp_path / "a.png", class_map, category_ids)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
        found = panoptic.decode_ids(np.asarray(image)) if mode == "RGB" else np.asarray(image)
    assert found.tolist() == [[0, 3], [largest, 7]]


def test_category_ids_beyond_a_png_are_refused_before_anything_is_segmented(tiny: Spec, tmp_path: Path) -> None:
    spec = load("inference", tiny(inference__checkpoint="a.pth"))
    classes = Classes((Entry(1 << 24, "far", True, (0, 0, 0)),))
    with pytest.raises(ValueError, match="16777216 cannot be written"):
        result_files.image_files(tmp_path, [], classes, spec)


def test_inference_without_any_image_says_where_it_looked(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    spec = tiny(dataset__test__img_dir=str(tmp_path))
    assert act("inference", tmp_path / "out", spec, f"inference.checkpoint={weights}") == 1
    assert "no image" in lines(tmp_path / "out", "inference")[-1]["message"]


def test_results_are_never_written_over_the_images_nor_segmented_again(
    tiny: Spec, weights: Path, tmp_path: Path, shapes: Path
) -> None:
    image = (shapes / "val" / "images" / "000.png").read_bytes()
    (tmp_path / "a.png").write_bytes(image)
    spec = tiny(dataset__test__img_dir=str(tmp_path), inference__checkpoint=str(weights))
    for _ in range(2):  # the second time, overlays of the first lie in a folder below
        assert act("inference", tmp_path, spec) == 0
    assert len(json.loads((tmp_path / "inference" / "images.json").read_text())) == 1
    file = tmp_path / "spec.yaml"
    assert session.run("inference", file, [f"inference.results_dir={tmp_path}"]) == 1
    assert "another results_dir" in (tmp_path / "status.json").read_text()
    assert (tmp_path / "a.png").read_bytes() == image


def test_pictures_of_every_kind_are_segmented_at_their_upright_size(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    rgb = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(rgb[..., 0]).save(folder / "grey.png")
    Image.fromarray(np.dstack([rgb, rgb[..., :1]])).save(folder / "alpha.png")
    Image.fromarray(rgb).convert("P").save(folder / "palette.png")
    Image.fromarray(rgb).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 256).save(folder / "deep.png")
    Image.fromarray(rgb[:1, :1]).save(folder / "dot.png")
    Image.new("RGB", (600, 2)).save(folder / "thread.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(rgb).save(folder / "turned.jpg", exif=turned)
    (folder / "cut.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:500])
    (folder / "empty.png").write_bytes(b"")
    spec = tiny(dataset__test__img_dir=str(folder), dataset__test__batch_size=3, dataset__test__num_workers=1)
    assert act("inference", tmp_path, spec, f"inference.checkpoint={weights}") == 0
    listed = json.loads((tmp_path / "inference" / "images.json").read_text())
    size = {image["file_name"]: (image["width"], image["height"]) for image in listed}
    assert size.pop("turned.jpg") == (40, 70)
    assert size.pop("dot.png") == (1, 1)
    assert size.pop("thread.png") == (600, 2)
    assert size == dict.fromkeys(("grey.png", "alpha.png", "palette.png", "cmyk.jpg", "deep.png"), (70, 40))
    assert len(json.loads((tmp_path / "inference" / "unreadable.json").read_text())) == 2
