import threading
import time

import pytest

from mmjax.data.watch import Stuck, Watch


@pytest.mark.quick
def test_a_task_that_takes_too_long_is_named_with_its_stack():
    watch, release = Watch(0.05), threading.Event()

    def reads_for_ever():
        with watch.task(lambda: "shard 3 record 4"):
            release.wait(10)

    with watch.task(lambda: "one that ends"):
        pass
    thread = threading.Thread(target=reads_for_ever)
    thread.start()
    watch.check()
    time.sleep(0.1)
    with pytest.raises(Stuck, match="shard 3 record 4 has taken more than watchdog=0.05 seconds(.|\n)*in reads_for_ev"):
        watch.check()
    release.set()
    thread.join()
    watch.check()


def test_another_may_say_where_it_is_and_no_limit_is_none():
    for limit in (0.01, 0):
        watch = Watch(limit)
        with watch.task(lambda: "a record", lambda: "in a worker"):
            time.sleep(0.03)
            if limit:
                with pytest.raises(Stuck, match="in a worker"):
                    watch.check()
            else:
                watch.check()
