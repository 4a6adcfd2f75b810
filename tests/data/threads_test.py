import itertools
import threading

import pytest

from mmjax.data.threads import Threads, in_order


@pytest.mark.quick
def test_results_come_in_order_and_inputs_are_taken_a_little_ahead():
    threads, first, taken = Threads(3, "test"), threading.Event(), []

    def double(x):
        if x == 0:
            first.wait(10)                              # the others overtake it
        if x == 20:
            first.set()
        return 2 * x

    def inputs():
        for x in itertools.count():
            taken.append(x)
            yield x

    results = in_order(double, inputs(), threads)
    assert [next(results) for _ in range(50)] == list(range(0, 100, 2))
    assert len(taken) < 150
    assert list(in_order(double, iter(range(13)), threads)) == list(range(0, 26, 2))
    assert list(in_order(double, iter(range(5)), None)) == [0, 2, 4, 6, 8]
    threads.close()


def test_an_error_comes_where_its_result_would():
    threads = Threads(2, "test")
    results = in_order(lambda x: 1 // (20 - x), iter(range(40)), threads)
    assert next(results) == 0
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert threads.submit(len, "abc").result(10) == 3  # the threads live on
    threads.close()
