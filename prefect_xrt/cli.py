"""The same acts for a shell: `prefect-xrt`.

Only `build`, `attach`, `demo` and `deploy` need Prefect; the others talk to the service alone. What a script may read
goes to standard output, what is only said on the way goes to standard error.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast
from uuid import uuid4

import click
from click.core import ParameterSource
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from prefect_xrt import archive, errors, records, result_files, results, sensor, submission
from prefect_xrt._version import __version__
from prefect_xrt.client import XRTClient, settings_from_environment
from prefect_xrt.pacing import Pacing
from prefect_xrt.parameters import read_request_file
from prefect_xrt.protocol import ArchiveFormat, Job, Outcome, ProductState
from prefect_xrt.request import Product, ProductRequest
from prefect_xrt.science_cli import collect, plot
from prefect_xrt.state import LocalClaims, LocalLooks

if TYPE_CHECKING:
    from prefect import State

    from prefect_xrt.reports import BuildReport

EXIT_CODES = """
Exit codes:
  0    all products ready, or what was asked was done
  1    an error of the program itself
  2    wrong usage of the command line
  3    partly: some products are ready, others failed or were cancelled
  4    failed: no product is ready
  5    cancelled: every product was cancelled
  6    the request is invalid, or the service refused it
  7    the service cannot be reached, or something else answers
  8    the deadline has passed; the job lives on
  9    no such job, or it is someone else's
  10   the account is missing or not registered, or a setting is wrong
  11   uncertain: a request was sent and no clear answer came
  12   files cannot be written, are not there, or arrived damaged
  13   not yet: some products have not ended
  130  interrupted
"""

_EXIT_OF: tuple[tuple[type[errors.XRTError], int], ...] = (
    (errors.InvalidRequestError, 6),
    (errors.RequestRefusedError, 6),
    (errors.UnknownUserError, 10),
    (errors.ConfigurationError, 10),
    (errors.JobNotFoundError, 9),
    (errors.RefusedError, 6),
    (errors.SubmitUncertainError, 11),
    (errors.DeadlineError, 8),
    (errors.FailedLooksError, 7),
    (errors.ServiceUnreachableError, 7),
    (errors.AnswerError, 7),
    (errors.ProductMissingError, 12),
    (errors.ArchiveError, 12),
    (errors.ResultFileError, 12),
    (errors.OutputError, 12),
)
_PARTLY, _FAILED, _CANCELLED, _FILES, _NOT_YET, _INTERRUPTED = 3, 4, 5, 12, 13, 130

_STYLES = {"ready": "green", "failed": "red", "alarm": "bold red", "cancelled": "yellow", "running": "cyan"}

_err = Console(stderr=True, highlight=False, soft_wrap=True)


class _Group(click.Group):
    """Turns the package's errors into a line or two and a documented exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("always", errors.RequestWarning)
            warnings.simplefilter("always", errors.ServiceWarning)
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except errors.XRTError as error:
                _fail(error, as_json=bool(ctx.find_root().obj))
            except KeyboardInterrupt:
                _say("Interrupted. `prefect-xrt jobs` tells which jobs there are.")
                sys.exit(_INTERRUPTED)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _err.print(f"Note: {message}", style="yellow", markup=False)


def _fail(error: errors.XRTError, *, as_json: bool) -> NoReturn:
    if as_json:
        _put_json({"error": type(error).__name__, "message": error.message})
    else:
        _err.print(f"Error: {error.message}", style="red", markup=False)
    sys.exit(_code_of(error))


def _code_of(error: errors.XRTError) -> int:
    return next((code for kind, code in _EXIT_OF if isinstance(error, kind)), 1)


