"""Whole jobs through the public service, with real SQLite and real processes."""

import json
from pathlib import Path

import pytest
import yaml

from mask2former_mcp.errors import InvalidRequest, NotAvailable, NotFound, WrongState
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.service import Jobs

from .conftest import finished, in_state, make_plan, results, started, until
