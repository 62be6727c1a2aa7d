"""Calls that several threads make at once."""

import threading


def together(*works):
    """Each in a thread of its own, until all have ended; what one raises is raised here."""
    errors, start = [], threading.Barrier(len(works))

    def run(work):
        try:
            start.wait()
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "hung"
    if errors:
        raise errors[0]
