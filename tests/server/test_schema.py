"""Requests made from our own OpenAPI document, good and bad: none is answered with a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.server.conftest import serving

EXAMPLES = 10  # of each route


@pytest.mark.long
def test_nothing_is_answered_with_a_5xx() -> None:
    with serving(max_steps=2, max_pixels=128 * 128, max_count=2) as address:
        ask_everything(address)


def ask_everything(address: str) -> None:
    """Send requests of every route."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answered(case: schemathesis.Case) -> None:
            response = case.call()
            assert response.status_code < 500, f"{case.as_curl_command()}: {response.text}"

        answered()
