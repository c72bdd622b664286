"""Rules of Layer-wise Relevance Propagation as hooks on PyTorch modules, written from the specification alone.

A rule puts two hooks on a module. After each call the output is handed on through one autograd node whose backward
*is* the rule; the module's own graph is kept beside it (for Jacobians and for the parameters' gradients). All that a call
used is kept in that node, nothing in the rule or on the module.
"""
import copy
import math
import numbers
import types
import weakref
from collections import OrderedDict
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as tree

__all__ = ['zero_bias', 'Stabilizer', 'ParamMod', 'ClampMod', 'GammaMod', 'NoMod', 'Hook', 'BasicHook', 'Epsilon', 'Gamma',
           'ZPlus', 'AlphaBeta', 'ZBox', 'Pass', 'Norm', 'WSquare', 'Flat', 'ReLUDeconvNet', 'ReLUGuidedBackprop',
           'ReLUBetaSmooth']

_HOOKS = ('_forward_hooks', '_forward_hooks_with_kwargs', '_forward_hooks_always_called', '_forward_pre_hooks',
          '_forward_pre_hooks_with_kwargs', '_backward_hooks', '_backward_pre_hooks')
_PURE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
         nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


# --- small helpers ---------------------------------------------------------------------------------------------------

def _number(value, what, positive=False):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f'{what} is {value!r} of type {type(value).__name__}; give a number')
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f'{what} is {value!r}; give a finite {"positive" if positive else "non-negative"} number')
    return value


def _names(zero_params):
    if zero_params is None:
        return []
    if isinstance(zero_params, str):
        return [zero_params]
    return list(zero_params)


def zero_bias(zero_params=None):
    '''A new list of the names with 'bias' in it.'''
    names = _names(zero_params)
    if 'bias' not in names:
        names.append('bias')
    return names


def _is_float(value):
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex() or value.is_quantized)


def _first(value):
    return value if isinstance(value, torch.Tensor) else value[0]


def _like(result, given):
    '''As a tensor where a tensor was given, else as a tuple.'''
    return result if isinstance(given, torch.Tensor) else (result,)


def _positive(x):
    return x.clamp(min=0)


def _negative(x):
    return x.clamp(max=0)


def _same(x):
    return x


class Stabilizer:
    '''d -> d + eps * sgn(d), with sgn(0) = 1.'''
    def __init__(self, epsilon=1e-6, clip=False, norm_scale=False, dim=None):
        self.epsilon = _number(epsilon, 'epsilon')
        self.clip = clip
        self.norm_scale = norm_scale
        self.dim = dim

    def _scale(self, d):
        if self.dim is None:
            dim = tuple(range(1, d.dim())) or tuple(range(d.dim()))
        else:
            dim = (self.dim,) if isinstance(self.dim, int) else tuple(self.dim)
        if not d.numel() or not dim:
            return d.abs()
        top = d.detach().abs().amax(dim=dim, keepdim=True)
        zero = top == 0
        top = torch.where(zero | ~top.isfinite(), torch.ones_like(top), top)
        square = ((d / top) ** 2).mean(dim=dim, keepdim=True)
        return torch.where(zero, torch.zeros_like(top), top * torch.where(zero, torch.ones_like(square), square).sqrt())

    def __call__(self, input):
        sign = torch.where(input < 0, -torch.ones_like(input), torch.ones_like(input)).detach()
        eps = self.epsilon
        if self.norm_scale:
            eps = eps * self._scale(input)
        if self.clip:
            size = input * sign
            eps = eps if isinstance(eps, torch.Tensor) else torch.full_like(size, eps)
            return sign * torch.where(size < eps, eps.expand_as(size), size)
        return input + eps * sign

    @classmethod
    def ensure(cls, value):
        if callable(value):
            return value
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f'stabilizer or epsilon is {value!r}; give a number or a callable')
        return cls(epsilon=value)


# --- copies of modules -----------------------------------------------------------------------------------------------

