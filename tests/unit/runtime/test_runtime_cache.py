from __future__ import annotations

import random

import pytest

from kaito_hooks.runtime import Key, Obj
from kaito_hooks.runtime.client.cache import Cache


def thing(name: str, *colours: str) -> Obj:
    return {"metadata": {"name": name, "namespace": "ns"}, "colours": list(colours)}


def by_colour(obj: Obj) -> list[str]:
    if "broken" in obj["colours"]:
        raise RuntimeError("broken")
    return list(obj["colours"])


@pytest.fixture
def cache() -> Cache:
    return Cache({"colour": by_colour})


def test_an_index_follows_an_object_that_changes_and_goes(cache: Cache) -> None:
    key = Key("ns", "a")
    assert cache.put(key, thing("a", "red", "blue")) is None
    assert cache.by_index("colour", "red") == [thing("a", "red", "blue")]
    assert cache.put(key, thing("a", "blue")) == thing("a", "red", "blue")
    assert cache.by_index("colour", "red") == []
    assert cache.by_index("colour", "blue") == [thing("a", "blue")]
    assert cache.remove(key) == thing("a", "blue")
    assert cache.by_index("colour", "blue") == []
    assert cache.get(key) is None
    assert cache.remove(key) is None


def test_an_object_that_the_index_function_cannot_read_is_cached_without_it(cache: Cache) -> None:
    key = Key("ns", "a")
    cache.put(key, thing("a", "red"))
    cache.put(key, thing("a", "broken"))
    assert cache.get(key) == thing("a", "broken")
    assert cache.by_index("colour", "red") == []
    cache.put(key, thing("a", "red"))
    assert len(cache.by_index("colour", "red")) == 1


def test_an_index_that_does_not_exist_is_a_mistake_of_the_caller(cache: Cache) -> None:
    with pytest.raises(KeyError):
        cache.by_index("colors", "red")


def test_after_any_history_the_index_says_what_a_full_search_says(cache: Cache) -> None:
    rng = random.Random(3)
    palette = ["red", "green", "blue", "grey"]
    for _ in range(2000):
        key = Key("ns", str(rng.randrange(12)))
        if rng.random() < 0.3:
            cache.remove(key)
        else:
            cache.put(key, thing(key.name, *rng.sample(palette, rng.randrange(4))))
    for colour in palette:
        found = {Key.of(obj) for obj in cache.by_index("colour", colour)}
        assert found == {Key.of(obj) for obj in cache.list() if colour in obj["colours"]}
