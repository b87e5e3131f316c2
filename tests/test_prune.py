"""Removing images by rule.

Upstream's cases (specification §8.6) that apply, by name; a container that uses an image is a pin, a lease
or an unpacked file system here: PruneDontDeleteUsedDangling, PruneDontDeleteUsedImage (a single tag, two
tags, by digest), PruneReportsUnusedImageTotalSizeReclaimed, PruneLabelFilterNegative. PruneLexographicalOrder
does not: of an image whose digest is used every name stays, not only the last.
"""

from __future__ import annotations

import pytest

from imgdb.db import sql
from imgdb.db.leases import Resource
from imgdb.errors import InvalidArgumentError
from imgdb.prune import PruneOptions, check
from tests.builder import Image, Index
from tests.clock import DAY, HOUR, Clock
from tests.collecting import freed, image, tar
from tests.db.rows import Rows, open_shell
from tests.looking import digests, names, present
from tests.test_unpack import HOST

ALL = PruneOptions(every=True)


@pytest.fixture
def clock(monkeypatch):
    """Time for rows; stands still until it is moved."""
    made = Clock()
    made.freeze()
    monkeypatch.setattr(sql, "clock", made)
    return made


def short(records):
    """Names as users say them; `<none>` for a dangling image."""
    return ["<none>" if record.is_dangling else record.display_name for record in records]


def pruned(store, options=ALL):
    """Short names that a prune removed, after making sure that the plan said all the same."""
    plan = store.plan_prune(options)
    before = present(store)
    done = store.prune(plan)
    assert (done.records, done.deleted, done.freed_bytes) == (plan.records, plan.deleted, plan.freed_bytes)
    assert before - present(store) == freed(plan)
    return short(done.records)


def test_prune_dont_delete_used_dangling(new_store):
    """A dangling image that a lease keeps."""
    store = new_store(leases={"l"})
    used, unused = image(1), image(2)
    store.load(tar((used,), (unused,), (image(3), "named:1")))
    store.create_lease("l")
    store.add_to_lease("l", [used.digest])
    assert pruned(store, PruneOptions()) == ["<none>"]
    assert present(store) == digests(used, image(3))


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (lambda store, _: store.pin("used:1"), {"used:1", "used:2"}),
        (lambda store, node: store.add_to_lease("l", [node.digest]), {"used:1", "used:2"}),
        (lambda store, _: store.add_to_lease("l", ["used:2"]), {"used:1", "used:2"}),
        (lambda store, _: store.add_to_lease("l", [Resource("images", "used:2")]), {"used:2"}),
    ],
    ids=["pin", "digest", "target", "name"],
)
def test_prune_dont_delete_used_image(new_store, keep, left):
    """By its digest all names stay, by a name that one."""
    store = new_store(leases={"l"})
    node = image(1)
    store.load(tar((node, "used:1", "used:2"), (image(2), "unused:1")))
    store.create_lease("l")
    keep(store, node)
    assert set(pruned(store)) == {"used:1", "used:2", "unused:1"} - left
    assert set(names(store)) == {f"docker.io/library/{name}" for name in left}
    assert present(store) == digests(node)


def test_prune_dont_delete_unpacked_image(new_store):
    """Of which a file system is in use: below an active snapshot, or mounted."""
    store = new_store()
    active, mounted, idle = image(1), image(2), image(3)
    store.load(tar((Index([active]), "active:1"), (mounted, "mounted:1"), (idle, "idle:1")))
    rows = Rows(open_shell(f"{store.root}/imgdb.db"))
    blobs = {digest: row for row, digest in rows.sql("SELECT id, digest FROM imgdb_blobs")}
    tops = [rows.snapshot(f"top{number}") for number in range(3)]
    for top, node in zip(tops, (active, mounted, idle), strict=True):
        rows.unpack(blobs[node.digest], top)
    upper = rows.snapshot("upper", tops[0], kind="active")
    rows.mount(tops[1], "/mnt")
    assert pruned(store) == ["idle:1"]
    rows.sql("DELETE FROM imgdb_mounts")
    rows.sql("DELETE FROM imgdb_snapshots WHERE id = ?", upper)
    assert set(pruned(store)) == {"active:1", "mounted:1"}
    rows.sql("DELETE FROM imgdb_snapshots")
    rows.connection.close()


def test_prune_reports_unused_image_total_size_reclaimed(new_store):
    """Shared blobs stay and are not counted; what was garbage before is freed and counted."""
    store = new_store()
    one, two, garbage = image(1), image(2), image(3)
    store.load(tar((Index([one, two]), "both:1"), (one, "one:1"), (garbage, "garbage:1")))
    store.remove("garbage:1")
    store.pin("one:1")
    plan = store.plan_prune(ALL)
    assert freed(plan) == digests(Index([one, two]), garbage) - digests(one)
    assert pruned(store) == ["both:1"]
    store.unpin("one:1")


@pytest.mark.parametrize(
    ("labels", "without", "expected"),
    [
        (["stage"], [], {"a:1", "b:1"}),
        (["stage=prod"], [], {"a:1"}),
        (["stage", "team=x"], [], {"a:1"}),
        ([], ["stage=prod"], {"b:1", "c:1"}),
        ([], ["stage"], {"c:1"}),
        (["stage"], ["team=x"], {"b:1"}),
        (["stage=none"], [], set()),
    ],
)
def test_prune_label_filter_negative(new_store, labels, without, expected):
    """All labels must be there, none of the others; of the config, as docker has it."""
    store = new_store()
    marked = {"a": {"stage": "prod", "team": "x"}, "b": {"stage": "test"}, "c": None}
    store.load(tar(*((image(n, labels=label), f"{n}:1") for n, label in marked.items())))
    assert set(pruned(store, PruneOptions(every=True, labels=labels, without_labels=without))) == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["a"], {"a:1", "a:2"}),
        (["a:2"], {"a:2"}),
        (["*:1"], {"a:1", "b:1"}),
        (["a:1", "example.org/*/*"], {"a:1", "example.org/x/a:1"}),
        (["nothing"], set()),
    ],
)
def test_reference_filter(new_store, patterns, expected):
    """Any may match; a dangling image has no name that could."""
    store = new_store()
    known = ["a:1", "a:2", "b:1", "example.org/x/a:1"]
    store.load(tar(*((image(number), name) for number, name in enumerate(known)), (image(9),)))
    assert set(pruned(store, PruneOptions(every=True, references=patterns))) == expected


