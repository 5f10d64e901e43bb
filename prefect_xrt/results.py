"""The science in a finished job's products, as data: positions, light curves, spectral fits, source lists.

Every result is frozen, knows where it came from (`Provenance`), and is the same whether the service answered
it or it was read out of a downloaded bundle. Positions, spectral fits and source lists are plain values;
arrays, tables and files need the extra `prefect-xrt[science]` and are made when they are first asked for.

Names of columns, parameters and datasets are the service's own, in the spelling of its interface version
1.12. What it leaves out, or answers as null, is a gap: NaN in an array, None elsewhere; a gap never moves
another value.

`answers` makes them of what the service says, `bundles` of files; `tables` knows them as rows and columns.

Source: the service's pages ReturnData and RetrieveProducts; swifttools 4.0.5 (`ukssdc.xrt_prods`, `ukssdc.data`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from prefect_xrt._version import __version__
from prefect_xrt.errors import ConfigurationError
from prefect_xrt.request import Product

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from astropy.coordinates import SkyCoord
    from astropy.table import QTable
    from astropy.timeseries import TimeSeries
    from numpy.typing import NDArray

__all__ = [
    "COLUMN_UNITS",
    "MET_SINCE_T0",
    "MJD",
    "PARAMETER_UNITS",
    "POSITION_PRODUCTS",
    "SOURCE_UNITS",
    "Curve",
    "LightCurve",
    "ModeFits",
    "ModelFit",
    "Position",
    "Provenance",
    "Result",
    "SourceList",
    "SpectralFits",
    "SpectrumFits",
    "Statistic",
    "Value",
    "read_result",
    "require",
    "write",
]

SOFTWARE = f"prefect-xrt {__version__}"

MET_SINCE_T0 = "MET since T0"
"""Times in seconds of mission elapsed time, counted from the job's T0; the service calls it MET."""

MJD = "MJD"
"""Times as Modified Julian Dates, in days: UTC, as swifttools documents it (`structures.md`, "TimeFormat", where
TDB is a time format of its own). The service's answers and files name no scale."""

POSITION_PRODUCTS = (Product.STANDARD_POS, Product.ENHANCED_POS, Product.ASTROM_POS)

COLUMN_UNITS: Mapping[str, str] = {
    "Rate": "ct / s",
    "RatePos": "ct / s",
    "RateNeg": "ct / s",
    "RateErr": "ct / s",
    "UpperLimit": "ct / s",
    "BGrate": "ct / s",
    "BGerr": "ct / s",
    "CtsInSrc": "ct",
    "BGInSrc": "ct",
    "Exposure": "s",
}
"""Units of the columns of light curves; those of Time, TimePos and TimeNeg follow from the time system
("s" or "d"), and a column that is in neither (FracExp, CorrFact, Sigma, SNR, HR, HRErr) has none ("")."""

PARAMETER_UNITS: Mapping[str, str] = {
    "NH": "cm-2",
    "GalacticNH": "cm-2",
    "kT": "keV",
    "ObsFlux": "erg cm-2 s-1",
    "UnabsFlux": "erg cm-2 s-1",
}
"""Units of the parameters and fluxes of fits, in astropy's and FITS' spelling; all others have none ("")."""

SOURCE_UNITS: Mapping[str, str] = {
    "x": "pix",
    "y": "pix",
    "ra": "deg",
    "ra_pos": "deg",
    "ra_neg": "deg",
    "dec": "deg",
    "dec_pos": "deg",
    "dec_neg": "deg",
    "err90": "arcsec",
    "l": "deg",
    "b": "deg",
    "C": "ct",
}
"""Units of the columns of source lists; all others have none ("")."""

_K = TypeVar("_K")
_V = TypeVar("_V")


