"""Pictures and tables: what is on them, and what is said when there is nothing to show."""

import pytest
from PIL import Image
from rich.console import Console

from mask2former_mcp.reports.curves import curves
from mask2former_mcp.reports.panels import sheet
from mask2former_mcp.reports.tables import jobs_lines, jobs_table, metrics_table


def picture(path, colour, size=(30, 20)):
    Image.new("RGB", size, colour).save(path)
    return path


def printed(table) -> str:
    console = Console(width=100, record=True)
    console.print(table)
    return console.export_text()


def test_a_sheet_lays_pictures_out_in_rows(tmp_path):
    pictures = [picture(tmp_path / f"{n}.png", colour) for n, colour in enumerate(("red", "lime", "blue"))]
    target = sheet(pictures, tmp_path / "out" / "sheet.png", columns=2, width=60)
    with Image.open(target) as made:
        assert made.size == (2 * 60 + 3 * 8, 2 * 40 + 3 * 8)
        seen = [made.getpixel(place) for place in ((30, 30), (100, 30), (30, 80), (100, 80))]
    assert seen == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


def test_a_sheet_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no pictures"):
        sheet([], tmp_path / "sheet.png")


def test_curves_draw_series_of_different_cadence(tmp_path):
    target = curves({"mIoU": [(0, 0.1), (9, 0.7)], "train_loss": [(n, 9.0 - n) for n in range(10)]}, tmp_path / "c.png")
    with Image.open(target) as made:
        assert len(made.getcolors(100_000)) > 4


def test_curves_of_one_point_or_a_flat_line_are_drawn(tmp_path):
    assert curves({"mIoU": [(0, 0.5)]}, tmp_path / "c.png").is_file()
    assert curves({"mIoU": [(0, 0.0), (1, 0.0)]}, tmp_path / "d.png").is_file()


def test_curves_without_a_point_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="no points"):
        curves({"mIoU": []}, tmp_path / "c.png")


def test_a_table_of_metrics_has_a_dash_for_what_was_not_measured():
    text = printed(metrics_table({"val": {"mIoU": 0.71234}}, title="Belt"))
    assert "0.712" in text
    assert "-" in text


JOB = {
    "job_id": "gen-trt-engine-7f3k9q2d",
    "status": "running",
    "progress": 0.4,
    "phase": "epoch 2",
    "metrics": {"mIoU": 0.5, "AP": 0.25},
    "message": "",
    "about": {"created_at": "2026-11-24T04:10:00+00:00", "metric": "AP"},
}


def test_a_table_of_jobs_shows_state_and_its_own_figure_with_whole_ids_in_80_columns():
    ended = {**JOB, "status": "failed", "message": "a long explanation " * 10, "metrics": {}}
    console = Console(width=80, record=True)
    console.print(jobs_table([JOB, ended]))
    text = console.export_text()
    assert text.count("gen-trt-engine-7f3k9q2d") == 2
    assert all(part in text for part in ("running 40%", "AP 0.250", "failed", "epoch 2"))
    assert "mIoU" not in text


def test_jobs_for_a_pipe_are_one_line_each_with_nothing_cut():
    said = "first line\nsecond\tline " + "x" * 300
    (line,) = jobs_lines([{**JOB, "message": said}])
    assert line.split("\t") == [
        "gen-trt-engine-7f3k9q2d", "2026-11-24T04:10:00+00:00", "running 40%", "AP 0.250", " ".join(said.split()),
    ]  # fmt: skip
