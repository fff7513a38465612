import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask2former_mcp.jobs.following import Follower
from mask2former_mcp.jobs.status import StatusReader, parse_line, read_eta, step_seconds
from mask2former_mcp.jobs.store import JobStore


def line(status: str, message: str, **fields: Any) -> str:
    return json.dumps({"date": "1/2/2026", "time": "3:4:5", "status": status, "message": message, **fields}) + "\n"


def read(path: Path, *lines: str, **options: Any) -> StatusReader:
    path.write_text("".join(lines))
    reader = StatusReader(path, **options)
    reader.advance(final=True)
    return reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "status.json"


START, LOOP = line("STARTED", "Starting Mask2Former train."), line("RUNNING", "Starting Training Loop.")
DONE = line("RUNNING", "Train finished successfully.")


def epoch_line(epoch: int, **fields: Any) -> str:
    return line("RUNNING", "Training loop in progress", epoch=epoch, **fields)


def evaluated(value: float, **fields: Any) -> str:
    return line("RUNNING", "Eval metrics generated.", kpi={"mIoU": value}, **fields)


def test_the_done_line_counts_only_in_the_last_segment(path: Path) -> None:
    assert read(path, START, DONE).run.done
    assert not read(path, START, DONE, START).run.done
    assert not read(path, START, DONE, line("FAILURE", "boom")).run.done
    run = read(path, START, line("FAILURE", "boom"), START, DONE).run
    assert (run.done, run.failure, run.segments) == (True, None, 2)


def test_lines_of_earlier_attempts_lie_before_the_offset(path: Path) -> None:
    earlier = START + DONE
    path.write_text(earlier + START)
    reader = StatusReader(path, offset=len(earlier))
    assert reader.advance()
    assert (reader.run.done, reader.run.segments) == (False, 1)


def test_a_torn_last_line_is_read_when_the_rest_of_it_arrives(path: Path) -> None:
    path.write_text(START + DONE[:-5])
    reader = StatusReader(path)
    reader.advance()
    assert not reader.run.done
    path.write_text(START + DONE)
    assert reader.advance()
    assert reader.run.done
    assert not reader.advance()


def test_a_last_line_without_its_newline_counts_when_nobody_writes_any_more(path: Path) -> None:
    path.write_text(START + DONE.rstrip("\n"))
    reader = StatusReader(path)
    reader.advance()
    assert not reader.run.done
    reader.advance(final=True)
    assert reader.run.done


def test_a_line_glued_to_a_torn_one_is_recovered(path: Path) -> None:
    assert read(path, START, epoch_line(3)[:20] + START, DONE).run.segments == 2


def test_nan_literals_are_read_and_kept_as_not_a_number(path: Path) -> None:
    reader = read(
        path, START, '{"status":"RUNNING","message":"Eval metrics generated.","epoch":0,"kpi":{"mIoU":NaN}}\n'
    )
    assert math.isnan(reader.run.measured[0]["mIoU"])


def test_a_sticky_kpi_is_measured_once_where_it_is_announced(path: Path) -> None:
    stale = {"mIoU": 0.5, "train_loss": 9.0}
    evaluation = line("RUNNING", "Eval metrics generated.", kpi=stale, epoch=0)
    training = line("RUNNING", "Train metrics generated.", kpi={**stale, "train_loss": 1.0}, epoch=1)
    run = read(path, START, LOOP, epoch_line(0), evaluation, epoch_line(1, kpi=stale), training).run
    assert run.measured == {0: {"mIoU": 0.5}, 1: {"train_loss": 1.0}}


def test_a_resumed_run_says_with_its_first_loop_line_which_epoch_it_measured_before(path: Path) -> None:
    resumed = line("RUNNING", "Resuming training from checkpoint: /results/train/model_epoch_002_step_00030.pth")
    lines = [START, resumed, evaluated(0.01), LOOP, evaluated(0.3), epoch_line(3), evaluated(0.4), epoch_line(4)]
    run = read(path, *lines, epochs=5).run
    assert run.measured == {3: {"mIoU": 0.3}, 4: {"mIoU": 0.4}}
    after = read(path, START, resumed, LOOP, epoch_line(3), evaluated(0.3), epoch_line(4), evaluated(0.4), epochs=5).run
    assert after.measured == {3: {"mIoU": 0.3}, 4: {"mIoU": 0.4}}


def test_validation_lines_before_their_loop_line_belong_to_the_epoch_to_come(path: Path) -> None:
    lines = [START, evaluated(0.01), LOOP]  # the first one is a sanity check
    for epoch in range(3):
        lines += [evaluated(0.1 * epoch), epoch_line(epoch, max_epoch=2)]
    assert {e: v["mIoU"] for e, v in read(path, *lines, epochs=3).run.measured.items()} == {0: 0.0, 1: 0.1, 2: 0.2}


