"""Draws against the counter-based generator written out, and what follows from it."""

import itertools

import numpy as np
import pytest

from util.system import keyed_random
from util.system.keyed_random import keyed_generator

WORD = 2**64


def philox(counter, key):
    """Ten rounds of Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    a, b, c, d = counter
    k, l = key
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (high // WORD) ^ b ^ k, high % WORD, (low // WORD) ^ d ^ l, low % WORD
        k, l = (k + 0x9E3779B97F4A7C15) % WORD, (l + 0xBB67AE8584CAA73B) % WORD
    return [a, b, c, d]


@pytest.mark.parametrize("seed, stream, first, second", [(0, 0, 0, 0), (7, 1, 3, 99), (2**63, 3, 2**40, 8)])
def test_a_place_is_a_counter_and_the_run_a_key(seed, stream, first, second):
    found = keyed_generator(seed, stream, first, second).bit_generator.random_raw(8).tolist()
    assert found == sum([philox([block, first, second, 0], [seed, stream]) for block in (1, 2)], [])


def test_the_same_names_give_the_same_draws_in_any_order():
    forth = [keyed_generator(1, 2, step, 0).random(3).tolist() for step in range(4)]
    back = [keyed_generator(1, 2, step, 0).random(3).tolist() for step in reversed(range(4))]
    assert forth == back[::-1]


def test_every_name_matters():
    names = list(itertools.product((0, 1), repeat=4))
    assert len({keyed_generator(*name).random() for name in names}) == 16


def test_global_state_is_neither_read_nor_written():
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    first = keyed_generator(0, 0, 0, 0).random()
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(1)
    assert keyed_generator(0, 0, 0, 0).random() == first


def test_subjects_have_streams_of_their_own():
    streams = [value for name, value in vars(keyed_random).items() if name.isupper()]
    assert len(streams) == len(set(streams)) >= 4
