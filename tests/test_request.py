"""Hold `prefect_xrt.request` to account."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from prefect_xrt import request as module
from prefect_xrt.request import (
    FIELD_PATHS,
    PRODUCT_FIELDS,
    AstrometricPosition,
    Image,
    LightCurve,
    PositionOptions,
    Product,
    ProductRequest,
    SourceDetection,
    Spectrum,
    TimeSlice,
    problems_of,
)

PLACE = {"name": "GRB 200416A", "targets": ("00966554",), "ra_deg": 335.6985, "dec_deg": -7.5179}
CENTROID = {"centroid": True, "position_error_arcmin": 1}
COUNTS = {"binning": "counts", "pc_counts": 20, "wt_counts": 30, "dynamic": True}


def problems(**fields: Any) -> dict[str, str]:
    """Try to build a wrong request, and return what is wrong with it."""
    with pytest.raises(ValidationError) as caught:
        ProductRequest(**fields)
    return dict(problems_of(caught.value))


def request(**fields: Any) -> ProductRequest:
    """Build a request for an object at a place, with a centroid."""
    return ProductRequest(**{**PLACE, **CENTROID, **fields})


class TestProducts:
    def test_products_have_one_order(self) -> None:
        """The products of a request come in the order of `Product`, however they were given."""
        built = request(
            source_detection=SourceDetection(which_data="all"),
            image=Image(),
            astrometric_position=AstrometricPosition(),
            enhanced_position=True,
            standard_position=True,
            spectrum=Spectrum(),
            light_curve=LightCurve(binning="obsid"),
        )
        assert tuple(Product) == built.products

    @pytest.mark.parametrize("field", [*PRODUCT_FIELDS.values()])
    def test_true_and_an_empty_group_ask_alike(self, field: str) -> None:
        """`true` and `{}` ask for a product with the service's defaults, or miss the same fields."""

        def outcome(value: object) -> object:
            try:
                return request(image=True, **{field: value}) if field != "image" else request(image=value)
            except ValidationError as error:
                return problems_of(error)

        assert outcome(True) == outcome({})
        assert outcome(True) != outcome({"banana": 1})

    @pytest.mark.parametrize("field", [*PRODUCT_FIELDS.values()])
    def test_false_and_null_ask_for_nothing(self, field: str) -> None:
        """`false` and `null` are the same as not asking for a product."""
        other = "image" if field != "image" else "standard_position"
        assert request(**{field: False, other: True}) == request(**{field: None, other: True})
        assert request(**{field: None, other: True}) == request(**{other: True})


