"""Prefect tasks, sensor, flows and blocks for the XRT product generator of the UK Swift Science Data Centre.

Names are loaded when they are first used, so that what needs no Prefect does not wait for its import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from prefect_xrt._version import __version__

if TYPE_CHECKING:
    from prefect_xrt.archive import ProductFile
    from prefect_xrt.blocks import XRTJob, XRTJobRun
    from prefect_xrt.client import XRTClient
    from prefect_xrt.credentials import XRTCredentials
    from prefect_xrt.flows import attach_products, build_products
    from prefect_xrt.pacing import Pacing
    from prefect_xrt.parameters import read_request, read_request_file
    from prefect_xrt.protocol import CancelResult, Job, JobSummary, Outcome, ProductState, ProductStatus
    from prefect_xrt.reports import BuildReport
    from prefect_xrt.request import (
        AstrometricPosition,
        Image,
        LightCurve,
        PositionOptions,
        Product,
        ProductRequest,
        SourceDetection,
        Spectrum,
        TimeSlice,
    )
    from prefect_xrt.results import Position, Provenance, SourceList, SpectralFits, read_result
    from prefect_xrt.runs import cancel_jobs
    from prefect_xrt.tasks import (
        attach_job,
        cancel_products,
        check_product_status,
        download_product,
        find_job,
        finish_rebin,
        rebin_light_curve,
        retrieve_light_curve,
        retrieve_position,
        retrieve_source_list,
        retrieve_spectral_fits,
        submit_rebin,
        submit_request,
        wait_for_products,
        watch_jobs,
    )

_ROOMS = {
    "archive": ("ProductFile",),
    "blocks": ("XRTJob", "XRTJobRun"),
    "client": ("XRTClient",),
    "credentials": ("XRTCredentials",),
    "flows": ("attach_products", "build_products"),
    "parameters": ("read_request", "read_request_file"),
    "protocol": ("CancelResult", "Job", "JobSummary", "Outcome", "ProductState", "ProductStatus"),
    "reports": ("BuildReport",),
    "pacing": ("Pacing",),
    "request": (
        "AstrometricPosition",
        "Image",
        "LightCurve",
        "PositionOptions",
        "Product",
        "ProductRequest",
        "SourceDetection",
        "Spectrum",
        "TimeSlice",
    ),
    "results": ("Position", "Provenance", "SourceList", "SpectralFits", "read_result"),
    "runs": ("cancel_jobs",),
    "tasks": (
        "attach_job",
        "cancel_products",
        "check_product_status",
        "download_product",
        "find_job",
        "finish_rebin",
        "rebin_light_curve",
        "retrieve_light_curve",
        "retrieve_position",
        "retrieve_source_list",
        "retrieve_spectral_fits",
        "submit_rebin",
        "submit_request",
        "wait_for_products",
        "watch_jobs",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "AstrometricPosition",
    "BuildReport",
    "CancelResult",
    "Image",
    "Job",
    "JobSummary",
    "LightCurve",
    "Outcome",
    "Pacing",
    "Position",
    "PositionOptions",
    "Product",
    "ProductFile",
    "ProductRequest",
    "ProductState",
    "ProductStatus",
    "Provenance",
    "SourceDetection",
    "SourceList",
    "SpectralFits",
    "Spectrum",
    "TimeSlice",
    "XRTClient",
    "XRTCredentials",
    "XRTJob",
    "XRTJobRun",
    "__version__",
    "attach_job",
    "attach_products",
    "build_products",
    "cancel_jobs",
    "cancel_products",
    "check_product_status",
    "download_product",
    "find_job",
    "finish_rebin",
    "read_request",
    "read_request_file",
    "read_result",
    "rebin_light_curve",
    "retrieve_light_curve",
    "retrieve_position",
    "retrieve_source_list",
    "retrieve_spectral_fits",
    "submit_rebin",
    "submit_request",
    "wait_for_products",
    "watch_jobs",
]


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
