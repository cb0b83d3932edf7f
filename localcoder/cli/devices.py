"""`localcoder devices`: which backends exist here, which one is used, and why another is not."""

from __future__ import annotations

import json
from importlib import metadata

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def devices(as_json: bool) -> None:
    """Show what this machine can compute with, and what is used."""
    from localcoder.backends.select import survey
    from localcoder.backends.threads import thread_count

    reports = survey()
    threads = thread_count()
    stranger = stranger_warning()
    if as_json:
        facts = {"threads": threads, "backends": [r.as_dict() for r in reports], "warning": stranger}
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for report in reports:
        state = "used" if report.is_default else "usable" if report.usable else "not usable"
        click.echo(f"{report.name:<6} {report.device:<5} {state:<11} {report.description}")
        if report.reason:
            click.echo(f"{'':<12} because: {report.reason}")
        for isa in report.instruction_sets:
            state = "used" if isa.in_use else "usable" if isa.usable else f"not usable: {isa.reason}"
            click.echo(f"{'':<12} {isa.name:<12} {state}{f' ({isa.detail})' if isa.detail else ''}")
    click.echo(f"threads: {threads}")
    if stranger:
        click.echo(f"warning: {stranger}", err=True)


def stranger_warning() -> str | None:
    """One line if the unrelated distribution `localcoder` is installed beside ours (`localcoder-runtime`)."""
    try:
        version = metadata.version("localcoder")
    except metadata.PackageNotFoundError:
        return None
    return (
        f"the distribution 'localcoder' {version} is installed; it is an unrelated program whose files may replace "
        "those of 'localcoder-runtime'. Uninstall it and reinstall localcoder-runtime."
    )