def _put_json(data: object) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"\b{EXIT_CODES}",
)
@click.version_option(__version__, prog_name="prefect-xrt")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Build products of Swift XRT data at the UK Swift Science Data Centre.

    The account is that of the XRTCredentials block named by --credentials, else that of PREFECT_XRT_USER_ID,
    else of the block named by PREFECT_XRT_CREDENTIALS. It is no option: other users of the machine see those.
    """
    ctx.obj = False


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def _note_json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.find_root().obj = value
    return value


_json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_note_json, help="Print one JSON document instead of text."
)
_account_options = _options(
    click.option("--base-url", metavar="URL", help="Where the service is [env: PREFECT_XRT_BASE_URL]."),
    click.option(
        "--credentials",
        metavar="BLOCK",
        envvar="PREFECT_XRT_CREDENTIALS",
        help="The name of an XRTCredentials block [env: PREFECT_XRT_CREDENTIALS].",
    ),
)
_products_option = click.option(
    "--product",
    "products",
    multiple=True,
    type=click.Choice([product.value for product in Product], case_sensitive=False),
    help="Only this product; may be repeated.",
)


class _Seconds(click.FloatRange):
    """A time span: positive, and an end to it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds


_interval_option = click.option(
    "--interval",
    type=_Seconds(min=0, min_open=True),
    metavar="SECONDS",
    help="Between looks at first; grows while nothing changes. At least 60, except on this machine.",
)
_wait_options = _options(
    _interval_option,
    click.option(
        "--deadline",
        type=_Seconds(min=0, min_open=True),
        default=sensor.DEADLINE_S,
        metavar="SECONDS",
        help="How long to wait altogether [13 hours].",
    ),
)
_files_options = _options(
    click.option(
        "--out",
        "directory",
        required=True,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where files go.",
    ),
    click.option(
        "--format",
        "archive_format",
        type=click.Choice(archive.ARCHIVE_FORMATS),
        default="tar.gz",
        show_default=True,
        help="How the files are bundled.",
    ),
    click.option("--extract", is_flag=True, help="Also unpack every bundle, into a folder beside it."),
    click.option("--overwrite", is_flag=True, help="Replace files that are there already."),
)
_request_argument = click.argument("request_file", metavar="REQUEST.json", type=click.Path(path_type=Path))
_job_argument = click.argument("job_id", metavar="JOB_ID", type=click.IntRange(min=1))


def _settings(base_url: str | None, credentials: str | None) -> tuple[str, str]:
    """Return the registered address and the base URL: of a block that an option names, else from variables."""
    source = click.get_current_context().get_parameter_source("credentials")
    if credentials and (source is ParameterSource.COMMANDLINE or not os.environ.get("PREFECT_XRT_USER_ID")):
        from prefect_xrt.credentials import load_credentials  # noqa: PLC0415 - brings in Prefect

        block = load_credentials(credentials)
        # For a flow that is run in this process, which gets its account by variables.
        os.environ.setdefault("PREFECT_XRT_MAX_ACTIVE", str(block.max_active))
        chosen = base_url or os.environ.get("PREFECT_XRT_BASE_URL") or block.base_url
        return block.user_id.get_secret_value(), chosen
    address, url = settings_from_environment()
    return address, base_url or url


def _client(account: dict[str, str | None]) -> XRTClient:
    return XRTClient(*_settings(**account))


def _pacing(interval_s: float | None) -> Pacing:
    return Pacing() if interval_s is None else Pacing(floor_s=interval_s, ceiling_s=10 * interval_s)


@cli.command()
@_request_argument
@click.option(
    "--out",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the job's record goes. The same request for the same folder is the same job, whatever happens.",
)
@click.option(
    "--interval",
    type=_Seconds(min=0, min_open=True),
    metavar="SECONDS",
    help="Where an answer is lost, the list has twice as long to show the job; two minutes, except on this machine.",
)
@_account_options
@_json_option
def submit(
    request_file: Path, directory: Path | None, interval: float | None, as_json: bool, **account: str | None
) -> None:
    """Submit a request and print the job's ID."""
    user_id, base_url = _settings(**account)
    request = read_request_file(request_file, user_id=user_id)
    with XRTClient(user_id, base_url) as client:
        if directory is None:
            job = _submit(client, request, None, interval)
        else:
            directory = directory.expanduser().absolute()
            archive.make_directory(directory)
            with archive.exclusive(directory / records.RECORD_NAME):
                record = submission.job_on_record(directory)
                if record and not record.answers(request):
                    raise errors.OutputError(
                        f"{directory} belongs to {record.job}, of another request; choose another folder."
                    )
                job = record.job if record else _submit(client, request, directory, interval)
    if as_json:
        _put_json(job.model_dump(mode="json"))
    else:
        click.echo(job.id)
        _err.print(f"{job}: {', '.join(job.products)}; its files will be below {job.url}", markup=False)


