"""What comes after an attempt at the Hub, and when the Hub is left alone."""

import pytest

from sync_service.retry import (
    BREAKER_FAILURES,
    CAP_MS,
    CONFLICT_ATTEMPTS,
    NO_ANSWER,
    RETRY_AFTER_MAX_MS,
    Answer,
    Breaker,
    Decision,
    Done,
    Parked,
    RetryAt,
    decide,
    worst,
)

NOW = 1_000_000
DOWN = Answer(NO_ANSWER, "not reached", whole=True)
UP = Answer(200, whole=True)


def decided(answer: Answer, *, attempts: int = 0, random: float = 0.5) -> Decision:
    return decide(answer, attempts=attempts, now_ms=NOW, random=lambda: random)


@pytest.mark.parametrize("status", [200, 201])
def test_created_and_found_are_done(status: int) -> None:
    assert isinstance(decided(Answer(status)), Done)


@pytest.mark.parametrize("status", [NO_ANSWER, 401, 403, 408, 429, 500, 502, 503, 504])
def test_what_waiting_can_mend_is_never_parked(status: int) -> None:
    assert isinstance(decided(Answer(status), attempts=10_000), RetryAt)


@pytest.mark.parametrize("status", [400, 404, 410, 412, 422])
def test_a_refusal_of_an_entry_is_parked_with_its_reason(status: int) -> None:
    assert decided(Answer(status, "invariant obs-6")) == Parked(f"{status}: invariant obs-6")


@pytest.mark.parametrize("status", [302, 401, 403, 404, 405, 415])
def test_a_wrong_address_or_sign_in_parks_nothing(status: int) -> None:
    assert isinstance(decided(Answer(status, whole=True)), RetryAt)


def test_a_conflict_is_tried_again_a_few_times_and_then_parked() -> None:
    assert isinstance(decided(Answer(409), attempts=0), RetryAt)
    assert isinstance(decided(Answer(409), attempts=CONFLICT_ATTEMPTS - 1), Parked)


def test_back_off_doubles_with_full_jitter_up_to_its_cap() -> None:
    def wait(attempts: int, random: float) -> int:
        decision = decided(Answer(500), attempts=attempts, random=random)
        assert isinstance(decision, RetryAt)
        return decision.due_ms - NOW

    assert [wait(n, 0.999_999) for n in range(3)] == [499, 999, 1999]
    assert wait(3, 0.0) == 0
    assert CAP_MS - 1 <= wait(1_000_000, 0.999_999) <= CAP_MS


def test_retry_after_is_kept_but_cannot_silence_a_ward() -> None:
    assert decided(Answer(429, retry_after_ms=7_000), random=0.0) == RetryAt("429", NOW + 7_000)
    assert decided(Answer(429, retry_after_ms=10**9), random=0.0) == RetryAt("429", NOW + RETRY_AFTER_MAX_MS)


def test_a_reading_is_done_only_when_all_its_observations_are() -> None:
    assert worst([Answer(201), Answer(500), Answer(200)]).status == 500
    assert worst([Answer(500), Answer(412), Answer(200)]).status == 412
    assert worst([Answer(201), Answer(200)]).ok


def test_breaker_opens_after_some_failures_in_a_row_and_lets_one_probe_through() -> None:
    breaker = Breaker(lambda: 0.5)
    for _ in range(BREAKER_FAILURES - 1):
        breaker.ended(DOWN, NOW)
        assert breaker.allows(NOW) > 1
    breaker.ended(DOWN, NOW)
    assert breaker.allows(NOW) == 0
    due = breaker.open_until_ms
    assert breaker.allows(due) == 1
    breaker.started()
    assert breaker.allows(due) == 0
    breaker.ended(DOWN, due)
    assert breaker.allows(due) == 0 and breaker.open_until_ms > due
    breaker.started()
    breaker.ended(UP, breaker.open_until_ms)
    assert not breaker.is_open and breaker.allows(due) > 1


def test_breaker_opens_at_once_when_the_hub_says_for_how_long() -> None:
    breaker = Breaker(lambda: 0.0)
    breaker.ended(Answer(503, retry_after_ms=4_000, whole=True), NOW)
    assert breaker.open_until_ms == NOW + 4_000


def test_a_refused_reading_is_no_failure_of_the_hub() -> None:
    breaker = Breaker(lambda: 0.5)
    for _ in range(BREAKER_FAILURES * 2):
        breaker.ended(Answer(422, whole=True), NOW)
    assert not breaker.is_open


@pytest.mark.parametrize(
    ("location", "reference"),
    [
        ("Device/7/_history/1", "Device/7"),
        ("https://hub.example/fhir/Device/7", "Device/7"),
        ("Device/7/", "Device/7"),
        ("", None),
        ("7", None),
    ],
)
def test_where_a_resource_is(location: str, reference: str | None) -> None:
    assert Answer(201, location=location).reference == reference