def _bare(module, cls=None):
    '''A shallow copy without any hook, with its own dictionaries and its own buffers.'''
    cls = type(module) if cls is None else cls
    new = cls.__new__(cls)
    new.__dict__.update(module.__dict__)
    new.__dict__['_parameters'] = dict(module._parameters)
    new.__dict__['_buffers'] = {key: None if val is None else val.clone() for key, val in module._buffers.items()}
    new.__dict__['_modules'] = {key: None if val is None else _bare(val) for key, val in module._modules.items()}
    for key in _HOOKS:
        if key in new.__dict__:
            new.__dict__[key] = OrderedDict()
    forward = module.__dict__.get('forward')
    if getattr(forward, '__self__', None) is module:
        new.__dict__['forward'] = types.MethodType(forward.__func__, new)
    return new


def _evaluating(module):
    new = _bare(module)
    new.__dict__['training'] = False
    for key, val in new._modules.items():
        if val is not None:
            new._modules[key] = _evaluating(val)
    return new


def _effective(module):
    '''The parameters which the last call of the module used, by name.'''
    params = {}
    if parametrize.is_parametrized(module):
        for name, chain in module.parametrizations.items():
            params[name] = _evaluating(chain)()
    for name, param in module._parameters.items():
        base = name[:-2] if name.endswith(('_g', '_v')) else name[:-5] if name.endswith('_orig') else None
        if base and isinstance(module.__dict__.get(base), torch.Tensor):
            params[base] = module.__dict__[base]
        elif param is not None:
            params[name] = param
    for name in ('weight', 'bias'):
        if isinstance(module.__dict__.get(name), torch.Tensor):
            params[name] = module.__dict__[name]
    return params


def _snapshot(module):
    '''A bare copy with clones of the effective parameters; their graph is kept.'''
    params = {name: param.clone() for name, param in _effective(module).items()}
    wrapped = parametrize.is_parametrized(module)
    new = _bare(module, type(module).__bases__[0] if wrapped else None)
    if wrapped:
        new._modules.pop('parametrizations', None)
    for name in list(new._parameters):
        if new._parameters[name] is not None and name not in params:
            del new._parameters[name]
    for name, param in params.items():
        new.__dict__.pop(name, None)
        new._parameters[name] = param
    return new


def _nested(module):
    '''Whether parameters sit in the parts of a module.'''
    return any(True for name, part in module.named_children() if name != 'parametrizations' for _ in part.parameters())


# --- parameter modifiers ---------------------------------------------------------------------------------------------

class ParamMod:
    '''Changes parameters by modifier(param, name). Used as a context manager it gives a changed copy of the module.'''
    def __init__(self, modifier, param_keys=None, zero_params=None, require_params=True):
        self.modifier = modifier
        self.param_keys = None if param_keys is None else _names(param_keys)
        self.zero_params = _names(zero_params)
        self.require_params = require_params

    @classmethod
    def ensure(cls, modifier):
        if isinstance(modifier, ParamMod):
            return modifier
        if callable(modifier):
            return ParamMod(modifier)
        raise TypeError(f'{modifier!r} is neither a ParamMod nor callable')

    def changed(self, module):
        '''The changed copy.'''
        new = _snapshot(module)
        present = [name for name, param in new._parameters.items() if param is not None]
        keys = present if self.param_keys is None else self.param_keys
        missing = [name for name in keys if name not in present]
        if missing and self.require_params:
            raise RuntimeError(f'{module} has no parameter {", ".join(map(repr, missing))}, which the rule needs')
        for name in present:
            param = new._parameters[name]
            if name in self.zero_params:
                new._parameters[name] = torch.zeros_like(param)
            elif name in keys:
                new._parameters[name] = self.modifier(param, name)
        return new

    @contextmanager
    def __call__(self, module):
        yield self.changed(module)


