"""Hold `prefect_xrt.parameters` to account, with the official client as the judge of spelling."""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_xrt.errors import InvalidRequestError, RequestWarning
from prefect_xrt.parameters import (
    FIELD_OF_WIRE,
    PRODUCT_FLAGS,
    decode,
    describe_wire_name,
    encode,
    read_request,
    read_request_file,
)
from prefect_xrt.request import FIELD_PATHS, PRODUCT_FIELDS, Image, Product, ProductRequest

SAMPLES = Path(__file__).parent / "samples" / "requests"
WHOLE = ["request_fo_aqr_spectrum", "request_grb200416a_all", "request_grb200416a_light_curve"]
ADDRESS = "someone@example.org"
NOT_PARAMETERS = {"UserID", "api_name", "api_version"}
OWN = {
    "name": "GRB 200416A",
    "targets": ["00966554"],
    "ra_deg": 335.6985,
    "dec_deg": -7.5179,
    "centroid": False,
    "image": {"energies_kev": ["0.3-10"]},
}
SERVICE = {
    "name": "GRB 200416A",
    "targ": "00966554",
    "RA": 335.6985,
    "Dec": -7.5179,
    "cent": 0,
    "image": 1,
    "imen": "0.3-10",
}


def sample(name: str) -> dict[str, Any]:
    """Load a sample."""
    loaded: dict[str, Any] = json.loads((SAMPLES / f"{name}.json").read_text())
    return loaded


def parameters(mapping: dict[str, Any]) -> dict[str, Any]:
    """Leave the account and the version of the interface out."""
    return {name: value for name, value in mapping.items() if name not in NOT_PARAMETERS}


