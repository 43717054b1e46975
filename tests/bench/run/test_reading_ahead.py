"""Batches that a thread reads while the one before is judged."""

import threading

import pytest

from bench.run.reading_ahead import one_ahead


def test_items_keep_their_order_and_one_at_most_is_made_ahead():
    made = []

    def items():
        for number in range(5):
            made.append((number, threading.current_thread() is threading.main_thread()))
            yield number

    seen = []
    for item in one_ahead(items()):
        seen.append(item)
        assert len(made) <= item + 2
    assert seen == list(range(5)) and [number for number, _ in made] == seen
    assert not any(main for _, main in made)


def test_what_making_an_item_raises_comes_in_its_place():
    def items():
        yield 1
        raise ValueError("a broken image")

    found = one_ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="a broken image"):
        next(found)
