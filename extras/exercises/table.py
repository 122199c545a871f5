"""The exercises, a row each: functions of the project to write, and tests of the project that grade
them. Each test must fail while the functions are empty; `grade` checks that, and that the code
itself passes.
"""

from typing import NamedTuple


class Exercise(NamedTuple):
    """What a student is asked."""

    name: str
    title: str
    question: str  # for the student's README; docstring and signature say the rest
    file: str
    functions: tuple  # their names in the file, with those of their classes
    tests: tuple  # of pytest; each is a point, whatever the number of its cases
    minutes: int


EXERCISES = (
    Exercise(
        name="zero-init",
        title="a zero-init layer",
        question="Sec. 4.2 calls F_l a zero-init transformer layer: the first step of training must "
        "see exactly the pre-trained ViT, whatever the instruction says, and yet every weight must "
        "be able to learn. Make the linear layers `q`, `k`, `v`, `out` (dim to dim), `k_instr`, "
        "`v_instr` (instr_dim to dim) and the parameter `gate` (one number for each head). What "
        "starts at zero, and what must not? With instr_dim None the last three do not exist.",
        file="model.py",
        functions=("EditingAttention.__init__",),
        tests=(
            "tests/test_model.py::test_gate_zero_is_the_plain_vit_exactly",
            "tests/test_model.py::test_every_layer_is_edited_and_every_editing_weight_learns",
            "tests/test_model.py::test_the_instruction_matters_only_through_open_gates",
        ),
        minutes=15,
    ),
    Exercise(
        name="gated-attention",
        title="the gated attention, Eq. 2-4",
        question="The image tokens attend to themselves and to the instruction: "
        "M = [softmax(Q K^T / sqrt(C)), g * softmax(Q K'^T / sqrt(C))] and "
        "F = Linear_o(M [V; V']), where C is the width of one head. `maps` gives M, for pictures; "
        "`forward` gives F, and without an instruction plain self-attention. How many softmaxes are "
        "there, and what does the gate multiply?",
        file="model.py",
        functions=("EditingAttention.forward", "EditingAttention.maps"),
        tests=(
            "tests/test_model.py::test_editing_attention_reproduces_the_equations",
            "tests/test_model.py::test_editing_attention_reproduces_the_released_block",
            "tests/test_model.py::test_padding_of_an_instruction_changes_nothing",
            "tests/test_model.py::test_one_shared_sentence_equals_the_same_sentence_repeated",
        ),
        minutes=45,
    ),
    Exercise(
        name="dual-attention",
        title="the attention module E_f, Fig. 3a",
        question="Each side's CLS token reads the tokens of the other side, without the other's CLS: "
        "[CLS_image; instruction tokens] and [CLS_instruction; image tokens] go through the same "
        "layers, `self.blocks` and `self.norm`. F_out is both resulting CLS tokens, the image's "
        "first. `_attend` does one side; padding of the instruction must not be read.",
        file="model.py",
        functions=("AttentionModule.forward", "AttentionModule._attend"),
        tests=(
            "tests/test_model.py::test_attention_module_sees_both_sides",
            "tests/test_model.py::test_padding_of_an_instruction_changes_nothing",
            "tests/test_wires.py::test_the_attention_module_by_hand",
        ),
        minutes=30,
    ),
    Exercise(
        name="relatedness",
        title="relatedness, Eq. 6",
        question="How related are two images? beta = 1(y_a = y_r) cos(F_T^a, F_T^r): the cosine of "
        "their instructions where the identities agree, else 0. No gradient flows into the "
        "instructions. Why not?",
        file="losses.py",
        functions=("relatedness",),
        tests=(
            "tests/test_losses.py::test_reference_numbers",
            "tests/test_losses.py::test_identity_gates_beta",
            "tests/test_losses.py::test_beta_carries_no_gradient_and_no_triplet_is_zero",
        ),
        minutes=20,
    ),
    Exercise(
        name="adaptive-triplet",
        title="the adaptive triplet loss, Eq. 5",
        question="{Sign(b1 - b2) [d1 + (b1 - b2) m - d2]}_+ : the difference of two relatednesses "
        "becomes the order of two distances, and a margin. Write the term for triplets of any "
        "shape, then the loss from `distances`, `relatedness` and the function of each kind of "
        "mining. Which triplets say nothing?",
        file="losses.py",
        functions=("triplet_terms", "adaptive_triplet"),
        tests=(
            "tests/test_losses.py::test_all_triplets_equal_three_nested_loops",
            "tests/test_losses.py::test_even_triplets_equal_loops",
            "tests/test_losses.py::test_hard_triplets_equal_loops",
            "tests/test_losses.py::test_equal_instructions_make_it_the_plain_triplet_loss",
            "tests/test_losses.py::test_the_wanted_outfit_must_be_nearer",
        ),
        minutes=40,
    ),
    Exercise(
        name="contrast",
        title="the contrast of Eq. 8",
        question="L_cl pulls an image to its sentence and pushes it from those of others, in both "
        "directions. A batch holds several photos of a person: all their sentences are right "
        "answers, and share the target equally.",
        file="losses.py",
        functions=("contrastive",),
        tests=("tests/test_losses.py::test_contrastive_equals_loops_with_several_positives",),
        minutes=25,
    ),
    Exercise(
        name="matching",
        title="hard negatives and the matching of Eq. 8",
        question="L_match tells true pairs from false ones, by cross-entropy over [no, yes]. As in "
        "ALBEF (Li et al. 2021) a false partner is sampled, the more often the more similar it is, "
        "and is never of the same identity.",
        file="losses.py",
        functions=("hard_negatives", "matching"),
        tests=(
            "tests/test_losses.py::test_hard_negatives_are_other_people_and_mostly_the_alike",
            "tests/test_losses.py::test_matching_wants_true_pairs_in_the_second_place",
        ),
        minutes=30,
    ),
    Exercise(
        name="instructions",
        title="who gets which instruction, Sec. 4.1",
        question="A mini-batch shares one of the task's sentences, each image has a caption, or half "
        "of the images carry their own instruction and half (`OTHERS_SHARE`) the one of another "
        "image of the same person (`another_image`). All random choices come from `rng`.",
        file="instructions.py",
        functions=("training_instructions",),
        tests=(
            "tests/test_instructions.py::test_one_sentence_serves_a_mini_batch_and_all_are_drawn",
            "tests/test_instructions.py::test_half_of_a_batch_asks_for_other_clothes",
            "tests/test_instructions.py::test_another_image_is_never_the_image_itself",
        ),
        minutes=25,
    ),
    Exercise(
        name="sampler",
        title="the P x K sampler, Sec. 5.1",
        question="A batch is P identities with K images each, a function of (seed, step) alone, so "
        "that a run resumes at any step. An epoch is a permutation of `self.people` in steps of P. "
        "`_images_of` divides K among a person's modalities, `_pick` takes no image twice before "
        "each was taken once, and no outfit twice before each was seen once.",
        file="data.py",
        functions=("PKSampler.batch", "PKSampler._images_of", "PKSampler._pick"),
        tests=(
            "tests/test_data.py::test_batches_depend_on_seed_and_step_alone",
            "tests/test_data.py::test_an_epoch_shows_each_identity_once_and_images_without_replacement",
            "tests/test_data.py::test_a_person_with_fewer_than_k_images_repeats_evenly",
            "tests/test_data.py::test_outfits_come_before_repeats_and_modalities_half_and_half",
        ),
        minutes=45,
    ),
    Exercise(
        name="schedule",
        title="the learning rate, Sec. 5.1",
        question="What the learning rate is multiplied by: it rises in a line from 1/100 to 1 in "
        "`config.warmup` steps, then falls to 0 at `config.steps` as half a cosine.",
        file="train.py",
        functions=("schedule",),
        tests=("tests/test_train.py::test_the_schedule_warms_up_and_falls_to_zero",),
        minutes=10,
    ),
    Exercise(
        name="average-precision",
        title="mAP and CMC by counting ranks",
        question="The rank of a hit is one more than the number of gallery images ahead of it; the "
        "average precision is the mean, over the hits, of the precision at their ranks; CMC at k is "
        "the share of queries with a hit among the first k. Where distances tie, the earlier image "
        "is ahead; what is removed is not ranked at all.",
        file="evaluate.py",
        functions=("hit_ranks", "ranking_metrics"),
        tests=(
            "tests/test_metrics.py::test_hand_worked_ranking",
            "tests/test_metrics.py::test_ties_keep_gallery_order",
            "tests/test_metrics.py::test_removed_items_are_not_ranked_even_at_an_infinite_distance",
            "tests/test_metrics.py::test_equals_a_full_sort",
            "tests/test_metrics.py::test_distinct_people_cmc",
            "tests/test_metrics.py::test_default_divides_ap_by_all_hits_and_the_window_does_not",
            "tests/test_metrics.py::test_nothing_to_rank_is_a_user_error",
        ),
        minutes=50,
    ),
)