class TestProblems:
    def test_all_problems_at_once(self) -> None:
        """Wrong fields, unknown fields and what does not fit together are reported in one go."""
        found = problems(
            name=" ",
            targets=("966554",),
            ra_deg=400,
            dec_deg=95,
            centroid=True,
            light_curve={"binning": "counts", "pc_counts": True, "softlow": 1},
            spectrum={"which_data": "user", "time_slices": [{"name": "a b", "gti": "0-100"}]},
            image={"energies_kev": ["0.3-10", "3-1"]},
            enhanced=True,
        )
        assert found == {
            "name": "' ' is not a text that says something",
            "targets.0": "'966554' is not a target ID of 8 digits, such as 00966554",
            "ra_deg": "400 is not between 0 and 360 degrees",
            "dec_deg": "95 is not between -90 and 90 degrees",
            "light_curve.pc_counts": "true is not a whole number",
            "light_curve.softlow": "there is no such field; did you mean soft_low_kev?",
            "spectrum.time_slices.0.name": "'a b' is not a label of letters and digits only",
            "image.energies_kev.1": "'3-1' has its lower energy at or above its upper one",
            "enhanced": "there is no such field; did you mean enhanced_position?",
            "position_error_arcmin": "is missing; with centroid, give how far off it can be: 1 to 6 arcmin",
            "spectrum.observations": "is missing; which_data 'user' needs the observations to use",
            "light_curve.wt_counts": "is missing; binning 'counts' needs the counts of a WT-mode bin",
            "light_curve.dynamic": (
                "is missing; binning 'counts' needs to know whether binning is dynamic (true or false)"
            ),
        }

    def test_parts_in_python_wait_for_the_request(self) -> None:
        """Parts that are built first do not hide the problems of the rest."""
        found = problems(
            name="x", light_curve=LightCurve(binning="counts"), source_detection=SourceDetection()
        )
        assert {
            "targets",
            "ra_deg",
            "dec_deg",
            "centroid",
            "light_curve.pc_counts",
            "light_curve.wt_counts",
            "light_curve.dynamic",
            "source_detection.which_data",
        } == set(found)

    @pytest.mark.parametrize(
        ("fields", "path", "text"),
        [
            ({"position_error_arcmin": 0.5}, "position_error_arcmin", "0.5 is not between 1 and 6 arcmin"),
            ({"position_error_arcmin": 7}, "position_error_arcmin", "7 is not between 1 and 6 arcmin"),
            ({"position_error_arcmin": None}, "position_error_arcmin", "is missing"),
            ({"targets": ()}, "targets", "is missing"),
            ({"targets": (), "find_targets": False}, "targets", "is missing"),
            ({"find_targets": True}, "targets", "give one of the two"),
            ({"find_position": True}, "ra_deg", "give one of the two"),
            ({"t0_met_s": 1.5, "find_t0": True}, "t0_met_s", "give one of the two"),
            ({"ra_deg": None}, "ra_deg", "is missing, with dec_deg given"),
            ({"ra_deg": None, "dec_deg": None}, "dec_deg", "is missing; give the position"),
            ({"ra_deg": float("nan")}, "ra_deg", "nan is not a finite number"),
            ({"ra_deg": True}, "ra_deg", "true is not a number"),
            ({"ra_deg": "335.7"}, "ra_deg", "'335.7' is not a number"),
            ({"t0_met_s": -1}, "t0_met_s", "-1 is not 0 seconds or more"),
            ({"max_centroid_tries": 2.5}, "max_centroid_tries", "2.5"),
            ({"centroid": 1}, "centroid", "1 is not true or false"),
            ({"centroid_method": "simpel"}, "centroid_method", "did you mean simple?"),
            ({"image": None}, "products", "no product is asked for"),
            ({"image": 3}, "image", "3 is not a group of fields"),
            ({"light_curve": True}, "light_curve.binning", "is missing; choose"),
            ({"light_curve": {**COUNTS, "pc_counts": 0}}, "light_curve.pc_counts", "0 is not 1 or more"),
            (
                {"light_curve": {**COUNTS, "pc_bin_s": 0}},
                "light_curve.pc_bin_s",
                "0 is not more than 0 seconds",
            ),
            ({"light_curve": {**COUNTS, "which_data": "user"}}, "light_curve.observations", "is missing"),
            ({"light_curve": {**COUNTS, "which_data": "hours"}}, "light_curve.which_data", "is not one of"),
            (
                {"light_curve": {**COUNTS, "soft_low_kev": 2, "soft_high_kev": 2}},
                "light_curve.soft_low_kev",
                "not below",
            ),
            (
                {"light_curve": {**COUNTS, "min_energy_kev": 1, "hard_low_kev": 0.5}},
                "light_curve.hard_low_kev",
                "below min",
            ),
            (
                {"light_curve": {**COUNTS, "max_energy_kev": 5, "hard_high_kev": 6}},
                "light_curve.hard_high_kev",
                "above max",
            ),
            (
                {"light_curve": {**COUNTS, "min_energy_kev": 5, "max_energy_kev": 5}},
                "light_curve.min_energy_kev",
                "not below",
            ),
            ({"light_curve": COUNTS, "centroid": None}, "centroid", "is missing"),
            ({"spectrum": True, "centroid": None}, "centroid", "is missing"),
            ({"spectrum": {"has_redshift": True}}, "spectrum.redshift", "is missing"),
            (
                {"spectrum": {"has_redshift": False, "redshift": 1}},
                "spectrum.redshift",
                "leave one of the two out",
            ),
            ({"spectrum": {"redshift": -1}}, "spectrum.redshift", "-1 is not more than -1"),
            ({"spectrum": {"which_data": "hours"}}, "spectrum.include_hours", "is missing"),
            (
                {"spectrum": {"which_data": "all", "observations": ["1"]}},
                "spectrum.observations",
                "use 'user'",
            ),
            ({"spectrum": {"models": ["gauss"]}}, "spectrum.models.0", "'gauss' is not one of"),
            ({"spectrum": {"time_slicing": "user"}}, "spectrum.time_slices", "is missing"),
            (
                {"spectrum": {"time_slicing": "obsid", "time_slices": [{"name": "a", "gti": "0-1"}]}},
                "spectrum.time_slices",
                "use 'user'",
            ),
            (
                {"spectrum": {"time_slices": [{"name": f"s{i}", "gti": "0-1"} for i in range(5)]}},
                "spectrum.time_slices",
                "has 5 entries; there can be 4 at most",
            ),
            (
                {"spectrum": {"time_slices": [{"name": "a", "gti": "0-1"}, {"name": "a", "gti": "1-2"}]}},
                "spectrum.time_slices",
                "have the same name",
            ),
            ({"spectrum": {"time_slices": [{"name": "a"}]}}, "spectrum.time_slices.0.gti", "is missing"),
            ({"source_detection": True}, "source_detection.which_data", "is missing"),
            ({"position": PositionOptions(radius_arcsec=5)}, "position", "is of no use without a position"),
            ({"max_source_radius_px": 30}, "max_source_radius_px", "is of no use"),
            ({"unknown": {"x": [True]}}, "unknown", "write 1 or 0"),
            ({"unknown": {"x": float("inf")}}, "unknown", "not finite"),
            ({"unchecked": {"banana": 1}}, "unchecked.banana", "there is no such field"),
            ({"unchecked": {"dec_deg": "95"}}, "unchecked.dec_deg", "has a value of its own"),
        ],
    )
    def test_what_cannot_be_asked(self, fields: dict[str, Any], path: str, text: str) -> None:
        """A wrong request cannot be built, and the message names the field and what is wrong with it."""
        found = problems(**{**PLACE, **CENTROID, "image": True, **fields})
        assert text in found[path]

    def test_no_false_alarm_beside_a_wrong_field(self) -> None:
        """A field that is given but wrong is not reported as missing as well."""
        wrong = {**COUNTS, "pc_counts": "many", "binning": "counts"}
        found = problems(**{**PLACE, **CENTROID, "position_error_arcmin": "one", "light_curve": wrong})
        assert {"position_error_arcmin", "light_curve.pc_counts"} == set(found)

    def test_no_page_no_input(self) -> None:
        """The error as printed holds no link to pydantic and repeats nothing but the value at fault."""
        with pytest.raises(ValidationError) as caught:
            ProductRequest.model_validate({**PLACE, "dec_deg": 95, "UserID": "someone@example.org"})
        text = str(caught.value)
        assert "95 is not between -90 and 90 degrees" in text
        assert "pydantic.dev" not in text
        assert "example.org" not in text

    def test_braces_are_only_braces(self) -> None:
        """A value with braces is shown as it is."""
        assert (
            "'{problem}' is not one of"
            in problems(**PLACE, image=True, centroid_method="{problem}")["centroid_method"]
        )


