"""The commands `audit` and `compare-pipelines`: whose network and pipelines, what to print and write, how to exit."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrp_entry.extras import MissingExtraError, require
from verify.formats.files import check_writable, write
from verify.reports.status import Status, exit_with
from verify.runs.selection import UnusableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

Factory = Annotated[
    str,
    typer.Argument(metavar="MODULE:FACTORY", help="A function that returns a model and an input, or only a model."),
]
Rules = Annotated[
    str,
    typer.Option(
        metavar="COMPOSITE",
        help="Rules that are meant: a composite of lrp_rules, such as EpsilonPlus or 'EpsilonGammaBox(-3, 3)'; or "
        "MODULE:RULES.",
    ),
]
_PIPELINES = (
    "attach; gradient; gradient*input; zennit:EpsilonPlus, with a canonizer zennit:EpsilonPlus+ResNetCanonizer; "
    "autolrp, or one of its recipes, autolrp:attnlrp; lxt:MODULE, with its patches of that module of Python; or "
    "MODULE:CONTEXT, which is given the model and returns a context manager."
)
Input = Annotated[
    Path | None,
    typer.Option(
        "--input",
        metavar="FILE",
        help="Input in place of the factory's. FILE.npy: an array, samples first; FILE.png: an image, as an array "
        "(1, channels, height, width) of values from 0 to 1.",
    ),
]
Target = Annotated[
    int | None, typer.Option(metavar="N", help="Output that is explained. Default: the largest of each sample.")
]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="float64, float32; as-is: that of the factory.")]
Json = Annotated[str | None, typer.Option(metavar="FILE", help="Write JSON; - is standard output.")]


def audit(
    factory: Factory,
    *,
    rules: Rules = "EpsilonPlus",
    pipeline: Annotated[str, typer.Option(metavar="PIPELINE", help=f"What explains: {_PIPELINES}")] = "attach",
    input_: Input = None,
    target: Target = None,
    dtype: Dtype = "float64",
    depth: Annotated[int, typer.Option(min=1, help="Levels of modules that make a block of the table.")] = 1,
    every: Annotated[
        bool, typer.Option("--all", metavar="", help="Print every operation, not only what did not hold.")
    ] = False,
    json: Json = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the faults in Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with a picture of the flow.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Write the picture of the flow alone.")] = None,
) -> None:
    """Find out where relevance goes in a network: each operation is held to the rule that was meant for it."""

    def run() -> Status:
        _check(json, markdown, html, png)
        if png and png.suffix.lower() != ".png":
            msg = f"--png is {png}; expected a name that ends in .png"
            raise UnusableError(msg)
        if png:
            try:
                require("figure", "--png")
            except MissingExtraError as error:  # before the audit, not after it
                raise UnusableError(str(error)) from error
        model, inputs = _setting(factory, input_, dtype)
        with _explaining(f"the audit of {factory}"):
            from verify.auditing import audit as run  # noqa: PLC0415  imports torch

            found = run(model, inputs, _rules(rules), target=target, pipeline=_pipeline(pipeline))
        from verify.auditing.page import page  # noqa: PLC0415  imports torch
        from verify.auditing.text import markdown as in_markdown  # noqa: PLC0415  the same
        from verify.auditing.text import text  # noqa: PLC0415  the same

        _print(text(found, depth=depth, every=every), json, found.to_json)
        if markdown:
            write(markdown, in_markdown(found).encode())
        if html:
            write(html, page(found).encode())
        if png:
            found.figure(png)
        return Status.PASSED if found.held else Status.FAILED

    exit_with("lrp-verify", run)


def compare_pipelines(
    factory: Factory,
    *,
    pipeline: Annotated[
        list[str], typer.Option(metavar="PIPELINE", help=f"What explains, given twice, A and B: {_PIPELINES}")
    ],
    rules: Rules = "EpsilonPlus",
    input_: Input = None,
    target: Target = None,
    dtype: Dtype = "float64",
    every: Annotated[bool, typer.Option("--all", help="Print every operation, not only where they part.")] = False,
    json: Json = None,
) -> None:
    """Find out where two pipelines part on one network, and which follows its rule. Exit status 1 if they part."""

    def run() -> Status:
        _check(json)
        if len(pipeline) != 2:
            msg = f"--pipeline is given {len(pipeline)} times; expected two, A and B"
            raise UnusableError(msg)
        model, inputs = _setting(factory, input_, dtype)
        with _explaining(f"the comparison on {factory}"):
            from verify.auditing import compare_pipelines as run  # noqa: PLC0415  imports torch

            a, b = (_pipeline(one) for one in pipeline)
            found = run(model, inputs, _rules(rules), a, b, target=target)
        _print(found.text(every=every), json, found.to_json)
        return Status.PASSED if found.same else Status.FAILED

    exit_with("lrp-verify", run)


def _check(*files: str | Path | None) -> None:
    for path in (Path(one) for one in files if one and one != "-"):
        try:
            check_writable(path)
        except OSError as error:
            msg = f"{path} cannot be written: {error.strerror or error}"
            raise UnusableError(msg) from error


def _print(text: str, json: str | None, content: Callable[[], str]) -> None:
    typer.echo(text, err=json == "-")
    if json == "-":
        typer.echo(content())
    elif json:
        write(Path(json), content().encode())


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Say what did not work, and nothing of operations without a rule: the table names them."""
    from lrp_rules import UnruledWarning  # noqa: PLC0415  imports torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnruledWarning)
            yield
    except UnusableError:
        raise
    except Exception as error:
        msg = f"{what} ended in {type(error).__name__}: {error}"
        raise UnusableError(msg) from error