class ClampMod(ParamMod):
    def __init__(self, min=None, max=None, **kwargs):
        def modifier(param, name):
            return param if min is None and max is None else param.clamp(min=min, max=max)
        super().__init__(modifier, **kwargs)


class GammaMod(ParamMod):
    def __init__(self, gamma=0.25, min=None, max=None, **kwargs):
        def modifier(param, name):
            return param + gamma * (param if min is None and max is None else param.clamp(min=min, max=max))
        super().__init__(modifier, **kwargs)


class NoMod(ParamMod):
    def __init__(self, **kwargs):
        super().__init__(lambda param, name: param, **kwargs)


# --- the hooks -------------------------------------------------------------------------------------------------------

class _Call:
    '''All that one call of a module used.'''
    def __init__(self, hook, module, inputs, outputs):
        self.hook = hook
        self.module = module
        self.inputs = inputs
        self.inner = [y for y in outputs]

    def plain(self, grads):
        '''J^T grads for each input, over the graph of the call.'''
        pairs = [(y, g) for y, g in zip(self.inner, grads) if y.requires_grad]
        wanted = [x for x in self.inputs if x.requires_grad]
        if pairs:
            found = torch.autograd.grad([y for y, _ in pairs], wanted, [g for _, g in pairs], retain_graph=True,
                                        create_graph=torch.is_grad_enabled(), allow_unused=True)
        else:
            found = [None] * len(wanted)
        found = iter(found)
        result = []
        for x in self.inputs:
            g = next(found) if x.requires_grad else None
            result.append(torch.zeros_like(x) if g is None else g)
        return result

    def weights(self):
        names = [p for p in self.module.parameters() if p.requires_grad]
        own = self.module.__dict__
        for name in ('weight', 'bias'):
            loose = isinstance(own.get(name), torch.Tensor) and own[name].requires_grad
            if loose and not any(name + end in self.module._parameters for end in ('_g', '_v', '_orig')):
                names.append(own[name])
        return names


class _Weights(torch.autograd.Function):
    '''Gives the parameters the gradient that the module's own graph has for them.'''
    @staticmethod
    def forward(ctx, call, *weights):
        ctx.call, ctx.weights = call, weights
        return tuple(torch.zeros((), dtype=y.dtype, device=y.device).expand(y.shape) for y in call.inner)

    @staticmethod
    def backward(ctx, *grads):
        pairs = [(y, g) for y, g in zip(ctx.call.inner, grads) if y.requires_grad]
        found = torch.autograd.grad([y for y, _ in pairs], ctx.weights, [g for _, g in pairs], retain_graph=True,
                                    create_graph=torch.is_grad_enabled(), allow_unused=True)
        return (None, *found)


class _Relevance(torch.autograd.Function):
    '''Hands the outputs on; its backward is the rule.'''
    @staticmethod
    def forward(ctx, call, count, *tensors):
        ctx.call = call
        return tuple(y.detach().clone() for y in call.inner)

    @staticmethod
    def backward(ctx, *relevance):
        call = ctx.call
        device = relevance[0].device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            result = call.hook._relevance(call, relevance)
        if len(ctx.needs_input_grad) > 2 + len(result):
            result = (*result, *relevance)
        return (None, None, *result)


