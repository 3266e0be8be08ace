"""A long command's help: its options under headings."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

REST = "Options"  # the heading of those that no other one names


class WithHeadings(click.Command):
    """A command whose help lists its options under headings: {heading: the options' names}."""

    def __init__(self, *given: Any, headings: Mapping[str, Sequence[str]], **how: Any):
        super().__init__(*given, **how)
        self.headings = headings

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section of options for each heading, and one for the rest."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {option.name: option.get_help_record(ctx) for option in options}
        named = {heading: [records.pop(name) for name in names] for heading, names in self.headings.items()}
        for heading, section in [*named.items(), (REST, records.values())]:
            with formatter.section(heading):
                formatter.write_dl([record for record in section if record is not None])  # a hidden one has none