def _submit(
    client: XRTClient, request: ProductRequest, directory: Path | None, interval: float | None
) -> Job:
    return submission.submit_once(
        client,
        request,
        owner=str(uuid4()),
        claims=LocalClaims(client.base_url),
        directory=directory,
        settle_s=2 * interval if interval else submission.SETTLE_S,
        log=_say,
    )


@cli.command()
@_job_argument
@_products_option
@_account_options
@_json_option
def status(job_id: int, products: tuple[str, ...], as_json: bool, **account: str | None) -> None:
    """Look once at the products of a job."""
    with _client(account) as client:
        outcome = _look(client, client.attach(job_id), products)
    if as_json:
        _put_json({"JobID": job_id, "complete": outcome.complete, "products": outcome.as_service()})
        return
    for product, entry in outcome.statuses.items():
        click.echo(f"{product.value} -> {entry.text} ({entry.code})")
        if entry.active_step:
            click.echo(entry.progress_text)


@cli.command()
@_job_argument
@_wait_options
@_account_options
@_json_option
def wait(job_id: int, interval: float | None, deadline: float, as_json: bool, **account: str | None) -> None:
    """Wait until every product of a job has ended."""
    with _client(account) as client, _display() as show:
        job = client.attach(job_id)
        outcome = sensor.wait_for_products(
            client,
            job,
            pacing=_pacing(interval),
            deadline_s=deadline,
            log=_say,
            on_look=show,
            looks=LocalLooks(client.base_url),
        )
    if as_json:
        _put_json({"JobID": job_id, "complete": outcome.complete, "products": outcome.as_service()})
    else:
        click.echo(f"{job}: {outcome.describe()}")
    sys.exit(_exit_code(len(outcome.ready), len(outcome.statuses), len(outcome.cancelled)))


def _look(client: XRTClient, job: Job, products: tuple[str, ...]) -> Outcome:
    return sensor.look_once(client, job, products or None, looks=LocalLooks(client.base_url), log=_say)


def _say(line: str) -> None:
    _err.print(line, markup=False)


def _exit_code(ready: int, total: int, cancelled: int) -> int:
    if ready == total:
        return 0
    if ready:
        return _PARTLY
    return _CANCELLED if cancelled == total else _FAILED


@cli.command()
@_job_argument
@_files_options
@_products_option
@_account_options
@_json_option
def download(
    job_id: int,
    directory: Path,
    archive_format: ArchiveFormat,
    extract: bool,
    overwrite: bool,
    products: tuple[str, ...],
    as_json: bool,
    **account: str | None,
) -> None:
    """Fetch the files of the products of a job that are ready."""
    with _client(account) as client:
        job = client.attach(job_id)
        outcome = _look(client, job, products)
        fetched, problems = archive.download_all(
            client, job, outcome.ready, directory, archive_format, overwrite=overwrite, unpack=extract
        )
    if as_json:
        _put_json(
            {
                "JobID": job_id,
                "files": [file.model_dump(mode="json") for file in fetched],
                "problems": {product.value: error.message for product, error in problems.items()},
            }
        )
    else:
        for file in fetched:
            click.echo(f"{file.product.value} -> {file.path} ({file.size} bytes, SHA-256 {file.sha256})")
        for product, entry in outcome.statuses.items():
            if product not in outcome.ready:
                _say(f"{product.value}: {entry.state.value} ({entry.code}, {entry.text}); nothing to fetch")
    for product, error in problems.items():
        _err.print(f"Error: {product.value}: {error.message}", style="red", markup=False)
    if problems:
        sys.exit(_code_of(next(iter(problems.values()))))
    if outcome.pending:
        sys.exit(_NOT_YET)
    sys.exit(_exit_code(len(outcome.ready), len(outcome.statuses), len(outcome.cancelled)))


@cli.command()
@_job_argument
@click.option(
    "--out",
    "directory",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where files go.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([ending.removeprefix(".") for ending in result_files.FORMATS]),
    default="ecsv",
    show_default=True,
    help="Of the files.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there already.")
