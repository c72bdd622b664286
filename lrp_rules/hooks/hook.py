"""What people subclass to write a rule: Hook, by its backward, or BasicHook, by modifiers or a formula."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lrp_rules.errors import see
from lrp_rules.hooks.call import HookInterface
from lrp_rules.hooks.refusals import check_twin
from lrp_rules.hooks.registration import Registration
from lrp_rules.hooks.rerun import check_repeated, parameters_below
from lrp_rules.layers.derivative import Derivative, ends
from lrp_rules.layers.effective import effective
from lrp_rules.layers.known import Layer, TracedLayer, pull
from lrp_rules.modules import effective_parameters
from lrp_rules.params import NoMod, ParamMod
from lrp_rules.stabilizer import Stabilizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lrp_rules.hooks.call import Call

    Tensors = tuple[Tensor, ...]


class Hook(HookInterface):
    """What replaces the backward pass of a module while it is registered; people write their own by subclassing.

    Define ``backward(module, grad_input, grad_output)``, and ``forward(module, input, output)`` where something of
    the forward pass is needed. Both get tuples, with one entry for each floating-point tensor that goes in or comes
    out, as in torch's full backward hooks. Tensors that ``forward`` sets as attributes of ``self`` belong to that one
    call: its ``backward`` finds them, no other call does, and they go with the graph.

    On a module whose parts have hooks of their own, ``grad_input`` is what comes back through these.

    >>> class SignOfRelevance(Hook):
    ...     needs_grad_input = False
    ...
    ...     def backward(self, module, grad_input, grad_output):
    ...         return (grad_output[0].sign(),)
    >>> relu, x = nn.ReLU(), torch.tensor([[1.0, -2.0]], requires_grad=True)
    >>> with SignOfRelevance().register(relu):
    ...     (r,) = torch.autograd.grad(relu(x), x, torch.tensor([[3.0, -4.0]]))
    >>> r
    tensor([[ 1., -1.]])
    """

    #: Whether ``backward`` uses ``grad_input``, the module's own gradient. Where not, ``(None,)`` costs nothing.
    needs_grad_input: ClassVar[bool] = True

    @property
    def uses_inputs(self) -> bool:
        """Whether the inputs of the module are to be kept for ``backward``."""
        return self.needs_grad_input

    @property
    def needs_graph(self) -> bool:
        """Whether the rule asks how the outputs depend on the inputs, of a module that is not known."""
        return self.needs_grad_input

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:
        """Look at one call of the module, after it."""

    def backward(
        self, module: nn.Module, grad_input: Any, grad_output: Tensors
    ) -> Tensor | Sequence[Tensor | None] | None:
        """Return the relevance of each input; None keeps ``grad_input``."""
        return None

    def copy(self) -> Self:
        """Return a hook with the same arguments."""
        return copy.copy(self)

    def register(self, module: nn.Module) -> Registration:
        """Put this hook on a module.

        Returns
        -------
        Registration
            Its ``remove()`` takes everything away again; as a context manager, it does so at the end.

        Raises
        ------
        RuntimeError
            If the module has a hook of this kind already.

        """
        return Registration(self, module)

    def _record(self, call: Call, inputs: Tensors, outputs: Tensors) -> tuple[Tensors, Tensors, bool]:
        call.graph = [_edge(output) if output.requires_grad else None for output in outputs]
        return (*self._kept(call, inputs, outputs), *(outputs if self.needs_grad_input else ())), (), False

    def _again(self, call: Call, inputs: Tensors, outputs: Tensors) -> Tensors:
        given = effective_parameters(call.module, call.kind.used_parameters, call.used)
        if call.kind is TracedLayer:
            return call.run({name: value for name, value in given.items() if value is not None}, *_ends_of(inputs))
        buffers = {name: getattr(call.module, name) for name in call.kind.used_buffers}
        return (call.kind(call.module, inputs, None, outputs[0].shape, given, run=call.run, buffers=buffers).output(),)

    def _kept(self, call: Call, inputs: Tensors, outputs: Tensors) -> Tensors:
        """Run ``forward`` on a copy that is this call's own, and return the tensors that it has set there."""
        if type(self).forward is Hook.forward:
            return ()
        private = copy.copy(self)
        private.forward(call.module, inputs, tuple(output.detach() for output in outputs))
        kept = {name: value for name, value in vars(private).items() if isinstance(value, Tensor)}
        for name in kept:
            delattr(private, name)
        call.hook, call.kept = private, tuple(kept)
        return tuple(kept.values())

    def _propagate(self, call: Call, inputs: Tensors, saved: Tensors, relevance: Tensors) -> Sequence[Tensor | None]:
        hook, saved = self._private(call, saved)
        grad_input: Sequence[Tensor | None] = (None,) * len(call.shapes)
        if self.needs_grad_input:
            grad_input = pull(saved, inputs, relevance, create_graph=torch.is_grad_enabled(), module=call.module)
        return _answer(hook.backward(call.module, grad_input, relevance), grad_input)

    def _differentiate(
        self, call: Call, inputs: Tensors, saved: Tensors, gradients: Tensors, edges: Sequence[tuple[Any, int]]
    ) -> Sequence[Tensor | None]:
        if call.in_torch_func:
            msg = (
                f"{type(self).__name__} on {call.module}: the derivative of a relevance reaches this module under "
                "torch.func, which cannot go through the graph of its call; expected a derivative by torch.autograd. "
                f"Use torch.autograd.grad with create_graph=True{see('torch-func')}"
            )
            raise RuntimeError(msg)
        if Derivative.by_parameters() and any(p.requires_grad for p in call.module.parameters()):
            msg = (
                f"{type(self).__name__} on {call.module}: the derivative of a relevance reaches this module, and it "
                "cannot be taken by its parameters; expected a module without any. Put rules on its parts, freeze the "
                "parameters by requires_grad_(False), or write the rule as a BasicHook"
            )
            raise RuntimeError(msg)
        pairs = [(edge, g) for edge, g in zip(call.graph, gradients, strict=True) if edge is not None]
        wanted = [torch.autograd.graph.GradientEdge(*edge) for edge in edges if edge[0] is not None]
        pulled = torch.autograd.grad(
            [edge for edge, _ in pairs], wanted, [g for _, g in pairs],
            retain_graph=True, create_graph=torch.is_grad_enabled(), allow_unused=True,
        )  # fmt: skip
        found = iter(pulled)
        return [None if edge[0] is None else next(found) for edge in edges]

    def _private(self, call: Call, saved: Tensors) -> tuple[Self, Tensors]:
        """Return the call's own copy with its tensors, and the other tensors that were saved."""
        if not call.kept:
            return self, saved
        hook = copy.copy(self)
        vars(hook).update(zip(call.kept, saved, strict=False))
        return hook, saved[len(call.kept) :]


