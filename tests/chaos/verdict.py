"""Look for whatever is not as it must be, once everything has ended: jobs, files, litter, manners."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import requests

from prefect_xrt import archive
from prefect_xrt.emulator import Emulator
from prefect_xrt.errors import XRTError
from prefect_xrt.records import read_record

_FEWEST_INTERVALS = 5
RECORDS = frozenset({"job.json", "jobPars.json"})


def troubles(
    emulator: Emulator,
    state: Path,
    intended: Mapping[str, Sequence[Path]],
    *,
    interval_s: float,
    records: frozenset[str] = RECORDS,
    unpacked: bool = True,
    active_limit: int = 5,
) -> list[str]:
    """Return a line for each trouble; none if all is well.

    Args:
        emulator: The service. Its faults are cleared.
        state: What the machine remembers between processes.
        intended: For the name of each request, the folders of those who asked for it.
        interval_s: How far apart two looks at a job are to be, on the service's clock.
        records: What else than products is in each folder.
        unpacked: Whether every bundle is to be unpacked beside it.
        active_limit: How many jobs may be active at a time.
    """
    emulator.clear_faults()
    made = Counter(job.name for job in emulator.jobs.values())
    asked = Counter({name: len(folders) for name, folders in intended.items()})
    return [
        *(
            f"{made[name]} jobs for {asked[name]} requests of {name!r}"
            for name in made | asked
            if made[name] != asked[name]
        ),
        *_active(emulator, active_limit),
        *_pace(emulator, interval_s),
        *_remembered(emulator, state),
        *(
            line
            for folders in intended.values()
            for line in _folders(emulator, folders, records, unpacked=unpacked)
        ),
    ]


def _active(emulator: Emulator, limit: int) -> Iterator[str]:
    changes = []
    for job in emulator.jobs.values():
        ended_at = job.ended_at(emulator.now())
        changes.append((job.submitted_at, 1))
        if ended_at is None:
            yield f"job {job.id} has not ended"
        else:
            changes.append((ended_at, -1))
    active = 0
    for at, change in sorted(changes):
        active += change
        if active > limit:
            yield f"{active} jobs were active at {at:.1f} s"


def _pace(emulator: Emulator, interval_s: float) -> Iterator[str]:
    """Look for k intervals, five or more, with more than k + 1 looks at one job."""
    for job_id in emulator.jobs:
        looks = sorted(call.at for call in emulator.calls("status", job_id))
        for intervals in range(_FEWEST_INTERVALS, len(looks)):
            for first, last in zip(looks, looks[intervals + 1 :], strict=False):
                if last - first < intervals * interval_s:
                    yield (
                        f"{intervals + 2} looks at job {job_id} in {(last - first) / interval_s:.1f} intervals"
                    )
                    return


def _remembered(emulator: Emulator, state: Path) -> Iterator[str]:
    """Look for anything but one claim and one note of the last look for each job."""
    expected = Counter(name for job in emulator.jobs for name in (f"claims/{job}", f"looks/{job}.json"))
    found = Counter(
        f"{path.parent.parent.name}/{path.name}"
        for path in state.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )
    yield from (f"{name} is missing among what the machine remembers" for name in expected - found)
    yield from (f"{name} is left among what the machine remembers" for name in found - expected)


def _folders(
    emulator: Emulator, folders: Sequence[Path], records: frozenset[str], *, unpacked: bool
) -> Iterator[str]:
    taken: Counter[int] = Counter()
    for folder in folders:
        try:
            record = read_record(folder)
        except XRTError as error:
            yield error.message
            continue
        if record is None or record.job.id not in emulator.jobs:
            yield f"{folder} has no record of a job"
            continue
        taken[record.job.id] += 1
        yield from _folder(emulator, folder, record.job.id, records, unpacked=unpacked)
    yield from (f"{number} folders have job {job}" for job, number in taken.items() if number > 1)


def _folder(
    emulator: Emulator, folder: Path, job_id: int, records: frozenset[str], *, unpacked: bool
) -> Iterator[str]:
    """Look for a product that is not what the service has, and for anything that does not belong there."""
    job, expected = emulator.jobs[job_id], set(records)
    for short in job.products:
        bundle = folder / f"{short}.tar.gz"
        expected |= {bundle.name, f"{bundle.name}.sha256"} | ({short} if unpacked else set())
        served = requests.get(f"{job.url}/{bundle.name}", timeout=30).content
        if not bundle.exists():
            yield f"{bundle} is missing"
            continue
        if bundle.read_bytes() != served:
            yield f"{bundle} is not what the service has"
        try:
            archive.verify(bundle, "tar.gz")
        except XRTError as error:
            yield error.message
        line = f"{hashlib.sha256(served).hexdigest()}  {bundle.name}"
        if line not in (folder / f"{bundle.name}.sha256").read_text().splitlines():
            yield f"{bundle}.sha256 is not its checksum"
        if unpacked and _tree(folder / short) != _members(served):
            yield f"{folder / short} is not what {bundle.name} holds"
    found = set(os.listdir(folder))
    if "report.json" in records & found:
        report = json.loads((folder / "report.json").read_bytes())
        told = {entry["product"]: entry["state"] for entry in report["products"] if entry["file"]}
        if sorted(told.values()) != ["ready"] * len(job.products):
            yield f"{folder / 'report.json'} tells of {told}"
    yield from (f"{folder / name} is missing" for name in sorted(expected - found) if "tar.gz" not in name)
    yield from (f"{folder / name} is left behind" for name in sorted(found - expected))


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()
    }


def _members(bundle: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as opened:
        return {
            member.name: stream.read()
            for member in opened
            if (stream := opened.extractfile(member)) is not None
        }
