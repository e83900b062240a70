"""GPUs of a machine as slots: a stage has one to itself, a group of workers has all. The count is given: no GPU is used."""

import threading
import time

from infra.session import Devices


def test_a_stage_has_a_gpu_to_itself_and_a_group_has_all():
    devices = Devices(lambda: 2)
    lock, used, most, seen, shared = threading.Lock(), [0, 0], [0], set(), []

    def work(together: bool) -> None:
        with devices.take(together=together) as held:
            members = held.numbers
            with lock:
                shared.extend(member for member in members if used[member])
                for member in members:
                    used[member] += 1
                most[0] = max(most[0], sum(used))
                seen.add(held.name)
            time.sleep(0.02)
            with lock:
                for member in members:
                    used[member] -= 1

    threads = [threading.Thread(target=work, args=(place % 3 == 0,)) for place in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert (seen, most, used, shared) == ({"cuda:0", "cuda:1"}, [2], [0, 0], [])


def test_gpus_are_counted_at_the_first_use_and_given_back_after_an_error():
    counted = []
    devices = Devices(lambda: counted.append(1) or 1)
    assert counted == []
    for _ in range(3):
        try:
            with devices.take(together=False) as held:
                assert held.numbers == {0}
                raise RuntimeError
        except RuntimeError:
            pass
    assert counted == [1]
