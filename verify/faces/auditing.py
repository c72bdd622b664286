"""The command `lrp-verify audit`: whose network and pipeline, what to print, which files to write, how to exit."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verify.formats.files import check_writable, write
from verify.reports.status import Status, exit_with
from verify.runs.selection import UnusableError

if TYPE_CHECKING:
    from verify.auditing import Audit


def audit(
    factory: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="A function that returns a model and an input.")
    ],
    *,
    rules: Annotated[
        str,
        typer.Option(
            metavar="COMPOSITE",
            help="Rules that are meant: a composite of lrp_rules, such as EpsilonPlus or 'EpsilonGammaBox(-3, 3)'; or "
            "MODULE:RULES.",
        ),
    ] = "EpsilonPlus",
    pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="PIPELINE",
            help="What explains: gradient; zennit:EpsilonPlus, or with a canonizer zennit:EpsilonPlus+ResNetCanonizer; "
            "or MODULE:CONTEXT, which is given the model and returns a context manager. Default: lrp_rules' attach.",
        ),
    ] = None,
    target: Annotated[
        int | None, typer.Option(metavar="N", help="Output that is explained. Default: the largest of each sample.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="float64, float32; as-is: that of the factory.")
    ] = "float64",
    depth: Annotated[int, typer.Option(min=1, help="Levels of modules that make a block of the table.")] = 1,
    every: Annotated[
        bool, typer.Option("--all", metavar="", help="Print every operation, not only what did not hold.")
    ] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write JSON; - is standard output.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the faults in Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with a picture of the flow.")] = None,
) -> None:
    """Find out where relevance goes in a network: each operation is held to the rule that was meant for it."""

    def run() -> Status:
        files = [path for path in (None if json in {None, "-"} else Path(str(json)), markdown, html) if path]
        for path in files:
            try:
                check_writable(path)
            except OSError as error:
                msg = f"{path} cannot be written: {error.strerror or error}"
                raise UnusableError(msg) from error
        found = _audit(factory, rules, pipeline, target, dtype)
        from verify.auditing.page import page  # noqa: PLC0415  imports torch
        from verify.auditing.text import markdown as in_markdown  # noqa: PLC0415  the same
        from verify.auditing.text import text  # noqa: PLC0415  the same

        typer.echo(text(found, depth=depth, every=every), err=json == "-")
        if json == "-":
            typer.echo(found.to_json())
        elif json:
            write(Path(json), found.to_json().encode())
        if markdown:
            write(markdown, in_markdown(found).encode())
        if html:
            write(html, page(found).encode())
        return Status.PASSED if found.held else Status.FAILED

    exit_with("lrp-verify", run)


def _audit(factory: str, rules: str, pipeline: str | None, target: int | None, dtype: str) -> Audit:
    import torch  # noqa: PLC0415  it takes seconds

    from lrp_rules import UnruledWarning  # noqa: PLC0415  imports torch
    from verify.auditing import audit as run  # noqa: PLC0415  the same

    kinds = {"float64": torch.float64, "float32": torch.float32, "as-is": None}
    if dtype not in kinds:
        msg = f"--dtype is {dtype!r}; expected one of {', '.join(kinds)}"
        raise UnusableError(msg)
    made = _named(factory)
    made = made() if callable(made) and not isinstance(made, torch.nn.Module) else made
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], torch.nn.Module):
        msg = f"{factory} gave {type(made).__name__}; expected a function that returns a model and an input"
        raise UnusableError(msg)
    model, x = made
    inputs = x if isinstance(x, tuple) else (x,)
    wanted = kinds[dtype]
    if wanted is not None:
        model = model.to(wanted)
        inputs = tuple(one.to(wanted) if one.is_floating_point() else one for one in inputs)
    meant, context = _rules(rules), _pipeline(pipeline)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnruledWarning)  # the table says it
            return run(model.eval(), inputs, meant, target=target, pipeline=context)
    except Exception as error:
        msg = f"the audit of {factory} ended in {type(error).__name__}: {error}"
        raise UnusableError(msg) from error


def _rules(spec: str) -> Any:
    if ":" in spec and "(" not in spec:
        found = _named(spec)
        return found() if callable(found) else found
    from lrp_rules import composites  # noqa: PLC0415  imports torch

    return _made(spec, composites, "--rules")


def _pipeline(spec: str | None) -> Any:
    if spec is None or spec == "gradient":
        return spec
    if not spec.startswith("zennit:"):
        return _named(spec)
    name, *canonizers = spec.removeprefix("zennit:").split("+")
    places = [_named(module) for module in ("zennit.canonizers", "zennit.torchvision")]
    found = []
    for one in canonizers:
        place = next((place for place in places if hasattr(place, one.partition("(")[0])), places[0])
        found.append(_made(one, place, "--pipeline"))
    return _made(name, _named("zennit.composites"), "--pipeline", **({"canonizers": found} if found else {})).context


def _made(call: str, place: Any, option: str, **more: Any) -> Any:
    """Return what a call such as 'EpsilonGammaBox(-3, high=3)' makes."""
    name, _, arguments = call.partition("(")
    kind = getattr(place, name.strip(), None)
    if kind is None:
        own = (one for one in vars(place).values() if getattr(one, "__module__", "") == place.__name__)
        known = ", ".join(sorted(one.__name__ for one in own if isinstance(one, type)))
        msg = f"{option}: {place.__name__} has no {name!r}; it has {known}"
        raise UnusableError(msg)
    try:
        parsed: Any = ast.parse(f"f({arguments.rstrip().removesuffix(')')})", mode="eval").body
        args = [ast.literal_eval(arg) for arg in parsed.args]
        kwargs = {arg.arg: ast.literal_eval(arg.value) for arg in parsed.keywords}
        return kind(*args, **kwargs, **more)
    except (SyntaxError, TypeError, ValueError) as error:
        msg = f"{option}: {call} cannot be made: {error}"
        raise UnusableError(msg) from error


def _named(spec: str) -> Any:
    from verify.model import SubjectError  # noqa: PLC0415  imports torch
    from verify.subjects.loading import named  # noqa: PLC0415  the same

    try:
        return named(spec)
    except SubjectError as error:
        raise UnusableError(str(error)) from error
