"""`mask2former-mcp`: the server, and the same jobs for people at a terminal.

Without a verb it serves over stdio, because that is what a client starts. Each verb imports what it needs: `serve` must
answer within two seconds, `version` at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mask2former_mcp.errors import Mask2FormerError, StoreError
from mask2former_mcp.version import version


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the work failed or something must be mended, 2 wrong usage, 130 interrupted."""
    arguments = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    environ = dict(os.environ)
    if arguments.skill_dir is not None:
        environ["M2F_SKILL_DIR"] = str(arguments.skill_dir)
    try:
        return int(arguments.verb(arguments, environ))
    except Mask2FormerError as error:
        print(f"{error.code}: {error.message}\nFix: {error.fix}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "mask2former-mcp", description="Train, evaluate, export and run Mask2Former from an agent."
    )
    parser.set_defaults(verb=_serve, http=False, port=None, skill_dir=None)
    verbs = parser.add_subparsers(metavar="serve|demo|doctor|check|jobs|logs|generate|version")
    serve = _verb(verbs, "serve", _serve, "run the MCP server (what runs without a verb)")
    demo = _verb(verbs, "demo", _demo, "the whole way on made-up data: check, train, evaluate, export, inference")
    demo.add_argument("--folder", type=Path, help="where the data and the picture go (default: <home>/demo)")
    demo.add_argument("--search", action="store_true", help="let AutoML search with four trials instead of one")
    _verb(verbs, "doctor", _doctor, "what this machine can run, and how to mend what it cannot")
    check = _verb(verbs, "check", _check, "check a dataset folder")
    check.add_argument("dataset")
    check.add_argument("--compare-with")
    check.add_argument("--sample", type=int)
    _verb(verbs, "jobs", _jobs, "list jobs")
    logs = _verb(verbs, "logs", _logs, "the end of a job's log")
    logs.add_argument("job_id")
    logs.add_argument("--tail", type=int, default=50)
    generate = _verb(verbs, "generate", _generate, "write the installable skill folder")
    generate.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="where the skill folder goes")
    _verb(verbs, "version", _version, "print the version")
    for each in (parser, serve):
        each.add_argument("--http", action="store_true", help="Streamable HTTP on 127.0.0.1 instead of stdio")
        each.add_argument("--port", type=int, help="for --http (default 8765)")
        each.add_argument("--skill-dir", type=Path, help="another skill bundle than the packaged one")
    return parser


def _verb(verbs: Any, name: str, run: Any, help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=help, description=help)
    parser.set_defaults(verb=run)
    return parser


def _serve(arguments: argparse.Namespace, environ: dict[str, str]) -> int:
    from mask2former_mcp.server import serve

    if arguments.http:
        serve.serve_http(arguments.port or serve.DEFAULT_PORT, environ)
    else:
        serve.serve_stdio(environ)
    return 0


def _demo(arguments: argparse.Namespace, environ: dict[str, str]) -> int:
    import anyio
    from rich.console import Console

    from mask2former_mcp.demo.walk import DemoFailed, Walk, walk
    from mask2former_mcp.settings import Settings

    console = Console()
    folder = arguments.folder or Settings.load(environ).home / "demo"
    try:
        plan = Walk(folder=Path(folder).resolve() / "belt", trials=4 if arguments.search else 1)
        anyio.run(walk, plan, console, environ)
    except DemoFailed as error:
        console.print(f"The demo stopped. {error}", style="red", markup=False)
        return 1
    return 0


def _doctor(_: argparse.Namespace, environ: dict[str, str]) -> int:
    from rich.console import Console

    from mask2former_mcp.server import doctor
    from mask2former_mcp.server.services import Services

    report = doctor.examine(Services(environ))
    console = Console()
    for line in doctor.lines(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0 if report["ready"] else 1


def _check(arguments: argparse.Namespace, environ: dict[str, str]) -> int:
    from rich.console import Console

    from mask2former_mcp.server.data_tools import dataset_report
    from mask2former_mcp.server.requests import CheckDatasetRequest
    from mask2former_mcp.server.services import Services

    request = CheckDatasetRequest(
        dataset=arguments.dataset, compare_with=arguments.compare_with, sample=arguments.sample
    )
    report = dataset_report(Services(environ), request)
    Console().print_json(data=report)
    return 0 if report.get("ready") else 1


def _jobs(_: argparse.Namespace, environ: dict[str, str]) -> int:
    from rich.console import Console

    from mask2former_mcp.reports.tables import jobs_lines, jobs_table
    from mask2former_mcp.server.answers import presentable
    from mask2former_mcp.server.job_facts import listed
    from mask2former_mcp.server.services import Services

    def tell(error: StoreError) -> None:
        print(f"{error.message}. {error.fix}", file=sys.stderr)

    jobs, _next = Services(environ).jobs.list(limit=50, unreadable=tell)
    rows, console = [presentable(listed(job)) for job in jobs], Console()
    if console.is_terminal:
        console.print(jobs_table(rows))
    else:  # for a pipe: nothing wrapped, nothing cut
        print(*jobs_lines(rows), sep="\n", end="\n" if rows else "")
    return 0


def _logs(arguments: argparse.Namespace, environ: dict[str, str]) -> int:
    from mask2former_mcp.server.services import Services
    from mask2former_mcp.server.untrusted import clean_line

    jobs = Services(environ).jobs
    page = jobs.logs(arguments.job_id, tail=arguments.tail)
    for line in page.lines:
        print(clean_line(line))
    if page.size == 0:
        print(clean_line(jobs.why_empty(page.job_id)), file=sys.stderr)
    return 0


def _generate(arguments: argparse.Namespace, _: dict[str, str]) -> int:
    from mask2former_mcp import skill_folder

    print(skill_folder.assemble(arguments.bundle.resolve()))
    return 0


def _version(_: argparse.Namespace, __: dict[str, str]) -> int:
    print(version())
    return 0


if __name__ == "__main__":
    sys.exit(main())
