"""Hold `prefect_xrt.archive` to account."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import itertools
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_xrt import archive
from prefect_xrt.archive import (
    ProductFile,
    download,
    download_all,
    exclusive,
    extract,
    folder_name,
    refuse_foreign_files,
    remove_other_jobs,
    verify,
    write_text,
)
from prefect_xrt.client import XRTClient
from prefect_xrt.emulator import Emulator, Fault, Scenario, Timeline
from prefect_xrt.errors import (
    AnswerError,
    ArchiveError,
    OutputError,
    ProductMissingError,
    ServiceUnreachableError,
    UnsafeArchiveError,
    XRTError,
)
from prefect_xrt.protocol import ArchiveFormat, Job
from prefect_xrt.request import Image, Product, ProductRequest, Spectrum

FORMATS: tuple[ArchiveFormat, ...] = archive.ARCHIVE_FORMATS
TARS: tuple[ArchiveFormat, ...] = ("tar", "tar.gz")
REQUEST = ProductRequest(
    name="GRB 200416A", targets=("00966554",), ra_deg=335.6985, dec_deg=-7.5179, centroid=True, position_error_arcmin=1,
    image=Image(),
)  # fmt: skip
READY = Scenario(default=Timeline.of((4,)))
FEW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    """Make the header of a tar member."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar(*entries: tuple[tarfile.TarInfo | str, bytes], form: ArchiveFormat = "tar") -> bytes:
    """Make a tar archive of headers, or names, with contents."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as bundle:
        for head, content in entries:
            info = member(head) if isinstance(head, str) else head
            info.size = info.size or len(content)
            bundle.addfile(info, io.BytesIO(content))
    return gzip.compress(stream.getvalue()) if form == "tar.gz" else stream.getvalue()


def zipped(*entries: tuple[zipfile.ZipInfo | str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Make a zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as bundle:
        for head, content in entries:
            bundle.writestr(head, content)
    return stream.getvalue()


def packed(form: ArchiveFormat, *entries: tuple[str, bytes]) -> bytes:
    """Make an archive of plain files."""
    return zipped(*entries) if form == "zip" else tar(*entries, form=form)


def zip_link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    """Make a symbolic link as zip programs store one."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target.encode()


def put(folder: Path, content: bytes, form: ArchiveFormat) -> Path:
    """Write an archive to where it is unpacked from."""
    path = folder / f"a.{form}"
    path.write_bytes(content)
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return all that is in a folder: names with contents, none for folders."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def inner(tmp_path: Path) -> Path:
    """Give a folder with room around it, so that what leaves it is seen."""
    folder = tmp_path / "inner"
    folder.mkdir()
    return folder


