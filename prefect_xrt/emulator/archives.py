"""The files of a finished product, and the archives they are handed out in.

The layout is the documented one where the service documents it: `curve.qdp` and its companions, one
`.tar.gz` per spectrum and `scripts/`, `results.dat` or `INSXPS`, the eleven lines of an enhanced position's
`success.txt`, `corrpos.dat` with `xastrom_corr.dat` or `NOCORR`, and `images.log` with its images.
Not documented, and made up here: the inside of a spectrum's own archive, `success.txt` of the other
products, the files of a source detection (`sources_<band>.txt`), the comment lines of the `.qdp` files,
and the wording of the logs.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from . import pictures
from .science import Curve, Results
from .validation import number

FORMATS = ("tar", "tar.gz", "zip")
_TAR_BLOCK = 512
_FITS_BLOCK = 2880
_STORED_BLOCK = 65535
_FILE_TIME = 1_600_000_000
_ZIP_DATE = (2020 - 1980) << 9 | 9 << 5 | 13
_ZIP_VERSION = 20
_PADDING_UNIT = b"".join(struct.pack(">I", (count * 2654435761) % 2**32) for count in range(4096))[:16380]


@dataclass(frozen=True)
class Repeated:
    """Bytes that stand for many copies of themselves, so that a large file needs no memory."""

    unit: bytes
    times: int

    def __len__(self) -> int:
        return len(self.unit) * self.times


Part = bytes | Repeated


@dataclass(frozen=True)
class Blob:
    """A file as a sequence of parts, of which any range can be read."""

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Give the bytes from start up to stop, in pieces of bounded size."""
        stop = len(self) if stop is None else stop
        at = 0
        for part in self.parts:
            low, high = max(start - at, 0), min(stop - at, len(part))
            if low < high:
                yield from _slice(part, low, high)
            at += len(part)

    def __bytes__(self) -> bytes:
        return b"".join(self.read())

    def crc32(self) -> int:
        """Sum all bytes up, as gzip and zip want it."""
        crc = 0
        for piece in self.read():
            crc = zlib.crc32(piece, crc)
        return crc


def _slice(part: Part, low: int, high: int) -> Iterator[bytes]:
    if isinstance(part, bytes):
        yield part[low:high]
        return
    unit = len(part.unit)
    while low < high:
        offset = low % unit
        step = min(unit - offset, high - low)
        yield part.unit[offset : offset + step]
        low += step


Members = Mapping[str, bytes]


def pack(
    directory: str, products: Mapping[str, Members], archive_format: str, padding_bytes: int = 0
) -> Blob:
    """Pack products as the service hands them out, below one directory.

    Args:
        directory: The job's directory, `USERPROD_<id>`.
        products: Short name to file names and contents; one without files leaves an empty directory.
        archive_format: One of `FORMATS`.
        padding_bytes: Size of an additional member of meaningless bytes per product.
    """
    entries: list[tuple[str, Blob]] = []
    for product, members in products.items():
        entries.append((f"{directory}/{product}/", Blob(())))
        entries.extend((f"{directory}/{product}/{name}", Blob((data,))) for name, data in members.items())
        if padding_bytes and members:
            entries.append((f"{directory}/{product}/events.evt", _padding(padding_bytes)))
    if archive_format == "zip":
        return _zip(entries)
    tar = _tar(entries)
    return tar if archive_format == "tar" else _gzip(tar)


def _padding(size: int) -> Blob:
    whole, rest = divmod(size, len(_PADDING_UNIT))
    return Blob((Repeated(_PADDING_UNIT, whole), _PADDING_UNIT[:rest]))


def _tar(entries: Iterable[tuple[str, Blob]]) -> Blob:
    parts: list[Part] = []
    for name, content in entries:
        info = tarfile.TarInfo(name.rstrip("/"))
        info.mtime, info.size = _FILE_TIME, len(content)
        if name.endswith("/"):
            info.type, info.mode = tarfile.DIRTYPE, 0o755
        parts += [info.tobuf(tarfile.USTAR_FORMAT), *content.parts, bytes(-len(content) % _TAR_BLOCK)]
    parts.append(bytes(2 * _TAR_BLOCK))
    return Blob(tuple(parts))


