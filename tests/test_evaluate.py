"""Ranking metrics against reference figures, a full sort and rankings by hand; protocols, instructions, pictures."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import data
import evaluate
import instructions
from cli import UserError
from data import Dataset, Record
from evaluate import PROTOCOLS, chance, columns, evaluate_features, evaluate_task, masks, ranking_metrics
from model import Instruction
from tests.golden import golden

CASES = ("basic", "invalid", "one_gallery_cam", "small_gallery", "random", "large", "one_outfit")


def same_cmc(ours, theirs):
    return np.abs(ours[:len(theirs)] - theirs).max() < 1e-6


# ---- metrics ----

@pytest.mark.parametrize("name", CASES)
def test_reference_figures(name):
    z = golden(f"rank_metrics/{name}.npz")
    queries, gallery = ([Record("ltcc", role, "", int(p), int(c), clothes=str(o))
                         for p, c, o in zip(z[f"{side}_pids"], z[f"{side}_camids"], z[f"{side}_clothids"])]
                        for role, side in (("query", "q"), ("gallery", "g")))
    q, g = columns(queries, gallery)
    general, cc, sc = (masks(p, q, g) for p in PROTOCOLS["ltcc", "cc"])
    for key, pair, options in (("market", general, {}), ("market_torchreid", general, {}), ("general", general, {}),
                               ("cc", cc, {}), ("sc", sc, {}), ("instructreid_full", general, {}),
                               ("instructreid_top500", general, {"ap_window": 500}),
                               ("llcm", general, {"gallery_ids": z["g_pids"]})):
        if name == "one_outfit" and key == "cc":  # the reference answers 0 where no query has a hit
            with pytest.raises(UserError):
                ranking_metrics(z["distmat"], *pair)
            continue
        ours = ranking_metrics(z["distmat"], *pair, **options)
        assert same_cmc(ours["cmc"], z[f"{key}_cmc"]), key
        assert abs(ours["mAP"] - z[f"{key}_map"]) < 1e-6, key
        if f"{key}_minp" in z:
            assert abs(ours["mINP"] - z[f"{key}_minp"]) < 1e-6, key
        if f"{key}_valid_query" in z:
            assert ours["queries"] == z[f"{key}_valid_query"].sum()
    assert ranking_metrics(z["distmat"], *general)["queries"] == z["valid_query"].sum()
    for row, ap in zip(np.flatnonzero(z["valid_query"]), z["market_ap"]):
        assert abs(ranking_metrics(*(m[row:row + 1] for m in (z["distmat"], *general)))["mAP"] - ap) < 1e-6


@pytest.mark.parametrize("name", ("t2i_0", "t2i_1"))
def test_reference_figures_of_text_search(name):
    z = golden(f"rank_metrics/{name}.npz")
    dist, positive, seen = -z["similarity"], z["q_pids"][:, None] == z["g_pids"], z["i2t_gallery_subset"]
    for key, d, hits in (("t2i", dist, positive), ("i2t", dist.T[seen], positive.T[seen])):
        ours = ranking_metrics(d, hits)
        assert np.abs(100 * ours["cmc"][:len(z[f"{key}_cmc_percent"])] - z[f"{key}_cmc_percent"]).max() < 1e-3
        assert abs(100 * ours["mAP"] - z[f"{key}_map_percent"]) < 1e-3
        assert abs(100 * ours["mINP"] - z[f"{key}_minp_percent"]) < 1e-3
    ours = ranking_metrics(dist, positive)
    ranks = {k: ours["cmc"][k - 1] for k in (1, 5, 10, 50)}
    assert all(abs(rank - z[f"instructreid_t2i_r{k}"]) < 1e-6 for k, rank in ranks.items())
    assert abs((ranks[1] + ranks[5] + ranks[10]) / 3 - z["instructreid_t2i_r_mean"]) < 1e-6
    assert abs(ours["mAP"] - z["instructreid_t2i_mAP"]) < 1e-6


def naive_metrics(dist, positive, removed, ap_window=None):
    """The textbook way: sort the gallery, walk down."""
    aps, inps, firsts = [], [], []
    for d, hits, gone in zip(dist, positive, removed):
        if not (hits & ~gone).any():
            continue
        order = np.argsort(d, kind="stable")[:ap_window]
        order = [i for i in order if not gone[i]]
        places = [rank for rank, i in enumerate(order, 1) if hits[i]]
        aps.append(np.mean([n / rank for n, rank in enumerate(places, 1)]) if places else 0)
        inps.append(len(places) / places[-1] if places else 0)
        firsts.append(places[0] if places else np.inf)
    return {"mAP": np.mean(aps), "mINP": np.mean(inps), "queries": len(aps),
            "cmc": [np.mean(np.array(firsts) <= k) for k in range(1, dist.shape[1] + 1)]}


@pytest.mark.parametrize("seed", range(50))
def test_equals_a_full_sort(seed):
    rng = np.random.default_rng(seed)
    q, g = rng.integers(1, 8), rng.integers(1, 40)
    values = rng.integers(1, 30)  # few values: many ties, one value: nothing but ties
    dist = rng.integers(0, values, (q, g)).astype(rng.choice(["float32", "float64"])) / 7
    positive, removed = rng.random((q, g)) < rng.random(), rng.random((q, g)) < rng.random() / 2
    positive[0, 0], removed[0, 0] = True, False  # one query with a hit at least; others may have none
    for window in (None, 5):
        ours, naive = ranking_metrics(dist, positive, removed, window), naive_metrics(dist, positive, removed, window)
        for key in ("mAP", "mINP", "cmc", "queries"):
            np.testing.assert_allclose(ours[key], naive[key], atol=1e-12, err_msg=key)


def test_hand_worked_ranking():
    # order: b(hit) a c(hit) d(hit, removed) e
    dist = torch.tensor([[0.2, 0.1, 0.3, 0.4, 0.5]])
    positive = torch.tensor([[False, True, True, True, False]])
    removed = torch.tensor([[False, False, False, True, False]])
    figures = ranking_metrics(dist, positive, removed)
    assert figures["mAP"] == pytest.approx((1 / 1 + 2 / 3) / 2) and figures["mINP"] == pytest.approx(2 / 3)
    assert figures["cmc"].tolist() == [1] * 5 and figures["queries"] == 1


def test_ties_keep_gallery_order():
    assert ranking_metrics(np.zeros((1, 3)), np.array([[False, True, False]]))["mAP"] == 1 / 2
    assert ranking_metrics(np.zeros((1, 3)), np.array([[True, False, False]]))["mAP"] == 1


def test_default_divides_ap_by_all_hits_and_the_window_does_not():
    dist, positive = np.arange(600.0)[None], np.zeros((1, 600), bool)
    positive[0, [0, 549]] = True
    assert ranking_metrics(dist, positive)["mAP"] == pytest.approx((1 + 2 / 550) / 2)
    assert ranking_metrics(dist, positive, ap_window=500)["mAP"] == 1
    removed = np.arange(600)[None] % 2 == 1  # the cut comes before the removal: rank 275 of the kept is still outside
    positive[0, [0, 548]] = True
    assert ranking_metrics(dist, positive, removed, ap_window=500)["mAP"] == 1
    positive[0, 0] = False
    figures = ranking_metrics(dist, positive, removed, ap_window=500)
    assert (figures["mAP"], figures["queries"], figures["cmc"].max()) == (0, 1, 0)


def test_distinct_people_cmc():
    dist, ids = np.arange(5.0)[None], np.array([7, 7, 8, 3, 3])
    figures = ranking_metrics(dist, ids[None] == 3, gallery_ids=ids)
    assert figures["cmc"].tolist() == [0, 0, 1, 1, 1]  # 7, 8, 3
    assert figures["mAP"] == pytest.approx((1 / 4 + 2 / 5) / 2)


@pytest.mark.parametrize("dist, positive, what", [
    (np.full((1, 2), np.nan), np.ones((1, 2), bool), "NaN"),
    (np.zeros((1, 0)), np.zeros((1, 0), bool), "gallery is empty"),
    (np.zeros((2, 3)), np.zeros((2, 3), bool), "no query has a hit"),
    (np.zeros((0, 3)), np.zeros((0, 3), bool), "no query has a hit"),
    (np.zeros((2, 3)), np.zeros((3, 2), bool), "queries, gallery"),
])
def test_nothing_to_rank_is_a_user_error(dist, positive, what):
    with pytest.raises(UserError, match=what) as error:
        ranking_metrics(dist, positive)
    assert "\n" not in str(error.value)


def test_chance_equals_the_mean_over_random_orders():
    rng = np.random.default_rng(0)
    positive, removed = rng.random((3, 12)) < 0.4, rng.random((3, 12)) < 0.2
    figures = [ranking_metrics(rng.random((3, 12)), positive, removed) for _ in range(2000)]
    expected_map, expected_r1 = chance(positive, removed)
    assert expected_map == pytest.approx(np.mean([f["mAP"] for f in figures]), abs=0.01)
    assert expected_r1 == pytest.approx(np.mean([f["cmc"][0] for f in figures]), abs=0.02)
    assert chance(np.ones((1, 1), bool), np.zeros((1, 1), bool)) == (1, 1)
    one_of_two = np.array([[True, False]])
    assert chance(one_of_two, one_of_two & False) == (0.75, 0.5)


def test_chunks_change_nothing():
    torch.manual_seed(0)
    qf, gf = torch.randn(23, 8), torch.randn(40, 8)
    queries = [Record("market", "query", None, i % 5, i % 3) for i in range(23)]
    gallery = [Record("market", "gallery", None, i % 6, i % 2) for i in range(40)]
    q, g = columns(queries, gallery)
    protocol = PROTOCOLS["market", "trad"][0]
    whole, parts = (evaluate_features(qf, gf, q, g, protocol, chunk=chunk) for chunk in (100, 4))
    dist = 1 - F.normalize(qf) @ F.normalize(gf).T
    direct = ranking_metrics(dist, *masks(protocol, q, g))
    for key in whole:
        np.testing.assert_allclose(whole[key], parts[key], atol=1e-12)
    assert all(np.allclose(whole[key], direct[key]) for key in direct)
    told = []

    def rescore(start, dist):
        told.extend(range(start, start + len(dist)))
        return dist

    evaluate_features(qf, gf, q, g, protocol, chunk=4, rescore=rescore)
    assert told == list(range(23))  # which queries a chunk holds


# ---- protocols ----

def rank(protocol, query, gallery):
    """AP, R1 and kept gallery indices of one query over a gallery that is listed nearest first."""
    positive, removed = masks(protocol, *columns([query], gallery))
    figures = ranking_metrics(np.arange(float(len(gallery)))[None], positive, removed)
    return figures["mAP"], figures["cmc"][0], np.flatnonzero(~removed[0]).tolist()


def test_ltcc_modes_by_hand():
    query = Record("ltcc", "query", "q", 1, 1, clothes="1:a")
    gallery = [Record("ltcc", "gallery", str(i), pid, cam, clothes=clothes) for i, (pid, cam, clothes) in enumerate((
        (1, 1, "1:a"),   # same camera: never ranked
        (2, 2, "2:a"),
        (1, 2, "1:b"),   # other clothes
        (1, 3, "1:a"),   # same clothes
        (2, 1, "2:b"),
        (1, 1, "1:b")))]  # same camera
    general, cc, sc = PROTOCOLS["ltcc", "cc"]
    assert rank(general, query, gallery) == (pytest.approx((1 / 2 + 2 / 3) / 2), 0, [1, 2, 3, 4])
    assert rank(cc, query, gallery) == (pytest.approx(1 / 2), 0, [1, 2, 4])
    assert rank(sc, query, gallery) == (pytest.approx(1 / 2), 0, [1, 3, 4])


def test_cocas_strict_by_hand():
    query = Record("cocas", "query", "q", 1, 1, target_clothes="1:b")
    gallery = [Record("cocas", "gallery", str(i), pid, cam, clothes=clothes) for i, (pid, cam, clothes) in enumerate((
        (1, 2, "1:a"),      # the right person in other clothes is a wrong answer and stays
        (1, 1, "1:b"),      # same camera: never ranked
        (1, 3, "1:b"),
        (2, None, "2:a"),
        (1, None, "1:b"),   # an unknown camera equals none
        (2, 1, "2:b")))]
    strict, by_id = PROTOCOLS["cocas", "ctcc"]
    assert rank(strict, query, gallery) == (pytest.approx((1 / 2 + 2 / 4) / 2), 0, [0, 2, 3, 4, 5])
    assert rank(by_id, query, gallery)[0] == pytest.approx((1 + 2 / 2 + 3 / 4) / 3)
    assert PROTOCOLS["cocas", "li"] == PROTOCOLS["cocas", "ctcc"]


def test_junk_and_same_camera_images_are_not_ranked_and_distractors_are():
    query = Record("market", "query", "q", 5, 1)
    gallery = [Record("market", "gallery", "a", 5, 1), Record("market", "gallery", "b", -1, 2, junk=True),
               Record("market", "gallery", "c", 0, 3), Record("market", "gallery", "d", 5, 2)]
    assert rank(PROTOCOLS["market", "trad"][0], query, gallery) == (1 / 2, 0, [2, 3])


def test_unknown_is_equal_to_nothing():
    query, other = Record("cocas", "query", "q", 1), Record("cocas", "gallery", "g", 1)
    q, g = columns([query], [other])
    strict, by_id = PROTOCOLS["cocas", "li"]
    assert not strict.positive(q, g).any() and by_id.positive(q, g).all() and not by_id.removed(q, g).any()


def test_llcm_trials_draw_one_image_per_person_and_camera_and_repeat():
    records = [Record("llcm", "test", f"test_vis/cam{cam}/{pid:04d}/{k}.jpg", pid, cam)
               for k in range(4) for cam in (2, 1) for pid in (9, 3)]
    draw = evaluate.trial_gallery(records, 0)
    assert [(records[i].pid, records[i].cam) for i in draw] == [(3, 1), (3, 2), (9, 1), (9, 2)]
    shuffled = records[::-1]
    assert [shuffled[i] for i in evaluate.trial_gallery(shuffled, 0)] == [records[i] for i in draw]
    assert len({tuple(evaluate.trial_gallery(records, seed)) for seed in range(10)}) > 5


# ---- tasks, on painted images and a model that looks at colours ----

PAINT = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}


def colour_of(sentence):
    """The colour that a sentence names, as a model sees it; black if it names none. (3,)"""
    rgb = next((rgb for name, rgb in PAINT.items() if name in sentence), (0, 0, 0))
    return data.normalise(torch.tensor(rgb, dtype=torch.uint8).view(1, 3, 1, 1)).flatten()


class ColourModel(torch.nn.Module):
    """Feature = mean colour of the image plus `listen` times the instruction's. `seen`: which image met which one."""
    size, picture_size = (16, 8), (8, 8)

    def __init__(self, listen=0.0):
        super().__init__()
        self.weight, self.listen, self.seen = torch.nn.Parameter(torch.zeros(1)), listen, []

    def instruct(self, what):
        colour = torch.stack([colour_of(s) for s in what]) if isinstance(what, list) else what.mean((2, 3))
        return Instruction(colour[:, None], torch.ones(len(colour), 1, dtype=torch.bool), colour, colour[:, None])

    def embed(self, images, instr, feature="edit"):
        colour = images.mean((2, 3))
        asked = torch.zeros(1, 3) if instr is None else instr.pooled
        self.seen += zip(colour, asked.expand(len(images), 3))
        return F.normalize(colour + self.listen * asked, dim=1)

    def embed_text(self, sentences):
        return F.normalize(torch.stack([colour_of(s) for s in sentences]), dim=1)

    def edit(self, images):
        return images.mean((2, 3))[:, None]

    def match(self, tokens, instr):
        score = -(tokens[:, 0] - instr.pooled).norm(dim=1)
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.fixture
def root(tmp_path):
    for name, rgb in PAINT.items():
        Image.new("RGB", (8, 16), rgb).save(tmp_path / f"{name}.png")
    return tmp_path


