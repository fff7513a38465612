"""The main job, walked by a real client over stdio: demo data, doctor, check, train, evaluate, export, inference.

It calls the same tools with the same arguments as an agent would; nothing here reaches around the server.
"""

import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.types import CallToolResult, TextContent
from rich.console import Console

from mask2former_mcp.demo import scenes
from mask2former_mcp.demo.progress import Shown
from mask2former_mcp.reports.curves import curves
from mask2former_mcp.reports.panels import sheet
from mask2former_mcp.reports.tables import leaderboard_table, metrics_table
from mask2former_mcp.server import doctor
from mask2former_mcp.server.job_facts import duration

_ROOT = Path(__file__).resolve().parents[3]
_WAIT_S = 20  # of one wait_for_job call; progress arrives in between
_PICTURES = 4
_NAMED_ELSEWHERE = re.compile(r"^\S+ (\w+)( \d+%)?")  # of a headline: the job's id, its state, the percentage


class DemoFailed(Exception):
    """A step of the walk did not end well; the message says which and why."""


@dataclass(frozen=True)
class Walk:
    """What to train on and how. The defaults are the committed demo."""

    folder: Path
    train_images: int = 1200
    val_images: int = 120
    test_images: int = 12
    size: int = 192
    seed: int = 7
    trials: int = 1  # of the AutoML search; 1: the resolved spec alone
    training: Mapping[str, Any] = field(default_factory=lambda: {"preset": "mini", "num_epochs": 3})