def typed(mapping: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Let 30, 30.0 and true be told apart."""
    return {name: (type(value).__name__, value) for name, value in mapping.items()}


def refusal(source: Any, **options: Any) -> InvalidRequestError:
    """Read what cannot be read, and return the error."""
    with pytest.raises(InvalidRequestError) as caught:
        read_request(source, **options)
    return caught.value


whole = st.integers(1, 10**9)
positive = whole | st.floats(1e-6, 1e9, allow_nan=False)
flag = st.booleans()
text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)
grades = st.sampled_from(["all", "0", "4"])
modes = st.sampled_from(["no", "pc", "wt", "both"])
methods = st.sampled_from(["simple", "iterative"])
observations = st.lists(
    st.from_regex(r"[0-9]{11}|[0-9]{1,9}-[0-9]{1,9}", fullmatch=True), min_size=1, max_size=3
)


def group(optional: dict[str, Any], **mandatory: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Make groups with the mandatory fields and some of the others."""
    return st.fixed_dictionaries(mandatory, optional=optional)


def merged(*groups: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Merge groups into one."""
    return st.tuples(*groups).map(lambda parts: {name: part[name] for part in parts for name in part})


def selections(*, hours: bool = False, mandatory: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    """Make every way to choose data."""
    ways: list[st.SearchStrategy[dict[str, Any]]] = [
        st.just({"which_data": "all"}),
        st.fixed_dictionaries({"observations": observations}),
        st.fixed_dictionaries({"observations": observations, "which_data": st.just("user")}),
    ]
    if not mandatory:
        ways.append(st.just({}))
    if hours:
        ways.append(st.fixed_dictionaries({"include_hours": positive, "which_data": st.just("hours")}))
        ways.append(st.fixed_dictionaries({"include_hours": positive}))
    return st.one_of(ways)


light_curves = merged(
    st.one_of(
        st.sampled_from([{"binning": "time"}, {"binning": "snapshot"}, {"binning": "obsid"}]),
        st.fixed_dictionaries(
            {"binning": st.just("counts"), "pc_counts": whole, "wt_counts": whole, "dynamic": flag}
        ),
    ),
    group(
        {
            "rate_factor": positive,
            "bin_factor": positive,
            "min_counts": whole,
            "min_snr": positive,
            "pc_bin_s": positive,
            "wt_bin_s": positive,
            "pc_max_gap_s": positive,
            "wt_max_gap_s": positive,
            "match_hardness_ratio": flag,
            "pc_hardness_bin_s": positive,
            "wt_hardness_bin_s": positive,
            "min_fractional_exposure": st.sampled_from([0, 0.0, 0.5, 1]),
            "min_energy_kev": st.sampled_from([0, 0.2, 0.3]),
            "max_energy_kev": st.sampled_from([10, 10.0, 12]),
            "soft_low_kev": st.sampled_from([0.3, 0.5]),
            "soft_high_kev": st.sampled_from([1, 1.5]),
            "hard_low_kev": st.sampled_from([1.5, 2, 1.51]),
            "hard_high_kev": st.sampled_from([7, 10.0]),
            "min_significance_sigma": positive,
            "grades": grades,
            "allow_upper_limits": modes,
            "allow_bayes": modes,
            "bayes_counts": positive,
            "bayes_snr": positive,
            "time_format": st.sampled_from(["s", "m", "sec", "mjd"]),
        }
    ),
    selections(),
)
time_slices = st.lists(
    st.fixed_dictionaries({"name": st.from_regex(r"[A-Za-z0-9]{1,8}", fullmatch=True), "gti": text}),
    min_size=1,
    max_size=4,
    unique_by=lambda piece: piece["name"],
)
spectra = merged(
    st.one_of(
        st.just({}),
        st.just({"has_redshift": False}),
        st.fixed_dictionaries({"redshift": st.floats(0, 10)}),
        st.fixed_dictionaries({"redshift": st.floats(0, 10), "has_redshift": st.just(True)}),
    ),
    group(
        {
            "do_not_fit": st.just(False),
            "galactic": flag,
            "models": st.lists(st.sampled_from(["powerlaw", "apec", "blackbody"]), min_size=1, max_size=3),
            "delta_fit_stat": st.floats(0.1, 100),
            "grades": grades,
            "stem": text,
        }
    )
    | st.just({"do_not_fit": True}),
    selections(hours=True),
    st.one_of(
        st.just({}),
        st.fixed_dictionaries({"time_slicing": st.sampled_from(["single", "snapshot", "obsid"])}),
        st.fixed_dictionaries({"time_slices": time_slices}),
    ),
).map(lambda part: {**part, "has_redshift": False} if part.get("do_not_fit") else part)
positions = merged(
    group(
        {
            "radius_arcsec": positive,
            "detect_or_centroid": st.sampled_from(["detect", "centroid"]),
            "centroid_method": methods,
        }
    ),
    selections(hours=True),
)
images = merged(
    group({"energies_kev": st.lists(st.sampled_from(["0.3-10", "0.3-1.5", "1.51-10"]), min_size=1)}),
    selections(),
)
searches = merged(
    group({"bands": st.sampled_from(["total", "all"]), "fit_stray_light": flag}), selections(mandatory=True)
)
products = group(
    {
        "light_curve": light_curves,
        "spectrum": spectra,
        "standard_position": st.just(True),
        "enhanced_position": st.just(True),
        "astrometric_position": group({"use_all_observations": flag}),
        "image": images,
        "source_detection": searches,
    }
).filter(bool)


def _placed(fields: dict[str, Any]) -> dict[str, Any]:
    if not {"standard_position", "enhanced_position", "astrometric_position"} & fields.keys():
        fields = {name: value for name, value in fields.items() if name != "position"}
    if not {"light_curve", "spectrum"} & fields.keys():
        fields = {name: value for name, value in fields.items() if name != "max_source_radius_px"}
    return fields


contents = merged(
    st.fixed_dictionaries({"name": text}),
    st.one_of(
        st.fixed_dictionaries({"targets": st.lists(st.from_regex(r"[0-9]{8}", fullmatch=True), min_size=1)}),
        st.just({"find_targets": True}),
    ),
    st.one_of(
        st.just({}), st.fixed_dictionaries({"t0_met_s": positive | st.just(0)}), st.just({"find_t0": True})
    ),
    st.one_of(
        st.fixed_dictionaries({"ra_deg": st.floats(0, 360), "dec_deg": st.floats(-90, 90)}),
        st.just({"find_position": True}),
    ),
    st.one_of(
        st.just({"centroid": False}),
        st.fixed_dictionaries(
            {"centroid": st.just(True), "position_error_arcmin": st.integers(1, 6) | st.floats(1, 6)}
        ),
    ),
    group(
        {
            "since_t0": flag,
            "centroid_method": methods,
            "max_centroid_tries": whole,
            "super_soft": flag,
            "use_sxps": flag,
            "wt_pileup_rate_counts_per_s": positive,
            "pc_pileup_rate_counts_per_s": positive,
            "max_source_radius_px": whole,
            "notify": flag,
            "position": positions,
        }
    ),
    products,
).map(_placed)
any_request = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


# What the official client calls the fields in Python; it turns these into wire names by itself.
CLIENT_GLOBALS = {
    "name": "name",
    "targets": "targ",
    "find_targets": "getTargs",
    "t0_met_s": "T0",
    "find_t0": "getT0",
    "since_t0": "SinceT0",
    "ra_deg": "RA",
    "dec_deg": "Dec",
    "find_position": "getCoords",
    "centroid": "centroid",
    "centroid_method": "centMeth",
    "max_centroid_tries": "maxCentTries",
    "position_error_arcmin": "posErr",
    "super_soft": "sss",
    "use_sxps": "useSXPS",
    "wt_pileup_rate_counts_per_s": "wtPupRate",
    "pc_pileup_rate_counts_per_s": "pcPupRate",
    "notify": "notify",
}
CLIENT_PARTS: dict[str, dict[str, str]] = {
    "light_curve": {
        "binning": "binMeth",
        "pc_counts": "pcCounts",
        "wt_counts": "wtCounts",
        "dynamic": "dynamic",
        "rate_factor": "rateFact",
        "bin_factor": "binFact",
        "min_counts": "minCounts",
        "min_snr": "minSNR",
        "pc_bin_s": "pcBinTime",
        "wt_bin_s": "wtBinTime",
        "pc_max_gap_s": "pcmaxGap",
        "wt_max_gap_s": "wtmaxGap",
        "match_hardness_ratio": "matchHR",
        "pc_hardness_bin_s": "pcHRBinTime",
        "wt_hardness_bin_s": "wtHRBinTime",
        "min_fractional_exposure": "minFracExp",
        "min_energy_kev": "minEnergy",
        "max_energy_kev": "maxEnergy",
        "soft_low_kev": "softLo",
        "soft_high_kev": "softHi",
        "hard_low_kev": "hardLo",
        "hard_high_kev": "hardHi",
        "min_significance_sigma": "minSig",
        "grades": "grades",
        "allow_upper_limits": "allowUL",
        "allow_bayes": "allowBayes",
        "bayes_counts": "bayesCounts",
        "bayes_snr": "bayesSNR",
        "time_format": "timeFormat",
        "observations": "useObs",
        "which_data": "whichData",
    },
    "spectrum": {
        "redshift": "redshift",
        "do_not_fit": "doNotFit",
        "has_redshift": "hasRedshift",
        "galactic": "galactic",
        "models": "models",
        "delta_fit_stat": "deltaFitStat",
        "grades": "grades",
        "stem": "specStem",
        "include_hours": "incHours",
        "observations": "useObs",
        "which_data": "whichData",
        "time_slicing": "timeslice",
    },
    "position": {
        "radius_arcsec": "posRadius",
        "include_hours": "incHours",
        "observations": "useObs",
        "which_data": "whichData",
        "detect_or_centroid": "detOrCent",
        "centroid_method": "centMeth",
    },
    "astrometric_position": {"use_all_observations": "useAllObs"},
    "image": {"energies_kev": "energies", "observations": "useObs", "which_data": "whichData"},
    "source_detection": {
        "observations": "useObs",
        "which_data": "whichData",
        "bands": "whichBands",
        "fit_stray_light": "fitStrayLight",
    },
}
# The official client accepts these two under a name that its own table of spellings does not hold, and so
# sends them unspelt; the service's page documents wtmaxgap and pcmaxgap.
DOCUMENTED = {"wtmaxGap": "wtmaxgap", "pcmaxGap": "pcmaxgap"}


@pytest.fixture(scope="module")
def client() -> Any:
    """Give the official client's class."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return pytest.importorskip("swifttools.ukssdc.xrt_prods").XRTProductRequest


def for_client(name: str, value: Any) -> Any:
    """Give a value as the official client takes it."""
    return ",".join(value) if isinstance(value, list) and name != "models" else value


def in_client(client: Any, content: dict[str, Any]) -> Any:
    """Ask the official client for the same, through its own functions; what it adds is up to it."""
    made = client(ADDRESS, silent=True)
    with contextlib.redirect_stdout(io.StringIO()):
        for field, name in CLIENT_GLOBALS.items():
            if field in content:
                made.setGlobalPars(**{name: for_client(field, content[field])})
        for product, field in PRODUCT_FIELDS.items():
            if field not in content:
                continue
            made.addProduct(product.value)
            part = content[field] if isinstance(content[field], dict) else {}
            names = CLIENT_PARTS.get(field, {})
            values = {names[inner]: for_client(inner, part[inner]) for inner in names if inner in part}
            if field == "spectrum" and "redshift" not in part and not part.get("do_not_fit"):
                values = {"hasRedshift": False, **values}  # It insists on being told.
            for index, piece in enumerate(part.get("time_slices", ()), start=1):
                values |= {f"rname{index}": piece["name"], f"gti{index}": piece["gti"], "timeslice": "user"}
            if field in ("light_curve", "spectrum") and "max_source_radius_px" in content:
                values["srcrad"] = content["max_source_radius_px"]
            if field.endswith("_position"):
                shared = content.get("position", {})
                values |= {
                    name: for_client(inner, shared[inner])
                    for inner, name in CLIENT_PARTS["position"].items()
                    if inner in shared
                }
            if values:
                made.setProductPars(product.value, **values)
    return made


def client_parameters(made: Any) -> dict[str, Any]:
    """Give what the official client would send, without what is not a parameter."""
    return {DOCUMENTED.get(name, name): value for name, value in parameters(made.getJSONDict()).items()}


class TestLikeTheOfficialClient:
    @any_request
    @given(content=contents)
    def test_sends_the_same(self, client: Any, content: dict[str, Any]) -> None:
        """Any request is spelt as the official client spells it: key by key, type by type."""
        made = in_client(client, content)
        assert typed(client_parameters(made)) == typed(encode(ProductRequest(**content)))

    @any_request
    @given(content=contents)
    def test_reads_what_it_sends(self, client: Any, content: dict[str, Any]) -> None:
        """What the official client holds, dumps or would send is read as the same request."""
        made = in_client(client, content)
        expected = ProductRequest(**content)
        for source in (made, made.getJSON(), json.dumps(made.getJSON()), made.getJSONDict()):
            assert expected == read_request(source, user_id=ADDRESS)

    @any_request
    @given(content=contents)
    def test_there_and_back(self, content: dict[str, Any]) -> None:
        """A request survives the service's spelling, and its own JSON, unchanged."""
        expected = ProductRequest(**content)
        wire = encode(expected)
        assert expected == decode(wire)
        assert expected == decode(json.loads(json.dumps(wire)))
        own = ProductRequest.model_validate_json(expected.model_dump_json())
        assert (expected, typed(wire)) == (own, typed(encode(own)))

    @pytest.mark.parametrize("name", WHOLE)
    def test_published_examples(self, client: Any, name: str) -> None:
        """A published example is sent as it is, with what the official client adds to it when it reads it."""
        example = sample(name)
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = parameters(client(ADDRESS, JSONVals=dict(example)).getJSONDict())
        if "detMeth" not in example:
            # Reading centMeth, the official client takes it for that of the positions as well.
            theirs.pop("detMeth", None)
        assert typed(theirs) == typed(encode(decode(example)))
        assert parameters(example).items() <= encode(decode(example)).items()

    @pytest.mark.parametrize("kind", ["all", "counts", "obsid", "snapshot", "time"])
    def test_published_fragments(self, kind: str) -> None:
        """Every parameter of the published light-curve fragments has a field and is sent as given."""
        fragment = sample(f"request_part_light_curve_{kind}")
        base = {**sample("request_grb200416a_light_curve"), "lc": 1}
        for name in ("binMeth", "wtcounts", "pccounts", "wtbin", "pcbin", "dynamic"):
            base.pop(name)
        sent = encode(decode({"binMeth": "obsid", **base, **fragment}))
        expected = {{"allowBayes": "allowB"}.get(name, name): value for name, value in fragment.items()}
        assert typed(expected).items() <= typed(sent).items()

    def test_every_parameter_has_a_field(self, client: Any) -> None:
        """Every parameter that the official client's tables list is known by its wire name."""
        product_vars = pytest.importorskip("swifttools.ukssdc.xrt_prods.productVars")
        listed = {client._globalPythonParsToJSONPars.get(name, name) for name in client._globalTypes}
        for product, types in product_vars.prodParTypes.items():
            spelt = product_vars.prodPythonParsToJSONPars[product]
            listed |= {spelt.get(name, name) for name in types} | set(spelt.values())
        assert len(listed) > 80
        assert [name for name in sorted(listed) if describe_wire_name(name) is None] == []


class TestTable:
    def test_every_field_is_sent(self) -> None:
        """Every field has exactly one parameter, and nothing else has."""
        groups = {"position", "spectrum.time_slices", *(f"spectrum.time_slices.{i}" for i in range(4))}
        assert set(FIELD_OF_WIRE.values()) == FIELD_PATHS - groups

    def test_names_are_told_apart(self) -> None:
        """A wire name leads to its field, an unknown one nowhere."""
        assert describe_wire_name("poserr") == "position_error_arcmin"
        assert describe_wire_name("pccounts") == "light_curve.pc_counts"
        assert describe_wire_name("doenh") == "enhanced_position"
        assert describe_wire_name("banana") is None
        assert set(PRODUCT_FLAGS) == set(Product)

    @any_request
    @given(content=contents)
    def test_no_bool_on_the_wire(self, content: dict[str, Any]) -> None:
        """True and false never reach the service: it knows 1 and 0."""
        wire = encode(ProductRequest(**content))
        values = [*wire.values(), *wire.get("models", [])]  # type: ignore[misc]
        assert {type(value) for value in values} <= {int, float, str, list}


class TestDecode:
    def test_numbers_as_text(self) -> None:
        """Numbers that come as text are read as numbers, 0/1 in any guise as yes and no."""
        read = decode(
            {**SERVICE, "RA": "335.6985", "maxCentTries": "10", "sss": "0", "notify": True, "SinceT0": "yes"}
        )
        assert (
            read.ra_deg,
            read.max_centroid_tries,
            read.super_soft,
            read.notify,
            read.since_t0,
        ) == (335.6985, 10, False, True, True)

    def test_unknown_parameters_are_kept_and_sent(self) -> None:
        """An unknown parameter is kept, sent, and named in one warning; true becomes 1."""
        with pytest.warns(RequestWarning, match="unknown to this project: brandNew, other") as caught:
            read = decode({**SERVICE, "brandNew": [1, True], "other": "x"})
        assert len(caught) == 1
        assert read.unknown == {"brandNew": [1, 1], "other": "x"}
        assert encode(read) == {**SERVICE, "brandNew": [1, 1], "other": "x"}

    def test_a_misspelt_parameter_gets_a_hint(self) -> None:
        """A name that is nearly right is pointed out, whether the request can be read or not."""
        with pytest.warns(RequestWarning, match=r"did you mean poserr \(position_error_arcmin\)\?"):
            decode({**SERVICE, "posserr": 1})
        error = refusal({**{k: v for k, v in SERVICE.items() if k != "image"}, "imagee": 1})
        assert "did you mean image" in error.message

    def test_numbers_for_words_are_older_spellings(self) -> None:
        """A number where a word is expected is kept and sent; a wrong word is an error."""
        with pytest.warns(RequestWarning, match=r"image.which_data \(imobs\)"):
            read = decode({**SERVICE, "imobs": 1, "centMeth": "3"})
        assert {"imobs": 1, "centMeth": "3"}.items() <= encode(read).items()
        assert dict(refusal({**SERVICE, "imobs": "banana"}).problems)["image.which_data"].startswith(
            "'banana'"
        )

    def test_older_names_are_read(self) -> None:
        """Older and odd names are read as the documented ones, which are sent."""
        older = {
            **SERVICE,
            "cent": 0,
            "lc": 1,
            "binMeth": "time",
            "allowBayes": "pc",
            "wtmaxGap": 5,
            "pcmaxGap": 6,
        }
        sent = encode(decode(older))
        assert {"allowB": "pc", "wtmaxgap": 5, "pcmaxgap": 6}.items() <= sent.items()
        assert not {"allowBayes", "wtmaxGap", "pcmaxGap"} & sent.keys()

    def test_two_spellings_of_one_parameter(self) -> None:
        """Where both spellings are given, neither is lost."""
        both = {**SERVICE, "cent": 0, "lc": 1, "binMeth": "time", "allowBayes": "pc", "allowB": "wt"}
        with pytest.warns(RequestWarning, match="allowBayes"):
            assert both == encode(decode(both))

    def test_products_that_are_not_asked_for(self) -> None:
        """Parameters of products that are not asked for are kept and sent, not checked."""
        idle = {"lcobs": "banana", "posRadius": 20, "srcrad": 30, "lc": 0}
        with pytest.warns(RequestWarning, match="of products that are not asked for"):
            read = decode({**SERVICE, **idle})
        assert read.products == (Product.IMAGE,)
        assert {"lcobs": "banana", "posRadius": 20, "srcrad": 30}.items() <= encode(read).items()
        assert "lc" not in encode(read)

    def test_a_group_is_no_flag(self) -> None:
        """A group of fields under the service's name of a product is an error, not half of each spelling."""
        error = refusal({**SERVICE, "lc": {"binning": "time"}, "cent": 0, "rname1": "a", "spec": [1]})
        assert {"light_curve", "spectrum"} == set(dict(error.problems))

    def test_what_makes_no_request(self) -> None:
        """All that is wrong is named, by field and by the service's name."""
        error = refusal({**SERVICE, "Dec": 95, "RA": "abc", "image": 2, "targ": "966554", "cent": 1})
        assert {"dec_deg", "ra_deg", "image", "targets.0", "position_error_arcmin"} == set(
            dict(error.problems)
        )
        assert "dec_deg (Dec): 95 is not between -90 and 90 degrees" in error.message
        assert "pydantic" not in error.message


class TestJobParameters:
    @pytest.mark.filterwarnings("ignore::prefect_xrt.errors.RequestWarning")
    @pytest.mark.parametrize(
        "saved",
        [sample("submit_reply_ok_gk_per")["jobPars"], sample("job_parameters_grb200416a")],
        ids=["gk_per", "grb"],
    )
    def test_nothing_is_lost(self, saved: dict[str, Any]) -> None:
        """Saved job parameters are sent again, but for what was sought and for flags that are off."""
        read = decode(saved)
        sent = encode(read)
        finders = {"getCoords", "getTargs", "getT0"}
        off = {flag for flag in PRODUCT_FLAGS.values() if saved.get(flag) == 0}
        expected = {
            {"sinceT0": "SinceT0"}.get(name, name): value
            for name, value in parameters(saved).items()
            if name not in finders | off
        }
        # The official client adds this one to a spectrum, too. A number may have come as text.
        assert sent.keys() - expected.keys() <= {"dchi"}
        assert expected.keys() <= sent.keys()
        assert [
            n for n in expected if sent[n] != expected[n] and float(str(sent[n])) != float(expected[n])
        ] == []
        assert read == decode(sent)

    def test_one_warning_says_what_was_kept(self) -> None:
        """The whole reply to a submission is read; one warning names what was kept, and repeats no value."""
        with pytest.warns(RequestWarning) as caught:
            read = read_request(sample("submit_reply_ok_gk_per"), user_id=None)
        (warning,) = caught
        assert "centroid_method (centMeth)" in str(warning.message)
        assert "USERPROD" not in str(warning.message)
        assert read.products == (Product.SPECTRUM,)
        assert (read.find_targets, read.find_t0, read.find_position) == (None, None, None)
        assert read.unchecked["targets"].startswith("{00010873")  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        "odd",
        [
            {"Dec": "up"},
            {"cent": "maybe"},
            {"imen": "soft"},
            {"imobs": "all", "useimobs": "1"},
            {"spec": 1, "specz": 0, "zval": "1.5", "cent": 0},
            {"spec": 1, "specz": 0, "cent": 0, "rname1": "", "gti1": ""},
            {"spec": 1, "specz": 0, "cent": 0, "timeslice": "single", "rname1": "a", "gti1": "0-1"},
            {"lc": 1, "cent": 0, "binMeth": 1, "pccounts": "lots", "soft1": 5, "soft2": "1"},
            {"name": 4},
        ],
    )
    def test_never_chokes(self, odd: dict[str, Any]) -> None:
        """An odd value in what the service returned is kept and sent as it came."""
        with pytest.warns(RequestWarning):
            read = decode({**SERVICE, "outdir": "USERPROD_1", **odd})
        sent = encode(read)
        assert {name: str(value) for name, value in odd.items()} == {
            name: re.sub(r"\.0$", "", str(sent[name])) for name in odd
        }

    def test_the_same_in_a_request_is_an_error(self) -> None:
        """The same odd value in someone's request is an error, unless it is said to be the service's."""
        assert "dec_deg" in dict(refusal({**SERVICE, "Dec": "up"}).problems)
        with pytest.warns(RequestWarning):
            assert read_request({**SERVICE, "Dec": "up"}, from_service=True).unchecked == {"dec_deg": "up"}

    def test_no_parameters_no_request(self) -> None:
        """Job parameters that are empty make no request, and the error says so."""
        assert "products" in dict(refusal({"OK": 1, "jobPars": {}}).problems)


class TestReadRequest:
    def test_a_request_is_a_request(self) -> None:
        """A request that is built already is returned as it is."""
        built = ProductRequest(**OWN)
        assert read_request(built) is built

    @pytest.mark.parametrize("spelling", [OWN, SERVICE], ids=["own", "service"])
    def test_all_forms(self, spelling: dict[str, Any]) -> None:
        """A mapping, text, bytes (with a mark or without) and text within text are read alike."""
        expected = encode(ProductRequest(**OWN))
        written = json.dumps(spelling)
        for source in (
            spelling,
            written,
            written.encode(),
            b"\xef\xbb\xbf" + written.encode(),
            json.dumps(written),
        ):
            assert expected == {"getTargs": 0, **encode(read_request(source))}

    def test_own_json_knows_no_other_fields(self) -> None:
        """In the project's own JSON an unknown field is an error with a hint."""
        error = refusal({**OWN, "lightcurve": {}})
        assert error.problems == (("lightcurve", "there is no such field; did you mean light_curve?"),)

    def test_two_spellings_do_not_mix(self) -> None:
        """A mixture of spellings is an error that names the field of each of the service's names."""
        error = refusal({**OWN, "poserr": 1, "lc": 1})
        assert [path for path, _ in error.problems] == ["lc", "poserr"]
        assert "is the service's spelling of position_error_arcmin" in error.message

    @pytest.mark.parametrize(
        "unknown", [{"Dec": 1}, {"lc": 1}, {"UserID": ADDRESS}, {"api_version": "1"}, {"x": True}]
    )
    def test_unknown_is_for_the_unknown(self, unknown: dict[str, Any]) -> None:
        """What has a field, the account, and true or false cannot be smuggled in as unknown parameters."""
        error = refusal({**OWN, "unknown": unknown})
        assert error.problems[0][0].startswith("unknown")
        assert ADDRESS not in error.message

    @pytest.mark.parametrize("spelling", [OWN, SERVICE], ids=["own", "service"])
    def test_the_account_comes_from_the_settings(self, spelling: dict[str, Any]) -> None:
        """An account in a request is not kept; a different one is warned of, and never shown."""
        with_account = {**spelling, "UserID": "other@example.org"}
        with pytest.warns(RequestWarning, match="another account") as caught:
            read = read_request(with_account, user_id=ADDRESS)
        assert "example.org" not in str(caught[0].message) + read.model_dump_json() + json.dumps(encode(read))
        assert read == read_request(with_account, user_id="Other@example.org ") == read_request(with_account)

    @pytest.mark.parametrize(
        ("source", "text"),
        [
            ('{"name": }', "is not JSON: Expecting value, line 1, column 10"),
            ("request.json", "to read a file, use read_request_file"),
            ("[]", "is not a JSON object but a list"),
            ("null", "is not a JSON object but null"),
            ('{"name": "x", "name": "y"}', "name is given more than once"),
            ('{"ra_deg": NaN}', "NaN is not a JSON number"),
            (b'{"name": "\xff"}', "is not UTF-8 text (byte 10)"),
            ("[" * 200_000, "is not JSON"),
            (" " * 1_000_001, "is larger than 1 MB"),
            (3, "is not a JSON object but a number"),
        ],
    )
    def test_what_is_not_a_request(self, source: Any, text: str) -> None:
        """What is not JSON, or no object, is told with its place."""
        assert text in refusal(source).message

    @pytest.mark.parametrize(
        ("change", "path"),
        [
            ({"dec_deg": 95}, "dec_deg"),
            ({"image": None}, "products"),
            ({"image": None, "products": []}, "products"),
            ({"light_curve": {"binning": "counts"}, "centroid": False}, "light_curve.pc_counts"),
            ({"unheard_of": {}}, "unheard_of"),
            ({"unknown": 3}, "unknown"),
            ({"unchecked": []}, "unchecked"),
            ({"image": {"energies_kev": 3}}, "image.energies_kev"),
            ({"targets": [966554]}, "targets.0"),
        ],
    )
    def test_named_errors(self, change: dict[str, Any], path: str) -> None:
        """A declination of 95, no product, a binning without counts, an unknown product: each by its path."""
        assert path in dict(refusal({**OWN, **change}).problems)


class TestReadRequestFile:
    def test_a_file(self, tmp_path: Path) -> None:
        """A request file is read in any form, by path or by name."""
        path = tmp_path / "request.json"
        path.write_text(json.dumps(OWN))
        assert read_request(OWN) == read_request_file(path) == read_request_file(str(path))

    def test_problems_name_the_file(self, tmp_path: Path) -> None:
        """What is wrong in a file is told with its path, and the problems are kept apart."""
        path = tmp_path / "request.json"
        path.write_text(json.dumps({**OWN, "dec_deg": 95}))
        with pytest.raises(InvalidRequestError, match=r"request\.json: dec_deg: 95 is not between") as caught:
            read_request_file(path)
        assert caught.value.problems == (("dec_deg", "95 is not between -90 and 90 degrees"),)

    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        """A missing file, a folder, another encoding and a huge file are each told by name."""
        (tmp_path / "latin").write_bytes('{"name": "é"}'.encode("latin-1"))
        (tmp_path / "huge").write_bytes(b" " * 1_000_001)
        for name, text in (
            ("nowhere", "there is no such file"),
            ("", "is a folder"),
            ("latin", "is not UTF-8"),
            ("huge", "is larger than 1 MB"),
        ):
            with pytest.raises(InvalidRequestError, match=text):
                read_request_file(tmp_path / name)


def test_an_encoded_request_is_its_own() -> None:
    """What is done to encoded parameters does not reach the request."""
    built = ProductRequest(
        name="x",
        targets=("00966554",),
        find_position=True,
        centroid=False,
        image=Image(),
        unknown={"x": [1]},
    )
    encode(built)["x"].append(2)  # type: ignore[union-attr]
    assert built.unknown == {"x": [1]}


@pytest.mark.parametrize("name", ["LightCurve", "LightCurv", "enhancedpos"])
def test_a_product_by_its_long_name(name: str) -> None:
    """A long name among the service's parameters asks for nothing there, and is an error with the right one."""
    with pytest.raises(InvalidRequestError, match=r"asks for nothing; the service's parameter for"):
        read_request({**SERVICE, name: 1})
