"""Feature mimicking: the final feature as the dense network's, and nothing else (MiR / PRACTISE; DC-ViT, arXiv 2403.18708).

    L = mean over all elements of ( s − t )²

s and t are what the pruned and the dense network hand to pooling and classifier: (B, C, H, W) of a convolutional network
before its global average pooling, the tokens (B, N, D) of a transformer after its last norm. The classifier takes no part.
Next to STARFISH it is 'the last layer alone, with its length'.

The defaults are the authors' of MiR: SGD with momentum 0.9, rate 0.02, weight decay 1e-4, 64 images a batch, reshuffled.
Their rate falls tenfold after every 40 % of 2,000 steps; here it falls to the same hundredth along the recipe's schedule, over
as many steps as the recipe takes. Which parameters train is the recipe's choice too.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from starfish_lab.healing.session import Batch, Loss, Session
from starfish_lab.healing.teacher import Teacher
from starfish_lab.models.states import BlockStates

NEEDS_LABELS = False
DEFAULTS = {  # the momentum of 'sgd' is 0.9 unless a recipe says otherwise
    "optimiser": "sgd", "learning_rate": 0.02, "final_learning_rate": 2e-4, "weight_decay": 1e-4, "batch_size": 64, "order": "shuffled",
}  # fmt: skip


def objective(session: Session) -> Callable[[Batch], Loss]:
    """The loss of a batch."""
    session.check_same_tokens("Feature mimicking")
    last = session.student.blocks[-1:]

    def feature(module: nn.Module, images: Tensor) -> Tensor:
        if hasattr(module, "forward_features"):  # timm's name for all but pooling and classifier
            return module.forward_features(images).float()
        with BlockStates(module, last) as states:
            module(images)
        return states.values[0].float()

    teacher = Teacher(session, lambda module, images: [feature(module, images)])

    def loss(batch: Batch) -> Loss:
        (target,) = teacher(batch)
        return Loss(F.mse_loss(feature(session.student.module, batch.images), target))

    return loss