@_products_option
@_account_options
@_json_option
def retrieve(
    job_id: int,
    directory: Path,
    form: str,
    overwrite: bool,
    products: tuple[str, ...],
    as_json: bool,
    **account: str | None,
) -> None:
    """Retrieve the results of the products that are ready as data: positions, light curves, fits, sources."""
    written: dict[str, str] = {}
    with _client(account) as client:
        job = client.attach(job_id)
        outcome = _look(client, job, products)
        archive.make_directory(directory)
        for product in outcome.ready:
            result = client.retrieve(job, product)
            if result:
                path = results.write(result, directory / f"{product.value}.{form}", overwrite=overwrite)
                written[product.value] = str(path)
    if as_json:
        _put_json({"JobID": job_id, "files": written})
    else:
        for name, place in written.items():
            click.echo(f"{name} -> {place}")
    if outcome.pending:
        sys.exit(_NOT_YET)
    sys.exit(_exit_code(len(outcome.ready), len(outcome.statuses), len(outcome.cancelled)))


@cli.command()
@_job_argument
@_products_option
@_account_options
@_json_option
def cancel(job_id: int, products: tuple[str, ...], as_json: bool, **account: str | None) -> None:
    """Cancel the products of a job that still build; that one has finished is no error."""
    with _client(account) as client:
        result = client.cancel(client.attach(job_id), products or None)
    if as_json:
        _put_json(result.model_dump(mode="json") | {"complete": result.complete})
    else:
        for entry in result.products.values():
            click.echo(f"{entry.product.value} -> {entry.text} ({entry.code})")
    done = sum(entry.settled for entry in result.products.values())
    sys.exit(_exit_code(done, len(result.products), 0))


@cli.command()
@_account_options
@_json_option
def jobs(as_json: bool, **account: str | None) -> None:
    """List the jobs of the account, newest first, and count the active ones."""
    with _client(account) as client:
        listed, active = client.list_jobs(), client.count_active_jobs()
    if as_json:
        _put_json({"active": active, "jobs": [job.model_dump(mode="json") for job in listed]})
        return
    table = Table("JobID", "name", "submitted (UTC)", "products", "files", box=None)
    for job in listed:
        submitted = job.submitted_at.strftime("%Y-%m-%d %H:%M:%S") if job.submitted_at else "?"
        names = ", ".join(product.value for product in job.products)
        table.add_row(str(job.id), escape(job.name), submitted, names, "yes" if job.has_products else "no")
    _print(table)
    click.echo(f"{active} active")


def _print(table: Table) -> None:
    """Print a table: for people in the width that there is, for a pipe in the width that it needs."""
    Console(width=None if sys.stdout.isatty() else 400, highlight=False).print(table)


_flow_options = _options(
    _files_options,
    _wait_options,
    click.option("--accept-partial", is_flag=True, help="Succeed even if only some products are ready."),
    click.option(
        "--cancel-job",
        type=click.Choice(["never", "when-cancelled", "when-stopped"]),
        default="when-cancelled",
        show_default=True,
        help="Whether what still builds is cancelled with the run, by Ctrl-C or in the Prefect UI.",
    ),
)


@cli.command()
@_request_argument
@_flow_options
@click.option(
    "--reuse",
    type=click.Choice(["never", "unless-failed", "always"]),
    default="never",
    show_default=True,
    help="Take the newest job with the same parameters instead of building again.",
)
@_account_options
@_json_option
def build(request_file: Path, as_json: bool, reuse: str, **options: Any) -> None:
    """Run the whole flow: submit a request, wait for its products, fetch their files.

    The same request for the same folder goes on where an earlier run was stopped.
    """
    account, options = _flow_arguments(options)
    request = read_request_file(request_file, user_id=account[0])
    _run_flow("build_products", account, as_json=as_json, request=request, reuse=reuse, **options)


@cli.command()
@_job_argument
@_flow_options
@_account_options
@_json_option
def attach(job_id: int, as_json: bool, **options: Any) -> None:
    """Run the flow for a job that exists: wait for its products, fetch their files."""
    account, options = _flow_arguments(options)
    _run_flow("attach_products", account, as_json=as_json, job_id=job_id, **options)


def _flow_arguments(options: dict[str, Any]) -> tuple[tuple[str, str], dict[str, Any]]:
    """Turn the options of the command line into the account and the flow's parameters."""
    account = _settings(options.pop("base_url"), options.pop("credentials"))
    return account, {
        "output_dir": options.pop("directory"),
        "pacing": _pacing(options.pop("interval")),
        "deadline_s": options.pop("deadline"),
        **options,
    }


