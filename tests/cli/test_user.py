"""user-set and user-remove write what the daemon's checker reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from xapi_migrate.xenapi.passwords import verify


@pytest.fixture
def users(short_tmp: Path) -> Path:
    (short_tmp / "password").write_text("first\n")
    return short_tmp / "users"


def hashes(users: Path) -> dict[str, str]:
    return dict(line.split(":", 1) for line in users.read_text().splitlines() if not line.startswith("#"))


def set_user(run: Run, users: Path, name: str, password: str) -> None:
    (users.parent / "password").write_text(f"{password}\n")
    done = run("user-set", name, "--users", str(users), "--password-file", str(users.parent / "password"))
    assert (done.returncode, done.stdout) == (0, f"{name} may log in.\n"), done.stderr


def test_set_change_remove(run: Run, users: Path) -> None:
    users.write_text("# who may log in")
    set_user(run, users, "root", "first")
    set_user(run, users, "ops", "other")
    set_user(run, users, "root", "second")
    assert users.stat().st_mode & 0o777 == 0o600
    assert users.read_text().startswith("# who may log in\n")
    assert sorted(hashes(users)) == ["ops", "root"]
    assert verify("second", hashes(users)["root"])
    assert not verify("first", hashes(users)["root"])
    assert verify("other", hashes(users)["ops"])
    assert run("user-remove", "root", "--users", str(users)).returncode == 0
    assert sorted(hashes(users)) == ["ops"]


def test_nobody_to_remove(run: Run, users: Path) -> None:
    done = run("user-remove", "root", "--users", str(users))
    assert (done.returncode, done.stderr) == (1, f"xapi-migrate: There is no user 'root' in {users}.\n")


def test_names_that_cannot_be(run: Run, users: Path) -> None:
    done = run("user-set", "a:b", "--users", str(users), "--password-file", str(users.parent / "password"))
    assert done.returncode == 1
    assert not users.exists()


def test_an_empty_password_is_refused(run: Run, users: Path) -> None:
    (users.parent / "password").write_text("\n")
    done = run("user-set", "root", "--users", str(users), "--password-file", str(users.parent / "password"))
    assert (done.returncode, users.exists()) == (1, False)
