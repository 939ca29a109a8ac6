"""Checks of a method before training: one step on two images, with clear errors."""

from typing import Any

import torch
from torch import Tensor

from kdtune.errors import UserError
from kdtune.methods.method import FeatureMaps, Method, TensorsByName

_Outputs = tuple[Tensor, FeatureMaps]


def validate_targets(name: str, targets: Any, batch_size: int) -> TensorsByName:
    """Check the result of `Method.targets`, and return it; a `UserError` says what is wrong.

    Args:
        name: the method's.
        targets: the result.
        batch_size: B.
    """
    if not isinstance(targets, dict) or not all(isinstance(x, Tensor) for x in targets.values()):
        raise UserError(f"The method '{name}': targets must return a dict of tensors.")
    for key, value in targets.items():
        if value.shape[:1] != (batch_size,):
            raise UserError(
                f"The method '{name}': the first dimension of the target '{key}' must be that of "
                f"the batch, {batch_size}; its shape is {tuple(value.shape)}."
            )
    return targets


def _validate_terms(name: str, terms: Any) -> None:
    if not isinstance(terms, dict):
        raise UserError(f"The method '{name}': terms must return a dict of (weight, tensor).")
    for key, term in terms.items():
        match term:
            case (int() | float(), Tensor(ndim=0, requires_grad=True)):
                continue
            case (int() | float(), Tensor(ndim=0)):
                problem = "does not depend on the student"
            case _:
                problem = "must be (weight, scalar tensor)"
        raise UserError(f"The method '{name}': the term '{key}' {problem}.")


def _validate_losses(name: str, losses: Any) -> None:
    if not isinstance(losses, dict) or "loss" not in losses:
        raise UserError(f"The method '{name}': forward must return a dict with 'loss'.")
    for key, value in losses.items():
        if not isinstance(value, Tensor) or value.dim():
            raise UserError(f"The method '{name}': '{key}' of forward must be a scalar tensor.")
    if not losses["loss"].requires_grad:
        raise UserError(f"The method '{name}': 'loss' does not depend on the student.")


def dry_run(name: str, method: Method, student: _Outputs, teacher: _Outputs | None) -> None:
    """Run one step on a batch; a `UserError` says which result is invalid.

    Args:
        name: the method's.
        method: built for these networks.
        student: logits [B, K] and stages of the student.
        teacher: logits and stages of the teacher; None without one.
    """
    logits, *features = (x.detach().requires_grad_() for x in (student[0], *student[1]))
    labels = torch.zeros(len(logits), dtype=torch.long)
    targets = None
    if teacher is not None:
        with torch.no_grad():
            targets = validate_targets(name, method.targets(*teacher), len(logits))
    if type(method).forward is Method.forward and (targets is not None or not method.uses_teacher):
        _validate_terms(name, method.terms(logits, features, targets or {}, labels))
    _validate_losses(name, method(logits, features, targets, labels))
