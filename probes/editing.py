"""Change hidden states while a transformers model runs: plain forward hooks of our own, new tensors, nothing in place.

A hook on the model learns which tokens a pass reads (probes/token_positions.py); hooks at the sites apply the edits to
them. A pass in which nothing is to be edited gives the same logits to the bit.
"""

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import InputError
from .anatomy import first_tensor
from .components import component_module, stream, with_first_tensor, with_stream
from .live import evaluating
from .shards import item_key
from .subject import Edit, Fingerprint, Site, Tokens
from .token_positions import TokenReader, paused

if TYPE_CHECKING:
    from .huggingface import HuggingFaceSubject

Sites = Mapping[Site, Edit]
_ACTIVE: WeakKeyDictionary[nn.Module, list[Sites]] = WeakKeyDictionary()  # the edits on each model, outer ones first


def editing(subject: "HuggingFaceSubject", edits: Sites) -> AbstractContextManager[None]:
    """See `Subject.editing`. Sites are checked here, before the context is entered."""
    modules: dict[Site, nn.Module] = {}
    for site, edit in edits.items():
        if not isinstance(edit, Edit):
            raise InputError(f"site {site}: expected an edit such as Clamp or Add, got {type(edit).__name__}")
        modules[site] = _module(subject, site)
    settled = {site: (modules[site], edit, edit.positions.resolved(subject)) for site, edit in edits.items()}
    return _editing(subject.model, settled, dict(edits))


def edited_fingerprint(model: nn.Module, own: Fingerprint) -> Fingerprint:
    """`own`, or while the model is edited one that no cache takes for it."""
    edits = [{str(site): edit.key for site, edit in level.items()} for level in _ACTIVE.get(model, [])]
    return replace(own, combined=item_key(own.combined, "edited", edits)) if edits else own


def _module(subject: "HuggingFaceSubject", site: Site) -> nn.Module:
    blocks = subject.anatomy.blocks
    if site.layer >= len(blocks):
        raise InputError(
            f"{subject.name}: layer {site.layer} is not in 0 .. {len(blocks) - 1} (a site's layer is a block, 0-based)"
        )
    block = blocks[site.layer]
    if site.component in ("resid_pre", "resid_post"):
        return block
    with evaluating(subject.model):
        return component_module(
            subject.model, block, site.component, name=f"{subject.name}, block {site.layer} ({type(block).__name__})"
        )


@contextmanager
def _editing(model: Any, settled: Mapping[Site, tuple[nn.Module, Edit, Any]], edits: Sites) -> Iterator[None]:
    if not settled:
        yield
        return
    now = _Pass(model)
    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(now.begin, with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(now.end, always_call=True).remove)
        for site, (module, edit, positions) in settled.items():
            hook = _Hook(now, edit, positions, site)
            if site.component == "resid_pre":
                handle = module.register_forward_pre_hook(hook.before, with_kwargs=True)
            else:
                handle = module.register_forward_hook(hook.after)
            stack.callback(handle.remove)
        levels = _ACTIVE.setdefault(model, [])
        levels.append(edits)
        stack.callback(levels.remove, edits)
        yield


class _Pass(threading.local):
    """The tokens of the forward pass that runs in this thread; None between passes."""

    def __init__(self, model: Any) -> None:
        self.tokens: Tokens | None = None
        self._reader = TokenReader()
        self._signature = inspect.signature(model.forward)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not paused():
            bound = self._signature.bind_partial(*args, **kwargs).arguments
            self.tokens = self._reader.read(bound | bound.get("kwargs", {}))

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        if not paused():
            self.tokens = None


class _Hook:
    """One edit at one site."""

    def __init__(self, now: _Pass, edit: Edit, positions: Any, site: Site) -> None:
        self.now, self.edit, self.positions, self.site = now, edit, positions, site

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if paused():
            return None
        return with_stream(args, kwargs, self._edited(stream(args, kwargs)))

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if paused():
            return None
        h = first_tensor(output)
        if h is None:
            raise InputError(f"site {self.site}: the module gives no tensor")
        return with_first_tensor(output, self._edited(h))

    def _edited(self, h: Tensor) -> Tensor:
        tokens = self.now.tokens
        if tokens is None:
            raise InputError(f"site {self.site}: blocks run outside of the model's own forward pass; call the model")
        where = self.positions.at(tokens).to(h.device)
        rows, width = where.shape
        if h.shape[:2] == where.shape and h.ndim == 3:
            return self._checked(h, where)
        if h.ndim == 2 and len(h) == rows * width:  # OPT flattens rows before its MLP
            return self._checked(h.reshape(rows, width, -1), where).reshape(h.shape)
        raise InputError(f"site {self.site}: hidden states of shape {tuple(h.shape)}; expected [{rows}, {width}, d]")

    def _checked(self, h: Float[Tensor, "B T d"], where: Bool[Tensor, "B T"]) -> Float[Tensor, "B T d"]:
        new = self.edit(h, where)
        if new is h or new.shape != h.shape or new.dtype != h.dtype:
            raise InputError(
                f"site {self.site}: the edit gave {tuple(new.shape)} {new.dtype}, expected a new tensor of "
                f"{tuple(h.shape)} {h.dtype}"
            )
        return new
