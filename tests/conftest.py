"""What every test shares: shapes checked at run time, deterministic hypothesis, the reference data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

sys.path.append(str(Path(__file__).parent))  # so that tests say `from laws import ROUND_OFF`

# Every call into the library checks the shapes its signature states; users pay nothing for it.
install_import_hook("cryorbit", "typecheck.checked")

hypothesis.settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    max_examples=30,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The reference data folder, read-only: CRYORBIT_DATA, else ../shared/data beside the repository."""
    root = Path(__file__).resolve().parents[1]
    given = os.environ.get("CRYORBIT_DATA")
    folder = Path(given) if given else root.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"reference data not found: {folder} (set CRYORBIT_DATA)")
    return folder
