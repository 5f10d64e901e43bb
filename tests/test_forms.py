"""The form shows itself well, all that is filled in reaches the service, and what is wrong is told by its titles."""

from __future__ import annotations

import inspect
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.utilities.callables import parameter_schema

from prefect_xrt import Product, XRTClient, attach_products, build_products
from prefect_xrt.emulator import Emulator
from prefect_xrt.errors import InvalidRequestError, RequestWarning
from prefect_xrt.forms import (
    ImageOptions,
    LightCurveOptions,
    PositionOptions,
    SourceOptions,
    SpectrumOptions,
    read_form,
)
from prefect_xrt.parameters import encode, read_request_file
from prefect_xrt.pipelines.decay import decay
from prefect_xrt.pipelines.monitor import monitor
from prefect_xrt.pipelines.one_target import one_target
from prefect_xrt.pipelines.survey import survey

SAMPLES = Path(__file__).parent / "samples" / "requests"
OPTIONS = {
    "light_curve": LightCurveOptions,
    "spectrum": SpectrumOptions,
    "position": PositionOptions,
    "image": ImageOptions,
    "source_detection": SourceOptions,
}
FIVE = {
    "name": "GRB 200416A",
    "target_ids": "00966554",
    "ra": "335.6985",
    "dec": "-7.5179",
    "products": ["LightCurve"],
}
EVERYTHING = {**FIVE, "products": list(Product)}
OWN_JSON = {
    "name": "GRB 200416A",
    "targets": ["00966554"],
    "ra_deg": 335.6985,
    "dec_deg": -7.5179,
    "centroid": False,
    "image": {"energies_kev": ["0.3-10"]},
}
UNITS = {
    "_s": ("(s)", "seconds"),
    "_kev": ("(keV)",),
    "_arcmin": ("(arcmin)",),
    "_arcsec": ("(arcsec)",),
    "_hours": ("(h)",),
}
GONE = None


def form(changes: dict[str, Any]) -> dict[str, Any]:
    """Fill in a form for everything, with some fields changed; those of a group by their path."""
    filled: dict[str, Any] = dict(EVERYTHING)
    for path, value in changes.items():
        group, _, name = path.partition(".")
        filled[group] = {**filled.get(group, {}), name: value} if name else value
    return {name: OPTIONS[name](**value) if name in OPTIONS else value for name, value in filled.items()}


def wire(**filled: Any) -> dict[str, Any]:
    """Spell a form for the service."""
    return encode(read_form(**filled))


def fields() -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each field of the flow's form as the UI gets it: its path and its schema."""
    schema = parameter_schema(one_target).model_dump()
    for name, field in schema["properties"].items():
        yield name, field
        group = schema["definitions"].get(field.get("$ref", "").rpartition("/")[2], {})
        yield from ((f"{name}.{inner}", entry) for inner, entry in group.get("properties", {}).items())


FIELDS = dict(fields())


class TestSchema:
    @pytest.mark.parametrize(("path", "field"), FIELDS.items(), ids=FIELDS)
    def test_shown(self, path: str, field: dict[str, Any]) -> None:
        """A field has a title for people, its unit, a plain description, and no tabs to choose its type from."""
        assert re.fullmatch(r"[A-Z].*", field["title"])
        assert "_" not in field["title"]
        assert re.fullmatch(r"[^`*_]+\.", field["description"], re.DOTALL)
        for ending, names in UNITS.items():
            if path.endswith(ending):
                assert any(unit in field["title"] for unit in names)
        assert "anyOf" not in field

    def test_order(self) -> None:
        """The five fields that are enough come first, and none is needed beside a request that is pasted."""
        schema = parameter_schema(one_target)
        by_place = sorted(schema.properties.items(), key=lambda field: field[1]["position"])
        assert list(FIVE) == [name for name, _ in by_place][:5]
        assert schema.required == []

    def test_choices(self) -> None:
        """What can be chosen is a choice; the products are a list of choices, of which there is one at least."""
        choices = {path for path, field in FIELDS.items() if "enum" in field}
        expected = {
            "centroid",
            "reuse",
            "cancel_job",
            "waiting",
            "light_curve.binning",
            "light_curve.time_format",
            "spectrum.time_slicing",
            "position.detect_or_centroid",
            "source_detection.bands",
        }
        assert expected == choices
        schema = parameter_schema(one_target).model_dump()
        products = schema["properties"]["products"]
        assert (products["default"], products["minItems"]) == (["LightCurve"], 1)
        assert [*Product] == schema["definitions"]["Product"]["enum"]

    def test_defaults(self) -> None:
        """The flow's defaults are those of `read_form`, which tells by them what was changed."""
        of_flow = inspect.signature(one_target.fn).parameters
        for name, parameter in inspect.signature(read_form).parameters.items():
            if name not in ("products", "request"):
                assert parameter.default == of_flow[name].default
        assert encode(read_form(**FIVE)) == wire(**{**FIVE, "products": of_flow["products"].default})


