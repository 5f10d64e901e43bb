"""Storages that all machines reach, for files and for what Prefect remembers: S3 as a well-kept fake of it plays it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster
import fsspec
import pytest
from prefect import flow, get_client
from prefect.filesystems import RemoteFileSystem
from prefect.flow_engine import run_flow
from prefect.settings import (
    PREFECT_DEFAULT_RESULT_STORAGE_BLOCK,
    PREFECT_LOCAL_STORAGE_PATH,
    temporary_settings,
)
from prefect.states import Crashed, Scheduled

from prefect_xrt import BuildReport, Job, ProductRequest, submit_request
from prefect_xrt.emulator import Emulator, Timeline
from prefect_xrt.errors import OutputError
from prefect_xrt.storage import copy_products

BUCKET = "swift"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Start something that answers as S3 does."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "somebody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "something")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


@pytest.fixture(params=["s3", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a folder in a storage of each kind."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{tmp_path.name}/gk_per"
    if request.param == "file":
        return f"file://{tmp_path}/share/gk_per"
    return f"memory://{tmp_path.name}/gk_per"


@pytest.fixture
def built(service: Callable[..., Emulator], tmp_path: Path) -> Callable[[], BuildReport]:
    """Build the same anew, on a disk of this machine."""
    emulator = service(default=Timeline.of((4,)))
    return lambda: cluster.build(emulator, "GK Per", tmp_path / f"disk-{len(emulator.jobs)}")


def test_whole(built: Callable[[], BuildReport], url: str) -> None:
    """All files arrive whole, each with its checksum, and the report after them."""
    report = built()
    addresses = copy_products(report, url)
    assert addresses.keys() == {"Image", "LightCurve"}
    for file in report.files:
        with fsspec.open(addresses[file.product.value], "rb") as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == file.sha256
        with fsspec.open(f"{addresses[file.product.value]}.sha256", "r") as stream:
            assert f"{file.sha256}  {file.path.name}" in stream.read()
    with fsspec.open(f"{url}/report.json", "r") as stream:
        assert BuildReport.model_validate_json(stream.read()) == report


def test_again(built: Callable[[], BuildReport], url: str) -> None:
    """What is there is kept; what was damaged there, or had broken off, is copied anew."""
    report = built()
    addresses = copy_products(report, url)
    storage, folder = fsspec.url_to_fs(url)
    storage.pipe_file(f"{folder}/image.tar.gz", b"damaged")
    storage.rm_file(f"{folder}/report.json")
    lines: list[str] = []
    assert copy_products(report, url, log=lines.append) == addresses
    assert sorted(line.split()[0] for line in lines) == ["Copied", "Kept"]
    assert storage.size(f"{folder}/image.tar.gz") != len(b"damaged")
    assert storage.exists(f"{folder}/report.json")


def test_of_another_job(built: Callable[[], BuildReport], url: str) -> None:
    """Files of another job are left alone."""
    first, second = built(), built()
    addresses = copy_products(first, url)
    with pytest.raises(OutputError, match="is of another job"):
        copy_products(second, url)
    # Nor are they mixed where no bundle has the name of another's.
    fewer = second.model_copy(update={"products": ()})
    with pytest.raises(OutputError, match="is of another job"):
        copy_products(fewer, url)
    assert copy_products(first, url) == addresses


def test_damaged_here(built: Callable[[], BuildReport], url: str) -> None:
    """A file that has changed since it was verified is not passed on as if it were whole."""
    report = built()
    report.files[0].path.write_bytes(b"damaged")
    with pytest.raises(OutputError, match="is not what was verified"):
        copy_products(report, url)
    storage, folder = fsspec.url_to_fs(url)
    assert not storage.exists(f"{folder}/report.json")


def test_no_such_storage(built: Callable[[], BuildReport], s3: str) -> None:
    """A storage that is not there is told as what it is."""
    with pytest.raises(OutputError, match="s3://nowhere/gk_per cannot be written"):
        copy_products(built(), "s3://nowhere/gk_per")


@flow(name="submit-one", persist_result=False)
def submit_one(request: ProductRequest, disk: Path) -> Job:
    """Submit, with the record on a disk."""
    return submit_request(request, record_dir=disk / "out")


@pytest.mark.usefixtures("server")
def test_job_is_known_elsewhere(
    service: Callable[..., Emulator],
    request_: ProductRequest,
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that begins again on a machine with another disk knows its job at once, and asks nobody for it."""
    emulator = service()
    RemoteFileSystem(basepath=f"{s3}/results").save("xrt-results", overwrite=True)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(submit_one)

    def live(machine: str) -> Job:
        disk = tmp_path / machine
        monkeypatch.setenv("XDG_STATE_HOME", str(disk / "state"))
        with (
            temporary_settings(
                {
                    PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: "remote-file-system/xrt-results",
                    PREFECT_LOCAL_STORAGE_PATH: disk / "results",
                }
            ),
            get_client(sync_client=True) as client,
        ):
            state = client.read_flow_run(run.id)
            return run_flow(submit_one, flow_run=state, parameters={"request": request_, "disk": disk})

    job = live("first")
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Crashed(), force=True)
        client.set_flow_run_state(run.id, Scheduled(), force=True)
    assert live("second") == job
    assert len(emulator.calls("submit")) == 1
    assert emulator.calls("list") == []
    assert fsspec.filesystem("s3").ls(f"{s3}/results")
