"""What the log lines of a request or a run have in common, whoever writes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

request_id: Final = ContextVar("request_id", default="")
run_id: Final[ContextVar[int | None]] = ContextVar("run_id", default=None)
tenant_id: Final = ContextVar("tenant_id", default="")


@contextmanager
def about_run(run: int, tenant: str) -> Iterator[None]:
    run_token, tenant_token = run_id.set(run), tenant_id.set(tenant)
    try:
        yield
    finally:
        run_id.reset(run_token)
        tenant_id.reset(tenant_token)