async def walk(plan: Walk, console: Console, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The whole way; returns {metrics: {row: figures}, files: {name: path}, jobs: {action: id}, seconds: {action: s}}.

    Raises DemoFailed with the tool's own explanation when a step fails.
    """
    _make_data(plan, console)
    failure: DemoFailed | None = None
    async with Client(server_parameters(environ or os.environ)) as client:
        try:
            found = await _take(plan, _Steps(client, console))
        except DemoFailed as error:  # kept until the client is closed: its task group would wrap it in a group
            failure = error
    if failure is not None:
        raise failure
    console.print(metrics_table(found["metrics"], title="Mask2Former on images it was not trained on"))
    console.print(f"Training took {duration(found['seconds']['train'])}.")
    for what, path in found["files"].items():
        console.print(f"{what}: {path}", markup=False, soft_wrap=True)
    return found


async def _take(plan: Walk, steps: "_Steps") -> dict[str, Any]:
    await steps.doctor()
    await steps.check(plan.folder / "train", plan.folder / "val")
    asked = {"train_dataset": str(plan.folder), "automl": {"max_trials": plan.trials}, **plan.training}
    train = await steps.job("train", asked)
    if plan.trials > 1:
        await steps.leaderboard(train["job_id"])
    parent = {"parent_job_id": train["job_id"]}
    evaluated = await steps.job("evaluate", parent)
    exported = await steps.job("export", parent)
    segmented = await steps.job("inference", {**parent, "inference_dataset": str(plan.folder / "test" / "images")})
    return {
        "metrics": {"while training (best epoch)": train["metrics"], "best checkpoint": evaluated["metrics"]},
        "files": {
            "Model": await steps.model(train["job_id"]),
            "ONNX": await steps.onnx(exported["job_id"]),
            "Overlays of test images": await steps.overlays(segmented["job_id"]),
            "Training curves": await steps.curves(train["job_id"], plan.folder.parent / "curves.png"),
            "Input, ground truth, prediction": await steps.picture(
                evaluated["job_id"], plan.folder.parent / "prediction.png"
            ),
        },
        "jobs": steps.jobs,
        "seconds": steps.seconds,
    }


def server_parameters(environ: Mapping[str, str]) -> StdioServerParameters:
    """The server as a client would start it: `python server.py` in a checkout, the installed module otherwise."""
    shim = _ROOT / "server.py"
    args = [str(shim)] if shim.is_file() else ["-m", "mask2former_mcp.cli", "serve"]
    return StdioServerParameters(command=sys.executable, args=args, env=dict(environ))


def _make_data(plan: Walk, console: Console) -> None:
    """Idempotent: `scenes.make` leaves a folder that already holds these images as it is."""
    with Shown(console, "data") as shown:
        shown.update(0.0, f"drawing images into {plan.folder}")
        scenes.make(
            plan.folder,
            train=plan.train_images,
            val=plan.val_images,
            test=plan.test_images,
            size=plan.size,
            seed=plan.seed,
            progress=lambda done, total: shown.update(done / total, f"drawing images into {plan.folder}"),
        )
        shown.update(1.0, f"in {plan.folder}")


def _first(folder: Path, found: list[dict[str, Any]], what: str) -> Path:
    if not found:
        raise DemoFailed(f"{folder}: {what} should be there, and is not")
    return folder / str(found[0]["path"])


class _Steps:
    """The tool calls of the walk, each shown to the person who watches."""

    def __init__(self, client: Client, console: Console) -> None:
        self.client = client
        self.console = console
        self.jobs: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    async def doctor(self) -> None:
        report = await self._call("doctor", {})
        for line in doctor.lines(report):
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        if not report["ready"]:
            raise DemoFailed("doctor: this machine is not ready; the errors above say what to install")

    async def check(self, train: Path, val: Path) -> None:
        arguments = {"dataset": str(train), "compare_with": str(val)}
        report = await self._call("check_dataset", arguments)
        while not report["finished"]:
            report = await self._call("check_dataset", arguments)
        if not report["ready"]:
            raise DemoFailed(f"check_dataset: {report['problems'][:3]}")
        words = "Dataset checked: {images} images with {annotations} annotations of {classes} classes."
        self.console.print(words.format(**report["counts"]), highlight=False)

    async def job(self, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Start the action and wait for its end, with a bar. Raises DemoFailed unless it succeeded."""
        started = time.monotonic()
        summary = await self._call(action, arguments)
        self.jobs[action] = summary["job_id"]
        with Shown(self.console, action) as shown:
            while summary["status"] not in ("succeeded", "failed", "cancelled", "lost"):
                summary = await self._wait(summary["job_id"], shown)
            shown.update(summary["progress"], summary["status"])
        if summary["message"]:
            self.console.print(f"  {summary['message']}", markup=False, highlight=False, soft_wrap=True)
        self.seconds[action] = time.monotonic() - started
        if summary["status"] != "succeeded":
            raise DemoFailed(f"{action} {summary['status']}: {summary['message']} Next: {summary['next']}")
        return summary

    async def _wait(self, job_id: str, shown: Shown) -> dict[str, Any]:
        async def show(progress: float, _: float | None, message: str | None) -> None:
            shown.update(progress, _NAMED_ELSEWHERE.sub(r"\1", message or ""))

        return await self._call("wait_for_job", {"job_id": job_id, "timeout_s": _WAIT_S}, progress_callback=show)

    async def leaderboard(self, job_id: str) -> None:
        """The trials of a search side by side, the winner with its reason."""
        study = (await self._call("get_job", {"job_id": job_id}))["study"]
        self.console.print(leaderboard_table(study["leaderboard"], title=f"Trials of {job_id}"))
        self.console.print(f"  {study['winner']['reason']}", markup=False, highlight=False, soft_wrap=True)

    async def model(self, job_id: str) -> Path:
        """The best checkpoint, of a study its winner's."""
        study = (await self._call("get_job", {"job_id": job_id})).get("study")
        folder, found = await self._artifacts(study["winner"]["job_id"] if study else job_id)
        return _first(folder, [item for item in found if item.get("best")], "a best checkpoint")

    async def onnx(self, job_id: str) -> Path:
        folder, found = await self._artifacts(job_id)
        return _first(folder, [item for item in found if item["kind"] == "onnx"], "an ONNX file")

    async def overlays(self, job_id: str) -> Path:
        """Their folder."""
        folder, found = await self._artifacts(job_id)
        return _first(folder, [item for item in found if item["path"].endswith(".jpg")], "overlays").parent

    async def picture(self, job_id: str, target: Path) -> Path:
        """A sheet of the evaluation's panels."""
        folder, found = await self._artifacts(job_id)
        panels = sorted(item["path"] for item in found if "/panels/" in f"/{item['path']}")
        return sheet([folder / path for path in panels[:_PICTURES]], target)

    async def _artifacts(self, job_id: str) -> tuple[Path, list[dict[str, Any]]]:
        """A job's files, and the folder that their paths lie in."""
        listed = await self._call("list_artifacts", {"job_id": job_id, "limit": 100})
        return Path(listed["folder"]), listed["artifacts"]

    async def curves(self, job_id: str, target: Path) -> Path:
        """How mIoU, PQ and AP rose over the epochs."""
        measured = (await self._call("get_job_metrics", {"job_id": job_id}))["metrics"]
        series = {name: measured[name] for name in ("mIoU", "PQ", "AP") if name in measured}
        return curves(series, target, title=f"{job_id}, validation")

    async def _call(self, tool: str, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
        result: CallToolResult = await self.client.call_tool(tool, arguments, **options)
        if result.is_error:
            text = " ".join(block.text for block in result.content if isinstance(block, TextContent))
            raise DemoFailed(f"{tool}: {text}")
        return dict(result.structured_content or {})
