"""Which test covers which fault of an upstream.

U1   refuses      test_an_upstream_that_refuses_is_left_alone_after_five_failures_and_tried_by_one_request_later
                              test_in_mode_first_the_models_here_answer_within_50_ms_when_the_upstream_refuses
                              test_in_mode_first_an_upstream_that_is_down_is_not_even_asked_after_a_while
U2   never accepts            test_a_connection_that_is_never_accepted_is_given_up_in_time
U3   accepts, then silent     test_an_upstream_that_is_silent_is_not_asked_a_second_time_and_gives_its_place_back
U4   429 with Retry-After     test_retry_after_is_heeded_up_to_a_bound
U5   a mix of 5xx             test_retries_stay_within_their_budget_when_everything_fails
U6   4xx, our key refused     test_a_verdict_on_the_request_is_not_asked_for_twice
                              test_a_key_that_the_upstream_refuses_is_told_to_the_operator_without_the_key
U7   cut in mid-stream        test_an_event_stream_that_is_reset_ends_in_an_error_event
                              test_cuts_in_mid_stream_open_the_breaker_though_every_reply_begins_well
U8   cut before the body      test_in_mode_first_a_stream_cut_before_its_first_byte_comes_whole_from_here
U9   drips                    test_an_upstream_that_drips_for_ever_is_left_at_the_deadline
U10  malformed events         test_events_are_not_looked_into
U11  bombs, endless replies   test_a_flood_and_a_head_without_end_take_little_memory
                              test_a_compressed_reply_is_passed_on_without_being_unpacked
U12  redirects                test_a_redirect_makes_no_second_connection
U13  client leaves            test_a_client_that_hangs_up_closes_the_upstream
U14  slow client              test_a_client_that_does_not_read_holds_the_upstream_back_and_is_given_up
U15  comes and goes           test_after_the_pause_one_request_tries_while_the_others_are_turned_away
U16  stale keep-alive         test_an_idle_connection_that_is_closed_under_a_request_costs_nobody_an_error
                              test_repeats_after_stale_connections_are_charged_to_the_budget
U17  names not found, slowly  test_a_name_that_cannot_be_looked_up_is_unreachable
                              test_a_look_up_that_hangs_costs_one_thread_and_the_time_of_a_connection
"""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_fault_has_a_test_that_exists() -> None:
    assert __doc__ is not None
    defined = "".join(
        file.read_text() for folder in ("proxy", "gateway") for file in (TESTS / folder).glob("test_*.py")
    )

    assert re.findall(r"^U(\d+) ", __doc__, re.MULTILINE) == [str(number) for number in range(1, 18)]
    for name in re.findall(r"\btest_\w+", __doc__):
        assert f"def {name}(" in defined, name
