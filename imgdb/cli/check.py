"""``check``: compare everything in the store with everything else, and repair it."""

from __future__ import annotations

import os
import re
from typing import Any

import click

from imgdb.cli import findings
from imgdb.cli.context import Settings, note, pass_settings
from imgdb.cli.groups import Verb
from imgdb.cli.output import say
from imgdb.cli.params import SizeType
from imgdb.cli.printable import json_text
from imgdb.cli.streams import standard_input
from imgdb.cli.times import parse_duration
from imgdb.errors import NotFoundError

DAMAGE_EXIT = 3


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    if value is None or re.fullmatch(r"\d+(\.\d+)?", value):
        return None if value is None else float(value)
    return parse_duration(value) / 1e6


class _RateType(SizeType):
    """A size a second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse; the ``/s`` may be left out."""
        return super().convert(str(value).removesuffix("/s"), param, ctx)


@click.command(cls=Verb, style=True)
@click.option("--quick", "level", flag_value="quick", help="Look at sizes only.")
@click.option("--full", "level", flag_value="full", help="Compare the digests themselves, not blake3.")
@click.option(
    "--time-limit",
    callback=_seconds,
    metavar="SECONDS|DURATION",
    help="Stop cleanly; the next check goes on.",
)
@click.option("--rate", type=_RateType(), metavar="SIZE/s", help="Read no faster, such as 50MB/s.")
@click.option("--repair", is_flag=True, help="Mend rows, and set damaged blobs aside.")
@click.option(
    "--from",
    "archives",
    multiple=True,
    type=click.Path(allow_dash=True),
    metavar="ARCHIVE",
    help="Repair, and take damaged and lost blobs from this archive; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
@pass_settings
def check(
    settings: Settings, /, level: str | None, archives: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Compare rows, files, digests and references with each other; safe beside everything.

    Reads blobs that were verified longest ago first, so that limited checks cover a large store in
    turn. Exits with 3 when damage remains; notes are no damage.
    """
    from imgdb.check.report import CheckOptions, Level  # noqa: PLC0415 - not needed for help

    for archive in archives:
        # Said also when there is nothing to repair: a typing error must not wait for the day of damage.
        if archive != "-" and not os.path.exists(archive):
            raise NotFoundError(f"{archive}: no such file or directory")
    sources = [standard_input() if archive == "-" else archive for archive in archives]
    chosen = CheckOptions(
        Level(level or "default"), options["time_limit"], options["rate"], options["repair"], sources
    )
    with settings.open() as store:
        report = store.check(chosen, reporter=settings.reporter())
    if as_json:
        say(json_text(findings.report_record(report)))
    else:
        for finding in report.findings:
            say(findings.line(finding))
    note(findings.summary(report), settings)
    raise click.exceptions.Exit(DAMAGE_EXIT if report.damage else 0)
