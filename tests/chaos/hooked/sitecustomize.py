"""Python imports this at its start where the folder is on PYTHONPATH: it has the process watched."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from strike import obey_environment

sys.path.pop(0)
obey_environment()
