"""The config that passes every check."""

from tests.unit.preflight.conftest import composed, settings  # noqa: F401  fixtures
