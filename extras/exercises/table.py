"""The exercises, one row each: functions of the project to write, and the project's tests of them.
Each test must pass with the code itself and fail without the functions; `grade` checks this.
"""

from typing import NamedTuple


class Exercise(NamedTuple):
    """One exercise."""

    name: str  # also of its section in handout.md
    minutes: int
    file: str
    functions: tuple  # names in the file, with those of their classes
    tests: tuple  # of pytest; each is one point, even if it has several cases


EXERCISES = (
    Exercise(
        "zero-init", 15, "model.py", ("EditingAttention.__init__",),
        (
            "tests/test_model.py::test_gate_zero_is_the_plain_vit_exactly",
            "tests/test_model.py::test_every_layer_is_edited_and_every_editing_weight_learns",
            "tests/test_model.py::test_the_instruction_matters_only_through_open_gates",
        ),
    ),
    Exercise(
        "gated-attention", 45, "model.py", ("EditingAttention.forward", "EditingAttention.maps"),
        (
            "tests/test_model.py::test_editing_attention_reproduces_the_equations",
            "tests/test_model.py::test_editing_attention_reproduces_the_released_block",
            "tests/test_model.py::test_padding_of_an_instruction_changes_nothing",
        ),
    ),
    Exercise(
        "dual-attention", 30, "model.py", ("AttentionModule.forward", "AttentionModule._attend"),
        (
            "tests/test_model.py::test_padding_of_an_instruction_changes_nothing",
            "tests/test_model.py::test_the_attention_module_by_hand",
        ),
    ),
    Exercise(
        "relatedness", 20, "losses.py", ("relatedness",),
        (
            "tests/test_losses.py::test_relatedness_is_eq_6",
            "tests/test_losses.py::test_beta_carries_no_gradient_and_no_triplet_is_zero",
        ),
    ),
    Exercise(
        "adaptive-triplet", 40, "losses.py", ("triplet_terms", "adaptive_triplet"),
        (
            "tests/test_losses.py::test_triplets_equal_loops",
            "tests/test_losses.py::test_equal_instructions_make_it_the_plain_triplet_loss",
        ),
    ),
    Exercise(
        "contrast", 25, "losses.py", ("contrastive",),
        (
            "tests/test_losses.py::test_contrastive_equals_loops_with_several_positives",
        ),
    ),
    Exercise(
        "matching", 30, "losses.py", ("hard_negatives", "matching"),
        (
            "tests/test_losses.py::test_hard_negatives_are_other_people_and_mostly_the_alike",
            "tests/test_losses.py::test_matching_wants_true_pairs_in_the_second_place",
        ),
    ),
    Exercise(
        "instructions", 25, "instructions.py", ("training_instructions",),
        (
            "tests/test_instructions.py::test_one_sentence_serves_a_mini_batch_and_all_are_drawn",
            "tests/test_instructions.py::test_half_of_a_batch_asks_for_other_clothes",
            "tests/test_instructions.py::test_another_image_is_never_the_image_itself",
        ),
    ),
    Exercise(
        "sampler", 45, "data.py", ("PKSampler.batch", "PKSampler._images_of", "PKSampler._pick"),
        (
            "tests/test_data.py::test_batches_depend_on_seed_and_step_alone",
            "tests/test_data.py::test_an_epoch_shows_each_identity_once_and_images_without_replacement",
            "tests/test_data.py::test_a_person_with_fewer_than_k_images_repeats_evenly",
            "tests/test_data.py::test_outfits_come_before_repeats_and_modalities_half_and_half",
        ),
    ),
    Exercise(
        "schedule", 10, "train.py", ("schedule",),
        (
            "tests/test_train.py::test_the_schedule_warms_up_and_falls_to_zero",
        ),
    ),
    Exercise(
        "average-precision", 50, "evaluate.py", ("hit_ranks", "ranking_metrics"),
        (
            "tests/test_metrics.py::test_hand_worked_ranking",
            "tests/test_metrics.py::test_equals_a_full_sort",
            "tests/test_metrics.py::test_nothing_to_rank_is_a_user_error",
        ),
    ),
)
