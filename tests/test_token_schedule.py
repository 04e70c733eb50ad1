"""How many tokens there are before and after every block."""

from __future__ import annotations

import pytest

from starfish_lab.errors import RecipeError
from starfish_lab.token_schedule import clamped, per_block, schedule


@pytest.mark.parametrize(
    ("r", "expected"),
    [((), [17, 17, 17, 17]), ((0,), [17, 17, 17, 17]), ((2,), [17, 15, 13, 11]), ((1, 0, 5), [17, 16, 16, 11]), ((8,), [17, 9, 5, 3])],
)
def test_tokens_before_and_after_every_block(r, expected):
    assert schedule(17, 1, 3, r) == expected


def test_the_papers_networks():
    assert schedule(197, 1, 12, (8,)) == [197 - 8 * i for i in range(13)]
    assert schedule(197, 1, 24, (8,))[-3:] == [21, 13, 7]  # the last block is asked for 8 of 13 and merges 6


@pytest.mark.parametrize(("tokens", "prefix", "wanted", "merged"), [(17, 1, 8, 8), (17, 1, 9, 8), (18, 1, 99, 8), (198, 2, 98, 98), (3, 5, 4, 0)])
def test_at_most_every_second_token_merges_and_none_of_the_prefix(tokens, prefix, wanted, merged):
    assert clamped(tokens, prefix, wanted) == merged


def test_a_list_of_another_length_is_refused_with_the_number_of_blocks():
    with pytest.raises(RecipeError, match="2 numbers and the network 12 blocks"):
        per_block((8, 4), 12)
    assert per_block((8,), 3) == [8, 8, 8] and per_block((), 2) == [0, 0] and per_block((1, 2), 2) == [1, 2]


@pytest.mark.parametrize("r", [(9,), (1, 0, 100)])
def test_more_than_any_block_could_merge_is_refused_with_the_most_there_can_be(r):
    with pytest.raises(RecipeError, match=r"at most 8 can merge.* from 0 to 8"):
        schedule(17, 1, 3, r)
