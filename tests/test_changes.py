"""Hold `prefect_xrt.changes` to account: what is new is told, and what only looks new is not."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prefect_xrt import Job, Product, ProductRequest, XRTClient, archive
from prefect_xrt.changes import Changes, compare, earlier_builds, find_bundle
from prefect_xrt.emulator import Emulator, Scenario, Timeline, archives
from prefect_xrt.errors import OutputError
from prefect_xrt.parameters import encode
from prefect_xrt.protocol import ArchiveFormat
from prefect_xrt.records import JobRecord, write_record

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
READY, FAILED = Timeline.of((4,)), Timeline.of((-1,))
EVERYTHING = ProductRequest.model_validate(
    {
        "name": "GRB 200416A",
        "targets": ["00966554"],
        "ra_deg": 335.6985,
        "dec_deg": -7.5179,
        "centroid": True,
        "position_error_arcmin": 1,
        "light_curve": {"binning": "obsid"},
        "spectrum": {"time_slicing": "obsid"},
        "standard_position": True,
        "enhanced_position": True,
        "astrometric_position": True,
        "image": True,
        "source_detection": {"which_data": "all"},
    }
)
COUNTS = ProductRequest.model_validate(
    {
        **EVERYTHING.model_dump(
            include={"name", "targets", "ra_deg", "dec_deg", "centroid", "position_error_arcmin"}
        ),
        "light_curve": {"binning": "counts", "pc_counts": 20, "wt_counts": 30, "dynamic": True},
        "image": True,
    }
)
NEW = "00966554008"


@pytest.fixture
def build(
    xrt_service_factory: Callable[..., Emulator], tmp_path: Path
) -> Callable[[ProductRequest, Scenario], Callable[..., Path]]:
    """Give what builds a request at a service of a scenario, into a folder with a number as its name."""

    def builder(request: ProductRequest, scenario: Scenario) -> Callable[..., Path]:
        service = xrt_service_factory(scenario)

        def build(form: ArchiveFormat = "tar.gz") -> Path:
            with XRTClient(service.user_id, service.url) as client:
                job = client.submit(request)
                ready = client.check_product_status(job).ready
                folder = tmp_path / str(job.id)
                folder.mkdir()
                archive.download_all(client, job, ready, folder, form)
            write_record(folder, JobRecord(job=job, request=encode(request), finished_at=NOW))
            return folder

        return build

    return builder


Builder = Callable[[ProductRequest, Scenario], Callable[..., Path]]


@pytest.mark.parametrize("form", archive.ARCHIVE_FORMATS)
def test_nothing(build: Builder, form: ArchiveFormat) -> None:
    """Two jobs of the same data differ in nothing, whatever the format of their bundles."""
    again = build(EVERYTHING, Scenario(default=READY))
    first, second = again(), again(form)
    assert len(list(first.glob("*.tar.gz"))) == len(Product)
    assert find_bundle(first, Product.IMAGE) != find_bundle(second, Product.IMAGE)
    changes = compare(second, [first])
    assert changes == Changes(job_id=802, previous_job_id=801)
    assert not changes.anything
    assert changes.sentences() == ["Nothing new."]


def test_first(build: Builder) -> None:
    """Of the first build, everything is new."""
    changes = compare(build(EVERYTHING, Scenario(default=READY, observations=2))(), [])
    assert changes.previous_job_id is None
    assert changes.new_products == tuple(Product)
    assert changes.changed_products == ()
    assert changes.new_targets == ("00966554",)
    assert changes.new_observations == ("00966554000", "00966554001")
    assert changes.new_bins == {"WT": 2, "PC": 2, "PC upper limits": 2}


def test_new_observation(build: Builder) -> None:
    """An observation that was added is named, and its bins are counted; an image without a change is left alone."""
    again = build(EVERYTHING, Scenario(default=READY, new_observations=[1]))
    earlier, now = again(), again()
    changes = compare(now, [earlier])
    assert changes.new_observations == (NEW,)
    assert changes.new_bins == {"WT": 1, "PC": 1, "PC upper limits": 1}
    assert changes.changed_products == (Product.LIGHT_CURVE, Product.SPECTRUM)
    assert changes.new_targets == changes.new_products == changes.remarks == ()
    assert changes.sentences() == [
        f"1 new observation: {NEW}.",
        "3 new bins: WT 1, PC 1, PC upper limits 1.",
        "Changed: LightCurve, Spectrum.",
    ]
    assert compare(earlier, [now]).new_observations == ()


def test_bins_without_observations(build: Builder) -> None:
    """Where neither spectra nor bins name observations, new bins tell of new data."""
    again = build(COUNTS, Scenario(default=READY, new_observations=[2]))
    earlier, now = again(), again()
    changes = compare(now, [earlier])
    assert changes.new_observations == ()
    assert changes.new_bins == {"WT": 6, "PC": 6, "PC upper limits": 2}
    assert changes.changed_products == (Product.LIGHT_CURVE,)


def test_without_the_extra(build: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, bins cannot be counted, which is said; that the light curve has changed is told."""
    again = build(COUNTS, Scenario(default=READY, new_observations=[0, 2]))
    folders = [again(), again(), again()]
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert not compare(folders[1], folders[:1]).anything
    changes = compare(folders[2], folders[1::-1])
    assert (changes.new_bins, changes.changed_products) == ({}, (Product.LIGHT_CURVE,))
    assert "prefect-xrt[science]" in "".join(changes.remarks)


