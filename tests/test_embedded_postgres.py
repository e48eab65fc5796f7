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

import psycopg2
import pytest

from service.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError, is_installed, main, sweep

ROOT = Path(__file__).resolve().parent.parent
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


def query(server: EmbeddedPostgres, statement: str, database: str = "postgres") -> Any:
    with closing(psycopg2.connect(server.url(database))) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None  # type: ignore[index]


def postmaster(server: EmbeddedPostgres) -> int:
    return int((server.directory / "data" / "postmaster.pid").read_text().split()[0])


def socket_folder(server: EmbeddedPostgres) -> Path:
    return Path(server.url().partition("?host=")[2])


def start_elsewhere(server: EmbeddedPostgres) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from service.embedded_postgres import EmbeddedPostgres;"
        "EmbeddedPostgres(Path(sys.argv[1]), durable=False).start(databases=['app'])"
    )
    command = [sys.executable, "-c", code, str(server.directory)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("user", ["root", "nobody"] if os.geteuid() == 0 else [""])
def test_main__starts_and_stops_for_this_user(user: str) -> None:
    home = Path(tempfile.mkdtemp(prefix="a home "))
    prefix = []
    if user == "nobody":
        os.chown(home, pwd.getpwnam(user).pw_uid, -1)
        prefix = ["setpriv", "--reuid=nobody", "--regid=65534", "--clear-groups"]
        if subprocess.run([*prefix, sys.executable, "-c", "import service"], cwd=ROOT, check=False).returncode != 0:
            pytest.skip("nobody cannot read the checkout or the interpreter")
    server = EmbeddedPostgres(home / "a folder" / "postgres")

    def run(command: str) -> tuple[int, str, str]:
        module = [*prefix, sys.executable, "-B", "-m", "service.embedded_postgres"]
        arguments = [*module, command, "--directory", str(server.directory)]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    up, down = (0, f"{server.url()}\n", ""), (0, "stopped\n", "")
    assert [run("start"), run("start"), run("status")] == [up] * 3
    assert [run("stop"), run("stop"), run("status")] == [down, down, (3, "stopped\n", "")]
    assert [run("start"), run("destroy"), run("destroy")] == [up, down, down]
    assert (server.directory.exists(), socket_folder(server).exists()) == (False, False)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    shutil.rmtree(home)


def test_start__keeps_the_data_across_a_stop(server: EmbeddedPostgres) -> None:
    server.start(databases=["app"])
    query(server, "CREATE TABLE kept AS SELECT 7 AS answer", "app")
    server.stop()
    server.start(databases=["app", 'it\'s "new"'])
    assert query(server, "SELECT answer FROM kept", "app") == 7
    assert query(server, "SELECT 1", 'it\'s "new"') == 1


def test_start__of_several_processes_at_once_is_one_server(server: EmbeddedPostgres) -> None:
    starters = [start_elsewhere(server) for _ in range(3)]
    assert [(starter.communicate()[1], starter.returncode) for starter in starters] == [("", 0)] * 3
    assert query(server, "SELECT count(*) FROM pg_database WHERE datname = 'app'") == 1
    assert (server.directory / "log").read_text().count("ready to accept connections") == 1


@pytest.mark.parametrize("made", ["unfinished-*", "data", "log", "data/postmaster.pid"])
def test_start__after_the_starter_was_killed(server: EmbeddedPostgres, made: str) -> None:
    with start_elsewhere(server) as starter:
        while not list(server.directory.glob(made)) and starter.poll() is None:
            time.sleep(0.001)
        starter.kill()

    server.start(databases=["app"])

    assert query(server, "SELECT current_database()", "app") == "app"
    assert (server.directory / "log").read_text().count("ready to accept connections") == 1


def test_start__after_the_server_was_killed_loses_nothing(make: Factory) -> None:
    server = make(durable=True)
    server.start()
    query(server, "CREATE TABLE kept ()")
    os.kill(postmaster(server), signal.SIGKILL)

    server.start()

    assert query(server, "SELECT to_regclass('kept') IS NOT NULL")
    assert [query(server, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")] == ["on"] * 3


def test_start__ignores_a_pid_file_whose_pid_another_process_has(server: EmbeddedPostgres) -> None:
    server.start()
    with subprocess.Popen(["/bin/sleep", "60"], user=server.directory.stat().st_uid) as stranger:
        files = (server.directory / "data" / "postmaster.pid", socket_folder(server) / ".s.PGSQL.5432.lock")
        left_behind = files[0].read_text().replace(str(postmaster(server)), str(stranger.pid), 1)
        server.stop()
        for file in files:
            file.write_text(left_behind)
        server.stop()
        server.start()

        assert stranger.poll() is None
        stranger.kill()


def test_start__of_a_copy_is_another_server(make: Factory) -> None:
    original, copy = make("one"), make("two")
    original.start()
    subprocess.run(["/bin/cp", "-pR", original.directory, copy.directory], check=True)
    assert not copy.is_running()
    copy.start(databases=["only_in_the_copy"])

    assert query(original, "SELECT count(*) FROM pg_database WHERE datname LIKE 'only%'") == 0
    copy.stop()
    assert original.is_running()


def test_settings__are_those_of_the_module_whatever_the_environment(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TZ": "Asia/Tokyo", "LC_ALL": "de_DE", "PGPORT": "1", "PGDATA": "/x", "PGHOST": "x"}.items():
        monkeypatch.setenv(name, value)
    server.start()
    names = ["listen_addresses", "TimeZone", "server_encoding", "lc_messages", "max_locks_per_transaction", "fsync"]
    assert [query(server, f"SHOW {name}") for name in names] == ["", "UTC", "UTF8", "C", "256", "off"]
    assert query(server, "SELECT upper('ä')") == "Ä"


def test_authentication__only_the_superuser_needs_no_password(server: EmbeddedPostgres) -> None:
    server.start()
    query(server, "CREATE ROLE app LOGIN PASSWORD 'word'")
    with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
        psycopg2.connect(server.url(), user="app")
    psycopg2.connect(server.url(), user="app", password="word").close()


def test_version__16_is_started_and_its_data_refused_by_18(make: Factory) -> None:
    old = make(version=16)
    old.start()
    assert query(old, "SHOW server_version").startswith("16.")
    assert b"16." in subprocess.run([old.bin / "pg_dump", "--version"], capture_output=True, check=True).stdout
    old.stop()
    with pytest.raises(EmbeddedPostgresError, match=r"PostgreSQL 16, not of user \d+ and PostgreSQL 18: delete"):
        make().start()


def test_socket__lies_in_a_private_folder(server: EmbeddedPostgres) -> None:
    server.start()
    assert stat.S_IMODE(socket_folder(server).stat().st_mode) == 0o700
    assert len(f"{socket_folder(server)}/.s.PGSQL.5432.lock") < 104


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_start__refuses_folders_of_another_user(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    data = server.directory / "data"
    for folder, complaint in ((data, "of user 12345 .* delete"), (socket_folder(server), "somebody else's")):
        os.chown(folder, 12345, 12345)
        with pytest.raises(EmbeddedPostgresError, match=complaint):
            server.start()


def test_start__without_the_wheel_says_what_to_do(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not is_installed()
    with pytest.raises(EmbeddedPostgresError, match="Set DATABASE_URL, or install the dev extra"):
        server.start()


def test_main__shows_the_log(server: EmbeddedPostgres, capfd: pytest.CaptureFixture[str]) -> None:
    server.start()
    server.stop()
    (server.directory / "data" / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(SystemExit, match="1"):
        main(["start", "--directory", str(server.directory)])
    assert 'unrecognized configuration parameter "no_such_setting"' in capfd.readouterr().err


def test_sweep__destroys_the_servers_of_dead_processes_only(make: Factory, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, alive, other = make(f"test-{process.pid}"), make(f"test-{os.getpid()}"), make("test-x")
    dead.start()
    alive.directory.mkdir()
    other.directory.mkdir()
    sweep(tmp_path, "test-")
    assert [path.directory.exists() for path in (dead, alive, other)] == [False, True, True]