class TestWhatFollows:
    def test_source_detection_alone_needs_no_position(self) -> None:
        """Source detection alone is asked for without position and centroid; with company it is not."""
        alone = ProductRequest(name="x", targets=("00966554",), source_detection={"which_data": "all"})
        assert alone.products == (Product.SOURCE_DET,)
        assert {"ra_deg", "dec_deg", "centroid"} == set(
            problems(name="x", targets=("00966554",), source_detection={"which_data": "all"}, image=True)
        )

    def test_redshift_brings_what_the_client_brings(self) -> None:
        """A redshift turns on the redshifted and the Galactic absorber, unless told otherwise."""
        assert (Spectrum(redshift=1.5).has_redshift, Spectrum(redshift=1.5).galactic) == (True, True)
        assert (Spectrum().has_redshift, Spectrum().galactic) == (False, None)
        assert Spectrum(redshift=1.5, galactic=False).galactic is False
        assert Spectrum(redshift=1.5, do_not_fit=True).has_redshift is False

    def test_observations_are_the_users(self) -> None:
        """Observations given alone are a selection by the user; a text is split at its commas."""
        part = Image(observations="00966554000, 00966554001")
        assert (part.which_data, part.observations) == ("user", ("00966554000", "00966554001"))

    def test_time_slices_slice(self) -> None:
        """Time slices given alone are asked for."""
        assert Spectrum(time_slices=[TimeSlice(name="a", gti="0-1")]).time_slicing == "user"

    def test_given_values_switch_finding_off(self) -> None:
        """Target IDs and T0 that are given are not sought, as with the official client."""
        built = request(image=True, t0_met_s=0)
        assert (built.find_targets, built.find_t0, built.find_position) == (False, False, None)

    def test_whole_numbers_stay_whole(self) -> None:
        """30 stays 30, in JSON too; a position is a floating-point number always."""
        built = request(image=True, t0_met_s=608713541, ra_deg=335)
        again = ProductRequest.model_validate_json(built.model_dump_json())
        assert (int, float) == (type(again.t0_met_s), type(again.ra_deg))

    def test_options_that_say_nothing_are_none(self) -> None:
        """Empty position options are no options, so that equal requests are equal."""
        assert (
            request(image=True)
            == request(image=True, position={})
            == request(image=True, position=PositionOptions())
        )