@cli.command()
@click.option(
    "--out",
    "directory",
    type=click.Path(path_type=Path),
    default=Path("xrt-demo"),
    show_default=True,
    metavar="DIR",
    help="Where files go; what an earlier demo left there is replaced.",
)
@_json_option
def demo(directory: Path, as_json: bool) -> None:
    """Run the whole flow for GRB 200416A on an embedded stand-in of the service."""
    from prefect_xrt.emulator import Emulator, Scenario  # noqa: PLC0415 - only the demo needs it

    for name, value in (("DO_NOT_TRACK", "1"), ("PREFECT_SERVER_ANALYTICS_ENABLED", "false")):
        os.environ.setdefault(name, value)
    with as_file(files("prefect_xrt") / "examples" / "grb200416a.json") as path:
        request = read_request_file(path)
    with Emulator(scenario=Scenario.find("demo")) as service:
        _say(f"The embedded service answers at {service.url}.")
        _run_flow(
            "build_products",
            (service.user_id, service.url),
            as_json=as_json,
            request=request,
            output_dir=directory,
            overwrite=True,
            pacing=Pacing(floor_s=1.0, ceiling_s=2.0),
        )


def _run_flow(name: str, account: tuple[str, str], *, as_json: bool, **options: Any) -> NoReturn:
    """Run a flow in this process, show what came of it, and leave with its exit code."""
    # The first start of Prefect's own server takes longer on a slow machine than Prefect waits for.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    os.environ |= dict(zip(("PREFECT_XRT_USER_ID", "PREFECT_XRT_BASE_URL"), account, strict=True))
    archive.make_directory(options["output_dir"])
    _say("Starting Prefect; its own server takes some seconds where none is running.")
    from prefect_xrt import flows, reports, tasks  # noqa: PLC0415 - takes seconds

    with _terminal_log(), _display() as show:
        token = tasks.on_look.set(show)
        try:
            state = cast("State[Any]", getattr(flows, name)(return_state=True, **options))
        except Exception as error:
            # What goes wrong in the flow is in its state; this is Prefect itself.
            raise errors.ConfigurationError(
                f"Prefect could not run the flow ({str(error).partition(chr(10))[0] or type(error).__name__}); is its "
                f"server running? A job that was submitted is on record in {options['output_dir']}/job.json."
            ) from error
        finally:
            tasks.on_look.reset(token)
    result = state.result(raise_on_failure=False)
    report = result if isinstance(result, reports.BuildReport) else getattr(result, "report", None)
    if state.is_cancelled() and not report:
        _say(str(state.message))
        sys.exit(_CANCELLED)
    if not isinstance(report, reports.BuildReport):
        raise result if isinstance(result, Exception) else RuntimeError(state.message)
    if as_json:
        _put_json(report.model_dump(mode="json"))
    else:
        _print(_report_table(report))
        click.echo(f"\n{report.summary()}")
        click.echo(_where_to_look(state))
    if isinstance(result, errors.WaitError):
        sys.exit(_code_of(result))
    if state.is_completed():
        sys.exit(0)
    if state.is_cancelled():
        sys.exit(_CANCELLED)
    if all(entry.state is ProductState.READY for entry in report.products):
        sys.exit(_FILES)
    sys.exit(
        _exit_code(len(report.files), len(report.products), len(report.products) if report.cancelled else 0)
    )


class _Terminal(logging.Handler):
    """Says what Prefect logs in plain lines, beside the table that stays in place.

    Tracebacks are left out; the Prefect UI has them.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "Finished in state Completed()":
            return  # says neither what nor anything new
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        _say(f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {level}{record.getMessage()}")


@contextmanager
def _terminal_log() -> Iterator[None]:
    """Stand in for Prefect's own handler, which writes past the display and prints tracebacks."""
    root = logging.getLogger()
    before, root.handlers = root.handlers, [_Terminal()]
    try:
        yield
    finally:
        root.handlers = before