def cocas(root, task):
    """Two people; each query is grey and wants one of two outfits that the gallery shows under its own instruction."""
    def record(role, image, pid, cam, clothes, instr):
        what = {"captions": (f"wears {instr}",)} if task == "li" else {"crop_path": f"{instr}.png"}
        return Record("cocas", role, f"{image}.png", pid, cam, **what,
                      **({"target_clothes": clothes} if role == "query" else {"clothes": clothes}))
    return Dataset("cocas", "COCAS+", task, root, (
        record("query", "grey", 1, 1, "1:red", "red"), record("query", "grey", 2, 1, "2:blue", "blue"),
        record("gallery", "red", 1, 2, "1:red", "red"), record("gallery", "green", 1, 2, "1:green", "green"),
        record("gallery", "blue", 2, 2, "2:blue", "blue"), record("gallery", "green", 2, 2, "2:green", "green")))


@pytest.mark.parametrize("task", ("ctcc", "li"))
def test_gallery_keeps_its_own_instruction(root, task):
    model = ColourModel()
    evaluate_task(model, cocas(root, task))
    expected = [("grey", "red"), ("grey", "blue")] + [(own, own) for own in ("red", "green", "blue", "green")]
    assert len(model.seen) == len(expected)
    for (image, instr), names in zip(model.seen, expected):
        torch.testing.assert_close(torch.stack([image, instr]), torch.stack([colour_of(name) for name in names]))