def test_until_counts_from_when_it_became_dangling(new_store, clock):
    """Not from when it was imported; of a named image from when it got its target."""
    store = new_store()
    old, new = image(1), image(2)
    store.load(tar((old, "app:1"), (image(3), "other:1")))
    clock.forward(10 * DAY)
    store.load(tar((new, "app:1")))
    clock.forward(HOUR)
    week = PruneOptions(until=clock() // 1000 - int(7 * DAY * 1e6))
    assert store.plan_prune(week).records == ()
    assert pruned(store, PruneOptions(every=True, until=week.until)) == ["other:1"]
    clock.forward(7 * DAY)
    assert pruned(store, PruneOptions(until=clock() // 1000 - int(7 * DAY * 1e6))) == ["<none>"]
    assert present(store) == digests(new)


def test_last_used_is_coarse(new_store, clock, tmp_path):
    """An export is a use, remembered once an hour; what was never used counts from its import."""
    store = new_store()
    store.load(tar((image(1), "used:1"), (image(2), "unused:1")))

    def last_used():
        return {i.record.display_name: i.record.last_used_at for i in store.images()}

    used = []
    for step in (2 * HOUR, HOUR / 2, HOUR):
        clock.forward(step)
        store.export(["used:1"], str(tmp_path / "out.tar"))
        used.append((last_used()["used:1"], clock() // 1000))
    assert [at == now for at, now in used] == [True, False, True]
    assert used[1][0] == used[0][0]
    assert last_used()["unused:1"] is None
    since = clock() // 1000 - int(HOUR * 1e6)
    assert pruned(store, PruneOptions(every=True, last_used=since)) == ["unused:1"]


def test_without_all_only_dangling_ones(new_store):
    """And no collection where none is wanted."""
    store = new_store()
    store.load(tar((image(1),), (image(2), "named:1")))
    plan = store.plan_prune(PruneOptions())
    done = store.prune(plan, collect=False)
    assert (short(done.records), done.freed_bytes) == (["<none>"], 0)
    assert present(store) == digests(image(1), image(2))
    assert store.gc().freed_bytes == plan.freed_bytes


def test_all_must_be_meant():
    """With --all and no filter everything unused goes; any filter, or a word, says that it is meant."""
    with pytest.raises(InvalidArgumentError, match="--yes-all"):
        check(ALL, yes_all=False)
    for options in (
        PruneOptions(),
        PruneOptions(every=True, until=1),
        PruneOptions(every=True, labels=["a"]),
    ):
        check(options, yes_all=False)
    check(ALL, yes_all=True)


def test_what_changed_since_the_plan_stays(new_store):
    """A name that moved, was pinned, leased or went; the rest goes as planned."""
    store = new_store(leases={"l"})
    targets = {name: image(name) for name in ("moved", "pinned", "leased", "gone", "rest", "twice")}
    store.load(tar(*((node, f"{name}:1") for name, node in targets.items())))
    plan = store.plan_prune(ALL)
    store.load(tar((image("other"), "moved:1")))
    store.pin("pinned:1")
    store.create_lease("l")
    store.add_to_lease("l", ["leased:1"])
    store.remove("gone:1")
    store.tag("twice:1", "again:1")
    done = store.prune(plan)
    assert short(done.records) == ["rest:1", "twice:1"]
    assert [str(digest) for digest in done.deleted] == [targets["rest"].digest]
    left = {"moved:1": image("other"), "pinned:1": targets["pinned"], "leased:1": targets["leased"]}
    named = {f"docker.io/library/{name}": node.digest for name, node in left.items()}
    named |= {"docker.io/library/again:1": targets["twice"].digest}
    assert {name: digest for name, digest in names(store).items() if "dangling" not in name} == named
    assert targets["moved"].digest in present(store)


def test_events(new_store):
    """What went, for those who read along."""
    store = new_store()
    node, nameless = image(1), image(2)
    store.load(tar((node, "a:1", "a:2"), (nameless,)))
    last = store.events()[-1].id
    pruned(store)
    happened = [(event.action, event.actor, event.name) for event in store.events(after_id=last)]
    untagged = [("untag", node.digest, f"docker.io/library/a:{tag}") for tag in (1, 2)]
    deleted = [("delete", digest, None) for digest in sorted([node.digest, nameless.digest])]
    assert happened == untagged + deleted


def test_an_image_below_a_snapshot_is_used(new_store, tmp_path):
    """However many were committed between it and the one that is written; until that is removed."""
    store = new_store()
    store.load(Image([{"a": b"1"}], HOST).oci_tar(tmp_path / "x.tar", "app:1"))
    store.unpack("app:1")
    store.prepare("first", "app:1")
    store.commit_snapshot("done", "first")
    store.prepare("second", "done")
    everything = PruneOptions(every=True)
    assert store.plan_prune(everything).records == ()
    store.remove_snapshot("second")
    assert [record.display_name for record in store.plan_prune(everything).records] == ["app:1"]
    assert len(store.prune(store.plan_prune(everything)).records) == 1
    assert store.snapshots() == []
