"""Pruning: a score for each weight, a budget for each layer, a pattern for the zeros → masks."""

from starfish_lab.registry import Registry

SCORES = Registry("starfish_lab.pruning.scores", provides="score", kind="pruning score")
BUDGETS = Registry("starfish_lab.pruning.budgets", provides="allocate", kind="layer budget")
PATTERNS = Registry("starfish_lab.pruning.patterns", provides="masks", kind="pruning pattern")