class _Live:
    '''The pair of hooks on one module. A copy of it is dead.'''
    def __init__(self, hook, module):
        self.hook = hook
        self.module = None if module is None else weakref.ref(module)

    def __deepcopy__(self, memo):
        return _Live(None, None)

    def __reduce__(self):
        return _Live, (None, None)

    def alive(self, module):
        return self.hook is not None and self.hook.active and self.module is not None and self.module() is module

    def pre(self, module, args, kwargs):
        if not self.alive(module) or not torch.is_grad_enabled():
            return None
        leaves, shape = tree.tree_flatten((args, kwargs))
        count = sum(map(_is_float, leaves))
        inplace = any(getattr(part, 'inplace', False) for part in module.modules())
        if count < 2 and not inplace and not self.hook._jacobian(module):
            return None

        def part(value):
            if not _is_float(value) or not value.requires_grad:
                return value
            new = value.clone() if inplace else value.view_as(value)
            new._lrp_origin = (value if inplace else new,)
            return new
        return tree.tree_unflatten(list(map(part, leaves)), shape)

    def post(self, module, args, kwargs, output):
        if not self.alive(module) or not torch.is_grad_enabled():
            return None
        found = [value for value in tree.tree_leaves((args, kwargs)) if _is_float(value)]
        named = sum(map(_is_float, tree.tree_leaves(kwargs)))
        if not any(value.requires_grad for value in found):
            return None
        hook = self.hook
        who = f'{type(hook).__name__} on {module}'
        flat, shape = tree.tree_flatten(output)
        where = [index for index, value in enumerate(flat) if _is_float(value)]
        outputs = [flat[index] for index in where]
        for value in (*found, *outputs, *module.parameters(recurse=False)):
            if value.is_complex() or value.is_quantized:
                raise TypeError(f'{who}: a complex or quantized tensor was given; only real floating point is possible')
        several = len(found) != 1 or len(outputs) != 1 or named
        if several and not hook._several:
            raise TypeError(f'{who}: {len(found)} tensor inputs ({named} by keyword) and '
                            f'{len(outputs)} outputs were given; give one positional input and one output')
        if not outputs:
            raise TypeError(f'{who}: the output holds no floating point tensor')
        if not any(y.requires_grad for y in outputs) and (hook._plain or isinstance(hook, BasicHook)):
            raise RuntimeError(f'{who}: the output has no derivative by the input; the layer is not differentiable')

        inputs = [getattr(value, '_lrp_origin', (value,))[0] for value in found]
        mine = hook.copy()
        mine._rest = (args, kwargs)
        call = _Call(mine, module, inputs, outputs)
        mine._start(call)
        mine.forward(module, tuple(inputs), output)
        weights = call.weights()
        tokens = ()
        if weights and any(y.requires_grad for y in outputs):
            tokens = _Weights.apply(call, *weights)
        new = _Relevance.apply(call, len(inputs), *inputs, *tokens)
        for index, value in zip(where, new):
            flat[index] = value
        return tree.tree_unflatten(flat, shape)


class _Handle:
    def __init__(self, *handles):
        self.handles = handles

    def remove(self):
        for handle in self.handles:
            handle.remove()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.remove()


class Hook:
    '''Base of all rules: register() it, and backward() gives the relevance.'''
    _several = False
    _plain = True

    def __init__(self):
        self.stored_tensors = {}
        self.active = True
        self._handles = []

    def _jacobian(self, module):
        '''Whether the graph of the call is needed.'''
        return self._plain

    def _start(self, call):
        pass

    def forward(self, module, input, output):
        '''Called after each call of the module, on a copy of the hook that only this call has.'''

    def backward(self, module, grad_input, grad_output):
        return grad_input

    def copy(self):
        new = copy.copy(self)
        new.stored_tensors = {}
        new._handles = []
        return new

    def _check(self, module):
        if not isinstance(module, nn.Module):
            raise TypeError(f'{type(self).__name__} goes on a torch.nn.Module; {type(module).__name__} was given')
        for part in module.modules():
            if '.quantized' in type(part).__module__:
                raise TypeError(f'{type(self).__name__}: {part} is quantized; rules need a floating point layer')

    def register(self, module):
        self._check(module)
        for other in module._forward_hooks.values():
            other = getattr(other, '__self__', None)
            if isinstance(other, _Live) and other.alive(module):
                raise RuntimeError(f'{type(self).__name__}: {module} has the rule {type(other.hook).__name__} already; remove it first')
        live = _Live(self, module)
        first = module.register_forward_pre_hook(live.pre, with_kwargs=True)
        second = module.register_forward_hook(live.post, prepend=True, with_kwargs=True)
        handle = _Handle(first, second)
        self._handles.append(weakref.ref(handle))
        self._handles = [ref for ref in self._handles if ref() is not None]
        return handle

    def remove(self):
        for ref in self._handles:
            handle = ref()
            if handle is not None:
                handle.remove()
        self._handles = []
        self.stored_tensors = {}

    def _relevance(self, call, grads):
        plain = tuple(call.plain(grads)) if self._plain else (None,) * len(call.inputs)
        result = self.backward(call.module, plain, tuple(grads))
        if isinstance(result, torch.Tensor):
            result = (result,)
        result = plain if result is None else tuple(result)
        for given, x in zip(result, call.inputs):
            if given is not None and given.shape != x.shape:
                raise RuntimeError(f'{type(self).__name__} on {call.module}: the relevance has shape {tuple(given.shape)}, '
                                   f'the input {tuple(x.shape)}; they have to be equal')
        if len(result) != len(call.inputs):
            raise TypeError(f'{type(self).__name__} on {call.module}: {len(call.inputs)} inputs, relevance for {len(result)}')
        return tuple(None if given is None else given.to(x.dtype) for given, x in zip(result, call.inputs))


