"""Who may log in, as --auth says it."""

from __future__ import annotations

import crypt
import spwd
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin

from xapi_migrate.xenapi.checkers import UnknownChecker, check_text, make_checker
from xapi_migrate.xenapi.passwords import user_line


async def said(checker: Any, name: str, password: str) -> str:
    """Who the checker says it is; "" for nobody."""
    try:
        return (await checker.requestAvatarId(UsernamePassword(name.encode(), password.encode()))).decode()
    except UnauthorizedLogin:
        return ""


@pytest.fixture
def shadow(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has the accounts root and guest, with passwords."""
    hashed = {
        name: crypt.crypt(f"{name}'s", crypt.mksalt(crypt.METHOD_SHA512, rounds=1000)) for name in ("root", "guest")
    }

    def look(name: str) -> Any:
        return spwd.struct_spwd((name, hashed[name], 0, 0, 0, 0, 0, 0, 0))

    monkeypatch.setattr("pwd.getpwnam", lambda name: type("Entry", (), {"pw_passwd": "x" if hashed[name] else ""}))
    monkeypatch.setattr("spwd.getspnam", look)


@pytest_twisted.ensureDeferred
async def test_accounts_of_the_machine_are_let_in_if_they_are_named(tmp_path: Path, shadow: None) -> None:
    root = make_checker(["unix"], tmp_path)
    assert await said(root, "root", "root's") == "root"
    assert await said(root, "root", "guest's") == ""
    assert await said(root, "guest", "guest's") == ""
    assert await said(root, "nobody\0", "x") == await said(root, "not there", "") == ""
    both = make_checker(["unix:root, guest"], tmp_path)
    assert await said(both, "guest", "guest's") == "guest"


@pytest_twisted.ensureDeferred
async def test_one_checker_after_the_other_is_asked(tmp_path: Path, shadow: None) -> None:
    (tmp_path / "users").write_text(user_line("root", "of the file", (16, 1, 1)))
    (tmp_path / "more").write_text(user_line("me", "mine", (16, 1, 1)))
    checker = make_checker(["file", f"file:{tmp_path}/more", "unix"], tmp_path)
    assert await said(checker, "root", "of the file") == await said(checker, "root", "root's") == "root"
    assert await said(checker, "me", "mine") == "me"
    assert await said(checker, "me", "of the file") == ""


@pytest.mark.parametrize("text", ["pam", "", "anonymous", "memory:root:secret", "sshkey:/etc", "File:/x"])
def test_what_is_no_checker_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnknownChecker, match="--auth takes file:PATH or unix:NAMES"):
        check_text(text)
    with pytest.raises(UnknownChecker):
        make_checker([text], tmp_path)
