from __future__ import annotations

from collections.abc import Iterator

import pytest

from fanfare import testing


@pytest.fixture
def events(db: None) -> Iterator[testing.Events]:
    with testing.captured_events() as events:
        yield events