def test_validation_lines_after_their_loop_line_belong_to_it(path: Path) -> None:
    lines = [START, LOOP]
    for epoch in range(3):
        lines += [epoch_line(epoch), evaluated(0.1 * epoch)]
    assert {e: v["mIoU"] for e, v in read(path, *lines, epochs=3).run.measured.items()} == {0: 0.0, 1: 0.1, 2: 0.2}


@pytest.mark.parametrize("before", [True, False])
def test_the_validation_interval_places_a_line_without_an_epoch(path: Path, before: bool) -> None:
    lines = [START, LOOP]
    for epoch in range(6):
        shown = [evaluated(epoch / 10)] if (epoch + 1) % 3 == 0 else []
        lines += [*shown, epoch_line(epoch)] if before else [epoch_line(epoch), *shown]
    assert set(read(path, *lines, interval=3, epochs=6).run.measured) == {2, 5}


def test_an_evaluation_has_one_measurement(path: Path) -> None:
    run = read(path, START, line("RUNNING", "Test metrics generated.", kpi={"mIoU": 0.4, "PQ": 0.3})).run
    assert run.measured == {0: {"mIoU": 0.4, "PQ": 0.3}}


def test_progress_and_time_left_come_from_our_fields_or_from_taos(path: Path) -> None:
    ours = read(path, START, LOOP, epoch_line(1, progress=0.4, eta_s=12.5), epochs=4).run
    assert (ours.progress, ours.eta_s, ours.phase) == (0.4, 12.5, "epoch 2 of 4")
    taos = read(path, START, LOOP, epoch_line(1, max_epoch=3, eta="1 day, 2:03:04")).run
    assert (taos.progress, taos.eta_s, taos.phase) == (0.5, 93784.0, "epoch 2 of 4")
    done = read(path, START, LOOP, epoch_line(1, progress=0.4, eta_s=12.5), DONE).run
    assert (done.progress, done.eta_s) == (1.0, None)


def test_a_file_written_anew_is_read_from_its_beginning(path: Path) -> None:
    path.write_text(START + LOOP + epoch_line(0))
    reader = StatusReader(path)
    reader.advance()
    path.write_text(START)
    assert reader.advance()
    assert reader.run.epoch is None


def test_a_missing_file_is_nothing_new(path: Path) -> None:
    assert not StatusReader(path).advance(final=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:00:07", 7), ("12:34:56.7", 45296), (3, 3), ("soon", None), (-1, None), (True, None), (None, None)],
)
def test_time_left_is_read_or_left_out(text: object, seconds: float | None) -> None:
    assert read_eta(text) == seconds


@given(st.binary(max_size=80))
def test_no_bytes_make_the_reader_stumble(data: bytes) -> None:
    assert parse_line(data) is None or isinstance(parse_line(data), dict)


_MESSAGES = ["Training loop in progress", "Eval metrics generated.", "Train metrics generated.", "Starting"]
_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(-(10**400), 10**400)
    | st.sampled_from(["9" * 400 + ":00:01", "9" * 400, "1e400", "\ud800", 1e300]),
    lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
_LINES = st.fixed_dictionaries(
    {"message": st.sampled_from(_MESSAGES) | _VALUES},
    optional=dict.fromkeys(("status", "epoch", "max_epoch", "progress", "eta", "eta_s", "kpi"), _VALUES),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(_LINES, max_size=4))
def test_whatever_the_lines_say_it_can_be_stored(store: JobStore, add: Any, lines: list[dict[str, Any]]) -> None:
    job = add(f"train-{len(store.list(limit=1000)[0])}")
    path = store.home / job.results_dir / "train/status.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in lines))
    Follower(store, job).look(final=True)
    assert 0 <= store.get(job.id).progress <= 1


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 900), max_size=8))
def test_however_the_file_grows_the_same_is_read(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    path = tmp_path_factory.mktemp("status") / "status.json"
    text = START + LOOP + "".join(epoch_line(e, progress=(e + 1) / 3) + evaluated(e / 10) for e in range(3)) + DONE
    whole = read(path, text, epochs=3).run
    reader = StatusReader(path, epochs=3)
    path.write_text("")
    for cut in sorted(cuts):
        path.write_text(text[:cut])
        reader.advance()
    path.write_text(text)
    reader.advance(final=True)
    assert reader.run == whole


def test_the_pace_is_what_the_run_told_last(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert step_seconds(path) is None
    lines = [{"time_per_step": "0:01:30"}, {"time_per_step": "0:00:01.250"}, {"message": "Test metrics generated."}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"date": "torn')
    assert step_seconds(path) == 1.25
    path.write_text(json.dumps({"time_per_step": "0:00:00.000"}) + "\n")
    assert step_seconds(path) is None