class TestFrozen:
    def test_nothing_can_be_changed(self) -> None:
        """Neither a request nor its parts nor what it keeps can be changed."""
        built = request(image=True, unknown={"x": 1})
        with pytest.raises(ValidationError):
            built.name = "y"  # type: ignore[misc]
        with pytest.raises(ValidationError):
            built.image.which_data = "all"  # type: ignore[misc, union-attr]
        with pytest.raises(TypeError, match="never changes"):
            built.unknown["x"] = 2
        with pytest.raises(TypeError, match="never changes"):
            built.unknown.update(y=2)

    def test_a_copy_is_checked(self) -> None:
        """A changed copy is built anew: checked, and with the defaults that follow from the change."""
        built = request(image=True, spectrum=Spectrum())
        changed = built.model_copy(update={"spectrum": built.spectrum.model_copy(update={"redshift": 2.0})})  # type: ignore[union-attr]
        assert changed.spectrum == Spectrum(redshift=2.0)
        with pytest.raises(ValidationError, match="between -90 and 90"):
            built.model_copy(update={"dec_deg": 95})
        assert built == built.model_copy()

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])  # noqa: S301
    def test_it_travels(self, again: Any) -> None:
        """A request survives copying and pickling, and is as frozen afterwards."""
        built = request(image=True, unknown={"x": [1]}, unchecked={"use_sxps": "2SXPS"})
        assert built == again(built)
        with pytest.raises(TypeError):
            again(built).unknown.clear()


class TestSchema:
    def test_every_field_says_what_it_is(self) -> None:
        """Every field of every model has a description that ends in a full stop."""
        models = [m for _, m in inspect.getmembers(module, inspect.isclass) if issubclass(m, BaseModel)]
        descriptions = {
            f"{model.__name__}.{name}": field.description or ""
            for model in models
            for name, field in model.model_fields.items()
        }
        assert len(descriptions) > 80
        assert [name for name, text in descriptions.items() if not text.endswith(".")] == []

    def test_optional_groups_have_a_title(self) -> None:
        """Every optional group has a title, which the run form shows."""
        properties = ProductRequest.model_json_schema()["properties"]
        groups = {name: value for name, value in properties.items() if "$ref" in json.dumps(value)}
        assert set(groups) == {*PRODUCT_FIELDS.values(), "position"} - {
            "standard_position",
            "enhanced_position",
        }
        assert all(value["title"][0].isupper() for value in groups.values())

    def test_the_schema_is_plain(self) -> None:
        """The schema has nested models, choices, lists and optionals, and no other union."""

        def unions(value: object) -> list[Any]:
            if isinstance(value, dict):
                here = [value["anyOf"]] if "anyOf" in value else []
                return here + [union for inner in value.values() for union in unions(inner)]
            return [union for inner in value for union in unions(inner)] if isinstance(value, list) else []

        schema = ProductRequest.model_json_schema()
        found = unions(schema)
        assert found
        assert all(len(union) == 2 and union[1] == {"type": "null"} for union in found)
        assert "oneOf" not in json.dumps(schema)

    def test_mandatory_fields_show(self) -> None:
        """The schema requires what has no default in the service."""
        schema = ProductRequest.model_json_schema()
        required = {name: value.get("required") for name, value in schema["$defs"].items()}
        assert schema["required"] == ["name"]
        assert required["LightCurve"] == ["binning"]
        assert required["SourceDetection"] == ["which_data"]
        assert required["TimeSlice"] == ["name", "gti"]

    def test_limits_show(self) -> None:
        """Bounds are in the schema, for the form to check."""
        properties = ProductRequest.model_json_schema()["properties"]
        assert tuple(properties["dec_deg"]["anyOf"][0][limit] for limit in ("minimum", "maximum")) == (
            -90,
            90,
        )

    def test_paths_name_the_fields(self) -> None:
        """Every field has its path, time slices by their index."""
        assert {"dec_deg", "light_curve.pc_counts", "spectrum.time_slices.3.gti", "image"} <= FIELD_PATHS
        assert "spectrum.time_slices.4.gti" not in FIELD_PATHS
