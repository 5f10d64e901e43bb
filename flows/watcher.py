"""The watcher as a deployment: on a schedule that keeps one alive, for those who run everything through Prefect.

It does what `prefect-xrt watch` does. A run that finds another watcher at work ends at once.
"""

# No `from __future__ import annotations`: a flow that is served is pickled, without what texts name.
from typing import Annotated

from prefect import flow, get_run_logger

from prefect_xrt import runs
from prefect_xrt.forms import titled
from prefect_xrt.watcher import EVERY_S, Watcher


@flow(name="watcher", flow_run_name="watcher")
def watcher(every_s: Annotated[float, titled("Interval", gt=0)] = EVERY_S) -> None:
    """Watch the jobs of suspended flow runs, and resume each as its products end, until this run is cancelled.

    Args:
        every_s: How often the suspended runs are listed, in seconds.
    """
    Watcher(every_s=every_s, log=get_run_logger().info, sleep=runs.pausing()).run(stand_by=False)


if __name__ == "__main__":
    watcher.serve(name="watcher", interval=600)
