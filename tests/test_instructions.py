"""The paper's tables, true sentences, and who gets which instruction."""

import random
from collections import Counter

import pytest

from instructions import (
    ATTRIBUTES,
    OTHERS_SHARE,
    SENTENCES,
    TASKS,
    Ask,
    describe,
    gallery_instruction,
    query_instruction,
    training_instructions,
)
from reid.records import Record
from tests.trees import cocas, opened
from tests.trees import text as write_text

OF_THEIR_OWN = [name for name, row in TASKS.items() if not row.sentences and not row.text_only]


def test_three_times_twenty_sentences():
    assert SENTENCES["trad"][0] == "do not change clothes"
    assert SENTENCES["cc"][-1] == "ignore clothes"
    assert {len(set(sentences)) for sentences in SENTENCES.values()} == {20}
    sizes = Counter(map(len, ATTRIBUTES.values()))
    assert sizes == {8: 4, 7: 2, 5: 1, 4: 4, 3: 7, 2: 2}  # 20 attributes, 92 phrases


def test_a_description_says_what_is_there_and_nothing_else():
    rng = random.Random(0)
    first = {key: phrases[0] for key, phrases in ATTRIBUTES.items()}
    assert len({describe(first, rng) for _ in range(30)}) > 10
    for _ in range(200):
        attributes = {key: rng.choice(phrases) for key, phrases in ATTRIBUTES.items()}
        text = describe(attributes, rng)
        assert all(attributes[f"{key} color"].split()[0] in text for key in ("coat", "trousers"))
        assert "agnostic" not in text and "without" not in text and "  " not in text
        assert ("skirt" in text) == (attributes["trousers length"] == "skirt")
        assert (" hat" in text) == (attributes["cap style"] == "with hat")
        assert ("umbrella" in text) == (attributes["umbrella"] == "with umbrella")


# ---- training ----

def person(pid, outfit, **fields):
    name = f"{pid}_{outfit}"
    return Record("cocas", "train", f"{name}.jpg", pid, clothes=f"{pid}:{outfit}",
                  **dict(captions=(f"words {name}",), crop_path=f"crop {name}") | fields)


def test_one_sentence_serves_a_mini_batch_and_all_are_drawn():
    records = [person(pid, 0) for pid in range(4)]
    for task, row in TASKS.items():
        seen = set()
        for seed in range(300 if row.sentences else 0):
            asks = training_instructions(task, records, {}, random.Random(seed))
            assert len(asks) == 4 and len(set(asks)) == 1
            seen.add(asks[0].words)
        assert seen == set(row.sentences)


@pytest.mark.parametrize("task", OF_THEIR_OWN)
def test_half_of_a_batch_asks_for_other_clothes(task):
    """For those on another image of that person, in words and in pictures; nobody asks for a
    stranger's."""
    pool = {pid: [person(pid, outfit) for outfit in range(2)] for pid in range(4)}
    records = [record for group in pool.values() for record in group]
    for seed in range(20):
        asks = training_instructions(task, records, pool.get, random.Random(seed))
        wanted = [{part.split()[1] for part in ask if part} for ask in asks]
        assert all(len(names) == 1 for names in wanted), "words and picture differ"
        names = [name for [name] in wanted]
        own = [name == record.path.removesuffix(".jpg") for name, record in zip(names, records)]
        assert sum(own) == len(records) * (1 - OTHERS_SHARE)
        assert all(int(name[0]) == record.pid for name, record in zip(names, records))


@pytest.mark.parametrize("task", OF_THEIR_OWN)
def test_another_image_is_never_the_image_itself(task):
    """Except for somebody's only image, which half of the time asks as a query does."""
    shop = dict(template_path="shop 0_0", captions=("wanted 0_0", "own 0_0"))
    records = [person(0, 0, **shop), person(1, 0)]
    pool = {record.pid: [record] for record in records}
    first = {training_instructions(task, records, pool.get, random.Random(seed))[0]
             for seed in range(20)}
    assert first == {query_instruction(task, records[0]), gallery_instruction(task, records[0])}


# ---- testing ----

def test_query_and_gallery_sides():
    record = person(1, 2, captions=("wanted", "own"), template_path="shop", crop_path="crop")
    for task, row in TASKS.items():
        query = query_instruction(task, record, 3)
        gallery = gallery_instruction(task, record, 3)
        if row.sentences:
            assert query == gallery == Ask(row.sentences[3])
            continue
        asked, worn = (
            Ask(words if row.described else None, picture if row.pictures else None)
            for words, picture in (("wanted", "shop"), ("own", "crop")))
        assert query == asked
        assert gallery == (None if row.text_only else worn)
        bare = Record("cocas", "gallery", "photo.jpg", 1)
        assert row.sentences or gallery_instruction(task, bare) is None


def test_a_query_whose_own_description_is_in_the_list(toy):
    """It wants the description of its row; its own, by the image's name, is what it shows."""
    described = {"k1": "In red.", "k2": "In blue.", "images/1/q.jpg": "In grey."}
    write_text(cocas(toy), "real2/datalist/gpt.json", described)
    queries = opened(toy, "li").split("query")
    assert [query_instruction("li", query).words for query in queries] == ["In red.", "In blue."]
    assert [gallery_instruction("li", query).words for query in queries] == ["In grey."] * 2
