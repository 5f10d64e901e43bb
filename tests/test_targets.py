"""Lists of sources are read whole, in each of their forms, or every bad row is named and nothing is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import Latitude, Longitude
from astropy.table import MaskedColumn, QTable, Table
from hypothesis import given
from hypothesis import strategies as st

from prefect_xrt import results
from prefect_xrt.errors import ConfigurationError, InvalidRequestError
from prefect_xrt.targets import Target, read_targets

GRB = ("GRB 200416A", 335.6985, -7.5179, ("00966554",))
BARE = ("Mrk 421", None, None, ())


def facts(targets: tuple[Target, ...]) -> list[tuple[object, ...]]:
    """Give what was read."""
    return [(target.name, target.ra_deg, target.dec_deg, target.target_ids) for target in targets]


def problems(sources: str | Path) -> dict[str, str]:
    """Give what is wrong with a list, by place."""
    with pytest.raises(InvalidRequestError) as caught:
        read_targets(sources)
    for place, text in caught.value.problems[:20]:
        assert f"{place}: {text}" in caught.value.message
    return dict(caught.value.problems)


class TestText:
    @pytest.mark.parametrize(
        "text",
        [
            "GRB 200416A, 335.6985, -7.5179, 00966554\nMrk 421",
            "\ufeff# my list\r\n\r\nGRB 200416A,335.6985,-7.5179,966554\r\n  Mrk  421 ,,\r\n",
            "GRB 200416A\t22:22:47.64\t-07:31:04.44\t00966554\nMrk 421\t\t",
            "GRB 200416A; 22h22m47.64s; -7d31m04.44s; 00966554\nMrk 421",
            "name,ra,dec,target\nGRB 200416A,22 22 47.64,−07 31 04.44,00966554\nMrk 421,,,",
            'comment,Dec (J2000),RA [deg],Source,Target ID\n"a, b",-7.5179,335.6985,GRB 200416A,966554\n,,nan,Mrk 421,',
        ],
        ids=["plain", "comments and blanks", "tabs", "semicolons", "header", "header in another order"],
    )
    def test_forms(self, text: str, tmp_path: Path) -> None:
        """The same list is read from each form, pasted and from a file."""
        assert facts(read_targets(text)) == [GRB, BARE]
        for ending in (".csv", ".TXT"):
            path = tmp_path / f"list{ending}"
            path.write_bytes(text.encode())
            assert facts(read_targets(f" {path}\n")) == facts(read_targets(path)) == [GRB, BARE]

    def test_several_target_ids(self) -> None:
        """Target IDs follow in columns of their own, or share a cell."""
        ids = ("00034014", "00966554", "00000001")
        assert read_targets("X, 1, 2, 34014, 966554, 1")[0].target_ids == ids
        assert read_targets("name,target\nX,34014 966554; 1")[0].target_ids == ids

    def test_place(self) -> None:
        """A source knows its line, and has a folder name of its own."""
        first, second = read_targets("# list\n\nMrk 421\nMRK 421")
        assert (first.place, second.place) == ("line 3", "line 4")
        assert first.folder != second.folder

    @pytest.mark.parametrize("name", ["Sgr A*", "1E 1740.7-2942", "SDSS J123456.78-012345.6", "Source"])
    def test_names(self, name: str) -> None:
        """What names hold is not taken for a header, a file or a position."""
        assert facts(read_targets(f"{name}, 12.5, 1")) == [(name, 12.5, 1.0, ())]
        if name != "Source":
            assert facts(read_targets(name)) == [(name, None, None, ())]

    @given(
        ra=st.floats(0, 360, exclude_max=True),
        dec=st.floats(-90, 90),
    )
    def test_sexagesimal_is_what_astropy_writes(self, ra: float, dec: float) -> None:
        """Sexagesimals as astropy writes them are the same place, south of the equator, too."""
        text = (
            f"X, {Longitude(ra * u.deg).to_string(u.hourangle, sep=':', precision=6)}, "
            f"{Latitude(dec * u.deg).to_string(u.deg, precision=6)}"
        )
        (found,) = read_targets(text)
        assert found.ra_deg is not None
        assert found.dec_deg is not None
        assert (found.ra_deg - ra + 180) % 360 - 180 == pytest.approx(0, abs=1e-8)
        assert found.dec_deg == pytest.approx(dec, abs=1e-8)


class TestTable:
    @pytest.mark.parametrize("ending", [".ecsv", ".vot", ".xml", ".fits"])
    def test_formats(self, ending: str, tmp_path: Path) -> None:
        """ECSV, VOTable and FITS, with gaps, and with target IDs that have become numbers."""
        gaps = [False, True]
        table = Table(
            {
                "flux": [1.0, np.nan],
                "Source_Name": ["GRB 200416A", "Mrk 421"],
                "RAJ2000": MaskedColumn([335.6985, 0.0], mask=gaps, unit="deg"),
                "DEJ2000": MaskedColumn([-7.5179, 0.0], mask=gaps),
                "target_id": MaskedColumn([966554, 0], mask=gaps),
            }
        )
        path = tmp_path / f"list{ending}"
        form = {".ecsv": "ascii.ecsv", ".fits": "fits"}.get(ending, "votable")
        table.write(path, format=form)
        assert facts(read_targets(path)) == [GRB, BARE]

    @pytest.mark.parametrize(
        ("ra", "dec"),
        [
            ([22.3799] * u.hourangle, [-7.5179] * u.deg),
            (Longitude([22.3799] * u.hourangle), Latitude([-7.5179 * 3600] * u.arcsec)),
            (["22:22:47.64"], ["-07:31:04.44"]),
        ],
        ids=["units", "angles", "sexagesimal"],
    )
    def test_units(self, ra: Any, dec: Any, tmp_path: Path) -> None:
        """Whatever unit a column has, it is turned into degrees; a pasted ECSV is one."""
        path = tmp_path / "list.ecsv"
        QTable({"name": ["GRB 200416A"], "ra": ra, "dec": dec, "target": ["00966554"]}).write(path)
        assert facts(read_targets(path)) == facts(read_targets(path.read_text())) == [GRB]

    def test_rows_are_named(self, tmp_path: Path) -> None:
        """What is wrong in a table is told by row and column."""
        path = tmp_path / "list.fits"
        Table({"name": ["a", "b", ""], "ra": [1.0, 400.0, 1.0], "dec": [1.0, 2.0, -91.0]}).write(path)
        assert list(problems(path)) == ["row 2, ra", "row 3, name", "row 3, dec"]

    @pytest.mark.parametrize(
        ("table", "told"),
        [
            ({"ra": [1.0], "dec": [2.0]}, "no column `name` among ra, dec"),
            ({"name": ["a"], "ra": [1.0] * u.s, "dec": [2.0]}, "the unit 's' of this column is no angle"),
            ({"name": ["a"], "ra": [[1.0, 2.0]], "dec": [2.0]}, "ra holds more than one value a row"),
        ],
        ids=["no name", "no angle", "arrays"],
    )
    def test_columns(self, table: dict[str, Any], told: str, tmp_path: Path) -> None:
        """Columns that cannot be used are named."""
        path = tmp_path / "list.ecsv"
        Table(table).write(path)
        assert any(told in text for text in problems(path).values())

    @pytest.mark.parametrize("ending", [".ecsv", ".vot", ".fits"])
    def test_damaged(self, ending: str, tmp_path: Path) -> None:
        """A file that is none of its format is told, and why."""
        path = tmp_path / f"list{ending}"
        path.write_text("nothing of the kind")
        (text,) = problems(path).values()
        assert text.startswith("cannot be read as ")

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A table needs the extra and says so; text does not."""

        def missing(module: str) -> None:
            raise ImportError(module)

        monkeypatch.setattr(results, "import_module", missing)
        with pytest.raises(ConfigurationError, match=r"prefect-xrt\[science\]"):
            read_targets(tmp_path / "list.fits")
        assert facts(read_targets("Mrk 421")) == [BARE]


