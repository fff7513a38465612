"""How far a step of the walk is: a bar at a terminal; elsewhere a line for each phase and each tenth."""

import re
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

_PASSING = re.compile(r"\(\d+%\)|, .*")  # what changes within a phase: percentages, figures, time left


class Shown:
    """One step. `update` takes what is done, 0..1, and what to say of it."""

    def __init__(self, console: Console, name: str) -> None:
        columns = (
            TextColumn("{task.description:10}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[says]}"),
        )
        self._console, self._name = console, name
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(name, total=1.0, says="")
        self._told: tuple[int, str] | None = None

    def __enter__(self) -> "Shown":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: float, says: str) -> None:
        self._bar.update(self._task, completed=done, says=says)
        place = int(10 * done), _PASSING.sub("", says)
        if not self._console.is_terminal and place != self._told:
            self._told = place
            line = f"{self._name} {done:.0%}: {says}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
