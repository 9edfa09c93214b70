from ordersys.core.backoff import Backoff


def test_pauses_double_up_to_the_most_and_start_again_after_a_success() -> None:
    backoff = Backoff(0.5, 3.0)
    for _ in range(2):
        for whole in (0.5, 1.0, 2.0, 3.0, 3.0):
            assert whole / 2 <= backoff.pause() <= whole
        backoff.reset()


def test_two_of_them_do_not_keep_in_step() -> None:
    assert {Backoff(1.0, 1.0).pause() for _ in range(20)} != {1.0}
