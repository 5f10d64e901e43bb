"""Made-up results for a job, the same at every look: what the retrieve endpoints and the archives agree on.

The numbers mean nothing. Their shapes follow the service's pages on data structures and on retrieving
products; the columns of a source list beyond those that service documents are left out.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from .validation import is_on, number

LC_COLUMNS = (
    *("Time", "TimePos", "TimeNeg", "Rate", "RatePos", "RateNeg", "FracExp", "BGrate", "BGerr"),
    *("CorrFact", "CtsInSrc", "BGInSrc", "Exposure", "Sigma", "SNR"),
)
_BAND_COLUMNS = ("Time", "TimePos", "TimeNeg", "Rate", "RateErr")
_HR_COLUMNS = ("Time", "TimePos", "TimeNeg", "HR", "HRErr")

_OBJECTS: Mapping[str, tuple[float, float, str, float]] = {
    "GRB 200416A": (335.6985, -7.5179, "00966554", 608713541.952),
    "GK PER": (52.8, 43.9043, "00010873,00010907,00030842", 124048802.40058),
    "FO AQR": (334.481, -8.3514, "00010873,00081637", 541232001.5),
}
_MET_OF_MJD = 51910.00074287037
_DAY_S = 86400.0
_UNRELIABLE_EVERY = 7


@dataclass(frozen=True)
class SkyObject:
    """What the service finds under a name."""

    ra_deg: float
    dec_deg: float
    targets: str
    t0_met_s: float


@dataclass(frozen=True)
class Position:
    """A position with its 90 % radius, in the texts that the service answers."""

    ra: str
    dec: str
    err90: str
    from_sxps: bool = False

    @property
    def sexagesimal(self) -> tuple[str, str]:
        """The same position as hours and degrees, minutes, seconds."""
        return _sexagesimal(float(self.ra) / 15.0), _sexagesimal(float(self.dec), signed=True)


@dataclass(frozen=True)
class Curve:
    """One light curve: its columns, its rows of texts and the file it stands in."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    file: str