class _Frozen(dict[_K, _V]):
    """A dict that refuses to change, and yet survives pickling."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a result never changes; build another one")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (dict(self),))


def _frozen(value: Any) -> Any:
    """Return the same with every mapping in it, and all that they hold, read-only."""
    if isinstance(value, Mapping):
        return _Frozen({key: _frozen(entry) for key, entry in value.items()})
    if isinstance(value, tuple):
        return tuple(map(_frozen, value))
    return value


class _Noun(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _freeze(cls, value: Any) -> Any:
        return _frozen(value)


class Provenance(_Noun):
    """Where a result came from; it travels with the result, and into every file that the result is written to."""

    job_id: int | None = Field(description="The JobID; None where a file does not tell.")
    job_name: str | None = Field(default=None, description="The name given to the object.")
    request: Mapping[str, JsonValue] = Field(
        default_factory=dict,
        description="The parameters as accepted (`jobPars`), in the service's spelling, without the account; "
        "of a light curve that was binned again, with those of the new binning.",
    )
    rebin_id: int | None = Field(
        default=None, description="The ID of the request by which a light curve was binned again."
    )
    service_api_version: str | None = Field(
        default=None, description="The `APIVersion` of the answer; None for what was read from a file."
    )
    retrieved_at: AwareDatetime = Field(description="When the service answered or the file was read, UTC.")
    source: str = Field(default="service", description='"service", or the path of the file that was read.')
    sha256: str = Field(
        pattern="^[0-9a-f]{64}$",
        description="Of the file; of a folder that a bundle was unpacked to, of what `sha256sum` prints of the "
        "files that were read, in order of their names; of an answer, of its canonical JSON: keys sorted, no "
        "spaces, ASCII, and the registered address, should it be in there, taken out.",
    )
    software: str = Field(default=SOFTWARE, description="What read it, with its version.")

    def __str__(self) -> str:
        job = "an unknown job" if self.job_id is None else f"job {self.job_id}"
        name = f" ({self.job_name})" if self.job_name else ""
        return (
            f"{job}{name}, read {self.retrieved_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC by {self.software}"
        )


class Position(_Noun):
    """A standard, enhanced or astrometric position, or the statement that there is none.

    That a product is complete and yet has no position is an ordinary answer of the service.

    Source: service page ReturnData; `retrieveStandardPos` and its kin in swifttools.
    """

    product: Product = Field(description="StandardPos, EnhancedPos or AstromPos.")
    found: bool = Field(description="Whether there is a position.")
    reason: str | None = Field(default=None, description="Why there is none; None where there is one.")
    ra_deg: float | None = Field(default=None, description="Right ascension, J2000, in degrees.")
    dec_deg: float | None = Field(default=None, description="Declination, J2000, in degrees.")
    err90_arcsec: float | None = Field(
        default=None, description="Radius of the error circle at 90 % confidence, in arcsec."
    )
    catalogue: str | None = Field(
        default=None, description='The catalogue that it was taken from, such as "2SXPS"; else None.'
    )
    provenance: Provenance

    def to_skycoord(self) -> SkyCoord:
        """Return it as an astropy `SkyCoord` (ICRS, which J2000 positions of this accuracy are taken for).

        Raises:
            ConfigurationError: There is no position, or the extra is not installed.
        """
        if not self.found:
            raise ConfigurationError(
                f"There is no {self.product.value} of job {self.provenance.job_id}: {self.reason}"
            )
        return require("astropy.coordinates").SkyCoord(ra=self.ra_deg, dec=self.dec_deg, unit="deg")

    def to_table(self) -> QTable:
        """Return one row with all that is known; NaN where there is no position.

        Raises:
            ConfigurationError: The extra is not installed.
        """
        from prefect_xrt import tables

        return tables.to_table(self)

    def _repr_png_(self) -> bytes | None:
        """Give a notebook its picture; None, for the text, where the extra is not installed."""
        from prefect_xrt import figures

        return figures.png_of(self)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [self.ra_deg, self.dec_deg, self.err90_arcsec]
        if self.found == (None in given) or (not self.found and given != [None] * 3):
            raise ValueError("a position that was found has coordinates and an error, and no other has")
        return self


@dataclass(frozen=True, eq=False)
class Curve:
    """One dataset of a light curve: one mode, one band, rates or upper limits.

    Attributes:
        name: The service's name of the dataset, such as "WT", "PCUL", "PCHard" or "WT_nosys_incbad".
        mode: "WT" or "PC"; a string, as the service may add others; None where the name does not tell.
        band: "total", "hard", "soft" or "hardness ratio".
        upper_limits: Whether it holds upper limits. They are in the column UpperLimit; such a dataset has
            no columns Rate, RatePos and RateNeg (the zeros that the service fills in there are no errors).
        systematics: Whether the systematic error of WT mode is in the errors; False for other modes, which
            have none.
        unreliable: Whether bins that the service flags as potentially unreliable (`incbad`) are in.
        columns: Name → values, float64 of shape (bins,), read-only, in the service's order. First Time,
            TimePos, TimeNeg (bin edges relative to Time; TimeNeg is negative or zero); then Rate with
            RatePos and RateNeg (1 sigma, RateNeg negative or zero), or RateErr, or UpperLimit, or HR and
            HRErr; then whatever else the service gives. NaN where it gives no value.
        units: Name of a column → unit in astropy's spelling, "" where it has none.
        obs_ids: Per bin the observation, 11 digits, or None where the service does not tell; None as a
            whole where there is no such column (it comes with the binnings by observation and snapshot).
        row_urls: Per bin what the service has in a column URL; None where there is no such column.
        file_url: Where the service has the same as a file, or None.
    """

    name: str
    mode: str | None
    band: Literal["total", "hard", "soft", "hardness ratio"]
    upper_limits: bool
    systematics: bool
    unreliable: bool
    columns: Mapping[str, NDArray[np.float64]]
    units: Mapping[str, str]
    obs_ids: tuple[str | None, ...] | None = None
    row_urls: tuple[str | None, ...] | None = None
    file_url: str | None = None

    def __post_init__(self) -> None:
        np = require("numpy")
        views = {name: np.asarray(column).view() for name, column in self.columns.items()}
        for view in views.values():
            view.flags.writeable = False
        object.__setattr__(self, "columns", _Frozen(views))
        object.__setattr__(self, "units", _Frozen(self.units))
        lengths = {len(column) for column in self.columns.values()}
        lengths |= {len(texts) for texts in (self.obs_ids, self.row_urls) if texts is not None}
        if len(lengths) != 1 or any(column.dtype != np.float64 for column in self.columns.values()):
            raise ValueError(f"the columns of {self.name} are not all of one length, and float64")

    def __len__(self) -> int:
        """Return the number of bins."""
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> NDArray[np.float64]:
        """Return a column."""
        return self.columns[column]

    def __eq__(self, other: object) -> bool:
        """Compare all there is; a gap equals a gap."""
        if not isinstance(other, Curve):
            return NotImplemented
        np = require("numpy")
        same = all(getattr(self, name) == getattr(other, name) for name in _CURVE_FACTS)
        return (
            same
            and list(self.columns) == list(other.columns)
            and all(
                np.array_equal(column, other.columns[name], equal_nan=True)
                for name, column in self.columns.items()
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrays forget on their way through pickle that they are read-only; making it anew does not.
        return (type(self), tuple(getattr(self, name) for name in self.__dataclass_fields__))

    def to_table(self) -> QTable:
        """Return an astropy `QTable`: a `Quantity` per column, ObsID as text, the rest in `meta`.

        `LightCurve.to_table` gives the same with T0, time system and provenance in `meta`.
        """
        from prefect_xrt import tables

        return tables.to_table(self)

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas frame with the same columns, ObsID as text; units and the rest in `attrs`."""
        from prefect_xrt import tables

        return tables.to_frame(self)