class TestRefused:
    def test_all_bad_rows_at_once(self) -> None:
        """Every bad row is named with its line and column, and what is wrong there."""
        text = (
            "name,ra,dec,target\nok,1,2,\nok,3,4,\n,3,4,\nfar,360.5,-95,\nhalf,1,,\n"
            "word,north,12h00m00s,\nminutes,12:60:00,1,\nid,1,2,12345678901\n"
        )
        expected = {
            "line 3, name": "'ok' is also on line 2",
            "line 4, name": "is missing",
            "line 5, ra": "'360.5' is not between 0 and 360 degrees",
            "line 5, dec": "'-95' is not between -90 and 90 degrees",
            "line 6, dec": "is missing, with ra given",
            "line 7, ra": "'north' is neither degrees nor sexagesimal, such as 335.6985 or 22:22:47.6",
            "line 7, dec": "'12h00m00s' is neither degrees nor sexagesimal, such as -7.5179 or -07:31:04",
            "line 8, ra": "'12:60:00' has 60 or more minutes or seconds",
            "line 9, target": "'12345678901' is not a target ID of 8 digits, such as 00966554",
        }
        assert expected == problems(text)

    @pytest.mark.parametrize(
        ("sources", "place", "told"),
        [
            ("", "sources", "there is no source in the list"),
            ("# nothing\n\n , ,\n", "sources", "there is no source in the list"),
            ("GRB 200416A 335.6985 -7.5179", "line 1, name", "put commas between"),
            ("ra,dec\n1,2", "line 1", "a header without a column `name`"),
            ("name,RA (hours),dec\nX,1,2", "line 1, ra", "the unit 'hours' is not understood"),
            ('a\n"b', "line 2", "cannot be read"),
            ("nowhere/list.csv", "sources", "cannot be read: No such file"),
            ("nowhere/list.vot", "sources", "there is no such file"),
        ],
        ids=["empty", "no source", "no commas", "no name", "hours", "open quote", "no text", "no table"],
    )
    def test_list(self, sources: str, place: str, told: str) -> None:
        """A list that is none is refused with the reason."""
        assert told in problems(sources)[place]

    def test_not_a_text(self, tmp_path: Path) -> None:
        """Bytes that are no text are refused by the file's name."""
        path = tmp_path / "list.csv"
        path.write_bytes(b"\xff\xfe\x00M")
        assert problems(path) == {"sources": "is not a text in UTF-8"}

    def test_very_many(self) -> None:
        """A list that is wrong throughout does not fill the page; the error still holds all."""
        with pytest.raises(InvalidRequestError) as caught:
            read_targets("\n".join(f"X{n}, 1" for n in range(500)))
        assert len(caught.value.problems) == 500
        assert caught.value.message.endswith("; and 480 more")
        assert caught.value.message.count("; ") == 20