@pytest.mark.parametrize("task", ("ctcc", "li"))
def test_matrix_of_wanted_own_and_random_instruction(root, task):
    model = ColourModel(listen=1.0)
    rows = evaluate.instruction_matrix(model, [cocas(root, task)])
    by_name = {row["instruction"]: row for row in rows}
    assert by_name["wanted"]["mAP"] == by_name["wanted"]["R1"] == 1
    assert by_name["own"]["R1"] == by_name["random"]["R1"] == 0
    assert len(model.seen) == 4 + 3 * 2  # the gallery once, the queries three times
    torch.testing.assert_close([image for image, _ in model.seen[:4]], [instr for _, instr in model.seen[:4]])  # its own
    assert all(row["chance mAP"] > 0 and row["queries"] == 2 for row in rows)


def ltcc(root):
    side = (("query", 1), ("gallery", 2))
    return Dataset("ltcc", "LTCC", "cc", root, tuple(
        Record("ltcc", role, f"{image}.png", pid, cam, clothes=f"{pid}:{image}")
        for role, cam in side for pid, image in ((1, "red"), (1, "green"), (2, "blue"), (2, "grey"))))


def test_tasks_give_every_protocol_with_its_name_and_chance(root):
    rows = evaluate_task(ColourModel(), ltcc(root))
    assert [row["protocol"] for row in rows] == ["general", "cc", "sc"]
    assert [row["R1"] for row in rows] == [1, 0.5, 1]  # a model of clothes' colours guesses where the clothes change
    assert all(row["queries"] == 4 and row["without"] == 0 and 0 < row["chance mAP"] < 1 for row in rows)
    assert [row["protocol"] for row in evaluate_task(ColourModel(), ltcc(root), protocol="sc")] == ["sc"]
    with pytest.raises(UserError, match="general, cc, sc"):
        evaluate_task(ColourModel(), ltcc(root), protocol="strict")


