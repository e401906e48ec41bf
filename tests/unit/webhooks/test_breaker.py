from __future__ import annotations

from fanfare.webhooks import breaker


def test_pauses_double_up_to_a_minute_and_differ() -> None:
    for failures, longest in ((1, 1), (2, 2), (5, 16), (7, 60), (50, 60)):
        pauses = {breaker.pause(failures) for _ in range(20)}
        assert len(pauses) > 1
        assert all(0.75 * longest <= pause <= longest for pause in pauses)


def test_the_circuit_opens_after_failures_in_a_row_and_closes_with_a_success() -> None:
    circuit = breaker.Breaker()
    for _ in range(breaker.OPENS_AT - 1):
        circuit.failed(100.0)
    circuit.succeeded()
    for _ in range(breaker.OPENS_AT):
        assert not circuit.is_open
        circuit.failed(100.0)
    assert circuit.is_open
    assert 100.0 < circuit.retry_at <= 101.0
    circuit.failed(200.0)
    assert 201.0 < circuit.retry_at <= 202.0
    circuit.succeeded()
    assert not circuit.is_open