def _edge(output: Tensor) -> torch.autograd.graph.GradientEdge:
    """Return where a gradient of the output enters its graph. Unlike the output, it holds no values."""
    return torch.autograd.graph.get_gradient_edge(output)


def _answer(
    answer: Tensor | Sequence[Tensor | None] | None, otherwise: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    return otherwise if answer is None else (answer,) if isinstance(answer, Tensor) else answer


class LayerHook(Hook):
    """A hook that sees a call of its module as a layer, :class:`~lrp_rules.layers.layer.Layer`, and keeps that."""

    allows_several: ClassVar[bool] = False
    sees_constants: ClassVar[bool] = False
    may_rerun: ClassVar[bool] = True
    #: Whether the rule uses other weights than the layer's own.
    changes_weights: ClassVar[bool] = False
    #: Whether the formula uses the output of the forward pass, so that it is to be kept.
    uses_output: ClassVar[bool] = False
    #: Names of the parameters that are set to zero.
    zero_params: tuple[str, ...] = ()

    @property
    def uses_inputs(self) -> bool:
        """Whether the inputs are to be kept: always, since the layer is made of them."""
        return True

    @property
    def needs_graph(self) -> bool:
        """Whether the graph of a module that is not known is asked: always, it is what is known of such a layer."""
        return True

    def backward(
        self, module: nn.Module, grad_input: Any, grad_output: Tensors
    ) -> Tensor | Sequence[Tensor | None] | None:
        """Return the relevance of each input. A subclass may change it; the module's own gradient is not computed.

        Raises
        ------
        RuntimeError
            If it is not called for a call of the module.

        """
        layer: Layer | None = vars(self).get("_layer")
        if layer is None:
            msg = f"{type(self).__name__}.backward belongs to a call of the module; register the rule and differentiate"
            raise RuntimeError(msg)
        return self.relevances(layer, grad_output)

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        """Return the relevance of the layer's input, given that of its output."""
        raise NotImplementedError

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        """Return the relevance of each input; rules that allow several override this instead."""
        return (self.relevance(layer, R[0]),)

    def _record(self, call: Call, inputs: Tensors, outputs: Tensors) -> tuple[Tensors, Tensors, bool]:
        module = call.module
        effective = effective_parameters(module, call.kind.used_parameters, call.used)
        own = {name: value for name, value in effective.items() if value is not None}
        if len(own) < len(effective) and call.kind is not TracedLayer:
            call.absent = {name: None for name in effective if name not in own}
        call.names = tuple(own)
        parameters = tuple(own.values())
        try:
            call.places = None if call.in_torch_func else [parameter.data_ptr() for parameter in parameters]
        except RuntimeError:  # a tensor that has no such place: sparse, or of torch.func
            call.places = None
        state = (*self._kept(call, inputs, outputs), *parameters)
        if call.kind.used_buffers:
            state = (*state, *(getattr(module, name) for name in call.kind.used_buffers))
        if call.kind is TracedLayer:
            # a call cannot be repeated once parameters below the module have changed: that is watched
            below = parameters_below(module)
            return (*state, *outputs, *below), (*parameters, *below), False
        # under autocast, the output has fewer digits than the rule computes with
        return state, parameters, self.uses_output and outputs[0].dtype == inputs[0].dtype

    def _differentiate(
        self, call: Call, inputs: Tensors, saved: Tensors, gradients: Tensors, edges: Sequence[tuple[Any, int]]
    ) -> Sequence[Tensor | None]:
        _, saved = self._private(call, saved)
        count = len(inputs) + len(call.names)
        below = saved[len(saved) - (call.parameters - len(call.names)) :]
        tensors = (*inputs, *saved[: len(call.names)], *below)

        def run(*found: Tensor) -> Tensors:
            xs, own = found[: len(inputs)], dict(zip(call.names, found[len(inputs) : count], strict=True))
            if call.kind is TracedLayer:
                outputs = call.run(own, *xs, below=found[count:])
                check_repeated(self, call.module, outputs, saved[len(call.names) : len(call.names) + len(gradients)])
                return outputs
            given: dict[str, Tensor | None] = {**call.absent, **own}
            return (self._layer(call, xs, None, gradients[0].shape, given, saved).output(),)

        if call.in_torch_func:
            return torch.func.vjp(run, *tensors)[1](gradients)  # type: ignore[no-any-return]
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            found = ends(tensors, create_graph=create_graph)
            outputs = run(*found)
        if call.kind is TracedLayer:
            check_twin(self, call.module, outputs, found)
        return pull(outputs, found, gradients, create_graph=create_graph)

    @staticmethod
    def _layer(
        call: Call, inputs: Tensors, outputs: Tensors | None, shape: torch.Size, given: Mapping[str, Tensor | None],
        saved: Tensors, zero_params: tuple[str, ...] = (),
    ) -> Layer:  # fmt: skip
        names = call.kind.used_buffers
        buffers = dict(zip(names, saved[len(call.names) :], strict=False)) if names else {}
        return call.kind(call.module, inputs, outputs, shape, given, zero_params, run=call.run, buffers=buffers)

    def _propagate(self, call: Call, inputs: Tensors, saved: Tensors, relevance: Tensors) -> Sequence[Tensor | None]:
        hook, layer, relevance = self._seen(call, inputs, saved, relevance)
        if type(self).backward is LayerHook.backward:
            return hook.relevances(layer, relevance)
        hook = copy.copy(hook)
        vars(hook)["_layer"] = layer
        nothing = (None,) * len(inputs)
        return _answer(hook.backward(call.module, nothing, relevance), nothing)

    def _seen(
        self, call: Call, inputs: Tensors, saved: Tensors, relevance: Tensors
    ) -> tuple[Self, Layer, Tensors]:  # fmt: skip
        """Return the hook with what it keeps of the call, the call as a layer, and the relevance in its dtype."""
        hook, saved = self._private(call, saved) if call.kept else (self, saved)
        names = call.names
        given: dict[str, Tensor | None] = dict(zip(names, saved, strict=False))
        given.update(call.absent)
        outputs: Tensors | None = None
        repeated: _Repeated | None = None
        if call.kind is TracedLayer:
            outputs = saved[len(names) : len(names) + len(relevance)]
            repeated = _Repeated(call, inputs, given, outputs, saved[len(names) + len(relevance) :])
        elif call.output is not None and not torch.is_grad_enabled():  # a mere value has no derivative
            value = call.output.value
            outputs = None if value is None else (value,)
        if call.places is None:
            # sparse weights: products are the same, but few of torch's operations know them
            given = {name: value if value is None else _dense(value) for name, value in given.items()}
        dtype = self._dtype(call, inputs, given)
        if dtype is not None:
            inputs = tuple(x.to(dtype) for x in inputs)
            relevance = tuple(R.to(dtype) for R in relevance)
            given = {name: None if value is None else value.to(dtype) for name, value in given.items()}
            if call.kind.used_buffers:
                saved = tuple(value.to(dtype) for value in saved)
            outputs = None
        layer = self._layer(call, inputs, outputs, relevance[0].shape, given, saved, self.zero_params)
        if repeated is not None:
            layer.run, layer.known_right = repeated, call.known_right
            if isinstance(layer, TracedLayer) and call.in_torch_func:
                if self.changes_weights or layer.zeroes:
                    call.check_repeatable()
                layer.again = repeated.under_torch_func
            if isinstance(layer, TracedLayer) and self.changes_weights:
                layer = effective(self, layer)
        return hook, layer, relevance

    @staticmethod
    def _dtype(call: Call, inputs: Tensors, given: Mapping[str, Tensor | None]) -> torch.dtype | None:
        """Return the dtype to compute in, if it is not that of the input.

        R / S(d) leaves the range of float16 as soon as d is small; and under autocast, parameters have more digits.
        """
        own = inputs[0].dtype
        if call.kind is TracedLayer:
            return torch.float32 if own == torch.float16 else None
        dtype = torch.float32 if own == torch.float16 else own
        for value in given.values():
            if value is not None and value.dtype != dtype:
                dtype = torch.promote_types(dtype, value.dtype)
        return None if dtype == own else dtype


def _dense(value: Tensor) -> Tensor:
    return value if value.layout == torch.strided else value.to_dense()


def _ends_of(inputs: Tensors) -> Tensors:
    return tuple(x.detach().requires_grad_(x.requires_grad) for x in inputs)


class _Repeated:
    """Repeats a call of a module that is not known, after it has seen that this gives what the call gave."""

    def __init__(
        self, call: Call, inputs: Tensors, given: Mapping[str, Tensor | None], outputs: Tensors, below: Tensors
    ) -> None:
        self._call, self._inputs, self._given = call, inputs, given
        self._outputs, self._below = outputs, below
        self._checked = False

    def __call__(self, parameters: Mapping[str, Tensor | None], *inputs: Tensor) -> Tensors:
        self._call.check_repeatable()
        known_right = self._call.known_right
        # once for each call; on a device where the answer is waited for, once for all
        if not self._checked and (self._outputs[0].is_cpu or "again" not in known_right):
            with torch.enable_grad():  # as it was called
                again = self._call.run(self._given, *_ends_of(self._inputs), below=self._below)
            check_repeated(self._call.hook, self._call.module, again, self._outputs)
            known_right.add("again")
        self._checked = True
        return self._call.run(parameters, *inputs, below=self._below)

    def under_torch_func(self, parameters: Mapping[str, Tensor | None], *inputs: Tensor) -> Tensors:
        """Repeat the call for its Jacobian alone, as torch.func derives it."""
        assert self._call.rerun is not None
        outputs = self._call.rerun(parameters, *inputs, below=self._below)
        check_repeated(self._call.hook, self._call.module, outputs, self._outputs)
        return outputs


class BasicHook(LayerHook):
    """A rule for modules with one input and one output, made of modifiers or of a formula.

    With modifiers, the module is run once for each of k changes of its input and parameters, and the relevance is put
    together from the k gradients:

        z_i = output_modifiers[i](module with param_modifiers[i], run on input_modifiers[i](x))
        s   = gradient_mapper(R, [z_1, ..., z_k])
        c_i = gradient of z_i by its input, times s_i
        r   = reducer([input_modifiers[1](x), ...], [c_1, ..., c_k])

    With a formula, a subclass overrides ``relevance(layer, R)``; all rules of this package do, since it saves most of
    these runs.

    Where parts of the module have hooks of their own, these change nothing: gradients are those of the module itself.

    Parameters
    ----------
    input_modifiers
        Callables x -> x_i.
    param_modifiers
        :class:`ParamMod` objects, or callables (parameter, name) -> parameter.
    output_modifiers
        Callables z -> z_i.
    gradient_mapper
        Callable (R, outputs) -> s_i for each output; by default s_i = R / S(z_i).
    reducer
        Callable (inputs, gradients) -> r; by default the sum of x_i * c_i.
    stabilizer
        Number or callable: S in the default gradient mapper.

    Raises
    ------
    ValueError
        If lists of modifiers differ in length.
    TypeError
        If the stabilizer is neither a number nor callable.

    >>> half_of_epsilon = BasicHook(input_modifiers=[lambda x: x / 2], gradient_mapper=lambda R, z: [R / (2 * z[0])])
    """

    def __init__(
        self,
        input_modifiers: Sequence[Callable[[Tensor], Tensor]] | None = None,
        param_modifiers: Sequence[ParamMod | Callable[[Tensor, str], Tensor]] | None = None,
        output_modifiers: Sequence[Callable[[Tensor], Tensor]] | None = None,
        gradient_mapper: Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor] | Tensor] | None = None,
        reducer: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] | None = None,
        stabilizer: float | Callable[[Tensor], Tensor] = 1e-6,
    ) -> None:
        lengths = {len(given) for given in (input_modifiers, param_modifiers, output_modifiers) if given is not None}
        if len(lengths) > 1:
            msg = f"lists of modifiers have lengths {sorted(lengths)}; expected one: the i-th of each work together"
            raise ValueError(msg)
        count = lengths.pop() if lengths else 1
        self.input_modifiers = list(input_modifiers or [_same] * count)
        self.param_modifiers = [ParamMod.ensure(mod) for mod in param_modifiers or [NoMod()] * count]
        self.output_modifiers = list(output_modifiers or [_same] * count)
        self.gradient_mapper = gradient_mapper
        self.reducer = reducer
        self.stabilizer = Stabilizer.ensure(stabilizer)

    @property
    def changed_parameters(self) -> frozenset[str] | None:  # type: ignore[override]
        """Names of the parameters that the modifiers change."""
        names: list[str] = []
        for mod in self.param_modifiers:
            if type(mod) is not NoMod:
                return frozenset()
            names += mod.zero_params or ()
        return frozenset(names) or None

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        """Return the relevance of the layer's input, given that of its output."""
        inputs, outputs = [], []
        x = layer.x if torch.is_grad_enabled() else layer.x.detach()
        with torch.enable_grad():
            for of_input, of_params, of_output in zip(
                self.input_modifiers, self.param_modifiers, self.output_modifiers, strict=True
            ):
                modified = of_input(x)
                own = modified.view_as(modified) if modified.requires_grad else modified.detach().requires_grad_()
                inputs.append(own)
                parameters = of_params.parameters(layer.module, layer.given)
                outputs.append(of_output(layer.run(parameters, own)[0]))
        values = outputs if torch.is_grad_enabled() else [output.detach() for output in outputs]
        if self.gradient_mapper is None:
            mapped: Sequence[Tensor] | Tensor = [R / self.stabilizer(z) for z in values]
        else:
            mapped = self.gradient_mapper(R, values)
        mapped = (mapped,) if isinstance(mapped, Tensor) else mapped
        gradients = pull(
            tuple(outputs), tuple(inputs), tuple(mapped), create_graph=torch.is_grad_enabled(), module=layer.module
        )
        if self.reducer is None:
            return sum((x * c for x, c in zip(inputs, gradients, strict=True)), start=torch.zeros_like(x))
        return self.reducer(inputs, gradients)


def _same(value: Tensor) -> Tensor:
    return value
