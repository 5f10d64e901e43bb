"""The XRT product service, embedded: for tests, for demonstrations, and for learning without a network.

It shares no code with the rest of the package, so that a client that gets along with it does not merely
agree with itself.
"""

from .scenario import ENDPOINTS, FAULT_KINDS, FORGOTTEN, NAMED, Fault, Scenario, ScenarioError, Step, Timeline
from .server import DEFAULT_USER, Call, Emulator, serve

__all__ = [
    "DEFAULT_USER",
    "ENDPOINTS",
    "FAULT_KINDS",
    "FORGOTTEN",
    "NAMED",
    "Call",
    "Emulator",
    "Fault",
    "Scenario",
    "ScenarioError",
    "Step",
    "Timeline",
    "serve",
]
