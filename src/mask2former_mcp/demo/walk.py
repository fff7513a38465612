"""The main job, walked by a real client over stdio: demo data, doctor, check, train, evaluate, export, inference.

It calls the same tools with the same arguments as an agent would; nothing here reaches around the server.
"""

import os
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
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from mask2former_mcp.demo import scenes
from mask2former_mcp.reports.curves import curves
from mask2former_mcp.reports.panels import sheet
from mask2former_mcp.reports.tables import leaderboard_table, metrics_table
from mask2former_mcp.server import doctor
from mask2former_mcp.server.job_facts import duration

_ROOT = Path(__file__).resolve().parents[3]
_WAIT_S = 20  # of one wait_for_job call; progress arrives in between
_PICTURES = 4


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
    """The whole way; returns {metrics: {row: figures}, picture, curves, jobs: {action: job_id}, seconds: {action: s}}.

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
    console.print(f"Training curves: {found['curves']}", soft_wrap=True)
    console.print(f"Input, ground truth, prediction: {found['picture']}", soft_wrap=True)
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
    await steps.job("export", parent)
    await steps.job("inference", {**parent, "inference_dataset": str(plan.folder / "test" / "images")})
    return {
        "metrics": {"while training (best epoch)": train["metrics"], "best checkpoint": evaluated["metrics"]},
        "picture": await steps.picture(evaluated["job_id"], plan.folder.parent / "prediction.png"),
        "curves": await steps.curves(train["job_id"], plan.folder.parent / "curves.png"),
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
    with _bar(console) as bar:
        task = bar.add_task("data", total=1.0, eta=f"drawing images into {plan.folder}")
        scenes.make(
            plan.folder,
            train=plan.train_images,
            val=plan.val_images,
            test=plan.test_images,
            size=plan.size,
            seed=plan.seed,
            progress=lambda done, total: bar.update(task, completed=done / total),
        )
        bar.update(task, completed=1.0, eta=f"in {plan.folder}")


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
        self.console.print(f"Dataset checked: {report['counts']}", highlight=False)

    async def job(self, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Start the action and wait for its end, with a bar. Raises DemoFailed unless it succeeded."""
        started = time.monotonic()
        summary = await self._call(action, arguments)
        self.jobs[action] = summary["job_id"]
        with _bar(self.console) as bar:
            task = bar.add_task(action, total=1.0, eta="")
            while summary["status"] not in ("succeeded", "failed", "cancelled", "lost"):
                summary = await self._wait(summary["job_id"], bar, task)
            bar.update(task, completed=summary["progress"], eta=summary["status"])
        if summary["message"]:
            self.console.print(f"  {summary['message']}", markup=False, highlight=False, soft_wrap=True)
        self.seconds[action] = time.monotonic() - started
        if summary["status"] != "succeeded":
            raise DemoFailed(f"{action} {summary['status']}: {summary['message']} Next: {summary['next']}")
        return summary

    async def _wait(self, job_id: str, bar: Progress, task: TaskID) -> dict[str, Any]:
        async def show(progress: float, _: float | None, message: str | None) -> None:
            bar.update(task, completed=progress, eta=(message or "").partition(" ")[2])

        return await self._call("wait_for_job", {"job_id": job_id, "timeout_s": _WAIT_S}, progress_callback=show)

    async def leaderboard(self, job_id: str) -> None:
        """The trials of a search side by side, the winner with its reason."""
        study = (await self._call("get_job", {"job_id": job_id}))["study"]
        self.console.print(leaderboard_table(study["leaderboard"], title=f"Trials of {job_id}"))
        self.console.print(f"  {study['winner']['reason']}", markup=False, highlight=False, soft_wrap=True)

    async def picture(self, job_id: str, target: Path) -> Path:
        """A sheet of the evaluation's panels. The files lie in the folder that list_artifacts names."""
        listed = await self._call("list_artifacts", {"job_id": job_id, "limit": 100})
        panels = sorted(item["path"] for item in listed["artifacts"] if "/panels/" in f"/{item['path']}")
        folder = Path(listed["folder"])
        return sheet([folder / path for path in panels[:_PICTURES]], target)

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


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
    )
    return Progress(*columns, console=console)