def _gzip(content: Blob) -> Blob:
    """Compress what is held in memory and store what is repeated, so that sizes are known beforehand."""
    header = b"\x1f\x8b\x08\x00" + struct.pack("<I", _FILE_TIME) + b"\x00\x03"
    parts: list[Part] = [header]
    for part in content.parts:
        if isinstance(part, bytes):
            deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            parts.append(deflate.compress(part) + deflate.flush(zlib.Z_FULL_FLUSH))
        else:
            unit = part.unit
            stored = struct.pack("<BHH", 0, len(unit), len(unit) ^ _STORED_BLOCK) + unit
            parts.append(Repeated(stored, part.times))
    parts.append(b"\x03\x00" + struct.pack("<II", content.crc32(), len(content) % 2**32))
    return Blob(tuple(parts))


def _zip(entries: Iterable[tuple[str, Blob]]) -> Blob:
    parts: list[Part] = []
    directory = b""
    count = at = 0
    for name, content in entries:
        stored = any(isinstance(part, Repeated) for part in content.parts) or not len(content)
        body = content if stored else Blob((_deflated(bytes(content)),))
        path = name.encode()
        common = struct.pack(
            "<HHHHHIIIHH",
            _ZIP_VERSION,
            0,
            0 if stored else 8,
            0,
            _ZIP_DATE,
            content.crc32(),
            len(body),
            len(content),
            len(path),
            0,
        )
        local = b"PK\x03\x04" + common + path
        attributes = (0o40755 << 16 | 0x10) if name.endswith("/") else 0o100644 << 16
        directory += (
            b"PK\x01\x02"
            + struct.pack("<H", 3 << 8 | _ZIP_VERSION)
            + common
            + struct.pack("<HHHII", 0, 0, 0, attributes, at)
            + path
        )
        parts += [local, *body.parts]
        at += len(local) + len(body)
        count += 1
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), at, 0)
    return Blob((*parts, directory, b"PK\x05\x06" + end))


