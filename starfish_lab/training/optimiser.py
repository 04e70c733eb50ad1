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

    A step is a handful of kernels over all layers together: the gradients times the masks, and the fused optimiser. An entry
    whose gradients were always 0 has moments of 0 and is not moved by any of the three, but for its decay; so weights need no
    mask after the step, and only where values other than 0 are held and decay are they put back.

    Parameters
    ----------
    module : on its device already
    moves : {layer name: bool tensor of the weight's shape}, True where an entry may change
    choice : optimiser, momentum, weight decay, gradient clip, and `trains`: 'weights' (the layers of `moves` alone), 'affine'
        (those, and every parameter of at most one dimension: biases, norms, layer scales) or 'all' (every parameter);
        parameters outside `moves` train freely
    instead : {name: parameter} that train in place of the weights in `moves`, which then stay as they are

    The weight decay of 'adam' is part of the gradient, that of 'adamw' acts on the weight. Nothing of at most one dimension
    outside `moves` decays (biases, norms), nor do tokens and position embeddings (marchenko_pastur §3).
    """

    def __init__(self, module: nn.Module, moves: Masks, choice: TrainingChoice, instead: dict[str, nn.Parameter] | None = None):
        masked = {} if instead is not None else {f"{name}.weight": module.get_submodule(name).weight for name in moves}
        self.parameters: dict[str, nn.Parameter] = masked | (instead or {})
        if choice.trains != "weights":
            self.parameters |= _others(module, self.parameters, moves, everything=choice.trains == "all")
        if not self.parameters:
            raise RecipeError("No layer has a mask, so nothing can be trained. Prune first, or train all parameters.")
        self._weights = list(masked.values())
        self._moving = [moves[name.removesuffix(".weight")].to(weight) for name, weight in masked.items()]  # 1 and 0: masking is one product
        self._held = [_held(weight, moving) if choice.weight_decay else None for weight, moving in zip(self._weights, self._moving)]
        self._clip = choice.gradient_clip
        self._optimiser = _optimiser(_groups(module, self.parameters, masked, choice), choice)
        self._alive: list[bool] | None = None  # which weights had a gradient at the last step: the same ones at every step, as a rule

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step at a learning rate. Parameters without a gradient (layers after the last one in the loss) stay as they are."""
        gradients = [weight.grad for weight in self._weights]
        if (alive := [gradient is not None for gradient in gradients]) != self._alive:
            self._select(alive)
        if self._live_moving:
            torch._foreach_mul_([gradient for gradient in gradients if gradient is not None], self._live_moving)
        if self._clip:
            torch.nn.utils.clip_grad_norm_([p for p in self.parameters.values() if p.grad is not None], self._clip)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        if self._restored:
            torch._foreach_mul_(self._restored, self._restored_moving)
            torch._foreach_add_(self._restored, self._restored_held)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        self._optimiser.zero_grad(set_to_none=True)

    def _select(self, alive: list[bool]) -> None:
        """Remember the masks of the weights that have a gradient, and the values to put back into them."""
        self._alive = alive
        live = [i for i, has in enumerate(alive) if has]
        held = [i for i in live if self._held[i] is not None]
        self._live_moving = [self._moving[i] for i in live]
        self._restored, self._restored_moving, self._restored_held = ([of[i] for i in held] for of in (self._weights, self._moving, self._held))

    def state_dict(self) -> dict:
        return self._optimiser.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._optimiser.load_state_dict(state)


@torch.no_grad()
def _held(weight: Tensor, moving: Tensor) -> Tensor | None:
    """The values of entries that must not move, 0 elsewhere; None where they all are 0, which no decay moves."""
    held = torch.where(moving == 0, weight, 0.0)
    return held if held.any() else None


def _others(module: nn.Module, chosen: dict[str, nn.Parameter], moves: Masks, *, everything: bool) -> dict[str, nn.Parameter]:
    """Parameters that train besides the chosen ones: all of at most one dimension, or every one that is no weight of a masked layer."""
    own = {id(parameter) for parameter in chosen.values()}
    masked = tuple(f"{name}." for name in moves)

    def trains(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim <= 1 or (everything and not name.startswith(masked))

    free = {name: p for name, p in module.named_parameters() if id(p) not in own and p.is_floating_point()}
    return {name: p for name, p in free.items() if trains(name, p)}


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
    """Rate of step 1 … steps. A line up to the first rate, reached at step `warmup`; then `schedule` down from it.

    'cosine' is half a cosine and 'linear' a line, both to the final rate, which would be that of step steps + 1; 'constant'
    stays at the first rate. `choice` has learning_rate, final_learning_rate, warmup and schedule.
    """
    if step <= choice.warmup:
        return choice.learning_rate * step / choice.warmup
    if choice.schedule == "constant":
        return choice.learning_rate
    gone = (step - 1 - choice.warmup) / (steps - choice.warmup)
    share = 1 - gone if choice.schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2
    return choice.final_learning_rate + (choice.learning_rate - choice.final_learning_rate) * share
