from collections.abc import Iterator


def run_events(run_id: int, *, last_event_id: str = "") -> Iterator[bytes]:
    yield b""
