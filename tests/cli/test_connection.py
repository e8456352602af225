"""Who is connected to, and as whom; what is said when that fails."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.standin import PASSWORD, StandIn
from xapi_migrate.cli.connection import Server
from xapi_migrate.lab.host import free_port


def test_nobody_listens(run: Run) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run("vm-list", "--url", url)
    assert done.returncode == 1
    assert done.stderr == f"xapi-migrate: No connection to the server at {url}: Connection refused.\n"


def test_no_such_address(run: Run) -> None:
    done = run("vm-list", "--url", "http://no-such-host.invalid")
    assert done.returncode == 1
    assert done.stderr.startswith("xapi-migrate: The server at http://no-such-host.invalid has no known address")


def test_https_to_an_http_port(run: Run, sender: StandIn) -> None:
    done = run("vm-list", "--url", sender.url.replace("http:", "https:"))
    assert done.returncode == 1
    assert "does it speak https on this port?" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_password_from_a_file(run: Run, sender: StandIn, short_tmp: Path) -> None:
    (short_tmp / "password").write_text("wr0ng\n")
    done = run("vm-list", "--url", sender.url, "--password-file", str(short_tmp / "password"))
    assert done.returncode == 1
    assert (
        done.stderr
        == f"xapi-migrate: No log-in at {sender.url}: The user name root and the password do not go together.\n"
    )


def test_the_file_wins_over_the_environment(
    run: Run, sender: StandIn, short_tmp: Path, environment: dict[str, str]
) -> None:
    environment["XAPI_MIGRATE_PASSWORD"] = "wr0ng"
    (short_tmp / "password").write_text(f"{PASSWORD}\n")
    assert run("vm-list", "--url", sender.url, "--password-file", str(short_tmp / "password")).returncode == 0
    assert run("vm-list", "--url", sender.url).returncode == 1


def test_a_prompt_on_a_terminal(sender: StandIn, environment: dict[str, str]) -> None:
    del environment["XAPI_MIGRATE_PASSWORD"]
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "xapi_migrate.cli", "vm-list", "--url", sender.url], env=environment,
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, preexec_fn=_control(terminal),
    )  # fmt: skip
    os.close(terminal)
    try:
        shown = _read_until(master, b": ")
        os.write(master, f"{PASSWORD}\n".encode())
        shown += _read_until(master, b"No VMs.")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert f"Password of root at {sender.url}".encode() in shown
    assert PASSWORD.encode() not in shown


def _control(terminal: int) -> object:
    import fcntl
    import termios

    return lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def _read_until(descriptor: int, end: bytes) -> bytes:
    shown = b""
    while end not in shown:
        shown += os.read(descriptor, 4096)
    return shown


@pytest.mark.parametrize("url", ["http://root:pw@host", "ftp://host"])
def test_urls_that_are_refused(run: Run, url: str) -> None:
    done = run("vm-list", "--url", url)
    assert done.returncode == 2
    assert "pw@" not in done.stderr or "must not hold a password" in done.stderr


def test_there_is_no_option_for_the_password(run: Run, sender: StandIn) -> None:
    done = run("vm-list", "--url", sender.url, "--password", PASSWORD)
    assert done.returncode == 2


def test_the_password_is_not_in_the_representation() -> None:
    assert PASSWORD not in repr(Server("http://host", "root", PASSWORD))


def test_logs_out(run: Run, sender: StandIn, calls: list[str]) -> None:
    assert run("vm-list", "--url", sender.url).returncode == 0
    assert calls == ["T session.login_with_password", "T session.logout"]


def test_nobody_to_ask_for_the_password(run: Run, sender: StandIn, environment: dict[str, str]) -> None:
    del environment["XAPI_MIGRATE_PASSWORD"]
    done = run("vm-list", "--url", sender.url)
    assert done.returncode == 1
    assert done.stderr == (
        f"xapi-migrate: Password of root at {sender.url}: there is no terminal to ask for it, "
        "use --password-file or the variable XAPI_MIGRATE_PASSWORD.\n"
    )


@pytest.mark.parametrize("url", ["http://host:port", "https://", "http://host:70000"])
def test_an_address_that_is_none(run: Run, url: str) -> None:
    done = run("vm-list", "--url", url)
    assert done.returncode == 2
    assert "--url takes http://HOST[:PORT] or https://HOST[:PORT], not" in done.stderr