@pytest.mark.parametrize(
    "served",
    [one_target, survey, monitor, decay, build_products, attach_products],
    ids=lambda flow: flow.name,
)
def test_served(served: Any) -> None:
    """A flow that is served, or that a served one calls, still knows its parameters after Prefect pickled it."""
    needed = {"request": {}, "job_id": 1, "output_dir": "out", "sources": "Mrk 421"}
    given = {name: needed[name] for name in parameter_schema(served).required}
    again = cloudpickle.loads(cloudpickle.dumps(served))
    assert served.validate_parameters(given) == again.validate_parameters(given)


# What changes in the service's parameters, field by field.
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": " FO  Aqr\n"}, {"name": "FO Aqr"}),
    ({"target_ids": "00966554 00966555\n00966556,"}, {"targ": "00966554,00966555,00966556"}),
    ({"target_ids": " "}, {"targ": GONE, "getTargs": 1}),
    ({"ra": "22 22 47.64"}, {}),
    ({"ra": "10"}, {"RA": 10}),
    ({"dec": "-07 31 04.44"}, {}),
    ({"dec": -10.5}, {"Dec": -10.5}),
    ({"ra": "", "dec": ""}, {"RA": GONE, "Dec": GONE, "getCoords": 1}),
    ({"t0_met_s": "608713541"}, {"getT0": 0, "Tstart": 608713541}),
    ({"centroid": "iterative"}, {"centMeth": "iterative"}),
    ({"centroid": "no"}, {"cent": 0, "centMeth": GONE, "poserr": GONE}),
    ({"position_error_arcmin": 2.5}, {"poserr": 2.5}),
    (
        {"light_curve.binning": "obsid"},
        {"binMeth": "obsid", "pccounts": GONE, "wtcounts": GONE, "dynamic": GONE},
    ),
    (
        {"light_curve.binning": "time", "light_curve.pc_bin_s": 100, "light_curve.wt_bin_s": 10},
        {"binMeth": "time", "pcbin": 100, "wtbin": 10, "pccounts": GONE, "wtcounts": GONE, "dynamic": GONE},
    ),
    ({"light_curve.pc_counts": 25}, {"pccounts": 25}),
    ({"light_curve.wt_counts": 35}, {"wtcounts": 35}),
    ({"light_curve.dynamic": False}, {"dynamic": 0}),
    ({"light_curve.pc_bin_s": 2.51}, {"pcbin": 2.51}),
    ({"light_curve.wt_bin_s": 0.5}, {"wtbin": 0.5}),
    ({"light_curve.min_energy_kev": 0.5}, {"minen": 0.5}),
    ({"light_curve.max_energy_kev": 8}, {"maxen": 8}),
    ({"light_curve.time_format": "mjd"}, {"lctimetype": "mjd"}),
    ({"light_curve.observations": "00966554000, 0-500"}, {"lcobs": "user", "uselcobs": "00966554000,0-500"}),
    ({"spectrum.time_slicing": "snapshot"}, {"timeslice": "snapshot"}),
    (
        {"spectrum.time_slicing": "user", "spectrum.time_slices": [{"name": "early", "gti": "0-500"}]},
        {"timeslice": "user", "rname1": "early", "gti1": "0-500"},
    ),
    ({"spectrum.fit": False}, {"doNotFit": 1}),
    ({"spectrum.models": ["apec", "blackbody"]}, {"models": ["apec", "blackbody"]}),
    ({"spectrum.redshift": 0.0}, {"zval": 0.0, "specz": 1, "galactic": 1}),
    ({"spectrum.include_hours": 12}, {"specobs": "hours", "specobstime": 12}),
    ({"spectrum.observations": "00966554000"}, {"specobs": "user", "usespecobs": "00966554000"}),
    ({"position.radius_arcsec": 30}, {"posRadius": 30}),
    ({"position.detect_or_centroid": "centroid"}, {"detornot": "centroid"}),
    ({"position.include_hours": 12}, {"posobs": "hours", "posobstime": 12}),
    ({"position.observations": "00966554000"}, {"posobs": "user", "useposobs": "00966554000"}),
    ({"position.use_all_observations": True}, {"allxastrom": 1}),
    ({"image.energies_kev": "0.3-10, 1-4"}, {"imen": "0.3-10,1-4"}),
    ({"image.observations": "00966554000"}, {"imobs": "user", "useimobs": "00966554000"}),
    ({"source_detection.bands": "all"}, {"detbands": "all"}),
    ({"source_detection.fit_stray_light": True}, {"fitStrayLight": 1}),
    ({"source_detection.observations": "00966554000"}, {"detobs": "user", "usedetobs": "00966554000"}),
    ({"request": {"sss": 1, "femin": 0.1}}, {"sss": 1, "femin": 0.1}),
]


