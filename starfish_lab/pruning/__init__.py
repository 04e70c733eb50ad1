"""Pruning: a score for each weight, a budget for each layer, a pattern for the zeros → masks.

Around that: what pruning starts from (`STARTS`), the order in which a layer meets its inputs (`PERMUTATIONS`), and solvers,
which choose masks and new values of the weights together (`SOLVERS`).
"""

from starfish_lab.registry import Registry

SCORES = Registry("starfish_lab.pruning.scores", provides="score", kind="pruning score")
SOLVERS = Registry("starfish_lab.pruning.solvers", provides="solve", kind="solver")
BUDGETS = Registry("starfish_lab.pruning.budgets", provides="allocate", kind="layer budget")
PATTERNS = Registry("starfish_lab.pruning.patterns", provides="masks", kind="pruning pattern")
PERMUTATIONS = Registry("starfish_lab.pruning.permutations", provides="order", kind="permutation")
STARTS = Registry("starfish_lab.pruning.starts", provides="start", kind="start")
