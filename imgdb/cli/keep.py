"""``gc``, ``why``, ``df``, ``prune``: what is kept, why, and what it takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from imgdb.cli import reports
from imgdb.cli.context import Settings, complete_images, format_option, note, pass_settings
from imgdb.cli.groups import Verb
from imgdb.cli.output import emit, say
from imgdb.cli.printable import human_size, json_text, printable
from imgdb.cli.report import Sink
from imgdb.cli.times import parse_duration, parse_moment
from imgdb.errors import InvalidArgumentError

if TYPE_CHECKING:
    from imgdb.prune import Pruned, PruneOptions, PrunePlan


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    return None if value is None else parse_duration(value) / 1e6


@click.command(cls=Verb)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be freed, exactly.")
@click.option("--full", is_flag=True, help="Also list all files, recount, and mark from the roots.")
@click.option("--explain", is_flag=True, help="Say for each blob why it goes or stays.")
@click.option(
    "--grace", default="24h", show_default=True, callback=_seconds, help="Spare unknown files this long."
)
@click.option(
    "--time-limit", callback=_seconds, metavar="DURATION", help="Stop cleanly; the next run goes on."
)
@click.option("--max-delete", type=click.IntRange(min=1), metavar="N", help="Stop cleanly after N blobs.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
@click.option(
    "--textfile", metavar="FILE.prom", help="Metrics for Prometheus' node_exporter, written atomically."
)
@pass_settings
def gc(
    settings: Settings, /, dry_run: bool, explain: bool, as_json: bool, textfile: str | None, **options: Any
) -> None:
    """Free what nothing needs; safe beside imports and exports, from cron too.

    Exits with 75 when another gc is running.
    """
    from imgdb.gc import GcOptions  # noqa: PLC0415 - not needed for help

    chosen = GcOptions(options["full"], options["grace"], options["time_limit"], options["max_delete"])
    with settings.open() as store:
        plan = store.plan_gc(chosen) if dry_run or explain else None
        if explain:
            for line in reports.explain(plan, store.kept_by()):
                (Sink(sys.stderr).line if as_json else say)(line)
        report = reports.gc_plan(plan) if dry_run else reports.gc_result(store.gc(chosen))
        size = store.info().blob_bytes
    if textfile and not dry_run:
        reports.write_textfile(textfile, report, size)
    if as_json:
        say(json_text(report))
    else:
        say(reports.gc_line(report, dry_run=dry_run))
    for path in report["foreign"]:
        note(f"{printable(path)} is no blob and was left alone", settings)


@click.command(cls=Verb)
@click.argument("name", metavar="DIGEST|NAME", shell_complete=complete_images)
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
@pass_settings
def why(settings: Settings, /, name: str, as_json: bool) -> None:
    """Show every way from a root (image, lease, pin, hold) that keeps a blob, or since when it is garbage."""
    with settings.open() as store:
        answer = store.why(name)
    if as_json:
        say(json_text(reports.why_record(answer)))
        return
    for line in reports.why_lines(answer):
        say(line)


@click.command(cls=Verb)
@click.option("-v", "--verbose", is_flag=True, help="Shared and unique sizes of each image.")
@format_option
@pass_settings
def df(settings: Settings, /, verbose: bool, format_: str) -> None:
    """Show disk usage; RECLAIMABLE is exactly what would be freed.

    Of images and snapshots, by prune --all --yes-all; of blobs, by gc.
    """
    with settings.open() as store:
        usage = store.df()
    if verbose:
        emit(reports.image_usage(usage), format=format_, columns=reports.IMAGE_USAGE)
        return
    emit(
        reports.kind_usage(usage),
        format=format_,
        columns=reports.KIND_USAGE,
        template_fields=reports.KIND_FIELDS,
    )


@click.command(cls=Verb)
@click.option("-a", "--all", "every", is_flag=True, help="Named images too, not only dangling ones.")
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
@click.option("-n", "--dry-run", is_flag=True, help="Show exactly what would be removed.")
@click.option("--yes-all", is_flag=True, help="With --all and no filter: yes, everything that is not used.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="until, label, label!, last-used, reference.",
)
@click.option("--no-gc", is_flag=True, help="Remove the names only.")
@click.option("--json", "as_json", is_flag=True, help="The list as JSON.")
@pass_settings
def prune(
    settings: Settings, /, force: bool, dry_run: bool, yes_all: bool, filters: tuple[str, ...], **options: Any
) -> None:
    """Remove images that nobody uses, and free what only they needed.

    until counts from when an image became dangling or was imported. Pinned and leased images stay.
    """
    from imgdb import prune as rules  # noqa: PLC0415 - not needed for help

    chosen = _prune_options(options["every"], filters)
    rules.check(chosen, yes_all=yes_all or dry_run)
    with settings.open() as store:
        plan = store.plan_prune(chosen)
        if dry_run or (not force and plan.records):
            _show_prune(plan, as_json=options["as_json"], planned=True)
        if dry_run or not (force or not plan.records or _confirmed()):
            return
        pruned = store.prune(plan, collect=not options["no_gc"])
    if force:
        _show_prune(pruned, as_json=options["as_json"])
    else:
        say(f"Total reclaimed space: {human_size(pruned.freed_bytes)}")


def _prune_options(every: bool, filters: tuple[str, ...]) -> PruneOptions:
    from imgdb.prune import PruneOptions  # noqa: PLC0415 - not needed for help

    values: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals or key not in {"until", "label", "label!", "last-used", "reference"}:
            raise InvalidArgumentError(
                f"filter {text!r}: write until, label, label!, last-used or reference=VALUE"
            )
        values.setdefault(key, []).append(value)
    return PruneOptions(
        every=every,
        until=min(map(parse_moment, values["until"])) if "until" in values else None,
        last_used=min(map(parse_moment, values["last-used"])) if "last-used" in values else None,
        labels=values.get("label", ()),
        without_labels=values.get("label!", ()),
        references=values.get("reference", ()),
    )


def _confirmed() -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise InvalidArgumentError("prune asks before it removes, and nobody can answer; use --force")
    return click.confirm("Remove them?", err=True)


def _show_prune(done: PrunePlan | Pruned, *, as_json: bool, planned: bool = False) -> None:
    if as_json:
        say(json_text(reports.pruned(done)))
        return
    untagged, deleted = ("Would be untagged", "Would be deleted") if planned else ("Untagged", "Deleted")
    for record in done.records:
        if not record.is_dangling:
            say(f"{untagged}: {printable(record.display_name)}")
    for digest in done.deleted:
        say(f"{deleted}: {digest}")
    say(f"{'Would reclaim' if planned else 'Total reclaimed space'}: {human_size(done.freed_bytes)}")
