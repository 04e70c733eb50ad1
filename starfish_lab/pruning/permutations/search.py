"""Searches for the order that lets the pattern keep most: swaps of channels between groups, the best first.

After the permutation search of NVIDIA's ASP (stripes of two groups, greedy on disjoint pairs, random swaps out of a local
optimum), written anew and for any n:m. Every swap between any two groups is known at once, because for one row

    kept(group without a, with b) = (sum of the k − 1 largest without a) + max(k-th largest without a, b)

and Σ max(x, b) = (Σ x + Σ b + Σ |x − b|) / 2, an L1 distance between what a leaves open and what b would bring. Gains are
estimated on some of the rows where there are many, and every swap is checked on all of them before it stays.
"""

from __future__ import annotations

import math

import torch
from torch import LongTensor, Tensor

from starfish_lab.pruning import permutations
from starfish_lab.pruning.permutations import deal, snake

SMALLEST = 1e-9  # gain of a swap that counts, as a share of all importance
# Swaps of channels with several taps: tried for each pair of blocks, how many times at most, and how many times in vain.
TRIED, SWEEPS, IDLE = 24, 400, 40


def order(
    importance: Tensor, *, keep: int, group: int, segments: int = 1, taps: int = 1,
    seed: int = 0, effort: float = 48.0, escapes: int = 16, rows: int = 128,
) -> LongTensor:  # fmt: skip
    """The best order found; never one that keeps less than the given order, `deal` or `snake`. Equal arguments give equal orders.

    effort  : billions of comparisons at most; they bound the time and, unlike a clock, let the same search end the same way
    escapes : attempts to get out of a local optimum by random swaps, taken back where they lead to nothing better
    rows    : of the importance, drawn by `seed`, on which gains are estimated before all rows are looked at
    """
    importance = importance.float()
    pattern = {"keep": keep, "group": group, "taps": taps}
    channels = importance.shape[1] // taps
    starts = [torch.arange(channels, device=importance.device)]
    starts += [rule.order(importance, segments=segments, **pattern) for rule in (deal, snake)]
    best = max(starts, key=lambda found: permutations.kept(importance, found, **pattern))  # the first where they are equal
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(importance), generator=generator)[:rows].sort().values.to(importance.device)
    if taps == 1:
        found = _exchange(importance, best, picked, generator, keep, group, segments, effort * 1e9, escapes)
    else:
        found = _exchange_blocks(importance, best, picked, generator, keep, group, segments, taps, effort * 1e9)
    # the sums above are of parts; the last word is that of the whole
    return max((best, found), key=lambda candidate: permutations.kept(importance, candidate, **pattern))


# -- one column a channel ---------------------------------------------------------------------------------------------


