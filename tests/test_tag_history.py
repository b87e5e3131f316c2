"""Where names pointed, and going back there."""

from __future__ import annotations

import pytest

from imgdb.db import sql
from imgdb.errors import InvalidArgumentError, NotFoundError, RefusedError
from tests.clock import DAY, HOUR, Clock
from tests.collecting import image, tar
from tests.db.rows import Rows, open_shell
from tests.looking import digests, names, present

NAME = "docker.io/library/app:1"
ONE, TWO, THREE = image(1), image(2), image(3)


@pytest.fixture
def clock(monkeypatch):
    """Time for rows; stands still until it is moved."""
    made = Clock()
    made.freeze()
    # What SQL alone ends is dated by SQLite's clock, which must not be behind this one.
    made.forward(-30 * DAY)
    monkeypatch.setattr(sql, "clock", made)
    return made


@pytest.fixture
def moved(new_store, clock):
    """A store whose app:1 was moved twice, an hour apart, and the times."""
    store, times = new_store(), []
    for node in (ONE, TWO, THREE):
        clock.forward(HOUR)
        times.append(clock() // 1000)
        store.load(tar((node, "app:1")))
    return store, times


def periods(store, name="app:1"):
    """Target, from, until and held, newest first."""
    return [(str(p.target.digest), p.from_at, p.until_at, p.held) for p in store.tag_history(name)]


def test_imports_leave_a_history(moved):
    """Each period ends where the next begins; the old images are dangling, and held."""
    store, (first, second, third) = moved
    assert periods(store) == [
        (THREE.digest, third, None, True),
        (TWO.digest, second, third, True),
        (ONE.digest, first, second, True),
    ]
    assert periods(store, "docker.io/library/app:1") == periods(store)
    assert periods(store, "unknown:1") == []
    with pytest.raises(InvalidArgumentError):
        store.tag_history("no name")


def test_what_is_collected_is_not_held(moved):
    """History keeps nothing alive."""
    store, _ = moved
    store.remove(ONE.digest)
    assert [held for *_, held in periods(store)] == [True, True, True]
    store.gc()
    assert [held for *_, held in periods(store)] == [True, True, False]
    assert present(store) == digests(TWO, THREE)


def test_plain_sql_leaves_a_history(moved):
    """A target that is bent, a name that is changed, one that is deleted."""
    store, (*_, third) = moved
    rows = Rows(open_shell(f"{store.root}/imgdb.db"))
    target = "(SELECT id FROM imgdb_blobs WHERE digest = ?)"
    bend = f"UPDATE imgdb_images SET target_id = {target}, updated_at = ? WHERE name = ?"  # noqa: S608
    rows.sql(bend, ONE.digest, third + 5, NAME)
    assert periods(store)[:2] == [(ONE.digest, third + 5, None, True), (THREE.digest, third, third + 5, True)]
    rows.sql(
        "UPDATE imgdb_images SET name = 'docker.io/library/new:1', updated_at = ? WHERE name = ?",
        third + 7,
        NAME,
    )
    assert periods(store)[0] == (ONE.digest, third + 5, third + 7, True)
    assert periods(store, "new:1") == [(ONE.digest, third + 7, None, True)]
    rows.sql("DELETE FROM imgdb_images WHERE name = 'docker.io/library/new:1'")
    ((digest, begin, end, _),) = periods(store, "new:1")
    assert (digest, begin) == (ONE.digest, third + 7)
    assert end > begin
    rows.connection.close()
    store.load(tar((TWO, "app:1")))


def test_removed_and_given_again(moved, clock):
    """Two periods of one target, with a gap."""
    store, _ = moved
    store.tag("app:1", "other:1")
    store.remove("app:1")
    assert periods(store)[0][0] == THREE.digest
    assert periods(store)[0][2] is not None
    clock.forward(60 * DAY)
    store.tag("other:1", "app:1")
    again, before, *_ = periods(store)
    assert (again[0], before[0]) == (THREE.digest, THREE.digest)
    assert again[1] > before[2]
    assert again[2] is None


def test_restore(moved, clock):
    """To the target before; what was there is kept as dangling, and restoring again goes back."""
    store, _ = moved
    clock.forward(HOUR)
    assert str(store.restore_tag("app:1")) == TWO.digest
    dangling = {f"moby-dangling@{node.digest}": node.digest for node in (ONE, THREE)}
    assert names(store) == {NAME: TWO.digest} | dangling
    assert [digest for digest, *_ in periods(store)] == [n.digest for n in (TWO, THREE, TWO, ONE)]
    clock.forward(HOUR)
    assert str(store.restore_tag("app:1")) == THREE.digest
    assert names(store)[NAME] == THREE.digest
    event = store.events()[-1]
    assert (event.action, event.actor, event.name) == ("tag", THREE.digest, NAME)


def test_restore_to(moved):
    """One of the earlier targets; not one that the name never had."""
    store, _ = moved
    assert str(store.restore_tag("app:1", ONE.digest)) == ONE.digest
    assert names(store)[NAME] == ONE.digest
    for target in (image(9).digest, ONE.digest):
        with pytest.raises(NotFoundError, match=f"app:1 has no earlier target {target}"):
            store.restore_tag("app:1", target)
    with pytest.raises(InvalidArgumentError):
        store.restore_tag("app:1", "sha256:short")


def test_restore_a_removed_name(moved):
    """As long as no collection has been there."""
    store, _ = moved
    store.remove("app:1")
    assert str(store.restore_tag("app:1")) == THREE.digest
    store.remove("app:1")
    store.gc()
    with pytest.raises(RefusedError, match=f"{THREE.digest} is no longer in the store"):
        store.restore_tag("app:1")
    assert str(store.restore_tag("app:1", TWO.digest)) == TWO.digest


def test_restore_what_never_was(store):
    """A name without a past, and one that had a single target."""
    store.load(tar((ONE, "app:1")))
    for name in ("app:1", "unknown:1"):
        with pytest.raises(NotFoundError, match=f"{name} has no earlier target"):
            store.restore_tag(name)


def test_a_pinned_name_stays(moved):
    """Restoring moves a name like everything else that a pin forbids."""
    store, _ = moved
    store.pin("app:1")
    with pytest.raises(RefusedError, match="app:1 is pinned"):
        store.restore_tag("app:1")
    assert names(store)[NAME] == THREE.digest
    store.unpin("app:1")