class TestVerify:
    @pytest.mark.parametrize("form", FORMATS)
    def test_whole(self, form: ArchiveFormat, tmp_path: Path) -> None:
        """A whole archive is taken, as long as its contents stay within the limit."""
        path = put(tmp_path, packed(form, ("d/a", b"a" * 1000), ("d/b", bytes(3000))), form)
        verify(path, form)
        with pytest.raises(UnsafeArchiveError, match="unpacks to more than 3999 bytes"):
            verify(path, form, max_unpacked_bytes=3999)

    @pytest.mark.parametrize("zeros", [False, True])
    def test_tar_cut_anywhere(self, zeros: bool, tmp_path: Path) -> None:
        """A tar file cut at any block before its end mark is refused, also where its files are full of zeros."""
        content = bytes(2048) if zeros else b"x" * 2048
        whole = tar(("a", content), ("b", content))
        end = len(whole.rstrip(b"\0")) if not zeros else 2 * (512 + 2048)
        end = -(-end // 512) * 512
        for size in range(0, end + 1024, 512):
            with pytest.raises(ArchiveError):
                verify(put(tmp_path, whole[:size], "tar"), "tar")
        verify(put(tmp_path, whole[: end + 1024], "tar"), "tar")

    @pytest.mark.parametrize("form", ["tar.gz", "zip"])
    def test_cut_anywhere(self, form: ArchiveFormat, tmp_path: Path) -> None:
        """A compressed archive cut at any byte is refused."""
        whole = packed(form, ("a", os.urandom(600)), ("b", b"y" * 100))
        for size in range(0, len(whole), 7):
            with pytest.raises(ArchiveError):
                verify(put(tmp_path, whole[:size], form), form)
        with pytest.raises(ArchiveError):
            verify(put(tmp_path, whole[:-1], form), form)

    @pytest.mark.parametrize("form", TARS)
    def test_inner_tar_cut(self, form: ArchiveFormat, tmp_path: Path) -> None:
        """A tar that was cut off between two members before it was compressed is refused."""
        cut = tar(("a", b"x" * 512), ("b", b"y" * 512))[:1024]
        with pytest.raises(ArchiveError):
            verify(put(tmp_path, gzip.compress(cut) if form == "tar.gz" else cut, form), form)

    @pytest.mark.parametrize("form", TARS)
    def test_damaged_header(self, form: ArchiveFormat, tmp_path: Path) -> None:
        """A damaged header in the middle is not taken for the end."""
        content = bytearray(tar(("a", b"x" * 512), ("b", b"y" * 512)))
        content[1024] ^= 0xFF
        whole = gzip.compress(bytes(content)) if form == "tar.gz" else bytes(content)
        with pytest.raises(ArchiveError, match="incomplete or damaged"):
            verify(put(tmp_path, whole, form), form)

    @pytest.mark.parametrize("form", FORMATS)
    def test_empty(self, form: ArchiveFormat, tmp_path: Path) -> None:
        """An archive of nothing, and a file of nothing, are refused."""
        with pytest.raises(ArchiveError, match="holds nothing"):
            verify(put(tmp_path, packed(form), form), form)
        with pytest.raises(ArchiveError):
            verify(put(tmp_path, b"", form), form)

    @pytest.mark.parametrize("form", TARS)
    def test_trailing_garbage(self, form: ArchiveFormat, tmp_path: Path) -> None:
        """Something after the end is refused: it is not what was packed."""
        with pytest.raises(ArchiveError):
            verify(put(tmp_path, packed(form, ("a", b"x")) + b"garbage" * 100, form), form)
        if form == "tar.gz":
            inside = gzip.compress(tar(("a", b"x")) + b"garbage")
            with pytest.raises(ArchiveError, match="something follows"):
                verify(put(tmp_path, inside, form), form)

    def test_gzip_checksum(self, tmp_path: Path) -> None:
        """The checksum at the end of a compressed file is compared."""
        whole = bytearray(packed("tar.gz", ("a", b"x")))
        whole[-6] ^= 1
        with pytest.raises(ArchiveError, match="CRC"):
            verify(put(tmp_path, bytes(whole), "tar.gz"), "tar.gz")

    def test_encrypted_zip(self, tmp_path: Path) -> None:
        """An encrypted zip is told as one that cannot be read."""
        whole = bytearray(zipped(("a", b"x" * 100)))
        whole[6] |= 1
        whole[whole.index(b"PK\x01\x02") + 8] |= 1
        with pytest.raises(ArchiveError, match="encrypted"):
            verify(put(tmp_path, bytes(whole), "zip"), "zip")

    @pytest.mark.parametrize("form", FORMATS)
    def test_another_format(self, form: ArchiveFormat, tmp_path: Path) -> None:
        """A page, and an archive of another format, are no archive of this one."""
        other: ArchiveFormat = "zip" if form != "zip" else "tar"
        for content in (b"<html>" * 500, packed(other, ("a", b"x"))):
            with pytest.raises(ArchiveError):
                verify(put(tmp_path, content, form), form)

    @pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
    def test_long_name_bomb(self, kind: bytes, tmp_path: Path) -> None:
        """A name of many megabytes is refused before it is read into memory."""
        whole = tar((member("x", kind), bytes(2**22)), ("a", b"x"), form="tar.gz")
        with pytest.raises(ArchiveError, match="a header of 4194304 bytes"):
            verify(put(tmp_path, whole, "tar.gz"), "tar.gz")

    def test_many_members(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An archive of more files than anybody needs is refused."""
        monkeypatch.setattr(archive, "_MAX_MEMBERS", 10)
        verify(put(tmp_path, packed("tar", *((str(n), b"") for n in range(10))), "tar"), "tar")
        with pytest.raises(UnsafeArchiveError, match="more than 10 files"):
            verify(put(tmp_path, packed("tar", *((str(n), b"") for n in range(11))), "tar"), "tar")

    @pytest.mark.parametrize("form", FORMATS)
    @FEW
    @given(st.data())
    def test_any_damage(self, form: ArchiveFormat, tmp_path: Path, data: st.DataObject) -> None:
        """Whatever bytes are changed, an archive is unpacked or refused by name, and nothing leaves its folder."""
        whole = bytearray(packed(form, ("d/a", b"a" * 700), ("b", b"b" * 10), ("c" * 120, b"c")))
        for _ in range(data.draw(st.integers(1, 6))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        path = put(tmp_path, bytes(whole), form)
        for act in (lambda: verify(path, form), lambda: extract(path, tmp_path / "out")):
            with contextlib.suppress(ArchiveError, OutputError):
                act()
        assert {entry.name for entry in tmp_path.iterdir()} <= {
            path.name,
            "out",
            *(f"a.{f}" for f in FORMATS),
        }


HOSTILE_TARS: dict[str, list[tuple[tarfile.TarInfo | str, bytes]]] = {
    "absolute": [("/tmp/evil", b"x")],  # noqa: S108 - never written
    "parent": [("../evil", b"x")],
    "parent inside": [("a/../../evil", b"x")],
    "parent folder": [(member("../evil", tarfile.DIRTYPE), b"")],
    "symlink out": [(member("a", tarfile.SYMTYPE, linkname="../../evil"), b"")],
    "symlink absolute": [(member("a", tarfile.SYMTYPE, linkname="/etc/passwd"), b"")],
    "symlink to nothing": [(member("a", tarfile.SYMTYPE, linkname="b"), b"")],
    "symlink to itself": [(member("a", tarfile.SYMTYPE, linkname="a"), b"")],
    "symlink to folder": [("d/x", b"x"), (member("a", tarfile.SYMTYPE, linkname="d"), b"")],
    "write through symlink": [(member("a", tarfile.SYMTYPE, linkname=".."), b""), ("a/evil", b"x")],
    "replace symlink": [("x", b"x"), (member("a", tarfile.SYMTYPE, linkname="x"), b""), ("a", b"y")],
    "symlink over file": [("x", b"x"), ("a", b"y"), (member("a", tarfile.SYMTYPE, linkname="x"), b"")],
    "hardlink out": [(member("a", tarfile.LNKTYPE, linkname="../evil"), b"")],
    "hardlink absolute": [(member("a", tarfile.LNKTYPE, linkname="/etc/passwd"), b"")],
    "device": [(member("a", tarfile.CHRTYPE, devmajor=1, devminor=3), b"")],
    "block device": [(member("a", tarfile.BLKTYPE), b"")],
    "fifo": [(member("a", tarfile.FIFOTYPE), b"")],
    "twice": [("a", b"x"), ("a", b"y")],
    "twice by another spelling": [("d/a", b"x"), ("./d//a", b"y")],
    "file then folder": [("a", b"x"), ("a/b", b"y")],
    "folder then file": [("a/b", b"x"), ("a", b"y")],
    "named folder then file": [(member("a", tarfile.DIRTYPE), b""), ("a", b"y")],
    "file of no name": [(".", b"x")],
    "line break": [("a\nb", b"x")],
    "sparse": [(member("a", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a",
                                         "GNU.sparse.realsize": "9" * 12}), b"1\n0\n1\n" + bytes(506) + b"x")],
}  # fmt: skip
HOSTILE_ZIPS: dict[str, list[tuple[zipfile.ZipInfo | str, bytes]]] = {
    "absolute": [("/tmp/evil", b"x")],  # noqa: S108 - never written
    "parent": [("../evil", b"x")],
    "parent folder": [("../evil/", b"")],
    "symlink out": [zip_link("a", "../evil")],
    "symlink absolute": [zip_link("a", "/etc/passwd")],
    "write through symlink": [zip_link("a", ".."), ("a/evil", b"x")],
    "file then folder": [("a", b"x"), ("a/b", b"y")],
}


class TestExtract:
    @pytest.mark.parametrize("form", FORMATS)
    def test_contents(self, form: ArchiveFormat, inner: Path) -> None:
        """Everything arrives in a folder of its own, byte by byte, and replaces what was there."""
        path = put(inner, packed(form, ("d/a", b"a" * 5000), ("d/e/b", b""), ("ü", b"c")), form)
        out = inner / "out"
        out.mkdir()
        (out / "old").write_bytes(b"old")
        extract(path, out)
        assert tree(out) == {"d": None, "d/a": b"a" * 5000, "d/e": None, "d/e/b": b"", "ü": b"c"}
        assert sorted(os.listdir(inner)) == sorted([path.name, "out"])
        assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(inner.stat().st_mode)

    @pytest.mark.parametrize("form", TARS)
    @pytest.mark.parametrize("name", HOSTILE_TARS)
    def test_hostile_tar(self, name: str, form: ArchiveFormat, inner: Path) -> None:
        """What must not be unpacked is refused as a whole, and leaves no trace, inside or outside."""
        path = put(inner, tar(*HOSTILE_TARS[name], form=form), form)
        with pytest.raises(UnsafeArchiveError):
            extract(path, inner / "out")
        assert (os.listdir(inner), os.listdir(inner.parent)) == ([path.name], ["inner"])

    @pytest.mark.parametrize("name", HOSTILE_ZIPS)
    def test_hostile_zip(self, name: str, inner: Path) -> None:
        """The same for zip files."""
        path = put(inner, zipped(*HOSTILE_ZIPS[name]), "zip")
        with pytest.raises(UnsafeArchiveError):
            extract(path, inner / "out")
        assert (os.listdir(inner), os.listdir(inner.parent)) == ([path.name], ["inner"])

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_zip_twice(self, inner: Path) -> None:
        """A zip that holds two files of one name is refused."""
        with pytest.raises(UnsafeArchiveError, match="twice"):
            extract(put(inner, zipped(("a", b"x"), ("a", b"y")), "zip"), inner / "out")

    @pytest.mark.parametrize("name", ["C:/windows/a", "C:\\a", "..\\..\\evil", "\\\\host\\a", "con", "-rf"])
    def test_names_of_other_systems(self, name: str, inner: Path) -> None:
        """Drive letters and backslashes mean nothing here: they are parts of names, and stay inside."""
        extract(put(inner, zipped((name, b"x")), "zip"), inner / "out")
        assert [content for content in tree(inner / "out").values() if content] == [b"x"]
        assert os.listdir(inner.parent) == ["inner"]

    def test_device_in_zip(self, inner: Path) -> None:
        """What a zip calls a device becomes a plain file."""
        info = zipfile.ZipInfo("a")
        info.create_system, info.external_attr = 3, (stat.S_IFCHR | 0o666) << 16
        extract(put(inner, zipped((info, b"x")), "zip"), inner / "out")
        assert stat.S_ISREG((inner / "out" / "a").lstat().st_mode)

    @pytest.mark.parametrize("form", FORMATS)
    def test_bomb(self, form: ArchiveFormat, inner: Path) -> None:
        """An archive that unpacks beyond the limit is stopped there, and what was unpacked is gone."""
        path = put(inner, packed(form, ("a", bytes(10**6)), ("b", bytes(10**6))), form)
        with pytest.raises(UnsafeArchiveError, match="unpacks to more than 1500000 bytes"):
            extract(path, inner / "out", max_unpacked_bytes=1_500_000)
        assert os.listdir(inner) == [path.name]

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
    def test_links_inside(self, kind: bytes, inner: Path) -> None:
        """A link to a file of the archive becomes a second name of it, whichever comes first."""
        target = "d/x" if kind == tarfile.LNKTYPE else "x"
        path = put(inner, tar((member("d/a", kind, linkname=target), b""), ("d/x", b"x")), "tar")
        extract(path, inner / "out")
        assert tree(inner / "out") == {"d": None, "d/a": b"x", "d/x": b"x"}
        assert not (inner / "out/d/a").is_symlink()

    def test_zip_link_inside(self, inner: Path) -> None:
        """The same for a zip."""
        extract(put(inner, zipped(zip_link("a", "x"), ("x", b"x")), "zip"), inner / "out")
        assert tree(inner / "out") == {"a": b"x", "x": b"x"}

    @pytest.mark.parametrize("form", FORMATS)
    def test_damaged(self, form: ArchiveFormat, inner: Path) -> None:
        """A damaged archive leaves the folder that was there as it was."""
        out = inner / "out"
        out.mkdir()
        (out / "old").write_bytes(b"old")
        path = put(inner, packed(form, ("a", os.urandom(5000)))[:2500], form)
        with pytest.raises(ArchiveError):
            extract(path, out)
        assert tree(out) == {"old": b"old"}
        assert sorted(os.listdir(inner)) == sorted([path.name, "out"])

    @pytest.mark.parametrize("link", [False, True])
    def test_in_the_way(self, link: bool, inner: Path) -> None:
        """A file, or a link, that has the folder's name is left alone."""
        out = inner / "out"
        if link:
            out.symlink_to(inner.parent)
        else:
            out.write_bytes(b"mine")
        with pytest.raises(OutputError, match="not a folder"):
            extract(put(inner, tar(("a", b"x")), "tar"), out)
        assert (out.is_symlink(), out.is_file() and out.read_bytes()) == (link, False if link else b"mine")

    def test_unknown_format(self, inner: Path) -> None:
        """A name that tells no format is refused."""
        with pytest.raises(ArchiveError, match="none of"):
            extract(inner / "a.rar", inner / "out")

    def test_leftover(self, inner: Path) -> None:
        """What an extraction that was killed left behind is cleared away."""
        (inner / ".out.part/new/d").mkdir(parents=True)
        (inner / ".out.part/new/d/half").write_bytes(b"ha")
        (inner / ".out.lock").touch()
        extract(put(inner, tar(("a", b"x")), "tar"), inner / "out")
        assert tree(inner) == {"a.tar": (inner / "a.tar").read_bytes(), "out": None, "out/a": b"x"}

    def test_another_process(self, inner: Path) -> None:
        """A folder that is being unpacked into is left to whom it is."""
        path = put(inner, tar(("a", b"x")), "tar")
        with exclusive(inner / "out"), pytest.raises(OutputError, match=r"Another process is using .*/out;"):
            extract(path, inner / "out")
        assert os.listdir(inner) == ["a.tar"]


INNER = {"x.tar": "tar", "x.tar.gz": "tar.gz", "x.tgz": "tar.gz", "X.TAR.GZ": "tar.gz", "x.zip": "zip"}


@pytest.mark.parametrize("form", FORMATS)
class TestNested:
    @pytest.mark.parametrize(("name", "inner_form"), INNER.items())
    def test_good(self, name: str, inner_form: ArchiveFormat, form: ArchiveFormat, inner: Path) -> None:
        """An archive within an archive stays a file, byte by byte."""
        content = packed(inner_form, ("d/a", b"a" * 3000), ("b", b""))
        extract(put(inner, packed(form, (f"d/{name}", content)), form), inner / "out")
        assert tree(inner / "out") == {"d": None, f"d/{name}": content}

    @pytest.mark.parametrize("name", HOSTILE_TARS)
    def test_hostile_tar(self, name: str, form: ArchiveFormat, inner: Path) -> None:
        """What must not be unpacked is refused within an archive too, and leaves no trace."""
        content = tar(*HOSTILE_TARS[name], form="tar.gz")
        path = put(inner, packed(form, ("good", b"x"), ("d/x.tar.gz", content)), form)
        with pytest.raises(UnsafeArchiveError, match=r"x\.tar\.gz"):
            extract(path, inner / "out")
        assert (os.listdir(inner), os.listdir(inner.parent)) == ([path.name], ["inner"])

    @pytest.mark.parametrize("name", HOSTILE_ZIPS)
    def test_hostile_zip(self, name: str, form: ArchiveFormat, inner: Path) -> None:
        """The same for zip files."""
        path = put(inner, packed(form, ("x.zip", zipped(*HOSTILE_ZIPS[name]))), form)
        with pytest.raises(UnsafeArchiveError, match=r"x\.zip"):
            extract(path, inner / "out")
        assert (os.listdir(inner), os.listdir(inner.parent)) == ([path.name], ["inner"])

    @pytest.mark.parametrize(("name", "inner_form"), INNER.items())
    def test_damaged(self, name: str, inner_form: ArchiveFormat, form: ArchiveFormat, inner: Path) -> None:
        """One that is cut off is refused by its name, and so is what is no archive but has the name of one."""
        for content in (packed(inner_form, ("a", os.urandom(2000)))[:1500], b"", b"<html>" * 500):
            path = put(inner, packed(form, (name, content)), form)
            with pytest.raises(ArchiveError, match=f"{name} is incomplete or damaged"):
                extract(path, inner / "out")
            assert os.listdir(inner) == [path.name]

    @pytest.mark.parametrize("name", INNER)
    def test_deeper(self, name: str, form: ArchiveFormat, inner: Path) -> None:
        """An archive within an archive within an archive is refused."""
        content = packed("tar.gz", (f"d/{name}", b"whatever"))
        with pytest.raises(UnsafeArchiveError, match="and holds another"):
            extract(put(inner, packed(form, ("x.tar.gz", content)), form), inner / "out")

    @pytest.mark.parametrize("inner_form", FORMATS)
    def test_bomb(self, inner_form: ArchiveFormat, form: ArchiveFormat, inner: Path) -> None:
        """All archives within an archive unpack to the one limit together, and it is told as the bundle's."""
        content = packed(inner_form, ("a", bytes(10**6)))
        path = put(inner, packed(form, (f"1.{inner_form}", content), (f"2.{inner_form}", content)), form)
        with pytest.raises(UnsafeArchiveError, match=rf"a\.{form} unpacks to more than"):
            extract(path, inner / "out", max_unpacked_bytes=2 * len(content) + 1_900_000)
        extract(path, inner / "out", max_unpacked_bytes=2 * len(content) + 2_100_000)

    def test_many_members(self, form: ArchiveFormat, inner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All archives within an archive hold the one number of files together."""
        monkeypatch.setattr(archive, "_MAX_MEMBERS", 10)
        content = packed("zip", *((str(n), b"") for n in range(5)))
        path = put(inner, packed(form, ("1.zip", content), ("2.zip", content)), form)
        with pytest.raises(UnsafeArchiveError, match="more than 10 files"):
            extract(path, inner / "out")


class TestNestedLink:
    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
    def test_link(self, kind: bytes, inner: Path) -> None:
        """What becomes an archive only by a link's name is looked into as well."""
        content = tar(*HOSTILE_TARS["parent"])
        path = put(inner, tar(("a", content), (member("x.tar", kind, linkname="a"), b"")), "tar")
        with pytest.raises(UnsafeArchiveError, match=r"x\.tar holds '\.\./evil'"):
            extract(path, inner / "out")


class TestFolderName:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("m31", "m31"),
            ("sn2024ggi+host-v1.0_a", "sn2024ggi+host-v1.0_a"),
            ("M31", "M31_********"),
            ("GRB 200416A", "GRB_200416A_********"),
            ("Holmberg II [X-1]", "Holmberg_II_X-1_********"),
            ("../../etc", "etc_********"),
            ("-rf", "rf_********"),
            (".hidden", "hidden_********"),
            ("η Car", "Car_********"),
            ("São Tomé", "Sao_Tome_********"),
            ("a__b", "a_b_********"),
            ("m31\n", "m31_********"),
            ("\N{COLLISION SYMBOL}", "unnamed_********"),
            ("", "unnamed_********"),
            ("..", "unnamed_********"),
            ("\udcff", "unnamed_********"),
            ("CON", "CON_********"),
            ("nul", "nul_********"),
            ("com1.fits", "com1_fits_********"),
            ("concorde", "concorde"),
            ("m31_0123abcd", "m31_0123abcd_********"),
            ("x" * 80, "x" * 80),
            ("x" * 300, "x" * 71 + "_********"),
            ("x" * 70 + " " * 200 + "y", "x" * 70 + "_********"),
        ],
    )
    def test_readable(self, name: str, expected: str) -> None:
        """A name stays readable, and tells by a part of its checksum that it was changed."""
        made = folder_name(name)
        assert re.fullmatch(re.escape(expected).replace(r"\*" * 8, "[0-9a-f]{8}"), made)
        assert folder_name(made) != made or made == name

    def test_given_out_before(self) -> None:
        """A name that looks like one that was made for another does not become it."""
        assert folder_name(folder_name("GRB 200416A").lower()) != folder_name("GRB 200416A").lower()

    @given(st.lists(st.text() | st.text("aAé_. /C", max_size=3), min_size=2, unique=True))
    def test_distinct(self, names: list[str]) -> None:
        """Different names differ even where capitals do not count, and each is one name on any system."""
        made = [folder_name(name) for name in names]
        assert len({name.lower() for name in made}) == len(names)
        for name in made:
            assert re.fullmatch(r"[A-Za-z0-9+][A-Za-z0-9+._-]{0,79}", name)
            assert name[-1] not in "._-"
            assert name.split(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT9"}


class TestExclusive:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        """A name is one holder's, within this process too, until it ends, well or badly; nothing is left."""
        place = tmp_path / "job.json"
        with exclusive(place), exclusive(tmp_path / "other.json"):
            with pytest.raises(OutputError, match=f"Another process is using {place}; .* its own folder"):
                exclusive(place).__enter__()
            assert sorted(os.listdir(tmp_path)) == [".job.json.lock", ".other.json.lock"]
        with pytest.raises(ZeroDivisionError), exclusive(place):
            _ = 1 / 0
        assert os.listdir(tmp_path) == []

    def test_no_folder(self, tmp_path: Path) -> None:
        """A folder that is not there is told by name."""
        with pytest.raises(OutputError, match="cannot be written"), exclusive(tmp_path / "none" / "job.json"):
            pytest.fail("It cannot be held.")

    def test_killed(self, tmp_path: Path) -> None:
        """What is held by a process is free as soon as it is killed."""
        place = tmp_path / "job.json"
        with holding(place) as other:
            with pytest.raises(OutputError, match="Another process"), exclusive(place):
                pytest.fail("It is held.")
            other.kill()
            other.wait()
        assert os.listdir(tmp_path) == [".job.json.lock"]
        with exclusive(place):
            pass
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("again", [False, True])
    @pytest.mark.parametrize("times", [1, -1])
    def test_removed_meanwhile(
        self, times: int, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lock that its holder removed between our opening and locking it keeps nothing: it is made anew."""
        place, path = tmp_path / "job.json", tmp_path / ".job.json.lock"
        lock = fcntl.flock
        calls = itertools.count()

        def late(stream: Any, operation: int) -> None:
            if times < 0 or next(calls) < times:
                path.unlink()
                if again:
                    path.touch()
            lock(stream, operation)

        monkeypatch.setattr(fcntl, "flock", late)
        if times < 0:
            with pytest.raises(OutputError, match="Another process"), exclusive(place):
                pytest.fail("It is never held.")
        else:
            with exclusive(place), pytest.raises(OutputError, match="Another process"), exclusive(place):
                pytest.fail("It is held.")


@contextlib.contextmanager
def holding(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that keeps a name until it is killed."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom prefect_xrt.archive import exclusive\n"
        f"with exclusive(Path({str(place)!r})):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        yield other
        other.kill()


class TestWriteText:
    def test_many_writers(self, tmp_path: Path) -> None:
        """Of many who write a file at once one's text stays, whole; nothing else is left."""
        place = tmp_path / "job.json"
        texts = [str(digit) * 300_000 for digit in range(8)]
        with ThreadPoolExecutor(len(texts)) as pool:
            for _done in pool.map(lambda text: write_text(place, text), texts * 5):
                assert place.read_text() in texts
        assert place.read_text() in texts
        assert os.listdir(tmp_path) == ["job.json"]

    def test_leftover(self, tmp_path: Path) -> None:
        """The longer half of a text that a killed process left behind is not in the new one."""
        (tmp_path / ".job.json.part").write_text("half" * 1000)
        write_text(tmp_path / "job.json", "whole")
        assert tree(tmp_path) == {"job.json": b"whole"}

    def test_folder_that_cannot(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file system that does not secure folders does not keep a file from being written."""
        secure = os.fsync

        def picky(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "Invalid argument")
            secure(descriptor)

        monkeypatch.setattr(os, "fsync", picky)
        write_text(tmp_path / "job.json", "text")
        assert tree(tmp_path) == {"job.json": b"text"}

    def test_whole_or_not(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that cannot be written to its end leaves the one that was there."""
        place = tmp_path / "job.json"
        write_text(place, "first")

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="is full; nothing incomplete was left"):
            write_text(place, "second")
        assert tree(tmp_path) == {"job.json": b"first"}


class World:
    """A service with a finished job, a client, and a place for its files."""

    def __init__(self, service: Emulator, client: XRTClient, place: Path) -> None:
        self.service = service
        self.client = client
        self.place = place
        self.job: Job = client.submit(REQUEST)
        self.naps: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Note a pause between two attempts; with 0, it is asked between two chunks whether to stop."""
        if seconds:
            self.naps.append(seconds)

    def download(self, form: ArchiveFormat = "tar.gz", **options: Any) -> ProductFile:
        """Fetch the image without waiting between attempts."""
        options = {"sleep": self.sleep, **options}
        job = options.pop("job", self.job)
        return download(self.client, job, Product.IMAGE, self.place, form, **options)

    def original(self, form: ArchiveFormat = "tar.gz") -> bytes:
        """Return what the service serves."""
        with self.client.open_file(self.job, Product.IMAGE, form) as remote:
            return b"".join(remote.chunks)

    def ranges(self) -> list[str | None]:
        """Return what part was asked for in each request for a file."""
        return [call.headers.get("Range") for call in self.service.calls("file")]

    def script(self, *lines: str) -> str:
        """Return a program that has `fetch`, which fetches the image; then come its own lines."""
        return "\n".join(
            (
                "import itertools, os, resource, shutil, signal, sys",
                "from pathlib import Path",
                "from prefect_xrt import archive, client, errors",
                "from prefect_xrt.protocol import Job",
                "from prefect_xrt.request import Product",
                f"job = Job.model_validate_json({self.job.model_dump_json()!r})",
                f"place = Path({str(self.place)!r})",
                "def fetch(form='tar.gz', **options):",
                f"    service = client.XRTClient({self.service.user_id!r}, {self.service.url!r})",
                "    return archive.download(service, job, Product.IMAGE, place, form, **options)",
                *lines,
            )
        )


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Make worlds, and end them."""
    with contextlib.ExitStack() as stack:

        def make(*faults: Fault, **options: Any) -> World:
            scenario = Scenario(default=Timeline.of((4,)), faults=faults, **options)
            service = stack.enter_context(Emulator(scenario, clock=lambda: 0.0))
            client = stack.enter_context(
                XRTClient(service.user_id, service.url, read_timeout_s=5, sleep=lambda _: None)
            )
            return World(service, client, tmp_path / "out")

        yield make


class TestDownload:
    @pytest.mark.parametrize("form", FORMATS)
    def test_each_format(self, form: ArchiveFormat, worlds: Callable[..., World]) -> None:
        """A bundle arrives whole, with its length and checksum, and nothing else is left but the checksum."""
        world = worlds()
        file = world.download(form)
        content = world.original(form)
        assert file.path.read_bytes() == content
        assert (file.job_id, file.product, file.size, file.kept) == (
            world.job.id,
            Product.IMAGE,
            len(content),
            False,
        )
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert sorted(os.listdir(world.place)) == [f"image.{form}", f"image.{form}.sha256"]

    def test_sha256sum(self, worlds: Callable[..., World]) -> None:
        """The checksum beside a file is what `sha256sum --check` reads."""
        world = worlds()
        world.download()
        command = ["sha256sum", "--check", "--strict", "image.tar.gz.sha256"]
        assert (
            subprocess.run(command, cwd=world.place, check=True, capture_output=True).stdout
            == b"image.tar.gz: OK\n"
        )

    @pytest.mark.parametrize("form", FORMATS)
    def test_unpacked(self, form: ArchiveFormat, worlds: Callable[..., World]) -> None:
        """Unpacked where asked, into a folder of the product's short name."""
        world = worlds()
        file = world.download(form, unpack=True)
        assert file.extracted_to == world.place / "image"
        assert (world.place / f"image/USERPROD_{world.job.id}/image/success.txt").is_file()

    @pytest.mark.parametrize("form", FORMATS)
    def test_unpacked_spectra(self, form: ArchiveFormat, worlds: Callable[..., World]) -> None:
        """A bundle that holds archives is unpacked; they stay as they are."""
        world = worlds()
        job = world.client.submit(REQUEST.model_copy(update={"image": None, "spectrum": Spectrum()}))
        download(world.client, job, Product.SPECTRUM, world.place, form, unpack=True)
        spectra = [path for path in (world.place / "spec").rglob("*.tar.gz") if tarfile.is_tarfile(path)]
        assert [path.name for path in spectra] == ["interval0.tar.gz"]

    def test_kept(self, worlds: Callable[..., World]) -> None:
        """This job's file that is there is verified and kept; nothing is fetched, but what is missing is unpacked."""
        world = worlds()
        first = world.download()
        again = world.download(unpack=True)
        assert again == first.model_copy(update={"kept": True, "extracted_to": world.place / "image"})
        assert len(world.service.calls("file")) == 1
        assert (world.place / "image").is_dir()

    @pytest.mark.parametrize("damage", ["cut", "flip", "checksum"])
    def test_kept_damaged(self, damage: str, worlds: Callable[..., World]) -> None:
        """This job's file that was damaged since is fetched again."""
        world = worlds()
        place = world.download("tar").path
        content = place.read_bytes()
        if damage == "cut":
            place.write_bytes(content[:1000])
        elif damage == "flip":
            place.write_bytes(content[:600] + b"\xff" + content[601:])
        else:
            side = place.with_name("image.tar.sha256")
            side.write_text(side.read_text().replace("  image", "0  image"))
        assert world.download("tar").kept is False
        assert place.read_bytes() == content

    @pytest.mark.parametrize("side", ["another job", "none", "nonsense", "blank", "binary"])
    def test_foreign(self, side: str, worlds: Callable[..., World]) -> None:
        """A file that is not known to be this job's is left alone, unless it is to be replaced."""
        world = worlds()
        world.place.mkdir()
        path = world.place / "image.tar.gz"
        path.write_bytes(b"mine")
        texts = {"another job": b"# 9 x\n00  image.tar.gz\n", "nonsense": b"a\nb\nc", "binary": b"\xff\xfe",
                 "blank": f"# {world.job.id} {world.job.url}\n\n".encode()}  # fmt: skip
        if side in texts:
            path.with_name("image.tar.gz.sha256").write_bytes(texts[side])
        with pytest.raises(OutputError, match="not of this job"):
            world.download()
        with pytest.raises(OutputError, match="not of this job"):
            refuse_foreign_files(world.place, [Product.IMAGE], "tar.gz")
        assert (path.read_bytes(), world.ranges()) == (b"mine", [])
        assert world.download(overwrite=True).kept is False
        assert path.read_bytes() == world.original()

    def test_foreign_folder(self, worlds: Callable[..., World]) -> None:
        """A folder that was there before any bundle was is not replaced unasked."""
        world = worlds()
        (world.place / "image").mkdir(parents=True)
        (world.place / "image" / "thesis.tex").write_text("mine")
        with pytest.raises(OutputError, match="not of this job"):
            world.download(unpack=True)
        with pytest.raises(OutputError, match="not of this job"):
            refuse_foreign_files(world.place, [Product.IMAGE], "tar.gz", unpack=True)
        refuse_foreign_files(world.place, [Product.IMAGE], "tar.gz")
        assert tree(world.place) == {"image": None, "image/thesis.tex": b"mine"}
        world.download(unpack=True, overwrite=True)
        assert not (world.place / "image" / "thesis.tex").exists()

    def test_overwrite(self, worlds: Callable[..., World]) -> None:
        """Where asked, a good file is fetched again."""
        world = worlds()
        world.download()
        assert world.download(overwrite=True).kept is False
        assert len(world.service.calls("file")) == 2

    @pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "not built again"])
    @pytest.mark.parametrize("added", [True, False], ids=["added to", "as unpacked"])
    def test_unpacked_by_another_job(self, replaced: bool, added: bool, worlds: Callable[..., World]) -> None:
        """What another job's bundle was unpacked to goes with it, unless somebody has added to it."""
        world = worlds()
        world.download(unpack=True)
        folder = world.place / "image"
        if added:
            (folder / "thesis.tex").write_text("mine")
        later = world.job.model_copy(update={"id": 9})
        if replaced:
            side = world.place / "image.tar.gz.sha256"
            side.write_text(side.read_text().replace(f"# {world.job.id} ", "# 9 "))
            world.download(overwrite=True)
            later = world.job
        remove_other_jobs(world.place, later)
        assert (world.place / "image.tar.gz").exists() == replaced
        assert folder.exists() == added

    def test_stopped(self, worlds: Callable[..., World]) -> None:
        """What its sleep raises ends a transfer, too, between two chunks; nothing of it stays."""
        world = worlds()

        def stop(seconds: float) -> None:
            raise KeyboardInterrupt(seconds)

        with pytest.raises(KeyboardInterrupt, match="0"):
            download(world.client, world.job, Product.IMAGE, world.place, sleep=stop)
        assert os.listdir(world.place) == []

    def test_missing(self, worlds: Callable[..., World]) -> None:
        """A product without files is told at once, and leaves nothing."""
        world = worlds(timelines={"image": Timeline.of((-1,))})
        with pytest.raises(ProductMissingError):
            world.download()
        assert (os.listdir(world.place), world.naps) == ([], [])

    @pytest.mark.parametrize("form", FORMATS)
    def test_bomb(self, form: ArchiveFormat, worlds: Callable[..., World]) -> None:
        """A bundle that would unpack beyond the limit is refused at once, and leaves nothing."""
        world = worlds()
        with pytest.raises(UnsafeArchiveError):
            world.download(form, max_unpacked_bytes=100)
        assert (os.listdir(world.place), len(world.service.calls("file"))) == ([], 1)


# A plain tar has no checksum of its contents: nothing tells that they were changed on the way.
PASSING = [
    (kind, form)
    for kind in (
        "truncated-file",
        "corrupt-file",
        "http-500",
        "http-503",
        "http-429",
        "html-200",
        "reset-before",
    )
    for form in FORMATS
    if (kind, form) != ("corrupt-file", "tar")
]


class TestTrouble:
    @pytest.mark.parametrize(("kind", "form"), PASSING)
    def test_passing(self, kind: str, form: ArchiveFormat, worlds: Callable[..., World]) -> None:
        """Trouble that passes costs attempts, not the file."""
        world = worlds(Fault("file", kind, times=3))
        file = world.download(form)
        assert (file.path.read_bytes(), len(world.naps)) == (world.original(form), 3)

    @pytest.mark.parametrize(
        ("kind", "error", "attempts"),
        [
            ("corrupt-file", ArchiveError, 5),
            ("truncated-file", ServiceUnreachableError, 7),
            ("http-503", ServiceUnreachableError, 7),
            ("html-200", AnswerError, 7),
        ],
    )
    def test_lasting(
        self, kind: str, error: type[XRTError], attempts: int, worlds: Callable[..., World]
    ) -> None:
        """Trouble that lasts is told after as many attempts as allowed, damage after five; nothing is left."""
        world = worlds(Fault("file", kind, times=-1), allow_range=False)
        with pytest.raises(error):
            world.download(max_failed_attempts=7)
        assert (os.listdir(world.place), len(world.service.calls("file"))) == ([], attempts)

    def test_an_hour(self, worlds: Callable[..., World]) -> None:
        """A service that fails for more than an hour costs waits that soon grow no more, not the file."""
        world = worlds(Fault("file", "http-503", times=60), Fault("file", "html-200", times=29))
        assert world.download().path.read_bytes() == world.original()
        assert world.naps == [2, 4, 8, 16, 32, *[60] * 84]

    def test_restarted_service(self, worlds: Callable[..., World]) -> None:
        """A service that is away altogether, and comes back, costs attempts, not the file."""
        world = worlds()
        gone = world.service
        gone.stop()

        def back(seconds: float) -> None:
            world.sleep(seconds)
            if seconds and len(world.naps) == 4:
                service = Emulator(gone.scenario, port=int(gone.origin.rpartition(":")[2]), clock=lambda: 0.0)
                stack.enter_context(service)
                assert world.client.submit(REQUEST).url == world.job.url

        with contextlib.ExitStack() as stack:
            assert world.download(sleep=back).path.read_bytes() == world.original()
        assert world.naps == [2, 4, 8, 16]

    def test_progress(self, worlds: Callable[..., World]) -> None:
        """Whatever is new starts the count of attempts again."""
        busy = Fault("file", "http-503")
        world = worlds(
            busy,
            Fault("file", "truncated-file", at_bytes=700),
            busy,
            Fault("file", "truncated-file", at_bytes=1),
            busy,
        )
        assert world.download(max_failed_attempts=3).path.read_bytes() == world.original()
        assert world.naps == [2, 2, 4, 2, 4]

    def test_no_progress(self, worlds: Callable[..., World]) -> None:
        """What was received before, and has to come again, is nothing new."""
        cuts = [Fault("file", "truncated-file", at_bytes=size) for size in (700, 50, 700, 50, 700)]
        world = worlds(*cuts, allow_range=False)
        with pytest.raises(ServiceUnreachableError):
            world.download(max_failed_attempts=4)
        assert world.naps == [2, 4, 8]

    @pytest.mark.parametrize(("local", "naps"), [(True, [2, 3, 3]), (False, [2, 4, 8])])
    def test_ceiling(
        self, local: bool, naps: list[float], worlds: Callable[..., World], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A service on this machine may be asked faster; another one may not."""
        world = worlds(Fault("file", "http-503", times=3))
        monkeypatch.setattr(XRTClient, "is_local", property(lambda _: local))
        world.download(ceiling_s=3)
        assert world.naps == naps

    def test_time_limit(self, worlds: Callable[..., World]) -> None:
        """A service that never recovers is given up in time, not after a last wait."""
        world = worlds(Fault("file", "http-503", times=-1))
        with pytest.raises(ServiceUnreachableError, match=r"within 100 s.*HTTP 503"):
            world.download(timeout_s=100, clock=lambda: sum(world.naps))
        assert (world.naps, os.listdir(world.place)) == ([2, 4, 8, 16, 32], [])

    def test_endless(self, worlds: Callable[..., World]) -> None:
        """A file that trickles in for ever is given up in time, by its name, and is not tried again."""
        world = worlds(Fault("file", "trickle", seconds=0.00001))
        ticks = itertools.count()
        with pytest.raises(ServiceUnreachableError, match=rf"image\.tar\.gz of .*{world.job.id}.* 100 s"):
            world.download(timeout_s=100, clock=lambda: next(ticks))
        assert (len(world.service.calls("file")), world.naps, os.listdir(world.place)) == (1, [], [])

    def test_options_for_all(self, worlds: Callable[..., World]) -> None:
        """What is said of attempts and time holds for each of several products."""
        world = worlds(Fault("file", "http-503", times=-1))
        _, problems = download_all(
            world.client,
            world.job,
            [Product.IMAGE],
            world.place,
            max_failed_attempts=4,
            ceiling_s=1,
            timeout_s=2,
            clock=lambda: sum(world.naps),
            sleep=world.sleep,
        )
        assert "within 2 s" in problems[Product.IMAGE].message
        assert world.naps == [1, 1]

    def test_trickle(self, worlds: Callable[..., World]) -> None:
        """A file that comes byte by byte comes all the same."""
        world = worlds(Fault("file", "trickle", seconds=0.00001))
        assert world.download().path.read_bytes() == world.original()

    def test_resumed(self, worlds: Callable[..., World]) -> None:
        """A broken transfer goes on where it stopped, if the file is still the same."""
        world = worlds(
            Fault("file", "truncated-file", at_bytes=700), Fault("file", "truncated-file", at_bytes=50)
        )
        content = world.download().path.read_bytes()
        assert world.ranges() == [None, "bytes=700-", "bytes=750-"]
        _, second, _ = world.service.calls("file")
        assert second.headers["If-Range"].startswith('"')
        assert second.status == 206
        assert content == world.original()

    def test_resumed_without_ranges(self, worlds: Callable[..., World]) -> None:
        """Where the service does not serve parts, a transfer starts again, and the file is right."""
        world = worlds(Fault("file", "truncated-file", at_bytes=700), allow_range=False)
        content = world.download().path.read_bytes()
        assert [call.status for call in world.service.calls("file")] == [200, 200]
        assert content == world.original()

    def test_changed_meanwhile(self, worlds: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that changed between two attempts is fetched from its start: no mixture of the two."""
        world = worlds(Fault("file", "truncated-file", at_bytes=700))
        open_file = world.client.open_file

        def changed(*arguments: Any, validator: str | None = None, **options: Any) -> Any:
            return open_file(*arguments, validator=validator and '"of before"', **options)

        monkeypatch.setattr(world.client, "open_file", changed)
        content = world.download().path.read_bytes()
        assert [call.status for call in world.service.calls("file")] == [200, 200]
        assert content == world.original()

    def test_restart_after_damage(self, worlds: Callable[..., World]) -> None:
        """What arrived whole but damaged is thrown away: the next attempt starts anew."""
        world = worlds(Fault("file", "corrupt-file"))
        world.download()
        assert world.ranges() == [None, None]

    def test_retry_after(self, worlds: Callable[..., World]) -> None:
        """The service's own word for when to come back is honoured, and an hour is left to the caller."""
        world = worlds(Fault("file", "http-429", retry_after=99), Fault("file", "http-429", retry_after=3600))
        with pytest.raises(ServiceUnreachableError) as caught:
            world.download()
        assert (world.naps, caught.value.retry_after_s) == ([99.0], 3600.0)

    def test_leftover(self, worlds: Callable[..., World]) -> None:
        """What a killed process left behind does no harm."""
        world = worlds()
        world.place.mkdir()
        (world.place / ".image.tar.gz.part").write_bytes(b"half" * 10**5)
        assert world.download().path.read_bytes() == world.original()
        assert sorted(os.listdir(world.place)) == ["image.tar.gz", "image.tar.gz.sha256"]

    @pytest.mark.parametrize("damaged", [False, True])
    def test_killed(self, damaged: bool, worlds: Callable[..., World]) -> None:
        """A process that was killed on the way goes on where it was, and what it had is verified like the rest."""
        world = worlds(Fault("file", "truncated-file", at_bytes=700))
        script = world.script("fetch(sleep=lambda s: s and os.kill(os.getpid(), signal.SIGKILL))")
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
        part = world.place / ".image.tar.gz.part"
        assert part.read_bytes() == world.original()[:700]
        if damaged:
            part.write_bytes(bytes(700))
        file = world.download()
        assert world.ranges() == [None, None, "bytes=700-", *[None] * damaged]
        assert file.path.read_bytes() == world.original()
        assert file.sha256 == hashlib.sha256(world.original()).hexdigest()
        assert sorted(os.listdir(world.place)) == ["image.tar.gz", "image.tar.gz.sha256"]

    @pytest.mark.parametrize(
        "reason", ["job", "changed", "half", "no validator", "none", "binary", "plain tar"]
    )
    def test_killed_with_another(self, reason: str, worlds: Callable[..., World]) -> None:
        """What is not known to be the beginning of the same file is thrown away."""
        world = worlds()
        form: ArchiveFormat = "tar" if reason == "plain tar" else "tar.gz"
        with world.client.open_file(world.job, Product.IMAGE, form) as remote:
            note = f"# {world.job.id} {world.job.url}\n{remote.validator}\n".encode()
        notes = {
            "job": note.replace(b"# ", b"# 9"),
            "changed": note.replace(b'"', b'"0', 1),
            "half": note[:-1],
            "no validator": note.replace(str(remote.validator).encode(), b""),
            "binary": b"\xff\n\n",
            "plain tar": note,
        }
        world.place.mkdir()
        (world.place / f".image.{form}.part").write_bytes(world.original(form)[:700])
        if reason in notes:
            (world.place / f".image.{form}.validator.part").write_bytes(notes[reason])
        asked = len(world.ranges())
        assert world.download(form).path.read_bytes() == world.original(form)
        assert world.ranges()[asked] == ("bytes=700-" if reason == "changed" else None)
        assert sorted(os.listdir(world.place)) == [f"image.{form}", f"image.{form}.sha256"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_killed_anywhere(self, overwrite: bool, worlds: Callable[..., World]) -> None:
        """Whenever a process is killed, the next one makes everything good, and nothing hidden is left."""
        world = worlds()
        script = world.script(
            "acts = {'open', 'os.mkdir', 'os.rename', 'os.remove', 'shutil.rmtree'}",
            "def fetch_until(last):",
            "    count = itertools.count(1)",
            "    def hook(act, given):",
            "        if act in acts and str(given[0]).startswith(str(place)) and next(count) == last:",
            "            os.kill(os.getpid(), signal.SIGKILL)",
            "    sys.addaudithook(hook)",
            f"    fetch(unpack=True, overwrite={overwrite})",
            "for last in itertools.count(1):",
            "    child = os.fork()",
            "    if not child:",
            "        fetch_until(last)",
            "        os._exit(0)",
            "    ended = os.waitpid(child, 0)[1] == 0",
            "    fetch(unpack=True)",
            "    print(ended, *sorted(os.listdir(place)))",
            f"    {'pass' if overwrite else 'shutil.rmtree(place)'}",
            "    if ended:",
            "        break",
        )
        if overwrite:
            world.download(unpack=True)
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        *killed, ended = done.stdout.splitlines()
        assert len(killed) > 20
        assert set(killed) == {"False image image.tar.gz image.tar.gz.sha256"}
        assert ended == "True image image.tar.gz image.tar.gz.sha256"

    def test_another_process(self, worlds: Callable[..., World]) -> None:
        """A file that another process is writing is left to it, with all that it has so far."""
        world = worlds()
        world.place.mkdir()
        part = world.place / ".image.tar.gz.part"
        part.write_bytes(b"half")
        with holding(world.place / "image.tar.gz"):
            with pytest.raises(OutputError, match="Another process is using"):
                world.download()
            assert tree(world.place) == {part.name: b"half", ".image.tar.gz.lock": b""}
        assert world.download().kept is False
        assert sorted(os.listdir(world.place)) == ["image.tar.gz", "image.tar.gz.sha256"]

    @pytest.mark.parametrize("where", ["place", "above"])
    def test_unwritable(self, where: str, worlds: Callable[..., World]) -> None:
        """A folder that cannot be made is told before anything is fetched."""
        world = worlds()
        world.place.write_bytes(b"a file")
        if where == "above":
            world.place /= "below"
        with pytest.raises(OutputError, match="cannot be written"):
            world.download()
        assert world.ranges() == []

    @pytest.mark.parametrize("unpack", [False, True])
    def test_disk_full(
        self, unpack: bool, worlds: Callable[..., World], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A full disk is told as that, and nothing incomplete is left."""
        world = worlds()
        if unpack:
            world.download()

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        class Full:
            """A stream on a full disk."""

            def __init__(self, stream: Any) -> None:
                self.stream = stream

            write = full

            def __getattr__(self, name: str) -> Any:
                return getattr(self.stream, name)

        if unpack:
            monkeypatch.setattr(archive.shutil, "copyfileobj", full)
        else:
            make = archive._Transfer.__init__
            monkeypatch.setattr(
                archive._Transfer,
                "__init__",
                lambda self, *given: make(self, *given[:-1], cast(Any, Full(given[-1]))),
            )
        before = tree(world.place) if unpack else {}
        with pytest.raises(OutputError, match="is full; nothing incomplete was left"):
            world.download(unpack=unpack)
        assert tree(world.place) == before

    def test_file_size_limit(self, worlds: Callable[..., World]) -> None:
        """A real refusal of the system in the middle of a file is told by name, and leaves nothing behind."""
        world = worlds(file_padding_bytes=2 * 10**6)
        script = world.script(
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
            "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))",
            "try:",
            "    fetch()",
            "except errors.OutputError as error:",
            "    print(error)",
        )
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        assert "cannot be written: File too large" in done.stdout
        assert os.listdir(world.place) == []


class TestMemory:
    @pytest.mark.parametrize("form", FORMATS)
    def test_large_file(self, form: ArchiveFormat, worlds: Callable[..., World]) -> None:
        """A bundle of 300 MB is fetched, verified and unpacked in much less memory than it has bytes."""
        world = worlds(file_padding_bytes=300 * 10**6)
        script = world.script(
            "def used():",
            "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss",
            f"client.XRTClient({world.service.user_id!r}, {world.service.url!r}).count_active_jobs()",
            "idle = used()",
            f"file = fetch({form!r}, unpack=True)",
            "print(file.size, used() - idle)",
        )
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        shutil.rmtree(world.place)
        size, grown_kib = map(int, done.stdout.split())
        assert size > 300 * 10**6
        assert grown_kib < 100 * 1024
