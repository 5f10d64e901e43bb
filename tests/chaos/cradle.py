"""Bear processes of `prefect-xrt` that need not import it first: each is forked from one that has.

Reads orders from standard input, a line of JSON each, and answers each with the exit code of the process,
negative for the signal that ended it. The cradle itself runs no threads and nothing of the package.
"""

from __future__ import annotations

import json
import os
import pkgutil
import sys
import traceback
from typing import Any, NoReturn

from strike import obey_environment

from prefect_xrt import cli


def main() -> None:
    """Fork a process for every order, one at a time."""
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _live(order)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _live(order: dict[str, Any]) -> NoReturn:
    code: object = 1
    try:
        for number, (path, flags) in enumerate(
            ((os.devnull, os.O_RDONLY), (order["stdout"], _WRITE), (order["stderr"], _WRITE))
        ):
            os.dup2(os.open(path, flags), number)
        os.environ |= order["environment"]
        for name in order["sabotage"]:
            owner, _, attribute = name.rpartition(".")
            setattr(pkgutil.resolve_name(owner), attribute, lambda *_, **__: None)
        obey_environment()
        cli.cli(order["arguments"], prog_name="prefect-xrt")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else code is not None)


_WRITE = os.O_WRONLY | os.O_CREAT | os.O_APPEND

if __name__ == "__main__":
    main()
