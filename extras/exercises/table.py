"""The exercises, a row each: functions of the project to write, and the project's tests of them.
Each test must pass on the code itself and fail while the functions are empty; `grade` checks that.
"""

from typing import NamedTuple


class Exercise(NamedTuple):
    """What a student is asked."""

    name: str  # also of its section in handout.md, which asks the question
    file: str
    functions: tuple  # their names in the file, with those of their classes
    tests: tuple  # of pytest; each is a point, whatever the number of its cases
    minutes: int


def tests_of(file, *names):
    """What pytest calls the tests of a file."""
    return tuple(f"{file}::{name}" for name in names)


EXERCISES = (
    Exercise(
        name="zero-init",
        file="model.py",
        functions=("EditingAttention.__init__",),
        tests=tests_of(
            "tests/test_model.py",
            "test_gate_zero_is_the_plain_vit_exactly",
            "test_every_layer_is_edited_and_every_editing_weight_learns",
            "test_the_instruction_matters_only_through_open_gates",
        ),
        minutes=15,
    ),
    Exercise(
        name="gated-attention",
        file="model.py",
        functions=("EditingAttention.forward", "EditingAttention.maps"),
        tests=tests_of(
            "tests/test_model.py",
            "test_editing_attention_reproduces_the_equations",
            "test_editing_attention_reproduces_the_released_block",
            "test_padding_of_an_instruction_changes_nothing",
            "test_one_shared_sentence_equals_the_same_sentence_repeated",
        ),
        minutes=45,
    ),
    Exercise(
        name="dual-attention",
        file="model.py",
        functions=("AttentionModule.forward", "AttentionModule._attend"),
        tests=tests_of(
            "tests/test_model.py",
            "test_padding_of_an_instruction_changes_nothing",
            "test_the_attention_module_by_hand",
        ),
        minutes=30,
    ),
    Exercise(
        name="relatedness",
        file="losses.py",
        functions=("relatedness",),
        tests=tests_of(
            "tests/test_losses.py",
            "test_reference_numbers",
            "test_beta_carries_no_gradient_and_no_triplet_is_zero",
        ),
        minutes=20,
    ),
    Exercise(
        name="adaptive-triplet",
        file="losses.py",
        functions=("triplet_terms", "adaptive_triplet"),
        tests=tests_of(
            "tests/test_losses.py",
            "test_triplets_equal_loops",
            "test_equal_instructions_make_it_the_plain_triplet_loss",
        ),
        minutes=40,
    ),
    Exercise(
        name="contrast",
        file="losses.py",
        functions=("contrastive",),
        tests=tests_of(
            "tests/test_losses.py",
            "test_contrastive_equals_loops_with_several_positives",
        ),
        minutes=25,
    ),
    Exercise(
        name="matching",
        file="losses.py",
        functions=("hard_negatives", "matching"),
        tests=tests_of(
            "tests/test_losses.py",
            "test_hard_negatives_are_other_people_and_mostly_the_alike",
            "test_matching_wants_true_pairs_in_the_second_place",
        ),
        minutes=30,
    ),
    Exercise(
        name="instructions",
        file="instructions.py",
        functions=("training_instructions",),
        tests=tests_of(
            "tests/test_instructions.py",
            "test_one_sentence_serves_a_mini_batch_and_all_are_drawn",
            "test_half_of_a_batch_asks_for_other_clothes",
            "test_another_image_is_never_the_image_itself",
        ),
        minutes=25,
    ),
    Exercise(
        name="sampler",
        file="data.py",
        functions=("PKSampler.batch", "PKSampler._images_of", "PKSampler._pick"),
        tests=tests_of(
            "tests/test_data.py",
            "test_batches_depend_on_seed_and_step_alone",
            "test_an_epoch_shows_each_identity_once_and_images_without_replacement",
            "test_a_person_with_fewer_than_k_images_repeats_evenly",
            "test_outfits_come_before_repeats_and_modalities_half_and_half",
        ),
        minutes=45,
    ),
    Exercise(
        name="schedule",
        file="train.py",
        functions=("schedule",),
        tests=tests_of("tests/test_train.py", "test_the_schedule_warms_up_and_falls_to_zero"),
        minutes=10,
    ),
    Exercise(
        name="average-precision",
        file="evaluate.py",
        functions=("hit_ranks", "ranking_metrics"),
        tests=tests_of(
            "tests/test_metrics.py",
            "test_hand_worked_ranking",
            "test_ties_keep_gallery_order",
            "test_removed_items_are_not_ranked_even_at_an_infinite_distance",
            "test_equals_a_full_sort",
            "test_distinct_people_cmc",
            "test_default_divides_ap_by_all_hits_and_the_window_does_not",
            "test_nothing_to_rank_is_a_user_error",
        ),
        minutes=50,
    ),
)