@dataclass(frozen=True)
class LightCurve:
    """All datasets of a light curve.

    Attributes:
        curves: Name of the dataset → dataset, in the service's order; empty where the service has none.
        t0_met_s: The reference time T0, in seconds of mission elapsed time; None where it is not told.
        binning: How it was binned, in the service's words ("Counts", "Time", "Snapshot", "Observation").
        time_system: `MET_SINCE_T0` or `MJD`, or `bundles.UNKNOWN_TIMES` where the files of a bundle do not
            tell; a string, as the service may add others.
        provenance: Where it came from.

    Source: service page ReturnData; `retrieveLightCurve` in swifttools.
    """

    curves: Mapping[str, Curve]
    t0_met_s: float | None
    binning: str | None
    time_system: str
    provenance: Provenance

    def __post_init__(self) -> None:
        object.__setattr__(self, "curves", _Frozen(self.curves))

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, name: str) -> Curve:
        """Return a dataset.

        Raises:
            ConfigurationError: There is none of that name.
        """
        if name not in self.curves:
            held = ", ".join(self.curves) or "none"
            raise ConfigurationError(f"There is no dataset {name!r} in this light curve; it has {held}.")
        return self.curves[name]

    def to_table(self, name: str) -> QTable:
        """Return a dataset as an astropy `QTable`, with T0, time system and provenance in `meta`.

        Raises:
            ConfigurationError: There is none of that name.
        """
        from prefect_xrt import tables

        return tables.to_table(self, name)

    def to_time_series(self, name: str, *, mjd_scale: str | None = None) -> TimeSeries:
        """Return a dataset as an astropy `TimeSeries`.

        Mission elapsed time becomes a `TimeDelta` since T0: what date T0 is cannot be told without the
        spacecraft's clock correction. An MJD becomes a `Time` in the scale that you name, as neither answers
        nor files do; between UTC and TT there are 69 s.

        Args:
            name: The dataset.
            mjd_scale: For light curves in MJD only: "utc", which swifttools documents that they are (see
                `MJD`), or another scale of astropy's.

        Raises:
            ConfigurationError: There is no such dataset, or the time system does not allow it.
        """
        from prefect_xrt import tables

        return tables.to_time_series(self, name, mjd_scale)

    def to_frame(self) -> pd.DataFrame:
        """Return all datasets in one pandas frame, one below the other, with the name in a column `dataset`."""
        from prefect_xrt import tables

        return tables.to_frame(self)

    def _repr_png_(self) -> bytes | None:
        """Give a notebook its picture; None, for the text, where the extra is not installed."""
        from prefect_xrt import figures

        return figures.png_of(self)


