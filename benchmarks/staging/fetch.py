"""Fetching from an S3-speaking server: one large object and many small ones, ours against `aws s3 cp` and `sync`.

    AWS_ENDPOINT_URL=http://... AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... \\
        python benchmarks/staging/fetch.py [--rounds 3] [--gigabytes 1] [--objects 10000] [--kilobytes 20]

Both run as processes of their own, in turns, into empty folders of one disk. Times are of the whole process, from its
start to its end. Ours also verifies every byte against the store's ETag, which the CLI does not. It is the AWS CLI v1,
installed into a virtual environment of its own unless --aws names one.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mask2former_mcp.staging import s3, upload
from mask2former_mcp.staging.uri import Uri

OURS = """
import sys
from pathlib import Path
from mask2former_mcp.staging import mirror
from mask2former_mcp.staging.uri import Uri
mirror.fill(Uri.parse(sys.argv[1]), Path(sys.argv[2]), [""], only=tuple(sys.argv[3:]))
"""


def prepare(bucket: str, scratch: Path, gigabytes: float, objects: int, kilobytes: int) -> None:
    s3.client().create_bucket(Bucket=bucket)
    large = scratch / "large.bin"
    with large.open("wb") as out:
        for _ in range(int(gigabytes * 64)):
            out.write(os.urandom(16 << 20))
    upload.send(large, Uri(bucket, "large/large.bin"))
    large.unlink()
    content = os.urandom(kilobytes * 1000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: upload.put(b"%06d" % n + content, Uri(bucket, f"small/{n:06d}.png")), range(objects)))


def timed(command: list[str], target: Path, expected: tuple[int, int]) -> tuple[float, float]:
    """Seconds that the command took, and the processor's seconds. `expected`: (files, bytes) below the target."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = [path.stat().st_size for path in target.rglob("*") if path.suffix in (".bin", ".png")]
    assert (len(found), sum(found)) == expected, (len(found), sum(found), expected)
    shutil.rmtree(target)
    return round(seconds, 2), round(worked, 2)


def aws_cli(folder: Path) -> str:
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", "-qq", "awscli<2"], check=True)
    return str(folder / "bin" / "aws")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--kilobytes", type=int, default=20)
    parser.add_argument("--bucket", default=f"bench-{os.getpid()}")
    parser.add_argument("--aws", help="the AWS CLI to compare with")
    options = parser.parse_args()
    if not os.environ.get("AWS_ENDPOINT_URL"):
        sys.exit("set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a server of your own")
    with tempfile.TemporaryDirectory(prefix="m2f-bench-") as name:
        scratch = Path(name)
        aws = options.aws or aws_cli(scratch / "aws")
        prepare(options.bucket, scratch, options.gigabytes, options.objects, options.kilobytes)
        large, small = f"s3://{options.bucket}/large", f"s3://{options.bucket}/small"
        one = (1, int(options.gigabytes * 64) * (16 << 20))
        many = (options.objects, options.objects * (options.kilobytes * 1000 + 6))
        there = scratch / "there"
        ours = [sys.executable, "-c", OURS]
        cp = [aws, "s3", "cp", f"{large}/large.bin", str(there), "--quiet"]
        sync = [aws, "s3", "sync", small, str(there), "--quiet"]
        commands = {
            "one object": ([*ours, large, str(there), "large.bin"], cp, one),
            "many objects": ([*ours, small, str(there)], sync, many),
        }
        for title, (mine, theirs, expected) in commands.items():
            took: dict[str, list[tuple[float, float]]] = {"ours": [], "aws": []}
            for _ in range(options.rounds):
                took["ours"].append(timed(mine, there, expected))
                took["aws"].append(timed(theirs, there, expected))
            seconds, cpu = ({name: [pair[k] for pair in pairs] for name, pairs in took.items()} for k in (0, 1))
            ratio = statistics.median(seconds["aws"]) / statistics.median(seconds["ours"])
            line = {"what": title, "files": expected[0], "bytes": expected[1], "seconds": seconds, "cpu_seconds": cpu}
            machine = {"cpus": os.cpu_count(), "machine": platform.machine()}
            print(json.dumps({**line, "times_as_fast": round(ratio, 2), **machine}), flush=True)


if __name__ == "__main__":
    main()