class TestFields:
    def test_five(self) -> None:
        """Five fields ask for a light curve as the service's own example does."""
        example = json.loads((SAMPLES / "request_grb200416a_light_curve.json").read_text())
        own = {"UserID", "Tstart", "pcbin", "wtbin"}
        asked = wire(**FIVE)
        assert {name: value for name, value in example.items() if name not in own}.items() <= asked.items()
        assert {name: value for name, value in asked.items() if name not in example} == {
            "getT0": 1,
            "getTargs": 0,
            "centMeth": "simple",
            "minen": 0.3,
            "maxen": 10,
            "lcobs": "all",
        }

    @pytest.mark.parametrize(("changes", "expected"), CHANGES, ids=[" ".join(row[0]) for row in CHANGES])
    def test_each(self, changes: dict[str, Any], expected: dict[str, Any]) -> None:
        """A field changes the parameters that it is about, and no other."""
        before, after = wire(**form({})), wire(**form(changes))
        changed = {
            name: after.get(name) for name in {**before, **after} if before.get(name) != after.get(name)
        }
        assert expected == changed

    def test_all_tried(self) -> None:
        """No field of the form is missing above."""
        tried = {path for changes, _ in CHANGES for path in changes} | {"products", *OPTIONS}
        of_request = set(inspect.signature(read_form).parameters)
        assert tried == {path for path in FIELDS if path.partition(".")[0] in of_request}

    @pytest.mark.parametrize("product", Product)
    def test_products(self, product: Product) -> None:
        """A product that is left out leaves nothing behind, but for what its siblings share."""
        flags = {"lc", "spec", "dopsf", "doenh", "doxastrom", "image", "sourceDet"}
        alone = wire(**{**FIVE, "products": [product]})
        rest = wire(**{**FIVE, "products": [other for other in Product if other is not product]})
        (flag,) = flags.intersection(alone)
        assert flag not in rest
        assert {**rest, **alone} == wire(**EVERYTHING)

    def test_sources_alone(self) -> None:
        """A search for sources alone needs neither a position nor a centroid, where the targets are known."""
        given = {"name": "field", "target_ids": "00966554", "products": ["SourceDet"]}
        assert wire(**given).keys().isdisjoint({"cent", "poserr", "RA", "Dec", "getCoords"})
        assert wire(**{**given, "target_ids": ""})["getCoords"] == 1

    def test_service(self, service: Callable[..., Emulator]) -> None:
        """The embedded service accepts a form with everything in it, and has it as it was meant."""
        emulator = service()
        changes = [
            "dec",
            "t0_met_s",
            "light_curve.dynamic",
            "spectrum.redshift",
            "position.use_all_observations",
            "image.energies_kev",
            "source_detection.bands",
            "request",
        ]
        rows = [row for row in CHANGES if " ".join(row[0]) in changes and row[1]]
        assert len(rows) == len(changes)
        wanted = read_form(**form({path: value for row, _ in rows for path, value in row.items()}))
        with XRTClient(emulator.user_id, emulator.url) as client:
            job = client.submit(wanted)
        asked = {name: value for _, row in rows for name, value in row.items()}
        assert asked.items() <= emulator.jobs[job.id].parameters.items()
        assert set(Product) == set(job.products)

    def test_unused(self) -> None:
        """Options of a product that is not asked for are not used, which a warning tells."""
        with pytest.warns(
            RequestWarning, match="Spectrum is changed, but not used: the products have no Spectrum"
        ):
            asked = wire(**FIVE, spectrum=SpectrumOptions(redshift=1.5))
        assert wire(**FIVE) == asked