class BasicHook(Hook):
    '''Runs changed copies of the module on changed inputs and puts their gradients together.'''
    _plain = False
    _changes = True

    def __init__(self, input_modifiers=None, param_modifiers=None, output_modifiers=None, gradient_mapper=None, reducer=None):
        super().__init__()
        given = [mods for mods in (input_modifiers, param_modifiers, output_modifiers) if mods is not None]
        count = len(given[0]) if given else 1
        if any(len(mods) != count for mods in given):
            raise ValueError(f'lists of modifiers of different lengths: {[len(mods) for mods in given]}')
        self.input_modifiers = list(input_modifiers or [_same] * count)
        self.param_modifiers = [ParamMod.ensure(mod) for mod in param_modifiers or [NoMod()] * count]
        self.output_modifiers = list(output_modifiers or [_same] * count)
        self.gradient_mapper = gradient_mapper or self._default_gradient_mapper
        self.reducer = reducer or self._default_reducer
        self._rest = None
        self._frozen = None

    @staticmethod
    def _default_gradient_mapper(out_grad, outputs):
        stabilizer = Stabilizer()
        return tuple(out_grad / stabilizer(output) for output in outputs)

    @staticmethod
    def _default_reducer(inputs, gradients):
        return sum(input * gradient for input, gradient in zip(inputs, gradients))

    def _check(self, module):
        super()._check(module)
        if self._changes and _nested(module):
            raise RuntimeError(f'{type(self).__name__} changes parameters, and those of {module} sit in its parts; '
                               f'put the rule on the parts')
        if self._changes:
            known = [*module._parameters, *_effective(module)]
            for mod in self.param_modifiers:
                missing = [name for name in mod.param_keys or () if name not in known]
                if missing and mod.require_params:
                    raise RuntimeError(f'{type(self).__name__}: {module} has no parameter {", ".join(map(repr, missing))}')

    def _jacobian(self, module):
        return not self._changes and not self._pure(module)

    @staticmethod
    def _pure(module):
        cls = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
        return cls in _PURE and 'forward' not in module.__dict__

    def _start(self, call):
        if self._changes or self._pure(call.module):
            if not self._several or (len(call.inputs) == 1 == len(call.inner)):
                self._frozen = _snapshot(call.module)
        self.stored_tensors['input'] = tuple(x.clone() for x in call.inputs)
        self.stored_tensors['output'] = tuple(y.detach().clone() for y in call.inner)

    def _run(self, module, x):
        '''The (changed) module on another input, with the other arguments of the call.'''
        args, kwargs = self._rest or ((x,), {})
        args, kwargs = tree.tree_map(lambda value: x if _is_float(value) else value, (args, kwargs))
        quiet = nullcontext() if type(module) in _PURE else torch.random.fork_rng(devices=[])
        with quiet:
            output = module.forward(*args, **kwargs)
        return next(value for value in tree.tree_leaves(output) if _is_float(value))

    def _gradients(self, outputs, inputs, grads, create):
        found = torch.autograd.grad(outputs, inputs, grads, create_graph=create, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found)]

    def backward(self, module, grad_input, grad_output):
        create = torch.is_grad_enabled()
        x = self.stored_tensors['input'][0]
        x = x if create else x.detach()
        inputs, outputs = [], []
        for in_mod, param_mod, out_mod in zip(self.input_modifiers, self.param_modifiers, self.output_modifiers):
            with torch.set_grad_enabled(create):
                new = in_mod(x)
                changed = param_mod.changed(module)
            with torch.enable_grad():
                new = new.view_as(new) if new.requires_grad else new.detach().requires_grad_()
                output = out_mod(self._run(changed, new))
            inputs.append(new)
            outputs.append(output)
        with torch.set_grad_enabled(create):
            given = outputs if create else [output.detach() for output in outputs]
            grads = [grad.to(output.dtype) for grad, output in zip(self.gradient_mapper(grad_output[0], given), outputs)]
        with torch.enable_grad():
            use = [index for index, output in enumerate(outputs) if output.requires_grad]
            gradients = self._gradients([outputs[index] for index in use], inputs, [grads[index] for index in use], create)
        with torch.set_grad_enabled(create):
            inputs = inputs if create else [input.detach() for input in inputs]
            return (self.reducer(inputs, gradients),)

    def _relevance(self, call, grads):
        module = call.module
        if self._frozen is not None:
            call = types.SimpleNamespace(module=self._frozen, inputs=call.inputs, plain=call.plain)
        result = super()._relevance(call, grads)
        call.module = module
        return result


