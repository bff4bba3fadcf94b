"""Single cases that are slow, where their neighbours show most of what they show.

Whole tests carry the marker `slow` themselves; these are cases of tests that stay, and tests whose
subject has a cheaper one beside them. Each takes 5 to 40 CPU-seconds. `-m slow` runs them all.
"""

from collections.abc import Iterable, Sequence

COSTLY = (
    # Of three cores and two learners, Mamba-2 stays with both.
    "authors_test.py::test_drama_gives_the_numbers_of_its_authors[Mamba, updates]",
    "authors_test.py::test_drama_gives_the_numbers_of_its_authors[Transformer, updates]",
    "authors_test.py::test_drama_gives_the_numbers_of_its_authors[Transformer, AC, warm]",
    "authors_test.py::test_drama_gives_the_numbers_of_its_authors[Mamba2, AC, empty]",
    # Its nets, its published switches and its update have tests of their own.
    "experiments/experiments_test.py::test_an_experiment_runs_in_debug[drama_atari100k]",
    "experiments/experiments_test.py::test_an_experiment_runs_in_debug[drama_dmc]",
    "experiments/experiments_test.py::test_ppo_takes_over_what_the_actor_critic_was_told",
    "experiments/experiments_test.py::test_a_phase_without_collecting_learns_from_what_is_stored",
    "experiments/grid_world_test.py::test_a_run_writes_what_the_report_reads",
    "experiments/grid_world_test.py::test_the_loss_falls_and_seeds_in_one_program_equal_solo_runs",
    "experiments/notebooks_test.py::test_a_notebook_runs_with_small_sizes[your_own_environment]",
    # The golden numbers of the authors' code hold published updates.
    "experiment/switches_test.py::test_a_whole_update_of_the_published_kind_runs",
    "experiment/members_test.py::test_every_number_may_vary[catch]",
    "experiment/members_test.py::test_padded_seeds_go_on_from_a_checkpoint_bit_for_bit",
    "train/preflight_test.py::test_a_survey_compiles_and_times_and_writes_nothing",
    "train/evaluation_test.py::test_a_run_is_judged_under_other_settings",
    "train/ends_test.py::test_ends_that_are_never_imagined_are_named_once",
    "train/rounds_test.py::test_rounds_share_one_compilation_and_a_stopped_loop_goes_on",
    "train/fork_test.py::test_a_changed_fork_begins_alike_and_goes_its_own_way",
    # A lane equals its solo run on one device too.
    "loops/fused_test.py::test_seeds_on_devices_are_as_on_one[3-3]",
    "loops/host_test.py::test_equal_runs_are_equal_byte_for_byte",
    "loops/schedule_test.py::test_each_update_runs_at_its_own_pace[fused]",
    "world_models/laws_test.py::test_the_ensemble_keeps_the_laws[named_leaves]",
    "loops/host_test.py::test_updating_while_the_lanes_step_changes_nothing",
    # A sweep of two real programs; planning, supervising and Slurm have tests of their own.
    "launch/sweep_cli_test.py::test_both_programs_end_and_the_rows_name_their_lanes",
    "launch/sweep_cli_test.py::test_a_report_reads_the_metrics_of_every_program",
    "launch/sweep_cli_test.py::test_a_sweep_that_is_done_has_nothing_to_do",
    "launch/sweep_cli_test.py::test_a_member_that_another_process_runs_is_left_to_it",
    "launch/sweep_cli_test.py::test_what_the_members_share_may_not_change",
    # Six cores stay.
    "cores/laws_test.py::test_core_keeps_the_laws[rotary]",
    "cores/laws_test.py::test_core_keeps_the_laws[s5]",
    "cores/laws_test.py::test_core_keeps_the_laws[storm_long]",
    "cores/laws_test.py::test_core_keeps_the_laws[relative]",
    "world_models/laws_test.py::test_drama_keeps_the_laws_with_every_core[mamba-DiscreteSpec]",
    "world_models/laws_test.py::test_drama_keeps_the_laws_with_every_core[storm-DiscreteSpec]",
    "world_models/drama/imagined_samples_test.py::test_what_was_seen_reaches_the_core_whole",
    # TD-MPC2, which is joint too, stays.
    "testing/agents_test.py::test_agent_keeps_the_law[dreamer]",
    "ssm/ssd/recurrence_test.py::test_no_initial_state_means_zeros[13]",
    # One and five lanes at a time stay.
    "ssm/ssd/turns_test.py::test_turns_give_what_the_recurrence_gives[2 lanes at a time",
    "ssm/ssd/turns_test.py::test_seeds_and_what_they_share[2 lanes at a time",
    "ssm/ssd/turns_test.py::test_entries_rebuild_the_state_after_any_row[2 lanes at a time",
    # Stepping, the doctor's draws and rows of dictionaries are tested by part.
    "dictionary_actions_test.py::test_lanes_on_the_host_and_the_rows_that_they_leave",
)


def stale(names: Sequence[str], nodeids: Iterable[str]) -> list[str]:
    """Those of `names` that are part of no node id: they mark nothing any more."""
    left = list(names)
    for nodeid in nodeids:
        left = [name for name in left if f"/{name}" not in nodeid]
    return left