def test_matrix_of_sentences(root):
    model = ColourModel()
    rows = evaluate.instruction_matrix(model, [ltcc(root)])
    said = [instructions.SENTENCES[task][0] for task in ("trad", "cc")]
    assert [(row["target"], row["instruction"]) for row in rows] == [
        (target, words) for target in ("other clothes", "same clothes") for words in said]
    assert [row["R1"] for row in rows if row["target"] == "same clothes"] == [1, 1]


def test_all_sentences_report_mean_and_spread(root):
    rows = evaluate.evaluate_sentences(ColourModel(), ltcc(root))
    assert [row["sentences"] for row in rows] == [20] * 3 and rows[0]["sd"] == 0 and rows[0]["best"] == rows[0]["worst"]


def test_second_stage_reorders_only_the_nearest(root):
    images = ("red", "green", "blue", "grey")
    gallery = [Record("cuhk-pedes", "gallery", f"{image}.png", pid) for pid, image in enumerate(images)]
    queries = [Record("cuhk-pedes", "query", None, pid, None, None, "text", (word,)) for pid, word in enumerate(images)]
    dataset = Dataset("cuhk-pedes", "CUHK-PEDES", "t2i", root, tuple(queries + gallery))
    first, second = evaluate_task(ColourModel(), dataset)
    assert "matching" in second["protocol"] and second["R1"] == 1 and first["queries"] == 4
    rescore = evaluate.matcher(ColourModel(), dataset, gallery, ["blue", "red"], top=2)
    order = rescore(0, torch.tensor([[0.3, 0.4, 0.2, 0.1], [0.1, 0.2, 0.4, 0.3]])).argsort(dim=1).tolist()
    assert order == [[2, 3, 0, 1], [0, 1, 3, 2]]
    assert rescore(1, torch.tensor([[0.2, 0.1, 0.4, 0.3]])).argsort().tolist() == [[0, 1, 3, 2]]  # the second sentence