def _exchange(
    importance: Tensor, start: Tensor, picked: Tensor, generator: torch.Generator, keep: int, group: int, segments: int, effort: float, escapes: int
) -> LongTensor:
    state = _State(importance, start, picked, keep, group, segments)
    if not state.movable:
        return start
    every = torch.arange(len(importance), device=importance.device)
    few = picked[:: max(1, len(picked) // 32)]
    for looked_at, share in ((few, 0.1), (picked, 0.4), (every, 1.0)):  # from coarse to fine: most swaps need no exact gain
        state.look_at(looked_at)
        state.climb(share * effort)
    best = state.saved()
    for _ in range(escapes):
        if state.spent >= effort:
            break
        state.shake(max(1, state.groups // 32), generator)
        state.climb(effort)
        if state.total > best["kept"].sum().item() * (1 + SMALLEST):
            best = state.saved()
        else:
            state.restore(best)
    return best["order"]


class _State:
    """An order of the channels, with the gain of every swap of two places in it.

    all, seen : (channels, out) importance in the order of places, of all rows and of those that estimate
    replaced  : (channels, channels) importance kept in the group of place i if the channel at place j stood at i, seen rows
    best      : (groups, groups) largest gain of a swap between two groups, seen rows; -inf where there is none
    kept      : (groups,) importance kept in each group, all rows, float64
    """

    def __init__(self, importance: Tensor, order: Tensor, picked: Tensor, keep: int, group: int, segments: int):
        channels = importance.shape[1]
        self.keep, self.group, self.groups, self.length = keep, group, channels // group, channels // segments
        # segments that are one group, or part of one, leave nothing to choose
        self.movable = self.groups > 1 and group % self.length != 0
        self.smallest, self.spent = SMALLEST * importance.sum(dtype=torch.float64).item(), 0
        self.order = order.clone()
        self.segment = torch.arange(channels, device=order.device) // self.length
        self.all = importance.T[order].contiguous()
        self.seen = self.all[:, picked]
        self.replaced = importance.new_full((channels, channels), -torch.inf)
        self.of_seen = importance.new_zeros(self.groups)
        self.best = importance.new_full((self.groups, self.groups), -torch.inf)
        self.mine = torch.zeros(self.groups, self.groups, dtype=torch.long, device=order.device)  # place of the best swap in the row's group
        self.kept = permutations.group_sums(self.all.unflatten(0, (-1, group)), keep)

    def look_at(self, rows: Tensor) -> None:
        """Estimate gains on these rows from now on."""
        self.seen = self.all[:, rows].contiguous() if len(rows) < self.all.shape[1] else self.all
        self.refresh(torch.arange(self.groups, device=self.order.device))

    @property
    def total(self) -> float:
        return self.kept.sum().item()

    def saved(self) -> dict[str, Tensor]:
        names = ("order", "all", "seen", "replaced", "of_seen", "best", "mine", "kept")
        return {name: getattr(self, name).clone() for name in names}

    def restore(self, saved: dict[str, Tensor]) -> None:
        for name, value in saved.items():
            getattr(self, name).copy_(value)
        self.spent += 16 * self.replaced.numel()

    def climb(self, effort: float) -> None:
        """Swaps that gain, until there are none or the effort is spent."""
        while self.spent < effort:
            first, second = self.disjoint()
            if not len(first):
                return
            self.spent += 16 * self.replaced.numel()  # what moving and scanning the gains costs
            gains = self.gains(first, second)
            good = gains > self.smallest
            self.best[first[~good] // self.group, second[~good] // self.group] = -torch.inf  # until one of the groups changes
            self.best[second[~good] // self.group, first[~good] // self.group] = -torch.inf
            self.swap(first[good], second[good])

    def shake(self, swaps: int, generator: torch.Generator) -> None:
        """Random swaps between groups inside segments, of places that are all different."""
        places = torch.randperm(len(self.order), generator=generator).to(self.order.device)
        used, pairs = set(), []
        for place in places.tolist():
            if len(pairs) == swaps:
                break
            inside = int(torch.randint(self.length, (1,), generator=generator))
            other = place // self.length * self.length + inside
            if place // self.group != other // self.group and not {place // self.group, other // self.group} & used:
                used |= {place // self.group, other // self.group}
                pairs.append((place, other))
        if pairs:
            self.swap(*torch.tensor(pairs, device=self.order.device).T)

    def disjoint(self) -> tuple[Tensor, Tensor]:
        """Places to swap: pairs of groups that are each other's best, then those of the groups left, and so on."""
        gain, pairs = self.best.clone(), []
        numbers = torch.arange(self.groups, device=gain.device)
        while True:
            value, partner = gain.max(1)
            mutual = (partner[partner] == numbers) & (value > self.smallest) & (numbers < partner)
            if not mutual.any():
                break
            chosen = torch.stack([numbers[mutual], partner[mutual]])
            pairs.append(chosen)
            gain[chosen.flatten()] = -torch.inf
            gain[:, chosen.flatten()] = -torch.inf
        if not pairs:  # equal gains may hide a pair from itself
            place = int(self.best.argmax())
            if not self.best.flatten()[place] > self.smallest:
                return numbers[:0], numbers[:0]
            pairs = [torch.tensor([[place // self.groups], [place % self.groups]], device=gain.device)]
        first, second = torch.cat(pairs, dim=1)
        return self.mine[first, second], self.mine[second, first]

    def gains(self, first: Tensor, second: Tensor) -> Tensor:
        """(pairs,) exact gains of swaps whose groups are all different, float64."""
        here, there = first // self.group, second // self.group
        blocks = self.all.unflatten(0, (-1, self.group))
        here_block, there_block = blocks[here], blocks[there]  # (pairs, n, out), copies
        pair = torch.arange(len(first), device=first.device)
        here_block[pair, first % self.group], there_block[pair, second % self.group] = self.all[second], self.all[first]
        after = permutations.group_sums(here_block, self.keep) + permutations.group_sums(there_block, self.keep)
        return after - self.kept[here] - self.kept[there]

    def swap(self, first: Tensor, second: Tensor) -> None:
        both, turned = torch.cat([first, second]), torch.cat([second, first])
        for held in {id(held): held for held in (self.order, self.all, self.seen)}.values():
            held[both] = held[turned]
        self.replaced[:, both] = self.replaced[:, turned]
        touched = (both // self.group).unique()
        self.kept[touched] = permutations.group_sums(self.all.unflatten(0, (-1, self.group))[touched], self.keep)
        self.refresh(touched)

    def refresh(self, touched: Tensor) -> None:
        """What depends on the channels of the touched groups."""
        if not len(touched):
            return
        blocks = self.seen.unflatten(0, (-1, self.group))[touched]  # (t, n, rows)
        planes = permutations.descending(blocks, self.keep + 1)
        sums = torch.stack(planes[: self.keep]).sum(0)[:, None]  # (t, 1, rows)
        last, following = planes[self.keep - 1][:, None], planes[self.keep][:, None]
        among = blocks >= last
        opened = torch.where(among, following, last).flatten(0, 1)  # k-th largest of the others
        rest = (sums - torch.where(among, blocks, last)).sum(-1).flatten()  # the k − 1 largest of the others, over all rows
        self.of_seen[touched] = sums.sum((1, 2))
        places = (touched[:, None] * self.group + torch.arange(self.group, device=touched.device)).flatten()
        for segment in self.segment[places].unique().tolist():
            inside = self.segment[places] == segment
            span = slice(segment * self.length, (segment + 1) * self.length)
            opening, candidates = opened[inside], self.seen[span]
            apart = torch.cdist(opening, candidates, p=1.0)
            self.spent += apart.numel() * candidates.shape[1]
            largest = (opening.sum(-1)[:, None] + candidates.sum(-1)[None] + apart) / 2
            self.replaced[places[inside], span] = rest[inside][:, None] + largest
        self._best_of(touched, places)

    def _best_of(self, touched: Tensor, places: Tensor) -> None:
        gain = self.replaced[places] + self.replaced[:, places].T  # (t·n, channels)
        gain = gain.unflatten(1, (-1, self.group)).unflatten(0, (-1, self.group))  # (t, n, groups, n)
        theirs, at = gain.max(3)
        value, place = theirs.max(1)  # (t, groups)
        value = value - self.of_seen[touched][:, None] - self.of_seen[None]
        value[torch.arange(len(touched), device=value.device), touched] = -torch.inf
        self.best[touched], self.best[:, touched] = value, value.T
        self.mine[touched] = touched[:, None] * self.group + place
        other = at.gather(1, place[:, None])[:, 0] + torch.arange(self.groups, device=value.device) * self.group
        self.mine[:, touched] = other.T


# -- several columns a channel ----------------------------------------------------------------------------------------


def _exchange_blocks(
    importance: Tensor, start: Tensor, picked: Tensor, generator: torch.Generator, keep: int, group: int, segments: int, taps: int, effort: float
) -> LongTensor:
    """Swaps inside random pairs of blocks, a block being the fewest channels that fill whole groups.

    A channel's taps lie in several groups, together with one another, so the shortcut above does not hold: swaps are tried.
    """
    width = group // math.gcd(group, taps)  # channels of a block
    channels = importance.shape[1] // taps
    blocks, length = channels // width, channels // segments
    if blocks < 2 or width == 1:
        return start  # every channel fills its own groups: no order is better than another
    everything = permutations.channels_first(importance, taps)
    seen = everything[..., picked].contiguous()
    order = start.clone()
    window = torch.arange(2 * width)
    swaps = torch.combinations(window)
    per_sweep = blocks * width * taps * seen.shape[-1] * min(len(swaps), TRIED) * 2 * (keep + 1)
    idle = 0
    for _ in range(min(SWEEPS, int(effort / per_sweep))):
        pairs = torch.randperm(blocks, generator=generator)[: blocks // 2 * 2].view(-1, 2)
        tried = swaps[torch.randperm(len(swaps), generator=generator)[:TRIED]]
        places = (pairs[:, :, None] * width + torch.arange(width)).flatten(1)  # (p, 2 · width)
        allowed = (places[:, tried[:, 0]] // length == places[:, tried[:, 1]] // length).to(order.device)  # (p, tried)
        candidates = window.repeat(len(tried) + 1, 1)  # the last one changes nothing
        rows = torch.arange(len(tried))
        candidates[rows, tried[:, 0]], candidates[rows, tried[:, 1]] = tried[:, 1], tried[:, 0]
        places, candidates = places.to(order.device), candidates.to(order.device)
        estimate = _kept_of(seen, order[places[:, candidates]].flatten(0, 1), keep, group).view(len(places), -1)  # (p, tried + 1)
        estimate[:, :-1][~allowed] = -torch.inf
        before, chosen = order[places], order[places.gather(1, candidates[estimate.argmax(1)])]  # (p, 2 · width) channels
        better = _kept_of(everything, chosen, keep, group) > _kept_of(everything, before, keep, group)
        order[places] = torch.where(better[:, None], chosen, before)
        idle = 0 if better.any() else idle + 1
        if idle == IDLE:
            break
    return order


def _kept_of(importance: Tensor, channels: Tensor, keep: int, group: int) -> Tensor:
    """(channels, taps, out), (p, c) → (p,) float64: importance kept in each of p sequences of channels."""
    at_once = max(1, (1 << 23) // (channels.shape[1] * importance[0].numel()))
    parts = (importance[part].flatten(1, 2).unflatten(1, (-1, group)) for part in channels.split(at_once))
    return torch.cat([permutations.group_sums(part, keep).sum(-1) for part in parts])