def test_failed_in_between(build: Builder) -> None:
    """A product that failed once is compared with the last build that had it."""
    again = build(EVERYTHING, Scenario(default=READY, sequence=[{}, {"spec": FAILED}]))
    first, without, last = again(), again(), again()
    assert not compare(without, [first]).anything
    changes = compare(last, [without, first])
    assert not changes.anything
    assert changes.previous_job_id == 802
    assert compare(last, [without]).new_products == (Product.SPECTRUM,)


def pack(folder: Path, files: Mapping[str, bytes], number: int, product: Product = Product.IMAGE) -> Path:
    """Write a bundle and the record of a job beside it."""
    short = {"Image": "image", "LightCurve": "lc", "Spectrum": "spec"}[product.value]
    folder.mkdir()
    (folder / f"{short}.tar.gz").write_bytes(
        bytes(archives.pack(f"USERPROD_{number}", {short: files}, "tar.gz"))
    )
    job = Job(id=number, url=f"https://example.org/USERPROD_{number}", name="GK Per", products=[product])
    write_record(folder, JobRecord(job=job, finished_at=NOW))
    return folder


def fits(date: str = "2026-01-01", data: bytes = bytes(16), history: int = 0) -> bytes:
    """Make a FITS file that says when, and how, it was written."""
    cards = [
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    1",
    ]
    cards += [f"NAXIS1  = {len(data):20d}", f"DATE    = '{date}'", f"CHECKSUM= '{date}'"]
    cards += ["DATE-OBS= '2005-03-01'", *(f"HISTORY step {count} in USERPROD_9" for count in range(history))]
    header = "".join(card.ljust(80) for card in [*cards, "END"])
    return header.ljust(-len(header) // 2880 * -2880).encode() + data.ljust(2880, b"\0")


def nested(name: str, content: bytes, at: int) -> bytes:
    """Make an archive as spectra are in one."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as inner:
        info = tarfile.TarInfo(name)
        info.size, info.mtime = len(content), at
        inner.addfile(info, io.BytesIO(content))
    return packed.getvalue()


LONG = b"".join(b"%d,%d\n" % (count, count**2) for count in range(200_000))


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        ({"a.img": fits()}, {"a.img": fits("2026-02-02", history=40)}, False),
        ({"a.img": fits()}, {"a.img": fits(data=bytes(15) + b"\1")}, True),
        ({"a.img": fits()}, {"a.img": fits().replace(b"2005-03-01", b"2005-03-02")}, True),
        (
            {"a.img.gz": gzip.compress(fits(), mtime=1)},
            {"a.img.gz": gzip.compress(fits("x"), 1, mtime=2)},
            False,
        ),
        ({"a.img.gz": gzip.compress(fits())}, {"a.img.gz": gzip.compress(fits(data=b"\1"))}, True),
        ({"a.gz": gzip.compress(LONG)[:-9]}, {"a.gz": gzip.compress(LONG)[:-9]}, False),
        ({"a.gz": gzip.compress(LONG)}, {"a.gz": gzip.compress(LONG)[:-9]}, True),
        ({"a.gz": b"no gzip"}, {"a.gz": b"no gzip"}, False),
        ({"a.dat": LONG}, {"a.dat": LONG}, False),
        ({"a.dat": LONG}, {"a.dat": LONG.replace(b"199999,", b"199998,")}, True),
        ({"a.dat": b"1\n2"}, {"a.dat": b"12"}, True),
        ({"a.dat": bytes(3 * 2**20)}, {"a.dat": bytes(3 * 2**20)}, False),
        ({"a.dat": bytes(3 * 2**20)}, {"a.dat": bytes(3 * 2**20) + b"\1"}, True),
        ({"a.xcm": b"data USERPROD_7/a.pi\n"}, {"a.xcm": b"data USERPROD_8/a.pi\n"}, False),
        ({"a.log": b"at one", "a.gif": b"1"}, {"a.log": b"at two", "a.gif": b"2"}, False),
        ({"images.log": b"1 0.3 10"}, {"images.log": b"1 0.3 1.5"}, True),
        ({"a": b"1"}, {"a": b"1", "b": b"1"}, True),
        ({"a.tar.gz": nested("b.pi", b"1", 1)}, {"a.tar.gz": nested("b.pi", b"1", 2)}, False),
        ({"a.tar.gz": nested("b.pi", b"1", 1)}, {"a.tar.gz": nested("b.pi", b"2", 1)}, True),
        ({"a.tar.gz": nested("b.pi", b"1", 1)}, {"a.tar.gz": nested("c.pi", b"1", 1)}, True),
    ],
)
def test_contents(tmp_path: Path, before: dict[str, bytes], now: dict[str, bytes], changed: bool) -> None:
    """What a file says counts, and not when or how it was made."""
    earlier, later = pack(tmp_path / "1", before, 7), pack(tmp_path / "2", now, 8)
    changes = compare(later, [earlier])
    assert changes == Changes(
        job_id=8, previous_job_id=7, changed_products=(Product.IMAGE,) if changed else ()
    )


def curve(*rows: tuple[float, float], note: str = "") -> dict[str, bytes]:
    """Make the file of a light curve, from times and rates."""
    lines = [f"{time} 1 -1 {rate} 0.1 -0.1" for time, rate in rows]
    text = f"!{note}\nREAD TERR 1 2\n! PC data\n!Time T_+ve T_-ve Rate Ratepos Rateneg\n"
    return {"PCCURVE.qdp": (text + "\n".join(lines) + "\n").encode()}


def test_bins(tmp_path: Path) -> None:
    """A bin with other edges is new; one with another rate is a change; comments are neither."""
    lc = Product.LIGHT_CURVE
    first = pack(tmp_path / "1", curve((10, 1), (20, 2)), 1, lc)
    noted = pack(tmp_path / "2", curve((10, 1), (20, 2), note="made on Monday"), 2, lc)
    revised = pack(tmp_path / "3", curve((10, 1), (20, 3)), 3, lc)
    longer = pack(tmp_path / "4", curve((10, 1), (20, 3), (30, 4)), 4, lc)
    assert not compare(noted, [first]).anything
    assert compare(revised, [first]) == Changes(job_id=3, previous_job_id=1, changed_products=(lc,))
    assert compare(longer, [revised]).new_bins == {"PC": 1}


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """A light curve in an unknown layout is compared all the same; a damaged bundle is told of, and hides nothing."""
    lc = Product.LIGHT_CURVE
    first = pack(tmp_path / "1", {"PCCURVE.qdp": b"? ? ?\n"}, 1, lc)
    second = pack(tmp_path / "2", {"PCCURVE.qdp": b"? ! ?\n"}, 2, lc)
    changes = compare(second, [first])
    assert changes.changed_products == (lc,)
    assert changes.remarks[0].startswith("Bins of the LightCurve could not be compared: ")
    (second / "image.tar.gz").write_bytes(b"no archive")
    changes = compare(second, [first])
    assert changes.changed_products == (lc,)
    assert any(
        remark.startswith("Image could not be compared: image.tar.gz is") for remark in changes.remarks
    )
    with pytest.raises(OutputError, match=r"job\.json"):
        compare(tmp_path, [])


def test_earlier_builds(build: Builder) -> None:
    """Earlier are finished builds of the same request that have a file, the newest first."""
    again = build(COUNTS, Scenario(default=READY, sequence=[{}, {"*": FAILED}]))
    first, failed, third, last = again(), again(), again(), again()
    place = first.parent
    assert earlier_builds(place, COUNTS, last.name) == [third, first]
    assert earlier_builds(place, COUNTS, first.name) == []
    assert earlier_builds(place, EVERYTHING, last.name) == []
    assert earlier_builds(place / "none", COUNTS, last.name) == []
    assert failed.is_dir()
    (third / "job.json").write_text("{")
    (place / "notes.txt").write_text("mine")
    assert earlier_builds(place, COUNTS, last.name) == [first]