def test_llcm_averages_trials_in_both_directions(root):
    records = tuple(Record("llcm", "test", f"{image}.png", pid, cam, modality=modality) for modality in ("rgb", "ir")
                    for pid, image in ((1, "red"), (2, "blue")) for cam in (1, 2) for _ in range(3))
    dataset = Dataset("llcm", "LLCM", "vi", root, records)
    rows = evaluate_task(ColourModel(), dataset)
    assert [row["protocol"] for row in rows] == ["ir-to-vis", "vis-to-ir"]
    assert all((row["trials"], row["queries"], row["gallery"]) == (10, 12, 4) for row in rows)
    assert rows == evaluate_task(ColourModel(), dataset) and rows[0]["R1"] == 1


def test_llcm_cmc_ranks_people(root):
    """A person's second image before the hit does not cost a rank."""
    records = [Record("llcm", "test", "q", 1, 9, modality="ir")]
    records += [Record("llcm", "test", str(i), pid, cam) for i, (pid, cam) in enumerate(((2, 1), (2, 2), (1, 1)))]
    feats = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    row = evaluate.score(PROTOCOLS["llcm", "vi"][0], records, records, feats, feats)
    assert (row["R1"], row["mAP"]) == (0, pytest.approx(1 / 3))
    figures = evaluate_features(feats[:1], feats[1:], *columns(records[:1], records[1:]), PROTOCOLS["llcm", "vi"][0])
    assert figures["cmc"].tolist() == [0, 1, 1]


