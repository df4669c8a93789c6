"""The program that the commands belong to."""

import typer

app = typer.Typer(
    name="workingpapers",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Neural-network papers that work: find one, use it, compare it, check its claim.",
)