class Value(_Noun):
    """A fitted or frozen number."""

    value: float
    positive_error: float | None = Field(
        default=None, description="To be added; None where it was frozen or has no error."
    )
    negative_error: float | None = Field(
        default=None, description="To be added too: negative or zero, as the service gives it."
    )
    unit: str = Field(default="", description="In astropy's spelling.")


class Statistic(_Noun):
    """What was minimised, or tested."""

    name: str = Field(description='In the service\'s spelling, such as "Cstat" or "FitChi".')
    value: float


class ModelFit(_Noun):
    """The fit of one model to the spectrum of one mode.

    The errors are those for a change of the statistic by `SpectralFits.delta_statistic`.
    """

    fitted: bool | None = Field(
        default=True,
        description="Whether there is a fit; all else is empty if not. None where it cannot be told: an archive "
        "holds models and pictures, and no numbers of fits.",
    )
    parameters: Mapping[str, Value] = Field(
        default_factory=dict, description="NH, Gamma, kT, GalacticNH, ... → value."
    )
    fluxes: Mapping[str, Value] = Field(default_factory=dict, description="ObsFlux and UnabsFlux → value.")
    statistic: Statistic | None = Field(default=None, description="What was minimised.")
    test_statistic: Statistic | None = Field(default=None, description="What the fit was tested with.")
    dof: float | None = Field(default=None, description="Degrees of freedom.")
    image_url: str | None = Field(default=None, description="Where its picture is.")
    remarks: Mapping[str, str] = Field(
        default_factory=dict, description="What else the service says of it that is not a number."
    )


class ModeFits(_Noun):
    """The spectrum of one mode, and the fits to it."""

    mean_time_s: float | None = Field(default=None, description="Mean photon time since T0, in seconds.")
    exposure_s: float | None = Field(default=None, description="In seconds.")
    models: Mapping[str, ModelFit] = Field(
        default_factory=dict,
        description="Name of the model (PowerLaw, APEC, BlackBody) → fit; empty without.",
    )

    @property
    def fitted(self) -> bool | None:
        """Whether at least one model was fitted; None where it cannot be told."""
        return _any(fit.fitted for fit in self.models.values())


class SpectrumFits(_Noun):
    """One spectrum (a time interval), and the fits to it."""

    start_s: float | None = Field(default=None, description="Start since T0, in seconds.")
    stop_s: float | None = Field(default=None, description="Stop since T0, in seconds.")
    data_file_url: str | None = Field(default=None, description="Where its archive is.")
    modes: Mapping[str, ModeFits] = Field(default_factory=dict, description="WT or PC → its spectrum.")

    @property
    def fitted(self) -> bool | None:
        """Whether at least one model was fitted in one mode; None where it cannot be told."""
        return _any(mode.fitted for mode in self.modes.values())


def _any(answers: Iterable[bool | None]) -> bool | None:
    """Tell whether one is true; None where none is, and one cannot be told."""
    given = set(answers)
    return None if None in given and True not in given else True in given


