"""How much audio may be open at once, in numbers."""

import pytest

from batching.errors import QueueFull, ShuttingDown
from batching.limits import Limits
from handlers.transcription.admission import Admission


def admission(files: int = 10, seconds: int = 100) -> Admission:
    return Admission("whisper", Limits(max_queue_size=files, max_queue_cost=seconds))


def test_files_are_bounded_and_a_place_that_is_given_back_is_free() -> None:
    counted = admission(files=1)
    place = counted.admit()
    with pytest.raises(QueueFull) as refused:
        counted.admit()
    assert (refused.value.limit, refused.value.unit) == (1, "requests")
    assert (counted.files, counted.refused) == (1, 1)
    place.release()
    place.release()
    assert counted.files == 0
    counted.admit()


def test_seconds_are_bounded_once_they_are_known() -> None:
    counted = admission(seconds=100)
    counted.admit().measured(60)
    second = counted.admit()
    with pytest.raises(QueueFull) as refused:
        second.measured(41)
    assert (refused.value.limit, refused.value.unit) == (100, "seconds of audio")
    assert (counted.seconds, counted.refused) == (60, 1)
    second.measured(40)
    assert counted.seconds == 100


def test_a_file_longer_than_the_bound_is_taken_where_no_other_is_and_others_wait_for_its_end() -> None:
    counted = admission(seconds=100)
    place = counted.admit()
    place.measured(1000)
    with pytest.raises(QueueFull):
        counted.admit()
    place.transcribed(900)
    counted.admit()


def test_what_is_transcribed_makes_room_and_no_more_than_the_file_had() -> None:
    counted = admission()
    place = counted.admit()
    place.measured(10)
    place.transcribed(4)
    assert counted.seconds == 6
    place.transcribed(7)
    assert counted.seconds == 0


def test_nothing_is_left_of_the_seconds_when_all_files_have_gone() -> None:
    counted = admission()
    places = [counted.admit(), counted.admit()]
    for place, seconds in zip(places, (0.1, 0.2), strict=True):
        place.measured(seconds)
    for place in places:
        place.release()
    assert (counted.files, counted.seconds) == (0, 0.0)


def test_a_closed_door_takes_no_file_but_lets_those_inside_finish() -> None:
    counted = admission()
    place = counted.admit()
    counted.closed = True
    with pytest.raises(ShuttingDown):
        counted.admit()
    place.measured(10)
    assert counted.seconds == 10


def test_who_is_refused_is_told_when_there_may_be_room() -> None:
    counted = admission(files=1)
    counted.pace.record(10, 1.0)
    counted.admit().measured(50)
    with pytest.raises(QueueFull) as refused:
        counted.admit()
    assert refused.value.retry_after == 5