def test_model_keeps_its_mode_and_empty_splits_are_named(root):
    model = ColourModel().train()
    evaluate_task(model, ltcc(root))
    assert model.training
    with pytest.raises(UserError, match="0 queries"):
        evaluate_task(model, ltcc(root)._replace(records=tuple(ltcc(root).split("gallery"))))


def test_table_shows_percent_and_aligns():
    lines = evaluate.format_table([{"task": "cc", "mAP": 0.5, "queries": 7}, {"task": "trad", "mAP": 1.0}]).splitlines()
    assert [line.split() for line in lines] == [["task", "mAP", "queries"], ["cc", "50.0", "7"], ["trad", "100.0"]]
    assert lines[1].index("50.0") == lines[2].index("100.0") + 1


# ---- pictures ----

def test_ranking_picture_frames_hits_and_misses(root):
    dataset = ltcc(root)
    rows = evaluate.rank_rows(ColourModel(), dataset, people=2)
    assert [row.query for row in rows[:2]] == [dataset.records[0]] * 2  # the same query under both sentences
    assert [row.instruction for row in rows[:2]] == [instructions.SENTENCES[task][0] for task in ("cc", "trad")]
    assert all(record.clothes != row.query.clothes for row in rows for record in row.gallery)
    picture = evaluate.rank_picture(rows)
    (h, w), gap, note = evaluate.CELL, evaluate.GAP, evaluate.NOTE
    assert picture.size == (4 * gap + w + note + 3 * (w + gap), gap + len(rows) * (h + gap))
    assert any(rows[0].hits) and not all(rows[0].hits)
    for k, hit in enumerate(rows[0].hits):
        left = 4 * gap + w + note + k * (w + gap)
        edge = {picture.getpixel((left + x, gap)) for x in range(w)}
        assert edge == {evaluate.HIT} if hit else evaluate.MISS in edge and len(edge) > 1  # dashes


def test_ranking_picture_shows_the_instruction_picture(root):
    rows = evaluate.rank_rows(ColourModel(listen=1.0), cocas(root, "ctcc"), people=1)
    assert [row.instruction for row in rows] == ["red.png", "green.png"] and rows[0].hits[0] and not rows[1].hits[0]
    (h, w), gap = evaluate.CELL, evaluate.GAP
    assert evaluate.rank_picture(rows).getpixel((2 * gap + w + evaluate.NOTE // 2, gap + h // 2)) == PAINT["red"]
