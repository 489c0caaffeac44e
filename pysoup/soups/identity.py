"""What makes two runs of a recipe the same one: checkpoints by content, held-out data, metric, options, model."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .._version import __version__
from ..checkpoint import Checkpoint
from ..errors import SoupError
from ..evaluate import HeldOut, Metric
from ..evaluate.forward import name_with_bound
from ..fingerprint import StatKey, fingerprint_data, fingerprint_file
from .candidates import Candidate, names_of, own_tensors

_SETTLED_NS = 2_000_000_000


class RunIdentity:
    """For :meth:`Journal.open`; made by :func:`identity_of`."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        heldout: HeldOut,
        metric: Metric,
        options: Mapping[str, Any],
        model: nn.Module,
    ) -> None:
        self.candidates = list(candidates)
        self.heldout = heldout
        self.metric = metric
        self.options = dict(options)
        self.model = model
        self.contents: list[str] = []
        """The fingerprint of each candidate's content, once :meth:`parts` has read them."""

    def parts(self, hashed: dict[str, Any]) -> dict[str, Any]:
        """The identity as JSON. Reads the held-out data and the bytes of all checkpoints.

        ``hashed`` has, by path, what an earlier run knew of a file: its size, times and inode, and the fingerprint of
        its content. A file of which all these are the same is not read again; what is found anew is put there.
        """
        state = {name: t for name, t in self.model.state_dict().items() if isinstance(t, torch.Tensor)}
        device = next((t.device.type for t in state.values()), "cpu")
        checkpoints = contents_of(self.candidates, hashed)
        self.contents = [checkpoint["content"] for checkpoint in checkpoints]
        return {
            "environment": {"pysoup": __version__, "torch": torch.__version__, "device": device},
            "metric": metric_identity(self.metric),
            "options": {**self.options, **self._names()},
            "model": architecture_of(self.model),
            "heldout": self.heldout.fingerprint,
            "checkpoints": checkpoints,
        }

    def _names(self) -> dict[str, Any]:
        """With patterns, these, and the content of the model's own tensors, which the scores depend on."""
        own = {name: t for name, t in own_tensors(self.model, self.candidates).items() if t is not None}
        return {**names_of(self.candidates), "own": fingerprint_data(own)} if names_of(self.candidates) else {}


def identity_of(
    candidates: Sequence[Candidate],
    heldout: HeldOut,
    metric: Metric,
    options: Mapping[str, Any],
    *,
    model: nn.Module,
) -> RunIdentity:
    """The identity of a recipe's run on ``candidates``, in this order. Nothing is read yet.

    ``options`` are all that changes the result or what is recorded on the way, in plain JSON: the recipe's name, its
    arguments, given scores. Of ``model``, names, shapes, dtypes and the kind of device count, not the values.
    """
    return RunIdentity(candidates, heldout, metric, options, model)


def contents_of(candidates: Sequence[Candidate], hashed: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, entry, content and place of each candidate, as JSON; ``hashed`` is as in :meth:`RunIdentity.parts`."""
    return [_checkpoint(candidate, hashed) for candidate in candidates]


def metric_identity(metric: Metric) -> dict[str, str]:
    """By what a later run knows that its scores are of the same metric."""
    function = name_with_bound(metric.fn, _function_name)
    return {"name": metric.name, "direction": metric.direction, "function": function}


def architecture_of(model: nn.Module) -> str:
    """SHA-256 (hex) over names, shapes and dtypes of the model's tensors."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            sha.update(repr((name, list(tensor.shape), str(tensor.dtype))).encode("utf-8", "surrogatepass"))
    return sha.hexdigest()


def _checkpoint(candidate: Candidate, hashed: dict[str, Any]) -> dict[str, Any]:
    source, memo = candidate.source, candidate.hashed
    if isinstance(source, Checkpoint):
        content = _file_content(source, hashed, memo)
        place = os.path.realpath(source.path)
        return {"name": candidate.name, "entry": source.entry_name, "content": content, "path": place}
    if "content" not in memo:
        memo["content"] = fingerprint_data(source)
    if memo["content"] is None:
        what = "a checkpoint in memory that is not of tensors alone cannot be recognised in a later run; save it first"
        raise SoupError(what, file=candidate.name)
    return {"name": candidate.name, "entry": "", "content": memo["content"]}


def _file_content(checkpoint: Checkpoint, hashed: dict[str, Any], memo: dict[str, Any]) -> str:
    """``memo`` is like ``hashed``, of the runs of this process that share the candidate."""
    place = os.path.abspath(checkpoint.path)
    before = [StatKey.of(file) for file in checkpoint.files]
    note = {"files": [list(key) for key in before]}
    # A file written to just now may be written to again within one tick of its clock, and would look the same.
    is_settled = time.time_ns() - max(max(key.mtime_ns, key.ctime_ns) for key in before) > _SETTLED_NS
    for known in (hashed.get(place, {}), memo.get(place, {})):
        if known.get("files") == note["files"]:
            hashed[place] = memo[place] = known
            return str(known["content"])
    content = fingerprint_file(checkpoint)
    if is_settled:
        hashed[place] = memo[place] = {**note, "content": content}
    else:
        hashed.pop(place, None)
        memo.pop(place, None)
    return content


def _function_name(function: Any) -> str:
    """A name that is the same in every process. Of what a function does, its name has to stand for the rest."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