def sexagesimal(value: float) -> tuple[str, str, str, str]:
    """Split an angle or a time into its sign, whole part, minutes and seconds."""
    tenths = round(abs(value) * 3600 * 1e5)
    whole, rest = divmod(tenths, 3600 * 10**5)
    minutes, seconds = divmod(rest, 60 * 10**5)
    return "-" if value < 0 else "", f"{whole:02}", f"{minutes:02}", f"{seconds / 1e5:08.5f}"


class TestPosition:
    @given(st.floats(0, 359.9999), st.floats(-89.9999, 89.9999))
    def test_round_trip(self, ra: float, dec: float) -> None:
        """What is written in hours and degrees, minutes and seconds is read back to a milliarcsecond."""
        read = read_form(
            **{
                **FIVE,
                "ra": " ".join(sexagesimal(ra / 15)[1:]),
                "dec": "{}{}:{}:{}".format(*sexagesimal(dec)),
            }
        )
        assert read.ra_deg is not None
        assert read.dec_deg is not None
        assert math.isclose(ra, read.ra_deg, abs_tol=1e-3 / 3600)
        assert math.isclose(dec, read.dec_deg, abs_tol=1e-3 / 3600)

    @pytest.mark.parametrize(
        ("ra", "dec"),
        [
            ("335.6985", "-7.5179"),
            ("335.6985", "\u22127.5179"),
            ("22 22 47.64", "-07 31 04.44"),
            ("22:22:47.64", "-07:31:04.44"),
            ("22h22m47.64s", "-07d31m04.44s"),
            ("22h 22m 47.64s", "-07d 31' 04.44\""),
            ("22h 22m 47.64s", "\u22127° 31′ 4.44″"),
            ("335d 41m 54.6s", "-07d31m04.44s"),
        ],
    )
    def test_notations(self, ra: str, dec: str) -> None:
        """The notations of circulars and catalogues all mean the same."""
        read = read_form(**{**FIVE, "ra": ra, "dec": dec})
        assert (read.ra_deg, read.dec_deg) == (335.6985, -7.5179)

    @pytest.mark.parametrize("dec", ["-00 30 00", "-0 30 0.0", "-0d30m00s"])
    def test_negative_zero(self, dec: str) -> None:
        """The sign of minus zero degrees is not lost."""
        assert read_form(**{**FIVE, "dec": dec}).dec_deg == -0.5

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("ra", "22 22"),
            ("ra", "22 62 10"),
            ("ra", "22 22 61"),
            ("ra", "335,6985"),
            ("ra", "25 00 00"),
            ("ra", "400"),
            ("ra", "nan"),
            ("ra", "-1"),
            ("ra", "GRB 200416A"),
            ("dec", "-7h31m04s"),
            ("dec", "91 00 00"),
            ("dec", "-7 31"),
        ],
    )
    def test_refused(self, path: str, text: str) -> None:
        """What could be read in two ways, or in none, is refused."""
        with pytest.raises(InvalidRequestError) as caught:
            read_form(**{**FIVE, path: text})
        assert [path] == [problem for problem, _ in caught.value.problems]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": " "}, "Name: is empty; fill it in, or paste a whole request as JSON"),
        (
            {"target_ids": "966554, 00966554000"},
            "Target IDs: '966554' is not a target ID of 8 digits, such as 00966554; "
            "'00966554000' is not a target ID of 8 digits, such as 00966554",
        ),
        (
            {"ra": "here"},
            "RA (J2000): 'here' is not a right ascension, such as 335.6985 (degrees) or 22 22 47.6 "
            "(hours, minutes, seconds)",
        ),
        ({"ra": ""}, "RA (J2000): is empty, though Dec (J2000) is filled in"),
        ({"dec": ""}, "Dec (J2000): is empty, though RA (J2000) is filled in"),
        ({"dec": "-95"}, "Dec (J2000): -95.0 is not between -90 and 90 degrees"),
        ({"products": []}, "Products: is empty; choose at least one"),
        (
            {"t0_met_s": "today"},
            "T0 (MET, in seconds): 'today' is not a number of seconds, such as 608713541",
        ),
        ({"position_error_arcmin": 9}, "Position error (arcmin): 9 is not between 1 and 6 arcmin"),
        (
            {"light_curve.binning": "time", "light_curve.wt_bin_s": 10},
            "Light curve › PC bin (s): is empty; binning by time needs it",
        ),
        (
            {"light_curve.min_energy_kev": 5, "light_curve.max_energy_kev": 3},
            "Light curve › Lowest energy (keV): 5 keV is not below “Highest energy (keV)” (3 keV)",
        ),
        (
            {"spectrum.time_slices": [{"name": "early", "gti": "0-500"}]},
            "Spectrum › Time slices: is given although “Spectra” is 'single'; use 'user', or leave it out",
        ),
        (
            {"spectrum.time_slicing": "user"},
            "Spectrum › Time slices: is missing; “Spectra” 'user' needs one to four named time slices",
        ),
        (
            {"position.include_hours": 12, "position.observations": "00966554000"},
            "Positions › Observations: is filled in, and so is Positions › First hours (h); use one of the two",
        ),
        (
            {"image.energies_kev": "10-0.3"},
            "Images › Energy bands (keV): '10-0.3' has its lower energy at or above its upper one",
        ),
        (
            {"request": {"pccounts": 20, "lc": 1, "getT0": 0}},
            "Request as JSON: pccounts has a field of its own: Light curve › Counts per PC bin; "
            "lc has a field of its own: Products; getT0 has a field of its own: T0 (MET, in seconds)",
        ),
        (
            {"request": {"super_soft": True}},
            "Request as JSON: super_soft is not the service's name; add parameters by the service's names, "
            "or paste a whole request, which has a name",
        ),
        ({"request": {"sss": 2}}, "Request as JSON: super_soft (sss): 2 is not true or false"),
        (
            {"request": OWN_JSON},
            "Request as JSON: is a whole request, since it has a name; either clear it, or leave as it was: "
            "Name, Target IDs, RA (J2000), Dec (J2000), Products",
        ),
        (
            {"name": "", "products": []},
            "Name: is empty; fill it in, or paste a whole request as JSON; Products: is empty; choose at least one",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_refused(changes: dict[str, Any], expected: str) -> None:
    """Everything that is wrong is told at once, on one line, by the titles that people see."""
    with pytest.raises(InvalidRequestError) as caught:
        read_form(**form(changes))
    assert expected == caught.value.message
    assert {path for path, _ in caught.value.problems} <= set(FIELDS)


class TestJSON:
    @pytest.mark.parametrize(
        "name",
        [
            "request_fo_aqr_spectrum",
            "request_grb200416a_all",
            "request_grb200416a_light_curve",
            "submit_reply_ok_gk_per",
        ],
    )
    def test_whole(self, name: str) -> None:
        """A request of the service's pages, and the reply to one, are enough when they are pasted."""
        path = SAMPLES / f"{name}.json"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RequestWarning)
            assert read_request_file(path) == read_form(request=json.loads(path.read_text()))

    def test_own_spelling(self) -> None:
        """So is a request in this project's spelling, whatever lies untouched in the form."""
        request = read_form(request=OWN_JSON, target_ids=" ", products=["LightCurve"])
        assert (request.name, request.products) == ("GRB 200416A", (Product.IMAGE,))

    def test_wrong(self) -> None:
        """What is wrong with it is told by its own names."""
        with pytest.raises(InvalidRequestError) as caught:
            read_form(request={**OWN_JSON, "image": {"energies_kev": ["10-0.3"]}})
        assert "Request as JSON: image.energies_kev.0: '10-0.3' has its lower energy" in caught.value.message
        assert [path for path, _ in caught.value.problems] == ["request"]

    def test_account(self) -> None:
        """An account in it is neither used nor kept, and a warning tells that Prefect keeps it in clear."""
        with pytest.warns(RequestWarning, match="holds a UserID"):
            assert "UserID" not in wire(request={**OWN_JSON, "UserID": "someone@example.org"})

    def test_unknown(self) -> None:
        """A parameter that nobody knows is added as it is, with a warning."""
        with pytest.warns(RequestWarning, match="unknown to this project: newPar"):
            assert wire(**FIVE, request={"newPar": 3}) == {**wire(**FIVE), "newPar": 3}
