import os
import socket
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser

from migrations_api.management.base import ServiceCommand, positive
from migrations_api.management.supervisor import Child, supervise, tell_what_happens
from migrations_api.orchestrator.readiness import pending_migrations

GRACE = 30  # seconds for requests in flight


class Command(ServiceCommand):
    requires_system_checks = "__all__"
    help = "Run the web server and, beside it, the coordinator that carries out what the API asks for."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 is every one.")
        parser.add_argument("--port", type=int, default=8000, choices=range(65536), metavar="PORT")
        parser.add_argument("--threads", type=positive, default=8, metavar="N", help="Requests at once per worker.")
        parser.add_argument("--web-workers", type=positive, default=1, metavar="N", help="Processes of the web server.")

    def handle(self, *, host: str, port: int, threads: int, web_workers: int, **options: Any) -> None:
        tell_what_happens()
        if missing := pending_migrations():
            raise CommandError(f"The control plane lacks {', '.join(missing)}. Run: python manage.py migrate")
        # Bound here, so that a port in use is told at once and a web server that is restarted keeps its callers.
        with listen(host, port) as listener:
            environment = child_environment()
            web = Child(
                "web server",
                web_command(listener.fileno(), threads=threads, workers=web_workers),
                environment=environment,
                pass_fds=[listener.fileno()],
            )
            coordinator = Child("coordinator", [*PYTHON, "django", "coordinate"], environment=environment)
            self._say_where(host, listener.getsockname()[1])
            supervise([web, coordinator])

    def _say_where(self, host: str, port: int) -> None:
        base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.stdout.write(f"API    {base}/tenants\nDocs   {base}/docs\nAdmin  {base}/admin/")
        self.stdout.flush()


PYTHON = [sys.executable, "-m"]


def listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        hint = "Choose another with --port, or end what listens there." if port else "Choose another --host."
        # socket.gaierror numbers its reasons below zero, and knows them itself.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise CommandError(f"Cannot listen on {host} port {port}: {reason}. {hint}") from error


def web_command(descriptor: int, *, threads: int, workers: int) -> list[str]:
    module, _, name = settings.WSGI_APPLICATION.rpartition(".")
    return [
        *PYTHON,
        "gunicorn",
        f"{module}:{name}",
        f"--bind=fd://{descriptor}",
        "--worker-class=gthread",
        f"--threads={threads}",
        f"--workers={workers}",
        f"--graceful-timeout={GRACE}",
        "--no-control-socket",
        "--logger-class=service.access_log.GunicornLogger",
        "--access-logfile=-",
    ]


def child_environment() -> dict[str, str]:
    """This process's own, with the modules that it can import and a key that both children share."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "SECRET_KEY": settings.SECRET_KEY,
    }