@contextmanager
def _display() -> Iterator[Callable[[Outcome], None] | None]:
    """Show what each look tells, as a table that stays in place; a pipe gets the log's lines alone."""
    if not _err.is_terminal:
        yield None
        return
    with Live(console=_err, auto_refresh=False, transient=True) as live:
        yield lambda outcome: live.update(_status_table(outcome), refresh=True)


def _status_table(outcome: Outcome) -> Table:
    table = Table(
        "product",
        "state",
        "running for",
        "at work on",
        title=escape(str(outcome.job)),
        title_justify="left",
        box=None,
    )
    for product, entry in outcome.statuses.items():
        step = ", ".join(part for part in (entry.active_step, entry.active_detail) if part)
        running = "" if entry.ended else entry.running_time
        table.add_row(product.value, _styled(entry.state.value), running, escape(step))
    return table


def _report_table(report: BuildReport) -> Table:
    table = Table("product", "state", "file", "bytes", "SHA-256", box=None)
    for entry in report.products:
        file = entry.file
        table.add_row(
            entry.product.value,
            _styled(entry.state.value),
            escape(str(file.path) if file else entry.problem or entry.text),
            str(file.size) if file else "",
            file.sha256[:12] if file else "",
        )
    return table


def _styled(state: str) -> str:
    style = _STYLES.get(state)
    return f"[{style}]{state}[/]" if style else state


def _where_to_look(state: State[Any]) -> str:
    """Return the address of the run in the Prefect UI, and how to start it where no server runs."""
    from prefect.settings import get_current_settings  # noqa: PLC0415 - takes seconds
    from prefect.utilities.urls import url_for  # noqa: PLC0415

    run_id = state.state_details.flow_run_id
    if get_current_settings().api.url:
        return f"In the Prefect UI: {url_for('flow-run', obj_id=run_id)}"
    prefect = shutil.which("prefect") or str(Path(sys.executable).with_name("prefect"))
    return (
        f"In the Prefect UI: start it by `{prefect} server start`, then open "
        f"{url_for('flow-run', obj_id=run_id, default_base_url='http://127.0.0.1:4200')}"
    )


@cli.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8642, show_default=True, help="0 for any free one."
)
@click.option(
    "--scenario", default="demo", show_default=True, help="A built-in name, or a JSON or TOML file."
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="How many seconds pass in the service for each real one.",
)
def emulator(port: int, scenario: str, speed: float) -> None:
    """Run the embedded stand-in of the service, on this machine only, until interrupted."""
    from prefect_xrt.emulator import ScenarioError, serve  # noqa: PLC0415 - only this act needs it

    try:
        serve(scenario, port=port, speed=speed, announce=_say)
    except (ScenarioError, OSError) as error:
        raise errors.ConfigurationError(f"The embedded service cannot run: {error}") from error


@cli.command()
@click.option(
    "--notify",
    metavar="TYPE/NAME",
    help="A notification block, such as slack-webhook/xrt; sets up the automations that tell it of alerts.",
)
def deploy(notify: str | None) -> None:
    """Deploy all pipelines to the Prefect server, or bring them up to date there."""
    from prefect_xrt.deploy import FOLDER, WORK_POOL  # noqa: PLC0415 - brings in Prefect
    from prefect_xrt.deploy import deploy as deploy_all  # noqa: PLC0415

    deploy_all(notify, say=click.echo)
    _say(f"What runs them: `prefect worker start --pool {WORK_POOL}`. The files, to copy and edit: {FOLDER}")


@cli.command()
@click.option(
    "--every",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="How often the suspended flow runs are listed; every ten seconds by default.",
)
def watch(every: float | None) -> None:
    """Watch the jobs of suspended flow runs, and resume each as its products end, until interrupted.

    A second one stands by, and takes the place of one that is gone.
    """
    from prefect_xrt.watcher import EVERY_S, Watcher, stopped_by_sigterm  # noqa: PLC0415 - brings in Prefect

    with stopped_by_sigterm(), suppress(KeyboardInterrupt):
        Watcher(every_s=every or EVERY_S, log=_say).run()
    _say("Stopped. Suspended flow runs stay so until a watcher runs again.")


cli.add_command(plot)
cli.add_command(collect)


def main() -> NoReturn:
    """Run the command line."""
    cli(prog_name="prefect-xrt")
    sys.exit(0)


if __name__ == "__main__":
    main()