# --- rules on parameters ---------------------------------------------------------------------------------------------

class _Share(BasicHook):
    '''x * J^T (R / S(f(x))).'''
    _several = True

    def _setup(self, stabilizer, zero_params=None):
        stabilizer = Stabilizer.ensure(stabilizer)
        self._changes = bool(_names(zero_params))
        self._several = not self._changes
        self._stabilizer = stabilizer
        super().__init__(
            param_modifiers=[NoMod(zero_params=zero_params)],
            gradient_mapper=lambda out_grad, outputs: [out_grad / stabilizer(outputs[0])],
            reducer=lambda inputs, gradients: inputs[0] * gradients[0],
        )

    def _relevance(self, call, grads):
        if self._frozen is not None:
            return super()._relevance(call, grads)
        create = torch.is_grad_enabled()
        outputs = call.inner if create else [y.detach() for y in call.inner]
        shares = [grad / self._stabilizer(y) for grad, y in zip(grads, outputs)]
        return tuple((x if create else x.detach()) * g for x, g in zip(self.stored_tensors['input'], call.plain(shares)))


class Epsilon(_Share):
    def __init__(self, epsilon=1e-6, zero_params=None):
        self._setup(epsilon, zero_params)
        self.epsilon = epsilon


class Norm(_Share):
    def __init__(self, stabilizer=1e-6):
        self._setup(stabilizer)
        self.stabilizer = stabilizer


class ZPlus(BasicHook):
    def __init__(self, stabilizer=1e-6, zero_params=None):
        stabilizer_fn = Stabilizer.ensure(stabilizer)

        def mapper(out_grad, outputs):
            share = out_grad / stabilizer_fn(outputs[0] + outputs[1])
            return [share, share]
        super().__init__(
            input_modifiers=[_positive, _negative],
            param_modifiers=[
                ClampMod(min=0, zero_params=zero_params),
                ClampMod(max=0, zero_params=zero_bias(zero_params)),
            ],
            gradient_mapper=mapper,
            reducer=lambda inputs, gradients: inputs[0] * gradients[0] + inputs[1] * gradients[1],
        )


