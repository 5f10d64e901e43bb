"""Hold `prefect_xrt.errors` to account."""

from __future__ import annotations

import ast
import inspect
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from prefect_xrt import errors
from prefect_xrt.errors import XRTError
from prefect_xrt.protocol import Job, Outcome, ProductStatus
from prefect_xrt.request import Product

PACKAGE = Path(errors.__file__).parent
JOB = Job(id=801, url="https://example.org/USERPROD_801", name="GRB 200416A", products=(Product.IMAGE,))
OUTCOME = Outcome(
    job=JOB,
    statuses={Product.IMAGE: ProductStatus(product=Product.IMAGE, code=3, text="Running")},
    looked_at=datetime(2024, 5, 1, tzinfo=UTC),
)
EXTRAS: dict[str, Any] = {
    "problems": (("position_error_arcmin", "is missing"),),
    "status": 502,
    "retry_after_s": 12.5,
    "sent": False,
    "reasons": (("The following parameters are needed:", ("dec_deg", "centroid")),),
    "name": "GRB 200416A",
    "candidates": (801, 802),
    "job": JOB,
    "outcome": OUTCOME,
    "report": None,
}
# Caught, and told from others, by their base; what is raised is one of their kinds.
BASES = {"XRTError", "WaitError"}
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, XRTError)]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def extras_of(kind: type[XRTError]) -> dict[str, Any]:
    """Return a value for each keyword-only extra of an error."""
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: EXTRAS[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def facts(error: XRTError) -> tuple[Any, ...]:
    """Return all that an error knows."""
    return type(error), str(error), error.args, vars(error)


def names_in(node: ast.AST) -> set[str]:
    """Return the names that occur in a piece of code."""
    return {
        n.id if isinstance(n, ast.Name) else n.attr
        for n in ast.walk(node)
        if isinstance(n, ast.Name | ast.Attribute)
    }


def made() -> Iterator[str]:
    """Give the names of classes that the package calls, or hands on to be called as a refusal."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and path.name != "errors.py":
                yield from names_in(node.func)
                yield from (
                    name for word in node.keywords if word.arg == "refusal" for name in names_in(word.value)
                )
                if "warn" in names_in(node.func) or "_warn_once" in names_in(node.func):
                    yield from (name for argument in node.args for name in names_in(argument))
            elif isinstance(node, ast.Assign | ast.arg | ast.AnnAssign) and "refusal" in ast.unparse(node):
                yield from names_in(node)
    for function in (
        node for node in ast.walk(TREES[PACKAGE / "protocol.py"]) if isinstance(node, ast.arguments)
    ):
        yield from (name for default in function.kw_defaults if default for name in names_in(default))


class TestErrors:
    @pytest.mark.parametrize("module", [pickle, cloudpickle], ids=lambda module: module.__name__)
    @pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
    def test_pickling_keeps_everything(self, kind: type[XRTError], module: Any) -> None:
        """Every error is the same after a way between processes, with its extras."""
        error = kind("Something happened.", **extras_of(kind))
        assert facts(error) == facts(module.loads(module.dumps(error)))

    def test_pickling_keeps_notes(self) -> None:
        """An error to which a note was added survives as well."""
        error = errors.ServiceUnreachableError("No answer.", status=503)
        error.add_note("while submitting")
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
        assert (again.__notes__, again.status) == (["while submitting"], 503)

    @pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
    def test_message_is_enough(self, kind: type[XRTError]) -> None:
        """Every error can be made of its message alone, and shows it."""
        assert (
            "Something happened." == str(kind("Something happened.")) == kind("Something happened.").message
        )

    def test_invalid_request_is_a_value_error(self) -> None:
        """A request that cannot be built is also the built-in error for that."""
        assert issubclass(errors.InvalidRequestError, ValueError)

    def test_all_is_complete_and_sorted(self) -> None:
        """`__all__` names every class and function of the module, in order."""
        public = {
            name
            for name, value in vars(errors).items()
            if getattr(value, "__module__", "") == errors.__name__ and not name.startswith("_")
        }
        assert sorted(public) == errors.__all__

    @pytest.mark.parametrize("name", sorted(set(errors.__all__) - BASES))
    def test_every_error_has_a_place(self, name: str) -> None:
        """Every error and warning that is offered is raised somewhere in the package."""
        assert name in set(made())

    @pytest.mark.parametrize("name", sorted(BASES))
    def test_bases_are_never_raised(self, name: str) -> None:
        """The bases are there to be caught: nothing in the package makes one."""
        calls = (n for tree in TREES.values() for n in ast.walk(tree) if isinstance(n, ast.Call))
        assert [ast.unparse(call) for call in calls if name in names_in(call.func)] == []

    def test_a_base_that_is_raised_would_be_found(self) -> None:
        """The search for calls sees a base that is raised."""
        (call,) = (n for n in ast.walk(ast.parse("raise errors.XRTError('x')")) if isinstance(n, ast.Call))
        assert "XRTError" in names_in(call.func)
