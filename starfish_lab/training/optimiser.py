"""One optimiser step that moves only what may move: masked entries keep their value, bit for bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from starfish_lab.errors import RecipeError
from starfish_lab.pruning.masks import Masks

if TYPE_CHECKING:
    from starfish_lab.training.loop import TrainingChoice

NEVER_DECAY = ("pos_embed", "cls_token", "dist_token", "reg_token", "relative_position_bias_table")  # parts of parameter names


class MaskedOptimiser:
    """Adam, AdamW or SGD over the parameters of a module that train.

    Parameters
    ----------
    module : on its device already
    moves : {layer name: bool tensor of the weight's shape}, True where an entry may change
    choice : optimiser, momentum, weight decay, gradient clip, and `trains`: 'weights' (the layers of `moves` alone) or
        'all' (every parameter; those outside `moves` freely)

    The weight decay of 'adam' is part of the gradient, that of 'adamw' acts on the weight. With `trains` 'all' nothing
    of at most one dimension decays (biases, norms), nor do tokens and position embeddings (marchenko_pastur §3).
    """

    def __init__(self, module: nn.Module, moves: Masks, choice: TrainingChoice):
        masked = {f"{name}.weight": module.get_submodule(name).weight for name in moves}
        self.parameters: dict[str, nn.Parameter] = dict(masked)
        if choice.trains == "all":
            own = {id(weight) for weight in masked.values()}
            self.parameters |= {name: p for name, p in module.named_parameters() if id(p) not in own and p.is_floating_point()}
        if not self.parameters:
            raise RecipeError("No layer has a mask, so nothing can be trained. Prune first, or train all parameters.")
        self._weights = list(masked.values())
        self._moving = [mask.to(weight) for mask, weight in zip(moves.values(), self._weights)]  # 1 and 0: masking is one product
        self._held = [_held(weight, moving) for weight, moving in zip(self._weights, self._moving)]
        self._clip = choice.gradient_clip
        self._optimiser = _optimiser(_groups(module, self.parameters, masked, choice), choice)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step at a learning rate. Parameters without a gradient (layers after the last one in the loss) stay as they are."""
        live = [i for i, weight in enumerate(self._weights) if weight.grad is not None]
        weights, moving = [self._weights[i] for i in live], [self._moving[i] for i in live]
        if live:
            torch._foreach_mul_([weight.grad for weight in weights], moving)
        if self._clip:
            torch.nn.utils.clip_grad_norm_([p for p in self.parameters.values() if p.grad is not None], self._clip)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        if live:
            torch._foreach_mul_(weights, moving)
        if held := [(self._weights[i], self._held[i]) for i in live if self._held[i] is not None]:
            torch._foreach_add_([weight for weight, _ in held], [values for _, values in held])
        self._optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return self._optimiser.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._optimiser.load_state_dict(state)


@torch.no_grad()
def _held(weight: Tensor, moving: Tensor) -> Tensor | None:
    """The values of entries that must not move, 0 elsewhere; None where they all are 0 and masking alone keeps them."""
    held = torch.where(moving == 0, weight, 0.0)
    return held if held.any() else None


def _groups(module: nn.Module, parameters: dict[str, nn.Parameter], masked: dict[str, Tensor], choice: TrainingChoice) -> list[dict]:
    named = getattr(module, "no_weight_decay", None)  # timm's models name theirs
    exempt = {*NEVER_DECAY, *(named() if callable(named) else ())}

    def decays(name: str, parameter: Tensor) -> bool:
        return name in masked or (parameter.ndim > 1 and not any(part in name for part in exempt))

    decayed = [p for name, p in parameters.items() if decays(name, p)]
    others = [p for name, p in parameters.items() if not decays(name, p)]
    groups = [{"params": decayed, "weight_decay": choice.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _optimiser(groups: list[dict], choice: TrainingChoice) -> torch.optim.Optimizer:
    if choice.optimiser == "adam":
        return torch.optim.Adam(groups, lr=choice.learning_rate, fused=True)
    if choice.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=choice.learning_rate, fused=True)
    if choice.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=choice.learning_rate, momentum=choice.momentum, nesterov=choice.nesterov, fused=True)
    raise RecipeError(f"There is no optimiser {choice.optimiser!r}. Choose one of: adam, adamw, sgd.")


def learning_rate(step: int, steps: int, choice) -> float:
    """Rate of step 1 … steps. A line up to the first rate, reached at step `warmup`; then half a cosine down.

    The final rate would be that of step steps + 1. `choice` has learning_rate, final_learning_rate and warmup.
    """
    if step <= choice.warmup:
        return choice.learning_rate * step / choice.warmup
    share = (1 + math.cos(math.pi * (step - 1 - choice.warmup) / (steps - choice.warmup))) / 2
    return choice.final_learning_rate + (choice.learning_rate - choice.final_learning_rate) * share