class AlphaBeta(BasicHook):
    def __init__(self, alpha=2, beta=1, stabilizer=1e-6, zero_params=None):
        _number(alpha, 'alpha')
        _number(beta, 'beta')
        if abs(alpha - beta - 1) > 1e-12 * (1 + abs(alpha) + abs(beta)):
            raise ValueError(f'alpha - beta has to be 1; alpha={alpha!r} and beta={beta!r} were given')
        stabilizer_fn = Stabilizer.ensure(stabilizer)
        self.alpha, self.beta = alpha, beta
        nobias = zero_bias(zero_params)

        def mapper(out_grad, outputs):
            first = out_grad / stabilizer_fn(outputs[0] + outputs[1])
            if beta == 0:
                return [first, first]
            second = out_grad / stabilizer_fn(outputs[2] + outputs[3])
            return [first, first, second, second]

        def reducer(inputs, gradients):
            result = alpha * (inputs[0] * gradients[0] + inputs[1] * gradients[1])
            if beta == 0:
                return result
            return result - beta * (inputs[2] * gradients[2] + inputs[3] * gradients[3])
        count = 2 if beta == 0 else 4
        super().__init__(
            input_modifiers=[_positive, _negative, _positive, _negative][:count],
            param_modifiers=[
                ClampMod(min=0, zero_params=zero_params),
                ClampMod(max=0, zero_params=nobias),
                ClampMod(max=0, zero_params=zero_params),
                ClampMod(min=0, zero_params=nobias),
            ][:count],
            gradient_mapper=mapper,
            reducer=reducer,
        )


class Gamma(BasicHook):
    def __init__(self, gamma=0.25, stabilizer=1e-6, zero_params=None):
        _number(gamma, 'gamma')
        stabilizer_fn = Stabilizer.ensure(stabilizer)
        self.gamma = gamma
        nobias = zero_bias(zero_params)
        super().__init__(
            input_modifiers=[_positive, _negative, _positive, _negative],
            param_modifiers=[
                GammaMod(gamma, min=0, zero_params=zero_params),
                GammaMod(gamma, max=0, zero_params=nobias),
                GammaMod(gamma, max=0, zero_params=zero_params),
                GammaMod(gamma, min=0, zero_params=nobias),
            ],
            reducer=lambda inputs, gradients: sum(input * gradient for input, gradient in zip(inputs, gradients)),
        )

        def branch(out_grad, d, gate, z):
            share = torch.where(gate, out_grad, torch.zeros_like(out_grad)) / torch.where(gate, stabilizer_fn(d), torch.ones_like(d))
            return torch.where(z.isnan(), z, share)
        self._branch = branch

    def copy(self):
        new = super().copy()
        new.gradient_mapper = new._map
        return new

    def _map(self, out_grad, outputs):
        z = self.stored_tensors['output'][0]
        first = self._branch(out_grad, outputs[0] + outputs[1], z > 0, z)
        second = self._branch(out_grad, outputs[2] + outputs[3], z < 0, z)
        return [first, first, second, second]