def draw(*labels: object) -> float:
    """Draw a number from 0 up to 1 that depends on nothing but the labels."""
    digest = hashlib.blake2b("|".join(map(str, labels)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


def find_object(name: str) -> SkyObject:
    """Find coordinates, targets and reference time for a name; every name is found."""
    known = _OBJECTS.get(" ".join(name.upper().split()))
    if known:
        return SkyObject(*known)
    targets = ",".join(f"{10000 + int(draw(name, 'target', count) * 89999):08d}" for count in range(2))
    return SkyObject(
        round(draw(name, "ra") * 360, 4),
        round(math.degrees(math.asin(2 * draw(name, "dec") - 1)), 4),
        targets,
        round(2e8 + draw(name, "t0") * 5e8, 3),
    )


class Results:
    """Everything that can be asked of a finished job.

    Args:
        parameters: The job's parameters, resolved.
        url: Where its files are.
        observations: How many observations its target has.
        new: How many of them an earlier job did not have; they come after those, and change nothing of them.
    """

    def __init__(self, parameters: Mapping[str, object], url: str, observations: int, new: int = 0) -> None:
        self._parameters = parameters
        self._url = url
        found = find_object(str(parameters.get("name", "")))
        self.ra_deg = _number(parameters.get("RA"), found.ra_deg)
        self.dec_deg = _number(parameters.get("Dec"), found.dec_deg)
        self.t0 = _number(parameters.get("Tstart"), found.t0_met_s)
        self.targets = str(parameters.get("targ") or found.targets).strip("{}").split(",")
        self._seed = f"{parameters.get('name')}|{self.ra_deg}|{self.dec_deg}"
        self.observations = tuple(
            f"{self.targets[count % len(self.targets)].strip().zfill(8)}{count // len(self.targets):03d}"
            for count in range(observations)
        )
        self.new = new

    def position(self, product: str) -> Position:
        """Give the position of one of the three kinds."""
        spread = {"psf": 4e-4, "enh": 2e-4, "xastrom": 3e-4}[product]
        error = {"psf": 3.5, "enh": 1.7, "xastrom": 2.2}[product]
        ra = (self.ra_deg + spread * (draw(self._seed, product, "ra") - 0.5)) % 360
        dec = max(-90.0, min(90.0, self.dec_deg + spread * (draw(self._seed, product, "dec") - 0.5)))
        sxps = product != "enh" and str(self._parameters.get("useSXPS", "0")) not in ("0", "")
        return Position(f"{ra:.5f}", f"{dec:.5f}", f"{error + draw(self._seed, product, 'err'):.1f}", sxps)

    def curves(self, *, nosys: str = "no", incbad: str = "no") -> dict[str, Curve]:
        """Give the light curves by the names of their datasets.

        Args:
            nosys: "yes", "no" or "both", for the curves without the systematic error of WT mode.
            incbad: "yes", "no" or "both", for the curves with unreliable points.
        """
        curves: dict[str, Curve] = {}
        for bad in {"yes": (True,), "no": (False,)}.get(incbad, (False, True)):
            for pure in {"yes": (True,), "no": (False,)}.get(nosys, (False, True)):
                curves.update(self._mode("WT", pure=pure, bad=bad))
            curves.update(self._mode("PC", pure=False, bad=bad))
        return curves

    def light_curve_answer(self, *, nosys: str, incbad: str) -> dict[str, object]:
        """Give the light curves as the service answers them."""
        curves = self.curves(nosys=nosys, incbad=incbad)
        answer: dict[str, object] = {"Datasets": list(curves)}
        for name, curve in curves.items():
            answer[f"{name}Data"] = {
                "columns": list(curve.columns),
                "data": [list(row) for row in curve.rows],
                "URL": f"{self._url}/lc/{curve.file}",
            }
        answer["Binning"] = {
            "counts": "Counts",
            "time": "Time",
            "obsid": "Observation",
            "snapshot": "Snapshot",
        }.get(self._binning, "Unknown")
        answer["TimeFormat"] = "MJD" if self._in_days else "MET"
        answer["T0"] = self.t0
        return answer

    @property
    def _binning(self) -> str:
        return str(self._parameters.get("binMeth", "counts")).lower()

    @property
    def _bins_each(self) -> int:
        """How many bins an observation gives in each mode."""
        return {"obsid": 1, "snapshot": 2}.get(self._binning, 3)

    @property
    def _in_days(self) -> bool:
        return str(self._parameters.get("lctimetype", "s")).lower() in ("m", "mjd")

    def _mode(self, mode: str, *, pure: bool, bad: bool) -> dict[str, Curve]:
        ending = ("_nosys" if pure else "") + ("_incbad" if bad else "")
        rows = self._rows(mode, pure=pure, bad=bad)
        times = [row[:3] for row in rows]
        columns: tuple[str, ...] = LC_COLUMNS
        if self._binning in ("obsid", "snapshot"):
            columns = (*LC_COLUMNS, "ObsID")
            rows = [
                (*row, f"::ObsID={self.observations[count // self._bins_each].lstrip('0')}")
                for count, row in enumerate(rows)
            ]
        hard, soft, ratio = [], [], []
        for count, row in enumerate(rows):
            rate, share = float(row[3]), 0.4 + 0.2 * draw(self._seed, mode, "share", count)
            hard.append((*times[count], f"{rate * share:.6f}", f"{rate * share * 0.2:.6f}"))
            soft.append((*times[count], f"{rate * (1 - share):.6f}", f"{rate * (1 - share) * 0.2:.6f}"))
            ratio.append((*times[count], f"{share / (1 - share):.6f}", f"{share / (1 - share) * 0.28:.6f}"))
        file = f"{mode}HR{ending}.qdp"
        curves = {
            f"{mode}{ending}": Curve(columns, tuple(rows), f"{mode}CURVE{ending}.qdp"),
            f"{mode}Hard{ending}": Curve(_BAND_COLUMNS, tuple(hard), file),
            f"{mode}Soft{ending}": Curve(_BAND_COLUMNS, tuple(soft), file),
            f"{mode}HR{ending}": Curve(_HR_COLUMNS, tuple(ratio), file),
        }
        if mode == "PC":
            curves[f"PCUL{ending}"] = self._limits(rows[-1], columns, ending)
        return curves

    def _limits(self, last: tuple[str, ...], columns: tuple[str, ...], ending: str) -> Curve:
        start = float(last[0]) + 2 * float(last[1])
        width = float(last[1])
        values = dict(zip(columns, last, strict=True))
        values |= {"Time": f"{start + width:.3f}", "TimePos": f"{width:.3f}", "TimeNeg": f"{-width:.3f}"}
        values |= {"Rate": f"{float(last[3]) / 3:.6f}", "RatePos": "0", "RateNeg": "0", "SNR": "inf"}
        names = tuple("UpperLimit" if column == "Rate" else column for column in columns)
        return Curve(names, (tuple(values.values()),), f"PCUL{ending}.qdp")

    def _rows(self, mode: str, *, pure: bool, bad: bool) -> list[tuple[str, ...]]:
        count = self._bins_each * len(self.observations)
        old = count - self._bins_each * self.new
        first, last = (60.0, 900.0) if mode == "WT" else (600.0, 3.0e5)
        edges = [first * (last / first) ** (step / old) for step in range(count + 1)]
        rows = []
        for bin_, (low, high) in enumerate(pairwise(edges)):
            unreliable = bin_ % _UNRELIABLE_EVERY == 1
            if unreliable and not bad:
                continue
            rows.append(self._row(mode, bin_, low, high, pure=pure))
        return rows

    def _row(self, mode: str, bin_: int, low: float, high: float, *, pure: bool) -> tuple[str, ...]:
        middle = (low * high) ** 0.5
        rate = 90.0 * (middle / 60.0) ** -1.15 * (0.85 + 0.3 * draw(self._seed, mode, bin_))
        error = rate * (0.10 if pure else 0.16)
        exposure = (high - low) * (0.9 if mode == "WT" else 0.3)
        background = 0.002 + 0.004 * draw(self._seed, mode, "background", bin_)
        correction = 1.1 + 0.9 * draw(self._seed, mode, "correction", bin_)
        counts = max(1.0, round(rate * exposure / correction))
        scale, start = (_DAY_S, _MET_OF_MJD + self.t0 / _DAY_S) if self._in_days else (1.0, 0.0)
        digits = 8 if self._in_days else 3
        return (
            f"{start + middle / scale:.{digits}f}",
            f"{(high - middle) / scale:.{digits}f}",
            f"{(low - middle) / scale:.{digits}f}",
            f"{rate:.6f}",
            f"{error:.6f}",
            f"{-error:.6f}",
            f"{exposure / (high - low):.6f}",
            f"{background:.6f}",
            f"{background / 3:.6f}",
            f"{correction:.6f}",
            f"{counts:.1f}",
            f"{background * exposure:.6f}",
            f"{exposure:.6f}",
            f"{counts / (background * exposure + 1) ** 0.5:.6f}",
            f"{counts**0.5:.6f}",
        )

    def spectra(self) -> tuple[str, ...]:
        """Name the spectra that the request asks for."""
        slicing = str(self._parameters.get("timeslice", "single")).lower()
        if slicing == "obsid":
            return tuple(f"Obs_{observation}" for observation in self.observations)
        if slicing == "snapshot":
            return tuple(f"Snapshot_{count + 1}" for count in range(2 * len(self.observations)))
        named = [str(self._parameters.get(f"rname{count}") or "") for count in range(1, 5)]
        labels = [re.sub(r"\W", "", label, flags=re.ASCII) for label in named if label]
        return tuple(labels) if slicing == "user" and labels else ("interval0",)

    def spectral_modes(self, spectrum: str) -> tuple[str, ...]:
        """Name the modes for which a spectrum was made."""
        return ("WT", "PC") if spectrum == self.spectra()[0] else ("PC",)

    def models(self) -> tuple[str, ...]:
        """Name the models that are fitted; none where the request forbids it."""
        if is_on(self._parameters.get("doNotFit")):
            return ()
        asked = self._parameters.get("models")
        names = [str(name) for name in asked] if isinstance(asked, list) else []
        spelt = {"powerlaw": "PowerLaw", "apec": "APEC", "blackbody": "BlackBody"}
        return tuple(spelt.get(name.lower(), name) for name in names) or ("PowerLaw",)

    @staticmethod
    def plot_name(spectrum: str, mode: str, model: str) -> str:
        """Name the picture of a fit."""
        kind = {"PowerLaw": "", "APEC": "_apec", "BlackBody": "_bbody"}.get(model, f"_{model.lower()}")
        return f"{spectrum}{mode.lower()}{kind}_plot.gif"

    def spectral_answer(self) -> dict[str, object]:
        """Give the fits as the service answers them."""
        names = self.spectra()
        answer: dict[str, object] = {
            "T0": self.t0,
            "DeltaFitStat": _number(self._parameters.get("dchi"), 2.706),
            "GalNH_unfitted": self._galactic_nh,
            "rnames": list(names),
        }
        for count, name in enumerate(names):
            start = 100.0 + 5000.0 * count
            entry: dict[str, object] = {
                "DataFile": f"{self._url}/spec/{name}.tar.gz",
                "Start": start,
                "Stop": start + 3000.0,
                "Modes": list(self.spectral_modes(name)),
            }
            for mode in self.spectral_modes(name):
                entry[mode] = self._fits(name, mode, start)
            answer[name] = entry
        return answer

    @property
    def _galactic_nh(self) -> float:
        return round(1 + 9 * draw(self._seed, "nh"), 4) * 1e20

    def _fits(self, spectrum: str, mode: str, start: float) -> dict[str, object]:
        answer: dict[str, object] = {
            "MeanTime": start + 900.0 + 100.0 * draw(self._seed, spectrum, mode, "time"),
            "Exposure": 800.0 + 100.0 * draw(self._seed, spectrum, mode, "exposure"),
        }
        models = self.models()
        if not models:
            return {**answer, "NOFIT": 1}
        answer["Models"] = list(models)
        for model in models:
            answer[model] = self._fit(spectrum, mode, model)
        return answer

    def _fit(self, spectrum: str, mode: str, model: str) -> dict[str, object]:
        names = self.spectra()
        if len(names) > 1 and spectrum == names[-1]:
            return {"NOFIT": 1}

        def part(label: str) -> float:
            return draw(self._seed, spectrum, mode, model, label)

        fit: dict[str, object] = {}
        if is_on(self._parameters.get("galactic")) or is_on(self._parameters.get("specz")):
            fit["GalacticNH"] = self._galactic_nh
        nh, flux = (1 + part("nh")) * 1e21, (1 + 8 * part("flux")) * 1e-11
        index = "Gamma" if model == "PowerLaw" else "kT"
        value = 1.5 + part("index")
        fit |= {"NH": nh, "NHPos": nh * 0.1, "NHNeg": -nh * 0.1}
        if is_on(self._parameters.get("specz")):
            fit["Redshift_abs"] = _number(self._parameters.get("zval"), 0.0)
        fit |= {index: value, f"{index}Pos": value * 0.05, f"{index}Neg": -value * 0.05}
        fit |= {"ObsFlux": flux, "ObsFluxPos": flux * 0.06, "ObsFluxNeg": -flux * 0.06}
        fit |= {"UnabsFlux": flux * 1.3, "UnabsFluxPos": flux * 0.07, "UnabsFluxNeg": -flux * 0.07}
        fit |= {"Cstat": 400 + 80 * part("cstat"), "Dof": 430, "FitChi": 410 + 60 * part("chi")}
        fit["Image"] = f"{self._url}/spec/{self.plot_name(spectrum, mode, model)}"
        return fit

    def bands(self) -> tuple[str, ...]:
        """Name the bands in which sources were looked for."""
        every = str(self._parameters.get("detbands", "total")).lower() == "all"
        return ("Total", "Soft", "Medium", "Hard") if every else ("Total",)

    def sources(self, band: str) -> list[dict[str, str]]:
        """List the sources of one band; all values are texts."""
        return [self._source(band, count) for count in range(6 if band == "Total" else 3)]

    def _source(self, band: str, count: int) -> dict[str, str]:
        def part(label: str) -> float:
            return draw(self._seed, band, count, label) - 0.5

        ra, dec = (self.ra_deg + 0.2 * part("ra")) % 360, self.dec_deg * 0.999 + 0.2 * part("dec")
        longitude, latitude = _galactic(ra, dec)
        error = 2.2e-4 + 1e-4 * abs(part("error"))
        return {
            "sno": str(count + 1),
            "x": f"{500 + 300 * part('x'):.10f}",
            "y": f"{500 + 300 * part('y'):.10f}",
            "ra": f"{ra:.10f}",
            "ra_pos": f"{error:.14e}",
            "ra_neg": f"{-error:.14e}",
            "dec": f"{dec:.10f}",
            "dec_pos": f"{error:.14e}",
            "dec_neg": f"{-error:.14e}",
            "err90": f"{3.5 + abs(part('err90')):.13f}",
            "l": f"{longitude:.12f}",
            "b": f"{latitude:.12f}",
            "C": str(round(1200 * 0.5**count) + 12),
        }


def _number(value: object, otherwise: float) -> float:
    read = number(value)
    return otherwise if read is None else read


def _sexagesimal(value: float, *, signed: bool = False) -> str:
    hundredths = round(abs(value) * 360000)
    minutes, hundredths = divmod(hundredths, 6000)
    whole, minutes = divmod(minutes, 60)
    sign = ("-" if value < 0 else "+") if signed else ""
    return f"{sign}{whole:02d} {minutes:02d} {hundredths / 100:05.2f}"


def _galactic(ra_deg: float, dec_deg: float) -> tuple[float, float]:
    pole_ra, pole_dec, node = math.radians(192.85948), math.radians(27.12825), 122.93192
    ra, dec = math.radians(ra_deg) - pole_ra, math.radians(dec_deg)
    latitude = math.asin(
        math.sin(dec) * math.sin(pole_dec) + math.cos(dec) * math.cos(pole_dec) * math.cos(ra)
    )
    longitude = node - math.degrees(
        math.atan2(
            math.cos(dec) * math.sin(ra),
            math.sin(dec) * math.cos(pole_dec) - math.cos(dec) * math.sin(pole_dec) * math.cos(ra),
        )
    )
    return longitude % 360, math.degrees(latitude)
