"""Random lives of jobs in one store, against a model of a few lines."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from mask2former_mcp.jobs.cancelling import ask_to_end
from mask2former_mcp.jobs.job import TERMINAL, TRANSITIONS, Job, JobState
from mask2former_mcp.jobs.leases import Grant, Leases
from mask2former_mcp.jobs.plan import AutomlDecision, Estimate, Plan
from mask2former_mcp.jobs.store import LIVE, JobStore
from mask2former_mcp.platforms.devices import Inventory

SLOTS = Inventory("cpu", ("cpu:0", "cpu:1"))
PLAN = Plan(
    action="train", automl=AutomlDecision(policy="off", route="direct", source="argument", reason="test"),
    spec_overrides={}, spec={}, command=(), image=None, platform="local", runtime="engine", digest="d" * 64,
    estimate=Estimate(gpus=0, memory_gb=None, steps=None, seconds=None, disk_gb=None, basis="table"),
)  # fmt: skip


@dataclass
class Life:
    """What the store should say of one job."""

    id: str
    attempt: int = 1
    path: list[JobState] = field(default_factory=lambda: [JobState.QUEUED])
    holds: bool = False

    @property
    def state(self) -> JobState:
        return self.path[-1]

    def go(self, *states: JobState) -> None:
        self.path += states
        self.attempt += states[-1] is JobState.QUEUED
        self.holds = self.holds and not any(state.terminal for state in states)


class Walk(RuleBasedStateMachine):
    lives = Bundle("lives")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = JobStore(Path(self.folder.name))
        self.leases = Leases(self.store.database)
        self.all: list[Life] = []

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(target=lives)
    def submit(self) -> Life:
        life = Life(f"train-{len(self.all)}")
        job = Job(id=life.id, action="train", state=JobState.QUEUED, plan=PLAN, created_at=0, results_dir=life.id)
        self.store.insert(job)
        self.all.append(life)
        return life

    @rule(life=lives)
    def ask_for_a_slot(self, life: Life) -> None:
        if life.state is JobState.QUEUED:
            answer = self.leases.acquire(life.id, 1, SLOTS, waits=lambda _: False)
            assert isinstance(answer, Grant) == (life.holds or sum(other.holds for other in self.all) < 2)
            life.holds = isinstance(answer, Grant)

    @rule(life=lives, data=st.data())
    def move(self, life: Life, data: st.DataObject) -> None:
        if targets := sorted(TRANSITIONS[life.state]):
            to = data.draw(st.sampled_from(targets))
            assert self.store.transition(life.id, to, expect=(life.state,), attempt=life.attempt, text="move")
            life.go(to)

    @rule(life=lives, expected=st.sampled_from(JobState), to=st.sampled_from(JobState), late=st.integers(0, 1))
    def move_if(self, life: Life, expected: JobState, to: JobState, late: int) -> None:
        asked: dict[str, Any] = {"expect": (expected,), "attempt": life.attempt - late, "text": "move"}
        if to not in TRANSITIONS[expected]:
            with pytest.raises(ValueError, match="no transition"):
                self.store.transition(life.id, to, **asked)
            return
        moved = self.store.transition(life.id, to, **asked)
        assert (moved is not None) == (expected is life.state and not late)
        if moved is not None:
            life.go(to)

    @rule(life=lives, late=st.integers(0, 1))
    def retry(self, life: Life, late: int) -> None:
        again = self.store.retry(life.id, attempt=life.attempt - late, restarts=1, reason="gone")
        assert (again is not None) == (life.state in (JobState.PREPARING, JobState.RUNNING) and not late)
        if again is not None:
            life.go(JobState.LOST, JobState.QUEUED)

    @rule(life=lives, expected=st.sampled_from(sorted(TERMINAL)), late=st.integers(0, 1))
    def resume(self, life: Life, expected: JobState, late: int) -> None:
        expected = life.state if life.state.terminal else expected
        again = self.store.resume(life.id, expect=expected, attempt=life.attempt - late, changes={})
        assert (again is not None) == (life.state.terminal and not late)
        if again is not None:
            life.go(JobState.QUEUED)

    @rule(life=lives)
    def cancel(self, life: Life) -> None:
        ask_to_end(self.store, life.id)
        if life.state is JobState.QUEUED:
            life.go(JobState.CANCELLED)
        elif life.state in (JobState.PREPARING, JobState.RUNNING):
            life.go(JobState.STOPPING)

    @rule(life=lives, late=st.integers(0, 1))
    def tell(self, life: Life, late: int) -> None:
        told = self.store.update(life.id, life.attempt - late, phase="x")
        assert told == (life.state in LIVE and not late)

    @invariant()
    def the_store_says_what_happened(self) -> None:
        for life in self.all:
            job = self.store.get(life.id)
            assert (job.state, job.attempt) == (life.state, life.attempt)
            assert (job.finished_at is not None) == life.state.terminal
            assert [event.to_state for event in self.store.history.events(life.id)] == life.path
            assert len(self.leases.held(life.id)) == life.holds


TestEveryLifeKeepsToTheTable = Walk.TestCase
TestEveryLifeKeepsToTheTable.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
