"""The network under its usual composition: our rules hold, a wrong one is named where it is, the figure can be read."""

from __future__ import annotations

import struct
from functools import wraps
from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from rich.console import Console

import lrp_rules
from verify.checks import network
from verify.model import Level, NotOfferedError, Subject, Verdict
from verify.questions.digits import load_model
from verify.questions.layers import FAMILIES
from verify.reports import network_figure
from verify.selftests.mutants.registry import negative, positive, propagate, split
from verify.subjects.loading import load

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from torch import Tensor

    from verify.checks.network import LayerResult, NetworkResult

DTYPES = ("float64", "float32")
OURS = load("lrp_rules")


class EpsilonIgnoresR(lrp_rules.Epsilon):
    def relevances(self, layer: Any, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return super().relevances(layer, tuple(z.detach() for z in layer.linear_outputs))


class EpsilonTenfold(lrp_rules.Epsilon):
    def __init__(self) -> None:
        super().__init__(1e-5)


class EpsilonOfFewerDigits(lrp_rules.Epsilon):
    def relevances(self, layer: Any, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(r.bfloat16().to(r.dtype) for r in super().relevances(layer, R))


class EpsilonNaN(lrp_rules.Epsilon):
    def relevances(self, layer: Any, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(r * float("nan") for r in super().relevances(layer, R))


class GammaGatedByR(lrp_rules.Gamma):
    def relevance(self, layer: Any, R: Tensor) -> Tensor:
        up, down = (layer.matrix(lambda w, part=part: w + self.gamma * part(w)) for part in (positive, negative))
        b, g = layer.bias, self.gamma
        above = propagate(split(layer.x, up, down), b + g * positive(b), positive(R), self.stabilizer)
        return above + propagate(split(layer.x, down, up), b + g * negative(b), negative(R), self.stabilizer)


class ZBoxAveraged(lrp_rules.ZBox):
    def __init__(self, low: float, high: float) -> None:
        super().__init__((low + high) / 2, (low + high) / 2)


class ZPlusWithoutBias(lrp_rules.ZPlus):
    def __init__(self) -> None:
        super().__init__(zero_params="bias")


class NormByGradient(lrp_rules.Norm):
    def relevances(self, layer: Any, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(layer.pull(R))


class PassScaled(lrp_rules.Pass):
    def backward(self, module: Any, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (grad_output[0] * (1 + 1e-6),)


class PassRaises(lrp_rules.Pass):
    def backward(self, module: Any, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        message = "planted"
        raise ArithmeticError(message)


def planted(**rules: Any) -> Subject:
    """Our rules with others in their place; None takes one away."""
    namespace = {name: getattr(lrp_rules, name) for name in lrp_rules.__all__} | rules
    return Subject("planted", SimpleNamespace(**{n: rule for n, rule in namespace.items() if rule is not None}), "0")


WRONG = {
    "epsilon-ignores-R": ("Epsilon", EpsilonIgnoresR),
    "epsilon-of-fewer-digits": ("Epsilon", EpsilonOfFewerDigits),
    "gamma-gated-by-R": ("Gamma", GammaGatedByR),
    "zbox-averaged": ("ZBox", ZBoxAveraged),
    "zplus-without-bias": ("ZPlus", ZPlusWithoutBias),
    "norm-by-gradient": ("Norm", NormByGradient),
    "pass-scaled": ("Pass", PassScaled),
}


def on(rule: str) -> set[int]:
    """The layers that have this rule."""
    return {index for index, step in enumerate(network.COMPOSITION) if step.rule == rule}


@pytest.fixture(scope="module")
def results() -> dict[str, NetworkResult]:
    return {dtype: network.run(OURS, network.pick(), dtype) for dtype in DTYPES}


@pytest.fixture(scope="module")
def drawn(results: dict[str, NetworkResult]) -> Figure:
    figure = network_figure.figure(results["float64"], "lrp_rules 0")
    paint(figure)
    return figure


def paint(figure: Figure) -> None:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()


# --- cases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_our_rules_hold(dtype: str) -> None:
    for case in network.cases(dtypes=(dtype,)):
        found = case.run(OURS)
        assert found.verdict is Verdict.PASS, (case.id, found)
        assert found.ratio is not None
        assert found.ratio <= 1
        assert found.undecided == 0
        assert found.details["model"] == dtype


def test_a_case_for_each_layer_with_a_rule_and_one_for_the_chain() -> None:
    cases = list(network.cases())
    assert len(cases) == len({case.id for case in cases}) == 2 * 12
    assert {case.check for case in cases} == {"network"}
    assert {case.level for case in cases} == {Level.MUST}
    assert {case.layer for case in cases} <= {*FAMILIES, "-"}
    ids = [case.id for case in network.cases(dtypes=("float32",))]
    assert ids[0] == "network/0-conv2d/ZBox/float32"
    assert ids[-2:] == ["network/11-linear/Epsilon/float32", "network/chain/float32"]


def test_the_composition_fits_the_network() -> None:
    for module, step in zip(load_model(), network.COMPOSITION, strict=True):
        assert type(module).__name__.lower() == step.layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_fails_where_it_is_and_nowhere_else(name: str, dtype: str) -> None:
    rule, wrong = WRONG[name]
    subject = planted(**{rule: wrong})
    found = {case.id: (case, case.run(subject)) for case in network.cases(dtypes=(dtype,))}
    failed = {id_ for id_, (_, finding) in found.items() if finding.verdict is Verdict.FAIL}
    named = {f"network/{i}-{network.COMPOSITION[i].layer}/{rule}/{dtype}" for i in on(rule)}
    # scaling by 1 + 1e-6 is less than the rounding of all layers in float32, but not of one layer that does not round
    chain = set() if (name, dtype) == ("pass-scaled", "float32") else {f"network/chain/{dtype}"}
    assert failed == named | chain
    others = {finding.verdict for id_, (_, finding) in found.items() if id_ not in failed}
    assert others == {Verdict.PASS}
    for id_ in failed:
        case, finding = found[id_]
        assert not ((finding.ratio or 0) <= 1)
        assert "expected" in finding.reason
        assert "got" in finding.reason
        if case.rule == "all":
            assert finding.details["layers that failed"] == [f"{i} ({rule})" for i in sorted(on(rule))]


def test_a_mistake_far_below_what_can_be_seen_is_found_in_float64() -> None:
    result = network.run(planted(Epsilon=EpsilonTenfold), network.pick(), "float64")
    assert {layer.index for layer in result.layers if layer.wrong} == on("Epsilon")
    off = np.abs(result.chain.got - result.chain.expected).max()
    assert off < 1e-5 * np.abs(result.chain.expected).max()
    assert result.chain.comparison.refuted


def test_nothing_is_said_of_layers_below_one_that_gives_nan() -> None:
    subject = planted(Epsilon=EpsilonNaN)
    verdicts = {case.id: case.run(subject).verdict for case in network.cases(dtypes=("float64",))}
    assert verdicts.pop("network/11-linear/Epsilon/float64") is Verdict.FAIL
    assert verdicts.pop("network/chain/float64") is Verdict.FAIL
    assert set(verdicts.values()) == {Verdict.INCONCLUSIVE}


def test_a_rule_that_is_not_offered() -> None:
    subject = planted(Norm=None)
    for case in network.cases(dtypes=("float64",)):
        with pytest.raises(NotOfferedError, match="Norm"):
            case.run(subject)


@pytest.mark.parametrize(
    ("subject", "error"),
    [(OURS, None), (planted(Pass=PassRaises), ArithmeticError), (planted(Norm=None), NotOfferedError)],
    ids=["after a run", "after an exception", "after a rule that is missing"],
)
def test_nothing_stays_on_the_network(
    subject: Subject, error: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model()
    monkeypatch.setattr(network, "load_model", lambda: model)
    if error is None:
        network.run(subject, network.pick(), "float32")
    else:
        with pytest.raises(error):
            network.run(subject, network.pick(), "float32")
    for module in model:
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_one_run_serves_all_cases_of_a_subject_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    network._recent.clear()
    runs: list[tuple[str, str]] = []
    run = network.run

    def counted(subject: Subject, images: Any, dtype: str, device: str) -> NetworkResult:
        runs.append((subject.spec, dtype))
        return run(subject, images, dtype, device)

    monkeypatch.setattr(network, "run", counted)
    subjects = [OURS, planted()]
    for subject in subjects:
        for case in network.cases():
            case.run(subject)
    assert runs == [(subject.spec, dtype) for subject in subjects for dtype in DTYPES]
    for seed in range(6):
        next(network.cases(seed=seed)).run(OURS)
    assert len(network._recent) == 4


def test_the_seed_picks_the_images() -> None:
    first, second = network.pick(0), network.pick(1)
    assert first.labels.tolist() == second.labels.tolist() == list(network.DIGITS)
    assert not torch.equal(first.pixels, second.pixels)
    assert torch.equal(network.pick(10**6).pixels, network.pick(10**6).pixels)


# --- ledger and chain -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ledger_of_each_layer_balances(results: dict[str, NetworkResult], dtype: str) -> None:
    for layer in results[dtype].layers:
        off = np.abs(layer.incoming - sum(layer.sinks.values()))
        assert (off <= layer.balance).all(), layer.index
        assert (layer.balance <= 1e-12 * np.abs(layer.incoming)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ledgers_connect(results: dict[str, NetworkResult], dtype: str) -> None:
    result = results[dtype]
    for layer, below in zip(result.layers[1:], result.layers, strict=False):
        off = np.abs(layer.sinks["inputs"] - below.incoming)
        assert (off <= layer.room).all(), layer.index
    first = result.layers[0]
    assert (np.abs(first.sinks["inputs"] - result.chain.got.sum(1)) <= first.room).all()
    assert np.array_equal(result.layers[-1].incoming, result.logits.max(1))


def test_ledgers_of_a_wrong_rule_do_not_connect() -> None:
    result = network.run(planted(ZPlus=ZPlusWithoutBias), network.pick(), "float64")
    apart = {
        layer.index
        for layer, below in zip(result.layers[1:], result.layers, strict=False)
        if not (np.abs(layer.sinks["inputs"] - below.incoming) <= layer.room).all()
    }
    assert apart == on("ZPlus")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_of_the_chain_is_finite_and_narrow(results: dict[str, NetworkResult], dtype: str) -> None:
    chain = results[dtype].chain
    largest = np.abs(chain.expected).max()
    assert chain.worst.max() < {"float64": 1e-11, "float32": 1e-2}[dtype] * largest
    assert (chain.probable <= chain.worst).all()


def all_of_it(layer: LayerResult, percents: list[float]) -> bool:
    """Whether shares in per cent are all that came in, within the layer's balance.

    Beside it, sums over images round once for each number that is added, and per cents of them a few times more.
    """
    numbers = np.concatenate([layer.incoming.ravel(), *(sink.ravel() for sink in layer.sinks.values())])
    adding = (numbers.size + 8) * float(np.finfo(float).eps) * float(np.abs(numbers).sum())
    incoming = float(layer.incoming.sum())
    return abs(sum(percents) * incoming / 100 - incoming) <= float(layer.balance.sum()) + adding


# --- table and figure -------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_layer(results: dict[str, NetworkResult]) -> None:
    console = Console(width=150)
    with console.capture() as capture:
        console.print(network_figure.table(results["float32"]))
    text = capture.get()
    for index, step in enumerate(network.COMPOSITION):
        assert any(f" {index} {step.layer} " in line and (step.rule or "(none)") in line for line in text.splitlines())
    assert "chain" in text
    assert "float32" in text
    layer = results["float32"].layers[2]
    shares = network_figure.shares(layer)
    assert all_of_it(layer, [percent for _, percent in shares.values()])
    assert f"{shares['bias'][0]:.4f}" in text


def test_the_figure_is_a_png_of_sensible_size(tmp_path: Path) -> None:
    path = tmp_path / "network.png"
    result = network_figure.draw(OURS, path, images=network.pick(digits=(1, 5)))
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 1000 <= width <= 3000
    assert 1000 <= height <= 3000
    assert 20_000 < len(content) < 1_000_000
    assert result.images.labels.tolist() == [1, 5]
    assert [file.name for file in tmp_path.iterdir()] == ["network.png"]


def colours_of(image: AxesImage) -> Any:
    return image.to_rgba(np.asarray(image.get_array()), bytes=True).astype(int)


def test_the_two_maps_look_the_same(drawn: Figure, results: dict[str, NetworkResult]) -> None:
    maps = [ax for ax in drawn.axes if ax.images]
    for row in range(len(network.DIGITS)):
        _, hooks, matrices, difference = (ax.images[0] for ax in maps[4 * row : 4 * row + 4])
        assert hooks.get_clim() == matrices.get_clim()
        assert hooks.get_clim()[0] == -hooks.get_clim()[1]
        assert difference.get_clim()[1] < 1e-12 * hooks.get_clim()[1]
        colours = [colours_of(image) for image in (hooks, matrices)]
        assert np.abs(colours[0] - colours[1]).max() <= 1  # of 255: at most where a value is on the edge of two colours
        assert np.ptp(colours[0], axis=(0, 1)).max() > 100
        off = np.abs(results["float64"].chain.got[row] - results["float64"].chain.expected[row]).max()
        assert maps[4 * row + 3].get_xlabel() == f"at most {off:.1e}"


def test_the_two_maps_of_a_wrong_rule_do_not() -> None:
    result = network.run(planted(ZBox=ZBoxAveraged), network.pick(digits=(0,)), "float64")
    figure = network_figure.figure(result, "planted 0")
    hooks, matrices = (ax.images[0] for ax in figure.axes[1:3])
    colours = [colours_of(image) for image in (hooks, matrices)]
    assert np.abs(colours[0] - colours[1]).max() > 50
    labels = [label.get_text() for ax in figure.axes for label in ax.get_yticklabels()]
    assert [text for text in labels if "WRONG" in text] == ["0 conv2d: ZBox (WRONG)"]


def test_no_texts_of_the_figure_overlap(drawn: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[Text] = []  # those that are drawn: labels of ticks out of sight are not
    draw = Text.draw

    @wraps(draw)
    def noted(text: Text, *arguments: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            texts.append(text)
        draw(text, *arguments)

    monkeypatch.setattr(Text, "draw", noted)
    paint(drawn)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len(boxes) > 60
    for (one, a), (other, b) in combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)
    for text, box in boxes:
        assert drawn.bbox.x0 <= box.x0 < box.x1 <= drawn.bbox.x1, text
        assert drawn.bbox.y0 <= box.y0 < box.y1 <= drawn.bbox.y1, text


def test_bars_of_a_layer_meet_and_add_up(drawn: Figure, results: dict[str, NetworkResult]) -> None:
    whole = next(ax for ax in drawn.axes if ax.get_title().startswith("Where"))
    for position, layer in enumerate(reversed(results["float64"].layers)):
        bars = [container[position] for container in whole.containers]
        widths = [bar.get_width() for bar in bars]
        percents = [percent for _, percent in network_figure.shares(layer).values()]
        # ends are sums of widths, and a width is read back as a difference of ends: each rounds a number of at most
        # the sum of their sizes
        room = len(percents) * float(np.finfo(float).eps) * sum(map(abs, percents))
        assert all_of_it(layer, percents)
        assert max(abs(width - percent) for width, percent in zip(widths, percents, strict=True)) <= room
        spans = sorted(sorted((bar.get_x(), bar.get_x() + bar.get_width())) for bar in bars if bar.get_width())
        assert spans[0][0] <= 0 <= spans[-1][1]
        for (_, end), (start, _) in pairwise(spans):
            assert abs(start - end) <= room


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in '\.jpg'; expected a name that ends in '\.png'"):
        network_figure.draw(OURS, tmp_path / "network.jpg")


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_folder_that_cannot_be_written_to(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"network\.png cannot be written: .*Name a file in a folder that exists"):
        network_figure.draw(OURS, tmp_path / folder / "network.png")


def test_a_failure_leaves_the_old_figure(tmp_path: Path) -> None:
    path = tmp_path / "network.png"
    path.write_bytes(b"old")
    with pytest.raises(ArithmeticError, match="planted"):
        network_figure.draw(planted(Pass=PassRaises), path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["network.png"]
