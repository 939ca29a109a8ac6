"""What is looked at of a method before anything is trained with it.

A batch of two images is no proof; `tests/test_methods.py` has the whole contract.
"""

from typing import Any

import torch
from torch import Tensor

from kdtune.errors import UserError
from kdtune.methods.method import Maps, Method, Parts


def check_targets(name: str, found: Any, images: int) -> Parts:
    """Check what `Method.targets` gave.

    Args:
        name: the method's.
        found: is given back.
        images: B.

    Raises:
        UserError: it is no dict of tensors whose first dimension is B.
    """
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise UserError(f"The method '{name}': targets must give a dict of tensors.")
    for key, value in found.items():
        if value.shape[:1] != (images,):
            raise UserError(
                f"The method '{name}': the first dimension of the target '{key}' must be that of "
                f"the batch, {images}; its shape is {tuple(value.shape)}."
            )
    return found


def check_terms(name: str, found: Any) -> None:
    """Check what `Method.terms` gave.

    Raises:
        UserError: it is no dict of weights and scalars to learn from.
    """
    if not isinstance(found, dict):
        raise UserError(f"The method '{name}': terms must give a dict of (weight, tensor).")
    for key, term in found.items():
        match term:
            case (int() | float(), Tensor(ndim=0, requires_grad=True)):
                continue
            case (int() | float(), Tensor(ndim=0)):
                wrong = "does not depend on the student"
            case _:
                wrong = "must be (weight, scalar tensor)"
        raise UserError(f"The method '{name}': the term '{key}' {wrong}.")


def check_losses(name: str, found: Any) -> None:
    """Check what `Method.forward` gave.

    Raises:
        UserError: it is no dict of scalars with a ``loss`` to learn from.
    """
    if not isinstance(found, dict) or "loss" not in found:
        raise UserError(f"The method '{name}': forward must give a dict with 'loss'.")
    for key, value in found.items():
        if not isinstance(value, Tensor) or value.dim():
            raise UserError(f"The method '{name}': '{key}' of forward must be a scalar tensor.")
    if not found["loss"].requires_grad:
        raise UserError(f"The method '{name}': 'loss' does not depend on the student.")


def rehearse(
    name: str,
    method: Method,
    student: tuple[Tensor, Maps],
    teacher: tuple[Tensor, Maps] | None,
) -> None:
    """Go through a batch once, as a step of training does.

    Args:
        name: the method's.
        method: built for these networks.
        student: logits [B, K] and stages of the student.
        teacher: the same of the teacher; None without one.

    Raises:
        UserError: see `check_targets`, `check_terms` and `check_losses`.
    """
    logits, *features = (x.detach().requires_grad_() for x in (student[0], *student[1]))
    labels = torch.zeros(len(logits), dtype=torch.long)
    targets = None
    if teacher is not None:
        with torch.no_grad():
            targets = check_targets(name, method.targets(*teacher), len(logits))
    if type(method).forward is Method.forward and (targets is not None or not method.uses_teacher):
        check_terms(name, method.terms(logits, features, targets or {}, labels))
    check_losses(name, method(logits, features, targets, labels))