class ZBox(BasicHook):
    def __init__(self, low, high, stabilizer=1e-6, zero_params=None):
        stabilizer_fn = Stabilizer.ensure(stabilizer)
        nobias = zero_bias(zero_params)
        for name, value in (('low', low), ('high', high)):
            if isinstance(value, bool) or not isinstance(value, (numbers.Real, torch.Tensor)):
                raise TypeError(f'{name} is {value!r}; give a number or a tensor')
        if not isinstance(low, torch.Tensor) and not isinstance(high, torch.Tensor) and low > high:
            raise ValueError(f'low={low!r} is greater than high={high!r}')
        self.low, self.high = low, high

        def mapper(out_grad, outputs):
            share = out_grad / stabilizer_fn(outputs[0] - outputs[1] - outputs[2])
            return [share, share, share]
        super().__init__(
            input_modifiers=[_same, lambda x: self._bound(low, x, 'low'), lambda x: self._bound(high, x, 'high')],
            param_modifiers=[
                NoMod(zero_params=nobias),
                ClampMod(min=0, zero_params=nobias),
                ClampMod(max=0, zero_params=nobias),
            ],
            gradient_mapper=mapper,
            reducer=lambda inputs, gradients: inputs[0] * gradients[0] - inputs[1] * gradients[1] - inputs[2] * gradients[2],
        )

    @staticmethod
    def _bound(value, x, name):
        if not isinstance(value, torch.Tensor):
            return torch.full_like(x, value)
        bound = value.to(device=x.device, dtype=x.dtype)
        if bound.dim() and bound.dim() <= x.dim():
            bound = bound[(...,) + (None,) * (x.dim() - bound.dim())]
            if bound.shape[0] > x.shape[0]:
                bound = bound[:x.shape[0]]
        try:
            return bound.expand(x.shape)
        except RuntimeError:
            raise ValueError(f'ZBox: {name} has shape {tuple(value.shape)}, the input {tuple(x.shape)}; '
                             f'give a shape that broadcasts to the input') from None

    def _start(self, call):
        x = call.inputs[0].detach()
        if bool((self._bound(self.low, x, 'low') > self._bound(self.high, x, 'high')).any()):
            raise ValueError('ZBox: low is greater than high somewhere; give low <= high')
        super()._start(call)
        frozen = []
        for name, mod in (('low', self.input_modifiers[1]), ('high', self.input_modifiers[2])):
            bound = self._bound(getattr(self, name), call.inputs[0], name).clone()
            frozen.append(lambda x, bound=bound: bound)
        self.input_modifiers = [self.input_modifiers[0], *frozen]


class WSquare(BasicHook):
    def __init__(self, stabilizer=1e-6, zero_params=None):
        stabilizer_fn = Stabilizer.ensure(stabilizer)
        super().__init__(
            input_modifiers=[torch.ones_like],
            param_modifiers=[ParamMod(lambda param, name: param ** 2, zero_params=zero_params)],
            gradient_mapper=lambda out_grad, outputs: [out_grad / stabilizer_fn(outputs[0])],
            reducer=lambda inputs, gradients: gradients[0],
        )


class Flat(BasicHook):
    def __init__(self, stabilizer=1e-6, zero_params=None):
        stabilizer_fn = Stabilizer.ensure(stabilizer)
        super().__init__(
            input_modifiers=[torch.ones_like],
            param_modifiers=[ParamMod(lambda param, name: torch.ones_like(param), zero_params=zero_bias(zero_params))],
            gradient_mapper=lambda out_grad, outputs: [out_grad / stabilizer_fn(outputs[0])],
            reducer=lambda inputs, gradients: gradients[0],
        )


# --- rules that look only at the gradient ----------------------------------------------------------------------------

class Pass(Hook):
    _several = True
    _plain = False

    def backward(self, module, grad_input, grad_output):
        return grad_output


class ReLUDeconvNet(Hook):
    _plain = False

    def backward(self, module, grad_input, grad_output):
        return _like(_first(grad_output).clamp(min=0), grad_output)


class ReLUGuidedBackprop(Hook):
    def backward(self, module, grad_input, grad_output):
        grad = _first(grad_output)
        rest = torch.where(grad.isnan(), grad, torch.zeros_like(grad))
        return _like(torch.where(grad > 0, _first(grad_input), rest), grad_output)


class ReLUBetaSmooth(Hook):
    _plain = False

    def __init__(self, beta_smooth=10.):
        super().__init__()
        self.beta_smooth = _number(beta_smooth, 'beta_smooth', positive=True)

    def forward(self, module, input, output):
        self.stored_tensors['input'] = (_first(input).clone(),)

    def backward(self, module, grad_input, grad_output):
        x = self.stored_tensors['input'][0]
        x = x if torch.is_grad_enabled() else x.detach()
        return _like(torch.sigmoid(self.beta_smooth * x) * _first(grad_output), grad_output)
