"""The table of VDIs, without I/O."""

from __future__ import annotations

import pytest
from sm_iscsi.catalogue import MOST_NONCES, SLOT, SPAN, Catalogue, Foreign, Full, Taken
from sm_iscsi.unready import STALE, Unready

MIB = 1 << 20
LUNS = {2: 64 * MIB, 3: 16 * MIB, 4: 32 * MIB}


def test_the_smallest_lun_that_holds_it_is_taken() -> None:
    table = Catalogue()
    assert [table.claim(uuid, 16 * MIB, LUNS, 0).lun for uuid in "abc"] == [3, 4, 2]
    with pytest.raises(Full) as full:
        table.claim("d", 1, LUNS, 0)
    assert full.value.available == 0
    table.release("b")
    with pytest.raises(Full) as full:
        table.claim("d", 33 * MIB, LUNS, 0)
    assert full.value.available == 32 * MIB


def test_a_repeat_finds_its_own() -> None:
    table = Catalogue()
    first = table.claim("a", MIB, LUNS, 0)
    assert table.claim("a", MIB, LUNS, 9) is first
    with pytest.raises(Taken):
        table.claim("a", 2 * MIB, LUNS, 9)


def test_what_did_not_get_ready_is_given_up_in_the_end() -> None:
    """By the time for which this host has seen it, whatever clock the other host has."""
    luns, now = {3: MIB, 4: MIB}, [0.0]
    unready = Unready(lambda: now[0])
    table = Catalogue()
    table.claim("dead", MIB, {3: MIB}, 1e9)
    table.claim("alive", MIB, {4: MIB}, -1e9)
    table.finish("alive", MIB)
    for seconds in (0.0, STALE):
        now[0] = seconds
        table = unready.seen(table.plain())
        with pytest.raises(Full):
            table.claim("b", MIB, luns, 5e9, unready.stale())
    now[0] = STALE + 1
    assert table.claim("b", MIB, luns, 0, unready.stale()).lun == 3
    assert sorted(table.vdis) == ["alive", "b"]


def test_one_that_got_ready_meanwhile_is_kept() -> None:
    now = [0.0]
    unready = Unready(lambda: now[0])
    table = Catalogue()
    table.claim("slow", MIB, {3: MIB}, 0)
    unready.seen(table.plain())
    now[0] = STALE + 1
    table.finish("slow", MIB)
    with pytest.raises(Full):
        table.claim("b", MIB, {3: MIB}, 0, unready.stale())
    unready.seen(table.plain())
    assert unready.stale() == []


def written(span: bytes, table: Catalogue, keep: int = SLOT) -> bytes:
    """What is on the LUN after a change of which only `keep` bytes got there."""
    slot = table.packed()[:keep] + span[table.offset + keep : table.offset + SLOT]
    return span[: table.offset] + slot + span[table.offset + SLOT :]


def test_a_change_that_is_cut_off_leaves_the_one_before() -> None:
    span = bytes(SPAN)
    for turn in range(1, 5):
        table = Catalogue.read(span)
        table.claim(str(turn), MIB, dict.fromkeys(range(2, 9), MIB), 0)
        table.turn = turn
        for keep in (0, 8, 20, 100):
            assert len(Catalogue.read(written(span, table, keep)).vdis) == turn - 1, keep
        span = written(span, table)
        assert len(Catalogue.read(span).vdis) == turn


def test_what_is_not_ours_is_told() -> None:
    assert Catalogue.read(bytes(SPAN)) == Catalogue()
    for strange in (b"x" + bytes(SPAN - 1), bytes(SPAN - 1) + b"x", b"XMISCSI1" + bytes(SPAN - 8)):
        with pytest.raises(Foreign):
            Catalogue.read(strange)


def test_nonces_that_nobody_removed_do_not_fill_it() -> None:
    table = Catalogue()
    for number in range(MOST_NONCES + 5):
        table.leave(f"n{number}", "v")
    table.leave("n300", "")
    assert len(table.nonces) == MOST_NONCES and "n0" not in table.nonces and f"n{MOST_NONCES + 4}" in table.nonces