class SpectralFits(_Noun):
    """All spectra of a job, with their fits.

    Source: service page ReturnData; `retrieveSpectralFits` in swifttools.
    """

    t0_met_s: float | None = Field(
        default=None, description="The reference time T0, in seconds of mission elapsed time."
    )
    galactic_nh: float | None = Field(
        default=None,
        description="Galactic column density in the direction of the source, in cm-2, not fitted.",
    )
    delta_statistic: float | None = Field(
        default=None, description="The change of the statistic that the errors stand for; 2.706 is 90 %."
    )
    spectra: Mapping[str, SpectrumFits] = Field(
        default_factory=dict, description="Name of the spectrum → its fits."
    )
    provenance: Provenance

    def to_table(self) -> QTable:
        """Return one row per spectrum, mode and model.

        The column `fitted` says "yes", "no", or "unknown" where it cannot be told. A spectrum without modes
        and a mode without models have a row of their own, with "no". Parameters and fluxes are `Quantity`
        columns by the service's names (`NH`, `NHPos`, `NHNeg`, ...), NaN where a fit has none.

        Raises:
            ConfigurationError: The extra is not installed.
        """
        from prefect_xrt import tables

        return tables.to_table(self)

    def _repr_html_(self) -> str | None:
        """Give a notebook its table; None, for the text, where the extra is not installed."""
        from prefect_xrt import figures

        return figures.html_of(self)


_WHOLE_LIMIT = 2**53
_Cell = Annotated[int, Field(strict=True, ge=-_WHOLE_LIMIT, le=_WHOLE_LIMIT)] | float | str | None


class SourceList(_Noun):
    """The sources that were detected, per band.

    Source: service page ReturnData; `retrieveSourceList` in swifttools.
    """

    bands: Mapping[str, tuple[Mapping[str, _Cell], ...]] = Field(
        default_factory=dict,
        description="Total, and Soft, Medium, Hard where all were asked for → the sources in the service's "
        "order, each name of a column → value. A column is of one kind throughout its band: whole numbers, "
        "numbers, or texts; None where the service gives no value.",
    )
    provenance: Provenance

    @property
    def units(self) -> Mapping[str, str]:
        """The unit of each column in astropy's spelling, "" where it has none."""
        return {
            name: SOURCE_UNITS.get(name, "")
            for sources in self.bands.values()
            for source in sources[:1]
            for name in source
        }

    def to_table(self, band: str) -> QTable:
        """Return one row per source, with units.

        Raises:
            ConfigurationError: That band was not searched, or the extra is not installed.
        """
        if band not in self.bands:
            held = ", ".join(self.bands) or "none"
            raise ConfigurationError(f"No sources were looked for in {band!r}; the bands are {held}.")
        from prefect_xrt import tables

        return tables.to_table(self, band)

    def _repr_html_(self) -> str | None:
        """Give a notebook its tables; None, for the text, where the extra is not installed."""
        from prefect_xrt import figures

        return figures.html_of(self)

    @field_validator("bands", mode="after")
    @classmethod
    def _even(cls, bands: Mapping[str, tuple[Mapping[str, _Cell], ...]]) -> Mapping[str, Any]:
        for band, sources in bands.items():
            if any(list(source) != list(sources[0]) for source in sources):
                raise ValueError(f"the sources of {band} do not all have the same columns")
            for name in sources[0] if sources else ():
                kinds = {isinstance(source[name], str) for source in sources if source[name] is not None}
                if len(kinds) > 1:
                    raise ValueError(f"{name} of {band} holds numbers and texts")
        return bands


Result = Position | LightCurve | SpectralFits | SourceList

_CURVE_FACTS = (
    *("name", "mode", "band", "upper_limits", "systematics", "unreliable", "units", "obs_ids", "row_urls"),
    "file_url",
)


def write(result: Result, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a result into one file, whole or not at all; nothing of it is lost.

    The ending names the format: `.ecsv`, `.fits`, or `.parquet`. In FITS each dataset (or band) is an
    extension; the others hold one table, with a column that names the dataset (or band). The provenance is
    in the file's metadata.

    Args:
        result: What to write.
        path: Where to.
        overwrite: Replace a file that is there.

    Returns:
        The path.

    Raises:
        ConfigurationError: The ending is none of these, or the extra is not installed.
        OutputError: It cannot be written, or a file is there.
    """
    from prefect_xrt.result_files import write as write_file

    return write_file(result, Path(path), overwrite=overwrite)


def read_result(path: str | Path) -> Result:
    """Read what `write` has written.

    Raises:
        ConfigurationError: The ending is none of `write`'s, or the extra is not installed.
        ResultFileError: It is not such a file, or is damaged.
    """
    from prefect_xrt.result_files import read as read_file

    return read_file(Path(path))


def require(module: str) -> ModuleType:
    """Import a package of the extra when it is first needed.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"This needs {module.partition('.')[0]}: run `pip install prefect-xrt[science]`."
        ) from error
