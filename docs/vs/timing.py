"""The clock of every script here: the time until the four squares, and that of a round trip."""

import json
import os
import statistics
import time

TRIPS = 200


class Clock:
    """Starts when it is made, or when the launcher of this process was started."""

    def __init__(self, *, launched=False):
        self.now = time.time if launched else time.perf_counter
        self.began = float(os.environ.get("BEGAN", "nan")) if launched else self.now()

    def report(self, squares, trip):
        """Print how long it took to have the squares, and how long a round trip takes.

        `trip` makes one, or is the seconds that one has taken elsewhere.
        """
        first_s = self.now() - self.began
        trip_s = median_trip(trip) if callable(trip) else trip
        print(json.dumps({"squares": squares, "first_s": first_s, "trip_s": trip_s}))


def median_trip(trip):
    """Return how long it takes to call `trip`, in seconds: the median."""
    trips = []
    for _ in range(TRIPS):
        start = time.perf_counter()
        trip()
        trips.append(time.perf_counter() - start)
    return statistics.median(trips)