def _deflated(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


def members(
    product: str, results: Results, parameters: Mapping[str, object], *, found: bool = True
) -> Members:
    """Make the files of one finished product.

    Args:
        product: Short name.
        results: What the retrieve endpoints answer for the same job.
        parameters: The job's parameters, resolved.
        found: For positions: whether there is one.
    """
    if product in ("psf", "enh", "xastrom"):
        files = _position_files(product, results, parameters, found=found)
    else:
        files = _FILES[product](results, parameters)
    files.setdefault("success.txt", b"1\n")
    files[f"{product}.log"] = f"Product {product} of {parameters.get('outdir')} built.\n".encode()
    return files


def _light_curve_files(results: Results, _parameters: Mapping[str, object]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for bad in ("no", "yes"):
        curves = results.curves(nosys="no", incbad=bad)
        files[f"curve{'_incbad' if bad == 'yes' else ''}.qdp"] = _whole_curve(curves)
    grouped: dict[str, list[Curve]] = {}
    for curve in results.curves(nosys="both", incbad="both").values():
        grouped.setdefault(curve.file, []).append(curve)
    for file, group in grouped.items():
        files[file] = "".join(
            [f"READ TERR 1\n!{curve.file}\n" + _table(curve.columns, curve.rows) for curve in group]
        ).encode()
    files["curve.gif"] = pictures.plot()
    return files


def _whole_curve(curves: Mapping[str, Curve]) -> bytes:
    pieces = ["READ TERR 1 2\n"]
    for name, curve in curves.items():
        if not {"Rate", "UpperLimit"} & set(curve.columns) or "RateErr" in curve.columns:
            continue
        mode = name.split("_")[0]
        title = f"{mode.removesuffix('UL')} upper limits" if mode.endswith("UL") else f"{mode} data"
        if len(pieces) > 1:
            pieces.append("NO NO NO NO NO NO\n")
        pieces.append(f"! {title}\n")
        pieces.append(
            _table(("Time", "T_+ve", "T_-ve", "Rate", "Ratepos", "Rateneg"), [row[:6] for row in curve.rows])
        )
    return "".join(pieces).encode()


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    return "".join(["!" + "\t".join(columns) + "\n", *("\t".join(row) + "\n" for row in rows)])


def _spectrum_files(results: Results, _parameters: Mapping[str, object]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name in results.spectra():
        inside: dict[str, bytes] = {}
        for mode in results.spectral_modes(name):
            stem = f"{name}{mode.lower()}"
            inside |= {
                f"{stem}source.pi": fits_image(),
                f"{stem}back.pi": fits_image(),
                f"{stem}.pi": fits_image(),
                f"{stem}.arf": fits_image(),
            }
            for model in results.models():
                inside[f"models/{stem}_{model}.xcm"] = f"method leven 10 0.01\nmodel TBabs*{model}\n".encode()
                files[results.plot_name(name, mode, model)] = pictures.plot()
        nested = _tar([(path, Blob((data,))) for path, data in inside.items()])
        files[f"{name}.tar.gz"] = bytes(_gzip(nested))
    files["scripts/setup.xcm"] = b"cosmo 70 0 0.73\nabund wilm\nxsect vern\n"
    return files


def _position_files(
    product: str, results: Results, parameters: Mapping[str, object], *, found: bool
) -> dict[str, bytes]:
    position = results.position(product)
    ra, dec = position.sexagesimal
    names = {"psf": ["summed.gif"], "enh": ["uvot.gif"], "xastrom": ["orig.gif", "corrected.gif"]}
    files = dict.fromkeys(names[product], pictures.sky())
    sxps = [
        "209851",
        *(position.ra, position.dec, position.err90, ra, dec),
        results.observations[0],
        "2SXPS",
    ]
    if not found:
        files |= {"psf": {"results.dat": b"NOPOS\n"}, "xastrom": {"NOCORR": b""}, "enh": {}}[product]
        if product == "enh":
            files["success.txt"] = b"0\n"
    elif position.from_sxps:
        files["INSXPS"] = _lines(sxps)
    elif product == "psf":
        fields = [position.ra, position.dec, ra, dec, position.err90, "0", "1", "0", "0", "0", "0"]
        files["results.dat"] = "\t".join(fields).encode() + b"\n"
        files |= {"centroid.img.gz": _zipped_image(), "centroid_ex.img.gz": _zipped_image()}
    elif product == "xastrom":
        corrected = [position.ra, position.dec, ra, dec, position.err90]
        files["corrpos.dat"] = "\t".join(corrected).encode() + b"\n"
        files["xastrom_corr.dat"] = b"0.61\t-0.42\t1.30\t1.40\n"
    else:
        summary = [str(parameters.get("name", "")), ",".join(results.targets), "14", "8012.4", "1", "640.2"]
        files["success.txt"] = _lines([*summary, position.ra, position.dec, ra, dec, position.err90])
    return files


def _lines(values: Iterable[str]) -> bytes:
    return "".join(f"{value}\n" for value in values).encode()


def _image_files(_results: Results, parameters: Mapping[str, object]) -> dict[str, bytes]:
    bands = [band.split("-") for band in str(parameters.get("imen") or "0.3-10,0.3-1.5,1.51-10").split(",")]
    log = []
    files: dict[str, bytes] = {}
    for count, (low, high) in enumerate(bands, start=1):
        log.append(f"{count}\t{number(low):g}\t{number(high):g}\n")
        files |= {f"image{count}.img.gz": _zipped_image(), f"image{count}.gif": pictures.sky()}
    for stem in ("summed_ex", "summed_vignet_ex"):
        files |= {f"{stem}.img.gz": _zipped_image(), f"{stem}.gif": pictures.sky()}
    return {"images.log": "".join(log).encode(), **files}


def _source_files(results: Results, _parameters: Mapping[str, object]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for band in results.bands():
        sources = results.sources(band)
        table = _table(sources[0], [list(source.values()) for source in sources])
        files[f"sources_{band.lower()}.txt"] = table.encode()
        files[f"summed_{band.lower()}.gif"] = pictures.sky()
    return files


_FILES = {
    "lc": _light_curve_files,
    "spec": _spectrum_files,
    "image": _image_files,
    "sourceDet": _source_files,
}


def fits_image(side: int = 4) -> bytes:
    """Make a small, valid FITS image."""
    cards = [
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    2",
        f"NAXIS1  = {side:20d}",
        f"NAXIS2  = {side:20d}",
        "TELESCOP= 'SWIFT   '",
        "INSTRUME= 'XRT     '",
        "END",
    ]
    header = "".join(card.ljust(80) for card in cards).ljust(_FITS_BLOCK).encode()
    return header + bytes(range(side * side)).ljust(_FITS_BLOCK, b"\0")


def _zipped_image() -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.write(fits_image())
    return packed.getvalue()
