"""Start a module of this package so that nothing here takes it along: `python -m mask2former_mcp.platforms.detach
MODULE ARG...` forks, prints the pid of the process that runs on, and ends.

That process has its own session and another parent, so neither a closed terminal, nor a signal to the caller's group,
nor a client that ends the caller with all its children reaches it.
"""

import os
import runpy
import sys


def main() -> None:
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