def _setting(factory: str, file: Path | None, dtype: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the model and its input."""
    import torch  # noqa: PLC0415  it takes seconds

    kinds = {"float64": torch.float64, "float32": torch.float32, "as-is": None}
    if dtype not in kinds:
        msg = f"--dtype is {dtype!r}; expected one of {', '.join(kinds)}"
        raise UnusableError(msg)
    named = _named(factory)
    made: Any = named() if callable(named) and not isinstance(named, torch.nn.Module) else named
    model, x = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, torch.nn.Module) or (x is None and file is None):
        what = "a model without an input" if isinstance(model, torch.nn.Module) else type(made).__name__
        msg = f"{factory} gave {what}; expected a function that returns a model and an input, or a model with --input"
        raise UnusableError(msg)
    given: Any = x if file is None else _read(file)
    inputs = given if isinstance(given, tuple) else (given,)
    wanted = kinds[dtype]
    if wanted is not None:
        model = model.to(wanted)
        inputs = tuple(one.to(wanted) if one.is_floating_point() else one for one in inputs)
    return model.eval(), inputs


def _read(file: Path) -> Tensor:
    """Return an array or an image as a tensor."""
    import numpy as np  # noqa: PLC0415  a run of cases does without

    try:
        if file.suffix == ".npy":
            array = np.load(file, allow_pickle=False)
        elif file.suffix.lower() == ".png":
            from matplotlib.image import imread  # noqa: PLC0415  it takes a second

            pixels = imread(file)
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]  # without transparency
            array = np.moveaxis(pixels, -1, 0)[None]
        else:
            msg = f"--input is {file}; expected a file that ends in .npy or .png"
            raise UnusableError(msg)
    except (OSError, ValueError, SyntaxError) as error:
        msg = f"--input {file} cannot be read: {error}"
        raise UnusableError(msg) from error
    import torch  # noqa: PLC0415  it takes seconds

    return torch.from_numpy(np.array(array))


def _rules(spec: str) -> Any:
    if ":" in spec and "(" not in spec:
        found = _named(spec)
        return found() if callable(found) else found
    from lrp_rules import composites  # noqa: PLC0415  imports torch
    from verify.auditing.pipelines import made  # noqa: PLC0415  the same

    try:
        return made(spec, composites)
    except ValueError as error:
        msg = f"--rules: {error}"
        raise UnusableError(msg) from error


def _pipeline(spec: str) -> Any:
    from verify.auditing.pipelines import pipeline_of  # noqa: PLC0415  imports torch

    try:
        return None if spec == "attach" else pipeline_of(spec, None)
    except (ImportError, TypeError, ValueError) as error:
        msg = f"--pipeline: {error}"
        raise UnusableError(msg) from error


def _named(spec: str) -> Any:
    from verify.model import SubjectError  # noqa: PLC0415  imports torch
    from verify.subjects.loading import named  # noqa: PLC0415  the same

    try:
        return named(spec)
    except SubjectError as error:
        raise UnusableError(str(error)) from error
